# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""One cell, trained and measured in this process, by the very path of ``fit`` and ``test``."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from typing_extensions import override

from lightning_crmt.callbacks import counts_of, threats_of
from lightning_crmt.cli.command_line import CRMTCLI
from lightning_crmt.cli.comparison.cells import Cell
from lightning_crmt.cli.comparison.curves import Curves, EpochsDone
from lightning_crmt.cli.comparison.folder import KILLED, CellFolder
from lightning_crmt.cli.comparison.memory import peak_memory, reset_peak_memory
from lightning_crmt.cli.failures import explain_failure
from lightning_crmt.report import Run

_WEIGHTS = "validated.ckpt"

#: The share of a cell that its fit takes, as far as a bar is concerned.
_FIT = 0.9


@dataclass(frozen=True)
class Job:
    """What is to be done for a cell.

    Attributes:
        cell: which one.
        what: ``"run"``: fit and test; ``"validate"``: fit and validate, and keep the weights; ``"test"`` these.
        out: the folder of the comparison.
        cli: the command line.
        command: how to run it again.
        choice: what was chosen among what, for the run.
    """

    cell: Cell
    what: str
    out: Path
    cli: type[CRMTCLI] = CRMTCLI
    command: str = ""
    choice: Mapping[str, str] | None = None

    @property
    def blank(self) -> Run:
        """The run, of which no more than its settings is known."""
        cell = self.cell
        return Run(
            method=cell.method,
            data=cell.data,
            seed=cell.seed,
            choice=dict(self.choice or {}),
            config=cell.config,
            config_hash=cell.key,
            versions=dict(cell.versions),
            command=self.command,
        )

    def save(self, run: Run) -> None:
        """Keep what came of it."""
        CellFolder(self.out).save(self.cell, run, candidate=self.what == "validate")


def do(job: Job, tell: Callable[[float], None]) -> Run:
    """Do it, and keep what came of it, errors too; all that is printed goes to ``log.txt`` in the cell's folder.

    Args:
        job: what to do.
        tell: is called with the share that is done.
    """
    folder = CellFolder(job.out).of(job.cell)
    if job.what != "test":
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    words, before = job.cell.in_folder(folder)
    start = time.perf_counter()
    reset_peak_memory()
    with _printed_to(folder / "log.txt"), _settings_kept(), patch.object(sys, "argv", [job.cli.prog]):
        try:
            if before and job.what != "test":
                _Fit(job.cli, before, folder, lambda _: None)
            run = _measured(job, words, folder, lambda share: tell(_FIT * share))
        except SIGTERMException:  # as from a scheduler that wants the machine: nothing is wrong with the run
            run = replace(job.blank, error=f"{KILLED}the process of this run was told to end, by SIGTERM")
        except (Exception, SystemExit) as error:
            run = replace(job.blank, error=_told(error, words, folder))
            traceback.print_exc()
    run = replace(
        run, seconds=run.seconds + time.perf_counter() - start, peak_memory=max(run.peak_memory, peak_memory())
    )
    job.save(run)
    gc.collect()
    return run


def _measured(job: Job, words: Sequence[str], folder: Path, tell: Callable[[float], None]) -> Run:
    weights = folder / _WEIGHTS
    if job.what == "test":
        done = _Fit(job.cli, words, folder, tell, train=False)
        known = CellFolder(job.out).candidate(job.cell)
        if known is None:
            raise FileNotFoundError(f"{folder} must hold what was validated, which is not there")
        return _tested(done, replace(known, choice=job.blank.choice, command=job.command), str(weights))
    done = _Fit(job.cli, words, folder, tell)
    run = replace(job.blank, history=done.curves.history, parameters=done.parameters)
    if job.what == "run":
        return _tested(done, run, job.cell.ckpt_path)
    run = replace(run, numbers=_numbers(done.trainer.validate, done, job.cell.ckpt_path))
    done.trainer.save_checkpoint(weights)
    return run


def _tested(done: _Fit, run: Run, ckpt_path: str | None) -> Run:
    numbers, samples = _numbers(done.trainer.test, done, ckpt_path), _samples(done.trainer)
    fewer = {name: count for name, count in counts_of(done.trainer).items() if count != samples}
    return replace(run, numbers=numbers, samples=samples, counts=fewer, threats=threats_of(done.trainer))


def _samples(trainer: Trainer) -> int:
    """How many samples were tested; 0 where a loader does not know."""
    loaders = trainer.test_dataloaders
    total = 0
    for loader, batches in zip(
        loaders if isinstance(loaders, list) else [loaders], trainer.num_test_batches, strict=False
    ):
        try:
            size, all_batches, batch_size = len(loader.dataset), len(loader), loader.batch_size
        except (AttributeError, TypeError):
            return 0
        if batches < all_batches:
            if batch_size is None:
                return 0
            size = int(batches) * batch_size
        total += size
    return total


def _numbers(measure: Callable[..., Any], done: _Fit, ckpt_path: str | None) -> dict[str, float]:
    found = measure(done.model, datamodule=done.datamodule, ckpt_path=ckpt_path, verbose=False)
    return {name: float(value) for of_loader in found for name, value in of_loader.items()}


class _Fit:
    """``fit``, and what it leaves.

    Args:
        cli: the command line.
        words: those after ``fit``.
        folder: of the cell.
        tell: is called with the share of epochs that are done.
        train: whether to; else model, data and Trainer are only made.
    """

    def __init__(
        self, cli: type[CRMTCLI], words: Sequence[str], folder: Path, tell: Callable[[float], None], train: bool = True
    ) -> None:
        self.curves = curves = Curves(str(folder))

        class Recorded(cli):  # type: ignore[misc, valid-type]
            @override
            def instantiate_classes(self) -> None:
                super().instantiate_classes()
                self.trainer.loggers = [curves, *self.trainer.loggers]
                self.trainer.callbacks.append(EpochsDone(tell))

            def fit(self, **settings: Any) -> None:
                """In the place of that of the Trainer."""
                if train:
                    self.trainer.fit(**settings)

        made = Recorded(["fit", *words])
        self.model: LightningModule = made.model
        self.datamodule: LightningDataModule | None = made.datamodule
        self.trainer: Trainer = made.trainer
        self.trainer.loggers = []
        self.parameters = sum(each.numel() for each in self.model.parameters() if each.requires_grad)


def _told(error: BaseException, words: Sequence[str], folder: Path) -> str:
    """The reason in a few lines."""
    if isinstance(error, SystemExit):  # after an explanation
        sys.stderr.flush()
        told = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").rpartition("error: ")[2]
    else:
        explained = isinstance(error, Exception) and explain_failure(
            error, ["fit", *words], CRMTCLI.instantiate_classes.__code__
        )
        told = explained or f"{type(error).__name__}: {error}"
    lines = [line for line in told.splitlines() if line.strip() and "shows the traceback" not in line]
    return "\n".join(lines[:5]) or type(error).__name__


@contextmanager
def _printed_to(file: Path) -> Iterator[None]:
    """All that this process prints, native code included, goes to a file, after what is there."""
    kept = {number: os.dup(number) for number in (1, 2)}
    with file.open("ab") as log:
        try:
            for number in kept:
                os.dup2(log.fileno(), number)
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, descriptor in kept.items():
                os.dup2(descriptor, number)
                os.close(descriptor)


@contextmanager
def _settings_kept() -> Iterator[None]:
    """What a Trainer or a module may set for the whole process is as it was, for the next cell."""
    folder, environment, path = Path.cwd(), dict(os.environ), list(sys.path)
    threads, precision, dtype = torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.get_default_dtype()
    deterministic, warn = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    cudnn = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    try:
        yield
    finally:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:] = path
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        torch.set_default_dtype(dtype)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = cudnn
