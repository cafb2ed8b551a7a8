# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Motion of a smart watch: accelerometer and gyroscope of one wrist, recorded together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_crmt.checks import check_positive
from lightning_crmt.data.module import MultimodalDataModule, MultimodalDataset
from lightning_crmt.data.read.installed import installed_file
from lightning_crmt.data.read.scaling import scaled
from lightning_crmt.data.read.splits import people_by_part
from lightning_crmt.data.settings import chosen, several

#: Columns of each modality.
SENSORS = {"accelerometer": (0, 1, 2), "gyroscope": (3, 4, 5)}
#: Names of the subjects.
SUBJECTS = tuple(range(1, 11))
#: Samples per second.
SAMPLE_RATE = 50


class WatchMotion(MultimodalDataModule[MultimodalDataset]):
    r"""Seven shoulder exercises by ``accelerometer`` and ``gyroscope`` of a smart watch: two sensors of one movement.

    Ten subjects did 20 repetitions of each exercise with each arm: 140 recordings of 19 to 52 seconds at 50 Hz, three
    axes per sensor, recorded together. A sample is a window of one recording. Subjects are split, not windows: the
    model is tested on people it has never seen move, and no recording is in two parts. Training windows overlap, those
    of validation and test do not, so that every moment counts once.

    Each axis is standardised with mean and deviation of the training windows, then both sensors are scaled to the same
    size: ``norm`` is the root of the mean squared norm of a window of either, over the training part, so that radii
    compare. A radius of 1 is a tenth of an input by default.

    Data: D. Burns et al., "Shoulder physiotherapy exercise recognition: machine learning the inertial signals from a
    smartwatch", 2018, arXiv:1802.01489; the part of it that the package ``seglearn`` installs (``pip install
    "lightning_crmt[data]"``), read without importing it.

    Args:
        modalities: which sensors to serve, in this order.
        held_out_subjects: among 1 to 10, to test on.
        validation_subjects: others, to validate on; with none there is no validation part.
        window: seconds of a sample.
        step: seconds from the start of a training window to that of the next.
        norm: root mean squared norm of a window of either sensor, above 0.
        **loading: ``batch_size``, ``num_workers`` and ``seed`` (of the order of training samples), see
            ``MultimodalDataModule``.

    Raises:
        ValueError: if a sensor or a subject is unknown or named twice, nobody is left to train on, or a setting is
            out of range; on ``setup``, if ``window`` is longer than the shortest recording.
        FileNotFoundError: on ``setup``, if the package is not installed.

    >>> WatchMotion(window=3.0).shapes
    {'accelerometer': (3, 150), 'gyroscope': (3, 150)}
    """

    num_classes = 7
    #: The exercises, by label; they differ in duration, so classes differ in size by half.
    classes = (
        "pendulum", "abduction", "forward elevation", "internal rotation", "external rotation", "trapezius extension",
        "upright row",
    )  # fmt: skip

    def __init__(
        self,
        modalities: Sequence[str] = tuple(SENSORS),
        *,
        held_out_subjects: int | Sequence[int] = (8, 9, 10),
        validation_subjects: int | Sequence[int] = (6, 7),
        window: float = 2.0,
        step: float = 1.0,
        norm: float = 10.0,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        check_positive(norm=norm)
        for name, value in (("window", window), ("step", step)):
            if not math.isfinite(value) or round(value * SAMPLE_RATE) < 1:
                raise ValueError(f"`{name}` must be at least {1 / SAMPLE_RATE} seconds, a sample, got {value}")
        self.modalities = chosen("modalities", modalities, SENSORS)
        self.held_out_subjects = chosen("held_out_subjects", held_out_subjects, SUBJECTS)
        self.validation_subjects = several(validation_subjects)
        self._subjects = people_by_part("subject", self.held_out_subjects, self.validation_subjects, SUBJECTS)
        self.window = round(window * SAMPLE_RATE)
        self.step = round(step * SAMPLE_RATE)
        self.norm = norm
        #: By part, the recording of each window and its first sample, ``(N, 2)``, once the parts are loaded.
        self.windows: dict[str, Tensor] = {}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one sample of each sensor: axes, samples."""
        return dict.fromkeys(self.modalities, (3, self.window))

    def load(self) -> dict[str, MultimodalDataset]:
        """Read, cut and scale."""
        recordings, label, subject = _read_recordings()
        shortest = min(len(one) for one in recordings)
        if self.window > shortest:
            raise ValueError(
                f"`window` must be at most {shortest / SAMPLE_RATE} seconds, the shortest recording, "
                f"got {self.window / SAMPLE_RATE}"
            )
        cut: dict[str, Tensor] = {}
        for part, subjects in self._subjects.items():
            starts = [
                (row, start)
                for row, recording in enumerate(recordings)
                if subject[row] in subjects
                for start in range(0, len(recording) - self.window + 1, self.step if part == "train" else self.window)
            ]
            if starts:
                self.windows[part] = torch.tensor(starts)
                cut[part] = torch.stack([recordings[row][start : start + self.window].T for row, start in starts])
        everything, train = torch.cat(list(cut.values())), torch.arange(len(cut["train"]))
        sizes = [len(windows) for windows in cut.values()]
        inputs = {
            name: torch.split(scaled(everything[:, list(SENSORS[name])], train, (0, 2), self.norm), sizes)
            for name in self.modalities
        }
        return {
            part: MultimodalDataset({name: inputs[name][i] for name in inputs}, label[self.windows[part][:, 0]])
            for i, part in enumerate(cut)
        }


def _read_recordings() -> tuple[list[Tensor], Tensor, list[int]]:
    """Recordings ``(T, 6)``, the exercise of each, and its subject."""
    # A pickle can run code when it is read; this one lies beside the code of its package and is trusted as much.
    content = np.load(installed_file("seglearn", "data/watch_dataset.npy"), allow_pickle=True).item()
    recordings = [torch.from_numpy(np.asarray(one, dtype=np.float32)) for one in content["X"]]
    return recordings, torch.from_numpy(content["y"]).long(), content["subject"].tolist()
