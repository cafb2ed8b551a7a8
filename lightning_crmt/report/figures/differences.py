# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What each method adds to a baseline: bars of paired differences, as in an ablation."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_crmt.report.figures.comparison import Comparison, Spread
from lightning_crmt.report.figures.drawing import GREY, Drawing, looks, method_rows, panels
from lightning_crmt.report.figures.headlines import headlines
from lightning_crmt.report.runs import Run


def differences(runs: Sequence[Run], baseline: str) -> Drawing | None:
    """Each method less the baseline over the seeds that both have: the mean as a bar, its spread, and every seed a dot.

    Where the methods are one with parts added or left out, this is the ablation.

    Args:
        runs: of one data set.
        baseline: the method that the others are compared with.

    Returns:
        None where no other method shares a seed and a number with the baseline.

    Raises:
        ValueError: if no run is of the baseline.
    """
    comparison = Comparison(runs)
    if baseline not in comparison.methods:
        raise ValueError(f"`baseline` must be one of {comparison.methods}, got {baseline!r}")
    measures = headlines(comparison)
    found = {each.words: comparison.differences(each.key_of, baseline) for each in measures}
    found = {words: values for words, values in found.items() if values}
    if not found:
        return None
    look = looks(comparison.methods)
    others = [method for method in comparison.methods if method != baseline]
    sizes = {each.words: {m: s.samples for m, s in comparison.spreads(each.key_of).items()} for each in measures}
    spreads = {
        words: {m: Spread.over(values, sizes[words].get(m, 0)) for m, values in by.items()}
        for words, by in found.items()
    }
    title = f"Difference to {baseline}, in percentage points: positive is better; a dot for each seed"
    height = 0.5 + 0.26 * len(others)
    figure, axes = panels(list(found), title, comparison.note(spreads.values()), height=height, sharey=True)
    for panel, (words, by_method) in zip(axes, found.items(), strict=True):
        rows = method_rows(panel, others)
        for method, values in by_method.items():
            spread = spreads[words][method]
            error = 100 * spread.deviation if spread.n > 1 else None
            panel.barh(rows[method], 100 * spread.mean, height=0.6, xerr=error, capsize=2, **look[method].bar)
            panel.plot([100 * v for v in values], [rows[method]] * len(values), ".", color="black", markersize=4)
        panel.axvline(0, color=GREY, linewidth=1)
    said = [f"{words}: {_told(by_method)}." for words, by_method in spreads.items()]
    return Drawing(figure, f"Differences to {baseline} in percentage points. {' '.join(said)}")


def _told(by_method: dict[str, Spread]) -> str:
    return ", ".join(
        f"{method} {100 * each.mean:+.1f}" + (f" ± {100 * each.deviation:.1f}" if each.n > 1 else "")
        for method, each in by_method.items()
    )
