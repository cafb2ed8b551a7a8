# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The verdict in a few sentences, the most important first; all the rest stands in tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_crmt.report.grouping import grouped, headline
from lightning_crmt.report.statistics import LEAST_SEEDS
from lightning_crmt.report.summary import Column, OnData
from lightning_crmt.report.text_tables import counts_told, difference_told, mean_told
from lightning_crmt.report.verdict import Answer, listed, many
from lightning_crmt.report.wording import LOWER_GUARANTEE

#: With more methods beside the baseline, those of which the same can be said share a sentence.
_MOST_TOLD = 3

_LOWER = ("certified", "probably_certified")
_RIGHT = {"certified": "Guaranteed right", "probably_certified": "Guaranteed right with a stated probability",
          "estimated": "Estimated to stay right", "robust": "Right"}  # fmt: skip
_PROVED = f"Proved for these samples and changes of that size alone. {LOWER_GUARANTEE}"


def short_verdict(on: OnData, baseline: str = "") -> list[Answer]:
    """About eight sentences: of each kind of number one, then each method against the baseline.

    >>> from lightning_crmt.report import Run, summarise
    >>> (on,) = summarise([Run("joint", "mfeat", 0, {"test/accuracy/joint": 0.75})]).on_data
    >>> for answer in short_verdict(on):
    ...     print(f"{answer.question}: {answer.text}")
    Right, unchanged inputs: joint 75.0 %.
    Guaranteed: Nothing: no number on this data is a certificate.
    """
    columns = _columns(on)
    found = [Answer(_question(column), _told(column, on), column.words.sure) for column in columns]
    certified = [key for key in on.columns if key.sure in ("certified", "probably_certified")]
    if not certified:
        found.insert(1, Answer("Guaranteed", "Nothing: no number on this data is a certificate."))
    several = sum(any(method in on.columns[key].means for key in certified) for method in on.runs) > 1
    if several:
        place = max((at for at, column in enumerate(columns) if column.words.key.sure in _LOWER), default=-1)
        found.insert(place + 1, Answer("What a guarantee is", _PROVED))
    few = [column for column in columns if len(column.means) > 1 and column.words.better and not _enough(column)]
    if few:
        seeds = many(max(mean.n for column in few for mean in column.means.values()), "seed")
        text = f"With {seeds} no method can be called better than another: that takes {LEAST_SEEDS} that methods share."
        return [Answer("Seeds", text), *found]
    return found + (_against(on, columns, baseline) if baseline else [])


def _columns(on: OnData) -> list[Column]:
    """Of each kind of number the one that says most: the strongest attack, whatever is missing."""
    found: list[Column] = []
    for group in grouped(headline(on.columns)):
        columns = [on.columns[key] for key in group.keys]
        if group.name == "attacked":
            columns.sort(key=lambda column: sum(mean.value for mean in column.means.values()) / len(column.means))
        if group.name == "missing":
            columns.sort(key=lambda column: column.words.key.of != "worst")
        if group.name != "estimated" or not any(column.words.key.sure in _LOWER for column in found):
            found.append(columns[0])
    return found


def _enough(column: Column) -> bool:
    values = {mean.value for mean in column.means.values()}
    return bool(column.best) or (len(values) == 1 and min(mean.n for mean in column.means.values()) >= LEAST_SEEDS)


def _told(column: Column, on: OnData) -> str:
    means = {method: mean for method, mean in column.means.items() if not math.isnan(mean.value)}
    ordered = sorted(means, key=lambda method: -column.words.better * means[method].value)
    if not ordered:
        return "No mean: at least one run of each method gave NaN."
    if len({mean.value for mean in means.values()}) == 1 and len(means) > 1:
        said = f"{_value(column, ordered[0])} with each method."
    elif not column.best:
        ends = ordered if len(ordered) <= 4 else [ordered[0], ordered[-1]]
        parts = [f"{method} {_value(column, method)}" for method in ends]
        said = f"{', '.join(parts)}." if len(ends) == len(ordered) else f"From {parts[0]} to {parts[1]}."
    else:
        said = _compared(column, ordered)
    whole = sorted({run.samples for runs in on.runs.values() for run in runs} - {0})
    return said if list(column.counts) in (whole, []) else f"{said.removesuffix('.')} ({counts_told(column.counts)})."


def _question(column: Column) -> str:
    """With the whole threat, where there is one."""
    words = column.words
    if not words.threat or "_worst_class" in words.key.what or not words.unit.startswith("share"):
        return _capital(words.title)
    return f"{_RIGHT[words.key.sure]} under {words.threat.replace('attack', 'the attack')}"


def _compared(column: Column, ordered: Sequence[str]) -> str:
    """With enough seeds to tell."""
    best, level = column.best, column.level
    behind = [method for method in ordered if method != best and method not in level]
    value = _value(column, best)
    if not level:
        return f"{best} is the best, {value}; next is {behind[0]} with {_value(column, behind[0])}."
    if not behind:
        last = next(method for method in reversed(ordered) if method != best)
        return (
            f"No method can be called the best: means are from {value} ({best}) to {_value(column, last)} ({last}), "
            "which cannot be told apart."
        )
    have = f"{listed([best, *column.ties])} have" if column.ties else f"{best} has"
    others = [method for method in level if method not in column.ties]
    untold = f" and cannot be told from {listed(others)}" if others else ""
    rest = ", ".join(f"{method} {_value(column, method)}" for method in behind[:2])
    rest = f"{rest} and {len(behind) - 2} more" if len(behind) > 2 else rest
    most = "highest" if column.words.better > 0 else "lowest"
    return f"{have} the {most} mean, {value}{',' * bool(untold)}{untold}; behind: {rest}."


def _against(on: OnData, columns: Sequence[Column], baseline: str) -> list[Answer]:
    """At what each method is shown to be better or worse, of the numbers above."""
    columns = [column for column in columns if column.words.better and column.to_baseline]
    others = [method for method in on.runs if any(method in column.to_baseline for column in columns)]
    signs = {
        method: [column.to_baseline[method].sign * column.words.better if method in column.to_baseline else 0
                 for column in columns]
        for method in others
    }  # fmt: skip
    if len(others) > _MOST_TOLD:
        kinds = {
            "Better somewhere, worse nowhere": [m for m in others if 1 in signs[m] and -1 not in signs[m]],
            "Worse somewhere, better nowhere": [m for m in others if -1 in signs[m] and 1 not in signs[m]],
            "Better at some, worse at others": [m for m in others if {1, -1} <= set(signs[m])],
            "No difference shown": [m for m in others if not any(signs[m])],
        }
        return [Answer(f"{kind}, against {baseline}", f"{listed(names)}.") for kind, names in kinds.items() if names]
    found = []
    for method in others:
        told: dict[int, list[str]] = {1: [], -1: [], 0: []}
        for column, sign in zip(columns, signs[method], strict=True):
            points = " points" if column.words.unit.startswith("share") else ""
            amount = f" ({difference_told(column.to_baseline[method], column)}{points})" if sign else ""
            told[sign].append(f"“{column.words.title}”{amount}")
        parts = [f"{word} {listed(told[sign])}" for sign, word in ((1, "better at"), (-1, "worse at")) if told[sign]]
        rest = f"no difference shown at {'the other numbers above' if parts else 'any of the numbers above'}"
        parts += [rest] * bool(told[0])
        parts += _worse_below(on, columns, method)
        found.append(Answer(f"{method} against {baseline}", _capital("; ".join(parts)) + "."))
    return found


def _worse_below(on: OnData, told: Sequence[Column], method: str) -> list[str]:
    """What the tables show a method to lose that is not among the numbers told."""
    lost: list[tuple[float, Column]] = []
    for column in on.columns.values():
        difference = column.to_baseline.get(method)
        untold = column not in told and "_of_class" not in column.words.key.what
        if (
            difference
            and untold
            and difference.sign * column.words.better < 0
            and column.words.unit.startswith("share")
        ):
            lost.append((abs(difference.mean), column))
    if not lost:
        return []
    most = max(lost, key=lambda each: each[0])[1]
    amount = difference_told(most.to_baseline[method], most)
    numbers = many(len(lost), "number") if len(lost) > 1 else "one number"
    return [f"worse at {numbers} of the tables below, most at “{most.words.title}” ({amount} points)"]


def _value(column: Column, method: str) -> str:
    return mean_told(column.means[method], column, " %" if column.words.unit.startswith("share") else "")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
