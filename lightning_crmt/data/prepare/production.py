# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Make what is missing, several videos at a time; what has its name is complete."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from lightning_crmt.data.prepare.ffmpeg import BrokenVideoError, FFmpeg
from lightning_crmt.data.prepare.flow import Flow
from lightning_crmt.data.prepare.frames import Frames
from lightning_crmt.data.prepare.report import Report, Skipped
from lightning_crmt.data.prepare.spectrograms import Spectrograms

Maker = Frames | Spectrograms | Flow


@dataclass(frozen=True)
class _Task:
    """What a video lacks."""

    number: int
    clip: str
    video: Path
    makers: Sequence[Maker]


def produce(
    videos: Path, found: Mapping[str, Path], makers: Sequence[Maker], ffmpeg: FFmpeg, output: Path, workers: int
) -> Report:
    """Make of each video what is not there, show progress, and list what is broken.

    Each part is made in a folder beside and renamed when complete, so that an end at any time leaves nothing by halves.

    Args:
        videos: folder that the report names videos from.
        found: videos by the names of their clips.
        makers: one per kind.
        ffmpeg: to decode with.
        output: folder to write to.
        workers: videos worked on at a time.
    """
    report = Report(output, len(found), {maker.kind: 0 for maker in makers}, {maker.kind: 0 for maker in makers})
    tasks, skipping = [], 0
    for number, (clip, video) in enumerate(found.items()):
        lacking = [maker for maker in makers if not _target(output, maker, clip).exists()]
        for maker in makers:
            report.already[maker.kind] += maker not in lacking
        if lacking:
            tasks.append(_Task(number, clip, video, lacking))
    with (
        _unfinished(output) as place,
        _one_thread_each(),
        Tqdm(total=len(tasks), unit="video", disable=None) as bar,
        # closed at once, so that an interruption in here ends the threads before their folder goes
        closing(_work(tasks, ffmpeg, output, place, workers)) as results,
    ):
        for task, made, broken in results:
            for kind in made:
                report.made[kind] += 1
            name = task.video.relative_to(videos).as_posix()
            report.skipped += [Skipped(name, kind, reason) for kind, reason in broken.items()]
            skipping += bool(broken)
            bar.set_postfix(skipped=skipping, refresh=False)
            bar.update()
    report.skipped.sort()
    report.write()
    return report


def _work(
    tasks: Sequence[_Task], ffmpeg: FFmpeg, output: Path, place: Path, workers: int
) -> Generator[tuple[_Task, list[str], dict[str, str]], None, None]:
    """Tasks as they are done, with the kinds made and the reasons of those not made."""
    # Threads do: the work is that of ffmpeg, OpenCV and torch, which let other threads run.
    with ThreadPoolExecutor(workers) as pool:
        try:
            running = {pool.submit(_make, task, ffmpeg, output, place): task for task in tasks}
            for future in as_completed(running):
                yield running[future], *future.result()
        except BaseException:
            ffmpeg.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _make(task: _Task, ffmpeg: FFmpeg, output: Path, place: Path) -> tuple[list[str], dict[str, str]]:
    made, broken = [], {}
    for maker in task.makers:
        part = place / f"{task.number}-{maker.kind}{maker.suffix}"
        try:
            maker.make(ffmpeg, task.video, part)
        except BrokenVideoError as error:
            broken[maker.kind] = str(error)
            _remove(part)
        else:
            target = _target(output, maker, task.clip)
            target.parent.mkdir(parents=True, exist_ok=True)
            part.rename(target)
            made.append(maker.kind)
    return made, broken


def _target(output: Path, maker: Maker, clip: str) -> Path:
    return output / maker.kind / f"{clip}{maker.suffix}"


@contextmanager
def _unfinished(output: Path) -> Iterator[Path]:
    """A folder in the same file system as what is finished; whatever a killed run has left there goes."""
    place = output / ".unfinished"
    _remove(place)
    place.mkdir()
    try:
        yield place
    finally:
        _remove(place)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Videos are the unit of work: torch in many threads at a time must not start many of its own."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
