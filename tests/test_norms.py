# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""A norm of one's own is one class, and every attack takes it; budgets are values."""

import copy
import pickle

import pytest
import torch
from jsonargparse import ArgumentParser
from support.linear_model import Linear, predict, samples

from lightning_crmt.attacks import APGD, FGM, PGD, Budget, Ensemble, MinimumNorm, Norm, RandomSearch


class L1(Norm):
    """The sum of absolute values; without a box."""

    def length(self, delta):
        return torch.cat([d.flatten(1) for d in delta.values()], dim=1).double().abs().sum(dim=1)

    def project(self, delta, radius, room, in_place=False):
        flat = torch.cat([d.flatten(1) for d in delta.values()], dim=1)
        sizes = flat.double().abs().sort(dim=1, descending=True).values
        counts = torch.arange(1, sizes.shape[1] + 1)
        excess = (sizes.cumsum(dim=1) - radius[:, None]) / counts
        last = (sizes > excess).sum(dim=1, keepdim=True).clamp(min=1) - 1
        shrunk = flat.sign() * (flat.abs() - excess.gather(1, last).clamp(min=0).to(flat.dtype)).clamp(min=0)
        return self._split(shrunk, delta)

    def steepest(self, gradient, radius, room):
        flat = torch.cat([g.flatten(1) for g in gradient.values()], dim=1)
        largest = flat.abs().argmax(dim=1, keepdim=True)
        spike = flat.gather(1, largest).sign() * radius[:, None].to(flat.dtype)
        return self._split(torch.zeros_like(flat).scatter(1, largest, spike), gradient)

    def _split(self, flat, like):
        parts = flat.split([d[0].numel() for d in like.values()], dim=1)
        return {name: part.reshape(d.shape) for (name, d), part in zip(like.items(), parts, strict=True)}


def l1_distances(model, inputs, names):
    rows = torch.cat([model.weights[n] for n in names], dim=1).detach()
    logits = model(inputs).detach()
    y = logits.argmax(dim=1)
    slopes = (rows[y][:, None] - rows).abs().amax(dim=2)  # the dual norm
    return ((logits.amax(1, keepdim=True) - logits) / slopes).scatter(1, y[:, None], torch.inf).amin(dim=1)


@pytest.mark.parametrize("modalities", [None, ["image"]])
def test_attacks_in_a_norm_of_ones_own_are_exact_on_linear_models(modalities):
    model, x = Linear(), samples(8)
    y, distance = predict(model, x), l1_distances(model, x, modalities or list(x))
    make = lambda factor: Budget(factor * distance, modalities=modalities, norm=L1())  # noqa: E731
    for attack in (lambda b: FGM(b, loss="margin", targeted=True), lambda b: PGD(b, targeted=True)):
        assert (predict(model, attack(make(1.01))(model, x, y)) != y).all()
        assert (predict(model, attack(make(0.999))(model, x, y)) == y).all()
    found = MinimumNorm(Budget(1.0, modalities=modalities, norm=L1())).search(model, x, y)
    assert (found.factor >= distance * (1 - 1e-9)).all()
    assert (found.factor <= distance * 1.02).all()


def test_every_search_keeps_to_it():
    model, x, budget = Linear(), samples(8), Budget({"audio": 0.5, "image": 1.0}, norm=L1())
    y = predict(model, x)
    for attack in (APGD(budget, steps=6), RandomSearch(budget, steps=8), Ensemble([FGM(budget), PGD(budget, steps=3)])):
        moved = attack(model, x, y)
        assert (budget.size(budget.difference(moved, x)) <= 1 + 1e-9).all()
    drawn = budget.random(x, torch.Generator().manual_seed(0))
    assert ((budget.size(drawn) > 0) & (budget.size(drawn) <= 1)).all()


def test_a_norm_of_ones_own_from_the_command_line():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--attack", type=PGD)
    given = [f"--attack={{budget: {{radius: 0.1, norm: {{class_path: {__name__}.L1}}}}}}"]
    assert isinstance(parser.instantiate_classes(parser.parse_args(given)).attack.budget.norm, L1)


def test_a_budget_is_a_value():
    box = {"audio": (0.0, 1.0)}
    same = [Budget(0.2, box=box), Budget(0.2, box=box), copy.deepcopy(Budget(0.2, box=box))]
    same.append(pickle.loads(pickle.dumps(same[0])))
    assert len(set(same)) == 1
    assert Budget({"audio": 0.1, "image": 1}) == Budget({"image": 1.0, "audio": 0.1})
    assert Budget(0.1, modalities=["audio"]) == Budget({"audio": 0.1})
    assert Budget(torch.tensor([0.5, 0.25])) == Budget(torch.tensor([0.5, 0.25]).double())
    others = [
        Budget(0.2),
        Budget(0.3, box=box),
        Budget(0.2, norm="linf", box=box),
        Budget(0.2, modalities=["audio"], box=box),
        Budget(torch.tensor([0.2]), box=box),
    ]
    assert len({same[0], *others}) == 6
    with pytest.raises(AttributeError, match="a Budget does not change: make another one with another `radius`"):
        same[0].radius = 0.3
    assert repr(Budget(0.2, norm=L1())) == "Budget(0.2, norm=L1())"
