# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The raw values of all runs, a row for each, as CSV and as JSON."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_crmt.evaluation import Key
from lightning_crmt.report.grouping import grouped
from lightning_crmt.report.runs import Run
from lightning_crmt.report.wording import Wording

#: Of the CSV, before the numbers.
_COLUMNS = (
    "method", "data", "seed", "error", "seconds", "peak_memory", "parameters", "samples", "config_hash", "choice",
    "versions", "command",
)  # fmt: skip


def keys_of(runs: Sequence[Run]) -> list[Key]:
    """The keys of all runs, those that matter most first."""
    numbers = [run.keys() for run in runs]
    return [key for group in grouped(key for each in numbers for key in each) for key in group.keys]


def raw_table(runs: Sequence[Run]) -> tuple[list[str], list[list[str | float | None]]]:
    """The names of all columns, and a row for each run, with None where it has no such number.

    >>> names, rows = raw_table([Run("joint", "mfeat", 0, {"test/accuracy/joint": 0.75})])
    >>> names[-1], rows[0][0], rows[0][-1]
    ('test/accuracy/joint', 'joint', 0.75)
    """
    keys, rows = keys_of(runs), []
    for run in runs:
        numbers = run.keys()
        rows.append([*(_cell(getattr(run, column)) for column in _COLUMNS), *map(numbers.get, keys)])
    return [*_COLUMNS, *map(str, keys)], rows


def write_csv(runs: Sequence[Run], path: str | Path) -> Path:
    """Write a row for each run, with a column for each key, which is empty where the run has no such number.

    Numbers have all their digits; those that are none read ``nan``, ``inf`` and ``-inf``. What has several parts, the
    versions and the settings that were chosen, reads ``name=value; name=value``.

    >>> import tempfile
    >>> run = Run("joint", "mfeat", 0, {"test/accuracy/joint": 0.75}, seconds=1.5, samples=400)
    >>> print(write_csv([run], Path(tempfile.mkdtemp()) / "runs.csv").read_text())
    method,data,seed,error,seconds,peak_memory,parameters,samples,config_hash,choice,versions,command,test/accuracy/joint
    joint,mfeat,0,,1.5,0,0,400,,,,,0.75
    <BLANKLINE>
    """
    names, rows = raw_table(runs)
    path = Path(path)
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        csv.writer(file, lineterminator="\n").writerows([names, *rows])
    return path


def keys_table(runs: Sequence[Run]) -> tuple[list[str], list[list[str | float | None]]]:
    """The names of the columns, and a row for each key: what it means, how sure it is, which threat, which unit."""
    threats = {name: threat for run in runs for name, threat in run.threats.items()}
    rows = [{"key": str(key), **_meaning(Wording(key, threats))} for key in keys_of(runs)]
    return ["key", "meaning", "sure", "threat", "unit", "better"], [list(row.values()) for row in rows]


def write_json(runs: Sequence[Run], path: str | Path) -> Path:
    """Write the runs, and what each key means: how sure, which threat, which unit, which way is better.

    Numbers that are none are the strings ``"nan"``, ``"inf"`` and ``"-inf"``, as JSON has no others.
    """
    path = Path(path)
    threats = {name: threat for run in runs for name, threat in run.threats.items()}
    meanings = {str(key): _meaning(Wording(key, threats)) for key in keys_of(runs)}
    path.write_text(
        json.dumps({"keys": meanings, "runs": [_record(run) for run in runs]}, indent=1, allow_nan=False) + "\n",
        encoding="utf-8",
    )
    return path


def _cell(value: Any) -> Any:
    return "; ".join(f"{name}={each}" for name, each in value.items()) if hasattr(value, "items") else value


def _meaning(words: Wording) -> dict[str, Any]:
    return {
        "meaning": words.meaning,
        "sure": words.sure,
        "threat": words.threat,
        "unit": words.unit,
        "better": {1: "more", -1: "less", 0: ""}[words.better],
    }


def _record(run: Run) -> dict[str, Any]:
    """Without the history, which is of validation and training, and the config, which the page has."""
    known = {name: getattr(run, name) for name in _COLUMNS}
    known |= {"choice": dict(run.choice), "versions": dict(run.versions), "seconds": _plain(run.seconds)}
    return known | {
        "counts": dict(run.counts),
        "numbers": {str(key): _plain(value) for key, value in run.keys().items()},
    }


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
