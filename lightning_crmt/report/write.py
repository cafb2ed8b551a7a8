# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""All files of a report, written into one folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from lightning_crmt.report.formats import to_latex, to_markdown, to_text
from lightning_crmt.report.grouping import grouped, headline
from lightning_crmt.report.page import page_of
from lightning_crmt.report.raw_values import write_csv, write_json
from lightning_crmt.report.runs import Run
from lightning_crmt.report.summary import OnData, Summary, summarise
from lightning_crmt.report.text_tables import TextTable, differences_table, marks_told, means_table, ranks_table

#: The page, and what stands beside it.
FILES = ("report.html", "runs.csv", "runs.json", "summary.md", "summary.tex")


def write_report(
    runs: Sequence[Run], folder: str | Path, *, baseline: str | None = None, title: str = "", command: str = ""
) -> Path:
    """Write ``report.html`` and the tables beside it; needs the extra ``report``.

    The page opens without a network and without scripts, on a screen of any size, light or dark, and on paper:
    ``docs/report.md`` says how to read it.

    Args:
        runs: those to compare, failed ones included, or a single one.
        folder: made where there is none.
        baseline: the method that the others are compared with.
        title: of the page; by default it names the methods.
        command: what made the comparison, for the page.

    Returns:
        The page.

    Raises:
        ModuleNotFoundError: naming the extra, if jinja2 or matplotlib is not installed; the tables are there then.
        ValueError: if there are no runs, two of the same method, data and seed, or none of the baseline.

    >>> import tempfile
    >>> run = Run("joint", "mfeat", 0, {"test/accuracy/joint": 0.75})
    >>> page = write_report([run], tempfile.mkdtemp())
    >>> sorted(file.name for file in page.parent.iterdir())
    ['report.html', 'runs.csv', 'runs.json', 'summary.md', 'summary.tex']
    """
    write_tables(runs, folder, baseline=baseline)
    path = Path(folder) / "report.html"
    path.write_text(page_of(runs, baseline=baseline, title=title, command=command), encoding="utf-8")
    return path


def write_tables(runs: Sequence[Run], folder: str | Path, *, baseline: str | None = None) -> Summary:
    """Write ``runs.csv``, ``runs.json``, ``summary.md`` and ``summary.tex``.

    Args:
        runs: those to compare, failed ones included.
        folder: made where there is none.
        baseline: the method that the others are compared with.

    Raises:
        ValueError: see :func:`~lightning_crmt.report.summarise`.
    """
    summary = summarise(runs, baseline)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(runs, folder / "runs.csv")
    write_json(runs, folder / "runs.json")
    tables = summary_tables(summary)
    for name, show in (("summary.md", to_markdown), ("summary.tex", to_latex)):
        (folder / name).write_text(_joined(tables, show), encoding="utf-8", errors="backslashreplace")
    return summary


def summary_tables(summary: Summary) -> list[TextTable]:
    """All tables of a summary: for each data set those that matter most first, then the ranks."""
    tables: list[TextTable | None] = []
    for on in summary.on_data:
        tables.append(means_table(f"{on.data}: at a glance", on, headline(on.columns)))
        if summary.baseline:
            tables.append(_differences("at a glance", on, summary))
        for group in grouped(on.columns):
            tables.append(means_table(f"{on.data}: {group.title}", on, group.keys))
    ranked = headline(summary.ranks) or list(summary.ranks)
    tables.append(ranks_table("Mean rank over data sets", summary, ranked))
    return [table for table in tables if table is not None]


def headline_text(runs: Sequence[Run], baseline: str | None = None) -> str:
    """The tables to look at first, for a terminal.

    >>> print(headline_text([Run("joint", "mfeat", 0, {"test/accuracy/joint": 0.75})]))
    mfeat: at a glance
                    right, unchanged
    method  seeds         inputs (%)
    joint   1                   75.0
    <BLANKLINE>
    """
    summary = summarise(runs, baseline)
    tables = [means_table(f"{on.data}: at a glance", on, headline(on.columns)) for on in summary.on_data]
    told = marks_told(tables)
    return _joined(tables, to_text) + "".join(f"\n{line}" for line in told) + "\n" * bool(told)


def _differences(title: str, on: OnData, summary: Summary) -> TextTable | None:
    title = f"{on.data}: {title}, differences to {summary.baseline}"
    return differences_table(title, on, headline(on.columns), summary.baseline)


def _joined(tables: Sequence[TextTable], show: Callable[[TextTable], str]) -> str:
    return "\n".join(map(show, tables))
