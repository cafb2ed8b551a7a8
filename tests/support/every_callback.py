# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Every callback of the package, for the model of ``make_model``."""

from functools import partial

from lightning.pytorch import seed_everything

from lightning_crmt import OrthogonalFusion, callbacks, methods
from lightning_crmt.attacks import PGD, Budget, LossAscent
from lightning_crmt.encoders import MLP
from lightning_crmt.fusion import MemoryFusion


def teacher():
    seed_everything(3, verbose=False)
    return MLP(6, 16)


#: A factory of each callback, with small settings, so that all it can change is changed by the third epoch.
MAKE = {
    "AdversarialRobustness": lambda: callbacks.AdversarialRobustness(
        {"pgd": PGD(Budget(0.1), steps=1)}, every_n_epochs=2, max_batches=1
    ),
    "CertifiedRobustness": lambda: callbacks.CertifiedRobustness([0.1], every_n_epochs=2, max_batches=1),
    "ClassFloor": lambda: callbacks.ClassFloor(),
    "IntegrationReweighting": lambda: callbacks.IntegrationReweighting(epochs=1),
    "MissingModalities": lambda: callbacks.MissingModalities(every_n_epochs=2, max_batches=1),
    "ModalityReliance": lambda: callbacks.ModalityReliance(every_n_epochs=2, max_batches=1),
    "RadiusTraining": lambda: callbacks.RadiusTraining(radius=0.1),
    "RobustnessFigures": lambda: callbacks.RobustnessFigures(),
    "SmoothedRobustness": lambda: callbacks.SmoothedRobustness(0.1, [0.1], max_draws=128, max_samples=20),
    "AdaptiveGradientModulation": lambda: methods.AdaptiveGradientModulation(),
    "AdversarialTraining": lambda: methods.AdversarialTraining(LossAscent(Budget(0.1))),
    "FeatureMemory": lambda: methods.FeatureMemory(start_epoch=1),
    "GaussianNoise": lambda: methods.GaussianNoise(0.2),
    "GradientBlending": lambda: methods.GradientBlending(super_epoch=1),
    "GradientModulation": lambda: methods.GradientModulation(),
    "MinimalSimilarity": lambda: methods.MinimalSimilarity(),
    "Mixup": lambda: methods.Mixup(),
    "ModalityDropout": lambda: methods.ModalityDropout(),
    "ModalityEarlyStopping": lambda: methods.ModalityEarlyStopping(patience=0, smoothing=0.0),
    "ModalitySpecificRates": lambda: methods.ModalitySpecificRates(0.5, window=1),
    "NoiseConsistency": lambda: methods.NoiseConsistency({"fou": 0.2, "mor": 0.1}),
    "ParetoGradients": lambda: methods.ParetoGradients(),
    "PrototypicalRebalancing": lambda: methods.PrototypicalRebalancing(),
    "Relearning": lambda: methods.Relearning(epochs=(1, 2)),
    "TeacherFeatures": lambda: methods.TeacherFeatures({"mor": teacher()}),
    "TokenAblation": lambda: methods.TokenAblation(0.5, mask_token=0),
    "UnimodalLosses": lambda: methods.UnimodalLosses(),
    "VulnerabilityPenalty": lambda: methods.VulnerabilityPenalty(0.1),
}


def head_for(name):
    """The head that a callback needs."""
    return partial(MemoryFusion, atoms=5, steps=2) if name == "FeatureMemory" else OrthogonalFusion
