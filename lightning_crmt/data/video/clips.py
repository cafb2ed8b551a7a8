# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Prepared clips as samples: frames, flow and spectrograms read from their files."""

from __future__ import annotations

import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler
from typing_extensions import override

from lightning_crmt.data.video.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Look,
    frame_at,
    middle,
    random_look,
    read_jpeg,
    stack_at,
)


class Draw(NamedTuple):
    """An index of a training sample, and the epoch that its augmentation is drawn for."""

    sample: int
    epoch: int


class EpochDraws(DistributedSampler[Any]):
    """A new order of draws each epoch, which depends on the seed and the epoch alone; each process has its share.

    The epoch travels with the index: the copy of the data set that a worker process keeps does not learn of it in any
    other way. It is a ``DistributedSampler`` so that Lightning leaves it in its place under DDP.

    Args:
        data: what is drawn from.
        seed: of the order.
        processes: number of processes.
        rank: which of them this is.

    >>> sampler = EpochDraws(range(4), seed=0)
    >>> sampler.set_epoch(7)
    >>> sorted(sampler)
    [Draw(sample=0, epoch=7), Draw(sample=1, epoch=7), Draw(sample=2, epoch=7), Draw(sample=3, epoch=7)]
    """

    def __init__(self, data: Sized, seed: int, processes: int = 1, rank: int = 0) -> None:
        super().__init__(data, num_replicas=processes, rank=rank, shuffle=True, seed=seed * 1_000_003)  # type: ignore[arg-type]

    @override
    def __iter__(self) -> Iterator[Draw]:
        epoch = self.epoch
        return (Draw(index, epoch) for index in super().__iter__())


class Reader(ABC):
    """Reads one modality of a clip.

    Attributes:
        suffix: what the name of a clip's file ends in; empty for a folder.
    """

    suffix = ""

    @abstractmethod
    def __call__(self, folder: Path, clip: str, look: Look) -> Tensor:
        """The input that the model gets."""


class Frames(Reader):
    """RGB frames at the moments of a look, ``(moments, 3, size, size)``, normalised as ImageNet.

    Args:
        size: height and width.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"`size` must be at least 1, got {size}")
        self.size = size
        self.mean, self.std = (torch.tensor(each)[:, None, None] for each in (IMAGENET_MEAN, IMAGENET_STD))

    @override
    def __call__(self, folder: Path, clip: str, look: Look) -> Tensor:
        files = _pictures(folder / clip)
        chosen = [files[frame_at(moment, len(files))] for moment in look.moments]
        pixels = torch.stack([read_jpeg(path, "RGB", look, self.size) for path in chosen])
        return pixels.float().div_(255).sub_(self.mean).div_(self.std)


class Flow(Reader):
    r"""Optical flow around the moments of a look, ``(moments, 2 length, size, size)``: successive pairs (u, v).

    A grey value g stands for :math:`(g - 128) / 127.5 \cdot \mathrm{bound}` pixels from one frame of the video to the
    next. The channels are these displacements divided by ``std``. In a mirrored clip what moved left moves right: u
    changes its sign.

    Args:
        size: height and width.
        length: successive pairs at each moment.
        std: what a displacement is divided by, in pixels.
        bound: the displacement, in pixels, that the grey values end at.
    """

    def __init__(self, size: int, length: int = 10, std: float = 3.0, bound: float = 20.0) -> None:
        if min(size, length) < 1:
            raise ValueError(f"`size` and the length of a stack of flow must be at least 1, got {size} and {length}")
        if not (math.isfinite(std) and std > 0):
            raise ValueError(f"the deviation of the flow must be above 0, got {std}")
        if not (math.isfinite(bound) and bound > 0):
            raise ValueError(f"the bound of the flow must be above 0 and finite, got {bound}")
        self.size = size
        self.length = length
        self.std = std
        self.bound = bound

    @override
    def __call__(self, folder: Path, clip: str, look: Look) -> Tensor:
        us, vs = _pictures(folder / clip / "u"), _pictures(folder / clip / "v")
        if len(us) != len(vs):
            raise RuntimeError(
                f"{folder / clip} must hold as many pictures of u as of v, got {len(us)} and {len(vs)}: "
                "delete the folder and prepare it again"
            )
        stacks = []
        for moment in look.moments:
            pairs = [path for i in stack_at(moment, len(us), self.length) for path in (us[i], vs[i])]
            stacks.append(torch.cat([read_jpeg(path, "L", look, self.size) for path in pairs]))
        pixels = torch.stack(stacks).float().sub_(128).mul_(self.bound / 127.5).div_(self.std)
        if look.mirrored:
            pixels[:, ::2].neg_()
        return pixels


class Spectrogram(Reader):
    r"""A log-mel spectrogram, ``(1, frames, 128)``: cut or padded with zeros, then :math:`(x - \mu) / 2 \sigma`.

    Padding comes first, as in the audio models that this scaling is from (Gong et al., Interspeech 2021).

    Args:
        mean: :math:`\mu`.
        std: :math:`\sigma`.
        frames: length.
    """

    suffix = ".npy"
    bands = 128

    def __init__(self, mean: float, std: float, frames: int = 1024) -> None:
        if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
            raise ValueError(f"the mean of the energies must be finite and their deviation above 0, got {mean}, {std}")
        self.mean = mean
        self.std = std
        self.frames = frames

    @override
    def __call__(self, folder: Path, clip: str, look: Look) -> Tensor:
        path = folder / f"{clip}{self.suffix}"
        energies = torch.zeros(self.frames, self.bands)
        try:
            stored = np.load(path, mmap_mode="r")  # so that what is longer than needed is not read
            if stored.ndim != 2 or stored.shape[1] != self.bands or not stored.shape[0]:
                raise ValueError(f"expected shape (T, {self.bands}), got {stored.shape}")
            found = torch.from_numpy(np.array(stored[: self.frames], dtype=np.float32))
            if not found.isfinite().all():
                raise ValueError("it holds NaN or Inf")
        except (OSError, ValueError, TypeError, EOFError) as error:
            raise RuntimeError(f"{path} cannot be used ({error}): delete it and prepare it again") from error
        energies[: len(found)] = found
        return energies[None].sub_(self.mean).div_(2 * self.std)


class ClipDataset(Dataset[tuple[dict[str, Tensor], Tensor]]):
    """Samples ``({m: x^m}, y)`` of prepared clips.

    A plain index gives the clip as evaluation sees it. A :class:`Draw` gives it augmented: the same clip, epoch and
    seed give the same sample, in whatever process and order.

    Args:
        clips: names of the clips, see :mod:`lightning_crmt.data.video.lists`.
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


def _pictures(folder: Path) -> list[Path]:
    """The pictures of a folder in order: of their numbers, if that is all their names differ in."""
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".jpg"))
    except OSError as error:
        raise RuntimeError(f"{folder} cannot be read ({error}): prepare its clip again") from error
    if not names:
        raise RuntimeError(
            f"{folder} must hold pictures (*.jpg), got none: delete the folder of its clip and prepare it again"
        )
    if all(matches := [re.fullmatch(r"([^.]*?)(\d+)\.jpg", name) for name in names]):
        parts = sorted((match[1], int(match[2]), match[0]) for match in matches if match)
        if parts[0][0] == parts[-1][0]:
            names = [name for _, _, name in parts]
            _check_numbers(folder, names)
    return [folder / name for name in names]


def _check_numbers(folder: Path, names: Sequence[str]) -> None:
    """Refuse gaps in pictures named as ``prepare`` names them, from 000001 on; others may number as they like."""
    if names[0] != "000001.jpg" or not all(re.fullmatch(r"\d{6}\.jpg", name) for name in names):
        return
    expected = [f"{number:06d}.jpg" for number in range(1, len(names) + 1)]
    if missing := next((name for name, found in zip(expected, names, strict=True) if name != found), None):
        raise RuntimeError(
            f"{folder} must hold every picture up to {names[-1]}, got no {missing}: delete the folder of its clip and "
            "prepare it again"
        )
