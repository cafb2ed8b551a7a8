# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What repeated runs say: means, paired differences and shares with their intervals, and ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from statistics import fmean, stdev

import numpy as np

from lightning_crmt.smoothing import clopper_pearson

#: The confidence of all intervals of one column of a table together.
LEVEL = 0.95

#: With fewer seeds there is no claim: two differences that happen to be near each other look like certainty.
LEAST_SEEDS = 3


@dataclass(frozen=True)
class Mean:
    """Mean and spread of a number over runs.

    Attributes:
        value: the mean; NaN without runs, or if one of them is NaN.
        spread: the standard deviation between runs, with n - 1; NaN for fewer than two runs or infinite numbers.
        n: how many runs.

    >>> Mean.of([0.5, 0.75])
    Mean(value=0.625, spread=0.1767766952966369, n=2)
    """

    value: float
    spread: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """Of one number from each run."""
        finite = all(map(math.isfinite, values))
        value = sum(values) / len(values) if values and not finite else fmean(values) if values else math.nan
        return cls(value, stdev(values) if finite and len(values) > 1 else math.nan, len(values))


@dataclass(frozen=True)
class Difference:
    """A paired difference of two methods over the seeds that both have, with its interval.

    Attributes:
        mean: of the differences.
        low: lower end of the interval; NaN where there is none.
        high: upper end.
        n: how many seeds both have.
    """

    mean: float
    low: float
    high: float
    n: int

    @property
    def sign(self) -> int:
        """1 or -1 where the interval leaves 0 out and at least three seeds were run, else 0: no difference shown."""
        if self.n < LEAST_SEEDS or math.isnan(self.low) or self.low <= 0 <= self.high:
            return 0
        return 1 if self.low > 0 else -1


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float], comparisons: int = 1) -> Difference:
    r"""The mean of ours less theirs over the seeds of both, with the interval of the paired t-test.

    .. math:: \bar d \pm t_{n-1, 1 - \alpha / 2k} \, s_d / \sqrt n

    with :math:`\alpha = 0.05`, divided by the number k of comparisons that are to hold together (Bonferroni). It takes
    the differences for draws of a normal distribution; what the test part itself leaves to chance is not in it, unless
    the seed decides the split. Differences that are all equal have no interval: they say nothing of how others spread.

    Args:
        ours: by seed.
        theirs: by seed.
        comparisons: k.

    >>> paired_difference({0: 3.0, 1: 4.0, 2: 5.5}, {0: 1.0, 1: 2.5, 2: 3.0, 3: 9.0})  # doctest: +ELLIPSIS
    Difference(mean=2.0, low=0.7579..., high=3.2420..., n=3)
    """
    seeds = sorted(set(ours) & set(theirs))
    differences = [ours[seed] - theirs[seed] for seed in seeds]
    found = Mean.of(differences)
    # Rounding alone makes equal differences look a little unequal.
    size = max((abs(each[seed]) for each in (ours, theirs) for seed in seeds), default=0.0)
    if not math.isfinite(found.spread) or found.spread <= 1e-12 * size:
        return Difference(found.value, math.nan, math.nan, found.n)
    half = _quantile(1 - (1 - LEVEL) / (2 * comparisons), found.n - 1) * found.spread / math.sqrt(found.n)
    return Difference(found.value, found.value - half, found.value + half, found.n)


def share_interval(share: float, n: int) -> tuple[float, float]:
    r"""The interval of Clopper and Pearson for a share of n samples, which holds the true share with 95 % at least.

    .. math:: [I^{-1}_{\alpha/2}(k, n - k + 1), \; 1 - I^{-1}_{\alpha/2}(n - k, k + 1)], \quad k = n \cdot share

    with :math:`\alpha = 0.05` (Biometrika 1934). It takes the samples for independent draws, and says what others like
    them may give for the same trained model; it says nothing of other seeds. NaN twice where ``share`` is no share of n
    samples.

    >>> low, high = share_interval(0.0, 400)
    >>> round(low, 4), round(high, 4)
    (0.0, 0.0092)
    """
    right = round(share * n) if math.isfinite(share) else -1
    # Logged numbers are of single precision.
    if n < 1 or not 0 <= right <= n or abs(share * n - right) > 1e-3:
        return math.nan, math.nan
    low, below = clopper_pearson(np.array([right, n - right]), np.array([n, n]), (1 - LEVEL) / 2)
    return float(low), 1 - float(below)


def ranks(values: Mapping[str, float], better: int) -> dict[str, float]:
    """Ranks from 1, the best; equal values share the mean of their ranks, and NaN comes last.

    Args:
        values: by name.
        better: 1 if larger is better, -1 if smaller is.

    >>> ranks({"a": 0.5, "b": 0.75, "c": 0.5}, better=1)
    {'a': 2.5, 'b': 1.0, 'c': 2.5}
    """
    losses = {name: (True, 0.0) if math.isnan(value) else (False, -better * value) for name, value in values.items()}
    return {
        name: sum(each < loss for each in losses.values()) + (sum(each == loss for each in losses.values()) + 1) / 2
        for name, loss in losses.items()
    }


def _quantile(probability: float, freedom: int) -> float:
    # Loaded where it is needed: it takes a while.
    return float(import_module("scipy.special").stdtrit(freedom, probability))
