# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Numbers and samples of one evaluation, gathered from all processes and written to a folder."""

from __future__ import annotations

import csv
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lightning_crmt.evaluation import Key, read_keys, robustness_figures

_SUMMARY = "summary.csv"
_PROTOCOL = "protocol.txt"

#: A row of a table, by its column.
Row = dict[str, Any]


class Evidence(ABC):
    """What an observer gathers of each sample, and how it is told."""

    #: A row for each sample that this process measured, with its "loader" and "index".
    rows: list[Row]

    @property
    @abstractmethod
    def numbers(self) -> dict[str, float]:
        """What was logged, by the text of its key."""

    @property
    @abstractmethod
    def samples(self) -> dict[str, int]:
        """Of how many samples each number is, by the same text."""

    @abstractmethod
    def summary(self, rows: Sequence[Row], numbers: Mapping[Key, float]) -> dict[Key, float]:
        """What the summary holds, from the rows of all samples and from what was logged."""

    @abstractmethod
    def table(self, numbers: Mapping[Key, float]) -> str:
        """The numbers as a table for the terminal."""

    @abstractmethod
    def protocol(self) -> dict[str, str]:
        """How they were measured, in words."""

    @property
    def perturbed(self) -> dict[str, str]:
        """What each attack perturbs, for figures."""
        return {}


class Results(Callback):
    """Writes what an observer measured; listed after it.

    Args:
        observed: the observer's rows and words.
        folder: to write to, from the process 0.
        file: name of the table of samples.
        protocol: what is to be said beside what the observer says.
    """

    def __init__(self, observed: Evidence, folder: Path, file: str, protocol: Mapping[str, str]) -> None:
        self.observed = observed
        self.folder = folder
        self.file = file
        self.protocol = protocol

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rows = _from_all_processes(self.observed.rows, trainer)
        if not trainer.is_global_zero:
            return
        several = len({row["loader"] for row in rows}) > 1
        numbers: dict[Key, float] = {}
        for loader in sorted({row["loader"] for row in rows}):
            here = loader if several else None
            own = {key: value for key, value in read_keys(self.observed.numbers).items() if key.loader == here}
            part = [row for row in rows if row["loader"] == loader]
            numbers |= self.observed.summary(part, own)
        self.folder.mkdir(parents=True, exist_ok=True)
        columns = [name for name in rows[0] if name != "loader" or several]
        _write(self.folder / self.file, columns, ([row[name] for name in columns] for row in rows))
        _write(
            self.folder / _SUMMARY,
            ["key", "value", "samples"],
            ([key, value, self.observed.samples.get(str(key), _count(rows, key))] for key, value in numbers.items()),
        )
        figures = self._draw(numbers)
        said = {"measured": f"{len(rows)} samples", **self.protocol, **self.observed.protocol(), "figures": figures}
        width = max(map(len, said)) + 2
        lines = [f"{name:<{width}}" + text.replace("\n", "\n" + " " * width) for name, text in said.items() if text]
        told = "\n".join([self.observed.table(numbers), "", *lines, ""])
        (self.folder / _PROTOCOL).write_text(told, encoding="utf-8")

    on_test_end = on_validation_end

    def _draw(self, numbers: Mapping[Key, float]) -> str:
        """Saves the figures, and says which."""
        try:
            figures = robustness_figures(numbers, self.observed.perturbed)
        except ModuleNotFoundError as error:
            return f"none: {error}"
        names = []
        for name, figure in figures.items():
            names.append(f"{name.replace('/', '_')}.png")
            figure.savefig(self.folder / names[-1], dpi=120)
        return ", ".join(names) or "none: a curve needs two radii or more, of one loader"


def read_report(folder: Path) -> str:
    """The table and the protocol in a folder."""
    return (folder / _PROTOCOL).read_text(encoding="utf-8")


def read_summary(folder: Path) -> dict[Key, float]:
    """The numbers in a folder."""
    with (folder / _SUMMARY).open(encoding="utf-8", newline="") as file:
        return {Key.parse(row["key"]): float(row["value"]) for row in csv.DictReader(file)}


def in_columns(rows: Mapping[str, Mapping[str, str]]) -> str:
    """Rows by their titles, of cells by the titles of their columns, as text.

    >>> print(in_columns({"at 0.1": {"joint": "0.9"}, "at 0.2": {"joint": "0.8", "audio": "0.85"}}))
            joint  audio
    at 0.1    0.9
    at 0.2    0.8   0.85
    """
    columns = list(dict.fromkeys(name for cells in rows.values() for name in cells))
    first = max(map(len, rows))
    widths = {name: max(len(name), *(len(cells.get(name, "")) for cells in rows.values())) for name in columns}
    lines = [" " * first + "".join(f"  {name:>{widths[name]}}" for name in columns)]
    for title, cells in rows.items():
        lines.append(f"{title:<{first}}" + "".join(f"  {cells.get(name, ''):>{widths[name]}}" for name in columns))
    return "\n".join(line.rstrip() for line in lines)


def cell(value: Tensor) -> Any:
    """One sample's entry of a table: a class, a number, 1 or 0, or the labels that it has, with spaces between."""
    if value.dim() > 0:
        return " ".join(map(str, value.nonzero().flatten().tolist()))
    return int(value) if not value.is_floating_point() else float(value)


def _from_all_processes(rows: list[Row], trainer: Trainer) -> list[Row]:
    """In the order of the data, each sample once."""
    parts = [rows]
    if trainer.world_size > 1:
        parts = [[] for _ in range(trainer.world_size)]
        torch.distributed.all_gather_object(parts, rows)
    ordered = {(row["loader"], row["index"]): row for part in reversed(parts) for row in part}
    return [ordered[place] for place in sorted(ordered)]


def _count(rows: Sequence[Row], key: Key) -> int:
    return sum(key.loader is None or row["loader"] == key.loader for row in rows)


def _write(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
