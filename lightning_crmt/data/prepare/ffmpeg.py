# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Decode videos with the program ffmpeg, and tell broken ones from whole ones."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
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

#: What ffmpeg informs of where the pictures of a stream change; old width and height, new width and height.
CHANGE = re.compile(r"filter context - w: (\d+) h: (\d+) .*incoming frame - w: (\d+) h: (\d+) ")

_STREAMS = {"video": "0:V:0", "audio": "0:a:0"}  # V is any video except covers and thumbnails


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
        #: Options for an output that gets each picture once, whatever its time.
        self.every_picture = [_name_of_rate_mode(self.program), "passthrough"]
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    @contextmanager
    def decode(
        self,
        video: Path,
        stream: Literal["video", "audio"],
        output: Sequence[str],
        folder: Path | None = None,
        seconds: float | None = None,
    ) -> Iterator[IO[bytes]]:
        """Read what ffmpeg writes to its standard output, then check that the video was whole.

        Time begins where the first of the pictures or the sound begins, whichever of them is decoded.

        A video counts as broken if ffmpeg fails, if it reports any error except those of ``HARMLESS``, even if it could
        decode the rest, if its pictures change their size, or if an AVI is shorter than its header says. Formats
        without lengths, such as MPEG streams, can be cut where no error shows.

        Args:
            video: the file.
            stream: decode its first stream of this kind.
            output: ffmpeg's options for what to write, and where.
            folder: where relative paths in ``output`` start.
            seconds: how much to read from the start; by default all.

        Raises:
            BrokenVideoError: if the video is broken.
            OSError: if the disk is full.
        """
        _check_length(video)
        # One set of filters for the whole stream: where ffmpeg begins a new one at a change of size, it loses pictures,
        # and brings what follows to the proportions of what came before.
        source = ["-threads", "1", "-reinit_filter", "0"] if stream == "video" else ["-threads", "1"]
        source += [] if seconds is None else ["-t", str(seconds)]
        # file: because names may start with a dash or have a colon
        source += ["-i", f"file:{video.absolute()}", "-map", _STREAMS[stream], "-threads", "1"]
        # In some formats, the time of what is decoded begins with the first stream that is used: so both are, a little.
        both = [word for each in _STREAMS.values() for word in ("-map", f"{each}?")]
        both += ["-c", "copy", "-frames:v", "1", "-frames:a", "1", "-f", "null", "-"]
        general = ["-nostdin", "-hide_banner", "-nostats", "-v", "level+info", "-y", "-filter_threads", "1"]
        command = [self.program, *general, *source, *output, *both]
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
            # A name may say anything, even that the disk is full.
            said = errors.read().replace(b"file:" + os.fsencode(video.absolute()), b"the video")
            reason = complaint(said.decode(errors="replace"), process.returncode, stream)
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
    level, lines = "error", []
    for line in errors.splitlines():
        # [h264 @ 0x5588] [warning] text; what has no level goes on with the line before
        text = re.sub(r"^(\[[^]]* @ [^]]*\] )*", "", line).strip()
        if match := re.match(r"\[(fatal|panic|error|warning|info)\] ?", text):
            level, text = match[1], text[match.end() :]
        if level in ("warning", "info"):
            if (change := CHANGE.search(text)) and change.groups()[:2] != change.groups()[2:]:
                lines.append("pictures change from {}x{} to {}x{} pixels".format(*change.groups()))
        elif text and not HARMLESS.search(text):
            lines.append(text)
    if any("No space left on device" in line for line in lines):
        raise OSError(errno.ENOSPC, "No space left on device")
    if any("matches no streams" in line for line in lines):
        return f"no {stream} stream"
    if lines:
        return lines[0]
    return None if status == 0 else f"ffmpeg ended with status {status}"


@cache
def _name_of_rate_mode(program: str) -> str:
    """What this version of ffmpeg calls the option for what happens to pictures between the ticks of a fixed rate.

    Versions before 5.1 know only the older name, and those after 7 only the newer one.
    """
    known = subprocess.run([program, "-hide_banner", "-h", "long"], capture_output=True, check=False).stdout
    return "-fps_mode" if b"-fps_mode" in known else "-vsync"


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
