# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Prototypes, and what is drawn to them how strongly."""

import math

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from lightning_crmt import CRMTModule, LinearFusion
from lightning_crmt.callbacks import IntegrationReweighting
from lightning_crmt.data import UCIMultiFeatures
from lightning_crmt.encoders import MLP
from lightning_crmt.methods import Mixup, PrototypicalRebalancing
from lightning_crmt.methods.prototypical_rebalancing import Prototypes, coefficients
from lightning_crmt.modality import FusionOutput
from lightning_crmt.targets import MixedTarget


def model(names=("fou", "mor"), **settings):
    torch.manual_seed(0)
    sizes = {"fou": 76, "mor": 6, "zer": 47}
    settings = {"num_classes": 10, "rho": 0.0, "head": LinearFusion} | settings
    module = CRMTModule({name: MLP(sizes[name], 16) for name in names}, **settings)
    module.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)  # until a test has its own
    return module


def slow_parts(features, prototypes, classes):
    """Score s, mean cross-entropy and mean entropy of one modality, by loops over what has a prototype."""
    known = [c for c in range(len(prototypes)) if prototypes[c] is not None]
    score, loss, entropy, counted = 0.0, 0.0, 0.0, 0
    for z, y in zip(features.tolist(), classes.tolist(), strict=True):
        d = {c: -math.dist(z, prototypes[c]) for c in known}
        total = sum(math.exp(value) for value in d.values())
        q = {c: math.exp(value) / total for c, value in d.items()}
        entropy -= sum(p * math.log(p) for p in q.values())
        if y in q:
            counted += 1
            score += q[y]
            loss -= math.log(q[y])
    return score, loss / max(counted, 1), entropy / len(features)


def slow_term(features, prototypes, classes, alpha, mu):
    parts = {name: slow_parts(z, prototypes[name], classes) for name, z in features.items()}
    total = 0.0
    for name, (score, loss, entropy) in parts.items():
        others = [parts[other][0] for other in parts if other != name]
        ratio = (sum(others) / len(others)) / score
        total += alpha * min(max(ratio - 1, 0), 1) * loss - mu * min(max(1 / ratio - 1, 0), 1) * entropy
    return total


def filled(method, prototypes):
    """Give the method prototypes; None where a class has none."""
    for name, rows in prototypes.items():
        size = len(next(row for row in rows if row is not None))
        sums = torch.tensor([[0.0] * size if row is None else row for row in rows])
        method.prototypes[name] = Prototypes(method.momentum)
        method.prototypes[name].update(sums, torch.tensor([float(row is not None) for row in rows]))
    return method


@pytest.mark.parametrize("names", [("fou", "mor"), ("fou", "mor", "zer")])
@pytest.mark.parametrize("absent", [None, 2])
def test_the_term_by_hand(names, absent):
    torch.manual_seed(0)
    module = model(names, num_classes=4)
    y = torch.tensor([0, 1, 2, 3, 2, 0, 1])
    spread = {"fou": 0.3, "mor": 3.0, "zer": 1.0}
    prototypes, features = {}, {}
    for name in names:
        rows = torch.randn(4, 16)
        features[name] = (rows[y] + spread[name] * torch.randn(7, 16)).requires_grad_()
        prototypes[name] = [None if c == absent else rows[c].tolist() for c in range(4)]
    method = filled(PrototypicalRebalancing(weight=0.7, entropy_weight=0.3), prototypes)
    output = FusionOutput(torch.zeros(7, 4), {}, features)
    found = method.term(module, output, y)
    assert found.item() == pytest.approx(slow_term(features, prototypes, y, 0.7, 0.3), abs=1e-5)
    weaker, stronger = torch.autograd.grad(
        PrototypicalRebalancing.term(
            filled(PrototypicalRebalancing(entropy_weight=0.0), prototypes), module, output, y
        ),
        [features["mor"], features["fou"]],
    )
    assert weaker.any()
    assert not stronger.any()


def test_equal_classes_of_a_mixture_are_the_plain_term():
    torch.manual_seed(0)
    module, y = model(num_classes=3), torch.tensor([0, 1, 2, 1])
    prototypes = {name: torch.randn(3, 16).tolist() for name in ("fou", "mor")}
    method = filled(PrototypicalRebalancing(), prototypes)
    output = FusionOutput(torch.zeros(4, 3), {}, {name: torch.randn(4, 16) for name in prototypes})
    plain = method.term(module, output, y)
    torch.testing.assert_close(method.term(module, output, MixedTarget(y, y, 0.3)), plain)
    logits = {name: method.prototypes[name].logits(z) for name, z in output.features.items()}
    first, second, share = MixedTarget(y, y.flip(0), 0.3)
    scores, losses, entropies = [], [], []
    for value in logits.values():
        q = value.softmax(1)
        own = share * q.gather(1, first[:, None]) + (1 - share) * q.gather(1, second[:, None])
        scores.append(own.sum())
        log = q.log()
        losses.append(-(share * log.gather(1, first[:, None]) + (1 - share) * log.gather(1, second[:, None])).mean())
        entropies.append(-(q * log).sum(1).mean())
    beta, gamma = coefficients(torch.stack(scores))
    expected = (beta * torch.stack(losses)).sum() - 0.01 * (gamma * torch.stack(entropies)).sum()
    torch.testing.assert_close(method.term(module, output, MixedTarget(first, second, share)), expected)


def test_coefficients():
    beta, gamma = coefficients(torch.tensor([4.0, 1.0, 2.5]))
    # Means of the others: 1.75, 3.25, 2.5.
    torch.testing.assert_close(beta, torch.tensor([0.0, 1.0, 0.0]))
    torch.testing.assert_close(gamma, torch.tensor([1.0, 0.0, 0.0]))
    beta, gamma = coefficients(torch.tensor([0.0, 0.0]))
    assert not beta.any()
    assert not gamma.any()
    ratio = 1.25
    beta, gamma = coefficients(torch.tensor([2 * ratio, 2.0]))
    torch.testing.assert_close(beta, torch.tensor([0.0, ratio - 1]))  # the second is weaker
    torch.testing.assert_close(gamma, torch.tensor([ratio - 1, 0.0]))


def test_moving_average_and_classes_without_samples():
    prototypes = Prototypes(momentum=0.25)
    prototypes.update(torch.tensor([[4.0], [0.0], [3.0], [0.0]]), torch.tensor([2.0, 0.0, 1.0, 0.0]))
    prototypes.update(torch.tensor([[8.0], [6.0], [0.0], [0.0]]), torch.tensor([1.0, 3.0, 0.0, 0.0]))
    assert prototypes.known.tolist() == [True, True, True, False]
    assert prototypes.means[:3, 0].tolist() == [0.75 * 8 + 0.25 * 2, 2.0, 3.0]
    assert prototypes.logits(torch.tensor([[1.0]])).tolist() == [[-5.5, -1.0, -2.0]]
    column, known = prototypes.columns(torch.tensor([2, 3, 0]))
    assert (column.tolist()[0], column.tolist()[2], known.tolist()) == (2, 0, [True, False, True])


def test_a_feature_on_its_prototype_has_a_gradient():
    prototypes = Prototypes(momentum=0.0)
    prototypes.update(torch.ones(2, 3), torch.tensor([1.0, 0.5]))
    z = torch.ones(1, 3, requires_grad=True)
    prototypes.logits(z).sum().backward()
    assert z.grad.isfinite().all()


def test_prototypes_are_class_means_of_the_training_data(make_trainer):
    data = UCIMultiFeatures(views=("fou", "mor", "zer"), batch_size=190)  # the last batch has 60
    module, found, expected = model(("fou", "mor", "zer")), [], []

    class Watching(Mixup):  # prototypes are of unmixed samples
        def on_train_epoch_start(self, trainer, pl_module):
            train = data.parts["train"]
            with torch.no_grad():
                features = pl_module(train.inputs).features
            expected.append({n: [z[train.target == c].mean(0) for c in range(10)] for n, z in features.items()})
            found.append({name: each.means.clone() for name, each in method.prototypes.items()})

    method = PrototypicalRebalancing(momentum=0.5)
    make_trainer(method, Watching(), max_epochs=2, accumulate_grad_batches=2).fit(module, data)
    for name in module.encoders:
        first, second = (torch.stack(each[name]) for each in expected)
        torch.testing.assert_close(found[0][name], first)
        torch.testing.assert_close(found[1][name], 0.5 * second + 0.5 * first)


def test_the_entropy_counts_in_early_epochs_only(make_trainer, data):
    def fit(entropy_weight, epochs):
        module = model()
        make_trainer(
            PrototypicalRebalancing(0.0, entropy_weight=entropy_weight, entropy_epochs=epochs), max_epochs=1
        ).fit(module, data)
        return module.state_dict()

    without, late, early = fit(0.0, 5), fit(1.0, 0), fit(1.0, 1)
    assert all(value.equal(late[name]) for name, value in without.items())
    assert not all(value.equal(early[name]) for name, value in without.items())


def test_the_weaker_modality_is_drawn_to_its_prototypes(make_trainer, data):
    def fit(weight):
        module = model(optimizer=lambda groups: torch.optim.AdamW(groups, lr=0.01))
        method = PrototypicalRebalancing(weight, entropy_weight=0.0)
        make_trainer(method, max_epochs=4).fit(module, data)
        part = data.parts["train"]
        with torch.no_grad():
            features = module(part.inputs).features
        classes = {name: method.prototypes[name].logits(z).softmax(1) for name, z in features.items()}
        return {name: q.gather(1, part.target[:, None]).mean().item() for name, q in classes.items()}

    plain, rebalanced = fit(0.0), fit(2.0)
    weaker = min(plain, key=plain.get)
    assert rebalanced[weaker] > plain[weaker] + 0.02


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_resumed_run_equals_the_uninterrupted_one(make_trainer, data, tmp_path):
    def fit(module, **settings):
        saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        method = PrototypicalRebalancing()
        make_trainer(method, saving, max_epochs=3, enable_checkpointing=True).fit(module, data, **settings)
        return {**module.state_dict(), **{name: each.means for name, each in method.prototypes.items()}}

    whole = fit(model())
    resumed = fit(model(), ckpt_path=tmp_path / "epoch=0.ckpt")
    assert [name for name in whole if not whole[name].equal(resumed[name])] == []


def test_measuring_leaves_no_trace(make_model, make_trainer, data):
    def fit(*callbacks):
        module = make_model()
        make_trainer(*callbacks, max_epochs=2).fit(module, data)
        return module.state_dict()

    without, measured = fit(), fit(PrototypicalRebalancing(0.0, entropy_weight=0.0))
    assert all(value.equal(measured[name]) for name, value in without.items())


def test_composes(make_model, make_trainer, data):
    module = make_model()
    callbacks = [Mixup(), PrototypicalRebalancing(), IntegrationReweighting(epochs=1)]
    make_trainer(*callbacks, max_epochs=2, precision="bf16-mixed").fit(module, data)
    assert all(value.isfinite().all() for value in module.state_dict().values())
    data.setup()
    few = DataLoader(data.parts["val"], batch_size=100)
    make_trainer(PrototypicalRebalancing(dataloader=few), fast_dev_run=1).fit(make_model(), data)


def test_before_the_first_measurement_it_adds_nothing(make_model):
    module = make_model().eval()
    output = module({"fou": torch.randn(2, 76), "mor": torch.randn(2, 6)})
    assert PrototypicalRebalancing().term(module, output, torch.tensor([0, 1])) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PrototypicalRebalancing(-1.0), "`weight` must be at least 0, got -1.0"),
        (lambda: PrototypicalRebalancing(entropy_weight=-1.0), "`entropy_weight` must be at least 0"),
        (lambda: PrototypicalRebalancing(entropy_epochs=-1), "`entropy_epochs` must be at least 0"),
        (lambda: PrototypicalRebalancing(momentum=1.0), "`momentum` must be at least 0 and below 1, got 1.0"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_one_modality_is_refused(make_trainer):
    data = UCIMultiFeatures(views=("mor",))
    with pytest.raises(ValueError, match=r"compares modalities with each other and needs at least 2, got \['mor'\]"):
        make_trainer(PrototypicalRebalancing()).fit(model(("mor",)), data)
