# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Figures of robustness, drawn from logged numbers alone; needs the extra ``plot``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_AT_RADIUS = re.compile(r"(?P<split>[^/]+)/(?P<label>certified|estimated)_accuracy/(?P<what>[^/@=]+)@(?P<radius>[^/]+)")
_AT_BUDGETS = re.compile(
    r"(?P<split>[^/]+)/(?P<label>certified|estimated)_accuracy/(?P<m>[^/=]+)=(?P<r>[^/+]+)\+(?P<n>[^/=]+)=(?P<s>[^/+]+)"
)
_AXIS = {
    "certified": "right, and certified to stay so",
    "estimated": "right, and estimated to stay so (no guarantee)",
}


def robustness_figures(metrics: Mapping[str, float]) -> dict[str, Figure]:
    """What the numbers of ``CertifiedRobustness`` can show, by a name for each figure.

    - ``split/label_curve``: accuracy over the radius, a curve for each threat, from two radii on;
    - ``split/label_frontier``: accuracy over separate budgets of two modalities, and the frontiers along which it is
      the same, from a grid of at least 2 x 2 budgets on.

    Args:
        metrics: numbers by key, as a Trainer holds them in ``callback_metrics``.

    Raises:
        ModuleNotFoundError: naming the extra, if matplotlib is not installed.

    >>> sorted(robustness_figures({"val/certified_accuracy/joint@0.1": 0.7, "val/certified_accuracy/joint@0.2": 0.6}))
    ['val/certified_curve']
    """
    figures = {}
    curves: dict[tuple[str, str], dict[str, dict[float, float]]] = {}
    grids: dict[tuple[str, str, str, str], dict[tuple[float, float], float]] = {}
    for key, value in metrics.items():
        if match := _AT_RADIUS.fullmatch(key):
            curve = curves.setdefault((match["split"], match["label"]), {}).setdefault(match["what"], {})
            curve[float(match["radius"])] = float(value)
        elif match := _AT_BUDGETS.fullmatch(key):
            grid = grids.setdefault((match["split"], match["label"], match["m"], match["n"]), {})
            grid[float(match["r"]), float(match["s"])] = float(value)
    for (split, label), found in curves.items():
        if any(len(curve) > 1 for curve in found.values()):
            figures[f"{split}/{label}_curve"] = radius_curve(found, label)
    for (split, label, first, second), cells in grids.items():
        rows, columns = sorted({r for r, _ in cells}), sorted({s for _, s in cells})
        if len(rows) > 1 and len(columns) > 1 and all((r, s) in cells for r in rows for s in columns):
            name = f"{split}/{label}_frontier_{first}_{second}"
            figures[name] = budget_frontier(cells, first, second, label)
    return figures


def radius_curve(curves: Mapping[str, Mapping[float, float]], label: str) -> Figure:
    """Accuracy over the radius, a curve for each threat.

    Args:
        curves: by threat, accuracy by radius.
        label: ``"certified"`` or ``"estimated"``, which the axis says.
    """
    figure = _new_figure()
    axes = figure.subplots()
    for what, curve in curves.items():
        points = sorted(curve.items())
        title = "all together" if what == "joint" else f"{what} alone"
        axes.plot([r for r, _ in points], [a for _, a in points], marker=".", label=title)
    axes.set(xlabel="l2 radius, in units of the inputs", ylabel=_AXIS[label], ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(title="perturbed")
    return figure


def budget_frontier(cells: Mapping[tuple[float, float], float], first: str, second: str, label: str) -> Figure:
    """Accuracy over separate budgets of two modalities, with the frontiers along which it is the same.

    Args:
        cells: accuracy by the radii of the first and the second modality; a full grid.
        first: name of the first modality, along the horizontal axis.
        second: name of the second.
        label: ``"certified"`` or ``"estimated"``, which the colour bar says.
    """
    figure = _new_figure()
    axes = figure.subplots()
    across, up = sorted({r for r, _ in cells}), sorted({s for _, s in cells})
    values = [[cells[r, s] for r in across] for s in up]
    colours = axes.pcolormesh(across, up, values, shading="nearest", vmin=0, vmax=1, cmap="viridis")
    low, high = min(map(min, values)), max(map(max, values))
    levels = [level / 10 for level in range(1, 10) if low < level / 10 < high]
    if levels:
        axes.clabel(axes.contour(across, up, values, levels=levels, colors="white", linewidths=1), fmt="%.1f")
    axes.set(xlabel=f"l2 radius of {first}", ylabel=f"l2 radius of {second}")
    figure.colorbar(colours, label=_AXIS[label])
    return figure


def _new_figure() -> Figure:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("figures need matplotlib: pip install 'lightning_crmt[plot]'") from error
    return Figure(figsize=(5.5, 4), layout="constrained")
