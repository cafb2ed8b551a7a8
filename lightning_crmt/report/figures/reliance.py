# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Which modality a method follows where two samples of different classes are mixed."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_crmt.evaluation import Key
from lightning_crmt.report.figures.comparison import Comparison
from lightning_crmt.report.figures.drawing import (
    BLUE,
    GREY,
    ORANGE,
    Drawing,
    legend_below,
    method_rows,
    panels,
    share_axis,
    told_range,
)
from lightning_crmt.report.runs import Run

#: What a prediction may follow, and how its part of the bar looks: told apart without colour too.
_PARTS = {
    "reliance": ("the class of this modality", BLUE, ""),
    "reliance_rest": ("the class of all other modalities", ORANGE, "////"),
    "reliance_neither": ("neither", GREY, "...."),
}


def reliance(runs: Sequence[Run]) -> Drawing | None:
    """Shares of predictions that follow one modality, the others, or neither, where they are of different classes.

    Args:
        runs: of one data set, measured by ``ModalityReliance``.

    Returns:
        None where the runs have no such numbers.
    """
    comparison = Comparison(runs)
    modalities = list(dict.fromkeys(key.of for key in comparison.keys if key.what == "reliance" and key.of))
    if not modalities:
        return None
    shares = {
        (what, name): spreads
        for name in modalities
        for what in _PARTS
        if (spreads := comparison.of(Key("", what, name)))
    }
    title = (
        "Which class a prediction follows where one modality is of another class than the rest; measured, no guarantee"
    )
    methods = comparison.methods
    height = 0.5 + 0.26 * len(methods)
    note = comparison.note(shares.values())
    figure, axes = panels(
        [f"{name} is of another class" for name in modalities], title, note, height=height, sharey=True
    )
    for panel, name in zip(axes, modalities, strict=True):
        rows = method_rows(panel, methods)
        begin = dict.fromkeys(methods, 0.0)
        for what, (label, colour, hatch) in _PARTS.items():
            for method, spread in shares.get((what, name), {}).items():
                width = 100 * spread.mean
                panel.barh(rows[method], width, left=begin[method], height=0.65, hatch=hatch,
                           facecolor=f"{colour}77", edgecolor=colour)  # fmt: skip
                if width > 12:
                    panel.text(begin[method] + width / 2, rows[method], f"{width:.0f}", ha="center", va="center",
                               fontsize=7.5, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6})  # fmt: skip
                begin[method] += width
            panel.bar(0, 0, label=label, hatch=hatch, facecolor=f"{colour}77", edgecolor=colour)
        share_axis(panel)
    legend_below(figure, axes)
    said = [f"{name} is followed by {told_range(shares['reliance', name])}." for name in modalities
            if ("reliance", name) in shares]  # fmt: skip
    return Drawing(figure, f"Of pairs where one modality is of another class than the rest: {' '.join(said)}")
