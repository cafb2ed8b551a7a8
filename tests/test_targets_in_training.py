# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Fits on every kind of target: what is trained on and logged, by hand and from YAML, with methods and callbacks."""

import csv
import math
import sys
from functools import partial

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule
from support.small_model import CLASSES, SIZES, States, assert_close, model_of
from test_module import Waits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_crmt import CRMTModule, LinearFusion, OrthogonalFusion, margin_regularization, methods
from lightning_crmt.attacks import PGD, Budget, LossAscent, MinimumNorm, MissingModality
from lightning_crmt.callbacks import (
    AdversarialRobustness,
    CertifiedRobustness,
    IntegrationReweighting,
    MissingModalities,
    RadiusTraining,
)
from lightning_crmt.cli import main
from lightning_crmt.criterion import Criterion
from lightning_crmt.data import MultimodalDataset, UCIMultiFeatures
from lightning_crmt.encoders import MLP, LipschitzMLP
from lightning_crmt.fusion import MemoryFusion
from lightning_crmt.targets import MixedTarget

KINDS = {
    "uint8": (lambda x: classes(x).to(torch.uint8), {}),
    "int32": (lambda x: classes(x).to(torch.int32), {"class_weights": [1.0, 2.0, 0.5, 1.5]}),
    "ignored": (lambda x: torch.where(x[:, 4] > 0.8, 255, classes(x)).to(torch.uint8), {"ignore_index": 255}),
    "probabilities": (lambda x: (2 * x[:, :CLASSES]).softmax(dim=1), {"label_smoothing": 0.1}),
    "labels": (lambda x: (x[:, :CLASSES] > 0.3).float(), {"multi_label": True}),
    "bools": (lambda x: x[:, :CLASSES] > 0.3, {"multi_label": True, "class_weights": [1.0, 2.0, 0.5, 1.5]}),
}


def classes(x):
    return x[:, :CLASSES].argmax(dim=1)


def loader(kind, size=120, batch_size=40, seed=0, names="ab"):
    generator = torch.Generator().manual_seed(seed)
    inputs = {n: torch.randn(size, SIZES[n], generator=generator, dtype=torch.double) for n in names}
    return DataLoader(MultimodalDataset(inputs, KINDS[kind][0](inputs["a"])), batch_size=batch_size)


def fit(make_trainer, kind, *callbacks, epochs=2, seed=0, trainer=None, **settings):
    model = model_of(**({"lr": 0.1, "rho": 0.3, "seed": seed} | KINDS[kind][1] | settings))
    trainer = make_trainer(*callbacks, max_epochs=epochs, precision="64-true", **(trainer or {}))
    trainer.fit(model, loader(kind), loader(kind, seed=1))
    return model, {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_and_logs_what_it_is_trained_on(kind, make_trainer):
    _, first = fit(make_trainer, kind, epochs=1)
    model, numbers = fit(make_trainer, kind, epochs=20)
    data = loader(kind, seed=1)
    x, y = data.dataset.inputs, data.dataset.target
    model.eval()
    with torch.no_grad():
        output = model(x)
    counted = torch.ones(len(y), dtype=torch.bool) if kind != "ignored" else y != 255
    batches = [slice(0, 40), slice(40, 80), slice(80, 120)]
    weights = [int(counted[rows].sum()) for rows in batches]
    losses = [model.crmt_criterion.loss(output.logits[rows], y[rows]).item() for rows in batches]
    wanted = sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)
    assert numbers["val/loss"] == pytest.approx(wanted, rel=1e-5)
    for name, scores in {"joint": output.logits, **output.scores}.items():
        hits, labels = 0, 0
        for i in counted.nonzero().flatten().tolist():
            row, wanted = scores[i].tolist(), y[i].tolist()
            if "multi_label" in KINDS[kind][1]:
                right = [(h > 0) == bool(t) for h, t in zip(row, wanted, strict=True)]
                hits, labels = hits + all(right), labels + sum(right)
            else:
                wanted = wanted.index(max(wanted)) if isinstance(wanted, list) else wanted
                hits += row.index(max(row)) == wanted
        assert numbers[f"val/accuracy/{name}"] == pytest.approx(hits / sum(weights), rel=1e-5)
        if "multi_label" in KINDS[kind][1]:
            assert numbers[f"val/label_accuracy/{name}"] == pytest.approx(labels / (4 * sum(weights)), rel=1e-5)
        else:
            assert f"val/label_accuracy/{name}" not in numbers
    assert numbers["val/loss"] < 0.95 * first["val/loss"]
    assert numbers["val/accuracy/joint"] >= first["val/accuracy/joint"]


@pytest.mark.parametrize("kind", KINDS)
def test_step_1_is_the_criterion_and_the_margins_of_what_counts(kind):
    model, data = model_of(rho=0.7, **KINDS[kind][1]), loader(kind)
    x, y = data.dataset.inputs, data.dataset.target
    output = model(x)
    loss = model.crmt_loss(output, y)
    counted = y != 255 if kind == "ignored" else torch.ones(len(y), dtype=torch.bool)
    target = (y.bool() if kind == "labels" else y)[counted]
    margins = margin_regularization({n: s[counted] for n, s in output.scores.items()}, target)
    torch.testing.assert_close(loss, model.crmt_criterion.loss(output.logits, y) + 0.7 * margins)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mixed", [False, True])
def test_a_step_waits_for_the_device_once(kind, mixed, monkeypatch):
    model, data = model_of(rho=0.7, **KINDS[kind][1]), loader(kind)
    batch = data.dataset.inputs, data.dataset.target
    model.crmt_loss(model(batch[0]), batch[1])  # class weights go to a device once
    calls, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: calls.append(1) or tolist(tensor))
    with Waits() as waits:
        inputs, target = model.training_batch(batch)
        if mixed:
            target = MixedTarget(target, target.flip(0), 0.3)
        model.crmt_loss(model(inputs), target).backward()
    # The margins of mixed classes take the samples that have a rival.
    assert waits.seen == [] or (mixed and kind in ("uint8", "int32", "ignored"))
    assert len(calls) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_target_that_is_wrong_is_named_in_training_and_evaluation(kind, make_trainer):
    model, data = model_of(**KINDS[kind][1]), loader(kind)
    x, y = data.dataset.inputs, data.dataset.target.clone()
    y[0] = 9 if kind != "bools" else y[0]
    if kind == "bools":
        y = 2 * y.long()
    with pytest.raises(ValueError, match="`target` must"):
        model.crmt_loss(model(x), y)
    trainer = make_trainer(max_epochs=1)
    with pytest.raises(ValueError, match="`target` must"):
        trainer.validate(model, DataLoader(MultimodalDataset(x, y), batch_size=40), verbose=False)


def test_of_a_batch_that_is_ignored_nothing_is_learned(make_trainer):
    model = model_of(rho=0.5, ignore_index=-1, lr=0.1)
    x = loader("uint8").dataset.inputs
    ignored = torch.full((120,), -1)
    loss = model.crmt_loss(model(x), ignored)
    loss.backward()
    assert loss.item() == 0
    assert all((p.grad == 0).all() for p in model.parameters() if p.grad is not None)
    trainer = make_trainer(MissingModalities(), max_epochs=1)
    some = classes(x["a"])
    some[:40] = -1  # the first batch
    data = DataLoader(MultimodalDataset(x, some), batch_size=40)
    trainer.fit(model, data, data)
    metrics = trainer.callback_metrics
    with torch.no_grad():
        hits = (model.eval()(x).logits.argmax(dim=1) == some)[40:].float().mean()
    assert float(metrics["val/accuracy/joint"]) == pytest.approx(float(hits))
    assert float(metrics["val/accuracy_zeroed/none"]) == pytest.approx(float(hits))
    assert math.isfinite(float(metrics["val/loss"]))


def test_ignored_samples_move_nothing():
    x, y = loader("uint8").dataset.inputs, classes(loader("uint8").dataset.inputs["a"])
    gradients = []
    for rows, target in (
        (slice(0, 60), y[:60]),
        (slice(None), torch.cat([y[:60], torch.full((60,), -100)])),
    ):
        model = model_of(rho=0.4, ignore_index=-100, class_weights=[1.0, 2.0, 3.0, 4.0])
        model.crmt_loss(model({n: v[rows] for n, v in x.items()}), target).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    assert_close(*gradients)


@pytest.mark.parametrize("kind", ["ignored", "probabilities", "labels"])
def test_mixup_mixes_every_kind(kind, make_trainer):
    model, numbers = fit(make_trainer, kind, methods.Mixup())
    assert all(map(math.isfinite, numbers.values()))
    assert all(p.isfinite().all() for p in model.parameters())


def teacher():
    return {"a": MLP(SIZES["a"], 8).double()}


TRAIN = {
    "AdversarialTraining": lambda: methods.AdversarialTraining(LossAscent(Budget(0.1), steps=2)),
    "AdaptiveGradientModulation": methods.AdaptiveGradientModulation,
    "GaussianNoise": lambda: methods.GaussianNoise(0.1),
    "GradientBlending": lambda: methods.GradientBlending(super_epoch=1),
    "GradientModulation": methods.GradientModulation,
    "MinimalSimilarity": methods.MinimalSimilarity,
    "ModalityDropout": methods.ModalityDropout,
    "ModalityEarlyStopping": methods.ModalityEarlyStopping,
    "ModalitySpecificRates": methods.ModalitySpecificRates,
    "NoiseConsistency": lambda: methods.NoiseConsistency(0.1),
    "ParetoGradients": methods.ParetoGradients,
    "PrototypicalRebalancing": methods.PrototypicalRebalancing,
    "Relearning": methods.Relearning,
    "TeacherFeatures": lambda: methods.TeacherFeatures(teachers=teacher()),
    "UnimodalLosses": methods.UnimodalLosses,
    "VulnerabilityPenalty": methods.VulnerabilityPenalty,
}
#: What a method cannot take, and the reason that it gives.
REFUSED = {
    ("PrototypicalRebalancing", "labels"): "goes by the class of a sample, and with multi_label=True",
    ("Relearning", "labels"): "goes by the class of a sample, and with multi_label=True",
    ("PrototypicalRebalancing", "probabilities"): "has prototypes of classes, so targets must be classes",
}


@pytest.mark.parametrize("kind", ["ignored", "probabilities", "labels"])
@pytest.mark.parametrize("name", TRAIN)
def test_a_method_trains_on_it_or_says_why_not(kind, name, make_trainer):
    callback = TRAIN[name]()
    if reason := REFUSED.get((name, kind)):
        with pytest.raises(ValueError, match=reason):
            fit(make_trainer, kind, callback)
        return
    model, numbers = fit(make_trainer, kind, callback)
    assert math.isfinite(numbers["val/loss"])
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("kind", ["ignored", "probabilities", "labels"])
def test_a_memory_is_filled_whatever_the_targets(kind, make_trainer):
    method = methods.FeatureMemory(start_epoch=0)
    model, _ = fit(make_trainer, kind, method, head=partial(MemoryFusion, atoms=10, steps=20))
    assert model.head.filled


def test_methods_weigh_their_cross_entropy_as_the_module_does(make_trainer):
    """With own heads, uni-modal losses are those of the criterion."""
    method = methods.UnimodalLosses(heads="own")
    model, data = model_of(**KINDS["int32"][1]), loader("int32")
    model.trainer = make_trainer(method)
    method.setup(model.trainer, model, "fit")
    output = model(data.dataset.inputs)
    term = method.term(model, output, data.dataset.target.long())
    own = model.head.unimodal_logits(output.scores)
    weight = torch.tensor(KINDS["int32"][1]["class_weights"]).double()
    wanted = [nn.functional.cross_entropy(h, data.dataset.target.long(), weight) for h in own.values()]
    torch.testing.assert_close(term, torch.stack(wanted).sum())


def test_adversarial_training_leaves_ignored_samples_alone():
    method = methods.AdversarialTraining(LossAscent(Budget(0.1)))
    model, data = model_of(**KINDS["ignored"][1]), loader("ignored")
    x, y = data.dataset.inputs, data.dataset.target
    moved, target = method.transform(model, x, y)
    assert target is y
    ignored = y == 255
    assert ignored.any()
    for name, value in moved.items():
        assert torch.equal(value[ignored], x[name][ignored])
    changes = torch.cat([moved[n] - x[n] for n in x], dim=1).norm(dim=1)
    assert (changes[~ignored] > 0.05).all()
    assert (changes[~ignored] <= 0.1 + 1e-9).all()
    alone, _ = method.transform(model, {n: v[~ignored] for n, v in x.items()}, y[~ignored])
    for name, value in alone.items():
        torch.testing.assert_close(value, moved[name][~ignored])


@pytest.mark.parametrize("kind", ["uint8", "ignored", "probabilities", "labels"])
def test_observers_measure_it_and_change_nothing(kind, make_trainer):
    callbacks = [
        MissingModalities(),
        MissingModalities("dropped"),
        CertifiedRobustness([0.01, 0.02], budgets=[{"a": 0.01, "b": 0.02}]),
        CertifiedRobustness([0.01], constants="estimated"),
        AdversarialRobustness(
            {"pgd": PGD(Budget(1.0), steps=4), "near": MinimumNorm(Budget(1.0), steps=5), "gone": MissingModality()},
            radii=[0.01, 0.05],
        ),
    ]
    plain, watched = States(), States()
    fit(make_trainer, kind, plain)
    _model, numbers = fit(make_trainer, kind, watched, *callbacks, trainer={"num_sanity_val_steps": 1})
    assert_close(plain.found[-1], watched.found[-1], rtol=0, atol=0)
    assert numbers["val/accuracy_zeroed/none"] == pytest.approx(numbers["val/accuracy/joint"])
    assert numbers["val/clean_accuracy/pgd"] == pytest.approx(numbers["val/accuracy/joint"])
    lower, upper = numbers["val/certified_accuracy/joint@0.01"], numbers["val/robust_accuracy/pgd@0.01"]
    assert lower <= upper + 1e-6
    labels = [name for name in numbers if "label" in name]
    if kind != "labels":
        assert labels == []
        return
    assert numbers["val/certified_label_accuracy/joint@0.01"] >= lower
    assert numbers["val/estimated_label_accuracy/joint@0.01"] >= numbers["val/certified_label_accuracy/joint@0.01"]


def test_certified_numbers_of_labels_are_those_of_the_certificate(make_trainer):
    callback = CertifiedRobustness([0.02], budgets=[{"a": 0.01, "b": 0.02}])
    model, numbers = fit(make_trainer, "labels", callback, epochs=5)
    data = loader("labels", seed=1)
    x, y = data.dataset.inputs, data.dataset.target.bool()
    certificate = model.eval().certify(x)
    right = certificate.prediction == y
    label = right & (certificate.label_radii() > 0.02)
    assert numbers["val/certified_label_accuracy/joint@0.02"] == pytest.approx(label.double().mean().item(), rel=1e-5)
    alone = right & (certificate.label_radii(["a"]) > 0.02)
    assert numbers["val/certified_label_accuracy/a@0.02"] == pytest.approx(alone.double().mean().item(), rel=1e-5)
    of_label = label.double().mean(dim=0).tolist()
    for k, share in enumerate(of_label):
        assert numbers[f"val/certified_label_accuracy_of_class/{k}@0.02"] == pytest.approx(share, rel=1e-5)
    worst = numbers["val/certified_label_accuracy_worst_class/joint@0.02"]
    assert worst == pytest.approx(min(of_label), rel=1e-5)
    whole = right.all(dim=1) & (certificate.radius() > 0.02)
    assert numbers["val/certified_accuracy/joint@0.02"] == pytest.approx(whole.double().mean().item(), rel=1e-5)
    safe = right.all(dim=1) & certificate.tolerates({"a": 0.01, "b": 0.02})
    assert numbers["val/certified_accuracy/a=0.01+b=0.02"] == pytest.approx(safe.double().mean().item(), rel=1e-5)
    with torch.no_grad():
        output = model(x)
    for name, scores in {"joint": output.logits, **output.scores}.items():
        least = torch.where(y, scores, -scores).amin(dim=1).mean().item()
        assert numbers[f"val/margin/{name}"] == pytest.approx(least, rel=1e-4)


class Foreign(LightningModule):
    """A module of somebody else, of several labels, trained by a loss of its own."""

    def __init__(self):
        super().__init__()
        self.audio, self.image = nn.Linear(5, 4), nn.Linear(6, 4)

    def forward(self, a, b):
        return self.audio(a) + self.image(b)

    def training_step(self, batch, batch_idx):
        a, b, y = batch
        return nn.functional.binary_cross_entropy_with_logits(self(a, b), y)

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("floats", [False, True])
def test_observers_take_labels_of_any_module(floats, make_trainer):
    a, b = torch.randn(64, 5), torch.randn(64, 6)
    y = a[:, :4] > 0
    data = DataLoader(TensorDataset(a, b, y.float() if floats else y), batch_size=16)
    names = ("a", "b")
    callbacks = [
        MissingModalities(inputs=names),
        CertifiedRobustness([0.05], constants="estimated", inputs=names),
        AdversarialRobustness({"pgd": PGD(Budget(0.05), steps=4)}, inputs=names),
    ]
    module = Foreign()
    trainer = make_trainer(*callbacks)
    if floats:
        with pytest.raises(TypeError, match=r"give `.bool\(\)` of labels"):
            trainer.validate(module, data, verbose=False)
        module.crmt_criterion = Criterion(multi_label=True)
        trainer = make_trainer(*callbacks)
    [numbers] = trainer.validate(module, data, verbose=False)
    with torch.no_grad():
        hits = ((module(a, b) > 0) == y).all(dim=1).double().mean().item()
    assert numbers["val/accuracy_zeroed/none"] == pytest.approx(hits)
    assert numbers["val/clean_accuracy/pgd"] == pytest.approx(hits)
    assert "val/estimated_label_accuracy/joint@0.05" in numbers


@pytest.mark.parametrize("kind", ["uint8", "ignored", "probabilities", "labels"])
def test_step_2_follows_every_kind(kind, make_trainer):
    callback = IntegrationReweighting(epochs=20, lr=0.05)
    _model, _numbers = fit(make_trainer, kind, callback, head=OrthogonalFusion)
    kept = callback.kept
    y = loader(kind).dataset.target
    counted = {"ignored": lambda: y[y != 255].long(), "probabilities": lambda: y.argmax(dim=1)}
    wanted = counted.get(kind, y.long)()
    assert torch.equal(kept.target, wanted)
    assert len(kept.scores["a"]) == len(wanted)
    assert callback.reweighted.objective[-1] < callback.reweighted.objective[0]


@pytest.mark.parametrize("kind", ["uint8", "ignored", "labels"])
def test_radius_training_raises_radii(kind, make_trainer):
    def radius(model):
        x, y = loader(kind).dataset.inputs, loader(kind).dataset.target
        certificate = model.eval().certify(x)
        right = certificate.prediction == (y.bool() if kind == "labels" else y)
        return torch.where(right if right.dim() == 1 else right.all(dim=1), certificate.radius(), 0).mean()

    def made():
        torch.manual_seed(0)
        encoders = {n: LipschitzMLP(SIZES[n], 8, hidden=(16,)) for n in "ab"}
        settings = {"head": LinearFusion, "optimizer": lambda groups: torch.optim.Adam(groups, 0.02)}
        return CRMTModule(encoders, CLASSES, **settings, **KINDS[kind][1]).double()

    model = made()
    before = radius(model)
    make_trainer(RadiusTraining(0.1), max_epochs=15).fit(model.train(), loader(kind), loader(kind))
    assert radius(model) > before + 0.02


def test_radius_training_refuses_probabilities(make_trainer):
    with pytest.raises(ValueError, match=r"targets must be classes .* got probabilities of classes, a float64 tensor"):
        fit(make_trainer, "probabilities", RadiusTraining(0.1))


def test_predictions_of_labels_are_probabilities_of_each(make_trainer):
    model = model_of(multi_label=True)
    batches = make_trainer().predict(model, loader("labels"))
    x = loader("labels").dataset.inputs
    torch.testing.assert_close(torch.cat(batches), model(x).logits.detach().sigmoid())


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("kind", KINDS)
def test_lower_precisions_train(kind, precision, make_trainer):
    model = model_of(lr=0.1, rho=0.3, **KINDS[kind][1]).float()
    data = loader(kind)
    data.dataset.inputs = {n: v.float() for n, v in data.dataset.inputs.items()}
    if kind == "probabilities":
        data.dataset.target = data.dataset.target.float()
    trainer = make_trainer(max_epochs=1, precision=precision)
    trainer.fit(model, data, data)
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_weights": [1.0, 2.0]}, "`class_weights` must be one for each of 4 classes, got 2"),
        ({"label_smoothing": 2.0}, "`label_smoothing` must be below 1"),
        ({"multi_label": True, "ignore_index": 0}, "`ignore_index` is a class that does not count"),
    ],
)
def test_wrong_settings_are_refused_at_once(settings, message):
    with pytest.raises(ValueError, match=message):
        model_of(**settings)


def test_a_module_of_ones_own_has_its_criterion_checked(make_trainer):
    model = model_of()
    model.crmt_criterion = Criterion(class_weights=[1.0])
    with pytest.raises(ValueError, match="`class_weights` must be one for each of 4 classes"):
        make_trainer().fit(model, loader("uint8"), loader("uint8"))
    model.crmt_criterion = nn.CrossEntropyLoss()
    with pytest.raises(TypeError, match="`crmt_criterion` must be a Criterion, got a CrossEntropyLoss"):
        make_trainer().fit(model, loader("uint8"), loader("uint8"))


# --- from YAML


class LabelledViews(UCIMultiFeatures):
    """Digits described by labels: even, above 4, a multiple of 3; as floats, as many loaders give them."""

    def load(self):
        parts = super().load()
        for part in parts.values():
            digits = part.target
            part.target = torch.stack([digits % 2 == 0, digits > 4, digits % 3 == 0], dim=1).float()
        return parts


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-crmt"])

    def run(of_model, of_trainer=(), data="UCIMultiFeatures", words=("fit",)):
        encoders = {
            view: {"class_path": "MLP", "init_args": {"in_features": size, "out_features": 16}}
            for view, size in (("fou", 76), ("mor", 6))
        }
        arguments = {"num_classes": 10, "encoders": encoders} | of_model
        config = {
            "model": {"class_path": "CRMTModule", "init_args": arguments},
            "data": {"class_path": data, "init_args": {"views": ["fou", "mor"], "batch_size": 200}},
            "trainer": {
                "accelerator": "cpu",
                "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": str(tmp_path)}},
                "enable_checkpointing": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "max_epochs": 1,
            }
            | dict(of_trainer),
        }
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(config))
        main([*words, "--config", str(path)])
        logs = sorted(tmp_path.rglob("metrics.csv"), key=lambda log: log.stat().st_mtime)
        with logs[-1].open() as lines:
            rows = list(csv.DictReader(lines))
        return {name: float(value) for row in rows for name, value in row.items() if value}

    return run


def test_settings_come_from_yaml(run):
    callbacks = [{"class_path": "IntegrationReweighting", "init_args": {"epochs": 1}}]
    settings = {"class_weights": [1, 2, 1, 1, 1, 1, 1, 1, 1, 0.5], "label_smoothing": 0.1, "ignore_index": 3}
    numbers = run(settings, {"callbacks": callbacks})
    assert math.isfinite(numbers["val/loss"])
    assert math.isfinite(numbers["train/integration_objective"])


def test_labels_are_trained_attacked_certified_and_reweighted_from_yaml(run, tmp_path):
    attack = {"class_path": "PGD", "init_args": {"budget": {"class_path": "Budget", "init_args": {"radius": 0.05}}}}
    towards = {"class_path": "PGD", "init_args": {**attack["init_args"], "towards": 1}}
    callbacks = [
        {"class_path": "CertifiedRobustness", "init_args": {"radii": [0.05]}},
        {"class_path": "AdversarialRobustness", "init_args": {"attacks": {"any": attack, "second": towards}}},
        {"class_path": "MissingModalities"},
        {"class_path": "UnimodalLosses"},
        {"class_path": "IntegrationReweighting", "init_args": {"epochs": 2}},
    ]
    settings = {"num_classes": 3, "multi_label": True, "class_weights": [1, 2, 0.5]}
    where = f"{LabelledViews.__module__}.LabelledViews"
    of_trainer = {"callbacks": callbacks, "max_epochs": 4, "enable_checkpointing": True}
    numbers = run(settings, of_trainer, where)
    assert numbers["val/certified_accuracy/joint@0.05"] <= numbers["val/robust_accuracy/any@0.05"]
    assert numbers["val/robust_accuracy/any@0.05"] <= numbers["val/robust_accuracy/second@0.05"]
    assert numbers["val/accuracy/joint"] <= numbers["val/label_accuracy/joint"]
    assert numbers["val/certified_accuracy/joint@0.05"] <= numbers["val/certified_label_accuracy/joint@0.05"]
    [checkpoint] = tmp_path.rglob("*.ckpt")
    done = tmp_path / "reweighted.ckpt"
    run(settings, of_trainer, where, ("reweight", "--ckpt_path", str(checkpoint), "--out", str(done)))
    assert done.is_file()


def test_bools_are_the_two_classes_of_a_fit(make_trainer):
    model = model_of(num_classes=2, lr=0.1)
    x = loader("uint8").dataset.inputs
    data = DataLoader(MultimodalDataset(x, x["a"][:, 0] > 0), batch_size=40)
    trainer = make_trainer(MissingModalities(), IntegrationReweighting(epochs=1), max_epochs=1, precision="64-true")
    with pytest.raises(TypeError, match="needs late fusion with integration weights"):
        trainer.fit(model, data, data)
    trainer = make_trainer(MissingModalities(), max_epochs=30, precision="64-true")
    trainer.fit(model, data, data)
    assert float(trainer.callback_metrics["val/accuracy/joint"]) > 0.7


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"class_weights": [1.0, 2.0]}, "class_weights"),
        ({"label_smoothing": "much"}, "label_smoothing"),
        ({"ignore_index": 0.5}, "ignore_index"),
        ({"multi_label": "some"}, "multi_label"),
    ],
)
def test_wrong_settings_in_yaml_are_named(settings, word, run, capsys):
    with pytest.raises((SystemExit, ValueError)) as stop:
        run(settings)
    assert word in capsys.readouterr().err + str(stop.value)


def test_a_plain_loop_trains_labels():
    model = model_of(multi_label=True, rho=0.2)
    x, y = loader("labels").dataset.inputs, loader("labels").dataset.target
    steps = torch.optim.SGD(model.parameters(), 0.1)
    losses = []
    for _ in range(5):
        loss = model.crmt_loss(model(x), y)
        steps.zero_grad()
        loss.backward()
        steps.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
