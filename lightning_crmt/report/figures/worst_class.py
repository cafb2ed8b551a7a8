# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What a mean over all classes hides: the class where robust accuracy is lowest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lightning_crmt.evaluation import perturbed
from lightning_crmt.report.figures.comparison import LOWER, Comparison, Spread, accuracy, some
from lightning_crmt.report.figures.drawing import (
    MEANING,
    Drawing,
    in_percent,
    legend_below,
    looks,
    method_rows,
    panels,
    share_axis,
    told_range,
)
from lightning_crmt.report.runs import Run
from lightning_crmt.report.wording import sureness


def worst_class(runs: Sequence[Run]) -> Drawing | None:
    """Accuracy at a radius over all classes, and in the class where it is lowest; a panel for each radius.

    Of several ways to be sure the surest is drawn. Seeds may differ in which class that is.

    Args:
        runs: of one data set.

    Returns:
        None where the runs have no accuracy of their worst class.
    """
    comparison = Comparison(runs)
    for sure in LOWER:
        keys = {
            (key.of, key.radius)
            for key in comparison.keys
            if key.what == "accuracy_worst_class" and key.sure == sure and key.radius is not None
        }
        if keys:
            of = "joint" if any(of == "joint" for of, _ in keys) else sorted(of for of, _ in keys)[0]
            return _draw(comparison, of, some([r for each, r in keys if each == of and r is not None]), sure)
    return None


def _draw(comparison: Comparison, of: str, radii: Sequence[float], sure: str) -> Drawing:
    look = looks(comparison.methods)
    found: dict[float, tuple[dict[str, Spread], dict[str, Spread]]] = {}
    for radius in radii:
        key = accuracy(of, radius, sure)
        found[radius] = comparison.of(key), comparison.of(replace(key, what="accuracy_worst_class"))
    meaning = MEANING[sureness(accuracy(of, radii[-1], sure))]  # 0 stands alone or is left out
    title = f"All classes and the worst one, perturbed: {perturbed(of)}; {meaning}"
    note = comparison.note(worst for _, worst in found.values())
    names = [f"radius {radius:g}" for radius in radii]
    figure, axes = panels(names, title, note, height=0.6 + 0.24 * len(look), sharey=True)
    for panel, (all_classes, worst) in zip(axes, found.values(), strict=True):
        rows = method_rows(panel, comparison.methods)
        for method, spread in worst.items():
            row, colour = rows[method], look[method].colour
            middle, deviation = in_percent(spread)
            panel.errorbar(middle, row, xerr=deviation or None, color=colour, marker="v", capsize=2, linestyle="")
            if method in all_classes:
                mean = 100 * all_classes[method].mean
                panel.plot([middle, mean], [row, row], color=colour, alpha=0.3, linewidth=3, zorder=1)
                panel.plot(mean, row, color=colour, marker="o", markerfacecolor="white", linestyle="")
        panel.plot([], [], "v", color="black", label="worst class")
        panel.plot([], [], "o", color="black", markerfacecolor="white", label="all classes")
        share_axis(panel)
    legend_below(figure, axes)
    middle = radii[(len(radii) - 1) // 2]
    said = f"the worst class {told_range(found[middle][1])}; all classes {told_range(found[middle][0])}"
    return Drawing(figure, f"{meaning.capitalize()}. At radius {middle:g}, {said}.")
