# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Runs from what Lightning's ``CSVLogger`` writes: ``metrics.csv``, and ``config.yaml`` of the command line."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from lightning_crmt.evaluation import Key
from lightning_crmt.report.data_names import class_of_data, settings_of
from lightning_crmt.report.history import History
from lightning_crmt.report.planned import with_missing
from lightning_crmt.report.runs import Run, load_runs

_METRICS, _CONFIG = "metrics.csv", "config.yaml"

#: What a test has from the fit whose checkpoint it is of.
_OF_FIT = ("method", "seed", "history", "config")


def find_runs(folder: str | Path) -> list[Run]:
    """The runs below a folder: those of a comparison, or else those of plain logs.

    Of a comparison that is not done, what is missing has a row with the reason as its error.

    Raises:
        FileNotFoundError: if there are neither.
        ValueError: naming the file, if one cannot be read.
    """
    folder = Path(folder)
    if any(folder.rglob("run.json")):
        return with_missing(load_runs(folder), folder)
    files = sorted(folder.rglob(_METRICS), key=lambda file: (len(str(file)), str(file)))  # version_9 before version_10
    if not files:
        raise FileNotFoundError(
            f"`folder` must hold runs of a comparison or logs of CSVLogger ({_METRICS}), got {folder}, which holds "
            "neither"
        )
    logs = {file.parent.resolve(): _read_log(file, folder) for file in files}
    fits = {place: fit for place, run in logs.items() if (fit := _fit_of(run, logs)) is not None}
    tested = [fit for fit in fits.values() if list(fits.values()).count(fit) == 1]  # of two tests each stands alone
    for place, fit in fits.items():
        if fit in tested:
            logs[place] = replace(logs[place], **{name: getattr(logs[fit], name) for name in _OF_FIT})
    return [run for place, run in logs.items() if place not in tested]


def _fit_of(run: Run, logs: Mapping[Path, Run]) -> Path | None:
    """Where the fit is logged whose checkpoint a run tested, if it is among the logs."""
    path = settings_of(run.config).get("ckpt_path")
    if not isinstance(path, str) or not any(_part(name) == "test" for name in run.numbers):
        return None
    return next((place for place in Path(path).resolve().parents if place in logs and logs[place] is not run), None)


def _read_log(file: Path, folder: Path) -> Run:
    """A run whose method is named by its folder.

    Its numbers are those of the test part or, where it was never tested, the last ones of the validation part.
    """
    try:
        with file.open(newline="", encoding="utf-8") as opened:
            rows = [
                {name: float(text) for name, text in row.items() if text and name} for row in csv.DictReader(opened)
            ]
    except (ValueError, TypeError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file} must be a log of CSVLogger: {error}") from error
    history = History()
    for row in rows:
        history.add(row)
    last = {name: value for row in rows for name, value in row.items()}
    parts = {part: {name: value for name, value in last.items() if _part(name) == part} for part in ("test", "val")}
    numbers = parts["test"] or parts["val"]
    beside = file.with_name(_CONFIG)
    text = beside.read_text(encoding="utf-8") if beside.is_file() else ""
    config = settings_of(text)
    place = file.parent.relative_to(folder)
    seed = config.get("seed_everything")
    return Run(
        method=str(place) if place.parts else folder.resolve().name,
        data=class_of_data(config),
        seed=seed if isinstance(seed, int) and not isinstance(seed, bool) else 0,
        numbers=numbers,
        history={name: each for name, each in history.curves.items() if _part(name) in ("train", "val")},
        config=text,
        error="" if numbers else f"{_METRICS} has no number of the test or validation part",
    )


def _part(name: str) -> str:
    """The part that a number is of, also where its name is no key of ours: ``test_acc``."""
    try:
        split = Key.parse(name).split
    except ValueError:
        split = ""
    return split or next((part for part in ("test", "val", "train") if name.startswith(part)), "")
