# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Old public names work for one more release, with a warning that gives the new name."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def renamed(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """A ``__getattr__`` for a module whose names have changed.

    Args:
        module: its ``__name__``.
        names: new names by old ones.

    >>> getattr(sys.modules["lightning_crmt.fusion"], "Fusion").__name__  # doctest: +SKIP
    'LateFusion'
    """

    def __getattr__(name: str) -> Any:  # noqa: N807
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        new = names[name]
        warnings.warn(f"{module}.{name} is called {new} now", DeprecationWarning, stacklevel=2)
        return getattr(sys.modules[module], new)

    return __getattr__


def renamed_argument(old: str, given: T | None, new: str, value: T) -> T:
    """The value of a renamed argument, whichever name it came under.

    Args:
        old: the name it had.
        given: the value passed under that name; None if there was none.
        new: the name it has now.
        value: the value passed under that name, or its default.

    >>> renamed_argument("represent", None, "fill", "zeroed")
    'zeroed'
    """
    if given is None:
        return value
    warnings.warn(f"`{old}` is called `{new}` now", DeprecationWarning, stacklevel=3)
    return given
