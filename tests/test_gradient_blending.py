# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Weights from loss curves, and losses weighed by them."""

import pytest
import torch
from torch import nn

from lightning_crmt import CRMTModule, LinearFusion
from lightning_crmt.callbacks import IntegrationReweighting, RadiusTraining
from lightning_crmt.data import UCIMultiFeatures
from lightning_crmt.encoders import MLP, LipschitzMLP
from lightning_crmt.methods import GradientBlending, Method, Mixup, blending_weights
from lightning_crmt.targets import MixedTarget

cross = nn.functional.cross_entropy


def three_views():
    torch.manual_seed(0)
    encoders = {"fou": MLP(76, 16), "mor": MLP(6, 16), "zer": MLP(47, 16)}
    return CRMTModule(encoders, num_classes=10, rho=0.0, head=LinearFusion)


def test_weights_by_hand():
    train = {"audio": [2.0, 0.9, 0.4], "image": [2.2, 1.4, 1.0], "joint": [2.1, 0.5, 0.1]}
    val = {"audio": [2.1, 1.6, 1.7], "image": [2.2, 1.5, 1.2], "joint": [2.0, 1.3, 1.4]}
    # Gains 0.4, 1.0, 0.6; overfitting (1.7 - 0.4) - (2.1 - 2.0) = 1.2, (1.2 - 1.0) - 0 = 0.2, 1.3 - (-0.1) = 1.4.
    worth = {"audio": 0.4 / 1.2**2, "image": 1.0 / 0.2**2, "joint": 0.6 / 1.4**2}
    total = sum(worth.values())
    found = blending_weights(train, val)
    assert found == pytest.approx({head: value / total for head, value in worth.items()})
    assert found["image"] > found["joint"] > found["audio"]  # what generalises most and overfits least


def test_absolute_values_and_the_floor():
    found = blending_weights({"a": [1.0, 1.0], "b": [1.0, 0.0]}, {"a": [1.0, 1.0], "b": [1.0, 1.2]})
    assert found == {"a": 0.0, "b": 1.0}  # a lost nothing and gained nothing
    found = blending_weights({"a": [1.0, 0.5], "b": [1.0, 0.5]}, {"a": [1.0, 0.5], "b": [1.0, 0.6]}, floor=0.05)
    worth = 0.5 / 0.05**2, 0.4 / 0.1**2
    assert found == pytest.approx({"a": worth[0] / sum(worth), "b": worth[1] / sum(worth)})
    assert blending_weights({"a": [1, 0], "b": [1, 0]}, {"a": [1, 1], "b": [1, 1]}) == {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize("heads", ["own", "separate"])
def test_the_whole_loss_is_the_weighted_sum(heads):
    module = three_views()
    weights = {"fou": 0.1, "mor": 0.4, "zer": 0.2, "joint": 0.3}
    method = GradientBlending(weights, super_epoch=None, heads=heads)
    method.weights = weights
    method.readout.attach(module, method)
    module.training_stage.push(method, method=method)
    inputs = {"fou": torch.randn(7, 76), "mor": torch.randn(7, 6), "zer": torch.randn(7, 47)}
    y = torch.arange(7)
    output = module(inputs)
    alone = method.readout.logits(module, output, method)
    logits = {**alone, "joint": output.logits}
    expected = sum(weights[head] * cross(logits[head], y) for head in weights)
    torch.testing.assert_close(module.crmt_loss(output, y), expected)
    mixed = MixedTarget(y, y.flip(0), 0.2)
    expected = sum(w * (0.2 * cross(logits[k], y) + 0.8 * cross(logits[k], y.flip(0))) for k, w in weights.items())
    torch.testing.assert_close(module.crmt_loss(output, mixed), expected)


class Watching(Method):
    """Losses of all heads on whole parts, measured apart from the method, and its weights, for every epoch."""

    def __init__(self, method, data):
        self.method, self.data = method, data
        self.losses, self.weights = [], []

    def on_train_epoch_start(self, trainer, pl_module):
        modes = {module: module.training for module in pl_module.modules()}
        pl_module.eval()
        found = {}
        with torch.no_grad():
            for name in ("train", "val"):
                part = self.data.parts[name]
                output = pl_module(part.inputs)
                logits = {**self.method.readout.logits(pl_module, output, self), "joint": output.logits}
                found[name] = {head: cross(value, part.target).item() for head, value in logits.items()}
        for module, mode in modes.items():
            module.training = mode
        self.losses.append(found)
        self.weights.append(self.method.weights)


@pytest.mark.parametrize("settings", [{}, {"check_val_every_n_epoch": 3}, {"accumulate_grad_batches": 2}])
def test_online_weights_follow_the_losses_of_each_super_epoch(settings, make_trainer):
    data = UCIMultiFeatures(views=("fou", "mor", "zer"), batch_size=190)  # of 1200: the last batch is smaller
    method = GradientBlending(super_epoch=2)
    watching = Watching(method, data)
    trainer = make_trainer(method, watching, max_epochs=6, **settings)
    trainer.fit(three_views(), data)
    equal = dict.fromkeys(("fou", "mor", "zer", "joint"), 0.25)
    assert watching.weights[:2] == [equal, equal]
    for start in (2, 4):
        before, after = watching.losses[start - 2], watching.losses[start]
        curves = [{head: [before[part][head], after[part][head]] for head in equal} for part in ("train", "val")]
        expected = blending_weights(*curves)
        # The gap is a difference of nearly equal numbers, measured in another order of samples.
        assert watching.weights[start] == watching.weights[start + 1] == pytest.approx(expected, rel=1e-2)
        assert watching.weights[start] != watching.weights[start - 1]
    logged = {head: trainer.callback_metrics[f"train/blending_weight/{head}"].item() for head in equal}
    assert logged == pytest.approx(method.weights)


def test_measuring_leaves_no_trace_but_the_weights(make_model, make_trainer, data):
    """The same weights, measured or given: the passes draw no randomness and touch no buffer."""

    def fit(**settings):
        module = make_model()
        method = GradientBlending({"fou": 0.2, "mor": 0.3, "joint": 0.5}, **settings)
        make_trainer(method, max_epochs=2).fit(module, data)
        return module.state_dict()

    measured, given = fit(super_epoch=2), fit(super_epoch=None)
    assert all(value.equal(given[name]) for name, value in measured.items())


def test_composes(make_model, make_trainer, data):
    module = make_model()
    callbacks = [Mixup(), GradientBlending(super_epoch=1), IntegrationReweighting(epochs=1)]
    make_trainer(*callbacks, max_epochs=3, precision="bf16-mixed").fit(module, data)
    assert all(value.isfinite().all() for value in module.state_dict().values())
    make_trainer(GradientBlending(), fast_dev_run=1).fit(make_model(), data)


def test_what_a_fit_refuses(make_model, make_trainer, data):
    with pytest.raises(ValueError, match=r"`weights` must hold exactly the modalities \['fou', 'mor', 'joint'\]"):
        make_trainer(GradientBlending({"fou": 1.0, "mor": 1.0})).fit(make_model(), data)
    data.setup()
    alone = data.train_dataloader()
    with pytest.raises(ValueError, match="GradientBlending needs validation data in the fit, got none"):
        make_trainer(GradientBlending(), limit_val_batches=0).fit(make_model(), data)
    with pytest.raises(TypeError, match="GradientBlending needs one validation loader, got a list"):
        make_trainer(GradientBlending()).fit(make_model(), alone, [data.val_dataloader(), data.val_dataloader()])
    sound = {"fou": LipschitzMLP(76, 16), "mor": LipschitzMLP(6, 16)}
    with pytest.raises(ValueError, match="another loss replaces it: got 'radius_loss'"):
        make_trainer(GradientBlending(), RadiusTraining()).fit(CRMTModule(sound, num_classes=10), data)
    joint = CRMTModule({"joint": MLP(6, 16)}, num_classes=10)
    with pytest.raises(ValueError, match="`encoders` must not hold a modality named 'joint'"):
        make_trainer(GradientBlending()).fit(joint, data)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GradientBlending(super_epoch=None), "give `weights`, or `super_epoch` to estimate them"),
        (lambda: GradientBlending(super_epoch=0), "`super_epoch` must be at least 1, got 0"),
        (lambda: GradientBlending({"a": 0.0}), "`weights` must be at least 0, and not all 0"),
        (lambda: GradientBlending(floor=0.0), "`floor` must be above 0, got 0.0"),
        (lambda: blending_weights({"a": [1, 2]}, {"a": [1, 2]}, floor=0), "`floor` must be above 0, got 0"),
        (lambda: blending_weights({"a": [1, 2]}, {"b": [1, 2]}), r"of the same heads, got \['a'\] and \['b'\]"),
        (lambda: blending_weights({"a": [1]}, {"a": [1, 2]}), r"`train\['a'\]` must hold at least two finite"),
        (lambda: blending_weights({"a": [1, 2]}, {"a": [1, float("nan")]}), r"`val\['a'\]` must hold at least two"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
