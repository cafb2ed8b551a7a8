# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Classes that are hardly ever right, which a mean over all samples hides."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_crmt.evaluation import Means, Reduce

#: Of a class with fewer samples a low recall says little.
ENOUGH = 20
#: A class that is right less often than this share of all samples is lost.
LOST = 0.1
#: A model that is right less often has learned too little to have lost anything.
LEARNED = 0.7
#: The most classes that are told of one by one.
_SHOWN = 5


class LostClasses:
    """Counts how often each class is right, and tells which are lost.

    Args:
        num_classes: K.

    >>> lost = LostClasses(num_classes=2)
    >>> lost.add(right=torch.arange(80) < 60, target=(torch.arange(80) >= 60).long())
    >>> lost.told(lambda value, how: value)
    '1 of 2 classes hardly ever right, where 0.750 of all samples are: class 1 in 0 of 20'
    """

    def __init__(self, num_classes: int) -> None:
        self.classes = torch.arange(num_classes)
        self._means = Means[str]()

    def add(self, right: Tensor, target: Tensor) -> None:
        """Add which samples are right, ``(B,)`` bool, and their classes, ``(B,)``."""
        self._means.add({"all": right})
        self._means.add({"each": right}, target[:, None] == self.classes.to(target))

    def told(self, reduce: Reduce) -> str | None:
        """Which classes are lost, in words, the same on every process; None if none is, or much else is wrong."""
        means = self._means.compute(reduce)
        (everywhere,), each, counts = means["all"], means["each"], self._means.counts["each"]
        lost = [k for k, count in enumerate(counts) if count >= ENOUGH and each[k] < LOST * everywhere]
        if not lost or everywhere < LEARNED:
            return None
        shown = [f"class {k} in {round(each[k] * counts[k])} of {counts[k]}" for k in lost[:_SHOWN]]
        return (
            f"{len(lost)} of {len(counts)} classes hardly ever right, where {everywhere:.3f} of all samples are: "
            f"{', '.join([*shown, *(['...'] if lost[_SHOWN:] else [])])}"
        )
