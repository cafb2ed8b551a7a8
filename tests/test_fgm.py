# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from support.linear_model import THREATS, Linear, distances, predict, samples

from lightning_crmt.attacks import FGM, Budget


@pytest.mark.parametrize("threat", THREATS)
def test_exact_on_linear_models(threat):
    """One step towards each class is all that a linear model needs, in a box too."""
    make, exact = THREATS[threat]
    model, x = Linear(), samples(8)
    y = predict(model, x)
    distance = distances(model, x, **exact)
    reachable = distance.isfinite()
    distance = distance.where(reachable, 1.0)
    above = FGM(make(1.001 * distance), loss="margin", targeted=True)(model, x, y)
    assert (predict(model, above) != y)[reachable].all()
    below = FGM(make(0.999 * distance), loss="margin", targeted=True)(model, x, y)
    assert (predict(model, below) == y).all()


@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_two_classes_need_no_targets(loss):
    model, x = Linear(2), samples(8)
    y = predict(model, x)
    distance = distances(model, x, {"audio": 1.0, "image": 1.0}, joint=True)
    assert (predict(model, FGM(Budget(1.001 * distance), loss=loss)(model, x, y)) != y).all()
    assert (predict(model, FGM(Budget(0.999 * distance), loss=loss)(model, x, y)) == y).all()


def test_the_step_is_as_long_as_the_budget_and_along_the_gradient():
    model, x = Linear(2), samples()
    y = predict(model, x)
    moved = FGM(Budget(1e-3))(model, x, y)
    toward = (model.weights["audio"][1 - y] - model.weights["audio"][y]).detach()
    step = moved["audio"] - x["audio"]
    assert torch.allclose(Budget(1e-3).size({n: moved[n] - x[n] for n in x}), torch.ones(20).double())
    assert torch.allclose(torch.cosine_similarity(step, toward), torch.ones(20).double())


def test_its_loss_is_checked():
    with pytest.raises(ValueError, match="`loss` must be"):
        FGM(Budget(1.0), loss="hinge")
    with pytest.raises(ValueError, match="needs a model of at least 3 classes, got 2"):
        FGM(Budget(1.0), loss="dlr")(Linear(2), samples(), torch.zeros(20, dtype=torch.long))
