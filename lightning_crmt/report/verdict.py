# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What a summary allows to say in sentences, and no more: no difference that its interval does not support."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_crmt.evaluation import Key
from lightning_crmt.report.grouping import headline
from lightning_crmt.report.statistics import LEAST_SEEDS
from lightning_crmt.report.summary import Column, OnData, Summary
from lightning_crmt.report.text_tables import counts_told, difference_told, mean_told
from lightning_crmt.report.wording import SURE, Wording, sureness

#: More names than these are counted and not listed.
_MOST_NAMES = 5


@dataclass(frozen=True)
class Answer:
    """What is known of one question.

    Attributes:
        question: a few words.
        text: sentences.
        sure: how sure the numbers in them are; empty where there are none.
    """

    question: str
    text: str
    sure: str = ""


def scope(summary: Summary) -> str:
    """How much was run: methods, data sets, seeds, samples, failures.

    >>> from lightning_crmt.report import Run, summarise
    >>> scope(summarise([Run("joint", "mfeat", 0, {"test/loss": 1.0}, samples=400)]))
    '1 method on 1 data set (mfeat), 1 seed each, 400 samples in the test part. All runs finished.'
    """
    runs = [run for on in summary.on_data for each in on.runs.values() for run in each]
    failed = [run for on in summary.on_data for run in on.failed]
    missing = [run for on in summary.on_data for run in on.missing]
    seeds = sorted({len(each) for on in summary.on_data for each in on.runs.values()})
    told = many(seeds[0], "seed") if len(seeds) == 1 else f"{seeds[0]} to {many(seeds[-1], 'seed')}"
    samples = counts_told(sorted({run.samples for run in runs} - {0})) or "an unknown number of samples"
    ended = f"{len(failed)} of {len(runs)} runs failed." if failed else "All runs finished."
    full = len(summary.methods) * len(summary.on_data) * len({run.seed for run in runs})
    if len(runs) < full:
        ended += f" Of {full} combinations of these methods, data sets and seeds {full - len(runs)} have no run."
        ended = ended.replace("All runs finished.", "All of these runs finished.")
    if missing:
        names = listed([f"{run.method}/{run.data}/{run.seed}" for run in missing])
        of_failed = f", {len(failed)} failed" if failed else ""
        done = len(runs) - len(missing) - len(failed)
        ended = f"Not complete: {done} of {len(runs)} runs finished{of_failed}, not run yet: {names}."
    data = listed([on.data for on in summary.on_data])
    return (
        f"{many(len(summary.methods), 'method')} on {many(len(summary.on_data), 'data set')} ({data}), {told} each, "
        f"{samples} in the test part. {ended}"
    )


def answers(on: OnData) -> list[Answer]:
    """Which method is best at what, for the numbers that matter most."""
    return [Answer(_capital(column.words.title), _best(column, on), column.words.sure) for column in _headlines(on)]


def guarantees(on: OnData) -> list[Answer]:
    """What is proved, by the method that has most of it; or that nothing is."""
    found: list[Answer] = []
    certified = [
        column for column in on.columns.values() if column.words.key.sure in ("certified", "probably_certified")
    ]
    first = [column for column in _headlines(on) if column in certified]
    for column in first or [each for each in certified if "_of_class" not in each.words.key.what][:3]:
        words = column.words
        methods = [method for method, mean in column.means.items() if not math.isnan(mean.value)]
        if not methods:
            continue
        most = max(methods, key=lambda method: column.means[method].value)
        seeds = many(column.means[most].n, "seed")
        found.append(
            Answer(
                _capital(words.title),
                f"With {most}, the {words.meaning}: {_percent(column, most)} (mean of {seeds}"
                f"{', each on ' + counts_told(column.counts) if column.counts else ''}).{_once(words, found)}",
                words.sure,
            )
        )
    if found:
        return found
    if certified:
        return [Answer("Guaranteed", "Nothing: all certified numbers that matter here are NaN.")]
    sures = {sureness(key) for key in on.columns}
    text = "Nothing: no number on this data is a certificate."
    text += f" Estimated: {SURE['estimated'][1]}" if "estimated" in sures else ""
    text += f" Under attacks: {SURE['robust'][1]}" if "robust" in sures else ""
    return [Answer("Guaranteed", text)]


def _once(words: Wording, found: Sequence[Answer]) -> str:
    """What a guarantee is, where it has not been said yet."""
    if any(answer.sure == words.sure for answer in found):
        return ""
    return f" {SURE[words.key.sure][1]} It is about these samples, and says nothing of others or of larger changes."


def against_baseline(on: OnData, baseline: str) -> list[Answer]:
    """At what each method is shown to be better or worse than the baseline, and at what neither."""
    found = []
    columns = [column for column in _headlines(on) if column.words.better]
    for method in on.runs:
        told: dict[int, list[str]] = {1: [], -1: [], 0: []}
        for column in columns:
            if method in column.to_baseline:
                difference = column.to_baseline[method]
                sign = difference.sign * column.words.better
                amount = f" ({difference_told(difference, column)})" if sign else ""
                told[sign].append(f"{column.words.title}{amount}")
        if not any(told.values()):
            continue
        parts = [f"{word}: {'; '.join(told[sign])}." for sign, word in ((1, "Better"), (-1, "Worse")) if told[sign]]
        if told[0]:
            parts.append(f"No difference shown: {'; '.join(told[0])}.")
        found.append(Answer(method, " ".join(parts)))
    return found


def _headlines(on: OnData) -> list[Column]:
    return [on.columns[key] for key in headline(on.columns)]


def _best(column: Column, on: OnData) -> str:
    means = {method: mean for method, mean in column.means.items() if not math.isnan(mean.value)}
    if not means:
        return "There is no mean to compare: at least one run of each method gave NaN."
    ordered = sorted(means, key=lambda method: -column.words.better * means[method].value)
    first, last = ordered[0], ordered[-1]
    least = min(mean.n for mean in means.values())
    basis = _basis(column, least, max(mean.n for mean in means.values()))
    most = "highest" if column.words.better > 0 else "lowest"
    if len(column.means) == 1:
        return f"{first}: {_percent(column, first)} {basis}. There is no other method to compare with."
    if not column.best:
        return (
            f"Means are from {_percent(column, last)} ({last}) to {_percent(column, first)} ({first}) {basis}. "
            f"No method can be called better than another: that takes at least {LEAST_SEEDS} seeds that methods share."
        )
    clear = [method for method, difference in column.behind.items() if difference.sign]
    if not clear:
        return (
            f"No method can be called the best: {column.best} has the {most} mean, {_percent(column, column.best)}, "
            f"but it cannot be told from any other {basis}."
        )
    if not column.level:
        after = next(method for method in ordered if method != column.best)
        difference = difference_told(column.behind[after], column)
        return (
            f"{column.best} is the best, {_percent(column, column.best)}, ahead of all others; next is {after} with "
            f"{_percent(column, after)}, a difference of {difference} {basis}."
        )
    return (
        f"{column.best} has the {most} mean, {_percent(column, column.best)}, and cannot be told from "
        f"{listed(column.level)}; {listed(clear)} {'is' if len(clear) == 1 else 'are'} behind {basis}."
    )


def _basis(column: Column, least: int, most: int) -> str:
    seeds = many(most, "seed") if least == most else f"{least} to {many(most, 'seed')}"
    samples = counts_told(column.counts)
    return f"({seeds}{f', {samples} each' if samples else ''})"


def _percent(column: Column, method: str) -> str:
    return mean_told(column.means[method], column, " %" if column.words.unit.startswith("share") else "")


def listed(names: Sequence[str]) -> str:
    """Names as a person lists them; many are counted.

    >>> listed(["a", "b", "c"]), listed(list("abcdefg"))
    ('a, b and c', 'a, b, c, d and 3 others')
    """
    if len(names) > _MOST_NAMES:
        names = [*names[: _MOST_NAMES - 1], f"{len(names) - _MOST_NAMES + 1} others"]
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def many(number: int, what: str) -> str:
    """A number and what is counted.

    >>> many(1, "seed"), many(3, "seed")
    ('1 seed', '3 seeds')
    """
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def threats_told(on: OnData) -> list[tuple[str, str]]:
    """Each threat with all its sizes, and how sure the numbers about it are: pairs of both, in words."""
    by_threat: dict[tuple[str, str], list[str]] = {}
    for key, column in on.columns.items():
        if sureness(key) and "_of_class" not in key.what and "_worst_class" not in key.what:
            whole = Wording(Key("", "accuracy", key.of or "joint", sure=key.sure), column.words.threats)
            what, size = (column.words.threat, "") if key.budget else (whole.threat, "")
            if key.radius is not None:
                size = f"{key.radius:g}"
            sizes = by_threat.setdefault((what, column.words.sure), [])
            if size and size not in sizes:
                sizes.append(size)
    return [
        (f"{what}{f', up to radius {_listed_all(sizes)}' if sizes else ''}", sure)
        for (what, sure), sizes in by_threat.items()
    ]


def _listed_all(sizes: Sequence[str]) -> str:
    ordered = sorted(sizes, key=float)
    return ", ".join(ordered[:-1]) + f" or {ordered[-1]}" if len(ordered) > 1 else ordered[0]
