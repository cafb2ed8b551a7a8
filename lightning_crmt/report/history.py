# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What a fit logs, entry by entry, as curves over epochs."""

from __future__ import annotations

from collections.abc import Mapping

from lightning_crmt.evaluation import read_keys


class History:
    """Of each name and epoch the last number.

    Numbers of ours that come without an epoch, those of step 2, have epochs of their own, counted from 1. What the fit
    repeats of them, with its last epoch, is left out.

    >>> history = History()
    >>> for weight in (1.0, 0.5):
    ...     history.add({"train/integration_weight/audio": weight})
    >>> history.add({"epoch": 9, "train/integration_weight/audio": 0.5, "train/loss": 2.0})
    >>> history.curves
    {'train/integration_weight/audio': [(1, 1.0), (2, 0.5)], 'train/loss': [(9, 2.0)]}
    """

    def __init__(self) -> None:
        self._numbers: dict[str, dict[int, float]] = {}
        self._counted: set[str] = set()

    def add(self, entry: Mapping[str, float]) -> None:
        """Keep an entry of a log: numbers by name, among them, as a rule, the epoch."""
        numbers = {name: float(value) for name, value in entry.items() if name not in ("epoch", "step")}
        epoch = entry.get("epoch")
        if epoch is None:
            numbers = {name: value for name, value in numbers.items() if any(key.split for key in read_keys({name: 0}))}
            self._counted |= numbers.keys() - self._numbers.keys()
        for name, value in numbers.items():
            kept = self._numbers.setdefault(name, {})
            if (epoch is None) == (name in self._counted):
                kept[len(kept) + 1 if epoch is None else int(epoch)] = value

    @property
    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """Pairs of an epoch and a number, by name."""
        return {name: sorted(numbers.items()) for name, numbers in self._numbers.items()}
