# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""How far a number can be trusted; every constant, radius and metric key carries it."""

from __future__ import annotations

from collections.abc import Collection
from enum import IntEnum


class Soundness(IntEnum):
    """Levels of trust, ordered; of several parts the weakest wins, so combine them with :func:`min`.

    Only the first three may be called *certified*. A radius that rests on an estimated constant is called *estimated*
    wherever it is shown, because the true radius may be smaller. Arguments that take a level also take its name, in
    either case.

    >>> min(Soundness.SOUND, Soundness.ESTIMATED).label
    'estimated'
    >>> Soundness("rigorous") is Soundness.RIGOROUS
    True
    """

    ESTIMATED = 0
    """From data, by gradients or sampling: a lower bound of the constant, so the radius may be too large."""

    PROBABILISTIC = 1
    """Holds with a stated probability, as in randomised smoothing."""

    SOUND = 2
    """An upper bound of the constant in exact arithmetic."""

    RIGOROUS = 3
    """An upper bound that also counts rounding."""

    @classmethod
    def _missing_(cls, value: object) -> Soundness | None:
        return cls.__members__.get(value.upper()) if isinstance(value, str) else None

    @classmethod
    def among(cls, allowed: Collection[Soundness], argument: str, value: Soundness | str) -> Soundness:
        """The level that ``value`` names, checked to be one of those ``allowed``.

        Raises:
            ValueError: naming the argument, for anything else.

        >>> Soundness.among([Soundness.SOUND, Soundness.ESTIMATED], "constants", "guessed")
        Traceback (most recent call last):
            ...
        ValueError: `constants` must be 'sound' or 'estimated', got 'guessed'
        """
        level = cls.__members__.get(value.upper()) if isinstance(value, str) else value
        if level is None or level not in allowed:
            *names, last = (repr(each.name.lower()) for each in allowed)
            given = value.name.lower() if isinstance(value, cls) else value
            raise ValueError(f"`{argument}` must be {', '.join(names)} or {last}, got {given!r}")
        return cls(level)

    def __str__(self) -> str:
        """The name in lower case, as arguments take it."""
        return self.name.lower()

    @property
    def certified(self) -> bool:
        """Whether a radius of this level may be called certified."""
        return self > Soundness.ESTIMATED

    @property
    def label(self) -> str:
        """The word for metric keys, tables and plots: ``"certified"``, ``"probably_certified"`` or ``"estimated"``."""
        if self is Soundness.PROBABILISTIC:
            return "probably_certified"
        return "certified" if self.certified else "estimated"
