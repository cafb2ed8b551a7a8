# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What the data modules of prepared videos share."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypedDict

from lightning.fabric.utilities.rank_zero import rank_zero_warn
from torch.utils.data import Dataset
from typing_extensions import override

from lightning_crmt.data.module import MultimodalDataModule
from lightning_crmt.data.read.frames import pillow
from lightning_crmt.data.read.looks import Reader
from lightning_crmt.data.settings import at_least
from lightning_crmt.data.video.clips import ClipDataset, EpochDraws
from lightning_crmt.data.video.lists import Listed, entries, few, hold_out, look_up, restrict

#: A folder below the root, or one for each part.
Folder: TypeAlias = str | Mapping[str, str]


class ClipSettings(TypedDict, total=False):
    """Settings of ``ClipDataModule``, which every data set of videos hands on to it."""

    classes: Sequence[str] | None
    moments: int
    batch_size: int
    num_workers: int
    seed: int


class ClipDataModule(MultimodalDataModule):
    """Serves prepared clips: frames, flow, spectrograms; a subclass says which there are.

    Clips that are listed and not on the disk are left out, with one warning; ``missing`` holds their names by part.
    Training samples are augmented. The order, and how a clip is augmented, depend on ``seed``, the epoch and the clip
    alone: not on the number of workers, nor on whether the run was resumed.

    Args:
        root: the prepared folder.
        folders: where below ``root`` each modality has its files; by part where each part has its own folder.
        readers: how each modality is read.
        val_share: share of the training part for validation, where there is no validation part; 0 for none.
        classes: names of some of the classes, to have fewer; all by default.
        moments: number of frames, or stacks of flow, of a sample.
        batch_size: samples per batch and process.
        num_workers: worker processes per loader; pictures are decoded in them.
        seed: decides the split, the order of training samples and their augmentation.

    Raises:
        ValueError: if an argument is out of range; on ``setup``, if a class has no clips, or clips are in two parts.
        FileNotFoundError: on ``setup``, if a folder or a list is missing.
    """

    _sampler = EpochDraws

    def __init__(
        self,
        root: str,
        *,
        folders: Mapping[str, Folder],
        readers: Mapping[str, Reader],
        val_share: float,
        classes: Sequence[str] | None = None,
        moments: int = 3,
        batch_size: int = 64,
        num_workers: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        at_least(1, moments=moments)
        if not 0 <= val_share < 1:
            raise ValueError(f"`val_share` must be at least 0 and below 1, got {val_share}")
        if classes is not None and (not classes or len(set(classes)) != len(classes)):
            raise ValueError(f"`classes` must be different names, got {list(classes)}")
        self.root = Path(root)
        self.folders = dict(folders)
        self.readers = dict(readers)
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
        pillow()  # whose absence should be known before workers start
        if not self.root.is_dir():
            raise FileNotFoundError(f"there is no folder `root` = {self.root}: {self.how_to_prepare}")
        known = self.all_classes()
        self.classes = list(self.chosen_classes or known)
        if not set(self.classes) <= set(known):
            raise ValueError(f"`classes` must be different names among {few(known)}, got {self.classes}")
        every = self.listed()
        listed = {part: restrict(clips, self.classes) for part, clips in every.items()}
        home = {part: part for part in listed}  # the part in whose folders the files are
        if "val" not in listed and self.val_share > 0:
            listed["train"], listed["val"] = hold_out(listed["train"], self.val_share, self.seed)
            home["val"] = "train"
        parts: dict[str, Dataset[Any]] = {}
        warnings: list[str] = []
        owner: dict[tuple[Any, str], str] = {}
        for part in sorted(listed, key=("train", "val", "test").index):
            folders = self.folders_of(home[part])
            readers = {name: reader.for_folder(folders[name], self.root) for name, reader in self.readers.items()}
            places = {name: (folders[name], reader.suffix) for name, reader in readers.items()}
            there, missing = look_up(listed[part], places)
            if part == home[part]:  # a validation part that was split off may lack a class of few clips
                self._check_classes(part, listed, there, places)
            names, place = [clip.names[0] for clip in there], tuple(folders.values())
            if twice := [name for name in names if owner.setdefault((place, name), part) != part]:
                other = owner[(place, twice[0])]
                raise ValueError(f"a clip must be in one part, got {len(twice)} in {other} and {part}: {twice[:3]}")
            labels = [self.classes.index(clip.label) for clip in there]
            parts[part] = ClipDataset(names, labels, folders, readers, self.moments, self.seed)
            self.missing[part] = [clip.names[0] for clip in missing]
            if missing:
                most = Counter(clip.label for clip in missing).most_common(3)
                counts = ", ".join(f"{count} of {name!r}" for name, count in most) + ", ..." * (len(most) > 2)
                warnings.append(f"{len(missing)} of {len(listed[part])} in {part!r} ({counts})")
        if warnings:
            examples = [name for names in self.missing.values() for name in names][:3]
            rank_zero_warn(
                f"clips that are listed and not in {self.root} are left out: {'; '.join(warnings)}; "
                f"such as {', '.join(map(repr, examples))}. The attribute `missing` names them all"
            )
        return parts

    def folders_of(self, part: str) -> dict[str, Path]:
        """Where the files of each modality are, for a part of the lists.

        Raises:
            FileNotFoundError: if one is missing.
            ValueError: if the part has no folder.
        """
        folders = {}
        for name, given in self.folders.items():
            by_part = {part: given} if isinstance(given, str) else given
            if part not in by_part:
                raise ValueError(f"folders by part must name one for {part!r} of {name!r}, got {dict(by_part)}")
            folders[name] = self.root / by_part[part]
            if not folders[name].is_dir():
                raise FileNotFoundError(f"there is no folder {folders[name]} of {name!r}: {self.how_to_prepare}")
        return folders

    def _check_classes(
        self, part: str, listed: dict[str, list[Listed]], there: list[Listed], places: dict[str, tuple[Path, str]]
    ) -> None:
        counts, rest = Counter(clip.label for clip in listed[part]), {clip.label for clip in there}
        if empty := [name for name in self.classes if name not in rest]:
            example = next((clip.names[0] for clip in listed[part] if clip.label in empty), None)
            known = {name.split("/")[0] for clips in listed.values() for clip in clips for name in clip.names}
            raise ValueError(
                f"every class must have clips in the part {part!r}; {len(empty)} of {len(self.classes)} have none of "
                f"those listed in {', '.join(str(folder) for folder, _ in places.values())}: "
                + ", ".join(f"{name!r} ({counts[name]} listed)" for name in empty[:5])
                + ", ..." * (len(empty) > 5)
                + "; prepare them, or name the others in `classes`"
                + ("" if example is None else _not_there(example, places, known))
            )


def _not_there(clip: str, places: dict[str, tuple[Path, str]], known: set[str]) -> str:
    """Which file of a clip is missing; and whether its folder looks as if videos were prepared one level too high."""
    for folder, suffix in places.values():
        if not (path := folder / f"{clip}{suffix}").exists():
            there = entries(folder)
            if len(there) == 1 and not there & known and (folder / min(there)).is_dir():
                return (
                    f"; for instance there is no {path}; {folder} holds nothing but the folder {min(there)!r}: if "
                    "the videos were prepared one level too high, move what is in it one level up, for each kind"
                )
            return f"; for instance there is no {path}"
    return ""
