# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""How sure a share of draws is, against slow formulas and streams whose probability is known."""

import itertools
import math

import numpy as np
import pytest
from scipy import integrate, stats

from lightning_crmt.smoothing import (
    clopper_pearson,
    evidence_above,
    evidence_below,
    lower_bound_at_any_time,
    lower_bound_when_stopped,
)
from lightning_crmt.smoothing.confidence import enough, hopeless, successes_needed


def few_errors(wrong, tried, alpha):
    """Whether so many errors may happen at level alpha: one-sided binomial test at 1 %."""
    return stats.binom.sf(wrong - 1, tried, alpha) > 0.01


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.8, 0.99])
@pytest.mark.parametrize(("successes", "draws"), [(0, 1), (3, 7), (64, 64), (60, 64), (200, 400)])
def test_evidence_is_the_integral(successes, draws, threshold):
    def likelihood(q):
        return math.exp(
            successes * math.log(q / threshold) + (draws - successes) * math.log((1 - q) / (1 - threshold))
            if 0 < q < 1
            else -math.inf
        )

    peak = min(max(successes / draws, threshold), 1 - 1e-9)
    points = [threshold, *([peak] if threshold < peak < 1 else []), 1]
    mean = sum(integrate.quad(likelihood, a, b, limit=200)[0] for a, b in itertools.pairwise(points))
    found = evidence_above(np.array(successes), np.array(draws), np.array(threshold))
    assert found == pytest.approx(math.log(mean / (1 - threshold)), abs=1e-6)


def test_evidence_below_is_the_mirror_image():
    rng = np.random.default_rng(0)
    draws = rng.integers(1, 1000, 200)
    successes, threshold = rng.integers(0, draws + 1), rng.uniform(0.01, 0.99, 200)
    mirrored = evidence_above(draws - successes, draws, 1 - threshold)
    assert np.allclose(evidence_below(successes, draws, threshold), mirrored)


def test_a_probability_of_one_is_never_exceeded():
    assert evidence_above(np.array(10**6), np.array(10**6), np.array(1.0)) == -np.inf
    assert evidence_below(np.array(5), np.array(5), np.array(1.0)) == np.inf


@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.2])
def test_clopper_pearson_has_its_level(alpha):
    for draws in (1, 10, 73):
        for successes in range(1, draws + 1):
            bound = float(clopper_pearson(np.array(successes), np.array(draws), alpha))
            tail = sum(math.comb(draws, k) * bound**k * (1 - bound) ** (draws - k) for k in range(successes, draws + 1))
            assert tail <= alpha
            assert tail == pytest.approx(alpha, rel=1e-6)
    assert clopper_pearson(np.array(0), np.array(9), alpha) == 0


@pytest.mark.parametrize("alpha", [1e-6, 0.001, 0.05, 0.25])
def test_the_bound_at_any_time_is_the_end_of_the_thresholds_that_are_rejected(alpha):
    rng = np.random.default_rng(1)
    draws = np.concatenate([np.arange(1, 60), rng.integers(1, 20_000, 200)])
    successes = rng.binomial(draws, rng.uniform(0, 1, draws.shape))
    successes[::7] = draws[::7]
    bound = lower_bound_at_any_time(successes, draws, alpha)
    for share in (0.01, 0.3, 0.9, 0.999999):  # all below it are rejected ...
        below = bound * share
        inside = below > 1e-12
        assert (evidence_above(successes, draws, below)[inside] >= enough(alpha)).all()
    for step in (1e-6, 1e-3, 0.01, 0.1, 0.5):  # ... and none above
        above = np.minimum(bound + step * (1 - bound), 1)
        assert (evidence_above(successes, draws, above) < enough(alpha)).all()


@pytest.mark.parametrize("p", [0.5, 0.7, 0.95])
def test_streams_that_are_at_the_threshold_are_rarely_certified(p):
    """Looked at after every block, for as long as 5,000 draws; and by a bound, which holds at all thresholds."""
    streams, alpha = 2000, 0.05
    rng = np.random.default_rng(2)
    successes = np.zeros(streams, dtype=int)
    certified, above, refuted = np.zeros((3, streams), dtype=bool)
    for draws in range(50, 5001, 50):
        successes += rng.binomial(50, p, streams)
        certified |= evidence_above(successes, np.array(draws), np.array(p)) >= enough(alpha)
        refuted |= evidence_below(successes, np.array(draws), np.array(p)) >= enough(alpha)
        if draws % 500 == 0:
            above |= lower_bound_at_any_time(successes, np.full(streams, draws), alpha) > p
    assert not (above & ~certified).any()
    for wrong in (certified, refuted):
        assert few_errors(wrong.sum(), streams, alpha)
        assert wrong.any(), "a test that never errs wastes draws"


def test_streams_of_fixed_length_are_rarely_certified():
    streams, alpha, p, draws = 4000, 0.05, 0.8, 400
    successes = np.random.default_rng(3).binomial(draws, p, streams)
    wrong = (clopper_pearson(successes, np.full(streams, draws), alpha) > p).sum()
    assert few_errors(wrong, streams, alpha)
    assert wrong > 0.03 * streams


@pytest.mark.parametrize("alpha", [0.001, 0.25])
@pytest.mark.parametrize("draws", [1, 63, 1000])
def test_as_many_successes_are_needed_as_make_the_bound_exceed_the_threshold(draws, alpha):
    threshold = np.concatenate([np.linspace(0.001, 0.999, 37), [1.0]])
    bounds = clopper_pearson(np.arange(draws + 1), np.full(draws + 1, draws), alpha)
    slow = [next((k for k in range(draws + 1) if bounds[k] > each), draws + 1) for each in threshold]
    assert successes_needed(draws, threshold, alpha).tolist() == slow


@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.99])
def test_what_is_hopeless_would_rarely_have_been_certified(threshold):
    """Of streams with a probability from anywhere near the threshold, those given up at any look, played to the end."""
    rng, streams, most = np.random.default_rng(4), 20_000, 4096
    needed = successes_needed(most, np.array(threshold), 0.001)
    p = rng.uniform(max(threshold - 0.1, 0), min(threshold + 0.1, 1), streams)
    successes, given_up = np.zeros(streams, dtype=int), np.zeros(streams, dtype=bool)
    for draws in range(64, most, 64):
        successes += rng.binomial(64, p)
        given_up |= hopeless(successes, np.full(streams, draws), needed, most)
    successes += rng.binomial(64, p)
    certified = successes >= needed
    assert given_up.mean() > 0.3
    assert (given_up & certified).sum() < 0.02 * certified.sum()
    assert not (~given_up & ~certified & (p < threshold - 0.05)).any(), "clear cases must be given up"


@pytest.mark.parametrize("p", [0.5, 0.95])
def test_streams_that_stop_wherever_they_look_best_are_rarely_certified(p):
    streams, most, alpha = 4000, 2000, 0.05
    rng = np.random.default_rng(5)
    successes, wrong = np.zeros(streams, dtype=int), np.zeros(streams, dtype=bool)
    for draws in range(50, most + 1, 50):
        successes += rng.binomial(50, p, streams)
        wrong |= lower_bound_when_stopped(successes, np.full(streams, draws), most, alpha) > p
    assert few_errors(wrong.sum(), streams, alpha)
    assert wrong.mean() > 0.4 * alpha, "the end has half of alpha, and uses it"
