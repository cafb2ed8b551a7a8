# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Training with Gaussian noise, and on the same answers under different noise."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from support.every_callback import MAKE, head_for
from support.small_model import CLASSES, SIZES, model_of
from torch import nn
from torch.utils.data import DataLoader

from lightning_crmt import CRMTModule, SmoothedClassifier
from lightning_crmt.attacks import Budget, LossAscent
from lightning_crmt.callbacks import RadiusTraining
from lightning_crmt.cli import main
from lightning_crmt.criterion import Criterion
from lightning_crmt.data import MultimodalDataset
from lightning_crmt.encoders import MLP
from lightning_crmt.methods import (
    AdversarialTraining,
    GaussianNoise,
    Method,
    Mixup,
    ModalityDropout,
    NoiseConsistency,
    TeacherFeatures,
)
from lightning_crmt.methods.noise_consistency import disagreement
from lightning_crmt.targets import MixedTarget

ATTACK = LossAscent(Budget(0.1))
ADAM = partial(torch.optim.Adam, lr=3e-3)


class Watching(Method):
    """Keeps what the methods before it make of a batch."""

    def __init__(self):
        self.seen = []

    def transform(self, module, inputs, target):
        self.seen.append((inputs, target))
        return inputs, target


def batch(size=4000):
    torch.manual_seed(0)
    return {"a": torch.randn(size, 5), "b": torch.randn(size, 2, 3)}, torch.arange(size) % CLASSES


def noise_of(method, inputs, target):
    noisy, same = method.transform(None, inputs, target)
    assert same is target
    return {name: (noisy[name] - inputs[name]).flatten(1) for name in inputs}


# --- noise


@pytest.mark.parametrize("sigma", [0.3, {"a": 0.1, "b": 2.0}])
def test_noise_is_independent_gaussian_of_the_size_of_its_modality(sigma):
    inputs, y = batch()
    noise = noise_of(GaussianNoise(sigma), inputs, y)
    for name, each in noise.items():
        std = sigma if isinstance(sigma, float) else sigma[name]
        scaled = each / std
        assert scaled.mean().item() == pytest.approx(0, abs=0.03)
        assert scaled.std().item() == pytest.approx(1, abs=0.03)
        assert scaled.pow(4).mean().item() == pytest.approx(3, abs=0.2)
    every = torch.cat([each / each.std() for each in noise.values()], dim=1)
    others = torch.cat([every, every.roll(1, 0)], dim=1).T.corrcoef() - torch.eye(2 * every.shape[1])
    assert others.abs().max() < 0.1  # of entries, modalities and samples


def test_every_batch_has_noise_of_its_own_from_the_seed_of_the_fit():
    inputs, y = batch(8)
    method, found = GaussianNoise(0.3), []
    for _ in range(2):
        torch.manual_seed(3)
        found.append([method.transform(None, inputs, y)[0]["a"] for _ in range(2)])
    (first, second), again = found
    assert not first.equal(second)
    assert first.equal(again[0])
    assert second.equal(again[1])


def test_what_has_no_noise_is_left_alone():
    here = torch.tensor([True, False, True])
    inputs = {
        "audio": torch.zeros(3, 4),
        "image": torch.zeros(3, 2),
        "text": torch.tensor([[5, 2], [1, 0], [3, 3]]),
        "audio.present": here,
        "image.mask": torch.ones(3, 2),
    }
    for sigma in (0.5, {"audio": 0.5, "image": 0.5}, {"audio": 0.5, "image": 0, "text": 0}):
        noisy, _ = GaussianNoise(sigma).transform(None, inputs, torch.zeros(3))
        assert all(noisy[name] is inputs[name] for name in ("text", "audio.present", "image.mask"))
        assert (noisy["audio"][here] != 0).all()
        assert not noisy["audio"][~here].any()
        assert (noisy["image"] is inputs["image"]) == (sigma != 0.5 and sigma["image"] == 0)
    assert not inputs["audio"].any()


def test_the_order_of_mixup_and_noise_decides_the_size_of_the_noise():
    size, sigma = 20_000, 0.5
    inputs, y = {"a": torch.zeros(size, 5)}, torch.zeros(size)
    mixup, noise = Mixup(), GaussianNoise(sigma)
    torch.manual_seed(1)
    after, target = noise.transform(None, *mixup.transform(None, inputs, y))
    assert isinstance(target, MixedTarget)
    assert after["a"].std().item() == pytest.approx(sigma, rel=0.02)
    before, target = mixup.transform(None, *noise.transform(None, inputs, y))
    size = math.hypot(target.share, 1 - target.share)
    assert size < 0.95
    assert before["a"].std().item() == pytest.approx(sigma * size, rel=0.02)


def test_attacks_before_noise_see_clean_inputs_and_after_it_the_noise():
    module = model_of()
    x = {name: torch.randn(64, size, dtype=torch.double) for name, size in SIZES.items() if name in "ab"}
    y = torch.arange(64) % CLASSES
    attack = AdversarialTraining(ATTACK)
    moved, _ = attack.transform(module, x, y)
    torch.manual_seed(2)
    noisy, _ = GaussianNoise(0.3).transform(module, moved, y)
    torch.manual_seed(2)
    noise = noise_of(GaussianNoise(0.3), x, y)
    for name, value in noisy.items():
        torch.testing.assert_close(value - moved[name], noise[name])
    torch.manual_seed(2)
    first, _ = GaussianNoise(0.3).transform(module, x, y)
    attacked, _ = attack.transform(module, first, y)
    for found, start in ((moved, x), (attacked, first)):
        distance = torch.cat([found[n] - start[n] for n in x], dim=1).norm(dim=1)
        assert (distance <= 0.1 + 1e-9).all()
        assert (distance > 0.05).all()


@pytest.mark.parametrize("make", [lambda: GaussianNoise(0.2), lambda: NoiseConsistency(0.2)])
@pytest.mark.parametrize(
    "others",
    [
        lambda: [Mixup()],
        lambda: [AdversarialTraining(ATTACK)],
        lambda: [AdversarialTraining(ATTACK), Mixup()],
        lambda: [ModalityDropout()],
        lambda: [RadiusTraining(0.1), Mixup()],
    ],
)
def test_they_compose_under_crmt(make, others, make_model, make_trainer, data):
    module, before, after = make_model(rho=0.3), Watching(), Watching()
    state = {key: value.clone() for key, value in module.state_dict().items()}
    make_trainer(*others(), before, make(), after, max_epochs=1).fit(module, data)
    assert any(not value.equal(state[key]) for key, value in module.state_dict().items())
    assert all(value.isfinite().all() for value in module.state_dict().values())
    assert before.seen
    for (clean, _), (noisy, _) in zip(before.seen, after.seen, strict=True):
        for name in ("fou", "mor"):
            copies = clean[name].repeat(len(noisy[name]) // len(clean[name]), 1)
            noise = noisy[name] - copies
            here = clean.get(f"{name}.present")
            if here is not None:
                noise = noise[here.repeat(len(noise) // len(here))]
            assert noise.std().item() == pytest.approx(0.2, abs=0.02)


REFUSED = {("Mixup", False): "must come after Mixup", ("TeacherFeatures", True): "must come before TeacherFeatures"}


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("name", [name for name in MAKE if name not in ("GaussianNoise", "NoiseConsistency")])
def test_copies_suit_every_other_callback_or_are_refused(name, before, make_model, make_trainer, data):
    callbacks = [MAKE[name](), NoiseConsistency(0.1)][:: 1 if before else -1]
    module, trainer = make_model(head=head_for(name)), make_trainer(*callbacks)
    if message := REFUSED.get((name, before)):
        with pytest.raises(ValueError, match=message):
            trainer.fit(module, data)
        return
    trainer.fit(module, data)
    assert all(value.isfinite().all() for value in module.state_dict().values())


def test_a_model_that_saw_noise_is_better_under_noise(make_trainer, data):
    """Or the method would do nothing that smoothing needs."""

    def accuracy(*callbacks):
        torch.manual_seed(0)
        module = CRMTModule({"fou": MLP(76, 32), "mor": MLP(6, 32)}, num_classes=10, rho=0.0, optimizer=ADAM)
        make_trainer(*callbacks, max_epochs=25, limit_val_batches=0).fit(module, data)
        part = data.parts["val"]
        torch.manual_seed(1)
        with torch.no_grad():
            draws = [module.eval()(GaussianNoise(0.3).transform(module, part.inputs, None)[0]) for _ in range(5)]
        return sum((each.logits.argmax(dim=1) == part.target).double().mean().item() for each in draws) / 5

    assert accuracy(GaussianNoise(0.3)) > accuracy() + 0.03


# --- consistency


def slow_disagreement(logits, multi_label):
    """By loops over samples, copies and classes, in the form of the paper."""

    def probabilities(row):
        if multi_label:
            return [[1 / (1 + math.exp(h)), 1 / (1 + math.exp(-h))] for h in row]
        total = sum(math.exp(h) for h in row)
        return [[math.exp(h) / total for h in row]]

    divergences, entropies = [], []
    for sample in range(logits.shape[1]):
        copies = [probabilities(copy[sample].tolist()) for copy in logits]
        divergence = entropy = 0.0
        for parts in zip(*copies, strict=True):
            mean = [sum(values) / len(parts) for values in zip(*parts, strict=True)]
            entropy -= sum(p * math.log(p) for p in mean) / len(copies[0])
            for part in parts:
                terms = [p * math.log(p / q) for p, q in zip(mean, part, strict=True)]
                divergence += sum(terms) / len(parts) / len(copies[0])
        divergences.append(divergence)
        entropies.append(entropy)
    return torch.tensor(divergences, dtype=torch.double), torch.tensor(entropies, dtype=torch.double)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("copies", [2, 5])
def test_disagreement_is_the_formula(multi_label, copies):
    torch.manual_seed(0)
    logits = 3 * torch.randn(copies, 7, 4, dtype=torch.double)
    found = disagreement(logits, Criterion(multi_label=multi_label))
    for value, wanted in zip(found, slow_disagreement(logits, multi_label), strict=True):
        torch.testing.assert_close(value, wanted)
    leaf = logits[:, :2].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: disagreement(x, Criterion(multi_label=multi_label)), leaf)


@pytest.mark.parametrize("multi_label", [False, True])
def test_disagreement_is_finite_and_least_where_copies_agree(multi_label):
    criterion = Criterion(multi_label=multi_label)
    torch.manual_seed(0)
    same = torch.randn(1, 9, 3).expand(4, -1, -1)
    divergence, entropy = disagreement(same, criterion)
    assert divergence.abs().max() < 1e-6
    assert (entropy > 0).all()
    for size in (1.0, 1e3, 1e6):
        logits = (size * torch.randn(4, 50, 3)).requires_grad_()
        divergence, entropy = disagreement(logits, criterion)
        assert (divergence > -1e-6).all()
        assert divergence.mean() > 0.05
        assert (entropy <= math.log(2 if multi_label else 3) + 1e-6).all()
        (slope,) = torch.autograd.grad((divergence + entropy).sum(), logits)
        assert slope.isfinite().all()


def kinds():
    def classes(x):
        return x.argmax(dim=1)

    return {
        "classes": (classes, {"class_weights": [1.0, 2.0, 0.5, 1.5], "label_smoothing": 0.1}),
        "ignored": (lambda x: torch.where(x[:, 0] > 0.5, 255, classes(x)), {"ignore_index": 255}),
        "probabilities": (lambda x: (2 * x).softmax(dim=1), {}),
        "labels": (lambda x: x > 0.3, {"multi_label": True}),
    }


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("copies", [2, 3])
@pytest.mark.parametrize("kind", kinds())
def test_the_loss_is_that_of_each_copy_and_the_formula(kind, copies, mixed):
    target_of, settings = kinds()[kind]
    module = model_of(rho=0.3, **settings)
    generator = torch.Generator().manual_seed(4)
    inputs = {n: torch.randn(30, SIZES[n], generator=generator, dtype=torch.double) for n in "ab"}
    inputs["b.present"] = torch.rand(30, generator=generator) < 0.6
    target = target_of(inputs["a"][:, :CLASSES])
    method = NoiseConsistency({"a": 0.4, "b": 0.1}, copies=copies, weight=7.0, entropy_weight=0.3)
    watching = Watching()
    for each in [Mixup()] * mixed + [method, watching]:
        module.training_stage.push(each, method=each)
    x, y = module.training_batch((inputs, target))
    loss = module.crmt_loss(module(x), y)

    # By hand: each copy apart.
    parts = [{n: v[i * 30 : (i + 1) * 30] for n, v in x.items()} for i in range(copies)]
    first = y.first if mixed else y
    assert len(first) == 30 * copies
    own = MixedTarget(y.first[:30], y.second[:30], y.share) if mixed else y[:30]
    outputs = [module(part) for part in parts]
    counted = torch.ones(30, dtype=torch.bool)
    if kind == "ignored":
        counted = (own.first != 255) & (own.second != 255) if mixed else own != 255
        assert 0 < counted.sum() < 30
    stage, plain = module.training_stage, []
    for each in (method, watching):
        stage.pop(each)
    for output in outputs:
        plain.append(module.crmt_loss(output, own))
    divergence, entropy = slow_disagreement(torch.stack([o.logits[counted] for o in outputs]), kind == "labels")
    wanted = torch.stack(plain).mean() + 7.0 * divergence.mean() + 0.3 * entropy.mean()
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=1e-8)


def test_copies_share_all_but_their_noise():
    torch.manual_seed(0)
    inputs = {
        "a": torch.zeros(6, 5),
        "b": torch.zeros(6, 2, 3),
        "text": torch.arange(12).reshape(6, 2),
        "text.mask": torch.ones(6, 2),
        "a.present": torch.tensor([True, True, False] * 2),
    }
    target = MixedTarget(torch.arange(6), torch.arange(6).flip(0), 0.25)
    found, y = NoiseConsistency({"a": 1.0, "b": 0.0}, copies=3).transform(None, inputs, target)
    assert y.share == 0.25
    assert y.first.equal(torch.arange(6).repeat(3))
    assert y.second.equal(torch.arange(6).flip(0).repeat(3))
    for name in ("b", "text", "text.mask", "a.present"):
        assert found[name].equal(torch.cat([inputs[name]] * 3))
    noise = found["a"].reshape(3, 6, 5)
    assert not noise[:, [2, 5]].any()
    assert len(noise[:, [0, 1, 3, 4]].unique()) == 3 * 4 * 5


def test_it_makes_answers_under_noise_agree(make_trainer, data):
    def disagreeing(method):
        torch.manual_seed(0)
        module = CRMTModule({"fou": MLP(76, 32), "mor": MLP(6, 32)}, num_classes=10, rho=0.0, optimizer=ADAM)
        make_trainer(method, max_epochs=12, limit_val_batches=0).fit(module, data)
        inputs = data.parts["val"].inputs
        torch.manual_seed(1)
        with torch.no_grad():
            logits = [module.eval()(GaussianNoise(0.3).transform(module, inputs, None)[0]).logits for _ in range(4)]
        return disagreement(torch.stack(logits), Criterion())[0].mean().item()

    assert disagreeing(NoiseConsistency(0.3)) < 0.5 * disagreeing(GaussianNoise(0.3))


@pytest.mark.slow
def test_the_example_makes_a_model_that_smoothing_can_certify(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning-crmt"])
    trained = []
    monkeypatch.setattr(NoiseConsistency, "on_train_end", lambda self, _, module: trained.append((self, module)))
    example = Path(__file__).parent.parent / "examples" / "mfeat_smoothed.yaml"
    quiet = ["--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.enable_checkpointing=false"]
    main(["fit", "--config", str(example), "--trainer.max_epochs=20", *quiet])
    ((method, module),) = trained
    part = module.trainer.datamodule.parts["val"]
    inputs, target = {name: value[:100] for name, value in part.inputs.items()}, part.target[:100]
    certificate = SmoothedClassifier(module, method.sigma, max_draws=2000).certify(inputs, radii=[0.1])
    safe = (certificate.prediction == target) & (certificate.radius() > 0.1)
    assert safe.double().mean() > 0.6


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        (lambda: [NoiseConsistency(0.1), Mixup()], "NoiseConsistency must come after Mixup"),
        (lambda: [GaussianNoise(0.1), NoiseConsistency(0.1)], "leave GaussianNoise out"),
        (lambda: [NoiseConsistency(0.1), NoiseConsistency(0.2)], "leave NoiseConsistency out"),
        (lambda: [TeacherFeatures({"mor": MLP(6, 16)}), NoiseConsistency(0.1)], "must come before TeacherFeatures"),
        (lambda: [GaussianNoise({"fuo": 0.1})], r"`sigma` must name modalities among \['fou', 'mor'\], got \['fuo'\]"),
        (lambda: [NoiseConsistency({"fuo": 0.1})], r"`sigma` must name modalities among \['fou', 'mor'\]"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_step(callbacks, message, make_model, make_trainer, data):
    watching = Watching()
    with pytest.raises(ValueError, match=message):
        make_trainer(*callbacks(), watching).fit(make_model(), data)
    assert not watching.seen


def test_a_loss_of_other_samples_is_refused():
    module, method = model_of(), NoiseConsistency(0.1, copies=3)
    inputs, y = {n: torch.zeros(4, SIZES[n], dtype=torch.double) for n in "ab"}, torch.arange(4)
    with pytest.raises(RuntimeError, match=r"made 3 copies of every sample .* got 4 samples"):
        method.term(module, module(inputs), y)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: GaussianNoise(0.0), ValueError, "`sigma` must be at least 0 and finite, and above 0"),
        (lambda: GaussianNoise({"a": math.inf}), ValueError, "`sigma` must be at least 0 and finite"),
        (lambda: GaussianNoise("much"), TypeError, "`sigma` must be a number, or numbers by modality, got 'much'"),
        (lambda: NoiseConsistency(-0.1), ValueError, "`sigma` must be at least 0 and finite"),
        (lambda: NoiseConsistency(0.1, copies=1), ValueError, "`copies` must be at least 2, got 1"),
        (lambda: NoiseConsistency(0.1, weight=-1), ValueError, "`weight` must be at least 0, got -1"),
        (lambda: NoiseConsistency(0.1, entropy_weight=-1), ValueError, "`entropy_weight` must be at least 0"),
        (
            lambda: GaussianNoise({"text": 0.1}).transform(None, {"text": torch.ones(2, 3).long()}, None),
            TypeError,
            r"`sigma\['text'\]` must be of real numbers to have noise",
        ),
    ],
)
def test_bad_settings(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_presence_of_each_copy_may_differ(make_trainer):
    """Modalities dropped after the copies were made: the answer is to be the same whatever is missing, too."""
    module = model_of(rho=0.3, lr=0.1)
    inputs = {n: torch.randn(40, SIZES[n], dtype=torch.double) for n in "ab"}
    loader = DataLoader(MultimodalDataset(inputs, torch.arange(40) % CLASSES), batch_size=20)
    watching = Watching()
    trainer = make_trainer(NoiseConsistency(0.1), ModalityDropout(0.5), watching, precision="64-true", max_epochs=1)
    trainer.fit(module, loader, loader)
    here = watching.seen[0][0]["a.present"].reshape(2, 20)
    assert not here[0].equal(here[1])


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("make", [lambda: GaussianNoise(0.2), lambda: NoiseConsistency(0.2)])
def test_lower_precisions(make, precision, make_model, make_trainer, data):
    module = make_model(rho=0.0)
    make_trainer(make(), precision=precision, max_epochs=1, limit_val_batches=0).fit(module, data)
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    assert not any(isinstance(part, nn.Dropout) and not part.training for part in module.modules())
