# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Figures of robustness, drawn from logged numbers alone; needs the extra ``plot``."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import TYPE_CHECKING, Any, TypeAlias

from lightning_crmt.checks import require_package
from lightning_crmt.evaluation.keys import Key, curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure

_AXIS = {
    "certified": "right, and certified to stay so",
    "probably_certified": "right, and probably certified to stay so",
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


def robustness_figures(numbers: Mapping[Key, float], threats: Mapping[str, str] | None = None) -> dict[str, Figure]:
    """All figures that the numbers of the callbacks for robustness allow, by name.

    - ``split/certified_curve``, ``split/estimated_curve``: accuracy over the radius, a curve for each set of perturbed
      modalities; ``split/probably_certified_curve``, the same of a smoothed classifier, with the share of samples that
      it gives no answer for; ``split/robust_curve``, a curve for each attack; all need at least two radii;
    - ``split/bounds_joint``, or the name of a modality: certified accuracy, below, and accuracy under attacks on the
      same threat, above, in one picture;
    - ``split/certified_frontier_audio_image``: accuracy over separate budgets of two modalities, and the frontiers
      along which it is constant; it needs a full grid of at least 2 x 2 budgets.

    Args:
        numbers: by key, as :func:`~lightning_crmt.evaluation.read_keys` reads them from a Trainer; those drawn in one
            picture must be of the same samples.
        threats: what each attack perturbs, by its name: ``"joint"`` or the name of a modality, in l2; anything else
            counts as a separate threat. Attacks left out appear in no shared picture.

    Raises:
        ModuleNotFoundError: naming the extra, if matplotlib is not installed.

    >>> at = lambda radius: Key("val", "accuracy", "joint", radius, sure="certified")
    >>> sorted(robustness_figures({at(0.1): 0.7, at(0.2): 0.6}))
    ['val/certified_curve']
    """
    threats = threats or {}
    shares = {
        key: value for key, value in numbers.items() if key.what == "accuracy" and key.sure and key.loader is None
    }
    at_radius = curves(shares)
    figures = {}
    for split in dict.fromkeys(key.split for key in at_radius):
        kinds = {
            sure: {key.of: curve for key, curve in at_radius.items() if (key.split, key.sure) == (split, sure)}
            for sure in _AXIS
        }
        worth = [sure for sure, named in kinds.items() if any(len(curve) > 1 for curve in named.values())]
        for attack, curve in kinds["robust"].items():
            clean = Key(split, "clean_accuracy", attack)
            kinds["robust"][attack] = ({0.0: numbers[clean]} if clean in numbers else {}) | curve
        for sure in worth:
            titles = _titles(shares, threats) if sure == "robust" else {}
            named = {titles.get(of, of): curve for of, curve in kinds[sure].items()}
            abstained = None
            if sure == "probably_certified":
                abstained = numbers.get(Key(split, "smoothed_abstained", "joint"))
                right = Key(split, "smoothed_accuracy", "joint")
                if "joint" in named and right in numbers:
                    named["joint"] = {0.0: numbers[right], **named["joint"]}
            figures[f"{split}/{sure}_curve"] = radius_curve(named, sure, abstained)
        # Not of smoothed classifiers: attacks on the base model say nothing of them.
        for of in kinds["certified"] | kinds["estimated"]:
            lower = {sure: kinds[sure][of] for sure in ("certified", "estimated") if of in kinds[sure]}
            upper = {attack: curve for attack, curve in kinds["robust"].items() if threats.get(attack) == of}
            if upper and any(len(curve) > 1 for curve in lower.values()):
                figures[f"{split}/bounds_{of}"] = bounds_figure(lower, upper, of)
    for key, cells in full_grids(numbers).items():
        (first, _), (second, _) = key.budget
        name = f"{key.split}/{key.sure}_frontier_{first}_{second}"
        figures[name] = budget_frontier(cells, first, second, key.sure)
    return figures


def radius_curve(curves: Mapping[str, Curve], sure: str, abstained: float | None = None) -> Figure:
    """Accuracy over the radius, a curve for each threat.

    Args:
        curves: by threat or by attack, accuracy by radius.
        sure: ``"certified"``, ``"probably_certified"``, ``"estimated"`` or, for attacks, ``"robust"``, which the axis
            says.
        abstained: of a smoothed classifier, the share of samples that it gives no answer for.
    """
    figure, axes = _new_figure()
    for place, ((what, curve), marker) in enumerate(zip(curves.items(), cycle("ovs^D"), strict=False)):
        title = what if sure == "robust" else perturbed(what)
        axes.plot(*_points(curve), **_style(place), marker=marker, label=title)
    if abstained is not None:
        axes.axhspan(1 - abstained, 1, color="tab:gray", alpha=0.25, label=f"no answer: {abstained:.1%} of samples")
    unit = "radius of the attack, in units of the inputs" if sure == "robust" else _RADIUS
    axes.set(xlabel=unit, ylabel=_AXIS[sure], ylim=_SHARES)
    axes.grid(alpha=0.3)
    _add_legend(figure, title="attack" if sure == "robust" else "perturbed")
    return figure


def bounds_figure(lower: Mapping[str, Curve], upper: Mapping[str, Curve], what: str) -> Figure:
    """Certified accuracy and accuracy under attacks, over the radius: the truth lies between the two.

    Args:
        lower: accuracy by radius, of ``"certified"`` or ``"estimated"`` radii, or both.
        upper: accuracy by radius under each attack.
        what: ``"joint"`` or the name of the modality that is perturbed.
    """
    figure, axes = _new_figure()
    colours = cycle(["red", "orange", "brown", "pink"])
    for place, ((name, curve), colour) in enumerate(zip(upper.items(), colours, strict=False)):
        title = f"right under the attack {name} (upper bound)"
        axes.plot(*_points(curve), **_style(place), marker="v", color=f"tab:{colour}", label=title)
    for sure, curve in lower.items():
        title, colour, style = _LINE[sure]
        axes.plot(*_points(curve), style, marker="^", markersize=4, color=colour, label=title)
    if "certified" in lower:
        # Only at radii that both have: between them nothing was measured.
        least = {r: min(curve[r] for curve in upper.values() if r in curve) for curve in upper.values() for r in curve}
        shared = sorted(r for r in lower["certified"] if r in least)
        below, above = [lower["certified"][r] for r in shared], [least[r] for r in shared]
        axes.fill_between(shared, below, above, color="tab:blue", alpha=0.12, label="in between: not known")
    axes.set(xlabel=_RADIUS, ylabel="share of samples", ylim=_SHARES, title=f"perturbed: {perturbed(what)}")
    axes.grid(alpha=0.3)
    _add_legend(figure, fontsize="small")
    return figure


def budget_frontier(cells: Mapping[tuple[float, float], float], first: str, second: str, sure: str) -> Figure:
    """Accuracy over separate budgets of two modalities, with the frontiers along which it is constant.

    Args:
        cells: accuracy by the radii of the first and the second modality; a full grid.
        first: name of the first modality, along the horizontal axis.
        second: name of the second.
        sure: ``"certified"``, ``"probably_certified"`` or ``"estimated"``, which the colour bar says.
    """
    figure, axes = _new_figure()
    colours = draw_budgets(axes, cells)
    # Only a smoothed classifier has budgets of tokens.
    unit = "l2 radius, or replaced tokens, of" if sure == "probably_certified" else "l2 radius of"
    axes.set(xlabel=f"{unit} {first}", ylabel=f"{unit} {second}")
    figure.colorbar(colours, label=_AXIS[sure])
    return figure


def draw_budgets(axes: Axes, cells: Mapping[tuple[float, float], float]) -> QuadMesh:
    """Draw accuracy over two radii as colours, and the frontiers along which it is constant.

    Args:
        axes: to draw into.
        cells: accuracy by the radius across and the radius up; a full grid.

    Returns:
        What a colour bar is made of.
    """
    across, up = sorted({r for r, _ in cells}), sorted({s for _, s in cells})
    values = [[cells[r, s] for r in across] for s in up]
    colours = axes.pcolormesh(across, up, values, shading="nearest", vmin=0, vmax=1, cmap="viridis")
    low, high = min(map(min, values)), max(map(max, values))
    levels = [level / 10 for level in range(1, 10) if low < level / 10 < high]
    if levels:
        axes.clabel(axes.contour(across, up, values, levels=levels, colors="white", linewidths=1), fmt="%.1f")
    return colours


def full_grids(numbers: Mapping[Key, float]) -> dict[Key, dict[tuple[float, float], float]]:
    """Accuracies over separate budgets of two modalities, where these are a full grid of at least 2 x 2.

    Returns:
        By the key of the largest budget, accuracy by the radius of the first modality and that of the second.

    >>> at = lambda r, s: Key("val", "accuracy", budget=(("audio", r), ("image", s)), sure="certified")
    >>> [str(key) for key in full_grids({at(r, s): 0.5 for r in (0.0, 0.1) for s in (0.0, 0.2)})]
    ['val/certified_accuracy/audio=0.1+image=0.2']
    """
    grids: dict[tuple[str, ...], dict[tuple[float, float], Key]] = {}
    for key in numbers:
        if key.what == "accuracy" and key.sure and key.loader is None and not key.of and len(key.budget) == 2:
            (first, across), (second, up) = key.budget
            grids.setdefault((key.split, key.sure, first, second), {})[across, up] = key
    full = {}
    for cells in grids.values():
        columns, rows = {across for across, _ in cells}, {up for _, up in cells}
        if min(len(columns), len(rows)) > 1 and len(cells) == len(columns) * len(rows):
            full[cells[max(columns), max(rows)]] = {at: numbers[key] for at, key in cells.items()}
    return full


def perturbed(what: str) -> str:
    """What is perturbed, in words.

    >>> perturbed("joint"), perturbed("audio+image")
    ('all modalities together', 'audio and image alone')
    """
    return "all modalities together" if what == "joint" else f"{what.replace('+', ' and ')} alone"


def _titles(shares: Mapping[Key, float], threats: Mapping[str, str]) -> dict[str, str]:
    """Of each attack: its name, what it perturbs unless that is all in l2, and whose radius is drawn if of several."""
    titles = {}
    for key in sorted((key for key in shares if key.sure == "robust"), key=lambda key: key.size or 0.0):
        threat = threats.get(key.of, "joint")
        said = [] if threat == "joint" else [threat]
        if len(key.budget) > 1 and key.size:
            first = next(name for name, radius in key.budget if radius == key.size)
            parts = [f"{name}: {radius / key.size:.3g} of it" for name, radius in key.budget if name != first]
            said = [f"radius of {first}; {', '.join(parts)}", *threat.split(", ")[1:]]
        titles[key.of] = f"{key.of} ({', '.join(said)})" if said else key.of  # that of the largest radius stays
    return titles


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
    """The class ``Figure`` of matplotlib, which is optional.

    Raises:
        ModuleNotFoundError: if it is not installed.
    """
    figure: type[Figure] = require_package("matplotlib.figure", "figures need matplotlib", "plot").Figure
    return figure


def _new_figure() -> tuple[Figure, Axes]:
    figure = figure_type()(figsize=(5.5, 4), layout="constrained")
    return figure, figure.subplots()
