# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Files of one sample each: arrays, pictures and sound, by the ending of their names."""

from __future__ import annotations

import wave
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from lightning_crmt.checks import check_at_least
from lightning_crmt.data.read.frames import pillow
from lightning_crmt.data.read.spectrogram import LOG_FLOOR, log_mel
from lightning_crmt.data.read.values import as_value


class FileReader(ABC):
    """Makes a tensor of a file."""

    @abstractmethod
    def __call__(self, path: Path) -> Tensor:
        """What the model gets, before it is scaled.

        Raises:
            ValueError, OSError: if the file cannot be read.
        """


@dataclass(frozen=True)
class ArrayFile(FileReader):
    """Numbers in an ``.npy`` or ``.pt`` file, or in an ``.npz``.

    Args:
        key: the array's name in an ``.npz`` that holds several.
    """

    key: str | None = None

    @override
    def __call__(self, path: Path) -> Tensor:
        if path.suffix in (".pt", ".pth"):
            return as_value(torch.load(path, map_location="cpu", weights_only=True))
        content = np.load(path)
        if isinstance(content, np.ndarray):
            return as_value(content)
        with content as archive:
            if (self.key is None and len(archive) != 1) or (self.key is not None and self.key not in archive):
                raise ValueError(f"an .npz must hold one array, or that of `key`, {self.key!r}, got {list(archive)}")
            return as_value(archive[self.key or next(iter(archive))])


@dataclass(frozen=True)
class ImageFile(FileReader):
    """A picture, ``(3, H, W)``, values from 0 to 1; needs Pillow.

    Args:
        size: height and width that it is resized to, one number for both; None leaves it as it is.
        grey: whether it is shades of grey, ``(1, H, W)``.
    """

    size: int | tuple[int, int] | None = None
    grey: bool = False

    def __post_init__(self) -> None:
        check_at_least(1, size=None if self.size is None else min(self._height_and_width))

    @property
    def _height_and_width(self) -> tuple[int, int]:
        return self.size if isinstance(self.size, tuple) else (self.size or 0, self.size or 0)

    @override
    def __call__(self, path: Path) -> Tensor:
        pil = pillow()
        with pil.open(path) as opened:
            seen = opened.convert("L" if self.grey else "RGB")
        if self.size is not None:
            height, width = self._height_and_width
            seen = seen.resize((width, height), pil.Resampling.BILINEAR)
        return as_value(seen)


@dataclass(frozen=True)
class WaveFile(FileReader):
    """Samples of a WAV file from -1 to 1, the mean of its channels, ``(T,)``, or ``(1, samples)``.

    Args:
        samples: length: longer sound is cut, shorter padded with silence; by default all is read, ``(T,)``.
        sample_rate: samples per second that a file must have; by default any.
    """

    samples: int | None = None
    sample_rate: int | None = None

    def __post_init__(self) -> None:
        check_at_least(1, samples=self.samples, sample_rate=self.sample_rate)

    @override
    def __call__(self, path: Path) -> Tensor:
        waveform = read_wave(path, self.sample_rate)[0]
        if self.samples is None:
            return waveform
        return F.pad(waveform[: self.samples], (0, max(0, self.samples - len(waveform))))[None]


@dataclass(frozen=True)
class SpectrogramFile(FileReader):
    """The log-mel spectrogram of a WAV file, ``(1, frames, n_mels)``, see ``log_mel``.

    Args:
        frames: length, frames of 25 ms every 10 ms; longer sound is cut, shorter padded with silence.
        n_mels: number of bands.
        sample_rate: samples per second that a file must have; by default any, though bands then mean different pitches.
    """

    frames: int
    n_mels: int = 64
    sample_rate: int | None = None

    def __post_init__(self) -> None:
        check_at_least(1, frames=self.frames, n_mels=self.n_mels, sample_rate=self.sample_rate)

    @override
    def __call__(self, path: Path) -> Tensor:
        waveform, rate = read_wave(path, self.sample_rate)
        energies = log_mel(waveform, rate, self.n_mels)[: self.frames]
        return F.pad(energies, (0, 0, 0, self.frames - len(energies)), value=LOG_FLOOR)[None]


#: What reads a file whose name ends so, where nothing else is said.
BY_SUFFIX: dict[str, FileReader] = {
    **dict.fromkeys((".npy", ".npz", ".pt", ".pth"), ArrayFile()),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"), ImageFile()),
    ".wav": WaveFile(),
}


def read_by_suffix(path: Path) -> Tensor:
    """Read a file by the reader for the ending of its name.

    Raises:
        ValueError: if there is none, or the file cannot be read.
    """
    reader = BY_SUFFIX.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"its name must end in one of {list(BY_SUFFIX)}, or `readers` say what reads it")
    return reader(path)


def read_wave(path: Path, sample_rate: int | None = None) -> tuple[Tensor, int]:
    """Samples of a WAV file from -1 to 1, ``(T,)``, the mean of its channels, and how many there are per second.

    Args:
        path: of a file of 8, 16, 24 or 32 bits.
        sample_rate: what the file must have; any by default.

    Raises:
        ValueError: if it is no such file, ends too early, or has another rate.
    """
    try:
        with wave.open(str(path), "rb") as opened:
            rate, channels, width = opened.getframerate(), opened.getnchannels(), opened.getsampwidth()
            count = opened.getnframes()
            data = opened.readframes(count)
    except (wave.Error, EOFError) as error:
        raise ValueError(f"it must be a WAV file of integers: {str(error) or 'it ends too early'}") from error
    if len(data) != count * channels * width:
        raise ValueError(f"it must hold the {count} samples it announces, got {len(data) // (channels * width)}")
    if sample_rate is not None and rate != sample_rate:
        raise ValueError(f"it must have {sample_rate} Hz, got {rate}")
    if not count:
        raise ValueError("it must hold a sample, got none")
    raw = np.frombuffer(data, dtype=np.uint8).reshape(-1, width)
    if width == 1:  # unsigned, alone among the widths
        whole = raw[:, 0].astype(np.float64) - 128
    else:
        # The upper bytes of 32 bits, whose highest is the sign.
        wide = np.zeros((len(raw), 4), dtype=np.uint8)
        wide[:, 4 - width :] = raw
        whole = wide.reshape(-1).view("<i4").astype(np.float64) / 2 ** (32 - 8 * width)
    samples = torch.from_numpy(whole / 2 ** (8 * width - 1)).float()
    return samples.reshape(-1, channels).mean(1), rate
