# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""All figures that runs allow."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_crmt.report.figures.bounds import bounds, threats_in
from lightning_crmt.report.figures.budget_maps import budget_maps
from lightning_crmt.report.figures.cost import cost
from lightning_crmt.report.figures.differences import differences
from lightning_crmt.report.figures.drawing import Drawing
from lightning_crmt.report.figures.missing import missing_grid
from lightning_crmt.report.figures.over_epochs import over_epochs
from lightning_crmt.report.figures.radius_curves import radius_curves
from lightning_crmt.report.figures.reliance import reliance
from lightning_crmt.report.figures.worst_class import worst_class
from lightning_crmt.report.runs import Run


def figures_of(runs: Sequence[Run], baseline: str | None = None) -> dict[str, Drawing]:
    """All figures that the numbers of runs allow, by name, the most telling first; needs the extra ``plot``.

    Failed runs leave out what they lack; methods are in the order of the runs, failed ones too.

    Args:
        runs: of one data set or several; each has figures of its own.
        baseline: the method that the others are compared with, over the seeds that both have; none by default.

    Returns:
        By name, such as ``"mfeat/bounds_joint"``, a figure and its text. A name is that of the function that draws,
        with what is perturbed or how sure it is.

    Raises:
        ModuleNotFoundError: naming the extra, if matplotlib is not installed.
        ValueError: if a data set has no run of the baseline.

    >>> runs = [Run("crmt", "mfeat", seed, {"test/certified_accuracy/joint@0.1": 0.8}) for seed in range(3)]
    >>> for name, (figure, alt) in figures_of(runs).items():
    ...     print(name, alt)
    mfeat/bounds_joint At radius 0.1, all modalities together: guaranteed to stay right: crmt 80.0 ± 0.0 %.
    """
    found: dict[str, Drawing] = {}
    for data in dict.fromkeys(run.data for run in runs):
        own = [run for run in runs if run.data == data]
        drawings: dict[str, Drawing | None] = {f"bounds_{of}": bounds(own, of) for of in threats_in(own)}
        kinds = ("certified", "probably_certified", "estimated", "robust")
        drawings |= {f"radius_curves_{sure}": radius_curves(own, sure) for sure in kinds}
        drawings |= {f"budget_map_{name}": drawing for name, drawing in budget_maps(own).items()}
        drawings |= {"missing_grid": missing_grid(own), "reliance": reliance(own), "worst_class": worst_class(own)}
        if baseline is not None:
            drawings["differences"] = differences(own, baseline)
        drawings |= {"over_epochs": over_epochs(own), "cost": cost(own)}
        found |= {f"{data}/{name}": drawing for name, drawing in drawings.items() if drawing is not None}
    return found
