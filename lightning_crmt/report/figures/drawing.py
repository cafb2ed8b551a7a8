# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What all figures of comparisons share: how methods look, panels, and words.

Methods are told apart by marker, dash and hatch as well as by colour. Colours are those of Okabe and Ito, which
colour-blind readers tell apart; their yellow is left out, as nobody sees it on white, and their orange and sky blue are
darker, so that a mark has a contrast of 3 with white.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning_crmt.evaluation import figure_type
from lightning_crmt.report.figures.comparison import Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#0072B2", "#BC8100", "#6E6E6E"
_COLOURS = (BLUE, "#D55E00", "#009E73", "#CC79A7", "#000000", ORANGE, "#3A96CC")
_MARKERS = "os^DvPX*<>"  # as many as share no factor with the colours: 70 pairs
_DASHES = ("-", "--", "-.", ":")
_HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "oo", "++", "--")
_WIDTH = 7.0  # inches; on a phone the text is still to be read
_LINE = 88  # characters of a title

#: What a share of samples means, by how sure it is.
MEANING = {
    "certified": "guaranteed: right, and certified to stay so",
    "probably_certified": "guaranteed with a stated probability: right, and certified to stay so",
    "estimated": "estimated, no guarantee: right, and thought to stay so",
    "robust": "survived only: right under these attacks, stronger ones may break more",
    "": "measured: right on unchanged inputs",
}


class Drawing(NamedTuple):
    """A figure, and what it shows in words, for those who do not see it."""

    figure: Figure
    alt: str


class Look(NamedTuple):
    """How a method looks in all figures of a comparison."""

    colour: str
    marker: str
    dash: str
    hatch: str

    @property
    def line(self) -> dict[str, Any]:
        """Settings of a line."""
        return {"color": self.colour, "marker": self.marker, "linestyle": self.dash, "markersize": 5, "linewidth": 1.4}

    @property
    def bar(self) -> dict[str, Any]:
        """Settings of a bar: light, so that the hatch is seen."""
        return {"facecolor": f"{self.colour}55", "edgecolor": self.colour, "hatch": self.hatch}


def looks(methods: Iterable[str]) -> dict[str, Look]:
    """One look for each method, by its place.

    >>> looks(["joint", "crmt"])["crmt"]
    Look(colour='#D55E00', marker='s', dash='--', hatch='////')
    """
    cycles = (_COLOURS, _MARKERS, _DASHES, _HATCHES)
    return {
        method: Look(*(cycle[place % len(cycle)] for cycle in cycles))
        for place, method in enumerate(dict.fromkeys(methods))
    }


def panels(
    titles: Sequence[str], title: str, note: str, *, height: float = 2.6, across: int = 2, **settings: Any
) -> tuple[Figure, list[Axes]]:
    """A figure with one panel for each title, and above them what is shown and from what.

    Args:
        titles: of the panels; an empty one is left out.
        title: what all of them show, and how sure it is; a new line begins at each semicolon.
        note: from how many samples and seeds.
        height: of a panel, in inches.
        across: how many panels stand side by side.
        settings: those of matplotlib's ``subplots``.
    """
    across = min(across, len(titles))
    down = math.ceil(len(titles) / across)
    figure = figure_type()(figsize=(_WIDTH, height * down + 1.2), layout="constrained")
    axes = list(figure.subplots(down, across, squeeze=False, **settings).flatten())
    for spare in axes[len(titles) :]:
        spare.remove()
    for each, words in zip(axes, titles, strict=False):
        each.set_title(words, fontsize=9)
        each.tick_params(labelsize=8)
    lines = [line for sentence in (*title.split("; "), note) for line in textwrap.wrap(sentence, _LINE)]
    figure.suptitle("\n".join(lines), fontsize=9.5)
    return figure, axes[: len(titles)]


def method_rows(axes: Axes, methods: Sequence[str]) -> dict[str, int]:
    """Give each method a row of its own, the first on top; returns where.

    Panels that share their rows have the names once.
    """
    places = {method: -place for place, method in enumerate(methods)}
    axes.set_yticks(list(places.values()), [shortened(method) for method in methods], fontsize=8)
    axes.set_ylim(-len(methods) + 0.4, 0.6)
    axes.grid(axis="x", alpha=0.3)
    return places


def shortened(name: str, most: int = 28) -> str:
    """A name that leaves room for the figure."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def share_axis(axes: Axes, *, vertical: bool = False) -> None:
    """An axis of shares, in percent, from none to all."""
    limits, at, labels = (-2, 102), [0, 25, 50, 75, 100], ["0 %", "25", "50", "75", "100"]
    if vertical:
        axes.set_ylim(*limits)
        axes.set_yticks(at, labels)
    else:
        axes.set_xlim(*limits)
        axes.set_xticks(at, labels)


def legend_below(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend for all panels, below them."""
    entries: dict[str, Any] = {}
    for each in axes:
        for handle, label in zip(*each.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    columns = max(1, min(4, 80 // max(len(label) + 6 for label in entries)))
    figure.set_figheight(figure.get_figheight() + 0.19 * math.ceil(len(entries) / columns))
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns, fontsize=8)


def in_percent(spread: Spread) -> tuple[float, float]:
    """Mean and deviation of shares."""
    return 100 * spread.mean, 100 * spread.deviation


def told(spread: Spread) -> str:
    """A share in words.

    >>> told(Spread(0.621, 0.0123, 3)), told(Spread(0.621, 0.0, 1))
    ('62.1 ± 1.2 %', '62.1 %')
    """
    middle, deviation = in_percent(spread)
    return f"{middle:.1f} ± {deviation:.1f} %" if spread.n > 1 else f"{middle:.1f} %"


def told_range(spreads: Mapping[str, Spread]) -> str:
    """From the largest to the least of many methods, or all of a few.

    >>> told_range({"joint": Spread(0.5, 0.0, 1), "crmt": Spread(0.75, 0.0, 1)})
    'crmt 75.0 %, joint 50.0 %'
    """
    ordered = sorted(spreads.items(), key=lambda pair: -pair[1].mean)
    if len(ordered) <= 3:
        return ", ".join(f"{method} {told(spread)}" for method, spread in ordered)
    (most, high), (least, low) = ordered[0], ordered[-1]
    return f"{told(high)} ({most}) to {told(low)} ({least})"
