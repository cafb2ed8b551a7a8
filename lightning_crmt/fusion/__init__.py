# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Heads: from the features of all modalities to logits and uni-modal scores."""

from lightning_crmt.fusion.head import Head
from lightning_crmt.fusion.late import FixedFusion, Fusion, LinearFusion, OrthogonalFusion

__all__ = ["FixedFusion", "Fusion", "Head", "LinearFusion", "OrthogonalFusion"]
