# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Decode videos with the program ffmpeg, and tell broken ones from whole ones."""

from __future__ import annotations

import errno
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from threading import Timer
from typing import IO, Literal, cast

#: Seconds after which a file that still keeps ffmpeg busy counts as broken.
TIME_LIMIT = 3600.0

#: What ffmpeg calls an error although all that is lost is a part of some pictures before the first key frame: videos
#: cut without encoding them again, as clips of data sets often are, begin in the middle of a group of pictures.
HARMLESS = re.compile(
    "co located POCs unavailable|mmco: unref short failure|[Rr]eference picture missing|Missing reference picture"
    "|Could not find ref with POC|illegal short term buffer state|number of reference frames .* exceeds max"
    "|first frame is no keyframe|Invalid frame dimensions 0x0|Last message repeated"
)

_STREAMS = {"video": ("0:V:0", "-an"), "audio": ("0:a:0", "-vn")}  # V is any video except covers and thumbnails


class BrokenVideoError(Exception):
    """A video that cannot be decoded to its end; the message is the reason, in a line."""


def ffmpeg_program() -> str:
    """The ``ffmpeg`` on the PATH, or else that of the package imageio-ffmpeg.

    Raises:
        FileNotFoundError: if there is neither.
    """
    try:
        return shutil.which("ffmpeg") or str(import_module("imageio_ffmpeg").get_ffmpeg_exe())
    except (ImportError, RuntimeError):
        raise FileNotFoundError(
            "videos are decoded by the program ffmpeg, which is not on the PATH: install it, or one for Python with "
            'pip install "lightning_crmt[video]"'
        ) from None


class FFmpeg:
    """Runs ffmpeg, any number of times at once, each in one thread, until it is stopped.

    Raises:
        FileNotFoundError: if there is no ffmpeg.
    """

    def __init__(self) -> None:
        self.program = ffmpeg_program()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    @contextmanager
    def decode(
        self, video: Path, stream: Literal["video", "audio"], output: Sequence[str], folder: Path | None = None
    ) -> Iterator[IO[bytes]]:
        """Read what ffmpeg writes to its standard output, then check that the video was whole.

        A video counts as broken if ffmpeg fails, if it reports any error except those of ``HARMLESS``, even if it could
        decode the rest, or if an AVI is shorter than its header says. Formats without lengths, such as MPEG streams,
        can be cut where no error shows.

        Args:
            video: the file.
            stream: decode its first stream of this kind.
            output: ffmpeg's options for what to write, and where.
            folder: where relative paths in ``output`` start.

        Raises:
            BrokenVideoError: if the video is broken.
            OSError: if the disk is full.
        """
        _check_length(video)
        chosen, without = _STREAMS[stream]
        # file: because names may start with a dash or have a colon
        source = ["-threads", "1", "-i", f"file:{video.absolute()}", "-map", chosen, without, "-sn", "-dn"]
        quietly = ["-nostdin", "-v", "error", "-y", "-filter_threads", "1"]
        command = [self.program, *quietly, *source, "-threads", "1", *output]
        with tempfile.TemporaryFile() as errors:
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, cwd=folder) as process:
                self._running.add(process)
                if self._stopped:
                    process.kill()
                timer = Timer(TIME_LIMIT, process.kill)
                timer.start()
                try:
                    yield cast("IO[bytes]", process.stdout)
                    process.wait()
                except BaseException:
                    process.kill()
                    raise
                finally:
                    late = timer.finished.is_set()
                    timer.cancel()
                    self._running.discard(process)
            errors.seek(0)
            reason = complaint(errors.read(100_000).decode(errors="replace"), process.returncode, stream)
        if late:
            raise BrokenVideoError(f"decoding took longer than {TIME_LIMIT:g} seconds")
        if reason is not None:
            raise BrokenVideoError(reason)

    def stop(self) -> None:
        """Stop decoding; whatever is decoded now or later counts as broken."""
        self._stopped = True
        for process in tuple(self._running):
            process.kill()


def complaint(errors: str, status: int = 0, stream: str = "video") -> str | None:
    """Why a video is broken, in a line, from what ffmpeg reported when it decoded a stream; None if it is whole.

    Raises:
        OSError: if the disk is full, which is not the video's fault.

    >>> complaint("[mov,mp4 @ 0x5588] moov atom not found\\nError opening input file a.mp4.", status=1)
    'moov atom not found'
    >>> complaint("[h264 @ 0x5588] co located POCs unavailable") is None
    True
    """
    if "No space left on device" in errors:
        raise OSError(errno.ENOSPC, "No space left on device")
    if "matches no streams" in errors:
        return f"no {stream} stream"
    lines = [re.sub(r"^(\[[^]]*\] )+", "", line).strip() for line in errors.splitlines()]
    lines = [line for line in lines if line and not HARMLESS.search(line)]
    if lines:
        return lines[0]
    return None if status == 0 else f"ffmpeg ended with status {status}"


def _check_length(video: Path) -> None:
    """Refuse cut AVI files, which ffmpeg decodes without a word; the header says how long the file is."""
    try:
        with video.open("rb") as file:
            head = file.read(12)
        length = video.stat().st_size
    except OSError as error:
        raise BrokenVideoError(error.strerror or str(error)) from None
    if not length:
        raise BrokenVideoError("the file is empty")
    if head[:4] == b"RIFF" and head[8:] == b"AVI ":
        said = int.from_bytes(head[4:8], "little")
        # A recorder that could not seek back left 0 or the maximum; an odd length may leave out the padding byte.
        if said != 0xFFFFFFFF and said + 8 > length + 1:
            raise BrokenVideoError(f"the file ends after {length} of {said + 8} bytes")
