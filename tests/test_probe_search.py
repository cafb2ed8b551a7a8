# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The search for the largest gradients against the exhaustive pass that takes them all."""

import copy
import functools
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lightning_crmt import FusionOutput, LinearFusion, OrthogonalFusion, ProbeSearch, Soundness, estimate_lipschitz
from lightning_crmt.lipschitz.prediction import Prediction, Screen
from lightning_crmt.lipschitz.screening import pair_norms

SIZES = {"image": (1, 8, 8), "audio": (20,)}
CLASSES = 12


class Late(nn.Module):
    """Encoders and a head; counts the samples whose gradients are asked for."""

    def __init__(self, encoders, head):
        super().__init__()
        self.encoders, self.head = nn.ModuleDict(encoders), head
        self.graphs = 0

    def forward(self, inputs):
        self.graphs += len(next(iter(inputs.values()))) * torch.is_grad_enabled()
        return self.head({name: encoder(inputs[name]) for name, encoder in self.encoders.items()})


def untrained(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    conv = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(), nn.Flatten()
    )
    encoders = {
        "image": nn.Sequential(conv, nn.Dropout(), nn.Linear(16, 16)),
        "audio": nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 16)),
    }
    return Late(encoders, OrthogonalFusion({"image": 16, "audio": 16}, CLASSES)).to(dtype)


def samples(count=1024, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    inputs = {}
    for name, shape in SIZES.items():
        prototypes = torch.randn(CLASSES, *shape, generator=torch.Generator().manual_seed(1))
        contrast = 0.5 + torch.rand(count, *[1] * len(shape), generator=generator)
        inputs[name] = contrast * prototypes[labels] + torch.randn(count, *shape, generator=generator)
    return inputs, labels


@functools.cache
def trained(dtype=torch.float32):
    model, (inputs, labels) = untrained(), samples()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(5):
        for rows in torch.split(torch.arange(len(labels)), 64):
            loss = nn.functional.cross_entropy(model({n: v[rows] for n, v in inputs.items()}).logits, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.to(dtype)


def split(inputs, size=64):
    count = len(next(iter(inputs.values())))
    return [{n: v[rows] for n, v in inputs.items()} for rows in torch.split(torch.arange(count), size)]


def assert_not_above(found, exhaustive):
    for name, value in exhaustive.items():
        assert (found[name] <= value * (1 + 1e-5)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_class_comes_within_a_percent_in_less_work(dtype, seed):
    model, batches = copy.deepcopy(trained()).to(dtype), split(samples(seed=seed)[0])
    exhaustive = estimate_lipschitz(model, batches)
    found = estimate_lipschitz(model, batches, search=ProbeSearch(pilots=32, seed=seed))
    assert found.of == "scores"
    assert found.soundness is Soundness.ESTIMATED
    for name, value in exhaustive.values.items():
        assert found.values[name].dtype is dtype
        assert (found.values[name] >= 0.99 * value).all()
    assert_not_above(found.values, exhaustive.values)


def test_most_gradients_are_not_taken(monkeypatch):
    taken = []

    def counted(*arguments):
        norms, count = pair_norms(*arguments)
        taken.append(count)
        return norms, count

    monkeypatch.setattr("lightning_crmt.lipschitz.screening.pair_norms", counted)
    batches = split(samples(2048)[0])
    estimate_lipschitz(trained(), batches, search=ProbeSearch())
    assert 64 * CLASSES <= sum(taken) < 2048 * CLASSES / 2


@pytest.mark.parametrize("caution", [0.5, 4.0])
def test_nothing_found_is_above_the_exhaustive_maximum(caution):
    batches = split(samples(512, seed=3)[0])
    for model in (untrained(), trained()):
        exhaustive = estimate_lipschitz(model, batches).values
        search = ProbeSearch(probes=2, caution=caution)
        assert_not_above(estimate_lipschitz(model, batches, search=search).values, exhaustive)


def test_more_caution_finds_no_less():
    batches = split(samples(seed=4)[0])
    exhaustive = estimate_lipschitz(untrained(), batches).values
    gaps = []
    for caution in (6.0, 0.01):
        found = estimate_lipschitz(untrained(), batches, search=ProbeSearch(pilots=8, caution=caution)).values
        gaps.append(max(float((1 - found[name] / exhaustive[name]).max()) for name in SIZES))
    assert gaps[0] < 0.01 < gaps[1]


@pytest.mark.parametrize("head", [LinearFusion, OrthogonalFusion])
def test_linear_models_are_exact(head):
    torch.manual_seed(0)
    model = head({"a": 5, "b": 3}, 3)
    batches = split({"a": torch.randn(200, 5), "b": torch.randn(200, 3)}, 50)
    found = estimate_lipschitz(model, batches, search=ProbeSearch(pilots=8))
    assert_close(found.values, estimate_lipschitz(model, batches).values)


def test_few_samples_are_all_looked_at():
    batches = split(samples(40)[0], 16)
    found = estimate_lipschitz(trained(), batches, search=ProbeSearch(pilots=64))
    assert_close(found.values, estimate_lipschitz(trained(), batches).values)


class Rare(nn.Module):
    """Class 0 stands still, class 1 moves at one sample alone, class 2 everywhere."""

    def forward(self, inputs):
        x = inputs["x"]
        scores = torch.stack([x.new_zeros(len(x)), 3 * (x[:, 0] - 10).relu(), x[:, 1].sin()], dim=1)
        return FusionOutput(scores, {"x": scores})


def test_classes_that_stand_still_at_the_pilots_are_looked_at_everywhere():
    x = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    x[222, 0] = 11
    found = estimate_lipschitz(Rare(), split({"x": x}, 50), search=ProbeSearch(pilots=16)).values["x"]
    assert_close(found[:2], torch.tensor([0.0, 3.0]))
    assert 0.99 < found[2] <= 1


def test_modalities_without_influence_get_zero():
    class Deaf(nn.Module):
        def forward(self, inputs):
            scores = {"a": inputs["a"] * 2, "b": torch.ones(len(inputs["a"]), 3)}
            return FusionOutput(scores["a"] + scores["b"], scores)

    batches = split({"a": torch.randn(60, 3), "b": torch.randn(60, 4)}, 20)
    found = estimate_lipschitz(Deaf(), batches, search=ProbeSearch(pilots=8))
    assert_close(found.values, {"a": torch.full((3,), 2.0), "b": torch.zeros(3)})


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 10, 10)])
def test_inputs_of_another_shape_are_taken_in_full(shape):
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = Late({"x": encoder}, LinearFusion({"x": 4}, 3))
    batches = split({"x": torch.randn(60, 1, 8, 8)}, 20) + split({"x": torch.randn(20, *shape)}, 20)
    found = estimate_lipschitz(model, batches, search=ProbeSearch(pilots=16)).values["x"]
    exhaustive = estimate_lipschitz(model, batches).values["x"]
    assert (found >= 0.99 * exhaustive).all()
    assert (found <= exhaustive * (1 + 1e-5)).all()


def test_the_seed_decides_and_the_global_random_state_stays():
    batches = split(samples(512)[0])
    state = torch.get_rng_state()
    first = estimate_lipschitz(trained(), batches, search=ProbeSearch(seed=5)).values
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(99)
    again = estimate_lipschitz(trained(), iter(batches), search=ProbeSearch(seed=5)).values
    assert all(torch.equal(first[name], again[name]) for name in SIZES)


def test_the_model_is_handed_back_as_it_was():
    model, batches = untrained().train(), split(samples(256)[0])
    model.encoders["audio"].requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    estimate_lipschitz(model, batches, search=ProbeSearch(pilots=16))
    assert all(module.training for module in model.modules())
    assert [p.requires_grad for p in model.encoders["audio"].parameters()] == [False] * 4
    assert all(p.requires_grad and p.grad is None for p in model.encoders["image"].parameters())
    assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_a_diverged_model_is_refused():
    model = copy.deepcopy(trained())
    with torch.no_grad():
        model.encoders["audio"][2].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="the gradients with respect to `inputs\\['audio'\\]` must be finite"):
        estimate_lipschitz(model, split(samples(256)[0]), search=ProbeSearch(pilots=16))


def test_a_single_bad_sample_is_found_behind_the_pilots():
    class Root(nn.Module):
        def forward(self, inputs):
            x = inputs["x"]
            scores = torch.stack([x[:, 0], x[:, 1].clamp(min=-1).add(1).sqrt()], dim=1)
            return FusionOutput(scores, {"x": scores})

    x = torch.rand(200, 2, generator=torch.Generator().manual_seed(0))
    x[150, 1] = -1.0  # an infinite slope
    with pytest.raises(ValueError, match="must be finite"):
        estimate_lipschitz(Root(), split({"x": x}, 50), search=ProbeSearch(pilots=16))


def test_cross_talk_is_refused():
    class Crossed(nn.Module):
        def forward(self, inputs):
            scores = {"a": inputs["a"] + inputs["b"], "b": inputs["b"]}
            return FusionOutput(scores["a"] + scores["b"], scores)

    batches = [{"a": torch.ones(4, 3), "b": torch.ones(4, 3)}]
    with pytest.raises(ValueError, match="the scores of 'a' must depend on the input 'a' alone"):
        estimate_lipschitz(Crossed(), batches, search=ProbeSearch())


def test_bad_settings():
    batches = split(samples(16)[0])
    with pytest.raises(ValueError, match="`search` must be None for of='margins'"):
        estimate_lipschitz(trained(), batches, of="margins", search=ProbeSearch())
    with pytest.raises(TypeError, match="`search` must be a ProbeSearch or None, got a int"):
        estimate_lipschitz(trained(), batches, search=8)
    with pytest.raises(ValueError, match="`batches` must hold at least one batch"):
        estimate_lipschitz(trained(), [], search=ProbeSearch())
    for name in ("probes", "pool", "caution"):
        with pytest.raises(ValueError, match=f"`{name}` must be positive, got 0"):
            ProbeSearch(**{name: 0})
    with pytest.raises(ValueError, match="`caution` must be positive, got nan"):
        ProbeSearch(caution=float("nan"))
    with pytest.raises(ValueError, match="`pilots` must be at least 8, got 7"):
        ProbeSearch(pilots=7)


def test_pairs_are_those_asked_for():
    generator = torch.Generator().manual_seed(0)
    weights = {"a": torch.randn(6, 5, generator=generator), "b": torch.randn(4, 5, generator=generator)}
    inputs = {name: torch.randn(30, len(w), generator=generator) for name, w in weights.items()}
    pairs = {name: torch.rand(30, 5, generator=generator) < 0.3 for name in weights}

    def scores_of(x):
        return {name: (value.square() @ weights[name]) for name, value in x.items()}

    norms, taken = pair_norms(scores_of, inputs, pairs, batch_size=7)
    for name, value in inputs.items():
        every = (2 * value[:, :, None] * weights[name]).norm(dim=1)
        assert_close(norms[name][pairs[name]], every[pairs[name]])
        assert ((norms[name] == 0) | torch.isclose(norms[name], every)).all()
    assert taken < 30 * 5


def test_modalities_with_nothing_to_do_are_not_differentiated():
    seen = []

    def scores_of(x):
        seen.append({name: value.requires_grad for name, value in x.items()})
        return {name: value.square() for name, value in x.items()}

    inputs = {name: torch.randn(20, 2, generator=torch.Generator().manual_seed(0)) for name in ("a", "b")}
    pairs = {"a": torch.zeros(20, 2, dtype=torch.bool), "b": torch.arange(40).view(20, 2) % 3 == 0}
    norms, _ = pair_norms(scores_of, inputs, pairs, batch_size=8)
    assert_close(norms["b"][pairs["b"]], 2 * inputs["b"][pairs["b"]].abs())
    assert not norms["a"].any()
    assert all(flags == {"a": False, "b": True} for flags in seen)
    assert not any(value.requires_grad for value in inputs.values())


def test_the_lead_is_counted_in_standard_deviations():
    visible, hidden = torch.tensor([[0.0], [9.0], [0.0]]), torch.tensor([[0.0], [0.0], [torch.nan]])
    lead = Prediction(visible, hidden, torch.full((3, 1), 0.1)).lead(torch.tensor([2.0]))
    assert_close(lead, torch.tensor([[-10 * math.log(2)], [torch.inf], [torch.inf]]))


def test_a_screen_knows_how_wrong_it_is():
    generator = torch.Generator().manual_seed(0)
    inner = torch.randn(700, 3, generator=generator)
    gradients = torch.tanh(inner @ torch.randn(3, 5 * 6, generator=generator)).unflatten(1, (6, 5)) + 2
    norms, slopes, scores = gradients.norm(dim=1), gradients[:, :2], inner @ torch.randn(3, 5, generator=generator)
    screen = Screen(slopes[:100], scores[:100], norms[:100])
    seen = screen.predict(slopes[100:], scores[100:])
    predicted = (seen.visible + (2 * seen.hidden).exp()).sqrt()
    scatter = (norms[100:] - norms[100:].mean(dim=0)).square().mean()
    assert (predicted - norms[100:]).square().mean() < 0.05 * scatter
    surprise = ((norms[100:].square() - seen.visible).log() / 2 - seen.hidden) / seen.deviation
    assert 0.7 < surprise.std() < 1.4
    # A sample unlike all known ones: less is claimed of it.
    assert (screen.predict(slopes[:1] * 50, scores[:1]).deviation > 2 * seen.deviation.mean(dim=0)).all()
