# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What runs of one data set measured: by method, mean and spread over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean, stdev
from typing import NamedTuple

from lightning_crmt.evaluation import Key
from lightning_crmt.report.runs import Run

#: How sure lower bounds are, the surest first.
LOWER = ("certified", "probably_certified", "estimated")


@dataclass(frozen=True)
class Spread:
    """Numbers of several seeds.

    Attributes:
        mean: over seeds.
        deviation: their standard deviation, 0 for one seed.
        n: how many seeds there are.
        samples: of how many samples each number is, at least; 0 where that is not known.

    >>> Spread.over([0.25, 0.5, 0.75])
    Spread(mean=0.5, deviation=0.25, n=3, samples=0)
    """

    mean: float
    deviation: float
    n: int
    samples: int = 0

    @classmethod
    def over(cls, values: Sequence[float], samples: int = 0) -> Spread:
        """That of at least one value."""
        return cls(mean(values), stdev(values) if len(values) > 1 else 0.0, len(values), samples)


class Measured(NamedTuple):
    """The numbers of one finished run, and of how many samples each is, by keys without a split."""

    run: Run
    numbers: dict[Key, float]
    samples: dict[Key, int]


class Comparison:
    """The numbers of runs on one data set.

    Those of the test part, or of validation where no run has any; those of several data loaders are left out.

    Args:
        runs: in the order in which methods are shown; failed ones have no numbers.

    Raises:
        ValueError: if the runs are of several data sets, or there are none.

    >>> runs = [Run("joint", "mfeat", seed, {"test/accuracy/joint": 0.25 + seed / 4}) for seed in range(3)]
    >>> Comparison(runs).of(Key("", "accuracy", "joint"))
    {'joint': Spread(mean=0.5, deviation=0.25, n=3, samples=0)}
    """

    def __init__(self, runs: Iterable[Run]) -> None:
        runs = list(runs)
        if len({run.data for run in runs}) != 1:
            raise ValueError(f"`runs` must be of one data set, got {sorted({run.data for run in runs})}")
        keys = [(run, run.keys()) for run in runs if not run.error]
        #: Which part of the data all numbers are of, but for those over epochs.
        self.split = "test" if any(key.split == "test" for _, numbers in keys for key in numbers) else "val"
        self.data = runs[0].data
        self.methods = list(dict.fromkeys(run.method for run in runs))
        self.measured = [self._measured(run, numbers) for run, numbers in keys]
        self.keys = list(dict.fromkeys(key for each in self.measured for key in each.numbers))

    def _measured(self, run: Run, numbers: Mapping[Key, float]) -> Measured:
        own = {key: value for key, value in numbers.items() if key.split == self.split and key.loader is None}
        bare = {key: replace(key, split="") for key in own}
        # Only the test part's size is known as a whole.
        whole = run.samples if self.split == "test" else 0
        counts = {bare[key]: run.counts.get(str(key), whole) for key in own}
        return Measured(run, {bare[key]: value for key, value in own.items()}, counts)

    def spreads(self, key_of: Callable[[Measured], Key | None]) -> dict[str, Spread]:
        """Of each method that has it, mean and spread of a number; of none whose numbers are not all finite.

        Args:
            key_of: the key of the number in a run, which need not be the same in all; None where a run has none.
        """
        values: dict[str, list[tuple[float, int]]] = {}
        for each in self.measured:
            if (key := key_of(each)) in each.numbers and key is not None:
                values.setdefault(each.run.method, []).append((each.numbers[key], each.samples[key]))
        return {
            method: Spread.over([value for value, _ in values[method]], min(size for _, size in values[method]))
            for method in self.methods
            if method in values and all(math.isfinite(value) for value, _ in values[method])
        }

    def of(self, key: Key) -> dict[str, Spread]:
        """Mean and spread of one key, by method."""
        return self.spreads(lambda each: key)

    def differences(self, key_of: Callable[[Measured], Key | None], baseline: str) -> dict[str, list[float]]:
        """By method its number less the baseline's, of each seed that both have."""
        by_seed: dict[str, dict[int, float]] = {}
        for each in self.measured:
            key = key_of(each)
            if key in each.numbers and key is not None and math.isfinite(each.numbers[key]):
                by_seed.setdefault(each.run.method, {})[each.run.seed] = each.numbers[key]
        base = by_seed.pop(baseline, {})
        paired = {
            method: [value - base[seed] for seed, value in by_seed.get(method, {}).items() if seed in base]
            for method in self.methods
        }
        return {method: values for method, values in paired.items() if values}

    def note(self, spreads: Iterable[Mapping[str, Spread]], split: str = "") -> str:
        """From what numbers are: the data, how many samples and seeds, and what is drawn of these."""
        drawn = [each for by_method in spreads for each in by_method.values()]
        counts, sizes = sorted({each.n for each in drawn}), sorted({each.samples for each in drawn})
        part = {"test": "test", "val": "validation", "train": "training"}[split or self.split]
        known = f"{_range(sizes)} " if sizes and all(sizes) else ""
        if counts in ([], [1]):
            seeds = "one seed: no spread is known"
        else:
            seeds = f"mean and standard deviation over {_range(counts)} seeds"
        return f"{self.data}, {known}{part} samples; {seeds}"


def accuracy(of: str, radius: float, sure: str) -> Key:
    """The key of an accuracy at a radius."""
    return Key("", "accuracy", of, radius, sure=sure)


def attacked(measured: Measured, of: str) -> dict[float, Key]:
    """By radius the key of accuracy under the strongest of a run's attacks on one threat.

    Args:
        measured: of one run.
        of: ``"joint"``, a modality, or several joined by ``+``, that one l2 radius is of.
    """
    least: dict[float, Key] = {}
    for key, value in measured.numbers.items():
        ours = key.sure == "robust" and key.what == "accuracy" and measured.run.threats.get(key.of) == of
        if ours and key.size is not None and len(key.budget) < 2:
            strongest = least.setdefault(key.size, key)
            if value < measured.numbers[strongest]:
                least[key.size] = key
    return least


def some(radii: Collection[float], most: int = 4) -> list[float]:
    """At most so many of the radii, the largest among them and the others spread evenly; 0 only if nothing else is.

    >>> some([0.0, 0.1, 0.2, 0.3, 0.4, 0.5], most=3)
    [0.1, 0.3, 0.5]
    """
    ordered = sorted(radius for radius in set(radii) if radius > 0) or sorted(set(radii))
    if len(ordered) <= most:
        return ordered
    return [ordered[round(step * (len(ordered) - 1) / (most - 1))] for step in range(most)]


def _range(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if numbers[0] == numbers[-1] else f"{numbers[0]} to {numbers[-1]}"
