# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Which runs a comparison is to have: what is not there yet is a row with the reason, not left out without a word."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from lightning_crmt.report.data_names import with_data_named
from lightning_crmt.report.runs import Run

#: What the reason begins with.
NOT_RUN = "not run yet"

_FILE = "planned.json"
_COLUMNS = ("method", "data", "seed", "error", "about")


def is_missing(run: Run) -> bool:
    """Whether a run is planned and neither finished nor failed.

    >>> is_missing(Run("crmt", "mfeat", 0, error=NOT_RUN)), is_missing(Run("crmt", "mfeat", 0, error="out of memory"))
    (True, False)
    """
    return run.error.startswith(NOT_RUN)


def save_planned(planned: Iterable[Run], folder: str | Path) -> Path:
    """Keep which runs there are to be, each with the reason why it is not there: ``planned.json``.

    What their methods are is kept too.
    """
    rows = [{name: getattr(run, name) for name in _COLUMNS} for run in planned]
    beside = Path(folder) / f"{_FILE}.part"
    beside.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return beside.replace(Path(folder) / _FILE)


def with_missing(runs: Sequence[Run], folder: str | Path) -> list[Run]:
    """The runs in the order of the plan that a folder keeps, and those of it that are not there, with the reason.

    All say what their method is, if the plan does, and have the class of the data module where the comparison has no
    name for its data. Without a plan the runs as they are.

    Raises:
        ValueError: naming the file, if it holds no plan.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> _ = save_planned([Run("crmt", "mfeat", seed, error=NOT_RUN) for seed in range(2)], folder)
    >>> [run.error for run in with_missing([Run("crmt", "mfeat", 1)], folder)]
    ['not run yet', '']
    """
    file = Path(folder) / _FILE
    if not file.is_file():
        return list(runs)
    try:
        planned = [Run(**row) for row in json.loads(file.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} must hold the plan of a comparison: {error}") from error
    found = {(run.method, run.data, run.seed): run for run in runs}
    rows = [replace(found.pop((run.method, run.data, run.seed), run), about=run.about) for run in planned]
    return with_data_named([*rows, *found.values()])
