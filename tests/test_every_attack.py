# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What every attack within a budget keeps to, whatever it searches."""

import pytest
import torch
from support.linear_model import THREATS, Detaching, Linear, predict, samples
from support.nets import Net

from lightning_crmt.attacks import (
    APGD,
    FGM,
    PGD,
    Budget,
    Ensemble,
    LossAscent,
    RandomNoise,
    RandomSearch,
    paper_fgm,
    paper_pgd,
    strongest,
)

#: Small settings, from a budget.
ATTACKS = {
    "fgm": FGM,
    "fgm targeted": lambda b: FGM(b, loss="margin", targeted=True),
    "pgd": lambda b: PGD(b, steps=5, restarts=2),
    "pgd dlr": lambda b: PGD(b, steps=5, loss="dlr", momentum=0.75),
    "pgd targeted": lambda b: PGD(b, steps=3, targeted=True, classes=2, restarts=2),
    "apgd": lambda b: APGD(b, steps=6, restarts=2),
    "apgd ce": lambda b: APGD(b, steps=6, loss="ce", random_start=True),
    "apgd targeted": lambda b: APGD(b, steps=6, loss="dlr", targeted=True),
    "ascent": lambda b: LossAscent(b, steps=4),
    "noise": lambda b: RandomNoise(b, samples=3),
    "search": lambda b: RandomSearch(b, steps=12, restarts=2),
    "ensemble": lambda b: Ensemble([FGM(b), RandomNoise(b, samples=2), APGD(b, steps=4, random_start=True)]),
    "paper fgm": paper_fgm,
    "paper pgd": paper_pgd,
    "strongest": lambda b: strongest(b, steps=4, classes=2),
}
GRADIENTS = [name for name in ATTACKS if name not in ("noise", "search")]
#: With one step, or without a gradient, they may jump over what they look for.
BLIND = ["ascent", "fgm", "fgm targeted", "paper fgm", "paper pgd", "noise", "search"]
EVERY = pytest.mark.parametrize("attack", ATTACKS)


@EVERY
@pytest.mark.parametrize("threat", THREATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_budget_is_kept_by_what_is_stored(attack, threat, dtype):
    model = Linear(dtype=dtype)
    for seed, (radius, magnitude) in enumerate([(1e-3, 1.0), (0.2, 1000.0), (3.0, 1.0)]):
        budget = THREATS[threat][0](torch.full((8,), radius))
        scale = 1.0 if budget.box else magnitude
        x = {n: v * scale for n, v in samples(8, dtype=dtype, seed=seed).items()}
        found = ATTACKS[attack](budget)(model, x, torch.arange(8) % 4)
        assert all(found[n].dtype is dtype for n in x)
        assert all(found[n] is x[n] for n in x if n not in budget.attacked(x))
        assert (budget.size(budget.difference(found, x)) <= 1 + 1e-9).all()
        assert all(budget.box[n].contains(found[n]) for n in budget.box)


@EVERY
@pytest.mark.parametrize("threat", THREATS)
def test_a_budget_of_zero_is_the_identity(attack, threat):
    x = samples(8, dtype=torch.float32)
    found = ATTACKS[attack](THREATS[threat][0](0.0))(Net(), x, torch.zeros(8, dtype=torch.long))
    assert all(found[n].equal(x[n]) for n in x)


def still_right(attack, radii):
    model, x = Net().eval(), samples(40, dtype=torch.float32)
    y = predict(model, x)
    return [(ATTACKS[attack](Budget(r)).logits(model, x, y).argmax(dim=1) == y).sum().item() for r in radii]


@pytest.mark.parametrize("attack", [name for name in ATTACKS if name not in BLIND])
def test_robust_accuracy_does_not_rise_and_falls_to_zero(attack):
    robust = still_right(attack, (0.0, 0.1, 0.3, 0.8, 2.0, 100.0))
    assert robust[0] == 40
    assert robust == sorted(robust, reverse=True)
    assert robust[-1] == 0


@pytest.mark.parametrize("attack", BLIND)
def test_few_tries_and_single_steps_find_something(attack):
    robust = still_right(attack, (0.0, 0.1, 1.0))
    assert robust[0] == 40
    assert robust[2] < robust[1]


@EVERY
@pytest.mark.parametrize("threat", ["joint", "linf", "product, box"])
def test_batches_may_be_split(attack, threat):
    model, x = Net(torch.float64).eval(), samples(20)
    y, radius = predict(model, x), torch.linspace(0.1, 1, 20)
    whole = ATTACKS[attack](THREATS[threat][0](radius))(model, x, y)
    for rows in torch.arange(20).split(7):
        found = ATTACKS[attack](THREATS[threat][0](radius[rows]))(model, {n: v[rows] for n, v in x.items()}, y[rows])
        assert all(torch.allclose(found[n], whole[n][rows], rtol=0, atol=1e-7) for n in x)


@EVERY
@pytest.mark.parametrize(
    "surroundings",
    [torch.enable_grad, torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)],
)
def test_everything_is_left_as_it_was(attack, surroundings):
    model, search = Net().train(), ATTACKS[attack](Budget(0.5))
    model.image.eval()
    with surroundings():
        x, y = samples(dtype=torch.float32), torch.zeros(20, dtype=torch.long)
        copies = {n: v.clone() for n, v in x.items()}
        state = {n: v.clone() for n, v in model.state_dict().items()}
        modes, trained = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
        random, settings = torch.get_rng_state(), repr(vars(search))
        found = search(model, x, y)
        logits = search.logits(model, x, y)
        assert torch.get_rng_state().equal(random)
        assert all(v.equal(copies[n]) and not v.requires_grad and v.grad is None for n, v in x.items())
        assert all(not v.requires_grad for v in [logits, *found.values()])
    assert all(v.equal(state[n]) for n, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == trained
    assert all(p.grad is None for p in model.parameters())
    assert repr(vars(search)) == settings
    outside = search(model, copies, y)
    assert all(found[n].equal(outside[n]) for n in x)
    assert logits.equal(model.eval()(found)["logits"].detach())


@EVERY
def test_what_is_found_does_not_depend_on_luck_or_order_of_calls(attack):
    model, x = Net().eval(), samples(dtype=torch.float32)
    search, y = ATTACKS[attack](Budget(0.5)), predict(model, x)
    once = search(model, x, y)
    torch.manual_seed(1)
    again = search(model, x, y)
    assert all(once[n].equal(again[n]) for n in x)


@EVERY
def test_scaling_scales_the_radius_and_nothing_else(attack):
    model, x = Net(torch.float64).eval(), samples()
    y = predict(model, x)
    scaled = ATTACKS[attack](Budget(0.25)).scaled(2.0)
    assert scaled.budget.radius == 0.5
    found, expected = scaled(model, x, y), ATTACKS[attack](Budget(0.5))(model, x, y)
    assert all(found[n].equal(expected[n]) for n in x)


@EVERY
def test_a_verdict_is_the_public_forwards(attack):
    """A model that answers otherwise when gradients are taken fools only itself."""

    class TwoFaced(Linear):
        def forward(self, inputs):
            logits = super().forward(inputs)
            return logits if not torch.is_grad_enabled() else logits.roll(1, dims=1)

    model, x = TwoFaced(), samples()
    y = predict(model, x)
    found = ATTACKS[attack](Budget(1e-9))(model, x, y)
    assert (predict(model, found) == y).all()


@pytest.mark.parametrize("attack", [name for name in ATTACKS if name != "ascent"])
def test_what_is_wrong_already_stays_as_it_is(attack):
    model, x = Net().eval(), samples(dtype=torch.float32)
    y = (predict(model, x) + 1) % 4
    found = ATTACKS[attack](Budget(1.0))(model, x, y)
    assert all(found[n].equal(x[n]) for n in x)


@pytest.mark.parametrize("attack", GRADIENTS)
def test_a_model_that_detaches_is_found_out(attack):
    x = samples()
    with pytest.raises(RuntimeError, match="depend on 'audio' but carry no gradient to it"):
        ATTACKS[attack](Budget(1e-3))(Detaching(), x, predict(Detaching(), x))


@pytest.mark.parametrize("attack", ["noise", "search"])
def test_without_gradients_a_model_may_detach(attack):
    x = samples()
    y = predict(Detaching(), x)
    assert (ATTACKS[attack](Budget(100.0)).logits(Detaching(), x, y).argmax(dim=1) != y).any()


@EVERY
def test_bad_input(attack):
    y = torch.zeros(20, dtype=torch.long)
    for budget, message in [
        (Budget({"smell": 1.0}), "smell"),
        (Budget(torch.ones(3)), "one for each of 20 samples, got 3"),
        (Budget(1.0, box={"audio": (0.0, 1.0)}), "`inputs\\['audio'\\]` must lie in its box \\(0.0, 1.0\\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            ATTACKS[attack](budget)(Linear(), samples(), y)
    with pytest.raises(ValueError, match="class indices from 0 to 3"):
        ATTACKS[attack](Budget(1.0))(Linear(), samples(), torch.full((20,), 4))
    with pytest.raises(TypeError, match="must be floating point"):
        ATTACKS[attack](Budget(1.0))(Linear(), {n: v.long() for n, v in samples().items()}, y)
