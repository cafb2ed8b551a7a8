# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The tables of a summary as texts: means, differences to the baseline, ranks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lightning_crmt.evaluation import Key
from lightning_crmt.report.statistics import LEAST_SEEDS, Difference, Mean, share_interval
from lightning_crmt.report.summary import Column, OnData, Summary
from lightning_crmt.report.wording import LOWER_GUARANTEE, Wording


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
        notes: what is to be known of the numbers beside their marks.
    """

    title: str
    names: tuple[str, ...]
    words: tuple[Wording, ...]
    rows: tuple[tuple[Entry, ...], ...]
    counts: tuple[str, ...] = ()
    ranked: bool = False
    notes: tuple[str, ...] = ()

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
    return TextTable(title, ("method", "seeds"), *_of(columns, rows), notes=_notes(columns))


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


def marks_told(tables: Iterable[TextTable], bold: str = "*", level: str = "=") -> list[str]:
    """What the marks of tables mean, those that they have, and what else is to be known of the numbers.

    Args:
        tables: which stand together.
        bold: how the best and clear differences are marked.
        level: how it is marked what cannot be told from the best.
    """
    tables = list(tables)
    marks = {entry.mark for table in tables for row in table.rows for entry in row}
    told = {
        "best": f"{bold}: the best mean",
        "level": f"{level}: cannot be told from the best mean, by 95 % intervals of paired differences over seeds",
        "clear": f"{bold} at a difference: its 95 % interval leaves out 0",
    }
    notes = dict.fromkeys(note for table in tables for note in table.notes)
    return [text for mark, text in told.items() if mark in marks] + list(notes)


def titled(words: Wording) -> str:
    """The title of a column, and that it is in percent where it is."""
    return f"{words.title} (%)" if words.unit.startswith("share") else words.title


def seeds_told(on: OnData, method: str) -> str:
    """How many runs of a method finished: ``"3"``, or ``"2 of 3"`` where one failed.

    The seeds are those of all methods: one that a method was never run with is missing too.
    """
    finished, planned = sum(not run.error for run in on.runs[method]), len(on.seeds)
    return str(finished) if finished == planned else f"{finished} of {planned}"


def interval_of(mean: Mean, column: Column) -> tuple[float, float]:
    """The interval of a share of samples that one run measured; NaN twice where there is none.

    Labels of one sample hang together, and the worst of several classes was looked for: their shares have none.
    """
    if mean.n != 1 or len(column.counts) != 1 or column.words.unit != "share of samples":
        return math.nan, math.nan
    return (math.nan,) * 2 if "_worst_class" in column.words.key.what else share_interval(mean.value, column.counts[0])


def mean_told(mean: Mean, column: Column, unit: str = "") -> str:
    """A mean and its spread, or for one run the interval of a share; in percent, as the head of the column says.

    >>> column = Column(Wording(Key("test", "accuracy", "joint")), {})
    >>> mean_told(Mean(0.8671, 0.0192, 5), column), mean_told(Mean(float("inf"), float("nan"), 5), column)
    ('86.7 ± 1.9', 'inf')
    >>> mean_told(Mean(0.75, float("nan"), 1), Column(Wording(Key("test", "accuracy", "joint")), {}, counts=(400,)))
    '75.0 [70.5, 79.2]'
    """
    scale, digits = _scale_and_digits(column)
    spread = f" ± {scale * mean.spread:.{digits}f}" if math.isfinite(mean.spread) else ""
    low, high = interval_of(mean, column)
    around = "" if math.isnan(low) else f" [{scale * low:.{digits}f}, {scale * high:.{digits}f}]"
    return f"{scale * mean.value:.{digits}f}{spread}{unit}{around}"


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


def _notes(columns: Sequence[Column]) -> tuple[str, ...]:
    several = [column for column in columns if len(column.means) > 1]
    notes = []
    if any(column.words.key.sure in ("certified", "probably_certified") for column in several):
        notes.append(LOWER_GUARANTEE)
    comparable = [column for column in several if column.words.better]
    if comparable and all(mean.n < LEAST_SEEDS for column in comparable for mean in column.means.values()):
        notes.append(f"Nothing is marked: that takes {LEAST_SEEDS} seeds that methods share.")
    if any(not math.isnan(interval_of(mean, column)[0]) for column in columns for mean in column.means.values()):
        notes.append(
            "[low, high] of a share: 95 % by Clopper and Pearson, for other samples like these and the same trained "
            "model; it says nothing of other seeds."
        )
    return tuple(notes)


def _mean_entry(column: Column, method: str, on: OnData) -> Entry:
    if method not in column.means:
        return Entry("-")
    mean = column.means[method]
    best = method == column.best or method in column.ties
    mark = "best" if best else "level" if method in column.level else ""
    fewer = f" (n = {mean.n})" if mean.n < sum(not run.error for run in on.runs[method]) else ""
    return Entry(mean_told(mean, column) + fewer, mark)


def _difference_entry(column: Column, method: str) -> Entry:
    if method not in column.to_baseline:
        return Entry("-")
    difference = column.to_baseline[method]
    few = f" (n = {difference.n})" if difference.n < LEAST_SEEDS else ""  # else it would look clear and not be marked
    return Entry(difference_told(difference, column) + few, "clear" if difference.sign else "")
