# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What is known of each method's robustness: certified below, attacked above."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_crmt.evaluation import perturbed
from lightning_crmt.report.figures.comparison import LOWER, Comparison, Spread, accuracy, attacked, some
from lightning_crmt.report.figures.drawing import (
    GREY,
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

_MARK = {
    "certified": (">", "certified: guaranteed"),
    "probably_certified": ("D", "certified with a stated probability"),
    "estimated": ("x", "estimated: no guarantee"),
    "robust": ("<", "under the strongest attack: survived, not guaranteed"),
}


def bounds(runs: Sequence[Run], of: str = "joint") -> Drawing | None:
    """Accuracy that is certified at a radius and accuracy under attacks of that size, by method; a panel for a radius.

    The true robust accuracy is between a certificate and the strongest attack. At each radius that is of the attacks
    whose threat the runs tell; certificates with a probability are of the smoothed classifier, of which attacks on the
    model itself say nothing, so no band joins them.

    Args:
        runs: of one data set.
        of: what is perturbed: ``"joint"``, a modality, or several joined by ``+``.

    Returns:
        None where the runs have neither certificates nor attacks of this.
    """
    comparison = Comparison(runs)
    found = {radius: _at(comparison, of, radius) for radius in _radii(comparison, of)}
    if not any(found.values()):
        return None
    look = looks(comparison.methods)
    title = f"What is known of robustness, perturbed: {perturbed(of)}, l2 radius in units of the inputs"
    sures = {sure for at in found.values() for sure in at}
    sides = {"certified": "right of what is certified", "robust": "left of what attacks leave"}
    limits = " and ".join(side for sure, side in sides.items() if sure in sures)
    title += f"; the truth lies {limits}" if limits else "; estimates, on neither side of which the truth must lie"
    note = comparison.note(each for at in found.values() for each in at.values())
    figure, axes = panels(
        [f"radius {radius:g}" for radius in found], title, note, height=0.6 + 0.24 * len(look), sharey=True
    )
    for panel, at in zip(axes, found.values(), strict=True):
        rows = method_rows(panel, comparison.methods)
        for method in at.get("certified", {}).keys() & at.get("robust", {}).keys():
            ends = [100 * at[sure][method].mean for sure in ("certified", "robust")]
            panel.plot(ends, [rows[method]] * 2, color=look[method].colour, alpha=0.25, linewidth=7, zorder=1)
        for sure, spreads in at.items():
            marker, label = _MARK[sure]
            for method, spread in spreads.items():
                middle, deviation = in_percent(spread)
                colour = GREY if sure == "estimated" else look[method].colour
                face = "white" if sure == "robust" else colour
                panel.errorbar(
                    middle, rows[method], xerr=deviation or None, color=colour, marker=marker, markersize=6,
                    markerfacecolor=face, linestyle="", capsize=2,
                )  # fmt: skip
            panel.plot([], [], color="black", marker=marker, linestyle="", label=label,
                       markerfacecolor="white" if sure == "robust" else "black")  # fmt: skip
        share_axis(panel)
    legend_below(figure, axes)
    middle = [radius for radius, at in found.items() if at][(len(found) - 1) // 2]
    return Drawing(figure, _told(of, middle, found[middle]))


def threats_in(runs: Sequence[Run]) -> list[str]:
    """What is perturbed by one l2 radius somewhere in the runs: all modalities first, then one, then some of them."""
    comparison = Comparison(runs)
    certified = {
        key.of
        for key in comparison.keys
        if key.what == "accuracy" and sureness(key) in LOWER and key.of and key.radius is not None
    }
    found = certified | {threat for each in comparison.measured for threat in each.run.threats.values()}
    return sorted((of for of in found if "," not in of), key=lambda of: (of != "joint", of.count("+"), of))


def _radii(comparison: Comparison, of: str) -> list[float]:
    """The radii that are drawn: those with both, where there are some."""
    below = {
        key.radius
        for key in comparison.keys
        if key.what == "accuracy" and sureness(key) in LOWER and key.of == of and key.radius is not None
    }
    above = {radius for each in comparison.measured for radius in attacked(each, of)}
    return some(below & above or below | above)


def _at(comparison: Comparison, of: str, radius: float) -> dict[str, dict[str, Spread]]:
    kinds = {sure: comparison.of(accuracy(of, radius, sure)) for sure in LOWER}
    kinds["robust"] = comparison.spreads(lambda each: attacked(each, of).get(radius))
    return {sure: spreads for sure, spreads in kinds.items() if spreads}


def _told(of: str, radius: float, at: dict[str, dict[str, Spread]]) -> str:
    words = {
        "certified": "guaranteed to stay right",
        "probably_certified": "guaranteed with a stated probability",
        "estimated": "estimated, without guarantee",
        "robust": "right under the strongest attack",
    }
    said = "; ".join(f"{words[sure]}: {told_range(spreads)}" for sure, spreads in at.items())
    return f"At radius {radius:g}, {perturbed(of)}: {said}."
