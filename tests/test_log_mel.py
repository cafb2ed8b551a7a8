# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
import cmath
import math
import re

import pytest
import torch

from lightning_crmt.data.read.spectrogram import ENERGY_FLOOR, LOG_FLOOR, frame_count, log_mel


def mel(frequency):
    return 1127 * math.log(1 + frequency / 700)


def oracle(samples, rate, n_mels, length, shift):
    """Slow loops, the Fourier transform by its definition."""
    size, hop = int(rate * length / 1000), int(rate * shift / 1000)
    fft = 1
    while fft < size:
        fft *= 2
    step = (mel(rate / 2) - mel(20)) / (n_mels + 1)
    out = []
    start = 0
    while start + size <= len(samples):
        frame = samples[start : start + size]
        mean = sum(frame) / size
        frame = [value - mean for value in frame]
        frame = [frame[i] - 0.97 * frame[max(i - 1, 0)] for i in range(size)]
        frame = [frame[i] * (0.5 - 0.5 * math.cos(2 * math.pi * i / (size - 1))) for i in range(size)]
        power = []
        for k in range(fft // 2):
            power.append(abs(sum(frame[i] * cmath.exp(-2j * math.pi * i * k / fft) for i in range(size))) ** 2)
        row = []
        for band in range(n_mels):
            left = mel(20) + band * step
            centre, right = left + step, left + 2 * step
            energy = 0.0
            for k in range(fft // 2):
                at = mel(k * rate / fft)
                if left < at <= centre:
                    energy += power[k] * (at - left) / (centre - left)
                elif centre < at < right:
                    energy += power[k] * (right - at) / (right - centre)
            row.append(math.log(max(energy, 2.0**-23)))
        out.append(row)
        start += hop
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.parametrize(
    ("rate", "n_mels", "length", "shift", "samples"),
    [(2000, 12, 25.0, 10.0, 173), (8000, 40, 16.0, 8.0, 300), (4410, 23, 25.0, 10.0, 200)],
)
def test_against_slow_loops(rate, n_mels, length, shift, samples):
    wave = torch.rand(samples, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    expected = oracle(wave.tolist(), rate, n_mels, length, shift)
    found = log_mel(wave, rate, n_mels, length, shift)
    assert found.shape == expected.shape == (frame_count(samples, rate, length, shift), n_mels)
    assert (found - expected).abs().max() < 1e-9
    assert (log_mel(wave.float(), rate, n_mels, length, shift) - expected).abs().max() < 1e-3


def test_against_kaldi():
    """Frames 0, 3, 6 and bands 0, 9, 20, 30 of this chirp by kaldi-native-fbank 1.23, which computes in single."""
    expected = [
        [-3.2681, 0.6234, -15.1395, -15.9424],
        [-10.5913, -6.9828, -1.4715, -15.9424],
        [-15.4302, -14.7457, 0.0571, -10.7776],
    ]
    time = torch.arange(800, dtype=torch.float64)
    found = log_mel(0.5 * torch.sin(0.001 * time * time), 8000, 40)[::3, [0, 9, 20, 30]]
    assert (found - torch.tensor(expected)).abs().max() < 2e-3


def test_a_constant_added_changes_nothing():
    wave = torch.rand(1600, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5
    assert (log_mel(wave + 0.3, 8000, 40) - log_mel(wave, 8000, 40)).abs().max() < 1e-9


def test_twice_the_amplitude_is_four_times_the_energy():
    wave = torch.rand(1600, generator=torch.Generator().manual_seed(0)) - 0.5
    assert log_mel(2 * wave, 8000, 40) - log_mel(wave, 8000, 40) == pytest.approx(math.log(4), abs=1e-4)


def test_silence_is_the_floor():
    assert torch.equal(log_mel(torch.zeros(800), 8000, 40), torch.full((8, 40), LOG_FLOOR))
    assert ENERGY_FLOOR == 2.0**-23


def test_a_tone_is_loudest_in_its_own_band():
    centres = [mel(20) + (band + 1) * (mel(4000) - mel(20)) / 41 for band in range(40)]
    for frequency in (300.0, 1000.0, 2500.0):
        tone = torch.sin(2 * math.pi * frequency * torch.arange(800) / 8000)
        nearest = min(range(40), key=lambda band: abs(centres[band] - mel(frequency)))
        assert log_mel(tone, 8000, 40).argmax(1).tolist() == [nearest] * 8


def test_a_batch_is_its_members():
    waves = torch.rand(2, 3, 500, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5
    found = log_mel(waves, 8000, 40)
    assert found.shape == (2, 3, 4, 40)
    assert torch.allclose(found[1, 2], log_mel(waves[1, 2], 8000, 40), rtol=0, atol=1e-9)


def test_half_precision_is_computed_in_single():
    assert log_mel(torch.zeros(800, dtype=torch.float16), 8000, 40).dtype is torch.float32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "`waveform` must hold at least one frame of 25 ms = 200 samples at 8000 Hz, got 199 samples = 24.875 ms"),
        ({"n_mels": 0}, "`n_mels` must be at least 1, got 0"),
        ({"sample_rate": 0}, "`sample_rate` must be above 40 Hz, got 0"),
        ({"frame_length": 0.1}, "`frame_length` must be at least 2 samples, 0.25 ms at 8000 Hz, got 0.1 ms"),
        ({"frame_length": math.nan}, "got nan ms"),
        ({"frame_shift": 0.0}, "`frame_shift` must be at least 1 samples, 0.125 ms at 8000 Hz, got 0.0 ms"),
        ({"frame_shift": -10.0}, "got -10.0 ms"),
        ({"frame_length": 10.0, "waveform": torch.full((199,), math.nan)}, "`waveform` must be finite"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        log_mel(**{"waveform": torch.zeros(199), "sample_rate": 8000, **settings})


@pytest.mark.parametrize("waveform", [torch.zeros(800, dtype=torch.int16), [0.0] * 800, torch.tensor(0.0)])
def test_not_samples(waveform):
    with pytest.raises(TypeError, match="`waveform` must be a floating point tensor of samples"):
        log_mel(waveform, 8000)
