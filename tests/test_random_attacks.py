# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Attacks that ask for logits only."""

import pytest
import torch
from support.linear_model import THREATS, Linear, distances, predict, samples
from support.nets import Net
from torch import nn

from lightning_crmt.attacks import PGD, Budget, RandomNoise, RandomSearch
from lightning_crmt.attacks.random_search import coarse_noise


def standing(attack, model, x, y):
    return (attack.logits(model, x, y).argmax(dim=1) == y).sum().item()


@pytest.mark.parametrize("threat", THREATS)
def test_random_search_comes_close_to_the_distance_and_never_below(threat):
    make, exact = THREATS[threat]
    model, x = Linear(), samples(12)
    y = predict(model, x)
    distance = distances(model, x, **exact)
    reachable = distance.isfinite()
    distance = distance.where(reachable, 1.0)
    above = RandomSearch(make(1.2 * distance), steps=150)(model, x, y)
    assert (predict(model, above) != y)[reachable].float().mean() >= 0.8
    below = RandomSearch(make(0.999 * distance), steps=50)(model, x, y)
    assert (predict(model, below) == y).all()


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.image = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(200, 4),
        )
        self.audio = nn.Linear(5, 4)

    def forward(self, inputs):
        return self.image(inputs["image"]) + self.audio(inputs["audio"])


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_not_better_than_gradients_and_not_much_worse(norm):
    model, x = Convolutions(), samples(40, sizes={"image": (1, 12, 12), "audio": (5,)}, dtype=torch.float32)
    y = predict(model, x)
    radius = {"l2": 0.4, "linf": 0.05}[norm]
    white = standing(PGD(Budget(radius, norm=norm), steps=30, targeted=True), model, x, y)
    black = standing(RandomSearch(Budget(radius, norm=norm), steps=400), model, x, y)
    noise = standing(RandomNoise(Budget(radius, norm=norm), samples=400), model, x, y)
    assert white <= black < noise
    assert 40 - black >= 0.5 * (40 - white)


def test_random_search_sees_through_masked_gradients():
    """Rounding the inputs leaves no gradient: a search by gradients finds nothing and the model looks robust."""

    class Rounded(Net):
        def forward(self, inputs):
            masked = {n: v + ((8 * v).round() / 8 - v).detach() - v + v.detach() for n, v in inputs.items()}
            return super().forward(masked)

    model, x = Rounded().eval(), samples(40, dtype=torch.float32)
    y, budget = predict(model, x), Budget(1.0)
    assert standing(PGD(budget, steps=20, targeted=True), model, x, y) == 40
    assert standing(RandomSearch(budget, steps=100), model, x, y) < 20


def test_blocks_are_drawn_for_images_and_not_for_vectors():
    generator = torch.Generator().manual_seed(0)
    drawn = [coarse_noise(torch.zeros(3, 2, 9, 7), generator) for _ in range(20)]
    assert all(each.shape == (1, 2, 9, 7) for each in drawn)
    assert {len(each.unique()) for each in drawn} == {2 * 9 * 7, 2 * 5 * 4, 2 * 3 * 2, 2 * 2 * 1}
    assert all(len(coarse_noise(torch.zeros(3, 50), generator).unique()) == 50 for _ in range(10))


def test_more_noise_finds_no_less():
    model, x = Net().eval(), samples(60, dtype=torch.float32)
    y = predict(model, x)
    found = [standing(RandomNoise(Budget(1.0), samples=n), model, x, y) for n in (1, 10, 100)]
    assert found == sorted(found, reverse=True)
    assert found[2] < found[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomNoise(Budget(1.0), samples=0), "`samples` must be at least 1, got 0"),
        (lambda: RandomSearch(Budget(1.0), steps=0), "`steps` must be at least 1, got 0"),
        (lambda: RandomSearch(Budget(1.0), restarts=0), "`restarts` must be at least 1, got 0"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()
