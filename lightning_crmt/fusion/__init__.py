# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Heads: from the features of all modalities to logits and uni-modal scores."""

from lightning_crmt.deprecation import renamed
from lightning_crmt.fusion.attention import AttentionFusion
from lightning_crmt.fusion.cosine import CosineFusion
from lightning_crmt.fusion.head import FusionHead
from lightning_crmt.fusion.joint import FiLMFusion, GatedFusion, JointFusion
from lightning_crmt.fusion.late import FixedFusion, LateFusion, LinearFusion, OrthogonalFusion
from lightning_crmt.fusion.memory import MemoryFusion

__all__ = [
    "AttentionFusion",
    "CosineFusion",
    "FiLMFusion",
    "FixedFusion",
    "FusionHead",
    "GatedFusion",
    "JointFusion",
    "LateFusion",
    "LinearFusion",
    "MemoryFusion",
    "OrthogonalFusion",
]

__getattr__ = renamed(__name__, {"Fusion": "LateFusion", "Head": "FusionHead"})
