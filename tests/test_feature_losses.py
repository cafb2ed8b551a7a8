# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Methods that add a loss on the features: dissimilarity, teachers, vulnerability."""

import math
from itertools import combinations

import pytest
import torch
from torch import nn

from lightning_crmt import CRMTModule, LinearFusion
from lightning_crmt.attacks import PGD, Budget
from lightning_crmt.data import UCIMultiFeatures
from lightning_crmt.encoders import MLP
from lightning_crmt.fusion import CosineFusion, GatedFusion
from lightning_crmt.methods import (
    AdversarialTraining,
    MinimalSimilarity,
    Mixup,
    ModalityDropout,
    TeacherFeatures,
    VulnerabilityPenalty,
)
from lightning_crmt.modality import FusionOutput
from lightning_crmt.targets import MixedTarget

SIZES = {"fou": 76, "mor": 6, "zer": 47}


def model(names=("fou", "mor"), seed=0, **settings):
    torch.manual_seed(seed)
    settings = {"num_classes": 10, "rho": 0.0, "head": LinearFusion} | settings
    return CRMTModule({name: MLP(SIZES[name], 16) for name in names}, **settings)


def batch(names=("fou", "mor"), size=7):
    torch.manual_seed(1)
    return {name: torch.randn(size, SIZES[name]) for name in names}, torch.arange(size) % 10


# --- dissimilarity


@pytest.mark.parametrize("names", [("fou", "mor"), ("fou", "mor", "zer")])
def test_similarity_by_hand(names):
    torch.manual_seed(0)
    features = {name: torch.randn(5, 4) for name in names}
    total, count = 0.0, 0
    for a, b in combinations(names, 2):
        for u, v in zip(features[a].tolist(), features[b].tolist(), strict=True):
            total += sum(x * y for x, y in zip(u, v, strict=True)) / (math.hypot(*u) * math.hypot(*v))
            count += 1
    output = FusionOutput(torch.zeros(5, 3), {}, features)
    found = MinimalSimilarity(0.5).term(model(names), output, torch.zeros(5, dtype=torch.long))
    assert found.item() == pytest.approx(0.5 * total / count, abs=1e-6)


def test_features_grow_apart(make_trainer, data):
    def similarity(*callbacks):
        module = model()
        make_trainer(*callbacks, max_epochs=3, precision="bf16-mixed").fit(module, data)
        with torch.no_grad():
            features = module(data.parts["val"].inputs).features
        return nn.functional.cosine_similarity(features["fou"], features["mor"]).mean().item()

    assert similarity(Mixup(), MinimalSimilarity()) < similarity(Mixup()) - 0.2


def test_angles_need_features_of_one_size(make_trainer, data):
    encoders = {"fou": MLP(76, 16), "mor": MLP(6, 12)}
    with pytest.raises(ValueError, match=r"features of one size, got \{'fou': 16, 'mor': 12\}"):
        make_trainer(MinimalSimilarity()).fit(CRMTModule(encoders, num_classes=10), data)
    with pytest.raises(ValueError, match="two modalities or more"):
        make_trainer(MinimalSimilarity()).fit(model(("mor",)), UCIMultiFeatures(views=("mor",)))
    with pytest.raises(ValueError, match="`weight` must be at least 0, got -1"):
        MinimalSimilarity(-1)
    with pytest.raises(ValueError, match="MinimalSimilarity reads the features of each modality"):
        MinimalSimilarity().term(model(), FusionOutput(torch.zeros(1, 2), {}), torch.tensor([0]))


# --- teachers


@pytest.mark.parametrize("weight", [2.0, {"fou": 2.0, "mor": 0.5}])
def test_distance_to_the_teachers_by_hand(weight, make_trainer, data):
    module, seen = model(), []
    teachers = dict(model(seed=1).encoders.items())
    teachers["fou"] = nn.Sequential(teachers["fou"], nn.Dropout(0.5))  # a teacher answers in evaluation mode

    class Watching(TeacherFeatures):
        def term(self, module, output, target):
            found = super().term(module, output, target)
            seen.append((output, found))
            return found

        def transform(self, module, inputs, target):
            self.inputs = inputs
            return super().transform(module, inputs, target)

    method = Watching(teachers, weight=weight)
    data.batch_size = 500  # and a last batch of 200
    make_trainer(method, max_epochs=1, accumulate_grad_batches=2).fit(module, data)
    output, found = seen[-1]
    expected = 0.0
    for name, z in output.features.items():
        with torch.no_grad():
            wanted = teachers[name].eval()(method.inputs[name])
        for a, b in zip(z.tolist(), wanted.tolist(), strict=True):
            factor = weight if isinstance(weight, float) else weight[name]
            expected += factor * math.dist(a, b) ** 2 / len(z)
    assert len(output.logits) == 200
    assert found.item() == pytest.approx(expected, rel=1e-4)


def test_teachers_stay_what_they_were_and_are_not_saved(make_trainer, data, tmp_path):
    module, teachers = model(), dict(model(seed=1).encoders.items())
    before = {name: [p.clone() for p in teacher.parameters()] for name, teacher in teachers.items()}
    trainer = make_trainer(TeacherFeatures(teachers), max_epochs=1)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "student.ckpt")
    saved = torch.load(tmp_path / "student.ckpt", weights_only=True)
    assert saved["state_dict"].keys() == model().state_dict().keys()
    assert saved["callbacks"] == {}
    for name, teacher in teachers.items():
        assert all(p.equal(q) and p.requires_grad for p, q in zip(teacher.parameters(), before[name], strict=True))
        assert teacher.training


def test_students_follow_their_teachers(make_trainer, data):
    teachers = model(seed=1).encoders

    def distance(weight):
        module = model(optimizer=lambda groups: torch.optim.AdamW(groups, lr=0.01))
        make_trainer(TeacherFeatures(dict(teachers.items()), weight=weight), max_epochs=3).fit(module, data)
        with torch.no_grad():
            x = data.parts["val"].inputs["mor"]
            return (module.encoders["mor"](x) - teachers["mor"](x)).square().sum(dim=1).mean().item()

    assert distance(1.0) < 0.5 * distance(0.0)


def test_teachers_from_checkpoints_of_modules_trained_alone(make_trainer, tmp_path):
    alone = {}
    for name in ("fou", "mor"):
        alone[name] = model((name,), seed=3)
        trainer = make_trainer(max_epochs=1)
        trainer.fit(alone[name], UCIMultiFeatures(views=(name,), batch_size=400))
        trainer.save_checkpoint(tmp_path / f"{name}.ckpt")
    paths = {name: str(tmp_path / f"{name}.ckpt") for name in alone}
    method, data = TeacherFeatures(checkpoints=paths), UCIMultiFeatures(batch_size=400)

    class Watching(Mixup):
        def on_train_start(self, trainer, pl_module):
            for name, teacher in method._frozen.items():
                for key, value in teacher.state_dict().items():
                    assert value.equal(alone[name].encoders[name].state_dict()[key])
                assert not teacher.training
                assert not any(p.requires_grad for p in teacher.parameters())

    make_trainer(Watching(), method, max_epochs=1).fit(model(), data)
    with pytest.raises(ValueError, match=r"must hold an encoder like the module's own, .* holds no encoders.fou"):
        make_trainer(TeacherFeatures(checkpoints={"fou": paths["mor"]})).fit(model(), data)
    wide = CRMTModule({"fou": MLP(76, 16, hidden=[8]), "mor": MLP(6, 16)}, num_classes=10)
    with pytest.raises(ValueError, match="must hold an encoder like the module's own"):
        make_trainer(TeacherFeatures(checkpoints={"fou": paths["fou"]})).fit(wide, data)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_teachers_compute_as_the_module_does(precision, make_trainer, data):
    teachers = dict(model(seed=1).encoders.items())
    module = model()
    callbacks = [ModalityDropout(), TeacherFeatures(teachers)]
    make_trainer(*callbacks, max_epochs=1, precision=precision).fit(module, data)
    assert all(value.isfinite().all() for value in module.state_dict().values())
    assert next(teachers["fou"].parameters()).dtype is torch.float32


def test_teachers_see_what_is_trained_on_or_what_was_clean(make_trainer, data):
    teachers = dict(model(seed=1).encoders.items())
    with pytest.raises(ValueError, match="TeacherFeatures must come after Mixup"):
        make_trainer(TeacherFeatures(teachers), Mixup(), max_epochs=1).fit(model(), data)
    attack = AdversarialTraining(PGD(Budget(0.1), steps=1, loss="ce"))
    method, clean = TeacherFeatures(teachers), []

    class Watching(ModalityDropout):
        def transform(self, module, inputs, target):
            clean.append((inputs, dict(method._wanted)))
            return inputs, target

    make_trainer(method, attack, Watching(), fast_dev_run=1).fit(model(), data)
    make_trainer(attack, method, Watching(), fast_dev_run=1).fit(model(), data)
    for (inputs, wanted), same in zip(clean, [False, True], strict=True):
        assert torch.allclose(teachers["fou"](inputs["fou"]), wanted["fou"], atol=1e-6) == same


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: TeacherFeatures(), ValueError, r"give one teacher per modality, .* got \[\]"),
        (lambda: TeacherFeatures({"a": MLP(2, 2)}, checkpoints={"a": "x"}), ValueError, r"got \['a', 'a'\]"),
        (lambda: TeacherFeatures({"a": "x"}), TypeError, r"`teachers\['a'\]` must be a module, got a str"),
        (lambda: TeacherFeatures({"a": MLP(2, 2)}, weight=-1.0), ValueError, "`weight` must be at least 0, got -1.0"),
        (
            lambda: TeacherFeatures({"a": MLP(2, 2)}, weight={"b": 1.0}),
            ValueError,
            "hold the modalities with a teacher",
        ),
    ],
)
def test_bad_teachers(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_teachers_that_a_fit_refuses(make_trainer, data):
    with pytest.raises(ValueError, match=r"teachers must be of the modalities \['fou', 'mor'\], got \['text'\]"):
        make_trainer(TeacherFeatures({"text": MLP(2, 2)})).fit(model(), data)
    with pytest.raises(ValueError, match=r"the teacher of 'mor' must give features of shape \(200, 16\)"):
        make_trainer(TeacherFeatures({"mor": MLP(6, 15)})).fit(model(), data)
    with pytest.raises(RuntimeError, match="its teachers saw no batch"):
        TeacherFeatures({"mor": MLP(6, 16)}).term(model(), model()(batch()[0]), batch()[1])


# --- vulnerability


@pytest.mark.parametrize("names", [("fou", "mor"), ("fou", "mor", "zer")])
def test_vulnerability_by_hand(names):
    """For a linear head the gradient of a sample's cross-entropy is W^T (softmax(h) - e_y)."""
    module, (inputs, y) = model(names), batch(names)
    output = module(inputs)
    error = output.logits.softmax(1) - nn.functional.one_hot(y, 10)
    expected = sum((error @ rows).norm(dim=1) for rows in module.head.rows.values()).mean()
    found = VulnerabilityPenalty(3.0).term(module, output, y)
    torch.testing.assert_close(found, 3 * expected)
    mixed = MixedTarget(y, y.flip(0), 0.3)
    both = 0.3 * nn.functional.one_hot(y, 10) + 0.7 * nn.functional.one_hot(y.flip(0), 10)
    error = output.logits.softmax(1) - both
    expected = sum((error @ rows).norm(dim=1) for rows in module.head.rows.values()).mean()
    torch.testing.assert_close(VulnerabilityPenalty().term(module, output, mixed), expected)


@pytest.mark.parametrize("head", [LinearFusion, GatedFusion, CosineFusion])
def test_the_penalty_is_differentiated_to_the_weights(head):
    """Against differences of its value: the second derivative reaches encoders and head."""
    module, (inputs, y) = model(head=head).double(), batch()
    inputs = {name: x.double() for name, x in inputs.items()}

    def penalty():
        return VulnerabilityPenalty().term(module, module(inputs), y)

    for weight in (next(module.encoders["mor"].parameters()), next(module.head.parameters())):
        (gradient,) = torch.autograd.grad(penalty(), weight)
        step = torch.zeros_like(weight).flatten()
        index = gradient.flatten().abs().argmax()
        step[index] = 1e-6
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight += sign * step.view_as(weight)
            values.append(penalty().item())
            with torch.no_grad():
                weight -= sign * step.view_as(weight)
        assert gradient.flatten()[index].item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4)


def test_encoders_can_be_left_out():
    module, (inputs, y) = model(), batch()
    kept, left = (VulnerabilityPenalty(encoders=which).term(module, module(inputs), y) for which in (True, False))
    torch.testing.assert_close(kept, left)
    left.backward()
    assert all(p.grad is None for p in module.encoders.parameters())
    assert all(p.grad.any() for p in module.head.rows.values())
    for parameter in module.encoders["fou"].parameters():
        parameter.requires_grad_(False)  # as when a pretrained encoder is frozen
    torch.testing.assert_close(VulnerabilityPenalty().term(module, module(inputs), y), kept)


@pytest.mark.parametrize("settings", [{"precision": "bf16-mixed"}, {"accumulate_grad_batches": 2}])
def test_the_loss_gets_flatter_also_under_attack(settings, make_trainer, data):
    def vulnerability(*callbacks):
        module = model(optimizer=lambda groups: torch.optim.AdamW(groups, lr=0.01))
        attack = AdversarialTraining(PGD(Budget(0.1), steps=2, loss="ce"))
        make_trainer(attack, *callbacks, max_epochs=2, **settings).fit(module, data)
        part = data.parts["val"]
        return VulnerabilityPenalty().term(module, module(part.inputs), part.target).item()

    assert vulnerability(VulnerabilityPenalty(5.0)) < 0.5 * vulnerability()


def test_bad_penalty():
    with pytest.raises(ValueError, match="`weight` must be at least 0, got -1"):
        VulnerabilityPenalty(-1)
    with pytest.raises(ValueError, match="VulnerabilityPenalty reads the features of each modality"):
        VulnerabilityPenalty().term(model(), FusionOutput(torch.zeros(1, 2), {}), torch.tensor([0]))
