# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Data sets of named modalities, and the data module that serves them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sized
from typing import Any, ClassVar, Generic

from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from typing_extensions import TypeVar

from lightning_crmt.checks import check_at_least, check_batch, describe
from lightning_crmt.modality import Inputs

#: What a data module makes its parts of; any data set, where it does not say.
Part = TypeVar("Part", bound=Dataset[Any], default=Dataset[Any])


class MultimodalDataset(Dataset[tuple[dict[str, Tensor], Tensor]]):
    """Samples ``({m: x^m}, y)`` from tensors that hold all of them; a slice gives a batch.

    Args:
        inputs: one tensor per modality, ``(N, ...)``, and context, such as ``"audio.present"``, ``(N,)`` or more.
        target: class of each sample, ``(N,)``, or its labels or probabilities of classes, ``(N, K)``.

    Raises:
        TypeError: if an input is not a tensor.
        ValueError: if the tensors differ in their number of samples, or hold none.

    >>> import torch
    >>> data = MultimodalDataset({"audio": torch.zeros(3, 5), "image": torch.zeros(3, 2, 2)}, torch.tensor([0, 1, 0]))
    >>> len(data), data[1][0]["image"].shape, data[1][1]
    (3, torch.Size([2, 2]), tensor(1))
    """

    def __init__(self, inputs: Inputs, target: Tensor) -> None:
        size = check_batch("inputs", inputs)
        if target.dim() not in (1, 2) or len(target) != size:
            raise ValueError(f"`target` must have shape ({size},), or ({size}, K) for labels, got {describe(target)}")
        self.inputs = dict(inputs)
        self.target = target

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, index: int | slice) -> tuple[dict[str, Tensor], Tensor]:
        return {name: value[index] for name, value in self.inputs.items()}, self.target[index]


class EpochShuffle(DistributedSampler[Any]):
    """A new order each epoch, given by the seed and the epoch alone, so that a resumed run continues in it.

    Lightning calls ``set_epoch`` before each epoch, and under DDP leaves a ``DistributedSampler`` as it is.

    Args:
        data: the samples, of which only the number matters.
        seed: decides the order.
        processes: how many processes share an epoch.
        rank: which of them this is.

    >>> shuffle = EpochShuffle(range(5), seed=0)
    >>> shuffle.set_epoch(7)
    >>> sorted(shuffle)
    [0, 1, 2, 3, 4]
    """

    def __init__(self, data: Dataset[Any], seed: int, *, processes: int = 1, rank: int = 0) -> None:
        super().__init__(data, num_replicas=processes, rank=rank, seed=seed * 1_000_003)


class _LateLoader(DataLoader[Any]):
    """A loader whose workers start to load only when the first batch is requested.

    In a resumed fit Lightning takes the iterator before it tells the sampler which epoch it is.
    """

    def __iter__(self) -> Any:
        yield from super().__iter__()


class MultimodalDataModule(LightningDataModule, ABC, Generic[Part]):
    """Serves batches ``({m: (B, ...)}, target)`` of a training, a validation and a test part.

    A subclass makes the parts in ``load``; if its constructor passes ``**settings`` on to this one, they are on the
    command line too. The order of training samples depends on ``seed`` and the epoch alone.

    Args:
        batch_size: samples per batch and process.
        num_workers: worker processes per loader; 0 loads in the main process, which is fastest for data in memory.
        seed: decides the split, where the data set has no official one, and the order of training samples.

    Raises:
        ValueError: if a setting is out of range.

    >>> import torch
    >>> class Random(MultimodalDataModule):
    ...     def load(self):
    ...         part = MultimodalDataset({"audio": torch.rand(8, 5), "image": torch.rand(8, 3)}, torch.arange(8) % 2)
    ...         return {"train": part, "val": part, "test": part}
    >>> data = Random(batch_size=4)
    >>> data.setup()
    >>> inputs, target = next(iter(data.train_dataloader()))
    >>> inputs["audio"].shape
    torch.Size([4, 5])
    """

    #: Makes a batch of samples, where they are not tensors of one shape: a function for ``DataLoader(collate_fn=...)``
    #: such as :func:`~lightning_crmt.data.collate_samples` with its settings; a class holds it as a ``staticmethod``.
    collate: Callable[[Any], Any] | None = None

    _sampler: ClassVar[type[EpochShuffle]] = EpochShuffle

    def __init__(self, *, batch_size: int = 64, num_workers: int = 0, seed: int = 0) -> None:
        super().__init__()
        check_at_least(1, batch_size=batch_size)
        check_at_least(0, num_workers=num_workers, seed=seed)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self._parts: Mapping[str, Part] = {}

    @abstractmethod
    def load(self) -> Mapping[str, Part]:
        """The parts ``train``, ``val`` and ``test``, each of samples ``({m: x^m}, y)``; ``val`` may be left out."""

    @property
    def parts(self) -> Mapping[str, Part]:
        """The parts by name, loaded when they are first asked for."""
        if not self._parts:
            self.setup()
        return self._parts

    def setup(self, stage: str | None = None) -> None:
        """Load the parts, once."""
        if not self._parts:
            self._parts = self.load()

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled batches."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Batches in order; none if there is no such part."""
        return self._loader("val") if "val" in self.parts else []

    def test_dataloader(self) -> DataLoader[Any]:
        """Batches in order."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """The test batches, with targets."""
        return self._loader("test")

    def _loader(self, name: str, shuffle: bool = False) -> DataLoader[Any]:
        if name not in self.parts:
            raise ValueError(f"`load` must give the part {name!r}, got {list(self.parts)}")
        part, sampler, trainer = self.parts[name], None, self.trainer
        if shuffle and isinstance(part, Sized):
            processes, rank = (1, 0) if trainer is None else (trainer.world_size, trainer.global_rank)
            sampler = self._sampler(part, self.seed, processes=processes, rank=rank)
        return _LateLoader(
            part,
            batch_size=self.batch_size,
            sampler=sampler,
            collate_fn=self.collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=trainer is not None and trainer.strategy.root_device.type == "cuda",
        )
