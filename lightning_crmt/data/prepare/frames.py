# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Still pictures of a video, evenly spread."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lightning_crmt.data.prepare.ffmpeg import BrokenVideoError, FFmpeg


@dataclass(frozen=True)
class Frames:
    """Pictures ``000001.jpg``, ``000002.jpg``, ...: each from the middle of the ``1 / fps`` seconds it stands for.

    A video of :math:`D` seconds has ``D * fps`` of them, rounded, and at least one.

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
            self._write(ffmpeg, video, target, f"fps=fps={self.fps!r}")
        except BrokenVideoError:
            if any(target.iterdir()):
                raise
        if not any(target.iterdir()):
            # Shorter than half of 1 / fps, or broken: the whole is decoded again to tell.
            self._write(ffmpeg, video, target, "select=eq(n\\,0)")
        if not any(target.iterdir()):
            raise BrokenVideoError("no picture")

    def _write(self, ffmpeg: FFmpeg, video: Path, target: Path, choice: str) -> None:
        scaled = f"{choice},scale={self.size}:{self.size}:force_original_aspect_ratio=increase:flags=bicubic"
        with ffmpeg.decode(video, "video", ["-vf", scaled, "-q:v", "2", "%06d.jpg"], folder=target) as pipe:
            pipe.read()
