# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
import copy
import io
import pickle
import re

import pytest
import torch
from support import oracles
from torch import nn
from torch.testing import assert_close

from lightning_crmt import FusionOutput, LinearFusion, OrthogonalFusion, fusion

HEADS = (OrthogonalFusion, LinearFusion)


def assert_orthonormal(head, tolerance=1e-6):
    for name, rows in head.directions.items():
        assert rows.shape == (head.num_classes, head.in_features[name])
        error = (rows.double() @ rows.double().mT - torch.eye(head.num_classes)).abs().max()
        assert error < tolerance, (name, error)


def outputs_of(head, features):
    output = head(features)
    return {"logits": output.logits, **output.scores}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(("learning_rate", "num_modalities"), [(1e-2, 2), (1.0, 3)])
def test_directions_stay_orthonormal_and_weights_non_negative(autocast, learning_rate, num_modalities):
    head = oracles.random_head(num_modalities, 5)
    encoders = nn.ModuleDict({name: nn.Linear(8, size) for name, size in head.in_features.items()})
    optimizer = torch.optim.AdamW([*head.parameters(), *encoders.parameters()], lr=learning_rate, weight_decay=0.1)
    inputs, target = torch.randn(32, 8), torch.randint(5, (32,))
    before, crossed = head.directions, False
    for _ in range(200):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = head({name: encoder(inputs) for name, encoder in encoders.items()})
            assert_orthonormal(head)
        optimizer.zero_grad()
        # Pulling the weights towards zero makes the raw parameters cross it.
        pull = torch.stack(list(head.integration_weights.values())).sum()
        (nn.functional.cross_entropy(output.logits, target) + pull).backward()
        optimizer.step()
        crossed = crossed or any((raw < 0).any() for raw in head.integration_parameters())
        assert all((weight >= 0).all() for weight in head.integration_weights.values())
    assert crossed
    assert all((rows - before[name]).abs().max() > 0.01 for name, rows in head.directions.items())


@pytest.mark.parametrize("dtype", oracles.PRECISIONS)
def test_directions_are_orthonormal_from_any_parameter(dtype):
    head = oracles.random_head(2, 4, dtype=dtype)
    for scale in (1e-8, 1.0, 1e8):
        with torch.no_grad():
            for raw in head.raw_directions.values():
                raw.normal_().mul_(scale)
        assert_orthonormal(head, 1e-6 if dtype is torch.float32 else 1e-12)


def test_orthonormal_parameters_are_their_own_directions():
    head = OrthogonalFusion({"a": 7}, num_classes=4)
    assert_close(head.directions["a"], head.raw_directions["a"].detach(), atol=1e-6, rtol=0)


def test_directions_have_the_gradient_of_finite_differences():
    head = oracles.random_head(1, 3, dtype=torch.float64)
    raw, probe = head.raw_directions["m0"], torch.randn(3, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda _: head.directions["m0"] * probe, (raw,))


@pytest.mark.parametrize("num_modalities", [1, 2, 3, 6])
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("dtype", oracles.PRECISIONS)
def test_logits_are_weighted_scores_plus_bias(num_modalities, kind, dtype):
    head = oracles.random_head(num_modalities, 4, kind, dtype)
    features = oracles.random_features(head, 7)
    output = head(features)
    tolerance = {"atol": 2e-5, "rtol": 1e-6} if dtype is torch.float32 else {"atol": 1e-12, "rtol": 1e-12}
    for name, rows in head.directions.items():
        expected = [
            [sum(u * v for u, v in zip(w, z, strict=True)) for w in rows.tolist()] for z in features[name].tolist()
        ]
        assert_close(output.scores[name], torch.tensor(expected, dtype=dtype), **tolerance)
    for present in (list(features), list(features)[:1], list(features)[1:]):
        if present:
            expected = torch.tensor(oracles.fused_logits(output.scores, head, present), dtype=dtype)
            assert_close(head.fuse({name: output.scores[name] for name in present}), expected, **tolerance)
    assert output.logits.equal(head.fuse(output.scores))
    joint = sum(features[name] @ rows.mT for name, rows in head.class_weights.items()) + head.bias
    assert_close(output.logits, joint, **tolerance)


def test_linear_fusion_is_a_linear_layer_on_the_concatenation():
    torch.manual_seed(3)
    head = LinearFusion({"a": 3, "b": 5}, num_classes=4)
    torch.manual_seed(3)
    joint = nn.Linear(8, 4)
    a, b = torch.randn(6, 3), torch.randn(6, 5)
    assert_close(head({"b": b, "a": a}).logits, joint(torch.cat([a, b], dim=1)))
    assert all(weight.equal(torch.ones(4)) for weight in head.integration_weights.values())
    assert head.integration_parameters() == []


def test_linear_fusion_learns_as_the_linear_layer_does():
    head = oracles.random_head(2, 3, LinearFusion, torch.float64)
    features = oracles.random_features(head, 9)
    joint = nn.Linear(sum(head.in_features.values()), 3).double()
    with torch.no_grad():
        joint.weight.copy_(torch.cat(list(head.class_weights.values()), dim=1))
        joint.bias.copy_(head.bias)
    target = torch.randint(3, (9,))
    nn.functional.cross_entropy(head(features).logits, target).backward()
    nn.functional.cross_entropy(joint(torch.cat(list(features.values()), dim=1)), target).backward()
    assert_close(torch.cat([rows.grad for rows in head.rows.values()], dim=1), joint.weight.grad)
    assert_close(head.bias.grad, joint.bias.grad)


@pytest.mark.parametrize("kind", HEADS)
def test_order_of_modalities_does_not_matter(kind):
    head = oracles.random_head(3, 4, kind)
    features = oracles.random_features(head, 5)
    turned = kind(dict(reversed(head.in_features.items())), 4)
    turned.load_state_dict(head.state_dict())
    for name, value in outputs_of(head, features).items():
        assert_close(outputs_of(turned, dict(reversed(features.items())))[name], value)
        assert outputs_of(head, dict(reversed(features.items())))[name].equal(value)


@pytest.mark.parametrize("kind", HEADS)
def test_permuted_classes_permute_the_output(kind):
    head = oracles.random_head(2, 4, kind)
    features, order = oracles.random_features(head, 5), torch.tensor([2, 0, 3, 1])
    permuted = copy.deepcopy(head)
    with torch.no_grad():
        permuted.bias.copy_(head.bias[order])
        for name, rows in head.directions.items():
            (permuted.raw_directions if kind is OrthogonalFusion else permuted.rows)[name].copy_(rows[order])
        for new, old in zip(permuted.integration_parameters(), head.integration_parameters(), strict=True):
            new.copy_(old[order])
    for name, value in outputs_of(head, features).items():
        assert_close(outputs_of(permuted, features)[name], value[:, order], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", HEADS)
def test_half_precision_features_give_scores_in_the_precision_of_the_head(kind):
    head = oracles.random_head(2, 4, kind)
    half = {name: value.bfloat16() for name, value in oracles.random_features(head, 5).items()}
    expected = outputs_of(head, {name: value.float() for name, value in half.items()})
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found = outputs_of(head, half)
        for name, value in found.items():
            assert value.dtype is torch.float32
            assert value.equal(expected[name])


@pytest.mark.parametrize("kind", HEADS)
def test_double_precision_stays_double(kind):
    head = oracles.random_head(2, 4, kind, torch.float64)
    for value in outputs_of(head, oracles.random_features(head, 5)).values():
        assert value.dtype is torch.float64
    assert all(rows.dtype is torch.float64 for rows in head.class_weights.values())
    if kind is OrthogonalFusion:
        assert_orthonormal(head, 1e-14)


@pytest.mark.parametrize("kind", HEADS)
def test_copies_compute_the_same(kind):
    head = oracles.random_head(2, 4, kind)
    features = oracles.random_features(head, 5)
    file = io.BytesIO()
    torch.save(head.state_dict(), file)
    file.seek(0)
    loaded = oracles.random_head(2, 4, kind, seed=1)
    assert not loaded(features).logits.equal(head(features).logits)
    loaded.load_state_dict(torch.load(file))
    for twin in (copy.deepcopy(head), pickle.loads(pickle.dumps(head)), loaded):
        for name, value in outputs_of(head, features).items():
            assert outputs_of(twin, features)[name].equal(value)


def test_a_missing_modality_adds_nothing():
    head = oracles.random_head(2, 4)
    scores = head(oracles.random_features(head, 5)).scores
    zeros = torch.zeros_like(scores["m1"])
    assert head.fuse({"m0": scores["m0"]}).equal(head.fuse({"m0": scores["m0"], "m1": zeros}))


def test_integration_parameters_are_those_behind_the_weights():
    head = OrthogonalFusion({"a": 4, "b": 5}, num_classes=3, initial_weight=0.1)
    for parameter in head.integration_parameters():
        with torch.no_grad():
            parameter.mul_(-3)
    assert_close(head.integration_weights, {"a": torch.full((3,), 0.3), "b": torch.full((3,), 0.3)})


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize(
    ("in_features", "num_classes", "message"),
    [
        ({}, 3, "`in_features` must name at least one modality"),
        ({"a.b": 4}, 3, "`in_features` must have names that are non-empty strings without '.' and '/', got 'a.b'"),
        ({"a": 4}, 1, "`num_classes` must be at least 2, got 1"),
        ({"a": 4, "b": 0}, 3, "`in_features['b']` must be at least 1, got 0"),
    ],
)
def test_heads_that_cannot_be_built(kind, in_features, num_classes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        kind(in_features, num_classes)


def test_more_classes_than_features_are_refused_by_the_orthogonal_head_only():
    LinearFusion({"a": 4, "b": 2}, num_classes=3)
    with pytest.raises(ValueError, match=re.escape("`in_features['b']` must be at least `num_classes` = 3, got 2")):
        OrthogonalFusion({"a": 4, "b": 2}, num_classes=3)
    assert_orthonormal(OrthogonalFusion({"a": 3}, num_classes=3))


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_initial_weight_must_be_above_zero(weight):
    with pytest.raises(ValueError, match=f"`initial_weight` must be above 0, got {weight}"):
        OrthogonalFusion({"a": 4}, 3, initial_weight=weight)


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        ({"a": torch.zeros(2, 4)}, ValueError, "`features` must hold exactly the modalities ['a', 'b']; got ['a']"),
        ({"a": torch.zeros(2, 4), "b": torch.zeros(2, 4)}, ValueError, "`features['b']` must have shape (B, 5)"),
        ({"a": torch.zeros(2, 4), "b": torch.zeros(3, 5)}, ValueError, "one batch size, got {'a': 2, 'b': 3}"),
        ({"a": torch.zeros(2, 4), "b": torch.zeros(2, 5, 1)}, ValueError, "got a float32 tensor of shape (2, 5, 1)"),
        ({"a": torch.zeros(2, 4), "b": None}, TypeError, "`features['b']` must be a tensor, got a NoneType"),
    ],
)
def test_features_that_do_not_fit(features, error, message):
    with pytest.raises(error, match=re.escape(message)):
        OrthogonalFusion({"a": 4, "b": 5}, num_classes=3)(features)


@pytest.mark.parametrize("scores", [{}, {"a": torch.zeros(2, 3), "c": torch.zeros(2, 3)}])
def test_scores_that_cannot_be_fused(scores):
    message = f"`scores` must hold modalities among ['a', 'b'], got {list(scores)}"
    with pytest.raises(ValueError, match=re.escape(message)):
        OrthogonalFusion({"a": 4, "b": 5}, num_classes=3).fuse(scores)


class Sum(fusion.FusionHead):
    def forward(self, features):
        checked = self.checked(features)
        return FusionOutput(torch.stack(list(checked.values())).sum(dim=0), checked, checked)


def test_a_head_of_ones_own_has_its_features_checked():
    head = Sum({"a": 3, "b": 3}, num_classes=3)
    features = {"b": torch.ones(2, 3), "a": torch.zeros(2, 3)}
    assert list(head(features).features) == ["a", "b"]
    with pytest.raises(ValueError, match=re.escape("`features['b']` must have shape (B, 3), as in `in_features`")):
        head({**features, "b": torch.ones(2, 4)})
    with pytest.raises(ValueError, match=re.escape("missing ['a']")):
        head({"b": torch.ones(2, 3)})


@pytest.mark.parametrize(("old", "new"), [("Fusion", "LateFusion"), ("Head", "FusionHead")])
def test_old_names_of_heads_say_the_new_ones(old, new):
    with pytest.warns(DeprecationWarning, match=f"lightning_crmt.fusion.{old} is called {new} now"):
        assert getattr(fusion, old) is getattr(fusion, new)
