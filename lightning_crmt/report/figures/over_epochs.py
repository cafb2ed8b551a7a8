# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Integration weights, vulnerability and margins over the epochs of training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lightning_crmt.evaluation import Key, read_keys
from lightning_crmt.report.figures.comparison import Comparison, Spread
from lightning_crmt.report.figures.drawing import Drawing, legend_below, looks, panels, shortened
from lightning_crmt.report.runs import Run

#: What is drawn, and what it is called.
_QUANTITIES = {
    "integration_factor": "reliance of the decision on {}",
    "integration_weight": "mean integration weight of {}, step 2",
    "vulnerability": "vulnerability of {}",
    "margin": "margin of {}",
}


def over_epochs(runs: Sequence[Run]) -> Drawing | None:
    """How much the decision relies on each modality, how fast a change in it eats up the margin, and the margin.

    Args:
        runs: of one data set, with their history: ``integration_factor``, ``vulnerability`` and ``margin`` of
            validation, as ``CertifiedRobustness`` logs them, and ``integration_weight`` of step 2.

    Returns:
        None where the runs have none of these for two epochs.
    """
    comparison = Comparison(runs)
    curves = _curves(comparison)
    if not curves:
        return None
    look = looks(comparison.methods)
    title = "Over epochs: reliance, vulnerability and margin, in the scale of the logits; measured, no guarantee"
    note = comparison.note([{method: s} for by in curves.values() for method, at in by.items() for s in at.values()],
                           split=next(iter(curves)).split or "val")  # fmt: skip
    names = [_QUANTITIES[key.what].format("the decision" if key.of == "joint" else key.of) for key in curves]
    figure, axes = panels(names, title, note, height=2.0)
    for panel, (key, by_method) in zip(axes, curves.items(), strict=True):
        for method, at in by_method.items():
            epochs = sorted(at)
            middle = [at[epoch].mean for epoch in epochs]
            low = [at[epoch].mean - at[epoch].deviation for epoch in epochs]
            high = [at[epoch].mean + at[epoch].deviation for epoch in epochs]
            style = look[method].line | {"markersize": 3.5, "markevery": max(1, len(epochs) // 8)}
            panel.plot(epochs, middle, **style, label=shortened(method))
            panel.fill_between(epochs, low, high, color=look[method].colour, alpha=0.15, linewidth=0)
        panel.set_xlabel("epoch of step 2" if key.what == "integration_weight" else "epoch", fontsize=8)
        panel.grid(alpha=0.3)
    legend_below(figure, axes)
    said = [f"{name} ({_told(by_method)})" for name, by_method in zip(names, curves.values(), strict=True)]
    return Drawing(figure, f"From the first to the last epoch: {'; '.join(said)}.")


def _curves(comparison: Comparison) -> dict[Key, dict[str, dict[int, Spread]]]:
    """By key, by method and by epoch; what is not finite is left out."""
    values: dict[Key, dict[str, dict[int, list[float]]]] = {}
    for each in comparison.measured:
        for text, points in each.run.history.items():
            for key in read_keys({text: 0.0}):
                if key.what in _QUANTITIES and key.of and key.loader is None and len(points) > 1:
                    by_epoch = values.setdefault(key, {}).setdefault(each.run.method, {})
                    for epoch, value in points:
                        if math.isfinite(value):
                            by_epoch.setdefault(epoch, []).append(value)
    order = list(_QUANTITIES)
    keys = sorted(values, key=lambda key: (order.index(key.what), key.of == "joint"))
    return {
        key: {
            method: {epoch: Spread.over(each) for epoch, each in at.items()}
            for method in comparison.methods
            if (at := values[key].get(method))
        }
        for key in keys
    }


def _told(by_method: Mapping[str, Mapping[int, Spread]]) -> str:
    each = [f"{method} {at[min(at)].mean:.3g} to {at[max(at)].mean:.3g}" for method, at in by_method.items()]
    return ", ".join(each if len(each) <= 3 else [*each[:2], f"{len(each) - 2} more"])
