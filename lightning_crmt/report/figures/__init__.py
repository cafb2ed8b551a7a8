# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Figures of comparisons: functions from runs to a figure and its text, one for each idea."""

from lightning_crmt.report.figures.all_figures import figures_of
from lightning_crmt.report.figures.bounds import bounds
from lightning_crmt.report.figures.budget_maps import budget_maps
from lightning_crmt.report.figures.cost import cost
from lightning_crmt.report.figures.differences import differences
from lightning_crmt.report.figures.drawing import Drawing
from lightning_crmt.report.figures.missing import missing_grid
from lightning_crmt.report.figures.over_epochs import over_epochs
from lightning_crmt.report.figures.radius_curves import radius_curves
from lightning_crmt.report.figures.reliance import reliance
from lightning_crmt.report.figures.worst_class import worst_class

__all__ = [
    "Drawing",
    "bounds",
    "budget_maps",
    "cost",
    "differences",
    "figures_of",
    "missing_grid",
    "over_epochs",
    "radius_curves",
    "reliance",
    "worst_class",
]
