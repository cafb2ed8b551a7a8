# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Methods that change the batch, how they compose, and what the loss makes of mixed targets."""

import math

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn

from lightning_crmt import CRMTModule, LinearFusion, OrthogonalFusion, margin_regularization
from lightning_crmt.attacks import Budget, LossAscent
from lightning_crmt.callbacks import RadiusTraining
from lightning_crmt.methods import AdversarialTraining, Method, Mixup, ModalityDropout
from lightning_crmt.modality import FusionOutput
from lightning_crmt.targets import MixedTarget, mixed_loss

ATTACK = LossAscent(Budget(0.1))


class Watching(Method):
    """Keeps what reached the loss."""

    def __init__(self):
        self.seen = []

    def term(self, module, output, target):
        self.seen.append((output, target))


def batch(size=8):
    torch.manual_seed(0)
    return {"fou": torch.randn(size, 76), "mor": torch.randn(size, 6)}, torch.arange(size) % 10


def slow_mixed_margin(scores, target, temperature):
    total, count = 0.0, 0
    for i in range(len(target.first)):
        a, b, terms = int(target.first[i]), int(target.second[i]), []
        for score in scores.values():
            row = score[i].tolist()
            own = target.share * row[a] + (1 - target.share) * row[b]
            terms += [temperature * (row[k] - own) for k in range(len(row)) if k not in (a, b)]
        if terms:
            count += 1
            total += math.log(sum(math.exp(t) for t in terms))
    return total / max(count, 1)


@pytest.mark.parametrize("num_classes", [2, 3, 7])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_margin_of_mixed_samples(num_classes, temperature):
    torch.manual_seed(0)
    scores = {n: torch.randn(40, num_classes, dtype=torch.double, requires_grad=True) for n in ("a", "b", "c")}
    target = MixedTarget(torch.randint(num_classes, (40,)), torch.randint(num_classes, (40,)), 0.3)
    found = margin_regularization(scores, target, temperature)
    assert found.item() == pytest.approx(slow_mixed_margin(scores, target, temperature), abs=1e-9)
    assert all(g.isfinite().all() for g in torch.autograd.grad(found, list(scores.values())))


def test_equal_labels_are_the_plain_margin():
    scores, y = {"a": torch.randn(30, 4)}, torch.randint(4, (30,))
    mixed = margin_regularization(scores, MixedTarget(y, y, 0.3))
    assert mixed.item() == pytest.approx(margin_regularization(scores, y).item(), abs=1e-5)


def test_no_class_left_is_no_loss_and_no_gradient():
    scores = {"a": torch.randn(3, 2, requires_grad=True)}
    loss = margin_regularization(scores, MixedTarget(torch.tensor([0, 1, 0]), torch.tensor([1, 0, 1]), 0.5))
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, scores["a"])[0].any()


def test_mixed_classes_are_checked():
    with pytest.raises(ValueError, match="class indices from 0 to 2"):
        margin_regularization({"a": torch.randn(1, 3)}, MixedTarget(torch.tensor([0]), torch.tensor([3]), 0.5))


def test_the_loss_of_a_mixture(make_model):
    module = make_model(rho=0.7)
    inputs, y = batch()
    output, target = module(inputs), MixedTarget(y, y.flip(0), 0.2)
    cross = nn.functional.cross_entropy
    expected = 0.2 * cross(output.logits, y) + 0.8 * cross(output.logits, y.flip(0))
    expected = expected + 0.7 * margin_regularization(output.scores, target)
    assert module.crmt_loss(output, target).equal(expected)
    assert mixed_loss(lambda classes: cross(output.logits, classes), y).equal(cross(output.logits, y))


def test_mixup_keeps_the_modalities_of_a_sample_together(make_model):
    inputs, y = batch(200)
    mixed, target = Mixup().transform(make_model(), inputs, y)
    assert 0 <= target.share <= 1
    assert target.first.equal(y)
    order = torch.cdist(mixed["fou"] - target.share * inputs["fou"], (1 - target.share) * inputs["fou"]).argmin(dim=1)
    assert sorted(order.tolist()) == list(range(200))
    assert target.second.equal(y[order])
    for name, value in inputs.items():
        assert torch.allclose(mixed[name], target.share * value + (1 - target.share) * value[order], atol=1e-6)


def test_the_share_has_the_distribution_asked_for(make_model):
    inputs, y = batch(2)
    shares = torch.tensor([Mixup(alpha=0.2).transform(make_model, inputs, y)[1].share for _ in range(2000)])
    assert shares.mean().item() == pytest.approx(0.5, abs=0.04)
    assert shares.var().item() == pytest.approx(1 / (4 * (2 * 0.2 + 1)), abs=0.015)


@pytest.mark.parametrize("probability", [0.5, {"fou": 0.2, "mor": 0.9}])
def test_dropout_leaves_one_and_has_the_conditional_rates(make_model, probability):
    inputs = {"fou": torch.ones(20000, 3), "mor": torch.ones(20000, 2, 2)}
    found, _ = ModalityDropout(probability, fill={"fou": -1.0, "mor": -2.0}).transform(
        make_model(), inputs, torch.zeros(20000, dtype=torch.long)
    )
    for name, blank in {"fou": -1, "mor": -2}.items():
        assert set(found[name].unique().tolist()) == {blank, 1}
    gone = {name: (found[name] < 0).flatten(1) for name in inputs}
    assert all((each.all(dim=1) == each.any(dim=1)).all() for each in gone.values())  # a modality as a whole
    fou, mor = gone["fou"][:, 0], gone["mor"][:, 0]
    assert not (fou & mor).any()
    p, q = (probability, probability) if isinstance(probability, float) else (0.2, 0.9)
    assert fou.float().mean().item() == pytest.approx(p * (1 - q) / (1 - p * q), abs=0.02)
    assert mor.float().mean().item() == pytest.approx(q * (1 - p) / (1 - p * q), abs=0.02)


def test_dropout_of_other_modalities_is_refused_before_training(make_model, make_trainer, data):
    for settings in ({"probability": {"fou": 0.1}}, {"fill": {"fou": 0.1}}):
        (argument,) = settings
        with pytest.raises(ValueError, match=rf"`{argument}` must hold exactly the modalities .* missing \['mor'\]"):
            make_trainer(ModalityDropout(**settings)).fit(make_model(), data)


def test_the_old_name_of_fill(make_model):
    with pytest.warns(DeprecationWarning, match="`value` is called `fill` now"):
        assert ModalityDropout(value=-1.0).fill == -1.0


def test_no_dropout_is_the_identity(make_model):
    inputs, y = batch()
    found, _ = ModalityDropout(0.0).transform(make_model(), inputs, y)
    assert all(found[n].equal(inputs[n]) for n in inputs)


def test_adversarial_training_trains_on_what_the_attack_makes(make_model):
    module = make_model()
    inputs, y = batch(64)
    found, target = AdversarialTraining(ATTACK).transform(module, inputs, y)
    assert target is y
    distance = sum((found[n] - inputs[n]).double().square().sum(dim=1) for n in inputs).sqrt()
    assert (distance <= 0.1 * (1 + 1e-6)).all()
    module.eval()
    cross = nn.functional.cross_entropy
    assert cross(module(found).logits, y) > cross(module(inputs).logits, y)


def test_methods_compose_in_their_order(make_model, make_trainer, data):
    watching = Watching()
    module = make_model()
    make_trainer(AdversarialTraining(ATTACK), Mixup(), watching, max_epochs=1).fit(module, data)
    assert watching.seen
    assert all(isinstance(target, MixedTarget) for _, target in watching.seen)
    assert module.training_stage.methods == []
    early = Watching()
    with pytest.raises(ValueError, match="must come before Mixup"):
        make_trainer(early, Mixup(), AdversarialTraining(ATTACK), max_epochs=1).fit(make_model(), data)
    assert not early.seen  # refused before the first batch
    with pytest.raises(ValueError, match="can be mixed once"):
        make_trainer(Mixup(), Mixup(), max_epochs=1).fit(make_model(), data)


def test_a_term_is_added_to_the_loss(make_model):
    class Constant(Method):
        def term(self, module, output, target):
            return output.logits.square().mean()

    module = make_model().eval()
    inputs, y = batch()
    output = module(inputs)
    plain = module.crmt_loss(output, y)
    for method in (Constant(), Method(), Constant()):
        module.training_stage.push(method, method=method)
    assert torch.allclose(module.crmt_loss(output, y), plain + 2 * output.logits.square().mean())


def test_methods_act_under_radius_training(make_trainer, data, make_model):
    watching = Watching()
    make_trainer(Mixup(), watching, RadiusTraining(), max_epochs=1).fit(make_model(head=OrthogonalFusion), data)
    assert isinstance(watching.seen[0][1], MixedTarget)
    assert isinstance(watching.seen[0][0], FusionOutput)


def test_a_method_that_does_nothing_changes_nothing(make_model, make_trainer, data):
    found = []
    for callbacks in ([], [Method(), Watching()]):
        module = make_model()
        make_trainer(*callbacks, max_epochs=1).fit(module, data)
        found.append(module.state_dict())
    assert all(value.equal(found[1][key]) for key, value in found[0].items())


def test_a_module_of_another_kind_is_refused(make_trainer, data):
    class Other(LightningModule):
        def training_step(self, batch, batch_idx):
            raise AssertionError

        def validation_step(self, batch, batch_idx):
            raise AssertionError

        def configure_optimizers(self):
            return None

    with pytest.raises(TypeError, match="Mixup trains the encoders and head of a CRMT module"):
        make_trainer(Mixup()).fit(Other(), data)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Mixup(0.0), ValueError, "`alpha` must be above 0, got 0.0"),
        (lambda: ModalityDropout(1.0), ValueError, "`probability` must be at least 0 and below 1"),
        (lambda: ModalityDropout({"fou": -0.1}), ValueError, "`probability` must be at least 0"),
        (lambda: AdversarialTraining("pgd"), TypeError, "`attack` must be an Attack such as LossAscent, got a str"),
        (
            lambda: Mixup().transform(None, {"text": torch.ones(2, 3, dtype=torch.long)}, torch.tensor([0, 1])),
            TypeError,
            "`inputs\\['text'\\]` must be floating point to be mixed",
        ),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_unimodal_logits_add_up_to_the_logits():
    torch.manual_seed(0)
    for kind in (OrthogonalFusion, LinearFusion):
        head = kind({"a": 5, "b": 6, "c": 7}, 4)
        nn.init.normal_(head.bias)
        output = head({"a": torch.randn(3, 5), "b": torch.randn(3, 6), "c": torch.randn(3, 7)})
        assert torch.allclose(sum(head.unimodal_logits(output.scores).values()), output.logits, atol=1e-5)


def test_a_fit_that_fails_leaves_no_method_behind(make_model, make_trainer, data):
    class Failing(Method):
        def term(self, module, output, target):
            raise ArithmeticError("on purpose")

    module = make_model()
    with pytest.raises(ArithmeticError, match="on purpose"):
        make_trainer(Mixup(), Failing()).fit(module, data)
    assert module.training_stage.methods == []


def test_mixup_in_half_precision(make_model, make_trainer, data):
    make_trainer(Mixup(), precision="bf16-true", max_epochs=1, limit_val_batches=0).fit(make_model(rho=0.0), data)


class OwnStep(CRMTModule):
    """A step written before there were methods."""

    asks_for_batch, asks_for_loss = False, True

    def training_step(self, batch, batch_idx):
        inputs, target = (self.training_batch if self.asks_for_batch else self.split_batch)(batch)
        output = self(inputs)
        return self.crmt_loss(output, target) if self.asks_for_loss else output.logits.square().mean()


@pytest.mark.parametrize(
    ("batch", "loss", "method", "message"),
    [
        (False, True, Mixup(), "Mixup has no effect: `training_step` of OwnStep must begin with .*training_batch"),
        (True, False, Watching(), "Watching has no effect: `training_step` of OwnStep must return .*crmt_loss"),
        (True, True, Mixup(), None),
        (False, True, Watching(), None),
    ],
)
def test_a_step_that_leaves_a_method_out_is_found_out(make_model, make_trainer, data, batch, loss, method, message):
    plain = make_model()
    module = OwnStep(dict(plain.encoders), num_classes=10)
    module.asks_for_batch, module.asks_for_loss = batch, loss
    trainer = make_trainer(method, max_epochs=1, limit_val_batches=0)
    if message is None:
        trainer.fit(module, data)
    else:
        with pytest.raises(RuntimeError, match=message):
            trainer.fit(module, data)
