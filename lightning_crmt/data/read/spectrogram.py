# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Log-mel spectrograms: of a waveform as Kaldi computes them, in torch alone, and of prepared clips."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from lightning_crmt.checks import check_at_least, check_positive, describe
from lightning_crmt.data.read.looks import Look, Reader

#: The smallest energy that differs from silence: the single precision epsilon, also in double precision.
ENERGY_FLOOR = torch.finfo(torch.float32).eps
#: What silence looks like in a spectrogram.
LOG_FLOOR = math.log(ENERGY_FLOOR)

_PREEMPHASIS = 0.97
_LOWEST_FREQUENCY = 20.0


def log_mel(
    waveform: Tensor, sample_rate: int, n_mels: int = 128, frame_length: float = 25.0, frame_shift: float = 10.0
) -> Tensor:
    r"""Logarithms of the energies in mel-spaced frequency bands, frame by frame: Kaldi's ``fbank``.

    Frame :math:`t` holds the :math:`W` samples from :math:`tS` on; only whole frames count. Its mean is removed, then
    each sample loses 0.97 times the one before it (the first, 0.97 times itself), then a symmetric Hann window is laid
    over it and the power spectrum :math:`P_t` taken at the next power of two:

    .. math:: L_{tb} = \log \max\Bigl(\epsilon, \sum_k w_b(k) P_t(k)\Bigr), \qquad
        \mathrm{mel}(f) = 1127 \ln(1 + f / 700)

    The triangles :math:`w_b` are linear in mel, with equidistant corners from 20 Hz to half the sample rate; each rises
    from the centre of the one before and falls to that of the next. The bin at half the sample rate is left out.
    A triangle so narrow that no bin falls into it, as one of 128 at 16 kHz, always gives :math:`\log \epsilon`, as in
    torchaudio, where Kaldi itself refuses. :math:`\epsilon` is the single precision epsilon.

    This is what the reference implementation of CRMT (Yang et al., 2024) and the audio models it follows take from
    ``torchaudio.compliance.kaldi.fbank`` with ``htk_compat=True, use_energy=False, window_type="hanning",
    num_mel_bins=128, dither=0.0, frame_shift=10``. Subtracting the mean of the waveform before, as they do, has no
    effect, since each frame loses its own. Source: D. Povey et al., "The Kaldi speech recognition toolkit", 2011, and
    its ``feature-window`` and ``mel-computations``.

    Args:
        waveform: samples in [-1, 1], ``(..., T)``, floating point; integers must be divided by their range first.
        sample_rate: samples per second.
        n_mels: number of bands.
        frame_length: length of a frame, milliseconds.
        frame_shift: from the start of a frame to the start of the next, milliseconds.

    Returns:
        ``(..., frames, n_mels)``, where ``frames`` is what ``frame_count`` says.

    Raises:
        TypeError: if ``waveform`` is not a floating point tensor.
        ValueError: if it is shorter than a frame, or not finite, or a setting is out of range.

    >>> log_mel(torch.sin(torch.arange(16000) * 0.1), sample_rate=16000).shape
    torch.Size([98, 128])
    """
    if not isinstance(waveform, Tensor) or not waveform.is_floating_point() or waveform.dim() < 1:
        raise TypeError(f"`waveform` must be a floating point tensor of samples in [-1, 1], got {describe(waveform)}")
    check_at_least(1, n_mels=n_mels)
    frame_count(waveform.shape[-1], sample_rate, frame_length, frame_shift)
    if not waveform.isfinite().all():
        raise ValueError("`waveform` must be finite, got NaN or Inf")
    if waveform.dtype not in (torch.float32, torch.float64):
        waveform = waveform.float()
    size, shift = _frame_sizes(sample_rate, frame_length, frame_shift)
    frames = waveform.unfold(-1, size, shift)
    frames = frames - frames.mean(-1, keepdim=True)
    before = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
    window = torch.hann_window(size, periodic=False, dtype=waveform.dtype, device=waveform.device)
    padded = 2 ** math.ceil(math.log2(size))
    spectrum = torch.fft.rfft((frames - _PREEMPHASIS * before) * window, n=padded)
    power = spectrum.real.square() + spectrum.imag.square()
    bands = _mel_bands(n_mels, padded, sample_rate).to(waveform)
    return F.linear(power[..., :-1], bands).clamp_min(ENERGY_FLOOR).log()


def frame_count(samples: int, sample_rate: int, frame_length: float = 25.0, frame_shift: float = 10.0) -> int:
    r"""Number of frames in ``samples`` samples, :math:`1 + \lfloor (T - W) / S \rfloor`: what is left over is dropped.

    Raises:
        ValueError: if that is not even one, or a setting is out of range.

    >>> frame_count(400, sample_rate=16000), frame_count(16000, sample_rate=16000)
    (1, 98)
    """
    size, shift = _frame_sizes(sample_rate, frame_length, frame_shift)
    if samples < size:
        raise ValueError(
            f"`waveform` must hold at least one frame of {frame_length:g} ms = {size} samples at {sample_rate} Hz, "
            f"got {samples} samples = {1000 * samples / sample_rate:g} ms"
        )
    return 1 + (samples - size) // shift


def _frame_sizes(sample_rate: int, frame_length: float, frame_shift: float) -> tuple[int, int]:
    if sample_rate <= 2 * _LOWEST_FREQUENCY:
        raise ValueError(f"`sample_rate` must be above {2 * _LOWEST_FREQUENCY:g} Hz, got {sample_rate}")
    for name, value, least in (("frame_length", frame_length, 2), ("frame_shift", frame_shift, 1)):
        if not math.isfinite(value) or value * sample_rate < 1000 * least:
            raise ValueError(
                f"`{name}` must be at least {least} samples, {1000 * least / sample_rate:g} ms at {sample_rate} Hz, "
                f"got {value} ms"
            )
    return int(frame_length * sample_rate / 1000), int(frame_shift * sample_rate / 1000)


@dataclass(frozen=True)
class SpectrogramReader(Reader):
    r"""The spectrogram of a clip, ``(1, frames, 128)``: cut or padded with zeros, then :math:`(x - \mu) / 2 \sigma`.

    Padding comes first, as in the audio models that this scaling is from (Gong et al., Interspeech 2021).

    Args:
        mean: :math:`\mu`.
        std: :math:`\sigma`.
        frames: length.
    """

    kind: ClassVar[str] = "spectrograms"
    suffix: ClassVar[str] = ".npy"
    bands: ClassVar[int] = 128

    mean: float
    std: float
    frames: int = 1024

    def __post_init__(self) -> None:
        check_positive(audio_std=self.std)
        if not math.isfinite(self.mean):
            raise ValueError(f"`audio_mean` must be finite, got {self.mean}")

    @override
    def __call__(self, clip: str, look: Look) -> Tensor:
        path = self.path(clip)
        try:
            stored = np.load(path, mmap_mode="r")  # so that what is longer than needed is not read
            if stored.ndim != 2 or stored.shape[1] != self.bands or not stored.shape[0]:
                raise ValueError(f"expected shape (T, {self.bands}), got {stored.shape}")
            energies = torch.from_numpy(np.array(stored[: self.frames], dtype=np.float32))
            if not energies.isfinite().all():
                raise ValueError("it holds NaN or Inf")
        except (OSError, ValueError, TypeError, EOFError) as error:
            raise RuntimeError(f"{path} cannot be used ({error}): delete it and prepare it again") from error
        padded = F.pad(energies, (0, 0, 0, self.frames - len(energies)))
        return padded[None].sub_(self.mean).div_(2 * self.std)


@lru_cache(maxsize=8)
def _mel_bands(n_mels: int, fft_size: int, sample_rate: int) -> Tensor:
    """Weights ``(n_mels, fft_size / 2)`` of the frequencies in each band, in double precision."""
    frequencies = torch.arange(fft_size // 2, dtype=torch.float64) * (sample_rate / fft_size)
    place = 1127 * (1 + frequencies / 700).log()
    lowest, highest = (1127 * math.log(1 + f / 700) for f in (_LOWEST_FREQUENCY, sample_rate / 2))
    step = (highest - lowest) / (n_mels + 1)
    centre = lowest + step * torch.arange(1, n_mels + 1, dtype=torch.float64).unsqueeze(1)
    return (1 - (place - centre).abs() / step).clamp_min(0)
