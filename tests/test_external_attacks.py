# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Those that run another library are skipped without the extra; what it gets to see is tested in any case."""

import copy
import os
import sys
from importlib.util import find_spec

import pytest
import torch
from support.linear_model import Linear, distances, samples
from torch import nn

from lightning_crmt.attacks import PGD, AutoAttack, Budget, FoolboxDDN
from lightning_crmt.attacks.external.autoattack import Numbered
from lightning_crmt.attacks.external.one_vector import handed_over

BOX = {"audio": (-2.0, 2.0), "image": (-2.0, 2.0)}
ALL = {"audio": 1.0, "image": 1.0}

THREATS = {
    "joint": (lambda t: Budget(t), {"radii": ALL, "joint": True}),
    "alone": (lambda t: Budget(t, modalities=["image"]), {"radii": {"image": 1.0}}),
    "named": (lambda t: Budget({"image": t}), {"radii": {"image": 1.0}}),
    "linf": (lambda t: Budget(t, norm="linf"), {"radii": ALL, "norm": "linf"}),
    "linf each": (
        lambda t: Budget({"audio": t, "image": 0.3 * t}, norm="linf"),
        {"radii": {"audio": 1.0, "image": 0.3}, "norm": "linf"},
    ),
    "joint, box": (lambda t: Budget(t, box=BOX), {"radii": ALL, "joint": True, "box": BOX}),
}


@pytest.fixture
def pyautoattack():
    if find_spec("pyautoattack") is None:
        pytest.skip("needs the extra attacks")


@pytest.fixture
def foolbox():
    if find_spec("foolbox") is None:
        pytest.skip("needs the extra attacks")


@pytest.fixture(params=["AutoAttack", "FoolboxDDN"])
def make(request):
    """Either of them, with few steps."""
    request.getfixturevalue({"AutoAttack": "pyautoattack", "FoolboxDDN": "foolbox"}[request.param])
    return {
        "AutoAttack": lambda budget: AutoAttack(budget, steps=8),
        "FoolboxDDN": lambda budget: FoolboxDDN(budget, steps=15),
    }[request.param]


class Tokens(nn.Module):
    """A modality of integers, that shifts the boundary of each sample; layers that differ in training."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.image = nn.Embedding(20, 4), nn.Linear(6, 4)
        self.norm, self.drop = nn.BatchNorm1d(6), nn.Dropout(0.5)

    def forward(self, inputs):
        return {"logits": self.embedding(inputs["text"]).sum(1) + self.image(self.drop(self.norm(inputs["image"])))}


def with_tokens(size=20):
    return {"text": torch.arange(size)[:, None], "image": samples(size, dtype=torch.float32)["image"].flatten(1)}


def predict(model, inputs):
    with torch.no_grad():
        output = model(inputs)
    return (output["logits"] if isinstance(output, dict) else output).argmax(dim=1)


@pytest.mark.parametrize("threat", THREATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autoattack_succeeds_just_above_the_distance_and_fails_just_below(threat, dtype, pyautoattack):
    budget, exact = THREATS[threat]
    model, x = Linear(dtype=dtype), samples(12, dtype=dtype)
    y = predict(model, x)
    distance = distances(copy.deepcopy(model).double(), {n: v.double() for n, v in x.items()}, **exact)
    reachable = distance.isfinite()
    assert reachable.sum() > 6
    distance = distance.where(reachable, 1.0)
    above = AutoAttack(budget(1.005 * distance), steps=50)(model, x, y)
    assert (predict(model, above) != y)[reachable].all()
    below = AutoAttack(budget(0.999 * distance), steps=10)(model, x, y)
    assert (predict(model, below) == y).all()
    assert all(below[n].equal(x[n]) for n in x)


@pytest.mark.parametrize("threat", [name for name in THREATS if "linf" not in name])
def test_ddn_comes_close_to_the_distance_and_never_below(threat, foolbox):
    budget, exact = THREATS[threat]
    model, x = Linear(num_classes=2), samples(20)  # with more classes its cross-entropy leads astray
    y = predict(model, x)
    distance = distances(model, x, **exact)
    found = FoolboxDDN(budget(1.0)).search(model, x, y)
    assert (found.factor >= distance * (1 - 1e-9)).all()
    near = distance.isfinite()
    assert near.sum() > 10
    assert (found.factor <= 1.05 * distance)[near].all()
    assert found.factor[~near].isinf().all()
    assert (predict(model, found.inputs) != y)[near].all()
    assert all(found.inputs[n][~near].equal(x[n][~near]) for n in x)


def test_the_unit_of_ddn_is_the_budget(foolbox):
    model, x = Linear(num_classes=2), samples(20)
    y = predict(model, x)
    one, other = (FoolboxDDN(Budget(r), steps=100).search(model, x, y).factor * r for r in (1.0, 0.5))
    assert torch.allclose(one, other, rtol=0.05)
    each = torch.linspace(0.5, 1.5, 20)
    assert torch.allclose(FoolboxDDN(Budget(each), steps=100).search(model, x, y).factor * each, one, rtol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("magnitude", [1.0, 1000.0])
def test_the_budget_is_kept_by_what_is_stored(dtype, magnitude, pyautoattack):
    model = Linear(dtype=dtype)
    x = {n: v * magnitude for n, v in samples(dtype=dtype).items()}
    y = torch.arange(20) % 4
    for radius in (0.2, 3.0, 1e4):
        for make_budget, _ in (THREATS["joint"], THREATS["alone"], THREATS["linf each"]):
            budget = make_budget(radius)
            found = AutoAttack(budget, steps=5)(model, x, y)
            assert all(found[n].dtype is dtype for n in x)
            assert all(found[n] is x[n] for n in x if n not in budget.attacked(x))
            assert (budget.size(budget.difference(found, x)) <= 1 + 1e-6).all()


def test_inputs_far_from_zero_cost_no_digits(pyautoattack):
    """Single precision in the library does not matter for a model in double."""
    model, x = Linear(), samples(12)
    y, distance = predict(model, x), distances(model, x, ALL, joint=True)
    far = lambda inputs: model({n: v - 1e5 for n, v in inputs.items()})  # noqa: E731
    found = AutoAttack(Budget(1.001 * distance), steps=50)(far, {n: v + 1e5 for n, v in x.items()}, y)
    assert (predict(far, found) != y).all()


def test_other_modalities_stay_with_their_samples(make):
    model, x = Tokens().eval(), with_tokens()
    y = predict(model, x)
    found = make(Budget(100.0, modalities=["image"]))(model, x, y)
    assert found["text"] is x["text"]
    assert (predict(model, found) != y).all()
    with pytest.raises(TypeError, match="`inputs\\['text'\\]` must be floating point"):
        make(Budget(1.0))(model, x, y)


@pytest.mark.parametrize(
    "surroundings",
    [torch.enable_grad, torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)],
)
def test_everything_is_left_as_it_was(surroundings, make, capfd):
    model = Tokens().train()
    trace = lambda *_: None  # noqa: E731
    with surroundings():
        x = with_tokens()
        y, copies = torch.zeros(20, dtype=torch.long), {n: v.clone() for n, v in x.items()}
        state = {n: v.clone() for n, v in model.state_dict().items()}
        random, environment = torch.get_rng_state(), dict(os.environ)
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            found = make(Budget(1.0, modalities=["image"]))(model, x, y)
            assert sys.gettrace() is trace
        finally:
            sys.settrace(before)
        assert torch.get_rng_state().equal(random)
        assert dict(os.environ) == environment
        assert all(v.equal(copies[n]) and not v.requires_grad for n, v in x.items())
        assert not found["image"].requires_grad
    assert all(v.equal(state[n]) for n, v in model.state_dict().items())
    assert all(m.training for m in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert make(Budget(1.0, modalities=["image"]))(model, copies, y)["image"].equal(found["image"])
    assert capfd.readouterr() == ("", "")


def test_parameters_behind_a_function_get_no_gradient(make):
    model, x = Linear(), samples()
    y = predict(model, x)
    found = make(Budget(100.0))(lambda inputs: model(inputs), x, y)
    assert (predict(model, found) != y).all()
    assert all(p.grad is None for p in model.parameters())


def test_what_is_wrong_already_stays_clean(make):
    model, x = Linear(), samples()
    found = make(Budget(1e3))(model, x, (predict(model, x) + 1) % 4)
    assert all(found[n].equal(x[n]) for n in x)


def test_a_budget_of_zero_is_the_identity(make):
    model, x = Linear(), samples()
    found = make(Budget(0.0))(model, x, predict(model, x))
    assert all(found[n].equal(x[n]) for n in x)


def test_a_model_that_detaches_is_found_out(make):
    class Detaching(Linear):
        def forward(self, inputs):
            return super().forward({**inputs, "audio": inputs["audio"].detach()})

    model, x = Detaching(), samples()
    with pytest.raises(RuntimeError, match="depend on 'audio' but carry no gradient to it"):
        make(Budget(1.0))(model, x, predict(model, x))


@pytest.mark.parametrize(("classes", "attack"), [(2, "apgd-t"), (3, "apgd-t"), (2, "apgd-dlr")])
def test_a_loss_that_needs_more_classes(classes, attack, pyautoattack):
    model, x = Linear(num_classes=classes), samples()
    y = predict(model, x)
    with pytest.raises(ValueError, match=f"need at least {{'{attack}': .*}} classes, the model has {classes}"):
        AutoAttack(Budget(1.0), attacks=["apgd-ce", attack])(model, x, y)
    found = AutoAttack(Budget(1e3), attacks=["apgd-ce", "fab-t", "fab"], steps=5)(model, x, y)
    assert (predict(model, found) != y).all()


@pytest.mark.parametrize("size", [1, 2, 37])
def test_a_sample_is_known_wherever_it_moved(size):
    model, x = Tokens().eval(), with_tokens(max(size, 20))
    x = {n: v[:size] % 20 if n == "text" else v[:size] for n, v in x.items()}
    y, budget = predict(model, x), Budget(0.3, modalities=["image"])
    with handed_over(model, x, y, budget) as whole:
        view = Numbered(whole)
        assert view.clean.dtype is torch.float32
        assert view(view.clean).argmax(1).equal(y)
        rows = torch.randperm(size)
        noise = torch.randn_like(view.clean)
        moved = view.clean[rows] + view.radius * noise / noise.norm(dim=1, keepdim=True)
        delta = view.displacement(moved)
        assert (delta.norm(dim=1) <= 1 + 1e-5).all()
        shifted = {"text": x["text"][rows], "image": (x["image"][rows].double() + 0.3 * delta).float()}
        found, exact = view(moved), whole.attacked.logits(shifted)
        assert torch.allclose(found, exact - exact.amax(1, keepdim=True), atol=1e-5)
        one, other = view(view.clean), whole(whole.origin)
        assert torch.allclose(one, other)
        assert other.amax(1).eq(0).all()


def test_gradients_that_are_not_finite_count_as_none():
    model = lambda inputs: torch.stack([inputs["audio"].norm(dim=1), inputs["audio"].sum(1)], dim=1)  # noqa: E731
    x = {"audio": torch.zeros(3, 4, dtype=torch.float64)}
    with handed_over(model, x, torch.zeros(3, dtype=torch.long), Budget(1.0)) as whole:
        leaf = whole.origin.requires_grad_(True)
        whole(leaf)[:, 0].sqrt().sum().backward()
        assert leaf.grad.isfinite().all()


@pytest.mark.parametrize(("attack", "package"), [(AutoAttack, "pyautoattack"), (FoolboxDDN, "foolbox")])
def test_without_the_extra(attack, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=f'{package}.*pip install "lightning_crmt\\[attacks\\]"'):
        attack(Budget(1.0))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AutoAttack(Budget(ALL)), "`budget` must be one ball of all attacked modalities, in l2 or linf, got"),
        (lambda: FoolboxDDN(Budget(ALL)), "`budget` must be one ball"),
        (lambda: FoolboxDDN(Budget(1.0, norm="linf")), "`budget` must be one ball .* in l2, got"),
        (lambda: AutoAttack(Budget(1.0), attacks=["square"]), "`attacks` must be some of .*, got \\['square'\\]"),
        (lambda: AutoAttack(Budget(1.0), attacks=[]), "`attacks` must be some of"),
        (lambda: AutoAttack(Budget(1.0), steps=0), "`steps` must be at least 1, got 0"),
        (lambda: AutoAttack(Budget(1.0), target_classes=0), "`target_classes` must be at least 1"),
        (lambda: FoolboxDDN(Budget(1.0), steps=0), "`steps` must be at least 1, got 0"),
        (lambda: FoolboxDDN(Budget(1.0), target_classes=-1), "`target_classes` must be at least 0"),
        (lambda: FoolboxDDN(Budget(1.0), gamma=1.0), "`gamma` must be between 0 and 1, got 1.0"),
    ],
)
def test_bad_settings(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_they_agree_with_ours(pyautoattack):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(11, 32), nn.ReLU(), nn.Linear(32, 4))
    model = lambda inputs: net(torch.cat([v.flatten(1) for v in inputs.values()], dim=1))  # noqa: E731
    x = samples(40, dtype=torch.float32)
    y = predict(model, x)
    for radius in (0.1, 0.3):
        ours, theirs = (
            (predict(model, attack(model, x, y)) == y).sum().item()
            for attack in (PGD(Budget(radius), targeted=True), AutoAttack(Budget(radius), steps=40))
        )
        assert abs(ours - theirs) <= 1
