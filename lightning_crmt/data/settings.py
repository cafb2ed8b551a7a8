# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Settings that choose one or several of the available names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

T = TypeVar("T", str, int)


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
        known: all valid names.

    Raises:
        ValueError: if none is given, one is given twice, or one is not known.

    >>> chosen("modalities", "audio", ["audio", "image"])
    ('audio',)
    """
    names = several(given)
    if not names or len(set(names)) != len(names) or not set(names) <= set(known):
        raise ValueError(f"`{argument}` must be different names among {list(known)}, got {names}")
    return names
