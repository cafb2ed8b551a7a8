# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The runs of a comparison by data, method and key: means, differences to a baseline, what is best, and ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from lightning_crmt.checks import did_you_mean
from lightning_crmt.evaluation import Key
from lightning_crmt.report.planned import is_missing
from lightning_crmt.report.runs import Run
from lightning_crmt.report.statistics import LEAST_SEEDS, Difference, Mean, paired_difference, ranks
from lightning_crmt.report.wording import Wording


@dataclass(frozen=True)
class Column:
    """One number of all methods on some data.

    Attributes:
        words: what it is.
        means: by method, those that have it.
        to_baseline: differences to the baseline by method, those of the others.
        best: the method with the best mean; empty where neither more nor less is better, fewer than two methods have
            the number, or there are too few seeds to tell anything.
        behind: the difference of the best to each other method.
        counts: of how many samples it is: the different numbers that runs tell.
    """

    words: Wording
    means: Mapping[str, Mean]
    to_baseline: Mapping[str, Difference] = field(default_factory=dict)
    best: str = ""
    behind: Mapping[str, Difference] = field(default_factory=dict)
    counts: tuple[int, ...] = ()

    @property
    def level(self) -> list[str]:
        """The methods that cannot be told from the best."""
        return [method for method, difference in self.behind.items() if difference.sign == 0]

    @property
    def ties(self) -> list[str]:
        """The methods that have the very mean of the best."""
        return [method for method in self.behind if self.means[method].value == self.means[self.best].value]


@dataclass(frozen=True)
class OnData:
    """All methods on some data.

    Attributes:
        data: its name.
        runs: by method, failed ones included.
        columns: by key.
    """

    data: str
    runs: Mapping[str, Sequence[Run]]
    columns: Mapping[Key, Column]

    @property
    def failed(self) -> list[Run]:
        """The runs that ended without numbers."""
        return [run for runs in self.runs.values() for run in runs if run.error and not is_missing(run)]

    @property
    def missing(self) -> list[Run]:
        """The runs that are planned and have not ended."""
        return [run for runs in self.runs.values() for run in runs if is_missing(run)]

    @property
    def seeds(self) -> list[int]:
        """Of all runs, failed ones included."""
        return sorted({run.seed for runs in self.runs.values() for run in runs})


@dataclass(frozen=True)
class Summary:
    """What a comparison says, in numbers.

    Attributes:
        on_data: for each data set.
        methods: in the order of the runs.
        baseline: the method that the others are compared with; empty if there is none.
        ranks: where there are several data sets, by key the mean rank of each method that has the number on all.

    >>> runs = [Run("a", "x", seed, {"test/accuracy/joint": 0.5 + seed / 100}) for seed in range(3)]
    >>> runs += [Run("b", "x", seed, {"test/accuracy/joint": 0.7 + seed / 200}) for seed in range(3)]
    >>> (column,) = summarise(runs, baseline="a").on_data[0].columns.values()
    >>> column.best, column.level, column.to_baseline["b"].sign
    ('b', [], 1)
    """

    on_data: Sequence[OnData]
    methods: Sequence[str]
    baseline: str = ""
    ranks: Mapping[Key, Mapping[str, float]] = field(default_factory=dict)


def summarise(runs: Sequence[Run], baseline: str | None = None) -> Summary:
    """Means over seeds and paired comparisons; failed runs count for nothing but are kept.

    Intervals hold together within a column: those to the baseline for all methods, those to the best for all pairs, as
    which one is best was seen in the same numbers.

    Raises:
        ValueError: if there are no runs, two of the same method, data and seed, or none of the baseline.
    """
    if not runs:
        raise ValueError("`runs` must hold at least one run, got none")
    methods = list(dict.fromkeys(run.method for run in runs))
    seen: set[tuple[str, str, int]] = set()
    for run in runs:
        if (name := (run.method, run.data, run.seed)) in seen:
            raise ValueError(f"`runs` must have one run of a method on some data with a seed, got two of {name}")
        seen.add(name)
    if baseline is not None and baseline not in methods:
        near = did_you_mean(baseline, methods)
        raise ValueError(f"`baseline` must be one of the methods {', '.join(methods)}, got {baseline!r}{near}")
    on_data = []
    for data in dict.fromkeys(run.data for run in runs):
        by_method = {
            method: sorted((run for run in runs if (run.method, run.data) == (method, data)), key=lambda run: run.seed)
            for method in methods
        }
        on_data.append(OnData(data, by_method, _columns(by_method, baseline or "")))
    return Summary(on_data, methods, baseline or "", _mean_ranks(on_data))


def _columns(runs: Mapping[str, Sequence[Run]], baseline: str) -> dict[Key, Column]:
    values: dict[Key, dict[str, dict[int, float]]] = {}
    counts: dict[Key, set[int]] = {}
    threats: dict[str, str] = {}
    for method, each in runs.items():
        for run in each:
            if run.error:
                continue
            threats |= run.threats
            for key, value in run.keys().items():
                values.setdefault(key, {}).setdefault(method, {})[run.seed] = value
                counts.setdefault(key, set()).add(run.counts.get(str(key), 0 if _is_of_class(key) else run.samples))
    return {
        key: _column(Wording(key, threats), by_method, baseline, tuple(sorted(counts[key] - {0})))
        for key, by_method in values.items()
    }


def _is_of_class(key: Key) -> bool:
    """Whether a number is of the samples of one class, which are not all."""
    return "_of_class" in key.what or "_worst_class" in key.what


def _column(
    words: Wording, values: Mapping[str, Mapping[int, float]], baseline: str, counts: tuple[int, ...]
) -> Column:
    means = {method: Mean.of([each[seed] for seed in sorted(each)]) for method, each in values.items()}
    others = [method for method in values if method != baseline]
    to_baseline = {
        method: paired_difference(values[method], values[baseline], len(others))
        for method in (others if baseline in values else [])
    }
    candidates = [method for method, mean in means.items() if not math.isnan(mean.value)]
    # Where all numbers are the same, as where nothing is guaranteed for the worst class, none is best.
    alike = len({value for each in values.values() for value in each.values()}) == 1
    if words.better == 0 or len(means) < 2 or not candidates or alike:
        return Column(words, means, to_baseline, counts=counts)
    best = max(candidates, key=lambda method: words.better * means[method].value)
    pairs = len(list(combinations(values, 2)))
    behind = {method: paired_difference(values[best], values[method], pairs) for method in values if method != best}
    told = any(difference.n >= LEAST_SEEDS for difference in behind.values())
    return Column(words, means, to_baseline, best if told else "", behind if told else {}, counts)


def _mean_ranks(on_data: Sequence[OnData]) -> dict[Key, dict[str, float]]:
    found: dict[Key, dict[str, float]] = {}
    if len(on_data) < 2:
        return found
    for key, column in on_data[0].columns.items():
        columns = [each.columns[key] for each in on_data if key in each.columns]
        complete = [
            method
            for method in column.means
            if all(method in each.means and not math.isnan(each.means[method].value) for each in columns)
        ]
        if len(columns) == len(on_data) and column.words.better and len(complete) > 1:
            by_data = [
                ranks({method: each.means[method].value for method in complete}, column.words.better)
                for each in columns
            ]
            found[key] = {method: Mean.of([each[method] for each in by_data]).value for method in complete}
    return found
