# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""A comparison, done: every cell that is not finished yet, in processes of their own."""

from __future__ import annotations

import os
import shlex
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from lightning_crmt.checks import check_at_least
from lightning_crmt.cli.command_line import CRMTCLI
from lightning_crmt.cli.comparison.cells import Cell, cells_of
from lightning_crmt.cli.comparison.folder import KILLED, CellFolder
from lightning_crmt.cli.comparison.job import Job, do
from lightning_crmt.cli.comparison.plan import Comparison, ComparisonError, Select, matches, read_comparison
from lightning_crmt.cli.comparison.pool import Event, in_processes
from lightning_crmt.cli.comparison.selection import choose
from lightning_crmt.report import Run

#: How much of a cell's work each kind of job is, for the bar.
_WORK = {"run": 1.0, "validate": 0.9, "test": 0.1}

_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total:.1f} [{elapsed}<{remaining}]"

#: Until half a run is done, most of the time went into starting, which says nothing of what is left.
_FIRST_BAR, _TELLING = _BAR.replace("{remaining}", "?"), 0.5


def compare(
    comparison: str | Path | Mapping[str, Any] | Comparison,
    *,
    jobs: int | None = None,
    only: Sequence[str] = (),
    retry_failed: bool = False,
    words: Sequence[str] = (),
    cli: type[CRMTCLI] = CRMTCLI,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Run]:
    """Train and test methods x data x seeds, as ``lightning-crmt compare`` does; what is finished is not repeated.

    Each run has a folder below ``out``; see ``docs/compare.md``. A script must call this below
    ``if __name__ == "__main__":``, as the processes that do the work import it.

    Args:
        comparison: a YAML file, what it would hold, or what :func:`read_comparison` made of that.
        jobs: how many processes, each with one thread of the processor and, where there are several, a device of its
            own; by default one per GPU, or per core where there is none.
        only: patterns of ``METHOD``, ``METHOD/DATA`` or ``METHOD/DATA/SEED``; what fits none is left as it is.
        retry_failed: do again what ended with an error.
        words: options for the command line of each run, such as ``"--trainer.max_epochs=1"``; they win.
        cli: the command line that each run is by.
        tell: is called with a line for each run that ends, and for whatever is worth knowing.

    Returns:
        The runs that are finished or failed, in the order of the comparison. With a choice to make, those of what was
        chosen.

    Raises:
        ComparisonError: a ``ValueError`` that says what is wrong with the comparison or one of its configs.
        FileExistsError: if another process is at work in the same folder.
        RuntimeError: if no process can be started.
    """
    if not isinstance(comparison, Comparison):
        comparison = read_comparison(comparison)
    environments = _environments(jobs)
    cells = cells_of(comparison, words, cli)
    chosen = chosen_by(only, cells)
    folder = CellFolder(comparison.out)
    with folder.locked():
        for line in what_is_stale(chosen, folder):
            tell(line)
        folder.put_aside(cells)
        folder.keep_plan(comparison)
        work = _Work(comparison, cells, chosen, folder, retry_failed, words, cli, tell)
        work.do(environments)
        ended = ((cell, folder.run(cell)) for cell in cells)
        runs = [run for _, run in ended if run is not None]
    methods, data = list(comparison.methods), list(comparison.data)
    return sorted(runs, key=lambda run: (data.index(run.data), methods.index(run.method)))


def chosen_by(only: Sequence[str], cells: Sequence[Cell]) -> list[Cell]:
    """The cells that one of the patterns fits; all, if there is none.

    Raises:
        ComparisonError: for a pattern that fits none.
    """
    for pattern in only:
        if not any(matches(pattern, cell.method, cell.data, cell.seed) for cell in cells):
            names = ", ".join(dict.fromkeys(f"{cell.method}/{cell.data}" for cell in cells))
            raise ComparisonError(f"`only` must fit a METHOD/DATA/SEED, got {pattern!r}; there are {names}")
    return [
        cell
        for cell in cells
        if not only or any(matches(pattern, cell.method, cell.data, cell.seed) for pattern in only)
    ]


def what_is_stale(cells: Sequence[Cell], folder: CellFolder) -> list[str]:
    """A line for each method and data whose finished runs are of other code, settings, data or versions."""
    stale = [(f"{cell.method}/{cell.data}", ", ".join(differs)) for cell in cells if (differs := folder.stale(cell))]
    return [
        f"{name}: {len(list(each))} stale, not used: other {differs}"
        for (name, differs), each in groupby(sorted(stale))
    ]


def state_of(cell: Cell, folder: CellFolder, candidate: bool) -> str:
    """``"finished"``, ``"failed"``, ``"killed"``, ``"stale"`` or ``"new"``.

    Args:
        cell: which one.
        folder: of all.
        candidate: whether its settings are yet to be chosen, which takes numbers of the validation part.
    """
    run = folder.candidate(cell) if candidate else folder.run(cell)
    if run is None:
        return "killed" if folder.of(cell).exists() else "stale" if folder.stale(cell) else "new"
    if run.error.startswith(KILLED):
        return "killed"
    return "failed" if run.error else "finished"


class _Work:
    """The jobs of a comparison, and what becomes of them."""

    def __init__(
        self,
        comparison: Comparison,
        cells: Sequence[Cell],
        chosen: Sequence[Cell],
        folder: CellFolder,
        retry_failed: bool,
        words: Sequence[str],
        cli: type[CRMTCLI],
        tell: Callable[[str], None],
    ) -> None:
        self.comparison = comparison
        self.chosen = chosen
        self.folder = folder
        self.again = {"new", "stale", "killed"} | ({"failed"} if retry_failed else set())
        self.words = words
        self.cli = cli
        self.tell = tell
        #: Cells among which there is a choice, by method and data, then by setting.
        self.groups: dict[tuple[str, str], list[list[Cell]]] = {}
        for method, settings in comparison.methods.items():
            for data in comparison.data:
                if settings.select and any((cell.method, cell.data) == (method, data) for cell in chosen):
                    of_group = [cell for cell in cells if (cell.method, cell.data) == (method, data)]
                    self.groups[method, data] = [
                        [cell for cell in of_group if cell.choice == point.choice] for point in settings.points
                    ]
        self.jobs: deque[Job] = deque()
        self.waiting: dict[tuple[str, str], int] = {}

    def do(self, environments: Sequence[Mapping[str, str]]) -> None:
        """All of it."""
        plain = [cell for cell in self.chosen if (cell.method, cell.data) not in self.groups]
        candidates = [cell for settings in self.groups.values() for cells in settings for cell in cells]
        places = {cell.key: place for place, cell in enumerate(self.chosen)}
        needed = [self._job(cell, "run") for cell in plain if state_of(cell, self.folder, False) in self.again]
        needed += [
            self._job(cell, "validate") for cell in candidates if state_of(cell, self.folder, True) in self.again
        ]
        self.jobs.extend(sorted(needed, key=lambda job: places.get(job.cell.key, len(places))))
        self.waiting = dict.fromkeys(self.groups, 0)
        for job in needed:
            if job.what == "validate":
                self.waiting[job.cell.method, job.cell.data] += 1
        for group in [group for group, count in self.waiting.items() if count == 0]:
            self._choose(*group)
        tests = sum(len({cell.seed for cell in self._wanted(group)}) for group, count in self.waiting.items() if count)
        total = sum(_WORK[job.what] for job in self.jobs) + tests * _WORK["test"]
        if not self.jobs:
            return
        done: dict[tuple[str, str], float] = {}
        with Tqdm(total=total, desc="Comparing", smoothing=0, bar_format=_FIRST_BAR, dynamic_ncols=True) as bar:
            for event in in_processes(do, self.jobs, environments):
                share = 1.0 if event.died else event.share
                done[event.job.cell.key, event.job.what] = share * _WORK[event.job.what]
                finished = min(total, sum(done.values()))
                bar.bar_format = _BAR if finished >= _TELLING else _FIRST_BAR
                bar.update(finished - bar.n)
                self._ended(event)

    def _ended(self, event: Event[Job, Run]) -> None:
        job, run = event.job, event.result
        if event.died:
            run = replace(
                job.blank,
                error=f"{KILLED}the process of this run ended {event.died}; a SIGKILL from nobody is of a machine "
                "that was out of memory",
            )
            job.save(run)
        if run is None:
            return
        if job.what != "validate":
            self.tell(_line(run))
            return
        if run.error:
            self.tell(f"{job.cell.name} with {_settings(job.cell)} {_failed(run)}")
        group = (job.cell.method, job.cell.data)
        self.waiting[group] -= 1
        if self.waiting[group] == 0:
            self._choose(*group)

    def _wanted(self, group: tuple[str, str]) -> list[Cell]:
        return [cell for cell in self.chosen if (cell.method, cell.data) == group]

    def _choose(self, method: str, data: str) -> None:
        """All candidates of a group are validated: the best is tested, once with each seed."""
        settings = self.groups[method, data]
        runs = [[run for cell in cells if (run := self.folder.candidate(cell))] for cells in settings]
        select = self.comparison.methods[method].select or Select("")
        choice = choose(select, [cells[0].choice for cells in settings], runs)
        best = settings[choice.place or 0]
        other = [cell for cells in settings for cell in cells if cell not in best]
        tested = any(self.folder.run(cell) or self.folder.tested_before(cell) for cell in other)
        for cell in other:
            self.folder.hide(self.folder.of(cell))
        said = dict(choice.said)
        if tested:
            said = {name: f"{text}, after a look at the test part with others" for name, text in said.items()}
        seeds = {cell.seed for cell in self._wanted((method, data))}
        for cell in (cell for cell in best if cell.seed in seeds):
            job = replace(self._job(cell, "test"), choice=said)
            if choice.place is None:
                failed = replace(job.blank, error=choice.error)
                job.save(failed)
                self.tell(_line(failed))
            elif (run := self.folder.run(cell)) is not None and state_of(cell, self.folder, False) not in self.again:
                if run.choice != said:
                    job.save(replace(run, choice=said))
            else:
                self.jobs.append(job)
        if choice.place is not None:
            self.tell(f"{method}/{data}: {'; '.join(f'{name} {text}' for name, text in said.items())}")

    def _job(self, cell: Cell, what: str) -> Job:
        file = self.comparison.file
        words = (
            [self.cli.prog, "compare", str(file), "--only", cell.name, *self.words]
            if file
            else [self.cli.prog, "fit", *cell.in_folder(self.folder.of(cell))[0]]
        )
        return Job(cell, what, self.comparison.out, self.cli, shlex.join(words))


def _environments(jobs: int | None) -> list[dict[str, str]]:
    """Of each process: one thread, and the device that it is to see."""
    devices = torch.cuda.device_count()
    if jobs is None:
        jobs = devices or len(_cores())
    check_at_least(1, jobs=jobs)
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    names = visible or [str(number) for number in range(devices)]
    if devices < 2:
        return [one_thread] * jobs
    return [{**one_thread, "CUDA_VISIBLE_DEVICES": names[place % devices]} for place in range(jobs)]


def _cores() -> Sequence[int]:
    if hasattr(os, "sched_getaffinity"):
        return list(os.sched_getaffinity(0))
    return range(os.cpu_count() or 1)


def _line(run: Run) -> str:
    name = f"{run.method}/{run.data}/{run.seed}"
    if run.error:
        return f"{name} {_failed(run)}"
    return f"{name}: {', '.join(_headline(run))} ({run.seconds:.1f} s)"


def _headline(run: Run) -> Iterator[str]:
    usual = [name for name in ("test/accuracy/joint",) if name in run.numbers]
    for name in usual or list(run.numbers)[:1]:
        yield f"{name} {run.numbers[name]:.4f}"


def _failed(run: Run) -> str:
    return "failed: " + run.error.partition("\n")[0]


def _settings(cell: Cell) -> str:
    return ", ".join(f"{name}={text}" for name, text in cell.choice.items())
