# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Training on the radius where modalities are missing: the radius is that of what is present."""

import math

import pytest
import torch
from lightning.pytorch import seed_everything

from lightning_crmt import CRMTModule, LinearFusion, LipschitzConstants, Soundness
from lightning_crmt.attacks import PGD, Budget
from lightning_crmt.callbacks import CertifiedRobustness, RadiusTraining
from lightning_crmt.encoders import LipschitzMLP
from lightning_crmt.losses import EMMA, Hinge, LogitAnnealing, radius_loss
from lightning_crmt.methods import ModalityDropout


@pytest.mark.parametrize("objective", [Hinge(4.0), EMMA(), LogitAnnealing(offset=0.5, focus=1.0)])
def test_the_loss_is_of_what_each_sample_has(objective):
    torch.manual_seed(0)
    head = LinearFusion({"a": 5, "b": 3}, 4).double()
    features = {"a": torch.randn(6, 5).double(), "b": torch.randn(6, 3).double()}
    present = {"a": torch.tensor([1, 1, 0, 0, 1, 0]).bool(), "b": torch.tensor([1, 0, 1, 0, 1, 1]).bool()}
    lipschitz = LipschitzConstants(
        {"a": torch.tensor(0.5).double(), "b": torch.tensor(2.0).double()}, of="encoder", soundness=Soundness.SOUND
    )
    target = torch.arange(6) % 4
    loss = radius_loss(head(features, present), target, head, lipschitz, radius=0.3, rho=0.7, objective=objective)

    @torch.no_grad()
    def of(i, names, radius, bias):
        """The objective of one sample, rival by rival, from the modalities in ``names``."""
        y, margins, slopes = int(target[i]), [], []
        for j in range(4):
            differences = {n: head.class_weights[n][y] - head.class_weights[n][j] for n in names}
            own = sum(float(w @ features[n][i]) for n, w in differences.items())
            margins.append(own + (float(head.bias[y] - head.bias[j]) if bias else 0.0))
            slopes.append(math.hypot(*(float(lipschitz.values[n] * w.norm()) for n, w in differences.items())) or 1.0)
        rows = torch.tensor([margins], dtype=torch.float64), torch.tensor([slopes], dtype=torch.float64)
        return objective(*rows, (torch.arange(4) == y)[None], radius, False).item()

    has = [[n for n in present if present[n][i]] for i in range(6)]
    joint = [of(i, names, 0.3, bias=True) for i, names in enumerate(has) if names]
    alone = {n: [of(i, [n], 0.15, bias=False) for i, names in enumerate(has) if n in names] for n in present}
    expected = sum(joint) / 5 + 0.7 * sum(sum(each) / len(each) for each in alone.values())
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def trained(data, make_trainer, *methods, head=LinearFusion):
    seed_everything(0, verbose=False)
    encoders = {"fou": LipschitzMLP(76, 16, (16,)), "mor": LipschitzMLP(6, 16, ())}
    optimizer = lambda groups: torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.0)  # noqa: E731
    model = CRMTModule(encoders, num_classes=10, head=head, optimizer=optimizer)
    training = RadiusTraining(0.2, rho=0.0)
    make_trainer(training, *methods, max_epochs=20, limit_val_batches=0).fit(model, datamodule=data)
    return model


@pytest.mark.slow
def test_what_was_dropped_in_training_is_certified_without(data, make_trainer):
    def certified(*methods):
        model = trained(data, make_trainer, *methods)
        (found,) = make_trainer(CertifiedRobustness([0.05])).test(model, datamodule=data, verbose=False)
        return [found[f"test/certified_accuracy_dropped/{name}@0.05"] for name in ("fou", "mor")]

    for dropped, never in zip(certified(ModalityDropout(0.3)), certified(), strict=True):
        assert dropped > never + 0.03


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["fou", "mor"])
def test_no_attack_breaks_what_is_certified_with_a_modality_missing(missing, data, make_trainer):
    model = trained(data, make_trainer, ModalityDropout(0.3)).double()
    part = data.parts["test"]
    inputs = {name: value.double() for name, value in part.inputs.items()}
    inputs |= {f"{missing}.present": torch.zeros(len(part.target), dtype=torch.bool)}
    certificate = model.certify(inputs)
    whole = certificate.radius()
    for radius in (0.1, 0.2):
        attacked = PGD(Budget(radius), steps=20, targeted=True)(model, inputs, part.target)
        with torch.no_grad():
            right = model(attacked).logits.argmax(1) == part.target
        sure = (certificate.prediction == part.target) & (whole > radius)
        assert 20 < sure.sum() <= right.sum() < 400
        assert right[sure].all()
