# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""One pass over the training data from within a callback, apart from the Trainer's own loader."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
)

from lightning_crmt.checks import describe
from lightning_crmt.data import EpochShuffle
from lightning_crmt.frozen_eval import frozen_eval
from lightning_crmt.mixin import CRMTMixin
from lightning_crmt.modality import Inputs
from lightning_crmt.training.progress import ProgressBar


class TrainingPass:
    """The training data once, in order, each rank its share, on the rank's device, under a progress bar.

    Never iterates the Trainer's own loader: with persistent workers the current epoch would lose batches. The
    loader is built anew from the data set and loads in the main process, so that no random state is drawn from workers.
    Under DDP samples may repeat to even out the ranks, which does not change a maximum.

    Args:
        trainer: the running Trainer.
        dataloader: batches to use instead of the training data; every rank reads all of them.

    Raises:
        TypeError: without ``dataloader``, if the training loader cannot be built anew to read each sample once.

    >>> from lightning_crmt import CRMTModule
    >>> from lightning_crmt.encoders import MLP
    >>> trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    >>> model, x = CRMTModule({"audio": MLP(3, 2)}, num_classes=2), {"audio": torch.zeros(4, 3)}
    >>> data = TrainingPass(trainer, dataloader=[(x, torch.zeros(4).long()), (x, torch.ones(4).long())])
    >>> with data.samples(model, "Counting") as samples:
    ...     sum(len(target) for inputs, target in samples), model.training
    (8, False)
    """

    def __init__(self, trainer: Trainer, dataloader: Iterable[Any] | None = None) -> None:
        self.trainer = trainer
        self._shared = dataloader is None
        if dataloader is None:
            dataloader = in_order(trainer.train_dataloader, trainer.world_size, trainer.global_rank)
        self.loader = dataloader
        limited = getattr(trainer, "fast_dev_run", False) or trainer.limit_train_batches != 1.0
        self.limit = int(trainer.num_training_batches) if limited else None

    def batches(self, description: str) -> Iterator[Any]:
        """Batches on the rank's device, under a bar that vanishes at the end; no bar where the Trainer has none."""
        total = self.limit
        if total is None and isinstance(self.loader, Sized) and not _is_stream(self.loader):
            total = len(self.loader)
        with ProgressBar(self.trainer, description, total) as progress:
            for batch in islice(self.loader, self.limit):
                # As Lightning's own loop does: to the precision of the parameters, then to the device.
                batch = self.trainer.precision_plugin.convert_input(batch)
                yield self.trainer.strategy.batch_to_device(batch)
                progress.update()

    @property
    def size(self) -> int | None:
        """How many samples there are, over all processes; None where the data do not say."""
        dataset = getattr(self.loader, "dataset", None)
        return len(dataset) if isinstance(dataset, Sized) and not _is_stream(self.loader) else None

    def gathered(self, rows: Tensor, passes: int = 1) -> Tensor:
        """Rows of the samples of all processes, ``(N, ...)``, which must call this together; each sample once.

        In the order of the data set where it has one, else process after process.

        Args:
            rows: of the samples that this process saw, ``(n, ...)``, on the CPU.
            passes: how many passes over the data they are of.
        """
        if self.trainer.world_size == 1 or not self._shared:
            return rows
        strategy = self.trainer.strategy
        lengths = strategy.all_gather(torch.tensor([len(rows)], device=strategy.root_device)).flatten().tolist()
        padding = rows.new_zeros(max(lengths) - len(rows), *rows.shape[1:])
        parts: Tensor = strategy.all_gather(torch.cat([rows, padding]).to(strategy.root_device)).cpu()
        if self.size is None:
            return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])
        # The sampler deals samples out in turn, and some twice at the end of a pass, to even out the processes.
        dealt = parts.reshape(len(parts), passes, -1, *rows.shape[1:]).movedim(0, 2).flatten(1, 2)
        return dealt[:, : self.size].flatten(0, 1)

    def largest(self, value: Tensor) -> Tensor:
        """The elementwise maximum over all processes, which must call this together."""
        largest: Tensor = self.trainer.strategy.reduce(value, reduce_op="max")
        return largest.to(value)

    @contextmanager
    def samples(self, module: CRMTMixin, description: str) -> Iterator[Iterator[tuple[Inputs, Tensor]]]:
        """Inputs and checked target of each batch, of the samples that count, if there are any.

        Inside, the module is frozen and in evaluation mode, without gradients.

        The pass leaves no trace in any random state, as loaders draw a seed, and augmentations draw what they like.
        """
        with isolate_rng(), frozen_eval(module), torch.no_grad():
            counted = map(module.counted_batch, self.batches(description))
            yield ((inputs, target) for inputs, target in counted if len(target) > 0)


class ValidationPass(TrainingPass):
    """The first validation loader of the fit, up to the Trainer's ``limit_val_batches``.

    Args:
        trainer: the running Trainer, whose validation loaders are set up.
    """

    def __init__(self, trainer: Trainer) -> None:
        loaders, limit = trainer.val_dataloaders, trainer.num_val_batches[0]
        if isinstance(loaders, Mapping):
            loaders = list(loaders.values())
        super().__init__(trainer, loaders[0] if isinstance(loaders, list | tuple) else loaders)
        self.limit = int(limit) if math.isfinite(limit) else None


#: Samplers that pass over every sample.
_ALL_SAMPLES = (SequentialSampler, RandomSampler, DistributedSampler, EpochShuffle)


def in_order(loader: object, ranks: int = 1, rank: int = 0) -> DataLoader[Any]:
    """A copy of a loader for training that passes over its samples in order, each once, in the main process.

    Args:
        loader: a single ``DataLoader`` of the training data.
        ranks: processes that share the samples; they repeat some to have equally many.
        rank: this process.

    Raises:
        TypeError: if it cannot be told which samples the loader is about.

    >>> loader = DataLoader([1, 2, 3, 4, 5], batch_size=2, shuffle=True, drop_last=True)
    >>> [batch.tolist() for batch in in_order(loader)]
    [[1, 2], [3, 4], [5]]
    """
    begins, ends = "a pass over the training data", "pass `dataloader=` with batches like those of training"
    if not isinstance(loader, DataLoader):
        raise TypeError(f"{begins} can rebuild a single DataLoader for training, got {describe(loader)}; {ends}")
    dataset: Dataset[Any] = loader.dataset
    if isinstance(loader.sampler, SubsetRandomSampler):
        dataset = Subset(dataset, list(loader.sampler.indices))
    elif not isinstance(loader.sampler, _ALL_SAMPLES) and not isinstance(dataset, IterableDataset):
        kind = type(loader.sampler).__name__
        raise TypeError(f"{begins} cannot know which samples a {kind} leaves out; {ends}")
    sampler: Sampler[int] | None = None
    if ranks > 1 and not isinstance(dataset, IterableDataset):
        sampler = DistributedSampler(dataset, num_replicas=ranks, rank=rank, shuffle=False, drop_last=False)
    if loader.batch_sampler is not None and not hasattr(loader.batch_sampler, "batch_size"):
        raise TypeError(f"{begins} cannot rebuild a {type(loader.batch_sampler).__name__}; {ends}")
    batch_size = getattr(loader.batch_sampler, "batch_size", None)  # None: the data set yields whole batches
    return DataLoader(dataset, batch_size=batch_size, sampler=sampler, collate_fn=loader.collate_fn)


def _is_stream(loader: object) -> bool:
    return isinstance(loader, DataLoader) and isinstance(loader.dataset, IterableDataset)
