# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The folder of a comparison: which cells are finished, which failed, which are of another time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path

from lightning_crmt.cli.comparison.cells import Cell
from lightning_crmt.cli.comparison.plan import Comparison
from lightning_crmt.cli.report import BASELINE
from lightning_crmt.report import NOT_RUN, Run, read_run, save_planned, save_run

try:
    import fcntl
except ImportError:  # no Unix
    fcntl = None  # type: ignore[assignment]

#: What the error of a run begins with that did not end by itself.
KILLED = "killed: "

_RUN, _CANDIDATE, _ASIDE, _CELL = "run.json", "candidate.json", "aside.json", "cell.json"


class CellFolder:
    """A folder for each cell, named by its key, and in it what is known of the run.

    ``run.json`` is the run, with numbers of the test part; ``candidate.json`` one that was only validated, for its
    settings to be chosen or not; ``aside.json`` a run that is no part of the comparison as it is now.
    """

    def __init__(self, out: Path) -> None:
        self.out = out

    def of(self, cell: Cell) -> Path:
        """Where a cell is kept."""
        return self.out / "cells" / cell.key

    def run(self, cell: Cell) -> Run | None:
        """The run of a cell, if there is one."""
        return _read(self.of(cell) / _RUN)

    def candidate(self, cell: Cell) -> Run | None:
        """What is known of a cell on the validation part, if anything is."""
        return _read(self.of(cell) / _CANDIDATE)

    def save(self, cell: Cell, run: Run, candidate: bool = False) -> None:
        """Keep a run, and what it depends on."""
        folder = self.of(cell)
        folder.mkdir(parents=True, exist_ok=True)
        known = {"cell": cell.name, "choice": dict(cell.choice), "depends": dict(cell.depends)}
        (folder / _CELL).write_text(json.dumps(known, indent=1, sort_keys=True), encoding="utf-8")
        save_run(run, folder, _CANDIDATE if candidate else _RUN)

    def put_aside(self, cells: Sequence[Cell]) -> None:
        """Let only runs of these cells be found as runs, those among them that were put aside again."""
        kept = {cell.key for cell in cells}
        for folder in self._folders():
            if folder.name not in kept:
                self.hide(folder)
            elif (folder / _ASIDE).exists() and not (folder / _RUN).exists():
                (folder / _ASIDE).replace(folder / _RUN)

    def keep_plan(self, comparison: Comparison) -> None:
        """Keep for reports which runs there are to be, and what they are compared with.

        Of a run that is not there it says whether one was put aside, as it is of other settings, code, data or
        versions.
        """
        names = {name for folder in self._folders() if (folder / _ASIDE).exists() and (name := _name_in(folder))}
        aside = f"{NOT_RUN} as it is now; one of other settings, code, data or versions is left out"
        planned = [
            Run(
                method,
                data,
                seed,
                error=aside if f"{method}/{data}/{seed}" in names else NOT_RUN,
                about=comparison.methods[method].about,
            )
            for data, method, seed in product(comparison.data, comparison.methods, comparison.seeds)
        ]
        save_planned(planned, self.out)
        (self.out / BASELINE).write_text(comparison.baseline, encoding="utf-8")

    def hide(self, folder: Path) -> None:
        """Put a run aside, if there is one."""
        if (folder / _RUN).exists():
            (folder / _RUN).replace(folder / _ASIDE)

    def tested_before(self, cell: Cell) -> bool:
        """Whether a run has been put aside that was tested."""
        return (self.of(cell) / _ASIDE).exists()

    def stale(self, cell: Cell) -> list[str]:
        """In what the latest run of the same name differs, if that is all that there is."""
        found = []
        for folder in self._folders():
            try:
                known = json.loads((folder / _CELL).read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if folder.name == cell.key:
                return []
            if (known["cell"], known["choice"]) == (cell.name, dict(cell.choice)):
                differs = [what for what, each in cell.depends.items() if known["depends"].get(what) != each]
                found.append(((folder / _CELL).stat().st_mtime_ns, differs))
        return max(found)[1] if found else []

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others out of the folder.

        Raises:
            FileExistsError: if another process is at work in it.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        with (self.out / "lock").open("a+", encoding="utf-8") as file:
            if fcntl is not None:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    file.seek(0)
                    raise FileExistsError(
                        f"`out` must be a folder that no other comparison is at work in, got {self.out}, where "
                        f"process {file.read().strip() or 'of another'} is"
                    ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def _folders(self) -> Iterable[Path]:
        return sorted(path for path in (self.out / "cells").glob("*") if path.is_dir())


def _name_in(folder: Path) -> str:
    """Of the cell that a folder is of; empty where that is not known."""
    try:
        return str(json.loads((folder / _CELL).read_text(encoding="utf-8"))["cell"])
    except (OSError, ValueError, KeyError):
        return ""


def _read(file: Path) -> Run | None:
    return read_run(file) if file.exists() else None
