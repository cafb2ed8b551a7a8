# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""How sure a share of draws is: lower bounds of a probability, from a fixed number of draws or at any time.

S of n independent draws are successes, each with the unknown probability p.
"""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

#: Numbers of draws, probabilities or logarithms, one for each sample.
Array: TypeAlias = NDArray[Any]

#: The largest error level that the theorem in :func:`lower_bound_at_any_time` is about.
MOST_ALPHA = 0.25

#: Above it is 1 in 100 of a normal distribution.
_QUANTILE = 2.326


def clopper_pearson(successes: Array, draws: Array, alpha: float) -> Array:
    r"""Lower bound of p from a number of draws that was fixed beforehand, wrong with probability at most alpha.

    .. math:: I^{-1}_{\alpha}(S, n - S + 1)

    the inverse of the incomplete beta function (Clopper and Pearson, Biometrika 1934, one-sided); 0 without a success.

    >>> clopper_pearson(np.array([0, 99, 100]), np.array([100, 100, 100]), alpha=0.001).round(4)
    array([0.    , 0.9114, 0.9333])
    """
    successes, draws = np.asarray(successes), np.asarray(draws)
    bound = _special().betaincinv(np.maximum(successes, 1), draws - successes + 1, alpha)
    # Rounding must not make it larger than it is.
    return np.where(successes > 0, np.nextafter(bound * (1 - 1e-12), 0), 0.0)


def evidence_above(successes: Array, draws: Array, threshold: Array) -> Array:
    r"""Logarithm of the evidence that p is above a threshold :math:`p_0`, as draws come in.

    .. math:: \log E_n = \log \frac{1}{1 - p_0} \int_{p_0}^1 q^S (1 - q)^{n - S} \mathrm{d}q
        - S \log p_0 - (n - S) \log(1 - p_0)

    Where :math:`p \le p_0`, :math:`E_n` is at most a martingale of mean 1, so that it ever reaches :math:`1 / \alpha`
    with probability at most alpha (Ville's inequality). Minus infinity for :math:`p_0 \ge 1`.

    >>> evidence_above(np.array([64, 60]), np.array([64, 64]), np.array([0.7, 0.9])).round(1)
    array([19.9,  0.1])
    """
    return _evidence(successes, draws, threshold)


def evidence_below(successes: Array, draws: Array, threshold: Array) -> Array:
    """The mirror image of :func:`evidence_above`: that p is below the threshold; infinite for one above 1.

    >>> evidence_below(np.array([30]), np.array([64]), np.array([0.9])).round(1)
    array([35.5])
    """
    successes, draws, threshold = np.broadcast_arrays(successes, draws, threshold)
    mirrored = _evidence(draws - successes, draws, 1 - threshold)
    return np.where(threshold >= 1, np.inf, mirrored)


def lower_bound_at_any_time(successes: Array, draws: Array, alpha: float) -> Array:
    r"""Lower bound of p that may be asked for after any draw, and stays true with probability :math:`1 - \alpha`.

    The largest :math:`p_0` for which :func:`evidence_above` is enough, as it is for all smaller ones. A false bound, at
    whatever draw, needs :math:`E_n(p) \ge 1 / \alpha` at the true p itself: so all thresholds below it hold at once,
    and any number of radii share the one alpha.

    Why for all smaller ones: let :math:`E(p_0)` be the mean of :math:`L(q) / L(p_0)` over :math:`q \in [p_0, 1]`, with
    :math:`L(q) = q^S (1 - q)^{n - S}`. The derivative of :math:`\log E` has the sign of
    :math:`p_0 (n + 1 - 1 / E) - S`, negative below :math:`S / (n + 1)`. From there to :math:`S / n`, E is at most
    :math:`e`, since :math:`\log L` rises by at most :math:`S / (n (n + 1 - S)) \le 1`. Above, L falls and E is at most
    1. So at an alpha below 1/e nothing above :math:`S / (n + 1)` is certain enough.

    Args:
        successes: S.
        draws: n.
        alpha: error level, at most 0.25.

    >>> lower_bound_at_any_time(np.array([64, 640, 10]), np.array([64, 640, 64]), alpha=0.001).round(3)
    array([0.868, 0.986, 0.03 ])
    """
    successes, draws = np.asarray(successes, dtype=float), np.asarray(draws, dtype=float)
    low, high = np.zeros(successes.shape), successes / (draws + 1)
    for _ in range(60):
        middle = (low + high) / 2
        rejected = evidence_above(successes, draws, middle) >= enough(alpha)
        low, high = np.where(rejected, middle, low), np.where(rejected, high, middle)
    return low


def successes_needed(draws: int, threshold: Array, alpha: float) -> Array:
    """The least number of successes from which :func:`clopper_pearson` is above a threshold; draws + 1 if none is.

    >>> successes_needed(100, np.array([0.5, 0.9, 0.95]), alpha=0.001)
    array([ 66,  99, 101])
    """
    few, many = np.zeros(np.shape(threshold), dtype=np.int64), np.full(np.shape(threshold), draws + 1)
    while (many - few > 1).any():
        middle = (few + many) // 2
        # How likely so many successes are at the threshold itself.
        reached = (middle > few) & (_special().betainc(np.maximum(middle, 1), draws - middle + 1, threshold) < alpha)
        few, many = np.where(reached, few, middle), np.where(reached, middle, many)
    return many


def hopeless(successes: Array, draws: Array, needed: Array, most: int) -> Array:
    """Where it has become unlikely, 1 in 100, that ``needed`` of ``most`` draws will be successes.

    To give up claims nothing, so it needs no proof: the chance is that of a normal distribution with the mean and
    variance of the draws to come, p being as likely beforehand anywhere between 0 and 1.

    >>> hopeless(np.array([96, 60]), np.array([128, 128]), needed=np.array([7000, 7000]), most=10_000)
    array([False,  True])
    """
    left = most - draws
    share = (successes + 1) / (draws + 2)
    spread = np.sqrt(left * share * (1 - share) * (most + 2) / (draws + 2))
    return np.asarray((needed > most) | (successes + left * share + _QUANTILE * spread < needed - 0.5))


def lower_bound_when_stopped(successes: Array, draws: Array, most: int, alpha: float) -> Array:
    """Lower bound of p for a test that may stop after any draw, for whatever reason, and does after ``most``.

    Half of alpha is for :func:`lower_bound_at_any_time`; the other half for :func:`clopper_pearson` where all ``most``
    draws were made, which is tighter there. Its error is among those of a test that always makes them.

    >>> lower_bound_when_stopped(np.array([640, 9000]), np.array([640, 10_000]), most=10_000, alpha=0.001).round(3)
    array([0.985, 0.89 ])
    """
    at_any_time, at_the_end = (
        bound(successes, draws, alpha / 2) for bound in (lower_bound_at_any_time, clopper_pearson)
    )
    return np.where(np.asarray(draws) == most, np.maximum(at_any_time, at_the_end), at_any_time)


def chance_of_at_least(successes: int, draws: int, probability: float) -> float:
    """The chance of so many successes or more in independent draws, each with this probability at most.

    >>> chance_of_at_least(0, 100, 0.01), round(chance_of_at_least(1, 100, 0.01), 3)
    (1.0, 0.634)
    """
    return 1.0 if successes == 0 else float(_special().bdtrc(successes - 1, draws, probability))


def enough(alpha: float) -> float:
    """The logarithm of the evidence that decides at level alpha, with room for rounding.

    >>> enough(0.001) > math.log(1000)
    True
    """
    return math.log(1 / alpha) + 1e-6


def _evidence(successes: Array, draws: Array, threshold: Array) -> Array:
    hits, misses, threshold = np.broadcast_arrays(successes, np.asarray(draws) - successes, threshold)
    special = _special()
    inside = np.clip(threshold, np.finfo(float).tiny, 1 - np.finfo(float).epsneg)
    with np.errstate(divide="ignore"):  # a tail that underflows is no evidence
        tail = np.log(special.betainc(misses + 1, hits + 1, 1 - inside))
    evidence = (
        special.betaln(hits + 1, misses + 1)
        + tail
        - np.log1p(-inside)
        - special.xlogy(hits, inside)
        - special.xlog1py(misses, -inside)
    )
    return np.where(threshold >= 1, -np.inf, evidence)


def _special() -> Any:
    """Loaded where it is needed: it takes a while, and training does without."""
    return import_module("scipy.special")
