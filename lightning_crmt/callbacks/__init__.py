# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Callbacks, one task each.

``IntegrationReweighting``, ``RadiusTraining`` and ``ClassFloor`` change training, the others observe.
"""

from lightning_crmt.callbacks.adversarial_robustness import AdversarialRobustness, Attacked
from lightning_crmt.callbacks.certified_robustness import CertifiedRobustness
from lightning_crmt.callbacks.class_floor import ClassFloor
from lightning_crmt.callbacks.integration_reweighting import IntegrationReweighting
from lightning_crmt.callbacks.missing_modalities import MissingModalities
from lightning_crmt.callbacks.modality_reliance import ModalityReliance
from lightning_crmt.callbacks.observer import Measurement, Observer, Samples, counts_of
from lightning_crmt.callbacks.radius_training import RadiusTraining
from lightning_crmt.callbacks.robustness_figures import RobustnessFigures, threats_of
from lightning_crmt.callbacks.smoothed_robustness import SmoothedRobustness

__all__ = [
    "AdversarialRobustness",
    "Attacked",
    "CertifiedRobustness",
    "ClassFloor",
    "IntegrationReweighting",
    "Measurement",
    "MissingModalities",
    "ModalityReliance",
    "Observer",
    "RadiusTraining",
    "RobustnessFigures",
    "Samples",
    "SmoothedRobustness",
    "counts_of",
    "threats_of",
]
