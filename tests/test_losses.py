# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
import math
import re

import pytest
import torch
from support import oracles
from torch import nn
from torch.testing import assert_close

from lightning_crmt import (
    FusionOutput,
    LinearFusion,
    LipschitzConstants,
    MarginRegularization,
    Soundness,
    integration_objective,
    margin_regularization,
)

SIZES = [(num_modalities, num_classes) for num_modalities in (1, 2, 3) for num_classes in (2, 3, 7)]


def random_scores(num_modalities, num_classes, dtype=torch.float64, batch_size=6):
    torch.manual_seed(num_modalities * num_classes)
    scores = {f"m{i}": 3 * torch.randn(batch_size, num_classes, dtype=dtype) for i in range(num_modalities)}
    return scores, torch.randint(num_classes, (batch_size,))


def step2(num_modalities=2, num_classes=4, of="scores", dtype=torch.float64, kind=oracles.OrthogonalFusion):
    head = oracles.random_head(num_modalities, num_classes, kind, dtype)
    features = oracles.random_features(head, 9)
    target, logits = torch.randint(num_classes, (9,)), head(features).logits
    target[:3], target[3:6] = logits.argmax(dim=1)[:3], logits.argmin(dim=1)[3:6]  # some are right, some are wrong
    return head, features, target, oracles.random_constants(head, of)


# Margin regularisation.


@pytest.mark.parametrize(("num_modalities", "num_classes"), SIZES)
@pytest.mark.parametrize("dtype", oracles.PRECISIONS)
def test_margin_regularization_is_the_formula(num_modalities, num_classes, dtype):
    scores, target = random_scores(num_modalities, num_classes, dtype)
    loss = margin_regularization(scores, target)
    assert loss.dtype is dtype
    assert loss.item() == pytest.approx(oracles.margin_regularization(scores, target), abs=1e-6, rel=1e-6)
    assert MarginRegularization()(scores, target).equal(loss)


@pytest.mark.parametrize(("num_modalities", "num_classes"), SIZES)
def test_margin_regularization_has_the_gradient_of_finite_differences(num_modalities, num_classes):
    scores, target = random_scores(num_modalities, num_classes, batch_size=3)
    leaves = [score.requires_grad_(True) for score in scores.values()]
    assert torch.autograd.gradcheck(
        lambda *values: margin_regularization(dict(zip(scores, values, strict=True)), target), leaves
    )


@pytest.mark.parametrize("dtype", oracles.PRECISIONS)
def test_margin_regularization_does_not_overflow(dtype):
    audio = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], dtype=dtype, requires_grad=True)
    scores = {"audio": audio, "image": torch.zeros(2, 3, dtype=dtype)}
    loss = margin_regularization(scores, torch.tensor([0, 0]))
    loss.backward()
    assert loss.item() == pytest.approx((math.log(2) + 2e4) / 2)
    assert_close(audio.grad, torch.tensor([[0.0, 0.0, 0.0], [-0.5, 0.5, 0.0]], dtype=dtype))


@pytest.mark.parametrize(("num_modalities", "num_classes"), SIZES)
def test_margin_regularization_ignores_a_shift_of_each_score_vector(num_modalities, num_classes):
    scores, target = random_scores(num_modalities, num_classes)
    shifted = {name: score + 50 * torch.randn(len(score), 1, dtype=score.dtype) for name, score in scores.items()}
    assert_close(margin_regularization(shifted, target), margin_regularization(scores, target))


@pytest.mark.parametrize(("num_modalities", "num_classes"), SIZES)
def test_margin_regularization_is_a_smooth_maximum_of_negative_margins(num_modalities, num_classes):
    scores, target = random_scores(num_modalities, num_classes)
    worst = torch.tensor(
        [
            max(float(s[i, k] - s[i, y]) for s in scores.values() for k in range(num_classes) if k != y)
            for i, y in enumerate(target.tolist())
        ]
    ).mean()
    loss = margin_regularization(scores, target)
    assert worst - 1e-6 <= loss <= worst + math.log(num_modalities * (num_classes - 1)) + 1e-6


def test_margin_regularization_pulls_at_the_modality_with_the_smallest_margin():
    scores = {
        "strong": torch.tensor([[9.0, 0.0]], requires_grad=True),
        "weak": torch.tensor([[1.0, 0.0]], requires_grad=True),
    }
    margin_regularization(scores, torch.tensor([0])).backward()
    assert scores["weak"].grad[0, 0] < -0.99
    assert scores["strong"].grad.abs().max() < 0.01


def test_margin_regularization_ignores_the_order_of_samples_and_modalities():
    scores, target = random_scores(3, 4)
    turned = {name: score.flip(0) for name, score in reversed(scores.items())}
    assert_close(margin_regularization(turned, target.flip(0)), margin_regularization(scores, target))


GOOD = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("scores", "target", "error", "message"),
    [
        ({}, torch.tensor([0, 1]), ValueError, "`scores` must name at least one modality, got none"),
        (
            {"a": GOOD, "b": torch.zeros(2, 4)},
            torch.tensor([0, 1]),
            ValueError,
            "`scores` must have one shape (B, K), got {'a': (2, 3), 'b': (2, 4)}",
        ),
        (
            {"a": GOOD, "b": torch.zeros(2)},
            torch.tensor([0, 1]),
            ValueError,
            "`scores['b']` must be a floating point tensor of shape (B, K), K >= 2, got a float32 tensor of shape (2,)",
        ),
        ({"a": GOOD / 0}, torch.tensor([0, 1]), ValueError, "`scores['a']` must be finite: 6 NaN and 0 Inf"),
        ({"a": GOOD}, torch.tensor([0, 3]), ValueError, "`target` must hold class indices from 0 to 2"),
        ({"a": GOOD}, torch.tensor([0]), ValueError, "`target` must have shape (2,), one class per sample"),
        ({"a": GOOD}, torch.tensor([0.0, 1.0]), TypeError, "`target` must be a tensor of integer class indices"),
    ],
)
def test_margin_regularization_refuses(scores, target, error, message):
    with pytest.raises(error, match=re.escape(message)):
        margin_regularization(scores, target)


def test_margin_regularization_refuses_an_empty_batch():
    with pytest.raises(ValueError, match="at least one sample, got an empty batch"):
        margin_regularization({"a": GOOD[:0]}, torch.tensor([], dtype=torch.long))


# Integration objective.


@pytest.mark.parametrize(("num_modalities", "num_classes"), SIZES)
@pytest.mark.parametrize("dtype", oracles.PRECISIONS)
@pytest.mark.parametrize("of", ["scores", "encoder"])
def test_integration_objective_is_the_formula(num_modalities, num_classes, dtype, of):
    head, features, target, constants = step2(num_modalities, num_classes, of, dtype)
    output, slopes = head(features), oracles.slopes_of(head, constants)
    mean = integration_objective(output, target, head, constants, objective="mean")
    clipped = integration_objective(output, target, head, constants, clip=0.5)
    expected = [oracles.integration_objective(output.logits, target, slopes, clip) for clip in (math.inf, 0.5)]
    assert mean.dtype is clipped.dtype is dtype
    assert [mean.item(), clipped.item()] == pytest.approx(expected, abs=1e-6, rel=1e-6)
    assert expected[0] != pytest.approx(expected[1], abs=1e-3)  # some are clipped
    assert abs(expected[1]) < 0.5  # and not all on one side


@pytest.mark.parametrize("objective", ["mean", "clipped"])
@pytest.mark.parametrize("of", ["scores", "encoder"])
@pytest.mark.parametrize(("num_modalities", "num_classes"), [(1, 3), (2, 2), (3, 4)])
def test_integration_objective_has_the_gradient_of_finite_differences(num_modalities, num_classes, of, objective):
    head, features, target, constants = step2(num_modalities, num_classes, of)

    class Step2(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = head

        def forward(self):
            output = self.head(features)
            return integration_objective(output, target, self.head, constants, objective=objective, clip=2.0)

    stage = Step2()
    names = [f"head.raw_weights.{name}" for name in head.in_features]
    weights = [dict(stage.named_parameters())[name].detach().clone().requires_grad_(True) for name in names]

    def function(*values):
        return torch.func.functional_call(stage, dict(zip(names, values, strict=True)))

    assert torch.autograd.gradcheck(function, weights)
    assert all(gradient.abs().max() > 1e-3 for gradient in torch.autograd.grad(function(*weights), weights))


@pytest.mark.parametrize("of", ["scores", "encoder"])
@pytest.mark.parametrize("scale", [1e-2, 7.0, 1e2])
def test_scaling_all_weights_does_not_change_the_objective_without_bias(of, scale):
    head, features, target, constants = step2(3, 4, of)
    nn.init.zeros_(head.bias)

    def objective():
        return integration_objective(head(features), target, head, constants, objective="mean")

    before = objective()
    with torch.no_grad():
        head.raw_weights["m0"].mul_(scale)
    assert not torch.isclose(objective(), before)  # scaling one of them does
    with torch.no_grad():
        head.raw_weights["m1"].mul_(scale)
        head.raw_weights["m2"].mul_(scale)
    assert_close(objective(), before)


def test_step2_moves_weight_away_from_the_vulnerable_modality():
    head = oracles.OrthogonalFusion({"robust": 3, "vulnerable": 3}, num_classes=3).double()
    directions = head.directions
    target = torch.arange(3)
    features = {name: rows[target].detach() for name, rows in directions.items()}  # both modalities are right
    tau = {"robust": torch.ones(3), "vulnerable": torch.full((3,), 10.0)}
    constants = LipschitzConstants(tau, of="scores", soundness=Soundness.ESTIMATED)
    integration_objective(head(features), target, head, constants, objective="mean").backward()
    assert head.raw_weights["robust"].grad.sum() < 0
    assert head.raw_weights["vulnerable"].grad.sum() > 0


def test_a_tie_has_the_gradient_of_the_quotient():
    head = oracles.OrthogonalFusion({"a": 2}, num_classes=2).double()
    constants = LipschitzConstants({"a": torch.full((2,), 10.0)}, of="scores", soundness=Soundness.ESTIMATED)
    scores = torch.ones(1, 2, dtype=torch.float64)
    output = FusionOutput(head.fuse({"a": scores}), {"a": scores})
    integration_objective(output, torch.tensor([0]), head, constants, objective="mean").backward()
    assert_close(head.raw_weights["a"].grad, torch.tensor([-0.05, 0.05], dtype=torch.float64))  # 1 / (10 + 10)


def test_clipped_samples_have_no_gradient():
    head, features, target, constants = step2()
    integration_objective(head(features), target, head, constants, clip=1e-6).backward()
    assert all(parameter.grad.eq(0).all() for parameter in head.integration_parameters())


def test_objective_and_gradient_are_finite_where_weights_vanish():
    head, features, target, constants = step2(2, 3, "encoder", torch.float32)
    nn.init.zeros_(head.bias)
    with torch.no_grad():
        for weight in head.integration_parameters():
            weight[:2] = 0
    loss = integration_objective(head(features), target, head, constants, clip=1.0)
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in head.integration_parameters())


def test_a_wrong_prediction_counts_negative():
    head = LinearFusion({"a": 2}, num_classes=2)
    with torch.no_grad():
        head.rows["a"].copy_(torch.eye(2))
        head.bias.zero_()
    output = head({"a": torch.tensor([[3.0, 1.0]])})
    constants = LipschitzConstants({"a": torch.tensor(1.0)}, of="encoder", soundness=Soundness.SOUND)
    for target, expected in ((0, -math.sqrt(2)), (1, math.sqrt(2))):
        loss = integration_objective(output, torch.tensor([target]), head, constants, objective="mean")
        assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "median"}, "`objective` must be one of ('mean', 'clipped'), got 'median'"),
        ({}, "`clip` must be above 0 for the clipped objective, got None"),
        ({"clip": 0.0}, "`clip` must be above 0 for the clipped objective, got 0.0"),
        ({"clip": float("nan")}, "`clip` must be above 0 for the clipped objective, got nan"),
        ({"clip": 1.0, "of": "margins"}, "`lipschitz` must be of 'encoder' or 'scores'"),
        ({"clip": 1.0, "target": torch.full((9,), 4)}, "`target` must hold class indices from 0 to 3"),
        ({"clip": 1.0, "target": torch.tensor([0])}, "`target` must have shape (9,)"),
        ({"clip": 1.0, "logits": torch.full((9, 4), torch.nan)}, "`logits` must be finite: 36 NaN and 0 Inf"),
        ({"clip": 1.0, "modalities": 3}, "`lipschitz` must hold exactly the modalities ['m0', 'm1']"),
    ],
)
def test_integration_objective_refuses(options, message):
    head, features, target, _ = step2()
    other = oracles.random_head(options.pop("modalities", 2), 4)
    constants = oracles.random_constants(other, options.pop("of", "scores"))
    output = head(features)
    output = FusionOutput(options.pop("logits", output.logits), output.scores)
    with pytest.raises(ValueError, match=re.escape(message)):
        integration_objective(output, options.pop("target", target), head, constants, **options)
