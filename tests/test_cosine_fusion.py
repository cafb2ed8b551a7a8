# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The cosine head."""

import math

import pytest
import torch

from lightning_crmt import CRMTModule, LipschitzConstants, Soundness, certify
from lightning_crmt.callbacks import IntegrationReweighting
from lightning_crmt.encoders import MLP
from lightning_crmt.fusion import CosineFusion


def test_logits_by_hand():
    torch.manual_seed(0)
    head = CosineFusion({"a": 3, "b": 4, "c": 5}, num_classes=4, scale=12.0)
    features = {"a": torch.randn(6, 3), "b": torch.randn(6, 4), "c": torch.randn(6, 5)}
    output = head(features)
    for i in range(6):
        for k in range(4):
            total = 0.0
            for name, z in features.items():
                row, value = head.rows[name][k].tolist(), z[i].tolist()
                part = (
                    12 * sum(x * y for x, y in zip(row, value, strict=True)) / (math.hypot(*row) * math.hypot(*value))
                )
                assert output.scores[name][i, k].item() == pytest.approx(part, abs=1e-4)
                total += part
            assert output.logits[i, k].item() == pytest.approx(total, abs=1e-4)
    unimodal = head.unimodal_logits(output.scores)
    torch.testing.assert_close(torch.stack(list(unimodal.values())).sum(0), output.logits)
    assert output.features["a"] is features["a"]


def test_no_modality_wins_by_its_norm():
    torch.manual_seed(0)
    head = CosineFusion({"a": 3, "b": 4}, num_classes=4)
    features = {"a": torch.randn(6, 3), "b": torch.randn(6, 4)}
    before = head(features)
    with torch.no_grad():
        head.rows["a"] *= 7
    after = head({"a": 100 * features["a"], "b": 0.01 * features["b"]})
    torch.testing.assert_close(after.logits, before.logits)


def test_features_of_norm_zero_add_nothing_and_have_finite_gradients():
    head = CosineFusion({"a": 3, "b": 4}, num_classes=4)
    features = {"a": torch.zeros(2, 3, requires_grad=True), "b": torch.ones(2, 4, requires_grad=True)}
    output = head(features)
    assert not output.scores["a"].any()
    output.logits.square().sum().backward()
    assert not features["a"].grad.any()
    assert all(p.grad.isfinite().all() for p in head.rows.values())


def test_it_learns_in_mixed_precision(make_trainer, data):
    torch.manual_seed(0)
    settings = {"head": CosineFusion, "optimizer": lambda groups: torch.optim.AdamW(groups, lr=0.01)}
    module = CRMTModule({"fou": MLP(76, 16), "mor": MLP(6, 16)}, num_classes=10, rho=0.0, **settings)
    trainer = make_trainer(max_epochs=5, precision="bf16-mixed")
    trainer.fit(module, data)
    assert trainer.callback_metrics["val/accuracy/joint"] > 0.75


def test_nothing_is_certified_and_there_is_no_step_two(make_model, make_trainer, data):
    module = make_model(head=CosineFusion)
    data.setup()
    inputs = {name: x[:2] for name, x in data.parts["val"].inputs.items()}
    with pytest.raises(TypeError, match="`head`, a LateFusion"):
        module.certify(inputs)
    ones = LipschitzConstants({"fou": torch.tensor(1.0), "mor": torch.tensor(1.0)}, "encoder", Soundness.SOUND)
    with pytest.raises(ValueError, match="`head` must be late fusion"):
        certify(module.eval()(inputs), module.head, ones)
    with pytest.raises(TypeError, match="needs late fusion"):
        make_trainer(IntegrationReweighting(epochs=1)).fit(module, data)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf")])
def test_bad_scale(scale):
    with pytest.raises(ValueError, match="`scale` must be above 0"):
        CosineFusion({"a": 3}, num_classes=4, scale=scale)


def test_bad_features():
    head = CosineFusion({"a": 3}, num_classes=4)
    with pytest.raises(ValueError, match=r"`features\['a'\]` must have shape \(B, 3\)"):
        head({"a": torch.zeros(2, 4)})
    with pytest.raises(ValueError, match="must hold exactly the modalities"):
        head({"b": torch.zeros(2, 3)})
