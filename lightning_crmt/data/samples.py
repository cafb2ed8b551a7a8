# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Data of one's own as the parts of a data module: split, scaled, and read when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from torch import Tensor
from torch.utils.data import Dataset

from lightning_crmt.data.collate import collate_samples
from lightning_crmt.data.read.columns import Column
from lightning_crmt.data.read.scaling import fitted_scale

#: A batch of samples, made of single ones.
Collate = Callable[[Sequence[Any]], Any]


class ColumnDataset(Dataset[tuple[dict[str, Any], Tensor]]):
    """Samples ``({modality: value or None}, y)`` of columns, which ``collate`` makes batches of.

    A slice gives a batch, as it does of :class:`~lightning_crmt.data.MultimodalDataset`.

    Args:
        columns: all samples of each modality.
        context: what else samples say, by names with a dot, ``(N, ...)``.
        target: the class of each sample, ``(N,)``.
        rows: the samples of this part, in this order.
        collate: makes a batch of samples.
    """

    def __init__(
        self,
        columns: Mapping[str, Column],
        context: Mapping[str, Sequence[Any]],
        target: Tensor,
        rows: Tensor,
        collate: Collate,
    ) -> None:
        self.columns = columns
        self.context = context
        self.target = target[rows]
        self.rows = rows
        self.collate = collate

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return self.collate([self[place] for place in range(*index.indices(len(self)))])
        row = int(self.rows[index])
        inputs: dict[str, Any] = {name: column[row] for name, column in self.columns.items()}
        for name, values in self.context.items():
            inputs[name] = values[row]
        return inputs, self.target[index]


def collate_for(
    columns: Mapping[str, Column], context: Collection[str], masked: Collection[str] | None, padding_id: int
) -> Collate:
    """What makes batches of samples of these columns; the same entries in each.

    Args:
        columns: all samples of each modality.
        context: names of what else samples say.
        masked: ragged modalities that get a mask; None for all.
        padding_id: the token that fills gaps.
    """
    ragged = [name for name, column in columns.items() if column.ragged]
    return partial(
        collate_samples,
        names=[*columns, *context],
        optional={name: torch.zeros_like(column.example) for name, column in columns.items() if column.optional},
        ragged=ragged,
        masked=ragged if masked is None else [name for name in ragged if name in masked],
        padding_id=padding_id,
    )


def check_presence(columns: Mapping[str, Column], train: Tensor) -> None:
    """Refuse samples that have no modality at all, and modalities that no sample of the training part has.

    Args:
        columns: all samples of each modality.
        train: rows of the training part.

    Raises:
        ValueError: naming the first of them.
    """
    for name, column in columns.items():
        if not column.present[train].any():
            raise ValueError(f"some training sample must have {name!r}, got none in {len(train)}")
    absent = ~torch.stack([column.present for column in columns.values()]).any(0)
    if absent.any():
        row, column = int(absent.nonzero()[0]), next(iter(columns.values()))
        where = f"sample {row}" if column.where is None else column.where(row)
        raise ValueError(f"every sample must have a modality, got none in {int(absent.sum())}; the first is {where}")


def fit_scales(
    columns: Iterable[Column], train: Tensor, channels_last: Collection[str] = (), norm: float | None = None
) -> None:
    """Give columns the scale that standardises what is present of them in the training part.

    Each feature of a vector, and each channel of what has more dimensions, gets a mean and a deviation: the first
    dimension of a sample, or the last of those that are ragged or in ``channels_last``; all of a ragged waveform, which
    has one dimension, shares them.

    Args:
        columns: of real numbers.
        train: rows of the training part.
        channels_last: modalities whose channels are in the last dimension.
        norm: root of the mean squared norm that samples of the training part get.
    """
    for column in columns:
        last = column.ragged or column.name in channels_last
        channel = None if column.ragged and column.example.dim() == 1 else -1 if last else 0
        rows = train[column.present[train]].tolist()
        column.scale = fitted_scale(map(column.raw, shown(rows, f"Mean and deviation of {column.name}")), channel, norm)


def shown(rows: Sequence[int], description: str) -> Iterable[int]:
    """The rows, under a bar that vanishes at the end, if it takes more than a few seconds."""
    bar: Iterable[int] = Tqdm(rows, description, leave=False, delay=5)
    return bar
