# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Sound upper bounds of Lipschitz constants, layer by layer."""

from lightning_crmt.lipschitz.bounds import resampling as resampling  # registers its rules
from lightning_crmt.lipschitz.bounds import rules as rules
from lightning_crmt.lipschitz.bounds.bound import (
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

__all__ = [
    "BOUND_LEVELS",
    "Found",
    "Place",
    "bounds_for",
    "constant_of",
    "encoder_bounds",
    "lipschitz_bound",
    "lipschitz_rule",
    "rule_for",
]
