# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""VGGSound: things that are heard and seen in videos, from prepared ones."""

from __future__ import annotations

from collections.abc import Sequence

from typing_extensions import override

from lightning_crmt.data.video.clips import Frames, Spectrogram
from lightning_crmt.data.video.lists import Listed, restrict, vggsound_csv
from lightning_crmt.data.video.module import ClipDataModule, Folder


class VGGSound(ClipDataModule):
    r"""Some 200,000 ten-second clips in 309 classes of sounds whose source is seen: ``image`` and ``audio``.

    Chen et al., ICASSP 2020. The list ``vggsound.csv``, released with the data, says what is in ``train`` and ``test``;
    a share of the former is split off for validation. Clips are called ``<id>_<start>``, the start six digits; videos
    that are gone by now are left out with a warning. Samples are those of
    :class:`~lightning_crmt.data.KineticsSounds`.

    Args:
        root: the folder that ``lightning-crmt prepare`` made of the videos, or one like it.
        csv: the list, below ``root``.
        classes: names of some of the classes, to have fewer; all by default, sorted.
        frames: folder of the frames below ``root``; by part where each has its own.
        spectrograms: likewise of the spectrograms.
        size: height and width of the frames.
        moments: frames of a sample.
        audio_mean: :math:`\mu`, what is subtracted from the energies.
        audio_std: :math:`\sigma`; they are divided by :math:`2\sigma`.
        val_share: share of the training part for validation; 0 for none.
        batch_size: samples per batch and process.
        num_workers: worker processes per loader; frames are decoded in them.
        seed: decides the split, the order of training samples and their augmentation.

    Raises:
        ValueError: if an argument is out of range; on ``setup``, if the list is malformed or a class has no clips.
        FileNotFoundError: on ``setup``, if a folder or the list is missing.

    >>> data = VGGSound("vggsound", classes=["cat meowing", "dog barking"])
    """

    def __init__(
        self,
        root: str,
        csv: str = "vggsound.csv",
        classes: Sequence[str] | None = None,
        frames: Folder = "frames",
        spectrograms: Folder = "spectrograms",
        size: int = 224,
        moments: int = 3,
        audio_mean: float = -4.503877,
        audio_std: float = 5.141276,
        val_share: float = 0.05,
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
        self.csv = self.root / csv
        self.classes_given = classes

    @property
    def num_classes(self) -> int:
        """Number of classes; reads the list."""
        return len(self.classes_given or vggsound_csv(self.csv, _HINT)[0])

    @override
    def listed(self) -> dict[str, list[Listed]]:
        classes, parts = vggsound_csv(self.csv, _HINT)
        self.classes = list(self.classes_given or classes)
        return {part: restrict(clips, classes, self.classes) for part, clips in parts.items()}


_HINT = "`csv` must name vggsound.csv, which is released with the data set, below `root`"
