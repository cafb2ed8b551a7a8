# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The spectrogram of the sound of a video."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from lightning_crmt.data.prepare.ffmpeg import BrokenVideoError, FFmpeg
from lightning_crmt.data.read.spectrogram import log_mel

_FRAME, _SHIFT = 0.025, 0.010


@dataclass(frozen=True)
class Spectrograms:
    """Logarithms of mel-spaced energies ``(T, bands)``, in half precision, of the first sound track, as one channel.

    Frames of 25 ms, every 10 ms, as ``log_mel`` computes them; neither normalised nor padded.

    Args:
        sample_rate: samples per second that the sound is brought to.
        bands: mel-spaced frequency bands.
        longest: the most frames; sound after them is left out. 1,024 are 10.255 seconds.
    """

    kind: ClassVar[str] = "spectrograms"
    suffix: ClassVar[str] = ".npy"

    sample_rate: int = 16000
    bands: int = 128
    longest: int = 1024

    def make(self, ffmpeg: FFmpeg, video: Path, target: Path) -> None:
        """Write the spectrogram into a new file.

        Raises:
            BrokenVideoError: if the video is broken, has no sound, or less than a frame of it.
        """
        most = round(self.sample_rate * (_FRAME + (self.longest - 1) * _SHIFT))
        # 16 bits, because ffmpeg mixes floating point channels to a sum, 3 dB louder, and not to a mean
        form = ["-ac", "1", "-ar", str(self.sample_rate), "-t", str(most / self.sample_rate), "-f", "s16le", "pipe:1"]
        with ffmpeg.decode(video, "audio", form) as pipe:
            samples = np.frombuffer(pipe.read(), dtype="<i2")[:most]
        if len(samples) < self.sample_rate * _FRAME:
            length = 1000 * len(samples) / self.sample_rate
            raise BrokenVideoError(f"{length:g} ms of sound, less than a frame of 25 ms")
        waveform = torch.from_numpy(samples.astype(np.float32) / 32768)
        np.save(target, log_mel(waveform, self.sample_rate, n_mels=self.bands).half().numpy())
