# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Prepared clips as samples, and what their data modules share."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import override

from lightning_crmt.checks import check_at_least
from lightning_crmt.data.module import EpochShuffle, MultimodalDataModule
from lightning_crmt.data.read.frames import FrameReader, pillow
from lightning_crmt.data.read.looks import Reader, middle, random_look
from lightning_crmt.data.video.lists import Listed, entries, few, hold_out, look_up, restrict

#: A folder below the root, or one for each part.
Folder: TypeAlias = str | Mapping[str, str]


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


@dataclass(eq=False)
class ClipDataset(Dataset[tuple[dict[str, Tensor], Tensor]]):
    """Samples ``({m: x^m}, y)`` of prepared clips.

    A plain index gives the clip as evaluation sees it. A :class:`Draw` gives it augmented: the same clip, epoch and
    seed give the same sample, in whatever process and order.

    Args:
        clips: names of the clips: path below the folder of each modality, without suffix.
        target: class of each, ``(N,)``.
        readers: how and where each modality is read.
        moments: number of moments that frames are taken at.
        seed: of the augmentation.
    """

    clips: Sequence[str]
    target: Tensor
    readers: Mapping[str, Reader]
    moments: int = 3
    seed: int = 0

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int | Draw) -> tuple[dict[str, Tensor], Tensor]:
        look = middle(self.moments)
        if isinstance(index, Draw):
            look = random_look(self.moments, (self.seed, index.epoch, index.sample))
            index = index.sample
        inputs = {name: reader(self.clips[index], look) for name, reader in self.readers.items()}
        return inputs, self.target[index]


class ClipDataModule(MultimodalDataModule):
    """Serves prepared clips: the modality ``image`` from their frames, and those that a subclass adds.

    Clips that are listed and not on the disk are left out, with one warning; ``missing`` holds their names by part.
    Training samples are augmented. The order, and how a clip is augmented, depend on ``seed``, the epoch and the clip
    alone: not on the number of workers, nor on whether the run was resumed.

    Args:
        root: the prepared folder.
        frames: folder of the frames below ``root``; by part where each part has its own.
        val_share: share of the training part for validation, where there is no validation part; 0 for none.
        classes: names of some of the classes, to have fewer; all by default.
        size: height and width of frames, and of what else has a height and a width.
        moments: number of frames, or stacks of flow, of a sample.
        num_workers: worker processes per loader; pictures are decoded in them.
        **loading: ``batch_size`` and ``seed``, see ``MultimodalDataModule``; ``seed`` decides the augmentation too.

    Raises:
        ValueError: if an argument is out of range; on ``setup``, if a class has no clips, or clips are in two parts.
        FileNotFoundError: on ``setup``, if a folder or a list is missing.
    """

    _sampler = EpochDraws

    def __init__(
        self,
        root: str,
        *,
        frames: Folder = "frames",
        val_share: float = 0.1,
        classes: Sequence[str] | None = None,
        size: int = 224,
        moments: int = 3,
        num_workers: int = 4,
        **loading: Any,
    ) -> None:
        super().__init__(num_workers=num_workers, **loading)
        check_at_least(1, moments=moments)
        if not 0 <= val_share < 1:
            raise ValueError(f"`val_share` must be at least 0 and below 1, got {val_share}")
        if classes is not None and (not classes or len(set(classes)) != len(classes)):
            raise ValueError(f"`classes` must be different names, got {list(classes)}")
        self.root = Path(root)
        self.size = size
        self.folders: dict[str, Folder] = {"image": frames}
        self.readers: dict[str, Reader] = {"image": FrameReader(size)}
        self.val_share = val_share
        self.moments = moments
        self.chosen_classes = classes
        #: Names of the classes, by label; filled by ``setup``.
        self.classes: list[str] = []
        #: Clips that are listed and not on the disk, by part; filled by ``setup``.
        self.missing: dict[str, list[str]] = {}

    @abstractmethod
    def all_classes(self) -> Sequence[str]:
        """Names of the classes to choose from, by label."""

    @abstractmethod
    def listed(self) -> dict[str, list[Listed]]:
        """All clips of ``train``, ``test`` and, if the data set has one of its own, ``val``; may rename ``classes``."""

    @property
    def num_classes(self) -> int:
        """Number of classes; may read their list."""
        return len(self.chosen_classes or self.all_classes())

    @property
    def how_to_prepare(self) -> str:
        """The command that makes what is read here, for messages."""
        kinds = " ".join(reader.kind for reader in self.readers.values())
        return f"`lightning-crmt prepare VIDEOS {self.root} --kinds {kinds}` makes it from videos"

    @override
    def load(self) -> dict[str, Dataset[Any]]:
        """Read the lists, split, and look for the files."""
        pillow()  # so that it is missing now and not in the workers
        if not self.root.is_dir():
            raise FileNotFoundError(f"there is no folder `root` = {self.root}: {self.how_to_prepare}")
        known = self.all_classes()
        self.classes = list(self.chosen_classes or known)
        if not set(self.classes) <= set(known):
            raise ValueError(f"`classes` must be different names among {few(known)}, got {self.classes}")
        listed = {part: restrict(clips, self.classes) for part, clips in self.listed().items()}
        held_out = "val" not in listed and self.val_share > 0
        if held_out:
            listed["train"], listed["val"] = hold_out(listed["train"], self.val_share, self.seed)
        parts: dict[str, Dataset[Any]] = {}
        warnings: list[str] = []
        owner: dict[tuple[Any, str], str] = {}
        for part in sorted(listed, key=("train", "val", "test").index):
            split_off = held_out and part == "val"
            readers = self.readers_of("train" if split_off else part)
            there, missing = look_up(listed[part], readers.values())
            if not split_off:  # which may lack a class of few clips
                self._check_classes(part, listed, there, readers)
            names, place = [clip.names[0] for clip in there], tuple(reader.folder for reader in readers.values())
            if twice := [name for name in names if owner.setdefault((place, name), part) != part]:
                other = owner[(place, twice[0])]
                raise ValueError(f"a clip must be in one part, got {len(twice)} in {other} and {part}: {twice[:3]}")
            labels = torch.tensor([self.classes.index(clip.label) for clip in there], dtype=torch.long)
            parts[part] = ClipDataset(names, labels, readers, self.moments, self.seed)
            self.missing[part] = [clip.names[0] for clip in missing]
            if missing:
                most = Counter(clip.label for clip in missing).most_common(3)
                counts = ", ".join(f"{count} of {name!r}" for name, count in most) + ", ..." * (len(most) > 2)
                warnings.append(f"{len(missing)} of {len(listed[part])} in {part!r} ({counts})")
        if warnings:
            examples = few([name for names in self.missing.values() for name in names])
            rank_zero_warn(
                f"clips that are listed and not in {self.root} are left out: {'; '.join(warnings)}; such as {examples}"
                ". The attribute `missing` names them all"
            )
        return parts

    def readers_of(self, part: str) -> dict[str, Reader]:
        """The readers of each modality for a part of the lists.

        Raises:
            FileNotFoundError: if a folder is missing.
            ValueError: if the part has no folder.
        """
        readers = {}
        for name, given in self.folders.items():
            by_part = {part: given} if isinstance(given, str) else given
            if part not in by_part:
                raise ValueError(f"folders by part must name one for {part!r} of {name!r}, got {dict(by_part)}")
            folder = self.root / by_part[part]
            if not folder.is_dir():
                raise FileNotFoundError(f"there is no folder {folder} of {name!r}: {self.how_to_prepare}")
            readers[name] = self.readers[name].for_folder(folder, self.root)
        return readers

    def _check_classes(
        self, part: str, listed: dict[str, list[Listed]], there: list[Listed], readers: dict[str, Reader]
    ) -> None:
        counts, rest = Counter(clip.label for clip in listed[part]), {clip.label for clip in there}
        if empty := [name for name in self.classes if name not in rest]:
            example = next((clip.names[0] for clip in listed[part] if clip.label in empty), None)
            known = {name.split("/")[0] for clips in listed.values() for clip in clips for name in clip.names}
            raise ValueError(
                f"every class must have clips in the part {part!r}; {len(empty)} of {len(self.classes)} have none of "
                f"those listed in {', '.join(str(reader.folder) for reader in readers.values())}: "
                + ", ".join(f"{name!r} ({counts[name]} listed)" for name in empty[:5])
                + ", ..." * (len(empty) > 5)
                + "; prepare them, or name the others in `classes`"
                + ("" if example is None else _not_there(example, readers.values(), known))
            )


def _not_there(clip: str, readers: Iterable[Reader], known: set[str]) -> str:
    """Which file of a clip is missing; and whether its folder looks as if videos were prepared one level too high."""
    reader = next((reader for reader in readers if not reader.path(clip).exists()), None)
    if reader is None:
        return ""
    there = entries(reader.folder)
    hint = f"; for instance there is no {reader.path(clip)}"
    if len(there) == 1 and not there & known and (reader.folder / min(there)).is_dir():
        hint += (
            f"; {reader.folder} holds nothing but the folder {min(there)!r}: if the videos were prepared one level too "
            "high, move what is in it one level up, for each kind"
        )
    return hint
