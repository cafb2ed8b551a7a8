# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Models that draw random numbers, attacked as the mean of some draws: one function, whatever is drawn elsewhere."""

import math
import random
import weakref

import numpy as np
import pytest
import torch
from support.linear_model import THREATS, Linear, predict, samples
from support.nets import Net
from support.small_model import model_of
from torch import nn

from lightning_crmt import CRMTModule
from lightning_crmt.attacks import (
    APGD,
    FGM,
    PGD,
    AveragedModel,
    Budget,
    EmbeddedModel,
    Ensemble,
    MinimumNorm,
    MinimumNormEnsemble,
    RandomSearch,
    public_logits,
    strongest,
    suspicions,
)
from lightning_crmt.encoders import MLP
from lightning_crmt.random_state import random_state, seeded

ATTACKS = {
    "fgm": FGM,
    "pgd": lambda b: PGD(b, steps=6),
    "apgd": lambda b: APGD(b, steps=6),
    "search": lambda b: RandomSearch(b, steps=30),
    "ensemble": lambda b: Ensemble([FGM(b), APGD(b, steps=4)]),
    "strongest": lambda b: strongest(b, steps=4, classes=2),
    "nearest": lambda b: MinimumNorm(b, steps=15, restarts=1),
    "nearest of several": lambda b: MinimumNormEnsemble([MinimumNorm(b, steps=10), MinimumNorm(b, steps=5, seed=1)]),
}


class Recording(nn.Module):
    """Keeps what it is given; two layers, in double precision."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(11, 16), nn.Tanh(), nn.Linear(16, 3)).double()
        self.seen = []

    def forward(self, inputs):
        self.seen.append({name: value.detach() for name, value in inputs.items()})
        return self.net(torch.cat([inputs["audio"], inputs["image"].flatten(1)], dim=1))


class OfEachCall(Recording):
    """Draws once for all of a batch: by torch, Python and NumPy."""

    def forward(self, inputs):
        shift = torch.randn((), dtype=torch.double) + random.random() + float(np.random.rand())
        return super().forward({**inputs, "audio": inputs["audio"] + shift})


class OfEachEntry(Recording):
    def forward(self, inputs):
        return super().forward({name: nn.functional.dropout(value, 0.3) for name, value in inputs.items()})


RANDOM = (OfEachCall, OfEachEntry)


def slow_mean(model, draws):
    """By loops, from what the model was given in each draw."""
    size, result = len(draws[0]["audio"]), []
    for i in range(size):
        rows = []
        for draw in draws:
            h = model.net(torch.cat([draw["audio"][i], draw["image"][i].flatten()])).tolist()
            total = sum(math.exp(v) for v in h)
            rows.append([math.exp(v) / total for v in h])
        result.append([math.log(sum(column) / len(rows)) for column in zip(*rows, strict=True)])
    return torch.tensor(result, dtype=torch.double)


# --- what it computes


@pytest.mark.parametrize("batch_size", [1, 45, 1000])
def test_with_noise_it_is_the_mean_over_noisy_inputs(batch_size):
    model, x = Recording(), samples(9)
    averaged = AveragedModel(model, 13, noise={"audio": 0.5}, batch_size=batch_size)
    found = averaged(x).detach()
    draws = [
        dict(zip(each, parts, strict=True))
        for each in model.seen
        for parts in zip(*(value.split(9) for value in each.values()), strict=True)
    ]
    assert len(draws) == 13
    assert all(len(each["audio"]) <= max(9, batch_size) for each in model.seen)
    torch.testing.assert_close(found, slow_mean(model, draws))
    assert all(draw["image"].equal(x["image"]) for draw in draws)
    noise = torch.stack([draw["audio"] - x["audio"] for draw in draws])
    torch.testing.assert_close(noise, noise[:, :1].expand_as(noise))  # the same for all samples
    assert len(noise[:, 0].unique(dim=0)) == 13


@pytest.mark.parametrize("kind", RANDOM)
def test_without_noise_each_draw_is_a_call(kind):
    model, x = kind(), samples(9)
    found = AveragedModel(model, 13)(x).detach()
    assert len(model.seen) == 13
    assert len(torch.stack([each["audio"] for each in model.seen]).unique(dim=0)) == 13
    torch.testing.assert_close(found, slow_mean(model, model.seen))


def test_noise_has_the_size_asked_for_and_nothing_to_do_with_what_the_model_draws():
    own = []

    def model(inputs):
        own.append(torch.randn_like(inputs["audio"]))
        return inputs["audio"][:, :3] + 0 * own[-1][:, :3]

    given = []
    x = {"audio": torch.zeros(1, 50), "image": torch.zeros(1, 50)}
    for seed in (0, 1):
        AveragedModel(lambda inputs: given.append(inputs) or model(inputs), 400, noise={"audio": 0.5, "image": 2.0},
                      batch_size=1, seed=seed)(x)  # fmt: skip
    audio, image = (torch.cat([each[name] for each in given]).reshape(2, 400, 50) for name in x)
    assert audio.std().item() == pytest.approx(0.5, rel=0.02)
    assert image.std().item() == pytest.approx(2.0, rel=0.02)
    streams = [audio[0], audio[1], image[0], *torch.cat(own).reshape(2, 400, 50)]
    # Neither the numbers of a draw nor those of the next one.
    streams += [each.roll(1, 0) for each in streams[:1]]
    correlation = torch.stack([each.flatten() for each in streams]).corrcoef() - torch.eye(len(streams))
    assert correlation.abs().max() < 0.03


def test_labels_are_averaged_each_by_itself():
    torch.manual_seed(0)
    logits = torch.randn(5, 6, 4, dtype=torch.double)
    calls = iter([*logits, *logits])
    found = AveragedModel(lambda inputs: next(calls), 5, multi_label=True)({"audio": torch.zeros(6, 1).double()})
    torch.testing.assert_close(found, logits.sigmoid().mean(dim=0).logit())
    module = model_of(multi_label=True)
    assert AveragedModel(module, noise=0.1).multi_label
    assert AveragedModel(EmbeddedModel(module, {"a": "encoders.a"}), noise=0.1).multi_label
    assert not AveragedModel(model_of(), noise=0.1).multi_label


def test_probabilities_that_vanish_are_no_trouble():
    logits = iter(torch.tensor([[[1e4, 0.0, -1e4]], [[9e3, 0.0, -1e4]]]))
    found = AveragedModel(lambda inputs: next(logits), 2)({"audio": torch.zeros(1, 1)})
    assert found.isfinite().all()
    assert found[0, 1] == pytest.approx(-9e3 - math.log(2), rel=1e-6)


def test_half_precision_is_averaged_in_single():
    model = Net(torch.float32).bfloat16()
    x = {name: value.bfloat16() for name, value in samples(4, dtype=torch.float32).items()}
    found = public_logits(AveragedModel(model, 8, noise=0.1), x)
    assert found.dtype is torch.float32
    assert found.isfinite().all()


# --- the same function in every call


@pytest.mark.parametrize("settings", [{}, {"noise": 0.3}])
@pytest.mark.parametrize("kind", [Recording, *RANDOM])
def test_every_call_makes_the_same_draws_and_leaves_no_trace(kind, settings):
    x, states = samples(9), []
    averaged = AveragedModel(kind(), 7, **settings)
    first = averaged(x)
    for seed in (1, 2):
        torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)
        before = random_state(torch.device("cpu"))
        assert averaged(x).equal(first)
        after = random_state(torch.device("cpu"))
        assert str(before["python"]) == str(after["python"])
        assert before["numpy"] == after["numpy"]
        assert before["cpu"].equal(after["cpu"])
        states.append(after["cpu"])
    other = AveragedModel(averaged.model, 7, seed=1, **settings)(x)
    assert other.equal(first) == (kind is Recording and not settings)


@pytest.mark.parametrize(
    "make",
    [
        lambda **s: AveragedModel(Recording(), 7, noise=0.3, **s),
        lambda **s: AveragedModel(OfEachCall(), 7, **s),
        lambda **s: AveragedModel(OfEachCall(), 7, noise={"image": 0.3}, **s),
    ],
)
def test_batches_may_be_split_and_memory_bounded(make):
    """But for the last: the model's own draws are of a call, which holds as many draws as there is room for."""
    x, results = samples(10), []
    for batch_size in (1, 10, 25, 1000):
        averaged = make(batch_size=batch_size)
        leaves = {name: value.clone().requires_grad_() for name, value in x.items()}
        logits = averaged(leaves)
        slopes = torch.autograd.grad(logits.square().sum(), list(leaves.values()))
        results.append([logits.detach(), *slopes])
        if not isinstance(averaged.model, OfEachCall) or averaged.noise is None:
            halves = torch.cat([averaged({n: v[rows] for n, v in x.items()}) for rows in (slice(0, 3), slice(3, 10))])
            torch.testing.assert_close(halves, logits)
    averaged = make()
    if not isinstance(averaged.model, OfEachCall) or averaged.noise is None:
        for other in results[1:]:
            for one, two in zip(results[0], other, strict=True):
                torch.testing.assert_close(one, two)


@pytest.mark.parametrize("kind", [Recording, *RANDOM])
def test_gradients_are_those_of_the_mean_without_holding_all_graphs(kind):
    kept = []

    class Watched(kind):
        def forward(self, inputs):
            hidden = self.net[:2](torch.cat([inputs["audio"], inputs["image"].flatten(1)], dim=1))
            kept.append(weakref.ref(hidden))
            return super().forward(inputs) + 0 * self.net[2](hidden)

    x, noise = samples(10), {"noise": 0.3} if kind is Recording else {}
    leaves = {name: value.clone().requires_grad_() for name, value in x.items()}
    averaged = AveragedModel(Watched(), 6, batch_size=20, **noise)
    logits = averaged(leaves)
    assert len(kept) == (3 if noise else 6)
    assert not any(each() is not None for each in kept)  # tanh saves its result where there is a graph
    parameters = list(averaged.parameters())
    slopes = torch.autograd.grad(logits.square().sum(), [*leaves.values(), *parameters])
    whole = AveragedModel(averaged.model, 6, batch_size=1000, **noise)
    wanted = torch.autograd.grad(whole(leaves).square().sum(), [*leaves.values(), *parameters])
    for one, two in zip(slopes, wanted, strict=True):
        torch.testing.assert_close(one, two)


def test_gradients_by_differences():
    averaged = AveragedModel(Recording(), 5, noise=0.3, batch_size=4)
    x = samples(2)
    assert torch.autograd.gradcheck(
        lambda a, b: averaged({"audio": a, "image": b}), [x["audio"].requires_grad_(), x["image"].requires_grad_()]
    )


# --- attacks


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("threat", ["joint", "alone", "linf, box"])
@pytest.mark.parametrize("as_function", [False, True])
def test_every_attack_takes_it_and_keeps_the_budget(attack, threat, as_function):
    model, x = Net().train(), samples(16, dtype=torch.float32)
    frozen = model if not as_function else model.eval()
    averaged = AveragedModel(frozen if not as_function else lambda inputs: frozen(inputs), 6, noise=0.2)
    y = public_logits(averaged, x).argmax(dim=1)
    budget = THREATS[threat][0](1.0)
    state, modes = random_state(torch.device("cpu"))["cpu"], [part.training for part in model.modules()]
    with torch.inference_mode():
        made = ATTACKS[attack](budget)
        moved = made(averaged, x, y)
    assert torch.get_rng_state().equal(state)
    assert [part.training for part in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    if "nearest" not in attack:
        assert (budget.size(budget.difference(moved, x)) <= 1 + 1e-6).all()
    assert (public_logits(averaged, moved).argmax(dim=1) != y).sum() >= 3
    again = made(averaged, x, y)
    assert all(torch.allclose(moved[name], again[name], atol=1e-5) for name in x)


def test_the_distance_of_a_smoothed_linear_model_is_known():
    """Two classes: noise moves the margin both ways alike, so the boundary of the smoothed model is the model's own."""
    model, x = Linear(num_classes=2), samples(12)
    logits = model(x)
    w = torch.cat([model.weights[name][0] - model.weights[name][1] for name in x])
    exact = (logits[:, 0] - logits[:, 1]).abs() / w.norm()
    averaged = AveragedModel(model, 800, noise=0.3, batch_size=10**5)
    near = MinimumNorm(Budget(1.0), steps=10, restarts=1).search(averaged, x, logits.argmax(dim=1))
    assert (near.factor - exact.detach()).abs().max() < 0.3 * 5 / math.sqrt(800)


class Distracting(nn.Module):
    """A single gradient points anywhere: a random slope, with mean 0 over draws, hides that of the model."""

    def __init__(self):
        super().__init__()
        self.base = Net()

    def forward(self, inputs):
        slopes = {name: 30 * torch.randn(value.shape[1:]) for name, value in inputs.items()}
        lure = sum((value * slopes[name]).flatten(1).sum(dim=1) for name, value in inputs.items())
        # Odd in the draw: the mean of probabilities is near that of the model's.
        return self.base(inputs)["logits"] + 0.02 * lure.sin()[:, None] * torch.tensor([1.0, -1.0, 1.0, -1.0])


def test_the_mean_is_fooled_where_single_draws_mislead():
    model, x = Distracting().eval(), samples(60, dtype=torch.float32)
    y = predict(model.base, x)
    judge, attack = AveragedModel(model, 200, seed=7), PGD(Budget(0.5), steps=20)
    assert (public_logits(judge, x).argmax(dim=1) == y).float().mean() > 0.95
    left = {
        name: (public_logits(judge, attack(seen, x, y)).argmax(dim=1) == y).sum().item()
        for name, seen in {"single": model, "mean": AveragedModel(model, 32)}.items()
    }
    assert left["mean"] < left["single"] - 6


def test_the_mean_under_noise_is_fooled_where_the_base_model_misleads():
    """The attack on the smoothed classifier has to see it: a base model with ripples has gradients of its own."""

    class Rippled(nn.Module):
        def __init__(self):
            super().__init__()
            self.base = Linear(dtype=torch.float32)

        def forward(self, inputs):
            ripples = sum((40 * value).sin().flatten(1).sum(dim=1) for value in inputs.values())
            return self.base(inputs) + 0.2 * ripples[:, None] * torch.tensor([1.0, -1.0, 1.0, -1.0])

    model, x = Rippled(), samples(60, dtype=torch.float32)
    judge, attack = AveragedModel(model, 500, noise=0.25, seed=7), PGD(Budget(1.2), steps=20)
    y = public_logits(judge, x).argmax(dim=1)
    left = {
        name: (public_logits(judge, attack(seen, x, y)).argmax(dim=1) == y).sum().item()
        for name, seen in {"base": model, "smoothed": AveragedModel(model, 64, noise=0.25)}.items()
    }
    assert left["smoothed"] < left["base"] - 4


def test_crmt_modules_with_gaps_and_tokens():
    torch.manual_seed(0)
    text = nn.Sequential(nn.Embedding(50, 4), nn.Flatten(), nn.Linear(12, 8))
    module = CRMTModule({"image": MLP(5, 8), "text": text}, num_classes=3)
    inputs = {
        "image": torch.randn(8, 5),
        "text": torch.randint(50, (8, 3)),
        "image.present": torch.arange(8) % 2 == 0,
    }
    averaged = AveragedModel(module, 16, noise={"image": 0.3})
    y = public_logits(averaged, inputs).argmax(dim=1)
    moved = PGD(Budget({"image": 3.0}))(averaged, inputs, y)
    assert moved["text"] is inputs["text"]
    assert moved["image"][1::2].equal(inputs["image"][1::2])
    gaps = {**inputs, "image": torch.where(inputs["image.present"][:, None], inputs["image"], 77.0)}
    assert public_logits(averaged, gaps).equal(public_logits(averaged, inputs))

    whole = {"image": inputs["image"], "text": inputs["text"]}
    embedded = EmbeddedModel(module, {"text": "encoders.text.0"})
    of_both = AveragedModel(embedded, 16, noise={"image": 0.3, "text": 0.1}, batch_size=24)
    given = embedded.embed(whole)
    y = public_logits(of_both, given).argmax(dim=1)
    moved = PGD(Budget({"text": 3.0}))(of_both, given, y)
    assert (public_logits(of_both, moved).argmax(dim=1) != y).any()
    plain = AveragedModel(module, 16, noise={"image": 0.3})
    only = AveragedModel(embedded, 16, noise={"image": 0.3})
    torch.testing.assert_close(public_logits(only, given), public_logits(plain, whole))


# --- doubts


class DropsAlways(Net):
    def forward(self, inputs):
        return super().forward({name: nn.functional.dropout(value, 0.2) for name, value in inputs.items()})


def test_a_random_model_is_told_of_and_its_mean_is_left_in_peace():
    x = samples(32, dtype=torch.float32)
    model = DropsAlways().eval()
    averaged = AveragedModel(model, 64)
    y = public_logits(averaged, x).argmax(dim=1)
    attack = PGD(Budget(0.3), steps=10)
    (doubt,) = suspicions(attack, model, x, y)
    assert doubt.startswith("two forwards of the same inputs differ")
    assert "AveragedModel(model)" in doubt
    assert suspicions(attack, averaged, x, y) == []
    assert suspicions(attack, AveragedModel(Net().eval(), 32, noise=0.2), x, y) == []


# --- its parts, and what is refused


def test_a_model_without_tensors_takes_inputs_where_they_are():
    averaged = AveragedModel(lambda inputs: inputs["audio"], 2)
    here = public_logits(averaged, {"audio": torch.zeros(2, 3, dtype=torch.double)})
    assert here.dtype is torch.float64


def test_seeds_are_taken_back_after_an_error():
    torch.manual_seed(5)
    before = torch.get_rng_state()

    def failing():
        with seeded(1, torch.device("cpu")):
            raise ArithmeticError(torch.rand(1), random.random(), np.random.rand())

    with pytest.raises(ArithmeticError):
        failing()
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: AveragedModel("model"), TypeError, "`model` must be a function from inputs by name .* got a str"),
        (lambda: AveragedModel(Net(), 0), ValueError, "`draws` must be at least 1, got 0"),
        (lambda: AveragedModel(Net(), batch_size=0), ValueError, "`batch_size` must be at least 1, got 0"),
        (lambda: AveragedModel(Net(), seed=-1), ValueError, "`seed` must be at least 0, got -1"),
        (lambda: AveragedModel(Net(), noise=-0.1), ValueError, "`noise` must be at least 0 and finite"),
        (
            lambda: AveragedModel(Net(), noise={"sound": 0.1})(samples(2)),
            ValueError,
            r"`noise` must name modalities among \['audio', 'image'\]",
        ),
        (lambda: AveragedModel(lambda inputs: inputs)(samples(2)), TypeError, "a model must return logits"),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_settings_are_shown():
    assert "draws=3, noise=0.1, seed=2" in repr(AveragedModel(Net(), 3, noise=0.1, seed=2))
