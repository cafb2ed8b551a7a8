# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
import math
import re

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback
from torch import nn

from lightning_crmt import CRMTModule, LinearFusion, LipschitzConstants, OrthogonalFusion, Soundness
from lightning_crmt.callbacks import CertifiedRobustness, IntegrationReweighting, RadiusTraining
from lightning_crmt.encoders import MLP, LipschitzMLP
from lightning_crmt.losses import radius_loss


def problem(kind, dtype, modalities=2):
    torch.manual_seed(0)
    sizes = {f"m{i}": 5 + i for i in range(modalities)}
    head = kind(sizes, 4).to(dtype)
    with torch.no_grad():
        for parameter in head.integration_parameters():
            parameter.uniform_(0.2, 2)
        head.bias.normal_()
    features = {name: torch.randn(6, size, dtype=dtype) for name, size in sizes.items()}
    constants = {name: torch.tensor(0.5 + i, dtype=dtype) for i, name in enumerate(sizes)}
    return head, features, LipschitzConstants(constants, of="encoder", soundness=Soundness.SOUND)


def by_loops(head, features, lipschitz, target, radius, temperature, rho):
    """The formula of the docstring, sample by sample, rival by rival."""
    rows = {name: w.tolist() for name, w in head.class_weights.items()}
    bias, total = head.bias.tolist(), 0.0

    def soft(rivals, wanted):
        return math.log1p(sum(math.exp(temperature * (wanted - r)) for r in rivals))

    for i, y in enumerate(target.tolist()):
        joint, alone = [], {name: [] for name in rows}
        for j in range(4):
            if j == y:
                continue
            margin, squares = bias[y] - bias[j], 0.0
            for name, w in rows.items():
                z = features[name][i].tolist()
                own = sum((p - q) * v for p, q, v in zip(w[y], w[j], z, strict=True))
                slope = lipschitz.values[name].item() * math.dist(w[y], w[j])
                margin, squares = margin + own, squares + slope**2
                alone[name].append(own / slope)
            joint.append(margin / math.sqrt(squares))
        total += soft(joint, radius) + rho * sum(soft(rivals, radius / 2) for rivals in alone.values())
    return total / len(target)


@pytest.mark.parametrize("kind", [LinearFusion, OrthogonalFusion])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("modalities", [1, 3])
def test_the_loss_is_the_formula(kind, dtype, modalities):
    head, features, lipschitz = problem(kind, dtype, modalities)
    target = torch.arange(6) % 4
    settings = {"radius": 0.3, "temperature": 4.0, "rho": 0.7}
    loss = radius_loss(head(features), target, head, lipschitz, **settings)
    assert loss.item() == pytest.approx(by_loops(head, features, lipschitz, target, **settings), rel=1e-5)


def test_its_gradient_is_right():
    head, features, lipschitz = problem(OrthogonalFusion, torch.float64)
    names, target = list(features), torch.arange(6) % 4

    def loss(*values):
        return radius_loss(head(dict(zip(names, values, strict=True))), target, head, lipschitz, temperature=3.0)

    assert torch.autograd.gradcheck(loss, [features[name].requires_grad_(True) for name in names])


def test_scaling_the_logits_up_changes_nothing():
    head, features, lipschitz = problem(LinearFusion, torch.float64)
    target = torch.arange(6) % 4
    before = radius_loss(head(features), target, head, lipschitz)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(100)
    torch.testing.assert_close(radius_loss(head(features), target, head, lipschitz), before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"radius": 0.0}, "`radius` must be above 0, got 0.0"),
        ({"temperature": -1.0}, "`temperature` must be above 0, got -1.0"),
        ({"rho": -0.1}, "`rho` must be at least 0, got -0.1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    head, features, lipschitz = problem(LinearFusion, torch.float32)
    with pytest.raises(ValueError, match=re.escape(message)):
        radius_loss(head(features), torch.arange(6) % 4, head, lipschitz, **settings)
    with pytest.raises(ValueError, match=re.escape(message)):
        RadiusTraining(**settings)


def model(**settings):
    seed_everything(0, verbose=False)
    encoders = {"fou": LipschitzMLP(76, 16, (16,)), "mor": LipschitzMLP(6, 16, ())}
    optimizer = lambda groups: torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.0)  # noqa: E731
    return CRMTModule(encoders, num_classes=10, optimizer=optimizer, **settings)


def test_it_trains_what_is_certified(data, make_trainer):
    def certified(*callbacks):
        trained = model(head=LinearFusion)
        make_trainer(*callbacks, max_epochs=30, limit_val_batches=0).fit(trained, datamodule=data)
        assert trained.training_stage.objective is None
        (found,) = make_trainer(CertifiedRobustness([0.3])).test(trained, datamodule=data, verbose=False)
        return found["test/certified_accuracy/joint@0.3"]

    assert certified(RadiusTraining(0.3)) > certified() + 0.02


def test_step_two_follows(data, make_trainer):
    names = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, *rest):
            names.append(pl_module.stage_objective.name)

    step_2 = IntegrationReweighting(constants="sound")
    make_trainer(RadiusTraining(), step_2, Watch(), max_epochs=2).fit(model(), datamodule=data)
    assert names == ["radius_loss"] * 12
    assert step_2.reweighted.objective[-1] < step_2.reweighted.objective[0]


def test_an_encoder_without_a_bound_is_named(data, make_trainer):
    encoders = {"fou": nn.Sequential(nn.Linear(76, 16), nn.LayerNorm(16)), "mor": MLP(6, 16)}
    odd = CRMTModule(encoders, num_classes=10, in_features={"fou": 16})
    with pytest.raises(ValueError, match="the encoder of 'fou': no Lipschitz bound is known for '1', a LayerNorm"):
        make_trainer(RadiusTraining()).fit(odd, datamodule=data)
