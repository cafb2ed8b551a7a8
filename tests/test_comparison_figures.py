# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
import itertools
import random
from dataclasses import replace
from statistics import mean, stdev

import pytest

from lightning_crmt.report import Run, figures_of
from lightning_crmt.report.figures import (
    bounds,
    budget_maps,
    cost,
    differences,
    missing_grid,
    over_epochs,
    radius_curves,
    reliance,
    worst_class,
)
from lightning_crmt.report.figures.comparison import Comparison
from lightning_crmt.report.figures.cost import pareto_front
from lightning_crmt.report.figures.drawing import looks

pytest.importorskip("matplotlib")

METHODS = ["joint", "crmt"]
THREATS = {"pgd": "joint", "fgm": "joint", "pgd-audio": "audio", "linf": "joint, linf"}


def run(method, seed, numbers, data="digits", **settings):
    return Run(method, data, seed, {f"test/{key}": value for key, value in numbers.items()}, **settings)


def every_number(method, seed):
    """Numbers of all kinds, different for each method and seed."""
    own = 0.1 * METHODS.index(method) + 0.01 * seed
    numbers = {f"certified_accuracy/{of}@{r}": 0.5 + own - r for of in ("joint", "audio") for r in (0.0, 0.1, 0.2)}
    numbers |= {f"robust_accuracy/{attack}@{r}": 0.7 + own - r for attack in THREATS for r in (0.1, 0.2)}
    numbers |= {f"certified_accuracy_worst_class/joint@{r}": 0.2 + own - r for r in (0.0, 0.1, 0.2)}
    numbers |= {f"certified_accuracy/audio={r}+image={s}": 0.5 + own - r for r in (0.0, 0.2) for s in (0.0, 0.3)}
    numbers |= {"accuracy/joint": 0.8 + own, "accuracy/audio": 0.4 + own, "accuracy_zeroed/worst": 0.3 + own}
    numbers |= {f"clean_accuracy/{attack}": 0.8 + own for attack in THREATS}
    return numbers | {"reliance/audio": 0.25, "reliance_rest/audio": 0.5, "reliance_neither/audio": 0.25}


@pytest.fixture
def runs():
    history = {f"val/{what}/audio": [(0, 1.0), (1, 2.0)] for what in ("margin", "vulnerability", "integration_factor")}
    return [
        run(
            method, seed, every_number(method, seed), threats=THREATS, history=history, seconds=9.0 + place, samples=400
        )
        for place, method in enumerate(METHODS)
        for seed in range(3)
    ]


def panel(drawing, title):
    return next(axes for axes in drawing.figure.axes if axes.get_title() == title)


def markers(axes):
    """Where single markers stand, by their shape."""
    found = {}
    for line in axes.lines:
        if len(line.get_xydata()) == 1 and line.get_marker() not in ("", "None", "|", "_"):
            found.setdefault(line.get_marker(), []).append(line.get_xydata()[0].round(6).tolist())
    return found


def curves(axes):
    return {line.get_label(): line.get_xydata().round(6).tolist() for line in axes.lines}


def test_all_that_the_numbers_allow_is_drawn_and_told(runs):
    found = figures_of(runs, baseline="joint")
    names = "bounds_joint bounds_audio radius_curves_certified radius_curves_robust budget_map_certified_audio_image"
    names = [*names.split(), "missing_grid", "reliance", "worst_class", "differences", "over_epochs", "cost"]
    assert list(found) == [f"digits/{name}" for name in names]
    for figure, alt in found.values():
        figure.draw_without_rendering()
        assert "digits" in figure.get_suptitle()
        assert "over 3 seeds" in figure.get_suptitle()
        assert alt.endswith(".")
        assert any(character.isdigit() for character in alt)
    of_test = [figure.get_suptitle() for name, (figure, _) in found.items() if "epochs" not in name]
    assert all("400 test samples" in title for title in of_test)
    assert "validation samples" in found["digits/over_epochs"].figure.get_suptitle()


def test_what_is_guaranteed_and_what_only_survived_are_told_apart(runs):
    found = figures_of(runs)
    assert "guaranteed" in found["digits/radius_curves_certified"].figure.get_suptitle()
    assert "survived only" in found["digits/radius_curves_robust"].figure.get_suptitle()
    (legend,) = found["digits/bounds_joint"].figure.legends
    words = [text.get_text() for text in legend.get_texts()]
    assert words == ["certified: guaranteed", "under the strongest attack: survived, not guaranteed"]
    estimated = [run("joint", 0, {f"estimated_accuracy/joint@{r}": 0.5 for r in (0.1, 0.2)})]
    assert "no guarantee" in radius_curves(estimated, "estimated").figure.get_suptitle()
    assert "no guarantee" in radius_curves(estimated, "estimated").alt


def test_bounds_are_means_of_certificates_and_of_each_runs_strongest_attack():
    numbers = [(0.3, 0.9, 0.6), (0.5, 0.7, 0.8)]  # certified, and two attacks: another one is stronger in each run
    runs = [
        run("joint", seed, {"certified_accuracy/joint@0.1": low, "robust_accuracy/pgd@0.1": pgd,
                            "robust_accuracy/fgm@0.1": fgm, "robust_accuracy/linf@0.1": 0.0}, threats=THREATS)
        for seed, (low, pgd, fgm) in enumerate(numbers)
    ]  # fmt: skip
    drawing = bounds(runs)
    at = markers(panel(drawing, "radius 0.1"))
    assert at[">"] == [[40.0, 0.0]]
    assert at["<"] == [[65.0, 0.0]], "the mean over runs of the least, not the least of the means: 70"
    assert "guaranteed to stay right: joint 40.0 ± 14.1 %" in drawing.alt
    assert "right under the strongest attack: joint 65.0 ± 7.1 %" in drawing.alt


def test_attacks_of_an_unknown_threat_bound_nothing(runs):
    unknown = [run(each.method, each.seed, every_number(each.method, each.seed)) for each in runs]
    assert "<" not in markers(panel(bounds(unknown), "radius 0.1"))


def test_attacks_say_nothing_of_smoothed_classifiers():
    numbers = {"probably_certified_accuracy/joint@0.1": 0.6, "robust_accuracy/pgd@0.1": 0.1}
    axes = panel(bounds([run("smoothed", 0, numbers, threats=THREATS)]), "radius 0.1")
    assert markers(axes) == {"D": [[60.0, 0.0]], "<": [[10.0, 0.0]]}
    assert not [line for line in axes.lines if len(line.get_xydata()) == 2], "no band joins them"


def test_curves_are_means_with_their_spread(runs):
    axes = panel(radius_curves(runs), "perturbed: audio alone")
    assert curves(axes)["crmt"] == [[0.0, 61.0], [0.1, 51.0], [0.2, 41.0]]
    band = axes.collections[1].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((40.0, 62.0))
    attacked = panel(radius_curves(runs, "robust"), "attack pgd-audio (audio)")
    assert curves(attacked)["joint"] == [[0.0, 81.0], [0.1, 61.0], [0.2, 51.0]], "from the clean accuracy on"


def test_the_map_is_of_the_mean_and_needs_a_full_grid(runs):
    (drawing,) = budget_maps(runs).values()
    values = panel(drawing, "crmt").collections[0].get_array().round(6).tolist()
    assert values == [[0.61, 0.41], [0.61, 0.41]]
    gone = "certified_accuracy/audio=0.2+image=0.3"
    short = [run(m, 0, {k: v for k, v in every_number(m, 0).items() if k != gone}) for m in METHODS]
    assert budget_maps(short) == {}


def test_the_grid_of_missing_modalities_tells_each_number(runs):
    (axes,) = missing_grid(runs).figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["all", "audio alone", "worst, zeroed"]
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["81.0\n±1.0", "41.0\n±1.0", "31.0\n±1.0", "91.0\n±1.0", "51.0\n±1.0", "41.0\n±1.0"]


def test_differences_are_paired_by_seed():
    clean = {("joint", 0): 0.5, ("joint", 1): 0.9, ("crmt", 1): 0.8, ("crmt", 0): 0.8, ("crmt", 2): 0.1}
    runs = [run(method, seed, {"accuracy/joint": value}) for (method, seed), value in clean.items()]
    drawing = differences(runs, "joint")
    (bar,) = drawing.figure.axes[0].patches
    assert bar.get_width() == pytest.approx(100 * mean([0.3, -0.1]))
    assert f"crmt +10.0 ± {100 * stdev([0.3, -0.1]):.1f}" in drawing.alt
    with pytest.raises(ValueError, match=r"`baseline` must be one of \['joint', 'crmt'\], got 'plain'"):
        differences(runs, "plain")


def test_the_worst_class_stands_beside_all(runs):
    at = markers(panel(worst_class(runs), "radius 0.1"))
    assert at["v"] == [[11.0, 0.0], [21.0, -1.0]]
    assert at["o"] == [[41.0, 0.0], [51.0, -1.0]]


def test_shares_of_reliance_fill_the_bar(runs):
    axes = panel(reliance(runs), "audio is of another class")
    bars = [patch for patch in axes.patches if patch.get_width() > 1]
    assert [(bar.get_x(), bar.get_width()) for bar in bars] == [
        (0, 25),
        (0, 25),
        (25, 50),
        (25, 50),
        (75, 25),
        (75, 25),
    ]
    assert len({bar.get_hatch() for bar in bars}) == 3


def test_quantities_over_epochs_are_means_over_seeds():
    runs = [
        run(
            "crmt",
            seed,
            {},
            history={"val/margin/joint": [(0, value), (2, 2 * value)], "val/loss": [(0, 9.0), (1, 9.0)]},
        )
        for seed, value in enumerate([1.0, 3.0])
    ]
    drawing = over_epochs(runs)
    (axes,) = drawing.figure.axes
    assert curves(axes) == {"crmt": [[0, 2.0], [2, 4.0]]}
    assert drawing.alt == "From the first to the last epoch: margin of the decision (crmt 2 to 4)."


def test_the_front_holds_what_nothing_dominates():
    def dominates(one, other):
        return one[0] <= other[0] and one[1] >= other[1] and one != other

    for seed in range(200):
        draw = random.Random(seed)
        points = {str(name): (draw.randrange(4), draw.randrange(4)) for name in range(draw.randrange(1, 9))}
        wanted = {
            name for name, point in points.items() if not any(dominates(other, point) for other in points.values())
        }
        assert set(pareto_front(points)) == wanted, points


def test_cost_is_against_the_surest_number(runs):
    drawing = cost(runs)
    assert "guaranteed at radius 0.1" in drawing.figure.get_suptitle()
    assert (
        "Not dominated by seconds of fit and test: joint 9 for 41.0 ± 1.0 %; crmt 10 for 51.0 ± 1.0 %." in drawing.alt
    )
    free = [run(method, 0, every_number(method, 0)) for method in METHODS]
    assert cost(free) is None


def test_costs_have_spreads(runs):
    drawing = cost([replace(each, seconds=each.seconds + each.seed / 2) for each in runs])
    assert "joint 9.5 ± 0.5 for 41.0 ± 1.0 %; crmt 10.5 ± 0.5 for 51.0 ± 1.0 %." in drawing.alt
    bars = [bar for each in panel(drawing, "seconds of fit and test").containers for bar in each[2]]
    ends = [segment[:, 0] for bar in bars for segment in bar.get_segments()]
    assert [sorted(map(float, end)) for end in ends if end[0] != end[1]] == [[9.0, 10.0], [10.0, 11.0]]


def test_numbers_that_are_missing_or_not_finite_leave_a_gap(runs):
    failed = Run("broken", "digits", 0, error="RuntimeError: no")
    holes = run("holes", 0, {"certified_accuracy/joint@0.1": float("nan"), "certified_accuracy/joint@0.2": 0.3})
    axes = panel(bounds([*runs, failed, holes]), "radius 0.1")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["joint", "crmt", "broken", "holes"]
    assert len(markers(axes)[">"]) == 2
    assert "1 to 3 seeds" in radius_curves([*runs, failed, holes]).figure.get_suptitle()
    for figure, _ in figures_of([*runs, failed, holes], baseline="joint").values():
        figure.draw_without_rendering()


def test_nothing_is_drawn_of_nothing():
    nothing = [Run("broken", "digits", 0, error="RuntimeError: no"), run("joint", 0, {"loss": 1.0})]
    assert figures_of(nothing) == {}
    assert figures_of([]) == {}
    assert [
        draw(nothing) for draw in (bounds, radius_curves, missing_grid, reliance, worst_class, over_epochs, cost)
    ] == [None] * 7


def test_one_seed_is_said_to_have_no_spread(runs):
    for figure, alt in figures_of(runs[:1]).values():
        assert "one seed: no spread is known" in figure.get_suptitle()
        assert "±" not in alt


def test_data_sets_have_figures_of_their_own(runs):
    other = [run("joint", 0, every_number("joint", 0), data="speech")]
    assert {name.partition("/")[0] for name in figures_of([*runs, *other])} == {"digits", "speech"}
    with pytest.raises(ValueError, match=r"`runs` must be of one data set, got \['digits', 'speech'\]"):
        Comparison([*runs, *other])


def test_methods_are_told_apart_without_colour():
    many = looks(map(str, range(70))).values()
    assert len({(look.colour, look.marker) for look in many}) == 70
    few = list(looks(map(str, range(4))).values())
    for one, other in itertools.combinations(few, 2):
        assert one.marker != other.marker
        assert one.dash != other.dash
        assert one.hatch != other.hatch


def test_validation_is_drawn_where_nothing_was_tested():
    numbers = {f"val/certified_accuracy/joint@{r}": 0.5 for r in (0.1, 0.2)}
    assert "validation samples" in radius_curves([Run("joint", "digits", 0, numbers)]).figure.get_suptitle()


def test_the_title_says_of_how_many_samples_the_numbers_are():
    numbers = {f"certified_accuracy/joint@{r}": 0.5 for r in (0.1, 0.2)} | {"robust_accuracy/pgd@0.1": 0.6}
    runs = [run("joint", 0, numbers, samples=400, counts={"test/robust_accuracy/pgd@0.1": 64}, threats=THREATS)]
    assert "400 test samples" in radius_curves(runs).figure.get_suptitle()
    assert "64 to 400 test samples" in bounds(runs).figure.get_suptitle()
    unknown = [run("joint", 0, numbers, threats=THREATS)]
    assert "digits, test samples" in bounds(unknown).figure.get_suptitle()
