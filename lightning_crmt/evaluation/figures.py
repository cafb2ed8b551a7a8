# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Figures of robustness, drawn from logged numbers alone; needs the extra ``plot``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import cycle
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_AT_RADIUS = re.compile(
    r"(?P<split>[^/]+)/(?P<label>certified|estimated|robust)_accuracy/(?P<what>[^/@=]+)@(?P<radius>[^/]+)"
)
_OF_MODALITY = re.compile(r"([^=]+)=([\d.]+(?:e[+-]?\d+)?)(?:\+|$)")
_AT_BUDGETS = re.compile(
    r"(?P<split>[^/]+)/(?P<label>certified|estimated)_accuracy/(?P<m>[^/=]+)=(?P<r>[^/+]+)\+(?P<n>[^/=]+)=(?P<s>[^/+]+)"
)
_AXIS = {
    "certified": "right, and certified to stay so",
    "estimated": "right, and estimated to stay so (no guarantee)",
    "robust": "right under this attack\n(an upper bound of robustness)",
}
_SHARES = (-0.02, 1.02)  # the limits of the axis, so that no marker is cut
_RADIUS = "l2 radius, in units of the inputs"
_DASHES = ("-", "--", "-.", ":")
_LINE = {
    "certified": ("certified to stay right (lower bound)", "tab:blue", "-"),
    "estimated": ("estimated to stay right (no guarantee)", "tab:gray", ":"),
}

#: Accuracy by radius.
Curve: TypeAlias = Mapping[float, float]
#: What an attack perturbs: ``"joint"`` or the name of a modality, in l2; anything else is its own kind of threat.
Threat: TypeAlias = str


def robustness_figures(metrics: Mapping[str, float], threats: Mapping[str, Threat] | None = None) -> dict[str, Figure]:
    """What the numbers of ``CertifiedRobustness`` and ``AdversarialRobustness`` can show, by a name for each figure.

    - ``split/label_curve``: accuracy over the radius, a curve for each threat or, under ``split/robust_curve``, for
      each attack, from two radii on;
    - ``split/bounds_joint``, or the name of a modality: what is certified, below, and what attacks on the same threat
      left, above, in one picture;
    - ``split/label_frontier``: accuracy over separate budgets of two modalities, and the frontiers along which it is
      the same, from a grid of at least 2 x 2 budgets on.

    Args:
        metrics: numbers by key, as a Trainer holds them in ``callback_metrics``; those to be drawn in one picture are
            of the same samples.
        threats: what the attacks perturb, by their names, for the legend; those left out go into no common picture.

    Raises:
        ModuleNotFoundError: naming the extra, if matplotlib is not installed.

    >>> sorted(robustness_figures({"val/certified_accuracy/joint@0.1": 0.7, "val/certified_accuracy/joint@0.2": 0.6}))
    ['val/certified_curve']
    """
    figures = {}
    curves: dict[str, dict[str, dict[str, dict[float, float]]]] = {}
    grids: dict[tuple[str, str, str, str], dict[tuple[float, float], float]] = {}
    titles: dict[str, str] = {}
    for key, value in metrics.items():
        if match := _AT_RADIUS.fullmatch(key):
            found = curves.setdefault(match["split"], {}).setdefault(match["label"], {})
            radius, of = _size(match["radius"])
            found.setdefault(match["what"], {})[radius] = float(value)
            if match["label"] == "robust" and (radius > 0 or match["what"] not in titles):
                titles[match["what"]] = _title(match["what"], of, (threats or {}).get(match["what"], "joint"))
        elif match := _AT_BUDGETS.fullmatch(key):
            grid = grids.setdefault((match["split"], match["label"], match["m"], match["n"]), {})
            grid[float(match["r"]), float(match["s"])] = float(value)
    for split, by_label in curves.items():
        worth = [label for label, found in by_label.items() if any(len(curve) > 1 for curve in found.values())]
        for what, attacked in by_label.get("robust", {}).items():
            if f"{split}/clean_accuracy/{what}" in metrics:
                attacked.setdefault(0.0, float(metrics[f"{split}/clean_accuracy/{what}"]))
        for label in worth:
            found = by_label[label]
            named = {titles[what]: curve for what, curve in found.items()} if label == "robust" else found
            figures[f"{split}/{label}_curve"] = radius_curve(named, label)
        for what in by_label.get("certified", {}) | by_label.get("estimated", {}):
            lower = {label: by_label[label][what] for label in _LINE if what in by_label.get(label, {})}
            upper = {n: curve for n, curve in by_label.get("robust", {}).items() if (threats or {}).get(n) == what}
            if upper and any(len(curve) > 1 for curve in lower.values()):
                figures[f"{split}/bounds_{what}"] = bounds_figure(lower, upper, what)
    for (split, label, first, second), cells in grids.items():
        rows, columns = sorted({r for r, _ in cells}), sorted({s for _, s in cells})
        if len(rows) > 1 and len(columns) > 1 and all((r, s) in cells for r in rows for s in columns):
            name = f"{split}/{label}_frontier_{first}_{second}"
            figures[name] = budget_frontier(cells, first, second, label)
    return figures


def radius_curve(curves: Mapping[str, Curve], label: str) -> Figure:
    """Accuracy over the radius, a curve for each threat.

    Args:
        curves: by threat or by attack, accuracy by radius.
        label: ``"certified"``, ``"estimated"`` or, for attacks, ``"robust"``, which the axis says.
    """
    figure = _new_figure()
    axes = figure.subplots()
    for place, ((what, curve), marker) in enumerate(zip(curves.items(), cycle("ovs^D"), strict=False)):
        title = what if label == "robust" else _perturbed(what)
        axes.plot(*_points(curve), **_style(place), marker=marker, label=title)
    unit = "radius of the attack, in units of the inputs" if label == "robust" else _RADIUS
    axes.set(xlabel=unit, ylabel=_AXIS[label], ylim=_SHARES)
    axes.grid(alpha=0.3)
    _add_legend(figure, title="attack" if label == "robust" else "perturbed")
    return figure


def bounds_figure(lower: Mapping[str, Curve], upper: Mapping[str, Curve], what: str) -> Figure:
    """What is certified and what attacks left, over the radius: the truth lies between the two.

    Args:
        lower: accuracy by radius, of ``"certified"`` or ``"estimated"`` radii, or both.
        upper: accuracy by radius under each attack.
        what: ``"joint"`` or the name of the modality that is perturbed.
    """
    figure = _new_figure()
    axes = figure.subplots()
    colours = cycle(["red", "orange", "brown", "pink"])
    for place, ((name, curve), colour) in enumerate(zip(upper.items(), colours, strict=False)):
        title = f"right under the attack {name} (upper bound)"
        axes.plot(*_points(curve), **_style(place), marker="v", color=f"tab:{colour}", label=title)
    for label, curve in lower.items():
        title, colour, style = _LINE[label]
        axes.plot(*_points(curve), style, marker="^", markersize=4, color=colour, label=title)
    if "certified" in lower:
        # Only at radii that both have: between them nothing was measured.
        least = {r: min(curve[r] for curve in upper.values() if r in curve) for curve in upper.values() for r in curve}
        shared = sorted(r for r in lower["certified"] if r in least)
        below, above = [lower["certified"][r] for r in shared], [least[r] for r in shared]
        axes.fill_between(shared, below, above, color="tab:blue", alpha=0.12, label="in between: not known")
    axes.set(xlabel=_RADIUS, ylabel="share of samples", ylim=_SHARES, title=f"perturbed: {_perturbed(what)}")
    axes.grid(alpha=0.3)
    _add_legend(figure, fontsize="small")
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


def _perturbed(what: str) -> str:
    return "all modalities together" if what == "joint" else f"{what} alone"


def _size(at: str) -> tuple[float, dict[str, float]]:
    """The radius that a key ends with, or the largest of those by modality, which are then given too."""
    of = {name: float(radius) for name, radius in _OF_MODALITY.findall(at)}
    return (max(of.values()), of) if of else (float(at), {})


def _title(name: str, of: Mapping[str, float], threat: Threat) -> str:
    """The attack, what it perturbs unless that is all in l2, and whose radius is drawn where there are several."""
    said = [] if threat == "joint" else [threat]
    if len(of) > 1 and max(of.values()) > 0:
        first = max(of, key=lambda each: of[each])
        shares = [f"{each}: {radius / of[first]:.3g} of it" for each, radius in of.items() if each != first]
        said = [f"radius of {first}; {', '.join(shares)}", *threat.split(", ")[1:]]
    return f"{name} ({', '.join(said)})" if said else name


def _style(place: int) -> dict[str, Any]:
    """Large and hollow first, small and dashed later: curves that coincide stay visible."""
    return {
        "linestyle": _DASHES[place % len(_DASHES)],
        "linewidth": max(1.2, 2.8 - 0.5 * place),
        "markersize": max(4, 10 - 2 * place),
        "fillstyle": "none" if place < 2 else "full",
        "alpha": 0.8,
    }


def _add_legend(figure: Figure, **settings: Any) -> None:
    """Inside the axes, or below them from five entries on."""
    (axes,) = figure.axes
    entries = len(axes.get_legend_handles_labels()[0])
    if entries <= 4:
        axes.legend(**settings)
        return
    figure.set_figheight(4 + 0.25 * entries)
    figure.legend(loc="outside lower center", **settings)


def _points(curve: Curve) -> tuple[list[float], list[float]]:
    radii = sorted(curve)
    return radii, [curve[r] for r in radii]


def figure_type() -> type[Figure]:
    """matplotlib's, which is optional.

    Raises:
        ModuleNotFoundError: if it is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("figures need matplotlib: pip install 'lightning_crmt[plot]'") from error
    return Figure


def _new_figure() -> Figure:
    return figure_type()(figsize=(5.5, 4), layout="constrained")
