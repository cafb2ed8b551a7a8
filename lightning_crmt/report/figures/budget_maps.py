# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The map of separate budgets: accuracy over a radius of each of two modalities, a panel for each method."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_crmt.evaluation import Key, draw_budgets, full_grids
from lightning_crmt.report.figures.comparison import Comparison, Spread
from lightning_crmt.report.figures.drawing import MEANING, Drawing, panels, shortened, told_range
from lightning_crmt.report.runs import Run


def budget_maps(runs: Sequence[Run]) -> dict[str, Drawing]:
    """Accuracy over radii of two modalities at once, and lines along which it is constant.

    Args:
        runs: of one data set.

    Returns:
        A drawing for each pair of modalities and each way to be sure, such as ``"certified_audio_image"``; none
        where no method has a full grid of at least 2 x 2 budgets.
    """
    comparison = Comparison(runs)
    by_method: dict[str, dict[Key, Spread]] = {}
    for key in comparison.keys:
        if len(key.budget) == 2:
            for method, spread in comparison.of(key).items():
                by_method.setdefault(method, {})[key] = spread
    maps: dict[str, dict[str, dict[tuple[float, float], Spread]]] = {}
    pairs: dict[str, Key] = {}
    for method in comparison.methods:
        spreads = by_method.get(method, {})
        for key, cells in full_grids({key: spread.mean for key, spread in spreads.items()}).items():
            (first, _), (second, _) = key.budget
            name = f"{key.sure}_{first}_{second}"
            pairs[name] = key
            at = {tuple(radius for _, radius in each.budget): spread for each, spread in spreads.items()
                  if each.sure == key.sure and [n for n, _ in each.budget] == [first, second]}  # fmt: skip
            maps.setdefault(name, {})[method] = {(r, s): at[r, s] for r, s in cells}
    return {name: _map(comparison, pairs[name], methods) for name, methods in maps.items()}


def _map(comparison: Comparison, key: Key, methods: dict[str, dict[tuple[float, float], Spread]]) -> Drawing:
    (first, _), (second, _) = key.budget
    title = f"Accuracy where {first} and {second} have a budget each; {MEANING[key.sure]}"
    note = comparison.note(({method: spread} for method, at in methods.items() for spread in at.values()))
    note = note.replace("mean and standard deviation", "mean")
    figure, axes = panels([shortened(method) for method in methods], title, note, height=2.8)
    for panel, cells in zip(axes, methods.values(), strict=True):
        colours = draw_budgets(panel, {at: spread.mean for at, spread in cells.items()})
        panel.set_xlabel(f"l2 radius of {first}", fontsize=8)
        panel.set_ylabel(f"l2 radius of {second}", fontsize=8)
    figure.colorbar(colours, ax=axes, label="share of samples")
    corner = max(max(cells) for cells in methods.values())
    last = {method: cells[corner] for method, cells in methods.items() if corner in cells}
    at = f"At the largest budgets, {first} {corner[0]:g} and {second} {corner[1]:g}"
    return Drawing(figure, f"{MEANING[key.sure].capitalize()}. {at}: {told_range(last)}.")
