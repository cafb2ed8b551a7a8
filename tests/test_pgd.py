# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from attacked import Linear, distances, samples
from torch import nn

from lightning_crmt.attacks import PGD, Budget

BOX = {"audio": (-2.0, 2.0), "image": (-2.0, 2.0)}
ALL = {"audio": 1.0, "image": 1.0}

#: What is searched, as a function of the factor, and the exact factor.
THREATS = {
    "joint": (lambda t: Budget(t), {"radii": ALL, "joint": True}),
    "alone": (lambda t: Budget(t, modalities=["image"]), {"radii": {"image": 1.0}}),
    "product": (lambda t: Budget({"audio": t, "image": 0.3 * t}), {"radii": {"audio": 1.0, "image": 0.3}}),
    "linf": (lambda t: Budget(t, norm="linf"), {"radii": ALL, "norm": "linf"}),
    "joint, box": (lambda t: Budget(t, box=BOX), {"radii": ALL, "joint": True, "box": BOX}),
    "linf, box": (lambda t: Budget(t, norm="linf", box=BOX), {"radii": ALL, "norm": "linf", "box": BOX}),
    "product, box": (lambda t: Budget({"audio": t, "image": t}, box=BOX), {"radii": ALL, "box": BOX}),
}


class Net(nn.Module):
    """Small, curved, with layers that differ between training and evaluation, and some parameters frozen."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.audio = nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4))
        self.image = nn.Sequential(nn.Flatten(), nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
        self.image[1].weight.requires_grad_(False)
        self.to(dtype)

    def forward(self, inputs):
        return {"logits": self.audio(inputs["audio"]) + self.image(inputs["image"])}


def predict(model, inputs):
    with torch.no_grad():
        output = model(inputs)
    return (output["logits"] if isinstance(output, dict) else output).argmax(dim=1)


@pytest.mark.parametrize("threat", THREATS)
def test_it_succeeds_just_above_the_distance_and_fails_just_below(threat):
    make, exact = THREATS[threat]
    model, x = Linear(), samples(12)
    y = predict(model, x)
    distance = distances(model, x, **exact)
    reachable = distance.isfinite()
    assert reachable.sum() > 6
    distance = distance.where(reachable, 1.0)
    above = PGD(make(1.005 * distance), targeted=True)(model, x, y)
    assert (predict(model, above) != y)[reachable].all()
    below = PGD(make(0.999 * distance), targeted=True)(model, x, y)
    assert (predict(model, below) == y).all()


@pytest.mark.parametrize("threat", THREATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("magnitude", [1.0, 1000.0])
def test_the_budget_is_kept_by_what_is_stored(threat, dtype, magnitude):
    model = Linear(dtype=dtype)
    for seed, radius in enumerate((1e-3, 0.2, 3.0)):
        budget = THREATS[threat][0](torch.full((20,), radius))
        scale = 1.0 if budget.box else magnitude
        x = {n: v * scale for n, v in samples(dtype=dtype, seed=seed).items()}
        y = torch.arange(20) % 4
        found = PGD(budget, steps=5, restarts=2)(model, x, y)
        assert all(found[n].dtype is dtype for n in x)
        assert all(found[n] is x[n] for n in x if n not in budget.attacked(x))
        moved = {n: found[n].double() - x[n].double() for n in budget.attacked(x)}
        assert (budget.size(moved) <= 1 + 1e-6).all()


@pytest.mark.parametrize("restarts", [1, 3])
@pytest.mark.parametrize("threat", THREATS)
def test_a_budget_of_zero_is_the_identity(threat, restarts):
    x = samples(dtype=torch.float32)
    found = PGD(THREATS[threat][0](0.0), steps=3, restarts=restarts)(Net(), x, torch.zeros(20, dtype=torch.long))
    assert all(found[n].equal(x[n]) for n in x)


@pytest.mark.parametrize("settings", [{}, {"loss": "ce"}, {"targeted": True, "restarts": 2}])
def test_robust_accuracy_falls_to_zero(settings):
    model, x = Net().eval(), samples(60, dtype=torch.float32)
    y = predict(model, x)
    robust = [
        (predict(model, PGD(Budget(r), steps=15, **settings)(model, x, y)) == y).float().mean().item()
        for r in (0.0, 0.1, 0.3, 0.8, 2.0, 30.0)
    ]
    assert robust[0] == 1
    assert robust == sorted(robust, reverse=True)
    assert robust[-1] == 0


@pytest.mark.parametrize("settings", [{}, {"restarts": 3}, {"targeted": True}])
def test_batches_may_be_split(settings):
    model, x = Net(torch.float64).eval(), samples(30)
    y, radius = predict(model, x), torch.linspace(0.1, 1, 30)
    whole = PGD(Budget(radius), steps=8, **settings)(model, x, y)
    for rows in torch.arange(30).split(7):
        part = {n: v[rows] for n, v in x.items()}
        found = PGD(Budget(radius[rows]), steps=8, **settings)(model, part, y[rows])
        assert all(torch.allclose(found[n], whole[n][rows], rtol=0, atol=1e-9) for n in x)


@pytest.mark.parametrize(
    "surroundings",
    [torch.enable_grad, torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)],
)
def test_everything_is_left_as_it_was(surroundings):
    model = Net().train()
    model.image.eval()
    with surroundings():
        x = samples(dtype=torch.float32)
        y = torch.zeros(20, dtype=torch.long)
        copies = {n: v.clone() for n, v in x.items()}
        state = {n: v.clone() for n, v in model.state_dict().items()}
        modes = [m.training for m in model.modules()]
        trained = [p.requires_grad for p in model.parameters()]
        random = torch.get_rng_state()
        found = PGD(Budget(1.0), steps=4, restarts=2)(model, x, y)
        assert torch.get_rng_state().equal(random)
        assert all(v.equal(copies[n]) and not v.requires_grad and v.grad is None for n, v in x.items())
        assert all(not v.requires_grad for v in found.values())
    assert all(v.equal(state[n]) for n, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == trained
    assert all(p.grad is None for p in model.parameters())
    outside = PGD(Budget(1.0), steps=4, restarts=2)(model, copies, y)
    assert all(found[n].equal(outside[n]) for n in x)


def test_inputs_that_require_grad_stay_leaves_without_one():
    x = {n: v.requires_grad_(True) for n, v in samples(dtype=torch.float32).items()}
    found = PGD(Budget(1.0, modalities=["audio"]), steps=2)(Net(), x, torch.zeros(20, dtype=torch.long))
    assert all(v.requires_grad and v.grad is None for v in x.values())
    assert found["image"] is x["image"]


class Counting(Linear):
    def __init__(self, **settings):
        super().__init__(**settings)
        self.seen = []

    def forward(self, inputs):
        self.seen.append(len(inputs["audio"]))
        return super().forward(inputs)


def test_no_more_passes_than_needed():
    model, x = Counting(), samples()
    y = predict(model, x)
    model.seen.clear()
    PGD(Budget(1e-6), steps=10)(model, x, y)
    assert model.seen == [20] * 12  # the clean inputs, ten gradients, the verdict
    model.seen.clear()
    PGD(Budget(1e6), steps=10, restarts=5, targeted=True)(model, x, y)
    assert sum(model.seen) <= 20 * 5  # all fall at once: clean, two gradients, verdict


def test_what_fell_is_not_searched_again():
    model, x = Counting(), samples()
    y = predict(model, x)
    radius = torch.full((20,), 1e6)
    radius[7] = 1e-6
    model.seen.clear()
    PGD(Budget(radius), steps=3, restarts=2)(model, x, y)
    assert model.seen == [20] * 5 + [1] * 4


def test_a_verdict_is_the_public_forwards():
    """A model that answers otherwise when gradients are taken fools only itself."""

    class TwoFaced(Linear):
        def forward(self, inputs):
            logits = super().forward(inputs)
            return logits if not torch.is_grad_enabled() else logits.roll(1, dims=1)

    model, x = TwoFaced(), samples()
    y = predict(model, x)
    budget = Budget(1e-9)
    found = PGD(budget, steps=3, restarts=2)(model, x, y)
    assert (predict(model, found) == y).all()
    assert (budget.size(budget.difference(found, x)) <= 1 + 1e-6).all()


def test_an_integer_modality_that_is_not_attacked_is_no_obstacle():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.image = nn.Embedding(7, 4), nn.Linear(6, 4)

        def forward(self, inputs):
            return self.embedding(inputs["text"]).mean(dim=1) + self.image(inputs["image"])

    torch.manual_seed(0)
    model, x = Tokens(), {"text": torch.arange(14).reshape(2, 7) % 7, "image": torch.ones(2, 6)}
    y = predict(model, x)
    with torch.inference_mode():
        found = PGD(Budget(100.0, modalities=["image"]))(model, x, y)
    assert found["text"] is x["text"]
    assert (predict(model, found) != y).all()
    with pytest.raises(TypeError, match="`inputs\\['text'\\]` must be floating point"):
        PGD(Budget(1.0))(model, x, y)


def test_a_plain_function_can_be_attacked():
    model, x = Linear(), samples()
    y = predict(model, x)
    found = PGD(Budget(1e3))(lambda inputs: model(inputs), x, y)
    assert (predict(model, found) != y).all()


class Detaching(Linear):
    def forward(self, inputs):
        return super().forward({n: v.detach() if n == "audio" else v for n, v in inputs.items()})


class Deaf(Linear):
    def forward(self, inputs):
        return super().forward({n: torch.zeros_like(v) if n == "audio" else v for n, v in inputs.items()})


@pytest.mark.parametrize("budget", [Budget(1.0), Budget(1.0, modalities=["audio"])])
def test_a_model_that_detaches_one_modality_is_found_out(budget):
    x, y = samples(), torch.zeros(20, dtype=torch.long)
    with pytest.raises(RuntimeError, match="depend on 'audio' but carry no gradient to it"):
        PGD(budget, steps=2)(Detaching(), x, predict(Detaching(), x))
    PGD(budget, steps=2)(Deaf(), x, y)  # not using it is another matter


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PGD(Budget(1.0), steps=0), "`steps` must be at least 1, got 0"),
        (lambda: PGD(Budget(1.0), restarts=0), "`restarts` must be at least 1"),
        (lambda: PGD(Budget(1.0), loss="dlr"), "`loss` must be 'margin' or 'ce', got 'dlr'"),
        (lambda: PGD(Budget(1.0), loss="ce", targeted=True), "`targeted` needs loss='margin'"),
        (lambda: PGD(Budget(1.0), step_size=0.0), "`step_size` must be above 0"),
        (lambda: PGD(Budget(1.0))(Linear(), samples(), torch.full((20,), 4)), "class indices from 0 to 3"),
        (lambda: PGD(Budget(1.0))(Linear(), samples(), torch.zeros(3, dtype=torch.long)), "shape \\(20,\\)"),
        (lambda: PGD(Budget({"smell": 1.0}))(Linear(), samples(), torch.zeros(20, dtype=torch.long)), "smell"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_target_that_is_no_tensor():
    with pytest.raises(TypeError, match="`target` must be a tensor of integer class indices, got a list"):
        PGD(Budget(1.0))(Linear(), samples(), [0] * 20)
