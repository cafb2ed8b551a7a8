# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Data sets of named modalities, and the data module that serves them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from lightning_crmt.checks import check_batch, describe
from lightning_crmt.modality import Inputs


class MultimodalDataset(Dataset[tuple[dict[str, Tensor], Tensor]]):
    """Samples ``({m: x^m}, y)`` from tensors that hold all of them.

    Args:
        inputs: one tensor per modality, the samples first.
        target: class of each sample, ``(N,)``.

    >>> data = MultimodalDataset({"audio": torch.zeros(3, 5), "image": torch.zeros(3, 2, 2)}, torch.tensor([0, 1, 0]))
    >>> len(data), data[1][0]["image"].shape, data[1][1]
    (3, torch.Size([2, 2]), tensor(1))
    """

    def __init__(self, inputs: Inputs, target: Tensor) -> None:
        size = check_batch("inputs", inputs)
        if target.shape != (size,):
            raise ValueError(f"`target` must have shape ({size},), one class per sample, got {describe(target)}")
        self.inputs = dict(inputs)
        self.target = target

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], Tensor]:
        return {name: value[index] for name, value in self.inputs.items()}, self.target[index]


def chosen(argument: str, given: str | Sequence[str], known: Iterable[str]) -> tuple[str, ...]:
    """Names that were chosen, one or several.

    Args:
        argument: what they were given as, for the message.
        given: the names.
        known: those there are.

    Raises:
        ValueError: if none is given, or one twice, or one that is not known.

    >>> chosen("modalities", "audio", ["audio", "image"])
    ('audio',)
    """
    names = (given,) if isinstance(given, str) else tuple(given)
    if not names or len(set(names)) != len(names) or not set(names) <= set(known):
        raise ValueError(f"`{argument}` must be different names among {list(known)}, got {names}")
    return names


class EpochShuffle(Sampler[int]):
    """A new order each epoch that depends on the seed and the epoch alone, so that a resumed run goes on with it.

    Lightning calls ``set_epoch`` on the sampler of a training loader before each epoch.
    """

    def __init__(self, data: Sized, seed: int) -> None:
        self.data = data
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        yield from torch.randperm(len(self.data), generator=generator).tolist()

    def __len__(self) -> int:
        return len(self.data)


class _LateLoader(DataLoader[Any]):
    """Asks its workers for nothing before the first batch is asked of it.

    In a resumed fit Lightning takes the iterator before it tells the sampler which epoch it is.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        yield from super().__iter__()


class MultimodalDataModule(LightningDataModule, ABC):
    """Serves batches ``({m: (B, ...)}, target)`` of a training, a validation and a test part.

    A subclass makes the parts in ``load``. The order of training samples depends on ``seed`` and the epoch alone.

    Args:
        batch_size: samples per batch and process.
        num_workers: worker processes per loader; 0 loads in the main process, which is fastest for data in memory.
        seed: decides the split, where the data set has no official one, and the order of training samples.

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

    def __init__(self, batch_size: int = 64, num_workers: int = 0, seed: int = 0) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}")
        if num_workers < 0:
            raise ValueError(f"`num_workers` must be at least 0, got {num_workers}")
        if seed < 0:
            raise ValueError(f"`seed` must be at least 0, got {seed}")
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.parts: dict[str, Dataset[Any]] = {}

    @abstractmethod
    def load(self) -> dict[str, Dataset[Any]]:
        """The parts ``train``, ``val`` and ``test``, each of samples ``({m: x^m}, y)``; ``val`` may be left out."""

    def setup(self, stage: str | None = None) -> None:
        """Load the parts, once."""
        if not self.parts:
            self.parts = self.load()

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled batches."""
        part = self._all_parts().get("train")
        return self._loader("train", sampler=EpochShuffle(part, self.seed) if isinstance(part, Sized) else None)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Batches in order; none if there is no such part."""
        return self._loader("val") if "val" in self._all_parts() else []

    def test_dataloader(self) -> DataLoader[Any]:
        """Batches in order."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """The test batches, with targets."""
        return self._loader("test")

    def _all_parts(self) -> dict[str, Dataset[Any]]:
        self.setup()
        return self.parts

    def _loader(self, part: str, sampler: Sampler[Any] | None = None) -> DataLoader[Any]:
        parts = self._all_parts()
        if part not in parts:
            raise ValueError(f"`load` must give the part {part!r}, got {list(parts)}")
        return _LateLoader(
            parts[part],
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )
