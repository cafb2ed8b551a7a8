# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Kinetics-Sounds: actions that can be seen and heard, from prepared videos."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import override

from lightning_crmt.data.read.spectrogram import SpectrogramReader
from lightning_crmt.data.video.lists import Listed, class_index, entries, lines_of, named, names_of, plain
from lightning_crmt.data.video.module import ClipDataModule, Folder

#: The classes as papers on 31 of them spell them out.
CLASSES = (
    "blowing nose", "blowing out candles", "bowling", "chopping wood", "dribbling basketball", "laughing",
    "mowing lawn", "playing accordion", "playing bagpipes", "playing bass guitar", "playing clarinet", "playing drums",
    "playing guitar", "playing harmonica", "playing keyboard", "playing organ", "playing piano", "playing saxophone",
    "playing trombone", "playing trumpet", "playing violin", "playing xylophone", "ripping paper", "shoveling snow",
    "shuffling cards", "singing", "stomping grapes", "tap dancing", "tapping guitar", "tapping pen", "tickling",
)  # fmt: skip

_PARTS = ("train", "val", "test")
_COLUMNS = ("label", "youtube_id", "time_start", "time_end")


class KineticsSounds(ClipDataModule):
    r"""Ten-second clips of 31 actions that are seen and heard: ``image`` and ``audio``.

    Of the 34 classes that Arandjelovic and Zisserman (ICCV 2017) chose from Kinetics-400, 31 are left in its released
    versions; those here are as Panda et al. (AdaMML, ICCV 2021) name them.

    - ``image``, ``(moments, 3, size, size)``: frames from equal segments of the clip, at random moments in training and
      in the middles otherwise; normalised as ImageNet. In training one random crop and one mirroring for all frames.
    - ``audio``, ``(1, 1024, 128)``: log-mel energies, padded with zeros, then :math:`(x - \mu) / 2\sigma`.

    ``parts`` says what is in each part: a folder, whose clips lie in ``<folder>/<class>/<clip>``; a list file
    ``*.txt`` of lines ``name label`` or ``name,number,label``, the label a number or the name of a class, as released
    with several papers (the numbers are taken as they are: the lists do not say which class is which), whose clips may
    also lie in a folder named like the part; or a ``*.csv`` of Kinetics with its header, whose clips are called
    ``<class>/<id>_<start>_<end>``, alone or in a folder named like the file. Without a ``val`` part a share of
    ``train`` is split off, so that models are never chosen on test clips.

    Args:
        root: the folder that ``lightning-crmt prepare`` made of the videos, or one like it.
        parts: what ``train``, ``test`` and perhaps ``val`` hold, below ``root``; by default the folders of these names.
        spectrograms: folder of the spectrograms below ``root``; by part where each part has its own.
        audio_mean: :math:`\mu`.
        audio_std: :math:`\sigma`.
        **settings: ``frames``, ``val_share`` (unless ``parts`` has ``val``), ``classes`` (fewer or others), ``size``,
            ``moments``, ``batch_size``, ``num_workers`` and ``seed``, see ``ClipDataModule``.

    Raises:
        ValueError: if an argument is out of range; on ``setup``, if a list is malformed or a class has no clips.
        FileNotFoundError: on ``setup``, if a folder or a list is missing.

    >>> KineticsSounds("kinetics-sounds", num_workers=8).num_classes
    31
    """

    def __init__(
        self,
        root: str,
        *,
        parts: Mapping[str, str] | None = None,
        spectrograms: Folder = "spectrograms",
        audio_mean: float = -4.503877,
        audio_std: float = 5.141276,
        **settings: Any,
    ) -> None:
        super().__init__(root, **settings)
        self.folders["audio"], self.readers["audio"] = spectrograms, SpectrogramReader(audio_mean, audio_std)
        if parts is not None and not {"train", "test"} <= set(parts) <= set(_PARTS):
            raise ValueError(f"`parts` must say what 'train', 'test' and perhaps 'val' are, got {dict(parts)}")
        self.sources = None if parts is None else dict(parts)
        self.classes = list(self.all_classes())

    @override
    def all_classes(self) -> Sequence[str]:
        """Names of the classes: those given, or all 31."""
        return self.chosen_classes or CLASSES

    @override
    def listed(self) -> dict[str, list[Listed]]:
        folders = [reader.folder for reader in self.readers_of("train").values()]
        own = {part: part for part in _PARTS if part != "val" or any((folder / part).is_dir() for folder in folders)}
        sources = self.sources or own
        return {part: self._clips(part, source) for part, source in sources.items()}

    def _clips(self, part: str, source: str) -> list[Listed]:
        hint = f"`parts` must name folders or lists below `root`, got {source!r} for {part!r}"
        if source.endswith((".csv", ".txt")):
            _, first = next(lines_of(self.root / source, hint), ("", ""))
            if source.endswith(".csv") and ("youtube_id" in first or not first):
                return _csv(self.root / source, hint)
            return self._named(self.root / source, hint, part)
        folders = [reader.folder for reader in self.readers_of(part).values()]
        if not any((folder / source).is_dir() for folder in folders):
            raise FileNotFoundError(
                f"there is no folder {source!r} in {' or '.join(map(str, folders))}: {self.how_to_prepare} in "
                f"VIDEOS/{source}/<class>/; or `parts` says where the clips of {part!r} are"
            )
        clips = {
            f"{source}/{name}/{clip.removesuffix('.npy')}": name
            for folder in folders
            for name in entries(folder / source)
            for clip in entries(folder / source / name)
        }
        return [Listed((clip,), name) for clip, name in sorted(clips.items())]

    def _named(self, path: Path, hint: str, part: str) -> list[Listed]:
        """Clips by lines of name and label, the label a number or the name of a class."""
        classes = self.all_classes()
        others = [name for name in CLASSES if name not in classes]
        spelt = {plain(name) for name in (*classes, *others)}
        clips, numbered = [], set()
        for where, line in lines_of(path, hint):
            name, label = named(where, line, lambda label: label.isdecimal() or plain(label) in spelt)
            numbered.add(label.isdecimal())
            if len(numbered) > 1:
                raise ValueError(f"{where} must have a label of the same kind as the lines before it, got {label!r}")
            if not label.isdecimal():
                class_index(label, classes, where, others)
            elif int(label) < len(classes):
                label = str(int(label)) if self.chosen_classes is None else classes[int(label)]
            else:
                raise ValueError(f"{where} must have a class from 0 to {len(classes) - 1}, got {label}")
            clips.append(Listed(names_of(name, part), label))
        if self.chosen_classes is None and True in numbered:
            self.classes = [str(number) for number in range(len(CLASSES))]  # which is which the list does not say
        return clips


def _csv(path: Path, hint: str) -> list[Listed]:
    """Clips by lines ``label,youtube_id,time_start,time_end,split`` under a header.

    A clip is called ``<class>/<id>_<start>_<end>``, each time six digits, the class with spaces or underscores, in a
    folder named like the file or in none.
    """
    lines = lines_of(path, hint)
    header = next(csv.reader([next(lines, ("", ""))[1]]), [])
    if missing := [column for column in _COLUMNS if column not in header]:
        raise ValueError(f"{path}:1 must name the columns {', '.join(_COLUMNS)}; missing {missing}")
    clips = []
    for where, line in lines:
        row = dict(zip(header, next(csv.reader([line])), strict=False))
        try:
            label, clip, start, end = (row[column] for column in _COLUMNS)
            ends = f"{int(float(start)):06d}_{int(float(end)):06d}"
        except (KeyError, ValueError, OverflowError) as error:
            raise ValueError(f"{where} must have {', '.join(_COLUMNS)} as in the header, got {line!r}") from error
        tails = [f"{spelt}/{clip}_{ends}" for spelt in (plain(label).replace(" ", "_"), plain(label))]
        clips.append(Listed((*(f"{path.stem}/{tail}" for tail in tails), *tails), label))
    return clips
