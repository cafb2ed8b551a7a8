# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Modalities alone and modalities missing: a grid of accuracies, a row for each method."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_crmt.evaluation import Key
from lightning_crmt.report.figures.comparison import Comparison, Spread
from lightning_crmt.report.figures.drawing import Drawing, panels, shortened, told_range
from lightning_crmt.report.runs import Run

_WAYS = {"accuracy_zeroed": "zeroed", "accuracy_dropped": "dropped", "accuracy_imputed": "imputed"}


def missing_grid(runs: Sequence[Run]) -> Drawing | None:
    """Accuracy with everything, of each modality's own scores, and with modalities missing.

    Args:
        runs: of one data set.

    Returns:
        None where the runs tell nothing of single modalities.
    """
    comparison = Comparison(runs)
    columns = {words: spreads for key, words in _columns(comparison).items() if (spreads := comparison.of(key))}
    if set(columns) <= {"all"}:
        return None
    title = "Accuracy on clean inputs, in percent, where a modality stands alone or is missing; measured, no guarantee"
    methods = [method for method in comparison.methods if any(method in spreads for spreads in columns.values())]
    figure, (axes,) = panels([""], title, comparison.note(columns.values()), height=0.9 + 0.36 * len(methods))
    values = [[_percent(spreads.get(method)) for spreads in columns.values()] for method in methods]
    axes.imshow(values, vmin=0, vmax=100, cmap="cividis", aspect="auto")
    size = 8 if len(columns) <= 8 else 6.5
    for row, method in enumerate(methods):
        for column, spreads in enumerate(columns.values()):
            spread = spreads.get(method)
            colour = "white" if spread is not None and spread.mean < 0.55 else "black"
            axes.text(column, row, _cell(spread), ha="center", va="center", color=colour, fontsize=size)
    axes.set_xticks(range(len(columns)), list(columns), rotation=35, ha="right", fontsize=8)
    axes.set_yticks(range(len(methods)), [shortened(method) for method in methods], fontsize=8)
    said = [f"{words}: {told_range(spreads)}" for words, spreads in columns.items()]
    return Drawing(figure, f"Accuracy on clean inputs. {'; '.join(said)}.")


def _columns(comparison: Comparison) -> dict[Key, str]:
    """Which keys have a column, and what it is called."""
    clean = Key("", "accuracy", "joint")
    alone, missing, present = {}, {}, {}
    for key in comparison.keys:
        names = key.of.replace("+", " and ")
        if key.sure or key.radius is not None or not key.of:
            continue
        if key.what == "accuracy" and key.of != "joint":
            alone[key] = f"{names} alone"
        elif key.what in _WAYS:
            way = _WAYS[key.what]
            missing[key] = {"none": f"all, none {way}", "worst": f"worst, {way}"}.get(key.of, f"{names} {way}")
        elif key.what == "accuracy_present":
            present[key] = f"has {names} only"
    if any(spreads for spreads in [comparison.of(clean)]):
        missing = {key: words for key, words in missing.items() if key.of != "none"}
    return {clean: "all"} | alone | missing | present


def _percent(spread: Spread | None) -> float:
    return math.nan if spread is None else 100 * spread.mean


def _cell(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    return f"{100 * spread.mean:.1f}" + (f"\n±{100 * spread.deviation:.1f}" if spread.n > 1 else "")
