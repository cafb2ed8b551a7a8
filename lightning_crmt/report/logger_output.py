# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Figures, tables and pages for loggers: the same calls reach Weights & Biases, TensorBoard, and files."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from lightning_crmt.report.formats import escape_markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Of a table; None where there is nothing.
Cell: TypeAlias = str | float | None


class LoggerOutput(Protocol):
    """What takes figures, tables and pages. Names are paths with ``/``: ``"test/certified_curve"``."""

    def figure(self, name: str, figure: Figure, text: str = "") -> None:
        """Take a figure, and what it shows in words."""

    def table(self, name: str, head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """Take a table, given as the titles of its columns and its rows; a column holds text or numbers."""

    def page(self, name: str, page: Path, beside: Sequence[Path] = ()) -> None:
        """Take a page, and files that belong to it."""


@dataclass(frozen=True)
class WandbOutput:
    """Images with captions, tables, and an artifact with the page."""

    logger: WandbLogger

    def figure(self, name: str, figure: Figure, text: str = "") -> None:
        """An image."""
        if text:
            self.logger.log_image(name, [figure], caption=[text])
        else:
            self.logger.log_image(name, [figure])

    def table(self, name: str, head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """A table, to be filtered and drawn there."""
        self.logger.log_table(name, columns=list(head), data=[list(row) for row in rows])

    def page(self, name: str, page: Path, beside: Sequence[Path] = ()) -> None:
        """An artifact, which has versions."""
        allowed = re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[:128]
        artifact = import_module("wandb").Artifact(allowed, type="report")
        for file in (page, *beside):
            artifact.add_file(str(file))
        self.logger.experiment.log_artifact(artifact)


@dataclass(frozen=True)
class TensorBoardOutput:
    """Images, tables as text, and where the page is."""

    logger: TensorBoardLogger
    step: int = 0

    def figure(self, name: str, figure: Figure, text: str = "") -> None:
        """An image, and what it shows as text."""
        self.logger.experiment.add_figure(name, figure, self.step)
        if text:
            self.logger.experiment.add_text(name, escape_markdown(text), self.step)

    def table(self, name: str, head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """A table in Markdown."""
        first, *others = ([escape_markdown("" if cell is None else str(cell)) for cell in row] for row in (head, *rows))
        text = "\n".join(f"| {' | '.join(line)} |" for line in (first, ["---"] * len(head), *others))
        self.logger.experiment.add_text(name, text, self.step)

    def page(self, name: str, page: Path, beside: Sequence[Path] = ()) -> None:
        """Beside the events, which can hold none, and a text that says so."""
        folder = Path(self.logger.log_dir)
        FileOutput(folder).page(name, page, beside)
        self.logger.experiment.add_text(name, escape_markdown(str(folder / page.name)), self.step)


@dataclass(frozen=True)
class FileOutput:
    """PNG below ``figures/``, CSV below ``tables/``, and a copy of the page, all in a folder."""

    folder: Path

    def figure(self, name: str, figure: Figure, text: str = "") -> None:
        """A PNG, which holds the text too."""
        figure.savefig(self._file("figures", name, "png"), dpi=120, metadata={"Description": text} if text else None)

    def table(self, name: str, head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """A CSV with every digit."""
        with self._file("tables", name, "csv").open(
            "w", newline="", encoding="utf-8", errors="backslashreplace"
        ) as file:
            csv.writer(file, lineterminator="\n").writerows([head, *rows])

    def page(self, name: str, page: Path, beside: Sequence[Path] = ()) -> None:
        """A copy, unless it is in the folder already."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for file in (page, *beside):
            if not (there := self.folder / file.name).exists() or not there.samefile(file):
                shutil.copyfile(file, there)

    def _file(self, kind: str, name: str, suffix: str) -> Path:
        path = self.folder / kind / f"{name.replace('/', '_')}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def outputs_of(loggers: Iterable[Logger], folder: str | Path, step: int = 0) -> list[LoggerOutput]:
    """An output for each logger that takes figures; where there is none, files.

    Args:
        loggers: any; Weights & Biases and TensorBoard take figures.
        folder: of the files.
        step: of training, for TensorBoard.

    >>> outputs_of([], "results")
    [FileOutput(folder=PosixPath('results'))]
    """
    found: list[LoggerOutput] = []
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            found.append(WandbOutput(logger))
        elif isinstance(logger, TensorBoardLogger):
            found.append(TensorBoardOutput(logger, step))
    return found or [FileOutput(Path(folder))]
