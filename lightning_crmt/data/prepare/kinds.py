# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The kinds of output that a video becomes, each with its settings: frames, spectrograms, optical flow."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, ClassVar, Literal, TypeAlias

import numpy as np
import torch

from lightning_crmt.checks import require_package
from lightning_crmt.data.prepare.ffmpeg import BrokenVideoError, FFmpeg
from lightning_crmt.data.read.spectrogram import log_mel

_FRAME, _SHIFT = 0.025, 0.010
_QUALITY = 95
#: Seconds by which the times that a file states for its sound may be wrong: formats round them, recorders are late.
_JITTER = 0.1

Array: TypeAlias = "np.ndarray[Any, Any]"
Method: TypeAlias = Literal["dis", "tvl1"]


@dataclass(frozen=True)
class Frames:
    """Pictures ``000001.jpg``, ``000002.jpg``, ...: each from the middle of the ``1 / fps`` seconds that it shows.

    A video of :math:`D` seconds has ``D * fps`` of them, rounded, and at least one. Time begins where pictures or sound
    begin, whichever is first; before the first picture there is the first picture. Pixels are made square, and pictures
    turned as the video says.

    Args:
        fps: pictures per second.
        size: shorter side, pixels.
    """

    kind: ClassVar[str] = "frames"
    suffix: ClassVar[str] = ""

    fps: float = 1.0
    size: int = 256

    def make(self, ffmpeg: FFmpeg, video: Path, target: Path) -> None:
        """Write the pictures into a new folder.

        Raises:
            BrokenVideoError: if the video is broken.
        """
        target.mkdir()
        try:
            self._write(ffmpeg, video, target, f"{_at_rate(self.fps)},")
        except BrokenVideoError:
            if any(target.iterdir()):
                raise
        if not any(target.iterdir()):
            # Shorter than half of 1 / fps, or broken: decoding all of it tells which.
            self._write(ffmpeg, video, target, "select=eq(n\\,0),")
        if not any(target.iterdir()):
            raise BrokenVideoError("no picture")

    def _write(self, ffmpeg: FFmpeg, video: Path, target: Path, choice: str) -> None:
        form = ["-vf", f"{choice}{_scale(self.size)}", *ffmpeg.every_picture, "-q:v", "2", "%06d.jpg"]
        with ffmpeg.decode(video, "video", form, folder=target) as pipe:
            pipe.read()


@dataclass(frozen=True)
class Spectrograms:
    """Logarithms of mel-spaced energies ``(T, bands)``, in half precision, of the first sound track, as one channel.

    Frames of 25 ms, every 10 ms, as ``log_mel`` computes them; neither normalised nor padded. Row ``t`` is what is
    heard ``t / 100`` seconds after pictures or sound begin, whichever is first: where sound begins late or has a gap of
    more than 0.1 seconds, there is silence.

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
        # 16 bits, because of floating point channels ffmpeg makes a sum, 3 dB louder, and not a mean. The table says
        # when each piece is heard.
        form = ["-ac", "1", "-ar", str(self.sample_rate), "-c:a", "pcm_s16le"]
        form += ["-f", "tee", "[f=s16le]pipe:1|[f=framecrc]times"]
        with tempfile.TemporaryDirectory() as folder:
            with ffmpeg.decode(video, "audio", form, Path(folder), seconds=most / self.sample_rate + 1) as pipe:
                sound = np.frombuffer(pipe.read(), dtype="<i2")
            samples, heard = _in_time(sound, _times(Path(folder, "times")), most, self.sample_rate)
        if heard < self.sample_rate * _FRAME:
            length = 1000 * heard / self.sample_rate
            raise BrokenVideoError(f"{length:g} ms of sound, less than a frame of 25 ms")
        waveform = torch.from_numpy(samples.astype(np.float32) / 32768)
        np.save(target, log_mel(waveform, self.sample_rate, n_mels=self.bands).half().numpy())


@dataclass(frozen=True)
class Flow:
    r"""Flow from each picture to the next, ``u/000001.jpg`` to the right and ``v/000001.jpg`` downwards, ...

    Pictures are those of the video, each once, for however long it is shown. Pixels are made square as those of frames.

    A displacement of :math:`d` pixels of the scaled picture, within plus and minus ``bound``, becomes the grey value

    .. math:: g = \mathrm{round}(128 + 127.5 d / \mathrm{bound})

    within 0 to 255, so that :math:`(g - 128) / 127.5 \cdot \mathrm{bound}` is :math:`d` again, and exactly 0 where
    nothing moves.

    Args:
        size: shorter side, pixels.
        fps: pictures per second; by default every picture of the video once.
        bound: the largest displacement that is kept, pixels.
        method: ``dis``, dense inverse search (Kroeger et al., 2016), or ``tvl1``, duality-based TV-L1 (Zach et al.,
            2007), which needs ``opencv-contrib-python-headless`` and takes more than a hundred times as long.
    """

    kind: ClassVar[str] = "flow"
    suffix: ClassVar[str] = ""

    size: int = 256
    fps: float | None = None
    bound: float = 20.0
    method: Method = "dis"

    def make(self, ffmpeg: FFmpeg, video: Path, target: Path) -> None:
        """Write the flow into a new folder.

        Raises:
            BrokenVideoError: if the video is broken, or has a single picture.
        """
        cv2, estimate = _opencv(), flow_estimator(self.method)
        chosen = "" if self.fps is None else f"{_at_rate(self.fps)},"
        # Far apart, since some versions refuse pictures of one time, which broken recorders make.
        chosen += f"settb=1000,setpts=N,{_scale(self.size)}"
        form = ["-vf", chosen, *ffmpeg.every_picture, "-pix_fmt", "gray", "-c:v", "pgm"]
        for name in ("u", "v"):
            (target / name).mkdir(parents=True)
        number = 0
        with ffmpeg.decode(video, "video", [*form, "-f", "image2pipe", "pipe:1"]) as pipe:
            for number, (before, after) in enumerate(pairwise(_pictures(pipe)), start=1):
                levels = flow_levels(estimate(before, after), self.bound)
                for axis, name in enumerate(("u", "v")):
                    _, jpeg = cv2.imencode(".jpg", levels[..., axis], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
                    (target / name / f"{number:06d}.jpg").write_bytes(jpeg.tobytes())
        if not number:
            raise BrokenVideoError("less than two pictures")


def _times(table: Path) -> Iterator[tuple[int, int]]:
    """Start and length, in samples, of each piece of a sound, by lines ``stream, dts, pts, length, ...``."""
    for line in table.read_text("ascii").splitlines():
        if not line.startswith("#"):
            _, _, start, length, *_ = line.split(",")
            yield int(start), int(length)


def _in_time(sound: Array, pieces: Iterable[tuple[int, int]], most: int, rate: int) -> tuple[Array, int]:
    """The first ``most`` samples from the start of time on, silence where no sound is; and how many are heard.

    >>> samples, heard = _in_time(np.array([1, 2, 3, 4]), [(3, 2), (7, 2)], most=8, rate=10)
    >>> samples.tolist(), heard
    ([0, 0, 0, 1, 2, 0, 0, 3], 3)
    """
    track, taken, end, last, heard = np.zeros(most, sound.dtype), 0, 0, 0, 0
    for start, length in pieces:
        if not taken or abs(start - end) > _JITTER * rate:
            end = start
        piece = sound[taken : taken + length][max(0, -end) : max(0, most - end)]
        place = max(0, end)
        track[place : place + len(piece)] = piece
        heard += len(piece)
        last = max(last, place + len(piece))
        taken, end = taken + length, end + length
    return track[:last], heard


def flow_levels(flow: Array, bound: float) -> Array:
    """Displacements in pixels as grey values.

    >>> flow_levels(np.array([-30.0, -20.0, 0.0, 5.0, 20.0]), bound=20)
    array([  0,   0, 128, 160, 255], dtype=uint8)
    """
    return np.clip(np.rint(128 + 127.5 * flow / bound), 0, 255).astype(np.uint8)


def flow_estimator(name: Method) -> Callable[[Any, Any], Array]:
    """A function of two grey pictures ``(H, W)`` that gives displacements ``(H, W, 2)``, to the right and downwards.

    Raises:
        ModuleNotFoundError: if OpenCV, or its part with that method, is not installed.
    """
    cv2 = _opencv()
    if name == "dis":
        search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    elif hasattr(cv2, "optflow"):
        search = cv2.optflow.DualTVL1OpticalFlow.create()
    else:
        raise ModuleNotFoundError(
            "the flow method 'tvl1' is not in opencv-python-headless: install opencv-contrib-python-headless in its "
            "place, or take 'dis'"
        )
    return lambda before, after: search.calc(before, after, None)


def _opencv() -> Any:
    return require_package("cv2", "optical flow needs OpenCV", "video")


def _at_rate(fps: float) -> str:
    """The filter of ffmpeg that gives so many pictures per second, from the start of time on.

    Where pictures begin after the sound, the first one also stands for the time before it.
    """
    return f"fps=fps={fps!r}:start_time=0"


def _scale(size: int) -> str:
    """The filter of ffmpeg that makes the shorter side ``size`` pixels long, as displayed: pixels become square."""
    return f"scale='if(gt(dar,1),round({size}*dar),{size})':'if(gt(dar,1),{size},round({size}/dar))':flags=bicubic"


def _pictures(pipe: IO[bytes]) -> Iterator[Array]:
    """Pictures in the format PGM, one after the other, each of which says its size."""
    while pipe.readline() == b"P5\n":
        width, height = (int(side) for side in pipe.readline().split())
        pipe.readline()
        pixels = pipe.read(width * height)
        if len(pixels) == width * height:
            yield np.frombuffer(pixels, np.uint8).reshape(height, width)


#: A maker of one kind of output.
Maker: TypeAlias = Frames | Spectrograms | Flow
