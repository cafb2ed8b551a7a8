# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""VGGSound: sounds with a visible source, from prepared videos."""

from __future__ import annotations

import csv
from typing import Any

from typing_extensions import override

from lightning_crmt.data.read.spectrogram import SpectrogramReader
from lightning_crmt.data.video.lists import Listed, lines_of
from lightning_crmt.data.video.module import ClipDataModule, Folder


class VGGSound(ClipDataModule):
    r"""Some 200,000 ten-second clips in 309 classes of sounds whose source is seen: ``image`` and ``audio``.

    Chen et al., ICASSP 2020. The list ``vggsound.csv``, released with the data, has lines ``id,start,label,part`` and
    says what is in ``train`` and ``test``; a share of the former is split off for validation. Clips are called
    ``<id>_<start>``, the start with or without zeros before it to make six digits, alone or in a folder named like the
    part; videos that are no longer available are left out with a warning. Samples are those of
    :class:`~lightning_crmt.data.KineticsSounds`.

    Args:
        root: the folder that ``lightning-crmt prepare`` made of the videos, or one like it.
        csv: the list, below ``root``.
        spectrograms: folder of the spectrograms below ``root``; by part where each part has its own.
        val_share: share of the training part for validation; 0 for none.
        audio_mean: :math:`\mu`, what is subtracted from the energies.
        audio_std: :math:`\sigma`; they are divided by :math:`2\sigma`.
        **settings: ``frames``, ``classes``, ``size``, ``moments``, ``batch_size``, ``num_workers`` and ``seed``, see
            ``ClipDataModule``.

    Raises:
        ValueError: if an argument is out of range; on ``setup``, if the list is malformed or a class has no clips.
        FileNotFoundError: on ``setup``, if a folder or the list is missing.

    >>> data = VGGSound("vggsound", classes=["cat meowing", "dog barking"])
    """

    def __init__(
        self,
        root: str,
        *,
        csv: str = "vggsound.csv",
        spectrograms: Folder = "spectrograms",
        val_share: float = 0.05,
        audio_mean: float = -4.503877,
        audio_std: float = 5.141276,
        **settings: Any,
    ) -> None:
        super().__init__(root, val_share=val_share, **settings)
        self.folders["audio"], self.readers["audio"] = spectrograms, SpectrogramReader(audio_mean, audio_std)
        self.csv = self.root / csv

    @override
    def all_classes(self) -> list[str]:
        """Names of the classes, sorted; reads the list."""
        return sorted({clip.label for clips in self.listed().values() for clip in clips})

    @override
    def listed(self) -> dict[str, list[Listed]]:
        hint = "`csv` must name vggsound.csv, which is released with the data set, below `root`"
        parts: dict[str, list[Listed]] = {"train": [], "test": []}
        for where, line in lines_of(self.csv, hint):
            row = [field.strip() for field in next(csv.reader([line]))]
            if len(row) != 4 or not row[1].isdecimal() or row[3] not in parts:
                raise ValueError(f"{where} must be `id,start,label,train` or `...,test`, got {line!r}")
            names = [f"{row[0]}_{start}" for start in (f"{int(row[1]):06d}", str(int(row[1])))]
            parts[row[3]].append(Listed((*names, *(f"{row[3]}/{name}" for name in names)), row[2]))
        return parts
