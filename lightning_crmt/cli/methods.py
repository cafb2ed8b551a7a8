# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""``lightning-crmt methods``: a list of methods, heads and attacks, read from the classes themselves."""

from __future__ import annotations

import inspect
from types import ModuleType

from lightning_crmt import attacks, callbacks, fusion, methods

#: Not to be used themselves.
_BASES = (methods.Method, fusion.FusionHead, attacks.Attack)


def listing() -> str:
    """Methods of training, heads and attacks with a line each: name, and the first line of the documentation.

    Of a method also where its formula is from.

    >>> print(listing().splitlines()[0])
    Methods of training, for `trainer.callbacks`, and where their formulas are from:
    """
    parts = [
        "Methods of training, for `trainer.callbacks`, and where their formulas are from:",
        *_lines(methods, methods.Method, ""),
        "",
        "The steps of CRMT, for `trainer.callbacks` too:",
        *_lines(callbacks, (callbacks.IntegrationReweighting, callbacks.RadiusTraining, callbacks.ClassFloor), ""),
        "",
        "Heads, for `model.head`:",
        *_lines(fusion, fusion.FusionHead, "in_features"),  # not those made from another head
        "",
        "Attacks, for `AdversarialRobustness` and `AdversarialTraining`:",
        *_lines(attacks, attacks.Attack, ""),
    ]
    return "\n".join(parts)


def _lines(room: ModuleType, base: type | tuple[type, ...], argument: str) -> list[str]:
    kinds = {name: getattr(room, name) for name in sorted(room.__all__)}
    usable = {
        name: (getattr(kind, "source", ""), (inspect.getdoc(kind) or "").partition("\n")[0])
        for name, kind in kinds.items()
        if inspect.isclass(kind) and issubclass(kind, base) and kind not in _BASES and not inspect.isabstract(kind)
        if not argument or argument in inspect.signature(kind).parameters
    }
    width = max(map(len, usable))
    return [f"  {name:<{width}}  {source:<{15 * bool(source)}}{line}" for name, (source, line) in usable.items()]
