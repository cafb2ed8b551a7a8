# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Lipschitz constants of encoders, scores and margins."""

from lightning_crmt.lipschitz.bounds.bound import Level, encoder_bounds, lipschitz_bound
from lightning_crmt.lipschitz.bounds.registry import NoBoundError, Place, lipschitz_rule, refuse_changed_behaviour
from lightning_crmt.lipschitz.constants import LipschitzConstants
from lightning_crmt.lipschitz.estimate import estimate_lipschitz, margin_speeds
from lightning_crmt.lipschitz.rigorous.forward_error import ForwardError, encoder_errors, forward_error
from lightning_crmt.lipschitz.rigorous.verified import UNDERFLOW, UNIT_ROUNDOFF, gamma
from lightning_crmt.lipschitz.screening.probes import ProbeSearch

__all__ = [
    "UNDERFLOW",
    "UNIT_ROUNDOFF",
    "ForwardError",
    "Level",
    "LipschitzConstants",
    "NoBoundError",
    "Place",
    "ProbeSearch",
    "encoder_bounds",
    "encoder_errors",
    "estimate_lipschitz",
    "forward_error",
    "gamma",
    "lipschitz_bound",
    "lipschitz_rule",
    "margin_speeds",
    "refuse_changed_behaviour",
]
