# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Checks of settings: each error names the argument, what was expected and what came."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypeVar

T = TypeVar("T", str, int)


def at_least(least: int, **settings: float | None) -> None:
    """Refuse numbers below ``least``; None, a setting left open, passes.

    Raises:
        ValueError: if a setting is too small.

    >>> at_least(1, batch_size=0)
    Traceback (most recent call last):
        ...
    ValueError: `batch_size` must be at least 1, got 0
    """
    for argument, value in settings.items():
        if value is not None and value < least:
            raise ValueError(f"`{argument}` must be at least {least}, got {value}")


def above_zero(**settings: float | None) -> None:
    """Refuse numbers that are not above 0 and finite; None, a setting left open, passes.

    Raises:
        ValueError: if a setting is 0, negative, infinite or not a number.

    >>> above_zero(norm=float("inf"))
    Traceback (most recent call last):
        ...
    ValueError: `norm` must be above 0 and finite, got inf
    """
    for argument, value in settings.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ValueError(f"`{argument}` must be above 0 and finite, got {value}")


def several(given: T | Sequence[T]) -> tuple[T, ...]:
    """One or several names or numbers as a tuple.

    >>> several("audio"), several([8, 9])
    (('audio',), (8, 9))
    """
    return (given,) if isinstance(given, (str, int)) else tuple(given)


def chosen(argument: str, given: T | Sequence[T], known: Iterable[T]) -> tuple[T, ...]:
    """The names that were chosen, one or several, as a tuple.

    Args:
        argument: the name of the setting, for the message.
        given: the chosen names.
        known: all there are.

    Raises:
        ValueError: if none is given, one is given twice, or one is not known.

    >>> chosen("modalities", "audio", ["audio", "image"])
    ('audio',)
    """
    names = several(given)
    if not names or len(set(names)) != len(names) or not set(names) <= set(known):
        raise ValueError(f"`{argument}` must be different names among {list(known)}, got {names}")
    return names
