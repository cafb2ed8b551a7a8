# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What robustness costs: seconds and memory against it, with the Pareto front."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from lightning_crmt.report.figures.comparison import Comparison, Spread
from lightning_crmt.report.figures.drawing import (
    GREY,
    Drawing,
    in_percent,
    legend_below,
    looks,
    panels,
    share_axis,
    shortened,
    told,
)
from lightning_crmt.report.figures.headlines import headlines
from lightning_crmt.report.runs import Run

_COSTS: dict[str, Callable[[Run], float]] = {
    "seconds of fit and test": lambda run: run.seconds,
    "peak memory, MiB": lambda run: run.peak_memory / 2**20,
}


def cost(runs: Sequence[Run]) -> Drawing | None:
    """Cost against the surest number of robustness that there is; a dashed line joins methods that none dominates.

    A method is dominated where another one costs no more and is at least as robust, in the mean over seeds, and is
    better in one of the two. Differences within the spread make no finding.

    Args:
        runs: of one data set.

    Returns:
        None where costs are not known, or no robustness of two methods is.
    """
    comparison = Comparison(runs)
    headline = next((each for each in headlines(comparison) if each.robust), None)
    if headline is None:
        return None
    gain = comparison.spreads(headline.key_of)
    found: dict[str, dict[str, Spread]] = {}
    for words, of in _COSTS.items():
        if spent := _spent(comparison, of, gain):
            found[words] = spent
    if not found or len(gain) < 2:
        return None
    look = looks(comparison.methods)
    title = (
        f"Cost against robustness: {headline.words}; dashed, filled: the methods that no other dominates in the mean"
    )
    figure, axes = panels(list(found), title, comparison.note([gain]), height=3.0, sharey=True)
    said = []
    for panel, (words, spent) in zip(axes, found.items(), strict=True):
        front = pareto_front({method: (spent[method].mean, gain[method].mean) for method in spent})
        panel.plot([spent[m].mean for m in front], [100 * gain[m].mean for m in front], "--", color=GREY, linewidth=1)
        for method, each in spent.items():
            middle, deviation = in_percent(gain[method])
            panel.errorbar(
                each.mean, middle, xerr=each.deviation or None, yerr=deviation or None, linestyle="", capsize=2,
                marker=look[method].marker, color=look[method].colour, label=shortened(method), markersize=6,
                markerfacecolor=look[method].colour if method in front else "white",
            )  # fmt: skip
        share_axis(panel, vertical=True)
        panel.grid(alpha=0.3)
        points = "; ".join(f"{method} {_amount(spent[method])} for {told(gain[method])}" for method in front)
        said.append(f"Not dominated by {words}: {points}.")
    axes[0].set_ylabel(headline.words, fontsize=8)
    legend_below(figure, axes)
    return Drawing(figure, f"Cost against robustness, {headline.words}. {' '.join(said)}")


def _spent(comparison: Comparison, of: Callable[[Run], float], gain: Mapping[str, Spread]) -> dict[str, Spread]:
    """The cost of those methods whose gain is known; costs of 0 are not known."""
    costs = {method: [of(each.run) for each in comparison.measured if each.run.method == method] for method in gain}
    return {method: Spread.over(each) for method, each in costs.items() if all(each)}


def _amount(spent: Spread) -> str:
    return f"{spent.mean:.3g}" + (f" ± {spent.deviation:.2g}" if spent.deviation else "")


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Those that no other one dominates, the cheapest first.

    Args:
        points: by name what it costs, and what it gives.

    >>> pareto_front({"joint": (1.0, 0.5), "slow": (3.0, 0.4), "crmt": (2.0, 0.8)})
    ['joint', 'crmt']
    """
    front: list[str] = []
    for name, (_, gain) in sorted(points.items(), key=lambda item: (item[1][0], -item[1][1])):
        if not front or gain > points[front[-1]][1]:
            front.append(name)
        elif points[name] == points[front[-1]]:
            front.append(name)  # neither dominates the other
    return front
