# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from support.linear_model import THREATS, Counting, Linear, distances, predict, samples
from support.nets import Net
from torch import nn

from lightning_crmt.attacks import APGD, PGD, Budget
from lightning_crmt.attacks.apgd import checkpoints


@pytest.mark.parametrize("threat", THREATS)
@pytest.mark.parametrize("loss", ["margin", "dlr"])
def test_it_succeeds_just_above_the_distance_and_fails_just_below(threat, loss):
    make, exact = THREATS[threat]
    model, x = Linear(), samples(8)
    y = predict(model, x)
    distance = distances(model, x, **exact)
    reachable = distance.isfinite()
    assert reachable.sum() > 4
    distance = distance.where(reachable, 1.0)
    above = APGD(make(1.005 * distance), targeted=True, loss=loss)(model, x, y)
    assert (predict(model, above) != y)[reachable].all()
    below = APGD(make(0.999 * distance), steps=20, targeted=True, loss=loss)(model, x, y)
    assert (predict(model, below) == y).all()


def test_cross_entropy_is_enough_for_two_classes():
    model, x = Linear(2), samples(8)
    y = predict(model, x)
    distance = distances(model, x, {"audio": 1.0, "image": 1.0}, joint=True)
    assert (predict(model, APGD(Budget(1.001 * distance), loss="ce")(model, x, y)) != y).all()
    assert (predict(model, APGD(Budget(0.999 * distance), loss="ce")(model, x, y)) == y).all()


def test_checkpoints_are_those_of_the_paper():
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(10) == [3, 5, 6, 7, 8, 9, 10]


def test_a_step_that_is_too_long_is_halved():
    """On a narrow ridge steps of the budget's size only jump from side to side; fixed ones cannot stay on it."""

    def ridge(inputs):
        x = inputs["audio"]
        height = 0.5 * x[:, 0] - 3 * x[:, 1:].abs().sum(dim=1)  # highest along the first axis
        return torch.stack([torch.full_like(height, 0.45), height], dim=1)

    x, y = {"audio": torch.full((1, 4), 0.01, dtype=torch.float64)}, torch.tensor([0])
    budget = Budget(1.0)
    assert APGD(budget, steps=200).logits(ridge, x, y).argmax(dim=1).item() == 1
    assert PGD(budget, steps=200, step_size=0.5, decay=1.0).logits(ridge, x, y).argmax(dim=1).item() == 0


def test_it_ends_with_the_best_place_it_saw():
    model, x = Net(torch.float64).eval(), samples()
    y, leads = predict(model, x), []
    own = nn.functional.one_hot(y, 4)

    def watched(inputs):
        logits = model(inputs)["logits"] + 100 * own  # nothing falls, so that all are seen in every pass
        leads.append((logits - 1e9 * own).amax(dim=1).detach() - (logits * own).sum(dim=1).detach())
        return logits

    APGD(Budget(1.0), steps=20)(watched, x, y)
    clean, *seen, stored = leads
    assert len(seen) == 20
    assert stored.allclose(torch.stack(seen).amax(dim=0))
    assert (stored > clean + 0.1).all()
    assert (stored > seen[-1] + 1e-6).any()  # the last place was not the best for all


def test_no_more_passes_than_needed():
    model, x = Counting(), samples()
    y = predict(model, x)
    model.seen.clear()
    APGD(Budget(1e-6), steps=10)(model, x, y)
    assert model.seen == [20] * 12  # the clean inputs, ten gradients, the verdict
    model.seen.clear()
    APGD(Budget(1e6), steps=10, restarts=5, targeted=True)(model, x, y)
    assert sum(model.seen) <= 20 * 5


@pytest.mark.slow
def test_as_strong_as_many_more_steps_of_plain_descent():
    model, x = Net(torch.float64).eval(), samples(100)
    y, radius = predict(model, x), 0.6
    plain = PGD(Budget(radius), steps=200, restarts=2, targeted=True).logits(model, x, y).argmax(dim=1) == y
    auto = APGD(Budget(radius), steps=50, targeted=True).logits(model, x, y).argmax(dim=1) == y
    assert 10 < plain.sum() < 90
    assert auto.sum() <= plain.sum()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 1}, "`steps` must be at least 2, got 1"),
        ({"restarts": 0}, "`restarts` must be at least 1, got 0"),
        ({"loss": "cw"}, "`loss` must be 'margin', 'ce' or 'dlr', got 'cw'"),
        ({"loss": "ce", "targeted": True}, "`targeted` needs loss='margin' or 'dlr', got 'ce'"),
        ({"targeted": True, "classes": 0}, "`classes` must be at least 1, got 0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        APGD(Budget(1.0), **settings)
