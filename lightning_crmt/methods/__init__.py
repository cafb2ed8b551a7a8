# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The ways of training that people compare with, one small file each: a callback under a CRMT module, or a head."""

from lightning_crmt.methods.adversarial_training import AdversarialTraining
from lightning_crmt.methods.method import Method
from lightning_crmt.methods.mixup import Mixup
from lightning_crmt.methods.modality_dropout import ModalityDropout

__all__ = ["AdversarialTraining", "Method", "Mixup", "ModalityDropout"]
