# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What the data modules of prepared videos share."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from lightning.fabric.utilities.rank_zero import rank_zero_warn
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from lightning_crmt.data.module import MultimodalDataModule
from lightning_crmt.data.video.clips import ClipDataset, EpochDraws, Reader
from lightning_crmt.data.video.lists import Listed, hold_out, look_up
from lightning_crmt.data.video.transforms import pillow

#: A folder below the root, or one for each part.
Folder: TypeAlias = str | Mapping[str, str]

#: What ``lightning-crmt prepare`` calls the files of a modality.
_KINDS = {"image": "frames", "flow": "flow", "audio": "spectrograms"}


class ClipDataModule(MultimodalDataModule):
    """Serves prepared clips: frames, flow, spectrograms; a subclass says which there are.

    Clips that are listed and not on the disk are left out, with one warning; ``missing`` holds their names by part.
    Training samples are augmented. The order, and how a clip is augmented, depend on ``seed``, the epoch and the clip
    alone: not on the number of workers, nor on whether the run was resumed.

    Args:
        root: the prepared folder.
        folders: where below ``root`` each modality has its files.
        readers: how each modality is read.
        moments: number of frames, or stacks of flow, of a sample.
        val_share: share of the training part for validation, where there is no validation part; 0 for none.
        batch_size: samples per batch and process.
        num_workers: worker processes per loader.
        seed: decides the split, the order of training samples and their augmentation.

    Raises:
        ValueError: if an argument is out of range; on ``setup``, if a class has no clips, or clips are in two parts.
        FileNotFoundError: on ``setup``, if a folder or a list is missing.
    """

    def __init__(
        self,
        root: str,
        folders: Mapping[str, Folder],
        readers: Mapping[str, Reader],
        moments: int,
        val_share: float,
        batch_size: int,
        num_workers: int,
        seed: int,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        if not 0 <= val_share < 1:
            raise ValueError(f"`val_share` must be at least 0 and below 1, got {val_share}")
        if moments < 1:
            raise ValueError(f"`moments` must be at least 1, got {moments}")
        self.root = Path(root)
        self.folders = dict(folders)
        self.readers = dict(readers)
        self.moments = moments
        self.val_share = val_share
        #: Names of the classes, by label.
        self.classes: list[str] = []
        #: Clips that are listed and not on the disk, by part; filled by ``setup``.
        self.missing: dict[str, list[str]] = {}

    @abstractmethod
    def listed(self) -> dict[str, list[Listed]]:
        """All clips of ``train``, ``test`` and, if the data set has one of its own, ``val``; sets ``classes``."""

    @property
    def how_to_prepare(self) -> str:
        """The command that makes what is read here, for messages."""
        kinds = " ".join(_KINDS.get(name, name) for name in self.readers)
        return f"`lightning-crmt prepare VIDEOS {self.root} --kinds {kinds}` makes it from videos"

    @override
    def load(self) -> dict[str, Dataset[Any]]:
        """Read the lists, split, and look for the files."""
        pillow()  # whose absence should be known before workers start
        if not self.root.is_dir():
            raise FileNotFoundError(f"there is no folder `root` = {self.root}: {self.how_to_prepare}")
        listed = self.listed()
        home = dict(zip(listed, listed, strict=True))  # the part in whose folders the files are
        if "val" not in listed and self.val_share > 0:
            listed["train"], listed["val"] = hold_out(listed["train"], self.val_share, self.seed, self.classes)
            home["val"] = "train"
        parts: dict[str, Dataset[Any]] = {}
        lacking: dict[str, list[Listed]] = {}
        owner: dict[tuple[Any, str], str] = {}
        for part in sorted(listed, key=("train", "val", "test").index):
            folders = self.folders_of(home[part])
            places = {name: (folders[name], reader.suffix) for name, reader in self.readers.items()}
            there, lacking[part] = look_up(listed[part], places)
            if part == home[part]:  # a validation part that was split off may lack a class of few clips
                self._check_classes(part, listed, there, places)
            names, place = [clip.names[0] for clip in there], tuple(folders.values())
            if twice := [name for name in names if owner.setdefault((place, name), part) != part]:
                other = owner[(place, twice[0])]
                raise ValueError(f"a clip must be in one part, got {len(twice)} in {other} and {part}: {twice[:3]}")
            labels = [clip.label for clip in there]
            parts[part] = ClipDataset(names, labels, folders, self.readers, self.moments, self.seed)
        self.missing = {part: [clip.names[0] for clip in clips] for part, clips in lacking.items()}
        self._warn(lacking, listed)
        return parts

    @override
    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled batches of augmented samples."""
        part = self._all_parts()["train"]
        assert isinstance(part, ClipDataset)
        processes = (1, 0) if self.trainer is None else (self.trainer.world_size, self.trainer.global_rank)
        return self._loader("train", sampler=EpochDraws(part, self.seed, *processes))

    def folders_of(self, part: str) -> dict[str, Path]:
        """Where the files of each modality are, for a part of the lists.

        Raises:
            FileNotFoundError: if one is missing.
            ValueError: if the part has no folder.
        """
        found = {}
        for name, given in self.folders.items():
            if not isinstance(given, str) and part not in given:
                raise ValueError(f"folders by part must name one for {part!r} of {name!r}, got {dict(given)}")
            found[name] = self.root / (given if isinstance(given, str) else given[part])
            if not found[name].is_dir():
                raise FileNotFoundError(f"there is no folder {found[name]} of {name!r}: {self.how_to_prepare}")
        return found

    def _check_classes(
        self, part: str, listed: dict[str, list[Listed]], there: list[Listed], places: dict[str, tuple[Path, str]]
    ) -> None:
        counts, rest = Counter(clip.label for clip in listed[part]), Counter(clip.label for clip in there)
        if empty := [label for label in range(len(self.classes)) if not rest[label]]:
            where = ", ".join(str(folder) for folder, _ in places.values())
            example = next((clip.names[0] for clip in listed[part] if clip.label in set(empty)), None)
            known = {name.split("/")[0] for clips in listed.values() for clip in clips for name in clip.names}
            raise ValueError(
                f"every class must have clips in the part {part!r}; {len(empty)} of {len(self.classes)} have none of "
                f"those listed in {where}: "
                + ", ".join(f"{self.classes[label]!r} ({counts[label]} listed)" for label in empty[:5])
                + ", ..." * (len(empty) > 5)
                + "; prepare them, or name the others in `classes`"
                + ("" if example is None else _not_there(example, places, known))
            )

    def _warn(self, lacking: dict[str, list[Listed]], listed: dict[str, list[Listed]]) -> None:
        lines = []
        for part, clips in lacking.items():
            if clips:
                most = Counter(self.classes[clip.label] for clip in clips).most_common(3)
                classes = ", ".join(f"{count} of {name!r}" for name, count in most)
                lines.append(f"{len(clips)} of {len(listed[part])} in {part!r} ({classes}{', ...' * (len(most) > 2)})")
        if lines:
            few = [name for names in self.missing.values() for name in names][:3]
            rank_zero_warn(
                f"clips that are listed and not in {self.root} are left out: {'; '.join(lines)}; "
                f"such as {', '.join(map(repr, few))}. The attribute `missing` names them all"
            )


def _not_there(clip: str, places: dict[str, tuple[Path, str]], known: set[str]) -> str:
    """Which file of a clip is missing; and whether its folder looks as if videos were prepared one level too high."""
    for folder, suffix in places.values():
        if not (path := folder / f"{clip}{suffix}").exists():
            there = [each for each in folder.iterdir() if not each.name.startswith(".")]
            if len(there) == 1 and there[0].is_dir() and there[0].name not in known:
                return (
                    f"; for instance there is no {path}; {folder} holds nothing but the folder {there[0].name!r}: if "
                    "the videos were prepared one level too high, move what is in it one level up, for each kind"
                )
            return f"; for instance there is no {path}"
    return ""
