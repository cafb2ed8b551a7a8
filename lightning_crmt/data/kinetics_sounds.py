# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Kinetics-Sounds: actions that are seen and heard, from prepared videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from typing_extensions import override

from lightning_crmt.data.video.clips import Frames, Spectrogram
from lightning_crmt.data.video.lists import Listed, class_folders, kinetics_csv, named_list, restrict
from lightning_crmt.data.video.module import ClipDataModule, Folder

#: The classes as papers on 31 of them spell them out.
CLASSES = (
    "blowing nose", "blowing out candles", "bowling", "chopping wood", "dribbling basketball", "laughing",
    "mowing lawn", "playing accordion", "playing bagpipes", "playing bass guitar", "playing clarinet", "playing drums",
    "playing guitar", "playing harmonica", "playing keyboard", "playing organ", "playing piano", "playing saxophone",
    "playing trombone", "playing trumpet", "playing violin", "playing xylophone", "ripping paper", "shoveling snow",
    "shuffling cards", "singing", "stomping grapes", "tap dancing", "tapping guitar", "tapping pen", "tickling",
)  # fmt: skip

_PARTS = {"train": "train", "val": "val", "test": "test"}


class KineticsSounds(ClipDataModule):
    r"""Ten-second clips of 31 actions that are seen and heard: ``image`` and ``audio``.

    Of the 34 classes that Arandjelovic and Zisserman (ICCV 2017) chose from Kinetics-400, 31 are left in its released
    versions; those here are as Panda et al. (AdaMML, ICCV 2021) name them.

    - ``image``, ``(moments, 3, size, size)``: frames from equal segments of the clip, of random moments in training and
      from the middles else; normalised as ImageNet. In training one random crop and one mirroring for all frames.
    - ``audio``, ``(1, 1024, 128)``: log-mel energies, padded with zeros, then :math:`(x - \mu) / 2\sigma`.

    What is in each part is said by ``parts``: a folder, whose clips lie in ``<folder>/<class>/<clip>``; a list file
    ``*.txt`` of lines ``name label``, the label a number or the name of a class, as released with several papers (the
    numbers are taken as they are: the lists do not say which class is which); or a ``*.csv`` of Kinetics, whose clips
    are called ``<class>/<id>_<start>_<end>``, alone or in a folder called as the file. Without a ``val`` part a share
    of ``train`` is split off, so that models are never chosen on test clips.

    Args:
        root: the folder that ``lightning-crmt prepare`` made of the videos, or one like it.
        parts: what ``train``, ``test`` and perhaps ``val`` hold, below ``root``; by default the folders of these names.
        classes: names of the classes, to have fewer or others.
        frames: folder of the frames below ``root``; by part where each has its own.
        spectrograms: likewise of the spectrograms.
        size: height and width of the frames.
        moments: frames of a sample.
        audio_mean: :math:`\mu`.
        audio_std: :math:`\sigma`.
        val_share: share of the training part for validation, where ``parts`` names none; 0 for none.
        batch_size: samples per batch and process.
        num_workers: worker processes per loader; frames are decoded in them.
        seed: decides the split, the order of training samples and their augmentation.

    Raises:
        ValueError: if an argument is out of range; on ``setup``, if a list is malformed or a class has no clips.
        FileNotFoundError: on ``setup``, if a folder or a list is missing.

    >>> KineticsSounds("kinetics-sounds", num_workers=8).num_classes
    31
    """

    def __init__(
        self,
        root: str,
        parts: Mapping[str, str] | None = None,
        classes: Sequence[str] | None = None,
        frames: Folder = "frames",
        spectrograms: Folder = "spectrograms",
        size: int = 224,
        moments: int = 3,
        audio_mean: float = -4.503877,
        audio_std: float = 5.141276,
        val_share: float = 0.1,
        batch_size: int = 64,
        num_workers: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__(
            root=root,
            folders={"image": frames, "audio": spectrograms},
            readers={"image": Frames(size), "audio": Spectrogram(audio_mean, audio_std)},
            moments=moments,
            val_share=val_share,
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
        )
        if parts is not None and not {"train", "test"} <= set(parts) <= set(_PARTS):
            raise ValueError(f"`parts` must say what 'train', 'test' and perhaps 'val' are, got {dict(parts)}")
        if classes is not None and (not classes or len(set(classes)) != len(classes)):
            raise ValueError(f"`classes` must be different names, got {list(classes)}")
        self.parts_given = None if parts is None else dict(parts)
        self.classes_given = classes
        self.classes = list(CLASSES if classes is None else classes)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @override
    def listed(self) -> dict[str, list[Listed]]:
        return {part: self._listed(part, source) for part, source in self._sources().items()}

    def _sources(self) -> dict[str, str]:
        if self.parts_given is not None:
            return self.parts_given
        folders = self.folders_of("train").values()
        return {
            part: name for part, name in _PARTS.items() if part != "val" or any((f / name).is_dir() for f in folders)
        }

    def _listed(self, part: str, source: str) -> list[Listed]:
        hint = f"`parts` must name folders or lists below `root`, got {source!r} for {part!r}"
        if source.endswith(".csv"):
            return kinetics_csv(self.root / source, self.classes, hint)
        if source.endswith(".txt"):
            return self._named(source, hint)
        folders = self.folders_of(part)
        if not any((folder / source).is_dir() for folder in folders.values()):
            raise FileNotFoundError(
                f"there is no folder {source!r} in {' or '.join(map(str, folders.values()))}: {self.how_to_prepare} in "
                f"VIDEOS/{source}/<class>/; or `parts` says where the clips of {part!r} are"
            )
        return class_folders(source, self.classes, folders)

    def _named(self, source: str, hint: str) -> list[Listed]:
        others = [name for name in CLASSES if name not in self.classes]
        found, numbered = named_list(self.root / source, self.classes, hint, others)
        if not numbered:
            return restrict(found, self.classes + others, self.classes)
        if self.classes_given is None:
            self.classes = [str(label) for label in range(len(CLASSES))]
        return found
