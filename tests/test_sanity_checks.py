# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Models with a known trouble are told so; healthy ones are left in peace. Attacks that cheat are caught."""

import copy
import re

import pytest
import torch
from support.linear_model import Linear, samples
from support.obfuscated import HEALTHY, RADIUS, WRAPPED, build
from torch import nn

from lightning_crmt.attacks import (
    APGD,
    FGM,
    PGD,
    Budget,
    BudgetedAttack,
    Ensemble,
    MinimumNorm,
    MissingModality,
    RandomNoise,
    RandomSearch,
    strongest,
    suspicions,
)
from lightning_crmt.attacks.survival import distance_by, fooled_by, surviving

SMALL = PGD(Budget(0.2), steps=10)


class Net(nn.Module):
    """A healthy network of two inputs; subclasses spoil it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.audio, self.image, self.out = nn.Linear(5, 32), nn.Linear(6, 32), nn.Linear(64, 4)

    def plain(self, inputs):
        features = [self.audio(inputs["audio"]).relu(), self.image(inputs["image"].flatten(1)).relu()]
        return self.out(torch.cat(features, dim=1))

    def forward(self, inputs):
        return self.plain(inputs)


class Saturated(Net):
    """Probabilities as logits, so sharp that their gradient underflows."""

    def forward(self, inputs):
        return (1e6 * self.plain(inputs)).softmax(dim=1)


class Rounded(Net):
    def forward(self, inputs):
        return (50 * self.plain(inputs)).round()


class DropsAlways(Net):
    def forward(self, inputs):
        return nn.functional.dropout(self.plain(inputs), p=0.3)


class Misleading(Net):
    """A backward pass that points elsewhere."""

    def forward(self, inputs):
        seen = {name: value.detach() for name, value in inputs.items()}
        lure = sum((value - seen[name]).flatten(1).sum(dim=1, keepdim=True) for name, value in inputs.items())
        return self.plain(seen) + lure * torch.tensor([1.0, 2.0, 3.0, -4.0])


class Clamped(Net):
    """However far an input goes, only its first step counts."""

    def forward(self, inputs):
        return self.plain({name: 2 + 0.01 * value.tanh() for name, value in inputs.items()})


class OfItsBatch(Net):
    def forward(self, inputs):
        normed = {name: (x - x.mean(0)) / (x.std(0) + 1e-3) for name, x in inputs.items()}
        return self.plain(normed)


def of(model, size=32):
    inputs = samples(size, dtype=torch.float32)
    return model.eval(), inputs, model(inputs).argmax(1)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Saturated, "32 of 32 gradients are 0 or not finite in every attacked modality"),
        (Saturated, "the model returns probabilities"),
        (Rounded, "32 of 32 gradients are 0 or not finite in every attacked modality"),
        (DropsAlways, "two forwards of the same inputs differ"),
        (Misleading, "random noise of the same size fools"),
        (Clamped, "samples are not fooled"),
        (OfItsBatch, "of the largest with the batch that a sample is in"),
    ],
)
def test_each_trouble_is_named(kind, words):
    found = suspicions(PGD(Budget(1.0), steps=10), *of(kind()))
    assert any(words in each for each in found), found


@pytest.mark.parametrize("budget", [Budget(0.2), Budget(0.05, norm="linf"), Budget({"audio": 0.1, "image": 0.2})])
@pytest.mark.parametrize("kind", [PGD, MinimumNorm])
def test_a_healthy_model_is_left_in_peace(kind, budget):
    settings = {"restarts": 1} if kind is MinimumNorm else {}
    assert suspicions(kind(budget, steps=10, **settings), *of(Net())) == []


@pytest.mark.parametrize(
    "attack",
    [
        FGM(Budget(0.2)),
        APGD(Budget(0.2), steps=10),
        Ensemble([FGM(Budget(0.2)), PGD(Budget(0.2), steps=5, loss="ce")]),
        RandomNoise(Budget(0.2)),
        RandomSearch(Budget(0.2), steps=20),
        MissingModality(),
        PGD(Budget(0.0), steps=2),
        PGD(Budget(0.5, box={"audio": (-2, 2), "image": (-2, 2)}), steps=10),
    ],
    ids=lambda attack: type(attack).__name__,
)
def test_nor_is_it_blamed_for_what_an_attack_is_like(attack):
    assert suspicions(attack, *of(Net())) == []


@pytest.mark.parametrize("kind", [PGD, MinimumNorm])
@pytest.mark.parametrize("name", WRAPPED)
def test_gradients_that_exist_and_mislead_are_named(name, kind):
    said = suspicions(kind(Budget(RADIUS), steps=4), *build(name, seed=0))
    assert any("8 of 8 samples the gradient does not foretell what small steps do" in each for each in said), said


@pytest.mark.parametrize("radius", [0.1, RADIUS, 1000.0])
@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_gradients_foretell_small_steps(name, radius):
    assert suspicions(APGD(Budget(radius), steps=10, targeted=True), *build(name, seed=0)) == []


@pytest.mark.parametrize("name", WRAPPED)
def test_the_strongest_attack_does_not_depend_on_gradients(name):
    model, inputs, target = build(name, seed=0)
    budget = Budget(RADIUS)
    without = fooled_by(RandomSearch(budget, steps=40), model, inputs, target)
    assert without.any()
    assert (fooled_by(strongest(budget, steps=4), model, inputs, target) >= without).all()


def test_a_search_without_gradients_that_does_better_is_mentioned():
    """Where steps are right and far too short, noise may find nothing and a search still does."""
    model, inputs, target = of(Net())
    tiny = PGD(Budget(0.2), steps=1, step_size=1e-4)
    assert any(
        re.search(r"(noise|no gradients).* fools \d+ ", each) for each in suspicions(tiny, model, inputs, target)
    )


def test_a_weak_attack_is_told_that_it_is_weak():
    """One tiny step: noise beats it, and so does any distance."""
    found = suspicions(PGD(Budget(2.0), steps=1, step_size=1e-4), *of(Net()))
    assert ["random noise" in each or "are not fooled" in each for each in found] == [True, True]


def test_a_modality_that_cannot_decide_is_mentioned():
    class Deaf(Net):
        def forward(self, inputs):
            return self.plain({**inputs, "audio": 1e-6 * inputs["audio"].sin()})

    (found,) = suspicions(PGD(Budget(1.0, modalities=["audio"]), steps=5), *of(Deaf()))
    assert re.search(
        r"at \d+.* times the budget, .* 32 of 32 samples are not fooled: either the attacked modalities cannot", found
    )
    (found,) = suspicions(MinimumNorm(Budget(1.0, modalities=["audio"]), steps=5, restarts=1), *of(Deaf()))
    assert "at any distance, 32 of 32 samples are not fooled" in found


class Changed(BudgetedAttack):
    """Adds a given change, whatever its budget says."""

    def __init__(self, budget, **change):
        self.budget, self.change = budget, change

    def __call__(self, model, inputs, target):
        return {name: value + self.change.get(name, 0.0) for name, value in inputs.items()}


def test_a_model_that_ignores_a_modality_is_a_possible_reason():
    class Deaf(Net):
        def forward(self, inputs):
            return self.plain({**inputs, "audio": 0 * inputs["audio"]})

    found = suspicions(PGD(Budget(1.0, modalities=["audio"]), steps=5), *of(Deaf()))
    assert "or does the model ignore these modalities?" in found[0]


@pytest.mark.parametrize("attack", [PGD(Budget({"adio": 0.1})), MissingModality(modalities=["adio"])])
def test_a_budget_that_does_not_fit_is_named_as_it_was_given(attack):
    model, inputs, target = of(Net())
    given = re.escape("Budget({'adio': 0.1}) must name") if isinstance(attack, BudgetedAttack) else "must be among"
    with pytest.raises(ValueError, match=given):
        suspicions(attack, model, inputs, (target + 1) % 4)


def test_an_attack_that_acts_at_radius_zero_is_noticed():
    class Relabels(Changed):
        def scaled(self, factor):
            return Changed(Budget(1e9), audio=100.0)  # another set than the one asked for

    model, inputs, target = of(Net())
    found = suspicions(Relabels(Budget(1.0)), model, inputs, target)
    assert any("samples are fooled at radius 0, without any change" in each for each in found)


def test_noise_and_other_blind_attacks_are_not_asked_about_gradients():
    model, inputs, target = of(Rounded())
    assert suspicions(Changed(Budget(1.0)), model, inputs, target) == []


def test_wrong_predictions_are_left_out():
    model, inputs, target = of(Saturated())
    assert suspicions(SMALL, model, inputs, (target + 1) % 4) == []
    some = torch.where(torch.arange(32) < 20, target, (target + 1) % 4)
    assert any("20 of 20 gradients" in each for each in suspicions(SMALL, model, inputs, some))
    model, inputs, target = of(Net())
    assert suspicions(SMALL, model, inputs, torch.where(torch.arange(32) < 20, target, (target + 1) % 4)) == []


def test_everything_is_left_as_it_was():
    model, inputs, target = of(Net())
    model.train()
    before, given, random = (
        copy.deepcopy(model.state_dict()),
        {n: v.clone() for n, v in inputs.items()},
        torch.get_rng_state(),
    )
    with torch.inference_mode():
        suspicions(SMALL, model, inputs, target)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, given[name]) for name, value in inputs.items())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (Changed(Budget(1.0), audio=1.0), "by 2.23606804 times Budget(1.0), where at most 1 is allowed"),
        (Changed(Budget(1.0), audio=torch.nan), "the attack 'mine' changed sample 0 by nan times Budget(1.0)"),
        (
            Changed(Budget({"image": 9.0}), audio=1e-3),
            "the attack 'mine' changed 'audio', which Budget({'image': 9.0})",
        ),
        (Changed(Budget(9.0, box={"audio": (-2, 2)}), audio=1.0), "the attack 'mine' left the box of 'audio', (-2"),
    ],
)
def test_an_attack_that_cheats_is_an_error(attack, message):
    model, inputs, target = of(Net())
    with pytest.raises(RuntimeError, match=re.escape(message)):
        fooled_by(attack, model, inputs, target, "mine")


def test_a_change_too_small_for_single_precision_is_measured_all_the_same():
    """1 + 1e-5 is out; what float32 rounding of a norm would forgive, float64 does not."""
    model, inputs, target = of(Net())
    step = {"audio": torch.full((5,), 5**-0.5)}
    fooled_by(Changed(Budget(1 + 1e-4), **step), model, inputs, target)
    with pytest.raises(RuntimeError, match=re.escape("by 1.0000")):
        fooled_by(Changed(Budget(1 - 1e-5), **step), model, inputs, target)


def test_a_search_that_understates_its_distance_is_an_error():
    class Boasts(MinimumNorm):
        def search(self, model, inputs, target):
            found = super().search(model, inputs, target)
            return found._replace(factor=found.factor / 2)

    model, inputs, target = of(Net(), 4)
    with pytest.raises(RuntimeError, match="the attack Boasts changed sample"):
        distance_by(Boasts(Budget(1.0), steps=5, restarts=1), model, inputs, target)


def test_what_does_not_fool_a_plain_forward_was_not_found():
    class Gives(MinimumNorm):
        def search(self, model, inputs, target):
            found = super().search(model, inputs, target)
            return found._replace(inputs=dict(inputs))

    model, inputs, target = of(Net(), 4)
    assert distance_by(Gives(Budget(1.0), steps=5, restarts=1), model, inputs, target).isinf().all()


def test_survivors_of_a_curve_are_those_of_the_exact_distances():
    model = Linear()
    inputs = samples()
    logits = model(inputs).detach()
    target = logits.argmax(1)
    rows = torch.cat(list(model.weights.values()), dim=1).detach()
    margins = logits.amax(1, keepdim=True) - logits
    exact = (margins / (rows[target][:, None] - rows).norm(dim=2)).nan_to_num(torch.inf)
    exact = exact.scatter(1, target[:, None], torch.inf).amin(1)
    factors = [float(exact.quantile(q)) for q in (0.8, 0.2, 0.5)]
    among = torch.arange(20) != 3
    found = surviving(PGD(Budget(1.0), restarts=2, targeted=True), model, inputs, target, factors, among)
    for factor, mask in zip(factors, found, strict=True):
        assert mask.tolist() == ((exact > factor) & among).tolist()


def test_a_curve_never_rises_whatever_the_attack_misses():
    class OnlySmall(Changed):
        def __call__(self, model, inputs, target):
            return {**inputs, "audio": inputs["audio"] + 1.0} if self.budget.radius < 5 else dict(inputs)

    model, inputs, target = of(Net())
    broken = fooled_by(OnlySmall(Budget(4.0)), model, inputs, target)
    assert broken.any()
    low, high = surviving(OnlySmall(Budget(4.0)), model, inputs, target, [1.0, 2.0], torch.ones(32, dtype=torch.bool))
    assert torch.equal(low, ~broken)
    assert torch.equal(high, low)
