# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Turn a folder of videos into frames, spectrograms and optical flow: the function, its report and its command."""

from __future__ import annotations

import csv
import errno
import inspect
import json
import os
import shutil
import sys
import tempfile
from argparse import RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from jsonargparse import ArgumentParser, DefaultHelpFormatter
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from lightning_crmt.checks import check_at_least, check_positive
from lightning_crmt.data.prepare.ffmpeg import BrokenVideoError, FFmpeg
from lightning_crmt.data.prepare.kinds import Flow, Frames, Maker, Method, Spectrograms, flow_estimator
from lightning_crmt.data.prepare.videos import find_videos
from lightning_crmt.data.settings import chosen

Kind = Literal["frames", "spectrograms", "flow"]

_MOST_LINES = 10


class Skipped(NamedTuple):
    """A broken video.

    Attributes:
        video: path below the folder of videos.
        kind: what could not be made.
        reason: why, in a line.
    """

    video: str
    kind: str
    reason: str


@dataclass
class Report:
    """Counts of videos; as a string, a summary.

    Args:
        output: folder that was written to.
        videos: how many there are.
        already: how many had each kind before.
        skipped: videos that were broken.
    """

    output: Path
    videos: int
    already: dict[str, int]
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def made(self) -> dict[str, int]:
        """How many have each kind since this run."""
        skipped = Counter(each.kind for each in self.skipped)
        return {kind: self.videos - already - skipped[kind] for kind, already in self.already.items()}

    @property
    def nothing(self) -> list[str]:
        """Kinds that no video has."""
        return [kind for kind, made in self.made.items() if not made + self.already[kind]]

    @property
    def path(self) -> Path:
        """Where the skipped videos are listed."""
        return self.output / "skipped.csv"

    def write(self) -> None:
        """List the skipped videos; for kinds that this run did not make, keep those that were listed."""
        rows = list(self.skipped)
        # surrogateescape: names of files need not be UTF-8
        if self.path.exists():
            with self.path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
                before = [Skipped(*row) for row in list(csv.reader(file))[1:] if len(row) == len(Skipped._fields)]
            rows += [row for row in before if row.kind not in self.already]
        part = self.path.with_suffix(".csv.part")
        with part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            csv.writer(file).writerows([Skipped._fields, *sorted(rows)])
        part.replace(self.path)

    def __str__(self) -> str:
        lines = [f"{self.videos} videos"]
        for kind, made in self.made.items():
            skipped = sum(each.kind == kind for each in self.skipped)
            lines.append(f"{kind}: {made} made, {self.already[kind]} already there, {skipped} skipped")
        reasons: dict[tuple[str, str], list[str]] = {}
        for video, kind, reason in self.skipped:
            reasons.setdefault((video, reason), []).append(kind)
        if reasons:
            lines.append(f"skipped, see {printable(str(self.path))}:")
            shown = [
                f"  {printable(video)}: {reason} ({', '.join(kinds)})" for (video, reason), kinds in reasons.items()
            ]
            lines += shown[:_MOST_LINES]
            lines += [f"  and {len(shown) - _MOST_LINES} more"] if len(shown) > _MOST_LINES else []
        return "\n".join(lines)


def printable(name: str) -> str:
    r"""A name of a file, which may hold anything, in a line of text: escaped where it is not printable.

    >>> print(printable("caf\udce9\nü"))
    caf\udce9\nü
    """
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in name)


def prepare(
    videos: Path,
    output: Path,
    kinds: Sequence[Kind] = ("frames", "spectrograms"),
    fps: float = 1.0,
    size: int = 256,
    flow_fps: float | None = None,
    flow_bound: float = 20.0,
    flow_method: Method = "dis",
    workers: int | None = None,
) -> Report:
    """Turn a folder of videos into what models are trained on. A video VIDEOS/a/b.mp4 becomes

        OUTPUT/frames/a/b/000001.jpg ...   `fps` colour pictures per second, shorter side `size` pixels
        OUTPUT/spectrograms/a/b.npy        log-mel energies (T, 128), float16, of the sound at 16 kHz, mono:
                                           a row per 10 ms, at most 1024 rows, neither normalised nor padded
        OUTPUT/flow/a/b/u/000001.jpg ...   motion between successive pictures to the right, in grey levels
        OUTPUT/flow/a/b/v/000001.jpg ...   and downwards: 128 is none, 0 and 255 are `flow_bound` pixels
        OUTPUT/skipped.csv                 videos that are broken: video, kind, reason
        OUTPUT/frames.json ...             the settings of each kind

    Time begins where pictures or sound begin, whichever is first: row 100 t of the sound is heard while picture `fps` t
    is seen, whatever the rate of the video, and silence stands where sound begins late or has a gap. Pixels that are
    not square become square.

    What is there is not made again, and a run that was stopped goes on from there, with the same settings. A video
    that is cut off, damaged, changes the size of its pictures, or has no picture or no sound is skipped and listed, and
    tried again in the next run.
    A video that was replaced is not noticed: delete its output to have it made again. Only one run at a time
    may write to OUTPUT.

    Args:
        videos: folder of videos; those in folders below it count too.
        output: folder to write to.
        kinds: what to make, among frames, spectrograms and flow.
        fps: pictures per second in frames.
        size: shorter side of the pictures in frames and flow, pixels.
        flow_fps: pictures per second between which flow is taken; by default all that the video has.
        flow_bound: the largest motion that flow keeps, pixels; readers of the flow find it in OUTPUT/flow.json.
        flow_method: dis, or tvl1, which takes a hundred times as long and needs opencv-contrib-python-headless.
        workers: files made at a time; by default one per processor.

    Returns:
        What was made, was there already, and was skipped.

    Raises:
        FileNotFoundError: if `videos` is not a folder, or there is no ffmpeg.
        ModuleNotFoundError: if flow is asked for without OpenCV.
        ValueError: if a setting is out of range or not the one that files already there were made with, if `output` is
            `videos`, if there are no videos, if two of them would become one, or if a folder of them cannot be read.
    """
    videos, output = Path(videos), Path(output)
    names = chosen("kinds", kinds, get_args(Kind))
    check_positive(fps=fps, flow_fps=flow_fps, flow_bound=flow_bound)
    check_at_least(1, size=size, workers=workers)
    if videos.resolve() == output.resolve():
        raise ValueError(f"`output` must be another folder than `videos`, got {str(output)!r} for both")
    every = Frames(fps, size), Spectrograms(), Flow(size, flow_fps, flow_bound, flow_method)
    makers = [maker for maker in every if maker.kind in names]
    ffmpeg = FFmpeg()
    if "flow" in names:
        flow_estimator(flow_method)  # at once, if it is not installed
    clips = find_videos(videos, leave_out=output)
    _keep_settings(output, makers)
    lacking = [(clip, maker) for clip in clips for maker in makers if not os.path.exists(_target(output, maker, clip))]
    already = {each.kind: len(clips) - sum(maker is each for _, maker in lacking) for each in makers}
    report = Report(output, len(clips), already)
    with ExitStack() as stack:
        # Many files are made at a time: torch must not start threads of its own for each.
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)
        # On the same file system as the finished files, so that they can be renamed; what a killed run left is removed.
        unfinished = output / ".unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        stack.callback(shutil.rmtree, unfinished)
        bar = stack.enter_context(Tqdm(total=len(lacking), unit="file", disable=None))
        # Threads are enough: the work is done by ffmpeg, OpenCV and torch, which let other threads run.
        pool = stack.enter_context(ThreadPoolExecutor(workers or _processors()))
        try:
            running = {
                pool.submit(_make, maker, ffmpeg, clips[clip], _target(output, maker, clip), unfinished): (clip, maker)
                for clip, maker in lacking
            }
            for future in as_completed(running):
                clip, maker = running[future]
                if reason := future.result():
                    report.skipped.append(Skipped(clips[clip].relative_to(videos).as_posix(), maker.kind, reason))
                bar.set_postfix(skipped=len(report.skipped), refresh=False)
                bar.update()
        except BaseException:
            ffmpeg.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    report.skipped.sort()
    report.write()
    return report


def _make(maker: Maker, ffmpeg: FFmpeg, video: Path, target: Path, unfinished: Path) -> str | None:
    """Make one kind of output of a video, and rename it when it is complete; the reason if the video is broken."""
    with tempfile.TemporaryDirectory(dir=unfinished) as folder:
        part = Path(folder, target.name)
        try:
            maker.make(ffmpeg, video, part)
            target.parent.mkdir(parents=True, exist_ok=True)
            part.rename(target)
        except BrokenVideoError as error:
            return str(error)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            return f"{error.strerror}, {len(os.fsencode(target.name))} bytes"
        return None


def _target(output: Path, maker: Maker, clip: str) -> Path:
    return output / maker.kind / f"{clip}{maker.suffix}"


def _keep_settings(output: Path, makers: Sequence[Maker]) -> None:
    """Write the settings of each kind; refuse to mix files that were made with different ones."""
    for maker in makers:
        path, folder = output / f"{maker.kind}.json", output / maker.kind
        made = f"was not made by this command: there is no {path.name}"
        if path.exists():
            before = json.loads(path.read_text())
            made = f"was made with {before}, and asked for is {asdict(maker)}; or remove that folder and {path.name}"
            if before == asdict(maker):
                continue
        if path.exists() or folder.exists():
            raise ValueError(f"`output` must be another folder, for {str(folder)!r} {made}")
    output.mkdir(parents=True, exist_ok=True)
    for maker in makers:
        part = output / f"{maker.kind}.json.part"
        part.write_text(json.dumps(asdict(maker)) + "\n")
        part.replace(output / f"{maker.kind}.json")


def _processors() -> int:
    """How many processors this process may use, where the system says."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Formatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Keeps the lines of the description."""


def prepare_command(words: Sequence[str], kind: type[ArgumentParser] = ArgumentParser) -> int:
    """Prepare videos as the words of a command line say, and print a summary.

    Args:
        words: those after ``lightning-crmt prepare``.
        kind: of the parser, which says how errors are told.

    Returns:
        The exit status: 1 if some kind could be made of no video at all, else 0.

    Raises:
        SystemExit: with status 2 and an explanation, if a word is wrong; with status 130, if interrupted.
    """
    what, _, _ = inspect.cleandoc(prepare.__doc__ or "").partition("\n\nArgs:")
    parser = kind(
        prog="lightning-crmt prepare",
        description=what,
        epilog="Exit status: 0 if there is something of each kind, even if videos were skipped; 1 if there is nothing "
        "of some kind; 2 if nothing was tried because a word of the command is wrong.",
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    # Strings, since the type Path of jsonargparse refuses names that are not UTF-8.
    parser.add_argument("videos", type=str, help="folder of videos; those in folders below it count too.")
    parser.add_argument("output", type=str, help="folder to write to.")
    parser.add_function_arguments(prepare, as_group=False, as_positional=True, skip={"videos", "output", "kinds"})
    parser.add_argument(
        "--kinds",
        nargs="+",  # which jsonargparse does not derive from a sequence
        type=Kind,
        default=["frames", "spectrograms"],
        help="what to make, one or more, with spaces between.",
    )
    settings = parser.parse_args(list(words)).as_dict()
    try:
        report = prepare(**settings)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        parser.exit(130, "stopped; the same command again goes on from here\n")
    # What the terminal cannot show must not fail what is done.
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(str(report).encode(encoding, "backslashreplace").decode(encoding))  # noqa: T201
    return 1 if report.nothing else 0
