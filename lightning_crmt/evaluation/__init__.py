# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What was measured: keys, sums and figures."""

from lightning_crmt.evaluation.figures import Threat, figure_type, robustness_figures

__all__ = [
    "Threat",
    "figure_type",
    "robustness_figures",
]
