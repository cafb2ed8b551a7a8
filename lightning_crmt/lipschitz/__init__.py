# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Lipschitz constants of encoders, scores and margins."""

from lightning_crmt.lipschitz.constants import LipschitzConstants
from lightning_crmt.lipschitz.estimate import estimate_lipschitz

__all__ = ["LipschitzConstants", "estimate_lipschitz"]
