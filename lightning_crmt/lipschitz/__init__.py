# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Lipschitz constants of encoders, scores and margins: estimated, bounded, or bounded with rounding counted."""

from lightning_crmt.lipschitz.bounds import (
    BOUND_LEVELS,
    Found,
    Place,
    bounds_for,
    constant_of,
    encoder_bounds,
    lipschitz_bound,
    lipschitz_rule,
    rule_for,
)
from lightning_crmt.lipschitz.constants import LipschitzConstants
from lightning_crmt.lipschitz.estimate import estimate_and_show, estimate_lipschitz, label_speeds, margin_speeds
from lightning_crmt.lipschitz.fingerprint import fingerprint
from lightning_crmt.lipschitz.gate import (
    Encoders,
    NoBoundError,
    encoders_and_head,
    exact_numbers,
    examine,
    fixed_head,
    of_each_encoder,
    proved_precision,
    refuse_compiled,
    refuse_context,
    refuse_flushed_numbers,
    refuse_other_weights,
    refuse_parts_out_of_reach,
    uncompiled,
)
from lightning_crmt.lipschitz.known_code import remember_code, replaced_calls, wholly_known
from lightning_crmt.lipschitz.rigorous.forward_error import ForwardError, encoder_errors, forward_error
from lightning_crmt.lipschitz.rigorous.verified import UNDERFLOW, UNIT_ROUNDOFF, gamma
from lightning_crmt.lipschitz.running_error import Precision, running_error
from lightning_crmt.lipschitz.screening import ProbeSearch

__all__ = [
    "BOUND_LEVELS",
    "UNDERFLOW",
    "UNIT_ROUNDOFF",
    "Encoders",
    "ForwardError",
    "Found",
    "LipschitzConstants",
    "NoBoundError",
    "Place",
    "Precision",
    "ProbeSearch",
    "bounds_for",
    "constant_of",
    "encoder_bounds",
    "encoder_errors",
    "encoders_and_head",
    "estimate_and_show",
    "estimate_lipschitz",
    "exact_numbers",
    "examine",
    "fingerprint",
    "fixed_head",
    "forward_error",
    "gamma",
    "label_speeds",
    "lipschitz_bound",
    "lipschitz_rule",
    "margin_speeds",
    "of_each_encoder",
    "proved_precision",
    "refuse_compiled",
    "refuse_context",
    "refuse_flushed_numbers",
    "refuse_other_weights",
    "refuse_parts_out_of_reach",
    "remember_code",
    "replaced_calls",
    "rule_for",
    "running_error",
    "uncompiled",
    "wholly_known",
]
