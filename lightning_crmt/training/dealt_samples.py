# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Which samples of a data set the batches of a loader hold, also where several processes share them out."""

from __future__ import annotations

import math
from collections.abc import Sized
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor
from torch.utils.data import DistributedSampler, SequentialSampler


class DealtSamples:
    """Counts the samples of one evaluation loader, and tells the place of each in the data set.

    ``DistributedSampler`` deals samples out in turn, and some twice at the end, to even out the processes. Loaders that
    share in another way, or shuffle, are taken as if each process read a data set of its own, in order.

    Args:
        loader: of this process.
        batches: how many of them are read; all by default.

    >>> dealt = DealtSamples([])
    >>> dealt.places(3), dealt.places(2)
    (tensor([0, 1, 2]), tensor([3, 4]))
    """

    def __init__(self, loader: Any, batches: float = math.inf) -> None:
        sampler = getattr(loader, "sampler", None)
        dealt = sampler if isinstance(sampler, DistributedSampler) and not sampler.shuffle else None
        self.processes = 1 if dealt is None else dealt.num_replicas
        self.first = 0 if dealt is None else dealt.rank
        size = getattr(loader, "batch_size", None)
        self._batch_size = size if isinstance(size, int) else None
        dataset = getattr(loader, "dataset", None)
        in_order = dealt is not None or isinstance(sampler, SequentialSampler)
        #: How many samples are read, over all processes; None if that is not known.
        self.size = len(dataset) if in_order and isinstance(dataset, Sized) else None
        if self.size is not None and self._batch_size is not None:
            self.size = int(min(self.size, batches * self._batch_size * self.processes))
        self._seen = 0

    def places(self, count: int) -> Tensor:
        """Those of the next ``count`` samples of this process, ``(count,)``; ``size`` or more where dealt again."""
        here = torch.arange(self._seen, self._seen + count)
        self._seen += count
        return self.first + self.processes * here

    def chosen(self, places: Tensor, samples: int) -> Tensor:
        """Which places are among ``samples`` of those read, evenly spread, as data sets may be in the order of classes.

        Where it is not known how many are read, the first ones. What is dealt a second time is not chosen.

        >>> from torch.utils.data import DataLoader
        >>> DealtSamples(DataLoader(range(10))).chosen(torch.arange(10), samples=4).nonzero().flatten()
        tensor([0, 3, 6, 7])
        """
        if self.size is None:
            return places < samples
        number = min(samples, self.size)
        edges = torch.arange(number + 1) * self.size // number
        # One in each interval, and in turn for two, four or more processes, which get every second, fourth, ... sample.
        turns = 2 ** edges.diff().double().log2().floor().long()
        return torch.isin(places, edges[:-1] + (torch.arange(number) - edges[:-1]) % turns)

    def batches(self, samples: int) -> int | None:
        """How many batches of this process hold some of those :meth:`chosen`; None if that is not known."""
        if self._batch_size is None:
            return None
        if self.size is None:
            return -(-samples // (self._batch_size * self.processes))
        own = torch.arange(self.first, self.size, self.processes)
        return len(set((self.chosen(own, samples).nonzero().flatten() // self._batch_size).tolist()))


def evaluation_loaders(trainer: Trainer) -> list[Any]:
    """The loaders that the running validation or test reads, in the order of their numbers."""
    loaders = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
    return list(CombinedLoader(loaders).flattened)
