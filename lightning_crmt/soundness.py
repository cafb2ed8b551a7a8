# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""How far a number can be trusted; it travels with every constant, radius and metric key."""

from __future__ import annotations

from enum import IntEnum


class Soundness(IntEnum):
    """Levels of trust, ordered; of several parts the weakest wins, so combine them with :func:`min`.

    Only the first three may be called *certified*. A radius that rests on an estimated constant is called *estimated*
    wherever it is shown, because the true radius may be smaller.

    >>> min(Soundness.SOUND, Soundness.ESTIMATED).label
    'estimated'
    """

    ESTIMATED = 0
    """From data, by gradients or sampling: a lower bound of the constant, so the radius may be too large."""

    PROBABILISTIC = 1
    """Holds with a stated probability, as in randomised smoothing."""

    SOUND = 2
    """An upper bound of the constant in exact arithmetic."""

    RIGOROUS = 3
    """An upper bound that is proof against rounding too."""

    @property
    def certified(self) -> bool:
        """Whether a radius of this level may be called certified."""
        return self > Soundness.ESTIMATED

    @property
    def label(self) -> str:
        """The word for metric keys, tables and plots: ``"certified"`` or ``"estimated"``."""
        return "certified" if self.certified else "estimated"
