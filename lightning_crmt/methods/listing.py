# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What there is, read off the classes themselves."""

from __future__ import annotations

import inspect
from types import ModuleType

from lightning_crmt import fusion, methods


def listing() -> str:
    """The methods of training, and the heads, with a line each: name, and the first line of the documentation.

    >>> print(listing().splitlines()[0])
    Methods of training, for `trainer.callbacks`:
    """
    parts = [
        "Methods of training, for `trainer.callbacks`:",
        *_lines(methods, methods.Method, ""),
        "",
        "Heads, for `model.head`:",
        *_lines(fusion, fusion.Head, "in_features"),  # not those made from another head
    ]
    return "\n".join(parts)


def _lines(room: ModuleType, base: type, argument: str) -> list[str]:
    kinds = {name: getattr(room, name) for name in sorted(room.__all__)}
    kinds = {name: kind for name, kind in kinds.items() if inspect.isclass(kind) and issubclass(kind, base)}
    usable = {
        name: (inspect.getdoc(kind) or "").partition("\n")[0]
        for name, kind in kinds.items()
        if kind is not base and not inspect.isabstract(kind)
        if not argument or argument in inspect.signature(kind).parameters
    }
    width = max(map(len, usable))
    return [f"  {name:<{width}}  {line}" for name, line in usable.items()]
