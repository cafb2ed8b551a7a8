# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Attacks towards a class: they succeed where the model answers that class, and nowhere else."""

from itertools import combinations

import pytest
import torch
from support.linear_model import THREATS, Linear, distances, predict, samples
from support.nets import Net
from torch import nn

from lightning_crmt.attacks import (
    APGD,
    FGM,
    PGD,
    Budget,
    Ensemble,
    LossAscent,
    MinimumNorm,
    MinimumNormEnsemble,
    RandomNoise,
    RandomSearch,
    strongest,
    surviving,
    suspicions,
)
from lightning_crmt.attacks.survival import distance_by, fooled_by

ATTACKS = {
    "fgm": lambda b, c: FGM(b, towards=c),
    "fgm margin": lambda b, c: FGM(b, loss="margin", towards=c),
    "pgd": lambda b, c: PGD(b, towards=c),
    "apgd": lambda b, c: APGD(b, towards=c),
    "minimum norm": lambda b, c: Ensemble([MinimumNorm(b, towards=c)]),
    "strongest": lambda b, c: strongest(b, steps=20, towards=c),
}


def polyhedron(model, inputs, towards):
    """Joint l2 distance to where a linear model answers a class: the best of all sets of active constraints."""
    rows = torch.cat(list(model.weights.values()), dim=1).detach()
    logits, nearest = model(inputs).detach(), []
    for row, r in zip(logits, towards.tolist(), strict=True):
        others = [k for k in range(len(row)) if k != r]
        slopes, needed = rows[r] - rows[others], row[others] - row[r]
        best = 0.0 if (needed <= 0).all() else torch.inf
        for size in range(1, len(others) + 1):
            for active in combinations(range(len(others)), size):
                some = slopes[list(active)]
                delta = some.mT @ torch.linalg.solve(some @ some.mT, needed[list(active)])
                if (slopes @ delta >= needed - 1e-9).all():
                    best = min(best, float(delta.norm()))
        nearest.append(best)
    return torch.tensor(nearest, dtype=torch.float64)


@pytest.mark.parametrize("threat", ["joint", "product", "linf", "joint, box"])
@pytest.mark.parametrize("attack", ["fgm", "fgm margin", "pgd", "apgd"])
def test_with_two_classes_the_other_one_is_as_far_as_the_boundary(attack, threat):
    make, exact = THREATS[threat]
    model, x = Linear(2), samples(8)
    y = predict(model, x)
    distance = distances(model, x, **exact)
    reachable = distance.isfinite()
    distance = distance.where(reachable, 1.0)
    above = ATTACKS[attack](make(1.005 * distance), 1 - y)(model, x, y)
    assert (predict(model, above) != y)[reachable].all()
    below = ATTACKS[attack](make(0.999 * distance), 1 - y)(model, x, y)
    assert (predict(model, below) == y).all()


@pytest.mark.parametrize("attack", ["pgd", "apgd", "minimum norm", "strongest"])
def test_with_more_classes_each_is_reached_just_above_its_distance(attack):
    model, x = Linear(), samples(8)
    y = predict(model, x)
    for shift in (1, 2, 3):
        towards = (y + shift) % 4
        distance = polyhedron(model, x, towards)
        above = ATTACKS[attack](Budget(1.02 * distance), towards)(model, x, y)
        assert (predict(model, above) == towards).all()
        below = ATTACKS[attack](Budget(0.999 * distance), towards)(model, x, y)
        assert (predict(model, below) != towards).all()


def test_the_nearest_input_of_a_class():
    model, x = Linear(), samples(12)
    y = predict(model, x)
    towards = (y + torch.arange(12) % 3 + 1) % 4
    exact = polyhedron(model, x, towards)
    attack = MinimumNorm(Budget(1.0), towards=towards)
    found = attack.search(model, x, y)
    assert (found.factor >= exact * (1 - 1e-9)).all()
    assert (found.factor <= exact * 1.02).all()
    assert (predict(model, found.inputs) == towards).all()
    assert distance_by(attack, model, x, y).equal(found.factor)
    both = MinimumNormEnsemble([MinimumNorm(Budget(1.0), steps=s, towards=towards) for s in (5, 40)])
    assert (both.search(model, x, y).factor <= found.factor).all()


def test_random_search_comes_close_and_noise_counts_that_class_only():
    model, x = Linear(), samples(12)
    y = predict(model, x)
    towards = (y + 1) % 4
    distance = polyhedron(model, x, towards)
    above = RandomSearch(Budget(1.3 * distance), steps=150, towards=towards)(model, x, y)
    assert (predict(model, above) == towards).float().mean() >= 0.7
    below = RandomSearch(Budget(0.999 * distance), steps=50, towards=towards)(model, x, y)
    assert (predict(model, below) != towards).all()
    anywhere, there = RandomNoise(Budget(3.0), samples=30), RandomNoise(Budget(3.0), samples=30, towards=2)
    reached = predict(model, there(model, x, y))
    assert 0 < ((reached == 2) & (y != 2)).sum() < (predict(model, anywhere(model, x, y)) != y).sum()
    assert fooled_by(there, model, x, y).equal((reached == 2) & (y != 2))


@pytest.mark.parametrize("attack", [*ATTACKS, "noise", "search"])
def test_samples_of_that_class_are_left_alone(attack):
    make = ATTACKS | {
        "noise": lambda b, c: RandomNoise(b, samples=2, towards=c),
        "search": lambda b, c: RandomSearch(b, steps=5, towards=c),
    }
    model, x = Net().eval(), samples(40, dtype=torch.float32)
    y = predict(model, x)
    found = make[attack](Budget(100.0), 3)(model, x, y)
    assert 0 < (y == 3).sum() < 40
    assert all(found[n][y == 3].equal(x[n][y == 3]) for n in x)
    assert not fooled_by(make[attack](Budget(100.0), 3), model, x, y)[y == 3].any()


def test_who_survives_is_who_is_not_led_to_that_class():
    model, x = Linear(), samples(20)
    y = predict(model, x)
    exact = polyhedron(model, x, torch.full_like(y, 1)).where(y != 1, torch.inf)
    radii = [float(exact[exact.isfinite()].quantile(q)) for q in (0.8, 0.3)]
    masks = surviving(PGD(Budget(1.0), steps=80, towards=1), model, x, y, radii, torch.ones(20, dtype=torch.bool))
    for radius, mask in zip(radii, masks, strict=True):
        assert mask.tolist() == (exact > radius).tolist()
    each = PGD(Budget(1.0), steps=80, towards=torch.full((20,), 1))
    assert all(map(torch.equal, surviving(each, model, x, y, radii, y != 1), [mask & (y != 1) for mask in masks]))


def test_logits_that_are_not_finite_are_a_success_and_another_wrong_class_is_none():
    logits = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [torch.nan, 0, 0]])
    y = torch.zeros(4, dtype=torch.long)
    assert PGD(Budget(1.0), towards=2).succeeds(logits, y).tolist() == [False, False, True, True]
    assert PGD(Budget(1.0)).succeeds(logits, y).tolist() == [False, True, True, True]
    assert PGD(Budget(1.0), towards=torch.tensor([0, 1, 1, 1])).succeeds(logits, y).tolist() == [
        False,
        True,
        False,
        True,
    ]


def test_what_is_trained_on_looks_like_that_class():
    model, x = Net(torch.float64).eval(), samples(30)
    y, c = predict(model, x), torch.full((30,), 2)
    loss = lambda inputs: nn.functional.cross_entropy(model(inputs)["logits"], c)  # noqa: E731
    budget = Budget(0.3)
    found = LossAscent(budget, towards=2)(model, x, y)
    assert (budget.size(budget.difference(found, x)) <= 1 + 1e-9).all()
    assert loss(found) < loss(x) - 0.05


def test_a_healthy_pair_is_not_suspected():
    torch.manual_seed(0)
    audio, image = nn.Linear(5, 32), nn.Linear(6, 32)
    out = nn.Linear(64, 4)
    model = lambda x: out(torch.cat([audio(x["audio"]).relu(), image(x["image"].flatten(1)).relu()], 1))  # noqa: E731
    x = samples(32, dtype=torch.float32)
    y = predict(model, x)
    assert suspicions(PGD(Budget(0.2), steps=20, towards=1), model, x, y) == []


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: PGD(Budget(1.0), towards="dog"), TypeError, "`towards` must be a class or a tensor.*got a str"),
        (lambda: PGD(Budget(1.0), towards=True), TypeError, "`towards` must be a class"),
        (lambda: PGD(Budget(1.0), towards=-1), ValueError, "`towards` must be at least 0, got -1"),
        (lambda: PGD(Budget(1.0), targeted=True, towards=1), ValueError, "leave out `targeted` and `classes`"),
        (lambda: MinimumNorm(Budget(1.0), classes=2, towards=1), ValueError, "leave out `targeted` and `classes`"),
        (
            lambda: Ensemble([PGD(Budget(1.0), towards=1), PGD(Budget(1.0))]),
            ValueError,
            "`attacks` must have one `towards`, got 1 and None",
        ),
    ],
)
def test_bad_settings(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("towards", "message"),
    [
        (4, "`towards` must hold class indices from 0 to 3, got values from 4 to 4"),
        (torch.zeros(3, dtype=torch.long), r"`towards` must have shape \(8,\)"),
    ],
)
def test_classes_that_do_not_fit_the_model_or_the_batch(towards, message):
    x = samples(8)
    with pytest.raises(ValueError, match=message):
        PGD(Budget(1.0), towards=towards)(Linear(), x, predict(Linear(), x))
