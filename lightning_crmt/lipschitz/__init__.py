# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Lipschitz constants of encoders, scores and margins."""

from lightning_crmt.lipschitz.bound import encoder_bounds, lipschitz_bound
from lightning_crmt.lipschitz.constants import LipschitzConstants
from lightning_crmt.lipschitz.estimate import estimate_lipschitz
from lightning_crmt.lipschitz.probes import ProbeSearch
from lightning_crmt.lipschitz.registry import NoBoundError, Place, lipschitz_rule
from lightning_crmt.lipschitz.rigorous import ForwardError, encoder_errors, forward_error

__all__ = [
    "ForwardError",
    "LipschitzConstants",
    "NoBoundError",
    "Place",
    "ProbeSearch",
    "encoder_bounds",
    "encoder_errors",
    "estimate_lipschitz",
    "forward_error",
    "lipschitz_bound",
    "lipschitz_rule",
]
