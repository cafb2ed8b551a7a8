# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Step 2 as a function of scores."""

import copy
import re

import pytest
import torch
from support import oracles
from torch import nn

from lightning_crmt import (
    CRMTModule,
    LinearFusion,
    LipschitzConstants,
    OrthogonalFusion,
    ProbeSearch,
    Soundness,
    encoder_bounds,
    estimate_lipschitz,
    integration_objective,
    keep_scores,
    reweight,
)
from lightning_crmt.encoders import LipschitzMLP
from lightning_crmt.losses import true_class_radii
from lightning_crmt.modality import FusionOutput

SIZES = {"a": 6, "b": 7}


def problem(size=90, classes=4, dtype=torch.float64, of="scores"):
    torch.manual_seed(0)
    head = OrthogonalFusion(SIZES, classes).to(dtype)
    with torch.no_grad():
        head.bias.normal_(std=0.1)
        for weight in head.integration_parameters():
            weight.uniform_(0.5, 1.5)
    target = torch.randint(classes, (size,))
    features = {
        name: torch.randn(size, d, dtype=dtype) + 2 * head.directions[name].detach()[target]
        for name, d in SIZES.items()
    }
    scores = {name: value.detach() for name, value in head(features).scores.items()}
    return head, scores, target, oracles.random_constants(head, of, Soundness.ESTIMATED)


def objective_of(head, scores, target, constants, **settings):
    with torch.no_grad():
        return float(
            integration_objective(FusionOutput(head.fuse(scores), scores), target, head, constants, **settings)
        )


@pytest.mark.parametrize("of", ["scores", "encoder"])
@pytest.mark.parametrize("objective", ["clipped", "mean"])
def test_the_objective_falls_and_nothing_else_changes(of, objective):
    head, scores, target, constants = problem(of=of)
    before, given = copy.deepcopy(head.state_dict()), copy.deepcopy(scores)
    done = reweight(head, scores, target, constants, objective=objective, epochs=30)
    assert all(value.equal(before[name]) for name, value in head.state_dict().items()), "a pure function"
    assert all(value.equal(given[name]) for name, value in scores.items())
    changed = {name for name, value in done.head.state_dict().items() if not value.equal(before[name])}
    assert changed == {"raw_weights.a", "raw_weights.b"}
    settings = {"objective": objective, "clip": done.clip}
    after = objective_of(done.head, scores, target, constants, **settings)
    assert after < objective_of(head, scores, target, constants, **settings) - 1e-3
    assert after == pytest.approx(done.objective[-1], rel=0.05)
    assert (done.clip is None) == (objective == "mean")

    def norm(of_head):
        return torch.cat([weight.detach() for weight in of_head.integration_parameters()]).norm()

    torch.testing.assert_close(norm(done.head), norm(head), rtol=1e-9, atol=0)
    assert all(parameter.requires_grad for parameter in done.head.parameters())
    assert done.weights[-1] == {n: pytest.approx(a.mean().item()) for n, a in done.head.integration_weights.items()}
    assert len(done.objective) == len(done.weights) == 30


def test_against_slow_gradient_descent():
    """Whole batches and plain gradient descent, with gradients by finite differences of the formula."""
    head, scores, target, constants = problem(size=12, classes=3)
    lr, step = 0.05, 1e-6
    sgd = lambda weights: torch.optim.SGD(weights, lr=1.0)  # noqa: E731 - `lr` counts, whatever the optimizer has
    done = reweight(head, scores, target, constants, objective="mean", epochs=3, lr=lr, batch_size=12, optimizer=sgd)

    slow = copy.deepcopy(head)
    weights = slow.integration_parameters()
    norm = torch.cat([weight.detach() for weight in weights]).norm()

    def objective():
        radii = []
        for i, y in enumerate(target.tolist()):
            h = [
                sum(float(slow.integration_weights[m][k] * scores[m][i, k]) for m in SIZES) + float(slow.bias[k])
                for k in range(3)
            ]
            slopes = [
                sum(
                    float(
                        slow.integration_weights[m][y] * constants.values[m][y]
                        + slow.integration_weights[m][j] * constants.values[m][j]
                    )
                    ** 2
                    for m in SIZES
                )
                ** 0.5
                for j in range(3)
            ]
            radii.append(min((h[y] - h[j]) / slopes[j] for j in range(3) if j != y))
        return -sum(radii) / len(radii)

    with torch.no_grad():
        for _ in range(3):
            gradients = []
            for weight in weights:
                gradient = torch.zeros_like(weight)
                for k in range(3):
                    weight[k] += step
                    up = objective()
                    weight[k] -= 2 * step
                    gradient[k] = (up - objective()) / (2 * step)
                    weight[k] += step
                gradients.append(gradient)
            for weight, gradient in zip(weights, gradients, strict=True):
                weight -= lr * gradient
            now = torch.cat(list(weights)).norm()
            for weight in weights:
                weight *= norm / now
    for fast, other in zip(done.head.integration_parameters(), weights, strict=True):
        torch.testing.assert_close(fast, other, rtol=1e-5, atol=1e-7)


def test_the_same_arguments_give_the_same_weights():
    head, *kept = problem()
    torch.manual_seed(1)
    first = reweight(head, *kept)
    torch.rand(7)
    second, other = reweight(head, *kept), reweight(head, *kept, seed=1)
    for name, weight in first.head.integration_weights.items():
        assert torch.equal(weight, second.head.integration_weights[name])
        assert not torch.equal(weight, other.head.integration_weights[name])


def test_the_random_state_stays():
    head, *kept = problem()
    before = torch.get_rng_state()
    reweight(head, *kept)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_clip_is_the_mean_distance_from_the_boundary():
    head, scores, target, constants = problem(size=5000)  # more than are taken at once
    radii = true_class_radii(FusionOutput(head.fuse(scores), scores), target, head, constants)
    assert reweight(head, scores, target, constants, epochs=1).clip == pytest.approx(float(radii.detach().abs().mean()))
    assert reweight(head, scores, target, constants, epochs=1, clip=0.5).clip == 0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_single(dtype):
    head, scores, target, constants = problem(dtype=torch.float32)
    half = copy.deepcopy(head).to(dtype)
    done = reweight(half, {name: value.to(dtype) for name, value in scores.items()}, target, constants)
    assert done.head.bias.dtype == torch.float32
    whole = reweight(head, scores, target, constants)
    for name, weight in done.head.integration_weights.items():
        torch.testing.assert_close(weight, whole.head.integration_weights[name], rtol=0, atol=0.05)
    half.load_state_dict(done.head.state_dict())
    assert half.bias.dtype == dtype


def test_progress_is_told():
    head, *kept = problem()
    told = []
    done = reweight(head, *kept, epochs=3, on_epoch=lambda *numbers: told.append(numbers))
    assert told == list(zip(done.objective, done.weights, strict=True))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"epochs": 0}, ValueError, "`epochs` must be at least 1, got 0"),
        ({"batch_size": 0}, ValueError, "`batch_size` must be at least 1, got 0"),
        ({"lr": -1.0}, ValueError, "`lr` must be above 0, got -1.0"),
        ({"clip": 0.0}, ValueError, "`clip` must be above 0, got 0.0"),
        ({"objective": "median"}, ValueError, "`objective` must be one of ('mean', 'clipped'), got 'median'"),
        (
            {"head": LinearFusion(SIZES, 4)},
            TypeError,
            "with integration weights, such as OrthogonalFusion, got LinearF",
        ),
        ({"head": nn.Linear(3, 4)}, TypeError, "needs late fusion with integration weights, such as OrthogonalFusion"),
        ({"scores": {"a": torch.zeros(90, 4)}}, ValueError, "`scores` must hold exactly the modalities"),
        ({"scores": {"a": torch.zeros(90, 4), "b": torch.full((90, 4), torch.nan)}}, ValueError, "NaN"),
        ({"target": torch.zeros(80, dtype=torch.long)}, ValueError, "`target`"),
        ({"target": torch.full((90,), 4)}, ValueError, "`target`"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, message):
    arguments = dict(zip(("head", "scores", "target", "constants"), problem(), strict=True)) | change
    with pytest.raises(error, match=re.escape(message)):
        reweight(**arguments)


def test_constants_of_margins_are_refused():
    head, scores, target, _ = problem()
    margins = LipschitzConstants(dict.fromkeys(SIZES, torch.ones(4, 4)), of="margins", soundness=Soundness.ESTIMATED)
    with pytest.raises(ValueError, match="constants of 'margins' contain the weights"):
        reweight(head, scores, target, margins)


# --- scores and constants in one pass


def model_of(*encoders):
    torch.manual_seed(0)
    return CRMTModule(dict(zip("ab", encoders, strict=True)), num_classes=4)


def batches_of(*shapes, sizes=(8, 5)):
    torch.manual_seed(1)
    return [
        ({name: torch.randn(size, *shape) for name, shape in zip("ab", shapes, strict=True)}, torch.randint(4, (size,)))
        for size in sizes
    ]


def test_scores_are_those_of_evaluation_mode_and_the_model_stays():
    dropping = nn.Sequential(LipschitzMLP(6, 8), nn.Dropout(0.5), nn.BatchNorm1d(8))
    dropping.out_features = 8
    model, batches = model_of(dropping, LipschitzMLP(5, 8)), batches_of((6,), (5,))
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    kept = keep_scores(model, batches)
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(value.equal(state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    model.eval()
    for name in "ab":
        expected = torch.cat([model(inputs).scores[name] for inputs, _ in batches])
        torch.testing.assert_close(kept.scores[name], expected)
        assert not kept.scores[name].requires_grad
    assert kept.target.tolist() == [int(y) for _, target in batches for y in target]
    for name, value in estimate_lipschitz(model, [inputs for inputs, _ in batches]).values.items():
        torch.testing.assert_close(kept.constants.values[name], value)


def test_sound_constants_hold_for_every_shape_that_came():
    convolutional = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8))
    model = model_of(convolutional, LipschitzMLP(5, 8))
    batches = batches_of((1, 8, 8), (5,)) + batches_of((1, 16, 12), (5,)) + batches_of((1, 8, 8), (5,))
    kept = keep_scores(model, batches, "sound")
    assert (kept.constants.soundness, kept.constants.of) == (Soundness.SOUND, "encoder")
    each = [encoder_bounds(model.encoders, {"a": shape, "b": (5,)}) for shape in ((1, 8, 8), (1, 16, 12))]
    for name, value in kept.constants.values.items():
        assert float(value) == max(float(bounds.values[name]) for bounds in each)


def test_a_search_finds_the_constants():
    model, batches = model_of(LipschitzMLP(6, 8), LipschitzMLP(5, 8)), batches_of((6,), (5,), sizes=(30, 20))
    exact, found = keep_scores(model, batches), keep_scores(model, batches, ProbeSearch(pilots=8))
    for name, value in exact.constants.values.items():
        assert (found.constants.values[name] <= value * (1 + 1e-5)).all()
        assert (found.constants.values[name] >= 0.9 * value).all()


@pytest.mark.parametrize("constants", ["estimated", "sound"])
def test_no_batches_are_refused(constants):
    with pytest.raises(ValueError, match="`batches` must hold at least one batch, got none"):
        keep_scores(model_of(LipschitzMLP(6, 8), LipschitzMLP(5, 8)), [], constants)


def test_other_levels_are_refused():
    with pytest.raises(ValueError, match="`constants` must be 'estimated' or 'sound', got 'rigorous'"):
        keep_scores(model_of(LipschitzMLP(6, 8), LipschitzMLP(5, 8)), [], "rigorous")


def test_a_model_trained_without_step_two_gets_it():
    model, batches = model_of(LipschitzMLP(6, 8), LipschitzMLP(5, 8)), batches_of((6,), (5,))
    before = copy.deepcopy(model.state_dict())
    kept = keep_scores(model, batches)
    model.head.load_state_dict(reweight(model.head, *kept).head.state_dict())
    changed = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert changed == {"head.raw_weights.a", "head.raw_weights.b"}
