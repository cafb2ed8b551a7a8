# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The few numbers that stand for a run where there is room for a few only."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from lightning_crmt.evaluation import Key
from lightning_crmt.report.figures.comparison import LOWER, Comparison, Measured, accuracy, attacked

_WORDS = {
    "certified": "guaranteed",
    "probably_certified": "guaranteed with a stated probability",
    "estimated": "estimated, no guarantee",
}


class Headline(NamedTuple):
    """Which number of a run stands for it, and what that is in words."""

    words: str
    key_of: Callable[[Measured], Key | None]
    robust: bool


def headlines(comparison: Comparison) -> list[Headline]:
    """Accuracy on clean inputs, and what is most worth knowing of robustness: the surest first.

    At radii in the middle of those that were measured: at the largest all may be at 0, at the smallest nothing differs.
    """
    found = []
    for sure in LOWER:
        radii = {
            key.radius
            for key in comparison.keys
            if (key.what, key.of, key.sure) == ("accuracy", "joint", sure) and key.radius
        }
        if radii:
            found.append(_of(accuracy("joint", _middle(radii), sure), f"{_WORDS[sure]} at radius {_middle(radii):g}"))
    above = {radius for each in comparison.measured for radius in attacked(each, "joint")}
    if above:
        radius = _middle(above)
        words = f"survived attacks of radius {radius:g}"
        found.append(Headline(words, lambda each: attacked(each, "joint").get(radius), True))
    attacks = sorted({key for key in comparison.keys if key.sure == "robust" and key.what == "accuracy"}, key=str)
    if attacks and not above:
        found.append(_of(attacks[0], f"survived attack {attacks[0].of}{'' if attacks[0].size is None else ' of size '}"
                                     f"{'' if attacks[0].size is None else format(attacks[0].size, 'g')}"))  # fmt: skip
    for way in ("zeroed", "dropped", "imputed"):
        if (key := Key("", f"accuracy_{way}", "worst")) in comparison.keys:
            found.append(_of(key, f"right whatever is missing ({way})"))
    clean = Key("", "accuracy", "joint")
    first = [Headline("right on clean inputs", lambda each: clean, False)]
    return [*(first if clean in comparison.keys else []), *found]


def _of(key: Key, words: str) -> Headline:
    return Headline(words, lambda each: key, True)


def _middle(radii: set[float]) -> float:
    return sorted(radii)[(len(radii) - 1) // 2]
