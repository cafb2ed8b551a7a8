# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The Free Spoken Digit Dataset as its authors publish it: fetched, read, and turned into spectrograms of one size."""

from __future__ import annotations

import io
import os
import re
import shutil
import tempfile
import urllib.request
import wave
import zipfile
import zlib
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from torch import Tensor
from torch.nn import functional as F

from lightning_crmt.data.read.spectrogram import LOG_FLOOR, frame_count, log_mel

#: The release with all six speakers, 16 MB.
ARCHIVE = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.zip"
#: Samples per second of every recording.
SAMPLE_RATE = 8000

_TIMEOUT = 60.0  # seconds without an answer
_NAME = re.compile(r"(\d)_(.+)_(\d+)\.wav")
_ARCHIVE_KEYS = ("audio", "length", "label", "speaker", "index", "speakers", "sample_rate")


class Recordings(NamedTuple):
    """Spoken digits in the order of digit, speaker and index.

    Attributes:
        waveforms: samples in [-1, 1] of each recording, ``(T,)``.
        label: the digits, ``(N,)``.
        speakers: name of the speaker of each.
        names: of each, for messages.
    """

    waveforms: list[Tensor]
    label: Tensor
    speakers: list[str]
    names: list[str]


def fetch_recordings(folder: str | Path, url: str | None = None) -> None:
    """Fetch the archive and unpack its recordings into ``folder / "recordings"``, unless something is there already.

    Everything is prepared beside the folder, which is then renamed, so that a folder with something in it is complete:
    a failure on the way leaves nothing behind.

    Args:
        folder: where to; made, with its parents.
        url: a ``.zip`` with files ``recordings/*.wav`` anywhere in it; by default ``ARCHIVE``.

    Raises:
        RuntimeError: if the archive cannot be fetched, or is broken, or holds no recordings.
    """
    folder, url = Path(folder), url or ARCHIVE
    if _holds_something(folder):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (
            tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as work,
            zipfile.ZipFile(_download(url)) as archive,
        ):
            files = [name for name in archive.namelist() if PurePosixPath(name).match("recordings/*.wav")]
            if not files:
                raise zipfile.BadZipFile("the archive holds no recordings/*.wav")
            ready = Path(work, "ready")
            (ready / "recordings").mkdir(parents=True)
            for name in files:
                # By its last part alone, so that no name leads out of the folder; reading verifies the checksum.
                (ready / "recordings" / PurePosixPath(name).name).write_bytes(archive.read(name))
            if folder.exists():
                folder.rmdir()
            os.rename(ready, folder)
    except (OSError, HTTPException, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if not _holds_something(folder):  # else another process was faster
            raise RuntimeError(
                f"could not fetch {url} into {folder}: {error}; without a network, put a copy of the Free Spoken Digit "
                "Dataset there"
            ) from error


def _holds_something(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()


def _download(url: str) -> io.BytesIO:
    content = io.BytesIO()
    with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:
        total = int(response.headers.get("Content-Length") or 0)
        with Tqdm.wrapattr(response, "read", total=total or None, desc="recordings", leave=False) as reader:
            shutil.copyfileobj(reader, content)
    # A connection that breaks off reads like one that ends.
    if total and content.tell() != total:
        raise OSError(f"broke off after {content.tell()} of {total} bytes")
    return content


def read_recordings(path: str | Path) -> Recordings:
    """Read a folder of files ``{digit}_{speaker}_{index}.wav``, or all of them packed into one ``.npz``.

    Args:
        path: a folder that holds the files, or whose folder ``recordings`` does, 8 kHz, one channel of 16 bits; or an
            ``.npz`` with ``audio``, the int16 samples of all recordings in a row, ``length``, ``label``, ``speaker``
            and ``index`` of each, the names ``speakers``, and ``sample_rate``.

    Raises:
        FileNotFoundError: if there is no such path.
        ValueError: if there is no recording, or one is broken or not as expected; the message names the file.
    """
    path = Path(path)
    if path.suffix == ".npz" and path.is_file():
        rows = _read_archive(path)
    elif path.is_dir():
        files = list(path.glob("*.wav")) or list((path / "recordings").glob("*.wav"))
        if not files:
            raise ValueError(f"{path} must hold files {{digit}}_{{speaker}}_{{index}}.wav, got none")
        rows = [(*_parse(file), _read_wave(file)) for file in files]
    else:
        raise FileNotFoundError(
            f"there is no folder or .npz {path} with recordings; SpokenWrittenDigits(download=True) fetches them"
        )
    rows.sort(key=lambda row: row[:3])
    digits, speakers, indices, samples = zip(*rows, strict=True)
    return Recordings(
        waveforms=[torch.from_numpy(each.astype(np.float32) / 2**15) for each in samples],
        label=torch.tensor(digits),
        speakers=list(speakers),
        names=[f"{path}: {digits[i]}_{speakers[i]}_{indices[i]}.wav" for i in range(len(digits))],
    )


def spectrograms(recordings: Recordings, frames: int, n_mels: int, dynamic_range: float | None = None) -> Tensor:
    r"""Log-mel spectrograms of one size, ``(N, 1, frames, n_mels)``.

    A short recording ends in silence, the floor of ``log_mel``; a long one loses what is beyond ``frames``.
    A ``dynamic_range`` :math:`R` takes the loudness of voice and microphone out of the energies :math:`L`,

    .. math:: x_{tb} = \max(L_{tb} - \max_{t'b'} L_{t'b'}, -R)

    so that the loudest moment of each recording is 0, and silence is :math:`-R`.

    Args:
        recordings: what to transform.
        frames: frames of 25 ms, 10 ms from start to start.
        n_mels: bands.
        dynamic_range: from the loudest moment to silence, in log energy, above 0; 10 is 43 decibels.

    Raises:
        ValueError: if a recording is shorter than a frame; the message names it.
    """
    counts = []
    for name, waveform in zip(recordings.names, recordings.waveforms, strict=True):
        try:
            counts.append(frame_count(len(waveform), SAMPLE_RATE, 25.0, 10.0))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    length = SAMPLE_RATE * 25 // 1000 + (frames - 1) * SAMPLE_RATE * 10 // 1000
    even = torch.stack([F.pad(each[:length], (0, max(0, length - len(each)))) for each in recordings.waveforms])
    # In portions that fit the cache of the processor.
    whole = torch.cat([log_mel(part, SAMPLE_RATE, n_mels, 25.0, 10.0) for part in torch.split(even, 64)])
    # Frames that reach into the padding are not the recording's.
    beyond = torch.arange(frames) >= torch.tensor(counts).unsqueeze(1)
    whole = whole.masked_fill(beyond.unsqueeze(2), LOG_FLOOR)
    if dynamic_range is not None:
        whole = (whole - whole.amax((1, 2), keepdim=True)).clamp_min(-dynamic_range)
        whole = whole.masked_fill(beyond.unsqueeze(2), -dynamic_range)
    return whole.unsqueeze(1)


def _parse(file: Path) -> tuple[int, str, int]:
    match = _NAME.fullmatch(file.name)
    if match is None:
        raise ValueError(f"{file} must be named {{digit}}_{{speaker}}_{{index}}.wav")
    return int(match[1]), match[2], int(match[3])


def _read_wave(file: Path) -> np.ndarray:
    try:
        with wave.open(str(file), "rb") as opened:
            kind = (opened.getframerate(), opened.getnchannels(), 8 * opened.getsampwidth())
            count = opened.getnframes()
            data = opened.readframes(count)
    except (wave.Error, EOFError) as error:
        raise ValueError(f"{file} must be a WAV file: {str(error) or 'it ends too early'}") from error
    if kind != (SAMPLE_RATE, 1, 16):
        raise ValueError(
            f"{file} must have {SAMPLE_RATE} Hz, 1 channel and 16 bits, got {kind[0]} Hz, {kind[1]} and {kind[2]}"
        )
    if len(data) != 2 * count:
        raise ValueError(f"{file} must hold the {count} samples it announces, got {len(data) // 2}")
    return np.frombuffer(data, dtype="<i2")


def _read_archive(path: Path) -> list[tuple[int, str, int, np.ndarray]]:
    try:
        with np.load(path) as archive:
            content = {key: archive[key] for key in _ARCHIVE_KEYS if key in archive}
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if len(content) < len(_ARCHIVE_KEYS):
        raise ValueError(f"{path} must hold {list(_ARCHIVE_KEYS)}, got {list(content)}")
    audio, length, label, speaker, index, names, rate = content.values()
    if int(rate) != SAMPLE_RATE or audio.dtype != np.int16 or int(length.sum()) != len(audio):
        raise ValueError(
            f"{path} must hold int16 `audio` of {SAMPLE_RATE} Hz, as many samples as `length` adds up to, "
            f"got {audio.dtype}, {int(rate)} Hz, {len(audio)} and {int(length.sum())} samples"
        )
    pieces = np.split(audio, np.cumsum(length)[:-1])
    return [
        (int(label[i]), str(names[speaker[i]]), int(index[i]), pieces[i])  # as in the names of the files
        for i in range(len(pieces))
    ]
