# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What there is, read off the classes themselves."""

from __future__ import annotations

import inspect

from lightning_crmt import methods


def listing() -> str:
    """One line for each method: its name, and the first line of its documentation.

    >>> print(listing())  # doctest: +ELLIPSIS
    AdversarialTraining ... Adversarial training (Madry et al., ICLR 2018)...
    """
    found = {name: getattr(methods, name) for name in sorted(methods.__all__)}
    described = {
        name: (inspect.getdoc(kind) or "").partition("\n")[0]
        for name, kind in found.items()
        if inspect.isclass(kind) and kind is not methods.Method
    }
    width = max(map(len, described))
    return "\n".join(f"{name:<{width}}  {line}" for name, line in described.items())
