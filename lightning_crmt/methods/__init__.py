# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Training methods to compare CRMT with, one file each; a method is a callback added to a CRMT module."""

from lightning_crmt.methods.adaptive_gradient_modulation import AdaptiveGradientModulation
from lightning_crmt.methods.adversarial_training import AdversarialTraining
from lightning_crmt.methods.feature_memory import FeatureMemory
from lightning_crmt.methods.gaussian_noise import GaussianNoise
from lightning_crmt.methods.gradient_blending import GradientBlending, blending_weights
from lightning_crmt.methods.gradient_modulation import GradientModulation
from lightning_crmt.methods.minimal_similarity import MinimalSimilarity
from lightning_crmt.methods.mixup import Mixup
from lightning_crmt.methods.modality_dropout import ModalityDropout
from lightning_crmt.methods.modality_early_stopping import ModalityEarlyStopping
from lightning_crmt.methods.modality_specific_rates import ModalitySpecificRates
from lightning_crmt.methods.noise_consistency import NoiseConsistency
from lightning_crmt.methods.pareto_gradients import ParetoGradients
from lightning_crmt.methods.prototypical_rebalancing import PrototypicalRebalancing
from lightning_crmt.methods.relearning import Relearning
from lightning_crmt.methods.teacher_features import TeacherFeatures
from lightning_crmt.methods.token_ablation import TokenAblation
from lightning_crmt.methods.unimodal_losses import UnimodalLosses
from lightning_crmt.methods.vulnerability_penalty import VulnerabilityPenalty
from lightning_crmt.training import Method

__all__ = [
    "AdaptiveGradientModulation",
    "AdversarialTraining",
    "FeatureMemory",
    "GaussianNoise",
    "GradientBlending",
    "GradientModulation",
    "Method",
    "MinimalSimilarity",
    "Mixup",
    "ModalityDropout",
    "ModalityEarlyStopping",
    "ModalitySpecificRates",
    "NoiseConsistency",
    "ParetoGradients",
    "PrototypicalRebalancing",
    "Relearning",
    "TeacherFeatures",
    "TokenAblation",
    "UnimodalLosses",
    "VulnerabilityPenalty",
    "blending_weights",
]
