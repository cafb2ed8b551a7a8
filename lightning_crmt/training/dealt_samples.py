# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Which samples of a data set the batches of a loader hold, also where several processes share them out."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor
from torch.utils.data import DistributedSampler


class DealtSamples:
    """Counts the samples of one evaluation loader, and tells the place of each in the data set.

    ``DistributedSampler`` deals samples out in turn, and some twice at the end, to even out the processes. Loaders that
    share in another way, or shuffle, are taken as if each process read a data set of its own, in order.

    Args:
        loader: of this process.

    >>> dealt = DealtSamples([])
    >>> dealt.places(3), dealt.places(2)
    (tensor([0, 1, 2]), tensor([3, 4]))
    """

    def __init__(self, loader: Any) -> None:
        sampler = getattr(loader, "sampler", None)
        dealt = sampler if isinstance(sampler, DistributedSampler) and not sampler.shuffle else None
        self.processes = 1 if dealt is None else dealt.num_replicas
        self.first = 0 if dealt is None else dealt.rank
        #: How many samples there are; None where a loader need not be asked, as it reads none twice.
        self.size = len(dealt.dataset) if dealt is not None and isinstance(dealt.dataset, Sized) else None
        size = getattr(loader, "batch_size", None)
        self._batch_size = size if isinstance(size, int) else None
        self._seen = 0

    def places(self, count: int) -> Tensor:
        """Those of the next ``count`` samples of this process, ``(count,)``; ``size`` or more where dealt again."""
        here = torch.arange(self._seen, self._seen + count)
        self._seen += count
        return self.first + self.processes * here

    def batches(self, samples: int) -> int | None:
        """How many batches of each process hold the first ``samples`` of the data set; None if that is not known."""
        return None if self._batch_size is None else -(-samples // (self._batch_size * self.processes))


def evaluation_loaders(trainer: Trainer) -> list[Any]:
    """The loaders that the running validation or test reads, in the order of their numbers."""
    loaders = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
    return list(CombinedLoader(loaders).flattened)
