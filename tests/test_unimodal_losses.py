# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Losses of each modality, from heads that live for the fit or from the module's own."""

import math

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_crmt import LinearFusion
from lightning_crmt.callbacks import IntegrationReweighting
from lightning_crmt.encoders import MLP
from lightning_crmt.fusion import AttentionFusion
from lightning_crmt.methods import GradientBlending, Mixup, UnimodalLosses
from lightning_crmt.modality import FusionOutput
from lightning_crmt.module import CRMTModule
from lightning_crmt.targets import MixedTarget

cross = nn.functional.cross_entropy


def batch(size=7):
    torch.manual_seed(0)
    return {"fou": torch.randn(size, 76), "mor": torch.randn(size, 6)}, torch.arange(size) % 10


def slow_cross_entropy(logits, classes):
    total = 0.0
    for row, y in zip(logits.tolist(), classes.tolist(), strict=True):
        total += math.log(sum(math.exp(value) for value in row)) - row[y]
    return total / len(classes)


@pytest.mark.parametrize("weight", [0.5, {"fou": 2.0, "mor": 0.25}])
def test_separate_heads_by_hand(weight, make_model):
    module, method = make_model().eval(), UnimodalLosses(weight)
    method.readout.attach(module, method)
    inputs, y = batch()
    output = module(inputs)
    expected = 0.0
    for name, features in output.features.items():
        heads = method.readout.heads
        logits = features @ heads[name].weight.T + heads[name].bias
        expected += (weight if isinstance(weight, float) else weight[name]) * slow_cross_entropy(logits, y)
    assert method.term(module, output, y).item() == pytest.approx(expected, abs=1e-5)
    mixed = MixedTarget(y, y.flip(0), 0.3)
    found = method.term(module, output, mixed)
    one, other = (method.term(module, output, classes) for classes in mixed[:2])
    torch.testing.assert_close(found, 0.3 * one + 0.7 * other)


def test_own_logits_by_hand(make_model):
    module, method = make_model(head=LinearFusion).eval(), UnimodalLosses(weight=2.0, heads="own")
    nn.init.normal_(module.head.bias)
    inputs, y = batch()
    output = module(inputs)
    parts = [z @ module.head.rows[name].T + module.head.bias / 2 for name, z in output.features.items()]
    expected = 2 * sum(slow_cross_entropy(logits, y) for logits in parts)
    method.readout.attach(module, method)
    assert method.term(module, output, y).item() == pytest.approx(expected, abs=1e-5)
    assert method.state_dict() == {}


def test_the_loss_of_a_modality_trains_it_alone(make_model):
    module, method = make_model().eval(), UnimodalLosses({"fou": 1.0, "mor": 0.0})
    method.readout.attach(module, method)
    inputs, y = batch()
    method.term(module, module(inputs), y).backward()
    assert any(p.grad.any() for p in module.encoders["fou"].parameters())
    assert not any(p.grad.any() for p in module.encoders["mor"].parameters())


def test_features_of_sequences_are_averaged():
    torch.manual_seed(0)
    encoders = {"text": nn.Linear(5, 8), "audio": nn.Linear(3, 8)}
    module = CRMTModule(encoders, num_classes=3, rho=0.0, head=AttentionFusion)
    method = UnimodalLosses()
    method.readout.attach(module, method)
    output = module({"text": torch.randn(4, 6, 5), "audio": torch.randn(4, 3)})
    heads = method.readout.heads
    text = output.features["text"].mean(dim=1) @ heads["text"].weight.T + heads["text"].bias
    audio = output.features["audio"] @ heads["audio"].weight.T + heads["audio"].bias
    y = torch.tensor([0, 1, 2, 0])
    torch.testing.assert_close(method.term(module, output, y), cross(text, y) + cross(audio, y))


def test_heads_are_trained_and_gone_afterwards(make_model, make_trainer, data):
    module, method = make_model(), UnimodalLosses()
    keys = module.state_dict().keys()
    before = {}

    class Start(Mixup):
        def on_train_start(self, trainer, pl_module):
            before.update(method.state_dict())
            optimized = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
            assert all(id(p) in optimized for p in method.readout.heads.parameters())

    make_trainer(method, Start(), max_epochs=1, precision="bf16-mixed").fit(module, data)
    assert len(before) == 4
    assert not any(value.equal(before[name]) for name, value in method.state_dict().items())
    assert module.state_dict().keys() == keys
    assert not any("auxiliary" in name for name, _ in module.named_modules())


def test_each_modality_gets_better(make_trainer, data):
    """Joint training leaves the uni-modal parts of the logits behind; the method is there to mend that."""

    def fit(*callbacks):
        torch.manual_seed(0)
        encoders = {"fou": MLP(76, 16), "mor": MLP(6, 16)}
        settings = {"head": LinearFusion, "optimizer": lambda groups: torch.optim.AdamW(groups, lr=0.01)}
        module = CRMTModule(encoders, num_classes=10, rho=0.0, **settings)
        trainer = make_trainer(*callbacks, max_epochs=5)
        trainer.fit(module, data)
        return [trainer.callback_metrics[f"val/accuracy/{name}"].item() for name in ("fou", "mor")]

    assert all(better > joint + 0.1 for better, joint in zip(fit(UnimodalLosses(heads="own")), fit(), strict=True))


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("make", [UnimodalLosses, lambda: GradientBlending(super_epoch=2)])
def test_a_resumed_run_equals_the_uninterrupted_one(make, make_model, data, make_trainer, tmp_path):
    def fit(module, **settings):
        module.encoders["fou"][3].p = 0.0  # Lightning does not restore the random state that Dropout draws from
        saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        method = make()
        make_trainer(method, saving, max_epochs=4, enable_checkpointing=True).fit(module, data, **settings)
        return {**module.state_dict(), **method.readout.state_dict()}, getattr(method, "weights", None)

    whole, weights = fit(make_model(seed=0))
    for epoch in (0, 1):
        saved = tmp_path / f"epoch={epoch}.ckpt"
        resumed, same = fit(make_model(seed=1), ckpt_path=saved)
        assert [name for name in whole if not whole[name].equal(resumed[name])] == []
        assert weights == same


@pytest.mark.filterwarnings("ignore:Be aware that when using .ckpt_path., callbacks")  # Lightning's, of all state
def test_a_checkpoint_is_tested_and_loaded_without_the_method(make_model, make_trainer, data, tmp_path):
    module, method = make_model(), UnimodalLosses()
    trainer = make_trainer(method, max_epochs=1)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    saved = torch.load(tmp_path / "after.ckpt", weights_only=True)
    assert saved["state_dict"].keys() == make_model().state_dict().keys()
    assert len(saved["callbacks"]["UnimodalLosses"]) == 4
    (found,) = make_trainer().test(make_model(seed=1), data, ckpt_path=tmp_path / "after.ckpt", verbose=False)
    (again,) = make_trainer(UnimodalLosses()).test(module, data, verbose=False)
    assert found == again


def test_composes_with_mixed_samples_accumulation_and_step_two(make_model, make_trainer, data):
    module = make_model()
    callbacks = [Mixup(), UnimodalLosses(), IntegrationReweighting(epochs=1)]
    make_trainer(*callbacks, max_epochs=2, accumulate_grad_batches=4).fit(module, data)
    assert all(value.isfinite().all() for value in module.state_dict().values())


def test_used_again_the_heads_are_fresh(make_model, make_trainer, data):
    method = UnimodalLosses()
    make_trainer(method, max_epochs=1).fit(make_model(), data)
    first = method.readout.heads
    module = make_model()
    make_trainer(method, max_epochs=1).fit(module, data)
    assert method.readout.heads is not first
    assert not any("auxiliary" in name for name, _ in module.named_modules())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UnimodalLosses(-1.0), "`weight` must be at least 0, got -1.0"),
        (lambda: UnimodalLosses({"fou": -1.0}), "`weight` must be at least 0"),
        (lambda: UnimodalLosses(heads="mine"), "`heads` must be 'separate' or 'own', got 'mine'"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_a_fit_refuses(make_model, make_trainer, data):
    with pytest.raises(ValueError, match=r"`weight` must hold exactly the modalities \['fou', 'mor'\]"):
        make_trainer(UnimodalLosses({"fou": 1.0})).fit(make_model(), data)
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `UnimodalLosses`"):
        make_trainer(UnimodalLosses(), UnimodalLosses())
    module = make_model()
    output = FusionOutput(torch.zeros(1, 10), {})
    method = UnimodalLosses()
    with pytest.raises(RuntimeError, match="UnimodalLosses has its heads within a fit only"):
        method.term(module, output, torch.tensor([0]))
    method.readout.attach(module, method)
    with pytest.raises(ValueError, match="UnimodalLosses reads the features of each modality"):
        method.term(module, output, torch.tensor([0]))


def test_two_methods_have_heads_of_their_own(make_trainer, data):
    encoders = {"fou": MLP(76, 16), "mor": MLP(6, 16)}
    module = CRMTModule(encoders, num_classes=10, rho=0.0)
    one, other = UnimodalLosses(), GradientBlending(super_epoch=1)
    make_trainer(one, other, max_epochs=1).fit(module, data)
    assert one.readout.heads is not other.readout.heads
    assert not one.readout.heads["fou"].weight.equal(other.readout.heads["fou"].weight)
