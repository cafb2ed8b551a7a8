# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The keys of logged numbers: the parts of a key, and the text under which its number is logged."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import SupportsFloat

_SPLITS = ("train", "val", "test")
_SURE = ("certified", "probably_certified", "estimated", "robust")
_TOGETHER = ("joint", "none", "worst")
_LOADER = "dataloader_idx_"


@dataclass(frozen=True)
class Key:
    """Says what a logged number measures. ``str(key)`` is the name it is logged under; :meth:`parse` reads that back.

    The text is ``split/sure_what/of@at/dataloader_idx_loader``, without the parts that are empty.

    Attributes:
        split: ``"train"``, ``"val"`` or ``"test"``; empty if it does not matter or is not known yet.
        what: the quantity, such as ``"accuracy"``, ``"accuracy_worst_class"``, ``"radius"`` or ``"loss"``.
        of: ``"joint"``, a modality, several of them joined by ``+``, a class, or the name of an attack.
        radius: the radius at which it was measured, in units of the inputs.
        budget: in place of ``radius`` one for each of several modalities, as pairs of a name and a radius.
        sure: ``"certified"`` for a lower bound of the robustness, ``"probably_certified"`` for one that holds with a
            stated probability, ``"robust"`` for the upper bound that an attack gives, ``"estimated"`` for none of
            these; empty for a number that is measured exactly.
        loader: number of the data loader, where there are several.

    Raises:
        ValueError: if the text would be ambiguous or a part is out of range.

    >>> key = Key("val", "accuracy", "joint", radius=0.2, sure="certified")
    >>> str(key)
    'val/certified_accuracy/joint@0.2'
    >>> str(Key("test", "accuracy", "pgd", budget=(("audio", 0.1), ("image", 3.0)), sure="robust", loader=1))
    'test/robust_accuracy/pgd@audio=0.1+image=3/dataloader_idx_1'
    >>> Key.parse(str(key)) == key
    True
    """

    split: str
    what: str
    of: str = ""
    radius: float | None = None
    budget: tuple[tuple[str, float], ...] = ()
    sure: str = ""
    loader: int | None = None

    def __post_init__(self) -> None:
        for argument, value, known in (("split", self.split, _SPLITS), ("sure", self.sure, _SURE)):
            if value and value not in known:
                raise ValueError(f"`{argument}` must be one of {known} or empty, got {value!r}")
        if not self.what or "/" in self.what or self.what in _SPLITS or self.what.startswith(_LOADER):
            raise ValueError(f"`what` must be a word without '/' that is no split and no loader, got {self.what!r}")
        first = _split_sure(self.what)[0]
        if first and not self.sure:
            raise ValueError(f"`what` must leave it to `sure` to say {first!r}, got {self.what!r}")
        if self.of != "":
            check_key_name("of", self.of)
        for name, _ in self.budget:
            check_key_name("budget", name, modality=True)
        if self.radius is not None and (self.budget or not self.of):
            raise ValueError(f"`radius` must be of something, and not beside a `budget`, got {self}")
        radii = [float(radius) for _, radius in self.budget] + ([] if self.radius is None else [float(self.radius)])
        if not all(0 <= radius < math.inf for radius in radii):
            raise ValueError(f"`radius` and those of `budget` must be at least 0 and finite, got {radii}")
        if self.loader is not None and self.loader < 0:
            raise ValueError(f"`loader` must be at least 0, got {self.loader}")

    @property
    def size(self) -> float | None:
        """The radius, or the largest of the budget; None where there is neither."""
        return max((radius for _, radius in self.budget), default=self.radius)

    def __str__(self) -> str:
        at = "+".join(f"{name}={_shortest(radius)}" for name, radius in self.budget)
        at = at if self.radius is None else _shortest(self.radius)
        parts = [
            self.split,
            f"{self.sure}_{self.what}" if self.sure else self.what,
            f"{self.of}@{at}" if self.of and at else self.of or at,
            "" if self.loader is None else f"{_LOADER}{self.loader}",
        ]
        return "/".join(part for part in parts if part)

    @classmethod
    def parse(cls, text: str) -> Key:
        """The key whose number is logged as ``text``.

        Raises:
            ValueError: if ``text`` is not a key.

        >>> Key.parse("val/accuracy_dropped/audio+image")
        Key(split='val', what='accuracy_dropped', of='audio+image', radius=None, budget=(), sure='', loader=None)
        """
        parts = text.split("/")
        try:
            split = parts.pop(0) if parts[0] in _SPLITS else ""
            loader = int(parts.pop().removeprefix(_LOADER)) if parts[-1].startswith(_LOADER) else None
            what, where = parts if len(parts) > 1 else (*parts, "")
            sure, what = _split_sure(what)
            of, at_sign, at = where.partition("@")
            if "=" in where:
                return cls(split, what, of if at_sign else "", None, _budget(at or of), sure, loader)
            return cls(split, what, of, float(at) if at_sign else None, (), sure, loader)
        except (ValueError, IndexError) as error:
            raise ValueError(f"a key reads like 'val/certified_accuracy/joint@0.2', got {text!r}: {error}") from error


def check_key_name(argument: str, name: object, *, modality: bool = False) -> None:
    """Refuse a name that would make keys ambiguous.

    Args:
        argument: the argument that the error names.
        name: the name of an attack, a modality, or whatever else is measured.
        modality: whether it names a modality: keys join several of these by ``+``, and have words for all of them and
            for none.

    Raises:
        ValueError: if it is not a string, is empty, or holds what separates the parts of a key.

    >>> check_key_name("attacks", "pgd+restarts")
    >>> check_key_name("inputs", "audio+image", modality=True)
    Traceback (most recent call last):
        ...
    ValueError: `inputs` must have names that are not empty, do not begin with 'dataloader_idx_' and hold none of
    '/@=+', which keys are made of, got 'audio+image'
    """
    marks = "/@=+" if modality else "/@="
    if not isinstance(name, str) or not name or any(mark in name for mark in marks) or name.startswith(_LOADER):
        raise ValueError(
            f"`{argument}` must have names that are not empty, do not begin with {_LOADER!r} and hold none of "
            f"{marks!r}, which keys are made of, got {name!r}"
        )
    if modality and name in _TOGETHER:
        raise ValueError(f"`{argument}` must not have names among {_TOGETHER}, words that keys use, got {name!r}")


def read_keys(metrics: Mapping[str, SupportsFloat]) -> dict[Key, float]:
    """Those numbers in a Trainer's ``callback_metrics``, or in the log of a logger, whose names are keys.

    >>> read_keys({"val/accuracy/joint": 0.9, "grad/norm/1": 3.0})
    {Key(split='val', what='accuracy', of='joint', radius=None, budget=(), sure='', loader=None): 0.9}
    """
    numbers = {}
    for name, value in metrics.items():
        try:
            numbers[Key.parse(name)] = float(value)
        except ValueError:
            continue  # a metric of somebody else
    return numbers


def curves(numbers: Mapping[Key, float]) -> dict[Key, dict[float, float]]:
    """The numbers as curves over the radius, or over the largest radius of a budget; keyed without radius and budget.

    >>> at = lambda radius: Key("val", "accuracy", "joint", radius, sure="certified")
    >>> curves({at(0.1): 0.8, at(0.2): 0.7})[Key("val", "accuracy", "joint", sure="certified")]
    {0.1: 0.8, 0.2: 0.7}
    """
    by_radius: dict[Key, dict[float, float]] = {}
    for key, value in numbers.items():
        if key.of and key.size is not None:
            by_radius.setdefault(replace(key, radius=None, budget=()), {})[key.size] = value
    return {key: dict(sorted(curve.items())) for key, curve in by_radius.items()}


def _split_sure(what: str) -> tuple[str, str]:
    """How sure a quantity is, if its name begins with that, and the rest of the name."""
    sure = next((each for each in _SURE if what.startswith(f"{each}_") and what != f"{each}_"), "")
    return sure, what.removeprefix(f"{sure}_") if sure else what


def _shortest(radius: float) -> str:
    """The shortest text that reads back as the same number."""
    return next(text for digits in range(6, 18) if float(text := f"{abs(radius):.{digits}g}") == abs(radius))


def _budget(text: str) -> tuple[tuple[str, float], ...]:
    # Names hold neither "+" nor "=", but radii may read 1e+06: a name is what follows the last "+" before a "=".
    first, *between, last = text.split("=")
    names = [first, *(each.rpartition("+")[2] for each in between)]
    radii = [*(each.rpartition("+")[0] for each in between), last]
    return tuple((name, float(radius)) for name, radius in zip(names, radii, strict=True))
