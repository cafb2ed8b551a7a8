# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Optical flow between successive pictures of a video."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, ClassVar, Literal

import numpy as np

from lightning_crmt.data.prepare.ffmpeg import BrokenVideoError, FFmpeg

_QUALITY = 95


@dataclass(frozen=True)
class Flow:
    r"""Flow from each picture to the next, ``u/000001.jpg`` to the right and ``v/000001.jpg`` downwards, ...

    A displacement of :math:`d` pixels of the scaled picture, between plus and minus ``bound``, becomes the grey value

    .. math:: g = \mathrm{round}(128 + 127.5 d / \mathrm{bound})

    within 0 to 255, so that :math:`(g - 128) / 127.5 \cdot \mathrm{bound}` is :math:`d` again, and exactly 0 where
    nothing moves.

    Args:
        size: shorter side, pixels.
        fps: pictures per second; by default every picture of the video once, at whatever rate.
        bound: the largest displacement that is told, pixels.
        method: ``dis``, dense inverse search (Kroeger et al., 2016), or ``tvl1``, duality-based TV-L1 (Zach et al.,
            2007), which needs ``opencv-contrib-python-headless`` and takes more than a hundred times as long.
    """

    kind: ClassVar[str] = "flow"
    suffix: ClassVar[str] = ""

    size: int = 256
    fps: float | None = None
    bound: float = 20.0
    method: Literal["dis", "tvl1"] = "dis"

    def make(self, ffmpeg: FFmpeg, video: Path, target: Path) -> None:
        """Write the flow into a new folder.

        Raises:
            BrokenVideoError: if the video is broken, or has a single picture.
        """
        cv2, estimate = _opencv(), flow_estimator(self.method)
        for name in ("u", "v"):
            (target / name).mkdir(parents=True)
        number = 0
        with ffmpeg.decode(video, "video", self._form()) as pipe:
            for number, (before, after) in enumerate(pairwise(_pictures(pipe)), start=1):
                if before.shape != after.shape:
                    raise BrokenVideoError(f"pictures change from {before.shape[::-1]} to {after.shape[::-1]} pixels")
                levels = flow_levels(estimate(before, after), self.bound)
                for axis, name in enumerate(("u", "v")):
                    _, jpeg = cv2.imencode(".jpg", levels[..., axis], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
                    (target / name / f"{number:06d}.jpg").write_bytes(jpeg.tobytes())
        if not number:
            raise BrokenVideoError("less than two pictures")

    def _form(self) -> list[str]:
        chosen = "" if self.fps is None else f"fps=fps={self.fps!r},"
        # Pictures numbered evenly, for ffmpeg repeats or drops none of those, and its option that says just that has
        # changed its name. A second apart, since a picture shown for longer than it lasts here would be repeated.
        even = "settb=1,setpts=N"
        scaled = f"{chosen}{even},scale={self.size}:{self.size}:force_original_aspect_ratio=increase:flags=bicubic"
        return ["-vf", scaled, "-r", "1", "-pix_fmt", "gray", "-c:v", "pgm", "-f", "image2pipe", "pipe:1"]


def flow_levels(flow: np.ndarray[Any, Any], bound: float) -> np.ndarray[Any, Any]:
    """Displacements in pixels as grey values.

    >>> flow_levels(np.array([-30.0, -20.0, 0.0, 5.0, 20.0]), bound=20)
    array([  0,   0, 128, 160, 255], dtype=uint8)
    """
    return np.clip(np.rint(128 + 127.5 * flow / bound), 0, 255).astype(np.uint8)


def flow_estimator(name: Literal["dis", "tvl1"]) -> Callable[[Any, Any], np.ndarray[Any, Any]]:
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
    try:
        import cv2  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        raise ModuleNotFoundError('optical flow needs OpenCV: pip install "lightning_crmt[video]"') from None
    return cv2


def _pictures(pipe: IO[bytes]) -> Iterator[np.ndarray[Any, Any]]:
    """Pictures in the format PGM, one after the other, each of which says its size."""
    while pipe.readline() == b"P5\n":
        width, height = (int(side) for side in pipe.readline().split())
        pipe.readline()
        pixels = pipe.read(width * height)
        if len(pixels) == width * height:
            yield np.frombuffer(pixels, np.uint8).reshape(height, width)
