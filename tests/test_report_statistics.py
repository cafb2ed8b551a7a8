# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Means, paired differences and ranks against scipy and slow formulas."""

import math
import random

import pytest
from scipy import stats

from lightning_crmt.report import Run, summarise
from lightning_crmt.report.statistics import Mean, paired_difference, ranks
from lightning_crmt.report.verdict import scope

KEY = "test/accuracy/joint"


def drawn(seed, n):
    generator = random.Random(seed)
    return {each: generator.gauss(0.5, 0.1) for each in range(n)}


@pytest.mark.parametrize("n", [2, 3, 5, 30])
@pytest.mark.parametrize("comparisons", [1, 3])
def test_the_interval_is_that_of_the_paired_t_test(n, comparisons):
    ours, theirs = drawn(n, n), drawn(n + 1, n)
    found = paired_difference(ours, theirs, comparisons)
    test = stats.ttest_rel(list(ours.values()), list(theirs.values()))
    low, high = test.confidence_interval(1 - 0.05 / comparisons)
    assert (found.low, found.high, found.n) == (pytest.approx(low), pytest.approx(high), n)
    assert found.mean == pytest.approx(sum(ours[s] - theirs[s] for s in ours) / n)


def test_only_shared_seeds_count_and_order_does_not():
    ours, theirs = drawn(0, 5), drawn(1, 4)
    found = paired_difference(ours, theirs | {99: 1e6})
    assert found == paired_difference({seed: ours[seed] for seed in (3, 1, 0, 2)}, theirs)
    mirrored = paired_difference(theirs, ours)
    assert (found.mean, found.low, found.high) == pytest.approx((-mirrored.mean, -mirrored.high, -mirrored.low))


def test_of_equal_methods_few_are_called_different():
    """The share of false claims is near 5 %, and below it with several comparisons at once."""
    generator = random.Random(0)
    single = together = 0
    for _ in range(2000):
        draws = [{seed: generator.gauss(0, 1) for seed in range(4)} for _ in range(4)]
        single += paired_difference(draws[0], draws[1]).sign != 0
        together += any(paired_difference(draws[0], each, 3).sign for each in draws[1:])
    assert 0.035 < single / 2000 < 0.065
    assert together / 2000 < 0.06


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({0: 1.0}, {1: 0.0}),
        ({0: 1.0}, {0: 0.0}),
        ({0: 1.0, 1: 1.001}, {0: 0.0, 1: 0.0}),  # two seeds
        ({0: 0.3, 1: 0.4, 2: 0.5}, {0: 0.1, 1: 0.2, 2: 0.3}),  # equal but for rounding
        ({0: math.inf, 1: 1.0, 2: 1.0}, {0: 0.0, 1: 0.1, 2: 0.2}),
        ({0: math.nan, 1: 1.0, 2: 1.0}, {0: 0.0, 1: 0.1, 2: 0.2}),
        ({0: math.inf, 1: math.inf, 2: math.inf}, {0: math.inf, 1: 0.1, 2: 0.2}),
    ],
)
def test_too_little_or_no_numbers_make_no_claim(ours, theirs):
    assert paired_difference(ours, theirs).sign == 0


def test_means_keep_what_is_no_number():
    assert math.isnan(Mean.of([]).value)
    assert math.isnan(Mean.of([0.5, math.nan]).value)
    assert Mean.of([0.5, math.inf]).value == math.inf
    assert math.isnan(Mean.of([0.5, math.inf]).spread)
    assert math.isnan(Mean.of([0.5]).spread)
    values = list(drawn(0, 7).values())
    assert Mean.of(values).spread == pytest.approx(stats.tstd(values))


@pytest.mark.parametrize("better", [1, -1])
def test_ranks_are_those_of_scipy(better):
    values = {str(place): value for place, value in enumerate([0.5, 0.25, 0.5, 1.0, math.inf, -math.inf])}
    expected = stats.rankdata([-better * value for value in values.values()])
    assert list(ranks(values, better).values()) == list(expected)
    assert ranks(values | {"nan": math.nan}, better)["nan"] == len(values) + 1


def runs_of(values, data="x"):
    return [Run(method, data, seed, {KEY: value}) for method, each in values.items() for seed, value in enumerate(each)]


def only_column(runs, baseline=None):
    (column,) = summarise(runs, baseline).on_data[0].columns.values()
    return column


def test_the_best_and_what_cannot_be_told_from_it():
    noise = [0.01, -0.02, 0.005, 0.0]
    values = {
        "worse": [0.5 + each for each in noise],
        "near": [0.79, 0.81, 0.82, 0.79],
        "best": [0.8 + each + 0.01 * place for place, each in enumerate(noise)],
    }
    column = only_column(runs_of(values), "worse")
    assert (column.best, column.level) == ("best", ["near"])
    assert column.to_baseline["best"].sign == column.to_baseline["near"].sign == 1
    assert "worse" not in column.to_baseline


def test_where_less_is_better_the_best_has_least():
    losses = {"a": [1.0, 1.1, 0.9], "b": [0.5, 0.4, 0.55]}
    runs = [Run(m, "x", seed, {"test/loss": value}) for m, each in losses.items() for seed, value in enumerate(each)]
    column = only_column(runs, "a")
    assert column.best == "b"
    assert column.to_baseline["b"].mean < 0


@pytest.mark.parametrize("seeds", [1, 2])
def test_with_fewer_than_three_seeds_nothing_is_best(seeds):
    column = only_column(runs_of({"a": [0.1, 0.11][:seeds], "b": [0.9, 0.93][:seeds]}), "a")
    assert column.best == ""
    assert column.level == []
    assert column.to_baseline["b"].sign == 0


def test_one_method_alone_and_numbers_in_the_model_s_own_scale_have_no_best():
    assert only_column(runs_of({"a": [0.1, 0.2, 0.3]})).best == ""
    runs = [Run(m, "x", s, {"test/margin/joint": v * s}) for m, v in (("a", 1.0), ("b", 9.0)) for s in (1, 2, 4)]
    assert only_column(runs).best == ""


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_where_all_have_the_same_number_none_is_best(value):
    runs = runs_of({"a": [value] * 4, "b": [value] * 4})
    assert only_column(runs).best == ""
    assert only_column([*runs, *runs_of({"c": [value] * 3 + [0.5]})]).best != ""


def test_combinations_without_a_run_are_counted():
    runs = runs_of({"a": [0.1, 0.2, 0.3], "b": [0.1, 0.2]})
    assert "All of these runs finished. Of 6 combinations of these methods" in scope(summarise(runs))
    assert scope(summarise(runs)).endswith("1 have no run.")
    assert scope(summarise(runs_of({"a": [0.1, 0.2], "b": [0.1, 0.2]}))).endswith("All runs finished.")


def test_what_is_not_a_number_is_never_best():
    column = only_column(runs_of({"a": [0.1, 0.2, 0.4], "b": [0.9, math.nan, 0.9]}))
    assert column.best == "a"
    assert column.level == ["b"]


def test_failed_runs_count_for_nothing_and_are_kept():
    runs = [*runs_of({"a": [0.1, 0.2, 0.3]}), Run("a", "x", 3, {KEY: 1e9}, error="no"), Run("b", "x", 0, error="no")]
    (on,) = summarise(runs).on_data
    (column,) = on.columns.values()
    assert column.means == {"a": Mean.of([0.1, 0.2, 0.3])}
    assert [(run.method, run.seed) for run in on.failed] == [("a", 3), ("b", 0)]
    assert on.seeds == [0, 1, 2, 3]


def test_the_order_of_runs_changes_nothing_but_the_order_of_methods():
    runs = runs_of({"a": [0.1, 0.2, 0.4], "b": [0.7, 0.8, 0.65]})
    assert only_column(runs, "a") == only_column(runs[::-1], "a")


def test_ranks_are_over_data_sets_that_have_all():
    runs = [
        *runs_of({"a": [0.1], "b": [0.2], "c": [0.9]}, "x"),
        *runs_of({"a": [0.5], "b": [0.5], "c": [math.nan]}, "y"),
    ]
    (by_method,) = summarise(runs).ranks.values()
    assert by_method == {"a": 1.75, "b": 1.25}
    assert summarise(runs[:3]).ranks == {}


def test_counts_say_of_how_many_samples_a_number_is():
    runs = [
        Run("a", "x", 0, {KEY: 0.5, "test/loss": 1.0}, counts={KEY: 30}, samples=50),
        Run("b", "x", 0, {KEY: 0.5, "test/loss": 1.0}, samples=40),
    ]
    columns = summarise(runs).on_data[0].columns.values()
    assert {column.words.key.what: column.counts for column in columns} == {"accuracy": (30, 40), "loss": (40, 50)}


def test_mistakes_are_named():
    runs = runs_of({"joint": [0.1], "crmt": [0.2]})
    with pytest.raises(ValueError, match="`runs` must hold at least one"):
        summarise([])
    with pytest.raises(ValueError, match=r"got two of \('joint', 'x', 0\)"):
        summarise([*runs, runs[0]])
    with pytest.raises(ValueError, match=r"`baseline` must be one of .* got 'jiont'; did you mean `joint`\?"):
        summarise(runs, "jiont")
