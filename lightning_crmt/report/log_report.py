# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""A report for loggers: Weights & Biases, TensorBoard."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from lightning.pytorch.loggers import Logger

from lightning_crmt.report.formats import to_rows
from lightning_crmt.report.logger_output import outputs_of
from lightning_crmt.report.page import drawings_of
from lightning_crmt.report.raw_values import keys_table, raw_table
from lightning_crmt.report.runs import Run
from lightning_crmt.report.summary import summarise
from lightning_crmt.report.write import FILES, summary_tables


def log_report(
    runs: Sequence[Run], folder: str | Path, loggers: Iterable[Logger], *, baseline: str | None = None
) -> None:
    """Send a report that was written to loggers: its tables and figures, and the page itself.

    Weights & Biases gets tables, images with captions, and an artifact of all files; TensorBoard images, and tables as
    text. Other loggers take neither: without one of the two, the figures become PNG and the tables CSV in the folder.
    Names begin with ``report/``: ``report/runs`` is the table of raw values, ``report/keys`` says what each means.

    Args:
        runs: those of the report.
        folder: where :func:`~lightning_crmt.report.write_report` wrote them.
        loggers: such as ``[WandbLogger(project="robust")]``; whoever made them ends them.
        baseline: that of the report.

    Raises:
        FileNotFoundError: if the folder holds no page.
        ModuleNotFoundError: naming the extra, if matplotlib is not installed.
        ValueError: see :func:`~lightning_crmt.report.summarise`.

    >>> import tempfile
    >>> from lightning_crmt.report import write_report
    >>> runs, folder = [Run("joint", "mfeat", 0, {"test/accuracy/joint": 0.75})], tempfile.mkdtemp()
    >>> page = write_report(runs, folder)
    >>> log_report(runs, folder, loggers=[])
    >>> sorted(file.name for file in Path(folder, "tables").iterdir())[-1]
    'report_runs.csv'
    """
    page, *beside = (Path(folder) / name for name in FILES)
    if not page.is_file():
        raise FileNotFoundError(f"`folder` must hold a report, {page.name}, as `write_report` writes it, got {folder}")
    summary = summarise(runs, baseline)
    tables = {"report/runs": raw_table(runs), "report/keys": keys_table(runs)}
    for table in summary_tables(summary):
        tables[f"report/{_named(table.title)}"] = table.head, to_rows(table)
    figures = {
        f"report/{_named(on.data)}/{name}": drawing
        for on in summary.on_data
        for name, drawing in drawings_of(on, summary.baseline).items()
    }
    for output in outputs_of(loggers, folder):
        for name, (head, rows) in tables.items():
            output.table(name, head, rows)
        for name, (figure, text) in figures.items():
            output.figure(name, figure, text)
        output.page(f"report/{_named(page.resolve().parent.name)}", page, [file for file in beside if file.is_file()])


def _named(title: str) -> str:
    """A title as a part of a path.

    >>> _named("mfeat: at a glance")
    'mfeat_at_a_glance'
    """
    return re.sub(r"[^\w+@=-]+", "_", title).strip("_")
