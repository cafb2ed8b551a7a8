# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Prepared clips as samples, and how they are drawn for training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import override

from lightning_crmt.data.module import EpochShuffle
from lightning_crmt.data.read.looks import Reader, middle, random_look


class Draw(NamedTuple):
    """An index of a training sample, and the epoch that its augmentation is drawn for."""

    sample: int
    epoch: int


class EpochDraws(EpochShuffle):
    """``EpochShuffle`` of draws instead of indices.

    The epoch travels with the index: the copy of the data set that a worker process keeps does not learn of it in any
    other way.

    >>> sampler = EpochDraws(range(4), seed=0)
    >>> sampler.set_epoch(7)
    >>> sorted(sampler)
    [Draw(sample=0, epoch=7), Draw(sample=1, epoch=7), Draw(sample=2, epoch=7), Draw(sample=3, epoch=7)]
    """

    @override
    def __iter__(self) -> Iterator[Draw]:
        epoch = self.epoch
        return (Draw(index, epoch) for index in super().__iter__())


class ClipDataset(Dataset[tuple[dict[str, Tensor], Tensor]]):
    """Samples ``({m: x^m}, y)`` of prepared clips.

    A plain index gives the clip as evaluation sees it. A :class:`Draw` gives it augmented: the same clip, epoch and
    seed give the same sample, in whatever process and order.

    Args:
        clips: names of the clips: path below the folder, without suffix.
        target: class of each.
        folders: where the files of each modality are.
        readers: how each modality is read.
        moments: number of moments that frames are taken at.
        seed: of the augmentation.
    """

    def __init__(
        self,
        clips: Sequence[str],
        target: Sequence[int],
        folders: Mapping[str, Path],
        readers: Mapping[str, Reader],
        moments: int = 3,
        seed: int = 0,
    ) -> None:
        self.clips = list(clips)
        self.target = torch.tensor(target, dtype=torch.long)
        self.folders = dict(folders)
        self.readers = dict(readers)
        self.moments = moments
        self.seed = seed

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int | Draw) -> tuple[dict[str, Tensor], Tensor]:
        look = middle(self.moments)
        if isinstance(index, Draw):
            look = random_look(self.moments, (self.seed, index.epoch, index.sample))
            index = index.sample
        clip = self.clips[index]
        inputs = {name: reader(self.folders[name], clip, look) for name, reader in self.readers.items()}
        return inputs, self.target[index]
