# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Processes that import once and work until there is nothing left; one that dies costs its job only."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pickle import UnpicklingError
from typing import Any, Generic, TypeVar

import torch
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

J = TypeVar("J")
R = TypeVar("R")

# On Linux, workers are forks of a process that imported once and did nothing else.
if sys.platform == "linux":
    _CONTEXT = multiprocessing.get_context("forkserver")
else:
    _CONTEXT = multiprocessing.get_context("spawn")

#: Seconds between looks at workers that say nothing.
_LOOK = 1.0

#: So many in a row that die before they can work have a reason that a further one does not mend.
_MOST_STILLBORN = 3


@dataclass(frozen=True)
class Event(Generic[J, R]):
    """Something that happened to a job.

    Attributes:
        job: which one.
        share: how much of it is done.
        result: what came of it, if it is done and its worker lives.
        died: how its worker died, if it did; 9 signals a kill.
    """

    job: J
    share: float = 0.0
    result: R | None = None
    died: str = ""


class _Worker(Generic[J]):
    """A process, and the job that it has."""

    def __init__(self, work: Callable[..., Any], place: int, environment: Mapping[str, str]) -> None:
        ours, theirs = _CONTEXT.Pipe()
        _CONTEXT.set_forkserver_preload([work.__module__])
        self.process: BaseProcess = _CONTEXT.Process(target=_serve, args=(theirs, work, {**os.environ, **environment}))
        with _environment({**environment, "PYTHONPATH": os.pathsep.join(sys.path)}):  # what is imported first is this
            self.process.start()
        theirs.close()
        self.connection: Connection[Any, Any] = ours
        self.place = place
        self.ready = False
        self.job: J | None = None

    def take(self, jobs: deque[J]) -> None:
        """The next job, unless this worker turns out to be dead."""
        try:
            self.connection.send(jobs[0])
            self.job = jobs.popleft()
        except OSError:
            pass

    def end(self) -> None:
        """Kill it: it has nothing to lose, as results are sent."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def in_processes(
    work: Callable[[J, Callable[[float], None]], R], jobs: deque[J], environments: Sequence[Mapping[str, str]]
) -> Iterator[Event[J, R]]:
    """Do jobs in as many processes as there are environments; what happens to them, as it happens.

    Args:
        work: does a job, and calls its second argument with the share that is done; importable by name.
        jobs: what to do; may be added to meanwhile.
        environments: variables for each process.

    Raises:
        RuntimeError: if no process can be started.
    """
    workers: list[_Worker[J]] = []
    stillborn = 0
    try:
        while jobs or any(worker.job is not None for worker in workers):
            while len(workers) < min(len(environments), sum(worker.job is not None for worker in workers) + len(jobs)):
                place = min(set(range(len(environments))) - {worker.place for worker in workers})
                workers.append(_Worker(work, place, environments[place]))
            for worker in workers:
                if worker.ready and worker.job is None and jobs:
                    worker.take(jobs)
            speaking = wait([worker.connection for worker in workers], _LOOK)
            for worker in list(workers):
                try:
                    if worker.connection not in speaking:
                        if worker.process.is_alive() or worker.connection.poll():
                            continue
                        raise EOFError
                    kind, value = worker.connection.recv()
                except (EOFError, OSError, UnpicklingError):
                    worker.end()
                    workers.remove(worker)
                    stillborn = 0 if worker.ready else stillborn + 1
                    if worker.job is not None:
                        yield Event(worker.job, died=_how(worker.process.exitcode))
                    if stillborn == _MOST_STILLBORN:
                        raise RuntimeError(
                            f"processes must be able to start, but {stillborn} ended before they could work, the last "
                            f"{_how(worker.process.exitcode)}; a script that compares must do so below "
                            "`if __name__ == '__main__':`"
                        ) from None
                    continue
                stillborn = 0
                if kind == "ready":
                    worker.ready = True
                elif kind == "share" and worker.job is not None:
                    yield Event(worker.job, share=value)
                elif kind == "result" and worker.job is not None:
                    job, worker.job = worker.job, None
                    yield Event(job, 1.0, value)
    finally:
        for worker in workers:
            worker.end()


def _how(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"by signal {-exitcode} ({signal.Signals(-exitcode).name})"
    return f"with status {exitcode}"


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Variables for processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _serve(
    connection: Connection[Any, Any],
    work: Callable[[Any, Callable[[float], None]], Any],
    environment: Mapping[str, str],
) -> None:
    """The life of a worker, which its parent ends, or the end of its parent."""
    os.environ.clear()  # what a fork has is of the moment when the first worker was started
    os.environ.update(environment)
    if "OMP_NUM_THREADS" in environment:
        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, for all of its processes; the parent ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    Tqdm.set_lock(threading.RLock())  # its own is shared by processes, and missed where one of them is killed
    sys.argv = sys.argv[:1]
    connection.send(("ready", None))
    while True:
        job = connection.recv()
        connection.send(("result", work(job, lambda share: connection.send(("share", share)))))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
