# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from lightning.pytorch import seed_everything
from support.linear_model import THREATS, Detaching, Linear, distances, predict, samples
from support.nets import LateFusion, Net
from torch import nn

from lightning_crmt import LinearFusion, OrthogonalFusion
from lightning_crmt.attacks import PGD, Budget, MinimumNorm
from lightning_crmt.data import UCIMultiFeatures
from lightning_crmt.encoders import MLP, LipschitzMLP


@pytest.mark.parametrize("threat", THREATS)
def test_exact_on_linear_models(threat):
    make, exact = THREATS[threat]
    model, x = Linear(), samples(12)
    y = predict(model, x)
    found = MinimumNorm(make(1.0)).search(model, x, y)
    distance = distances(model, x, **exact)
    reachable = distance.isfinite()
    assert (found.factor[reachable] >= distance[reachable] * (1 - 1e-9)).all()
    assert (found.factor[reachable] <= distance[reachable] * 1.01).all()
    assert found.factor[~reachable].isinf().all()
    assert ((predict(model, found.inputs) != y) == reachable).all()
    for name, value in found.inputs.items():  # where nothing was found, the clean input
        assert value[~reachable].equal(x[name][~reachable])


def test_one_start_is_enough_where_boundaries_are_flat():
    """A step to a flat boundary ends on it but for rounding, which must not decide whether it is found."""
    generator = torch.Generator().manual_seed(0)
    for size in (2, 7, 22):
        weight = torch.randn(size, 3, generator=generator, dtype=torch.float64)
        x = torch.rand(200, size, generator=generator, dtype=torch.float64)
        logits = x @ weight
        y = logits.argmax(dim=1)
        margins = logits.gather(1, y[:, None]) - logits
        exact = (margins / (weight[:, y].mT[:, :, None] - weight).norm(dim=1)).where(margins > 0, torch.inf).amin(dim=1)
        search = MinimumNorm(Budget(1.0), steps=10, restarts=1)
        found = search.search(lambda inputs, weight=weight: inputs["x"] @ weight, {"x": x}, y).factor
        assert torch.allclose(found, exact, rtol=1e-4)


@pytest.mark.parametrize("scale", [1e-4, 1e5])
def test_the_unit_of_the_budget_does_not_matter(scale):
    model, x = Net(torch.float64).eval(), samples()
    y = predict(model, x)
    found = MinimumNorm(Budget(scale), steps=20).search(model, x, y).factor * scale
    assert torch.allclose(found, MinimumNorm(Budget(1.0), steps=20).search(model, x, y).factor, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threat", THREATS)
def test_the_factor_is_that_of_what_is_stored(threat, dtype):
    model, x = Net(dtype).eval(), samples(dtype=dtype)
    y = torch.arange(20) % 4
    budget = THREATS[threat][0](1.0)
    found = MinimumNorm(budget, steps=10, restarts=1).search(model, x, y)
    size = budget.size({n: found.inputs[n].double() - x[n].double() for n in budget.attacked(x)})
    fooled = predict(model, found.inputs) != y
    assert (fooled == found.factor.isfinite()).all()
    assert size[fooled].equal(found.factor[fooled])
    assert (size[~fooled] == 0).all()
    assert (found.factor[predict(model, x) != y] == 0).all()
    assert all(found.inputs[n] is x[n] for n in x if n not in budget.attacked(x))


def test_single_modality_distances_are_not_below_the_joint_one():
    model, x = Net(torch.float64).eval(), samples(40)
    y = predict(model, x)
    joint = MinimumNorm(Budget(1.0)).search(model, x, y).factor
    for name in x:
        assert (MinimumNorm(Budget(1.0, modalities=[name])).search(model, x, y).factor >= joint * 0.99).all()


def test_batches_may_be_split():
    model, x = Net(torch.float64).eval(), samples(30)
    y = predict(model, x)
    attack = MinimumNorm(Budget(1.0), steps=15)
    whole = attack.search(model, x, y)
    for rows in torch.arange(30).split(11):
        part = attack.search(model, {n: v[rows] for n, v in x.items()}, y[rows])
        assert torch.allclose(part.factor, whole.factor[rows], rtol=1e-4)


@pytest.mark.parametrize(
    "surroundings",
    [torch.enable_grad, torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)],
)
def test_everything_is_left_as_it_was(surroundings):
    model = Net().train()
    with surroundings():
        x, y = samples(dtype=torch.float32), torch.zeros(20, dtype=torch.long)
        copies = {n: v.clone() for n, v in x.items()}
        state, modes = {n: v.clone() for n, v in model.state_dict().items()}, [m.training for m in model.modules()]
        trained, random = [p.requires_grad for p in model.parameters()], torch.get_rng_state()
        found = MinimumNorm(Budget(1.0), steps=4)(model, x, y)
        assert torch.get_rng_state().equal(random)
        assert all(v.equal(copies[n]) and v.grad is None for n, v in x.items())
    assert all(v.equal(state[n]) for n, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == trained
    outside = MinimumNorm(Budget(1.0), steps=4)(model, copies, y)
    assert all(found[n].equal(outside[n]) for n in x)


def test_what_only_the_gradient_pass_believes_is_not_found():
    class TwoFaced(Linear):
        def forward(self, inputs):
            logits = super().forward(inputs)
            return logits.roll(1, dims=1) if torch.is_grad_enabled() else logits

    model, x = TwoFaced(), samples()
    y = predict(model, x)
    found = MinimumNorm(Budget(1.0), steps=5).search(model, x, y)
    assert ((predict(model, found.inputs) != y) == found.factor.isfinite()).all()


@pytest.mark.parametrize("settings", [{"steps": 0}, {"restarts": 0}, {"classes": 0}])
def test_bad_settings(settings):
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}` must be at least 1, got 0"):
        MinimumNorm(Budget(1.0), **settings)


def test_a_model_that_detaches():
    x = samples()
    with pytest.raises(RuntimeError, match="carry no gradient"):
        MinimumNorm(Budget(1.0))(Detaching(), x, predict(Detaching(), x))


@pytest.fixture(scope="module")
def digits():
    parts = UCIMultiFeatures(views=("fou", "mor")).load()
    return parts["train"].inputs, parts["train"].target, {n: v[:60].double() for n, v in parts["test"].inputs.items()}


def trained(kind, inputs, target):
    seed_everything(0, verbose=False)
    sizes = {"fou": 32, "mor": 32}
    if kind == "plain":
        model = LateFusion({"fou": MLP(76, 32), "mor": MLP(6, 32)}, OrthogonalFusion(sizes, 10))
    else:
        model = LateFusion(
            {"fou": LipschitzMLP(76, 32, [32]), "mor": LipschitzMLP(6, 32, [32])}, LinearFusion(sizes, 10)
        )
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(6):
        for rows in torch.randperm(len(target)).split(100):
            logits = (1 if kind == "plain" else 10) * model({n: v[rows] for n, v in inputs.items()})
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits, target[rows]).backward()
            optimizer.step()
    return model.double().eval()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "lipschitz"])
@pytest.mark.parametrize("modalities", [["fou", "mor"], ["mor"]])
def test_on_trained_nets_a_slower_search_finds_nothing_nearer(kind, modalities, digits):
    """Fixed-budget attacks with many starts, at budgets just below what the minimum-norm search found."""
    inputs, target, x = digits
    model = trained(kind, inputs, target)
    y = predict(model, x)
    found = MinimumNorm(Budget(1.0, modalities=modalities)).search(model, x, y).factor
    assert found.isfinite().all()
    budget = Budget(0.97 * found, modalities=modalities)
    nearer = predict(model, PGD(budget, steps=60, restarts=3, targeted=True, seed=5)(model, x, y)) != y
    assert nearer.sum() == 0
