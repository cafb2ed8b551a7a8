# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Motion of a smart watch: accelerometer and gyroscope of one wrist, truly recorded together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_crmt.data.module import MultimodalDataModule, MultimodalDataset, chosen
from lightning_crmt.data.read.installed import installed_file
from lightning_crmt.data.read.scaling import check_norm, scaled

#: Columns of each modality.
SENSORS = {"accelerometer": (0, 1, 2), "gyroscope": (3, 4, 5)}
#: Names of the subjects.
SUBJECTS = tuple(range(1, 11))
#: Samples per second.
SAMPLE_RATE = 50


class WatchMotion(MultimodalDataModule):
    r"""Seven shoulder exercises by ``accelerometer`` and ``gyroscope`` of a smart watch: two sensors of one movement.

    Ten subjects did 20 repetitions of each exercise with each arm: 140 recordings of 19 to 52 seconds at 50 Hz, three
    axes per sensor, recorded together. A sample is a window of one recording. Subjects are split, not windows: whom
    the model is tested on it has never seen move, and no recording is in two parts. Training windows overlap, those
    of validation and test do not, so that every moment counts once.

    Each axis is standardised with mean and deviation of the training windows, then both sensors are scaled to the same
    size: ``norm`` is the root of the mean squared norm of a window of either, over the training part, so that radii
    compare. A radius of 1 is a tenth of an input by default.

    Data: D. Burns et al., "Shoulder physiotherapy exercise recognition: machine learning the inertial signals from a
    smartwatch", 2018, arXiv:1802.01489; the part of it that the package ``seglearn`` installs (``pip install
    "lightning_crmt[data]"``), read without importing it.

    Args:
        held_out_subjects: among 1 to 10, to test on.
        validation_subjects: others, to validate on; with none there is no validation part.
        modalities: which sensors to serve, in this order.
        window: seconds of a sample.
        step: seconds from the start of a training window to that of the next.
        norm: size of a window of either sensor, above 0.
        batch_size: samples per batch and process.
        num_workers: worker processes per loader.
        seed: decides the order of training samples.

    Raises:
        ValueError: if a sensor or a subject is unknown or named twice, nobody is left to train on, ``window`` or
            ``step`` is too short or too long, or ``norm`` not above 0.
        FileNotFoundError: if the package is not installed.

    >>> WatchMotion(window=3.0).shapes
    {'accelerometer': (3, 150), 'gyroscope': (3, 150)}
    """

    num_classes = 7
    #: The exercises, by label; they last differently long, so classes differ in size by half.
    classes = (
        "pendulum", "abduction", "forward elevation", "internal rotation", "external rotation", "trapezius extension",
        "upright row",
    )  # fmt: skip

    def __init__(
        self,
        held_out_subjects: int | Sequence[int] = (8, 9, 10),
        validation_subjects: int | Sequence[int] = (6, 7),
        modalities: Sequence[str] = tuple(SENSORS),
        window: float = 2.0,
        step: float = 1.0,
        norm: float = 10.0,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        test, validation = _numbers(held_out_subjects), _numbers(validation_subjects)
        if (
            not test
            or not set(test + validation) <= set(SUBJECTS)
            or len(set(test + validation)) < len(test + validation)
        ):
            raise ValueError(
                "`held_out_subjects`, one at least, and `validation_subjects` must name each subject once, among "
                f"{list(SUBJECTS)}, got {list(test)} and {list(validation)}"
            )
        if len(test + validation) == len(SUBJECTS):
            raise ValueError(
                "a subject must be left to train on, `held_out_subjects` and `validation_subjects` name all "
                f"{len(SUBJECTS)}"
            )
        check_norm(norm)
        for name, value in (("window", window), ("step", step)):
            if not math.isfinite(value) or round(value * SAMPLE_RATE) < 1:
                raise ValueError(f"`{name}` must be at least {1 / SAMPLE_RATE} seconds, a sample, got {value}")
        self.held_out_subjects = test
        self.validation_subjects = validation
        self.modalities = chosen("modalities", modalities, SENSORS)
        self.window = round(window * SAMPLE_RATE)
        self.step = round(step * SAMPLE_RATE)
        self.norm = norm
        #: By part, the recording of each window and its first sample, ``(N, 2)``, once the parts are loaded.
        self.windows: dict[str, Tensor] = {}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one sample of each sensor: axes, samples."""
        return dict.fromkeys(self.modalities, (3, self.window))

    def load(self) -> dict[str, Dataset[Any]]:
        """Read, cut and scale."""
        recordings, label, subject = _read_recordings()
        shortest = min(len(one) for one in recordings)
        if self.window > shortest:
            raise ValueError(
                f"`window` must be at most {shortest / SAMPLE_RATE} seconds, the shortest recording, "
                f"got {self.window / SAMPLE_RATE}"
            )
        train = tuple(one for one in SUBJECTS if one not in self.held_out_subjects + self.validation_subjects)
        cut: dict[str, Tensor] = {}
        for part, subjects, step in (
            ("train", train, self.step),
            ("val", self.validation_subjects, self.window),
            ("test", self.held_out_subjects, self.window),
        ):
            if not subjects:
                continue
            starts = [
                (row, start)
                for row, recording in enumerate(recordings)
                if int(subject[row]) in subjects
                for start in range(0, len(recording) - self.window + 1, step)
            ]
            self.windows[part] = torch.tensor(starts)
            cut[part] = torch.stack([recordings[row][start : start + self.window].T for row, start in starts])
        everything = torch.cat(list(cut.values()))
        seen = torch.arange(len(cut["train"]))
        sizes = [len(windows) for windows in cut.values()]
        inputs = {}
        for name in self.modalities:
            inputs[name] = torch.split(scaled(everything[:, list(SENSORS[name])], seen, (0, 2), self.norm), sizes)
        return {
            part: MultimodalDataset({name: inputs[name][i] for name in inputs}, label[self.windows[part][:, 0]])
            for i, part in enumerate(cut)
        }


def _numbers(given: int | Sequence[int]) -> tuple[int, ...]:
    return (given,) if isinstance(given, int) else tuple(given)


def _read_recordings() -> tuple[list[Tensor], Tensor, Tensor]:
    """Recordings ``(T, 6)``, the exercise of each, and its subject."""
    # A pickle can run code when it is read; this one lies beside the code of its package and is trusted like that.
    content = np.load(installed_file("seglearn", "data/watch_dataset.npy"), allow_pickle=True).item()
    recordings = [torch.from_numpy(np.asarray(one, dtype=np.float32)) for one in content["X"]]
    return recordings, torch.from_numpy(content["y"]).long(), torch.from_numpy(content["subject"]).long()
