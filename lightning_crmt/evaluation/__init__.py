# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The results of an evaluation: the keys of its numbers, sums over samples, and figures."""

from lightning_crmt.evaluation.figures import draw_budgets, figure_type, full_grids, perturbed, robustness_figures
from lightning_crmt.evaluation.keys import Key, check_key_name, curves, read_keys
from lightning_crmt.evaluation.sums import Means, Reduce, lower_median, total_and_count

__all__ = [
    "Key",
    "Means",
    "Reduce",
    "check_key_name",
    "curves",
    "draw_budgets",
    "figure_type",
    "full_grids",
    "lower_median",
    "perturbed",
    "read_keys",
    "robustness_figures",
    "total_and_count",
]
