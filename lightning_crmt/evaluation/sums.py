# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Means over the samples of many batches and processes; all evaluations add numbers up this way."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Generic, TypeAlias, TypeVar

import torch
from torch import Tensor

K = TypeVar("K", bound=Hashable)

#: Combines a tensor over all processes: ``reduce(tensor, "sum")`` or ``reduce(tensor, "max")``.
Reduce: TypeAlias = Callable[[Tensor, str], Tensor]


def total_and_count(values: Tensor, groups: Tensor | None = None) -> Tensor:
    """Sum and number of ``values`` in each group, ``(2, G)``, in their own precision; by default all are one group.

    Args:
        values: one per sample, ``(B,)``, or with groups one for each of them, ``(B, G)``.
        groups: which groups each sample is in, ``(B, G)`` bool.

    >>> values = torch.tensor([1.0, 2.0, 4.0])
    >>> total_and_count(values).flatten()
    tensor([7., 3.])
    >>> total_and_count(values, groups=torch.tensor([[True, False], [True, False], [False, True]]))
    tensor([[3., 4.],
            [2., 1.]])
    """
    if groups is not None:
        values = values if values.dim() == 2 else values[:, None]
        return torch.stack([torch.where(groups, values, 0), groups.to(values.dtype)]).sum(dim=1)
    total = values.sum()
    return torch.stack([total, torch.full_like(total, len(values))])[:, None]


def _shares(values: list[Tensor], groups: Tensor | None) -> Tensor:
    """:func:`total_and_count` of each of n bools ``(B,)``, ``(n, 2, G)``."""
    stacked = torch.stack(values)
    if groups is None:
        totals = stacked.sum(dim=1).float()[:, None]
        counts = torch.full_like(totals, stacked.shape[1])
    else:
        totals = (stacked[:, :, None] & groups).sum(dim=1).float()
        counts = groups.sum(dim=0).float().expand_as(totals)
    return torch.stack([totals, counts], dim=1)


class Means(Generic[K]):
    """Means over samples, by name, from sums in single precision; those of several batches are added up.

    Values are one per sample, ``(B,)``; with G groups there are G means for a name, else one.

    >>> means = Means[str]()
    >>> means.add({"right": torch.tensor([True, False])})
    >>> means.add({"right": torch.tensor([True, True])})
    >>> means.compute(lambda value, how: value)
    {'right': [0.75]}
    """

    def __init__(self) -> None:
        self._sums: dict[K, Tensor] = {}
        #: Of how many samples each mean is, over all processes; empty before :meth:`compute`.
        self.counts: dict[K, list[int]] = {}

    def add(self, values: Mapping[K, Tensor], groups: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            values: by name one per sample, ``(B,)`` each: numbers, or bools, whose mean is a share; or one for each
                group, ``(B, G)``.
            groups: which groups each sample is in, ``(B, G)`` bool; by default all are in one.
        """
        # Sums of whole numbers are exact in any order, so bools may be added up together.
        shares = {name: each for name, each in values.items() if each.dtype is torch.bool and each.dim() == 1}
        sums: dict[K, Tensor] = dict(zip(shares, _shares(list(shares.values()), groups), strict=True)) if shares else {}
        for name, each in values.items():
            new = sums[name] if name in sums else total_and_count(each.float(), groups)
            self._sums[name] = self._sums[name] + new if name in self._sums else new

    def __bool__(self) -> bool:
        """Whether anything was added."""
        return bool(self._sums)

    def compute(self, reduce: Reduce) -> dict[K, list[float]]:
        """Means over the samples of all processes, by name G numbers; NaN for a group without samples.

        Args:
            reduce: combines a tensor over all processes, which must call this together.
        """
        totals, counts = reduce(torch.cat(list(self._sums.values()), dim=1), "sum").cpu().double()  # MPS has no double
        groups = [each.shape[1] for each in self._sums.values()]
        means, numbers = (totals / counts).split(groups), counts.long().split(groups)
        self.counts = {name: each.tolist() for name, each in zip(self._sums, numbers, strict=True)}
        return {name: each.tolist() for name, each in zip(self._sums, means, strict=True)}


def lower_median(values: Tensor, reduce: Reduce) -> float:
    """Lower median over all processes, of numbers ``(N,)`` that are at least 0; by counting, byte by byte.

    Args:
        values: those of this process, ``(N,)``; taken in single precision.
        reduce: combines a tensor over all processes, which must call this together.

    >>> lower_median(torch.tensor([3.0, 1.0, 2.0, 4.0]), lambda value, how: value)
    2.0
    """
    bits = values.float().view(torch.int32).long()  # such floats are in the order of their bits
    place = (int(reduce(torch.tensor(len(bits), device=bits.device), "sum").item()) - 1) // 2
    median = 0
    for shift in (24, 16, 8, 0):
        digits = (bits[bits >> (shift + 8) == median] >> shift) & 255
        upto = reduce(torch.bincount(digits, minlength=256), "sum").cumsum(0)
        digit = int((upto <= place).sum())
        place -= int(upto[digit - 1]) if digit else 0
        median = (median << 8) | digit
    return torch.tensor(median, dtype=torch.int32).view(torch.float32).item()
