# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from support.linear_model import Counting, Linear, distances, predict, samples
from support.nets import Net

from lightning_crmt.attacks import (
    FGM,
    PGD,
    Budget,
    Ensemble,
    MinimumNorm,
    MinimumNormEnsemble,
    MissingModality,
    RandomNoise,
    strongest,
)


def fooled(attack, model, x, y):
    return attack.logits(model, x, y).argmax(dim=1) != y


def test_it_fools_where_any_of_its_attacks_does():
    model, x = Net(torch.float64).eval(), samples(60)
    y, budget = predict(model, x), Budget(0.4)
    members = [RandomNoise(budget, samples=5), FGM(budget), PGD(budget, steps=10, targeted=True)]
    apart = torch.stack([fooled(attack, model, x, y) for attack in members])
    assert (fooled(Ensemble(members), model, x, y) == apart.any(dim=0)).all()
    assert 0 < apart[0].sum() < apart[2].sum()


def test_a_sample_keeps_the_first_that_fools():
    model, x = Net(torch.float64).eval(), samples(60)
    y, budget = predict(model, x), Budget(0.6)
    first, second = FGM(budget), PGD(budget, steps=10)
    found, alone = Ensemble([first, second])(model, x, y), first(model, x, y)
    rows = predict(model, alone) != y
    assert 0 < rows.sum() < 60
    assert all(found[n][rows].equal(alone[n][rows]) for n in x)


def test_later_attacks_see_only_what_still_stands():
    model, x = Counting(), samples()
    y = predict(model, x)
    radius = torch.full((20,), 1e6)
    radius[7] = 1e-6
    model.seen.clear()
    Ensemble([FGM(Budget(radius), loss="margin"), PGD(Budget(radius), steps=3)])(model, x, y)
    # Both judge for themselves: clean, clean, gradient, verdict, verdict; then the same for one, with three gradients.
    assert model.seen == [20] * 5 + [1] * 6
    model.seen.clear()
    Ensemble([FGM(Budget(1e6), loss="margin"), PGD(Budget(1e6), steps=3)])(model, x, y)
    assert 1 not in model.seen
    assert len(model.seen) == 5


def test_a_minimum_norm_attack_counts_within_the_budget():
    model, x = Linear(), samples(12)
    y = predict(model, x)
    distance = distances(model, x, {"audio": 1.0, "image": 1.0}, joint=True)
    radius = distance.median().item() * 1.001
    found = Ensemble([MinimumNorm(Budget(radius), steps=10)])(model, x, y)
    assert ((predict(model, found) != y) == (distance < radius)).all()
    assert (Budget(radius).size(Budget(radius).difference(found, x)) <= 1 + 1e-9).all()


def test_nearest_of_several_minimum_norm_attacks():
    model, x = Net(torch.float64).eval(), samples()
    y = predict(model, x)
    members = [MinimumNorm(Budget(1.0, modalities=["audio"]), steps=s, restarts=1, seed=s) for s in (2, 3)]
    apart = [attack.search(model, x, y) for attack in members]
    both = MinimumNormEnsemble(members).search(model, x, y)
    assert both.factor.equal(torch.minimum(apart[0].factor, apart[1].factor))
    size = members[0].budget.size(members[0].budget.difference(both.inputs, x))
    assert size[both.factor.isfinite()].equal(both.factor[both.factor.isfinite()])
    assert both.inputs["image"] is x["image"]
    halved = MinimumNormEnsemble(members).scaled(2.0).search(model, x, y).factor
    assert torch.allclose(halved * 2, both.factor, rtol=1e-2)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Ensemble([]), ValueError, "`attacks` must hold at least one attack"),
        (
            lambda: Ensemble([FGM(Budget(0.1)), FGM(Budget(0.2))]),
            ValueError,
            "`attacks` must have one budget, got Budget\\(0.1\\) and Budget\\(0.2\\)",
        ),
        (lambda: Ensemble([FGM(Budget(0.1)), FGM(Budget({"audio": 0.1}))]), ValueError, "one budget"),
        (lambda: Ensemble([FGM(Budget(0.1)), FGM(Budget(0.1, norm="linf"))]), ValueError, "one budget"),
        (lambda: Ensemble([FGM(Budget(0.1)), FGM(Budget(0.1, box={"audio": (0, 1)}))]), ValueError, "one budget"),
        (lambda: Ensemble([FGM]), TypeError, "must hold attacks within a budget"),
        (lambda: Ensemble([MissingModality()]), TypeError, "must hold attacks within a budget, got a MissingModality"),
        (lambda: MinimumNormEnsemble([FGM(Budget(0.1))]), TypeError, "with a method `search`, got a FGM"),
    ],
)
def test_bad_members(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_equal_budgets_need_not_be_one_object():
    radii = torch.linspace(0.1, 1, 20)
    Ensemble([FGM(Budget(radii)), FGM(Budget(radii.clone()))])
    Ensemble([FGM(Budget({"audio": 0.1, "image": 1})), FGM(Budget({"image": 1.0, "audio": 0.1}))])


@pytest.mark.slow
def test_nothing_here_finds_more_than_the_strongest():
    model, x = Net(torch.float64).eval(), samples(60)
    y = predict(model, x)
    distance = MinimumNorm(Budget(1.0)).search(model, x, y).factor
    for radius in (0.5, 1.0):
        standing = ~fooled(strongest(Budget(radius)), model, x, y)
        assert 0 < standing.sum() < 60
        assert standing.sum() <= (distance > radius * 0.999).sum()
        slow = PGD(Budget(radius), steps=60, restarts=2, targeted=True)
        assert standing.sum() <= (~fooled(slow, model, x, y)).sum()
