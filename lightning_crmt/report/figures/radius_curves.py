# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Accuracy over the radius, a panel for each modality or attack, a line for each method."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_crmt.evaluation import Key, perturbed
from lightning_crmt.report.figures.comparison import Comparison, Spread
from lightning_crmt.report.figures.drawing import (
    MEANING,
    Drawing,
    in_percent,
    legend_below,
    looks,
    panels,
    share_axis,
    shortened,
    told_range,
)
from lightning_crmt.report.runs import Run


def radius_curves(runs: Sequence[Run], sure: str = "certified") -> Drawing | None:
    """Accuracy over the radius of what is perturbed, with the spread over seeds as a band.

    Args:
        runs: of one data set.
        sure: ``"certified"``, ``"probably_certified"``, ``"estimated"``, or ``"robust"`` for attacks, which have a
            panel each and begin at the clean accuracy.

    Returns:
        None where no method has two radii of the same.
    """
    comparison = Comparison(runs)
    curves = {of: curve for of, curve in _curves(comparison, sure).items() if len(curve) > 1}
    if not curves:
        return None
    look = looks(comparison.methods)
    threats = {name: threat for run in runs for name, threat in run.threats.items()}
    names = [_panel_name(of, sure, threats) for of in curves]
    note = comparison.note(spreads for curve in curves.values() for spreads in curve.values())
    title = f"Accuracy over the radius; {MEANING[sure]}"
    figure, axes = panels(names, title, note, sharey=True)
    for panel, curve in zip(axes, curves.values(), strict=True):
        for method in comparison.methods:
            points = [(radius, *in_percent(at[method])) for radius, at in sorted(curve.items()) if method in at]
            if not points:
                continue
            radii, middle, deviation = (list(each) for each in zip(*points, strict=True))
            panel.plot(radii, middle, **look[method].line, label=shortened(method))
            low = [m - d for m, d in zip(middle, deviation, strict=True)]
            high = [m + d for m, d in zip(middle, deviation, strict=True)]
            panel.fill_between(radii, low, high, color=look[method].colour, alpha=0.15, linewidth=0)
        panel.set_xlabel("l2 radius, in units of the inputs" if sure != "robust" else "size of the attack", fontsize=8)
        share_axis(panel, vertical=True)
        panel.grid(alpha=0.3)
    legend_below(figure, axes)
    said = []
    for name, curve in zip(names, curves.values(), strict=True):
        said.append(f"{name}, radius {max(curve):g}: {told_range(curve[max(curve)])}")
    return Drawing(figure, f"{MEANING[sure].capitalize()}. {'; '.join(said)}.")


def _curves(comparison: Comparison, sure: str) -> dict[str, dict[float, dict[str, Spread]]]:
    """By what is perturbed, or by attack, and by radius, the methods' accuracies."""
    found: dict[str, dict[float, dict[str, Spread]]] = {}
    for key in comparison.keys:
        if key.what == "accuracy" and key.sure == sure and key.of and key.size is not None:
            found.setdefault(key.of, {})[key.size] = comparison.of(key)
    if sure == "robust":
        for attack, curve in found.items():
            if clean := comparison.of(Key("", "clean_accuracy", attack)):
                curve.setdefault(0.0, clean)
    order = sorted(found, key=lambda of: (of != "joint", of.count("+")))  # the rest as it was logged
    return {of: found[of] for of in order}


def _panel_name(of: str, sure: str, threats: dict[str, str]) -> str:
    if sure != "robust":
        return f"perturbed: {perturbed(of)}"
    return f"attack {of}" + (f" ({threats[of]})" if threats.get(of, "joint") != "joint" else "")
