# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The tables of a summary as texts: means, differences to the baseline, ranks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lightning_crmt.evaluation import Key
from lightning_crmt.report.statistics import LEAST_SEEDS, Difference, Mean
from lightning_crmt.report.summary import Column, OnData, Summary
from lightning_crmt.report.wording import Wording


@dataclass(frozen=True)
class Entry:
    """A cell.

    Attributes:
        text: what stands there.
        mark: ``"best"``, ``"level"`` for what cannot be told from the best, ``"clear"`` for a difference whose interval
            leaves 0 out, or nothing.
    """

    text: str
    mark: str = ""


@dataclass(frozen=True)
class TextTable:
    """A table of methods by numbers.

    Attributes:
        title: what it is.
        names: of the columns before the numbers.
        words: of the other columns.
        rows: entries in the order of both.
        counts: of the other columns, of how many samples they are, in words; empty where that is not known.
        ranked: whether the numbers are ranks, which have no unit.
    """

    title: str
    names: tuple[str, ...]
    words: tuple[Wording, ...]
    rows: tuple[tuple[Entry, ...], ...]
    counts: tuple[str, ...] = ()
    ranked: bool = False

    @property
    def head(self) -> list[str]:
        """The titles of all columns."""
        return [*self.names, *(words.title if self.ranked else titled(words) for words in self.words)]


def means_table(title: str, on: OnData, keys: Iterable[Key]) -> TextTable:
    """Mean and spread of each method; what is best and what cannot be told from it are marked."""
    columns = [on.columns[key] for key in keys if key in on.columns]
    rows = [
        (Entry(method), Entry(seeds_told(on, method)), *(_mean_entry(column, method, on) for column in columns))
        for method in on.runs
    ]
    return TextTable(title, ("method", "seeds"), *_of(columns, rows))


def differences_table(title: str, on: OnData, keys: Iterable[Key], baseline: str) -> TextTable | None:
    """Differences to the baseline, with their intervals; None where there is no other method to compare."""
    columns = [on.columns[key] for key in keys if key in on.columns and on.columns[key].to_baseline]
    methods = [method for method in on.runs if any(method in column.to_baseline for column in columns)]
    if not methods:
        return None
    rows = [
        (Entry(f"{method} less {baseline}"), *(_difference_entry(c, method) for c in columns)) for method in methods
    ]
    return TextTable(title, ("difference",), *_of(columns, rows))


def ranks_table(title: str, summary: Summary, keys: Iterable[Key]) -> TextTable | None:
    """The mean rank of each method over the data sets; None where there are not several."""
    keys = [key for key in keys if key in summary.ranks]
    if not keys:
        return None
    words = tuple(summary.on_data[0].columns[key].words for key in keys)
    rows = tuple(
        (Entry(method), *(Entry(f"{rank:.2f}" if (rank := summary.ranks[key].get(method)) else "-") for key in keys))
        for method in summary.methods
    )
    return TextTable(title, ("method",), words, rows, ranked=True)


def titled(words: Wording) -> str:
    """The title of a column, and that it is in percent where it is."""
    return f"{words.title} (%)" if words.unit.startswith("share") else words.title


def seeds_told(on: OnData, method: str) -> str:
    """How many runs of a method finished: ``"3"``, or ``"2 of 3"`` where one failed.

    The seeds are those of all methods: one that a method was never run with is missing too.
    """
    finished, planned = sum(not run.error for run in on.runs[method]), len(on.seeds)
    return str(finished) if finished == planned else f"{finished} of {planned}"


def mean_told(mean: Mean, column: Column) -> str:
    """A mean and its spread; shares in percent, as the head of the column says.

    >>> column = Column(Wording(Key("test", "accuracy", "joint")), {})
    >>> mean_told(Mean(0.8671, 0.0192, 5), column), mean_told(Mean(float("inf"), float("nan"), 5), column)
    ('86.7 ± 1.9', 'inf')
    """
    scale, digits = _scale_and_digits(column)
    spread = f" ± {scale * mean.spread:.{digits}f}" if math.isfinite(mean.spread) else ""
    return f"{scale * mean.value:.{digits}f}{spread}"


def difference_told(difference: Difference, column: Column) -> str:
    """A difference and its interval; of shares in points of percent.

    >>> column = Column(Wording(Key("test", "accuracy", "joint")), {})
    >>> difference_told(Difference(0.1, -0.05, 0.25, 3), column)
    '+10.0 [-5.0, +25.0]'
    >>> difference_told(Difference(0.1, math.nan, math.nan, 1), column)
    '+10.0 (no interval)'
    """
    if math.isnan(difference.mean):
        return "-"
    scale, digits = _scale_and_digits(column)
    mean, low, high = (f"{scale * each:+.{digits}f}" for each in (difference.mean, difference.low, difference.high))
    return f"{mean} (no interval)" if math.isnan(difference.low) else f"{mean} [{low}, {high}]"


def counts_told(counts: Sequence[int]) -> str:
    """Of how many samples a number is.

    >>> counts_told([400]), counts_told([380, 400]), counts_told([])
    ('400 samples', '380 to 400 samples', '')
    """
    if not counts:
        return ""
    return f"{min(counts)} samples" if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)} samples"


def _scale_and_digits(column: Column) -> tuple[float, int]:
    """Percent with one digit after the point; else so many that the largest mean has four digits."""
    if column.words.unit.startswith("share"):
        return 100.0, 1
    sizes = [abs(mean.value) for mean in column.means.values() if math.isfinite(mean.value) and mean.value]
    return 1.0, min(8, max(0, 3 - math.floor(math.log10(max(sizes))))) if sizes else 3


def _of(
    columns: Sequence[Column], rows: Sequence[tuple[Entry, ...]]
) -> tuple[tuple[Wording, ...], tuple[tuple[Entry, ...], ...], tuple[str, ...]]:
    words, counts = (column.words for column in columns), (counts_told(column.counts) for column in columns)
    return tuple(words), tuple(rows), tuple(counts)


def _mean_entry(column: Column, method: str, on: OnData) -> Entry:
    if method not in column.means:
        return Entry("-")
    mean = column.means[method]
    mark = "best" if method == column.best else "level" if method in column.level else ""
    fewer = f" (n = {mean.n})" if mean.n < sum(not run.error for run in on.runs[method]) else ""
    return Entry(mean_told(mean, column) + fewer, mark)


def _difference_entry(column: Column, method: str) -> Entry:
    if method not in column.to_baseline:
        return Entry("-")
    difference = column.to_baseline[method]
    few = f" (n = {difference.n})" if difference.n < LEAST_SEEDS else ""  # else it would look clear and not be marked
    return Entry(difference_told(difference, column) + few, "clear" if difference.sign else "")
