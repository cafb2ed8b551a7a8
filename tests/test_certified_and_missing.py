# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
import math
import re
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from support.modules import GivesDict, GivesTuple, Keywords, Named, Positional, TakesDict
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_crmt import CRMTModule, LinearFusion
from lightning_crmt.attacks import mean_inputs
from lightning_crmt.callbacks import CertifiedRobustness, MissingModalities
from lightning_crmt.certification import certify_late_fusion
from lightning_crmt.encoders import MLP, LipschitzMLP
from lightning_crmt.layers import with_fixed_weights

Estimated = partial(CertifiedRobustness, constants="estimated")


def expected_metrics(logits_of, inputs, target, radii):
    """Slow, from the formulas: gradients sample by sample, pair by pair; then the bound sample by sample."""
    names, count = list(inputs), len(target)
    speeds, margins = {}, []
    for i in range(count):
        sample = {name: value[i : i + 1].clone().requires_grad_(True) for name, value in inputs.items()}
        logits = logits_of(sample)[0]
        classes = range(len(logits))
        margins.append([[(logits[p] - logits[j]).item() for j in classes] for p in classes])
        for p in classes:
            for j in classes:
                if p != j:
                    gradients = torch.autograd.grad(logits[p] - logits[j], list(sample.values()), retain_graph=True)
                    for name, gradient in zip(names, gradients, strict=True):
                        key = (name, p, j)
                        speeds[key] = max(speeds.get(key, 0.0), gradient.norm().item())
    found = {}
    for label, chosen in [("joint", names), *((name, [name]) for name in names)]:
        reached = []
        for i, y in enumerate(target.tolist()):
            p = max(classes, key=lambda k: margins[i][k][0])
            bounds = [margins[i][p][j] / math.hypot(*(speeds[m, p, j] for m in chosen)) for j in classes if j != p]
            reached.append(min(bounds) if p == y else 0.0)
        found[f"estimated_radius/{label}"] = sum(reached) / count
        for r in radii:
            found[f"estimated_accuracy/{label}@{r:g}"] = sum(value > r for value in reached) / count
    found["margin/joint"] = (
        sum(min(margins[i][y][j] for j in classes if j != y) for i, y in enumerate(target.tolist())) / count
    )
    return found


def test_logged_numbers_are_those_of_the_formulas(make_model, data, make_trainer):
    model = make_model()
    data.setup()
    for part in data.parts.values():  # few samples, because the oracle is slow
        part.inputs = {name: value[:300:10] for name, value in part.inputs.items()}
        part.target = part.target[:300:10]
    data.batch_size = 7
    radii = [0.0, 0.05, 0.1]
    make_trainer(max_epochs=20, limit_val_batches=0).fit(model, datamodule=data)
    (found,) = make_trainer(Estimated(radii)).test(model, datamodule=data, verbose=False)
    part = data.parts["test"]
    model.eval()
    expected = expected_metrics(lambda x: model(x).logits, part.inputs, part.target, radii)
    assert expected["estimated_radius/joint"] > 0.01
    for key, value in expected.items():
        assert found[f"test/{key}"] == pytest.approx(value, rel=2e-4), key
    for name, scores in model(part.inputs).scores.items():
        uni = [min(s[y] - s[j] for j in range(10) if j != y).item() for s, y in zip(scores, part.target, strict=True)]
        assert found[f"test/margin/{name}"] == pytest.approx(sum(uni) / len(uni), rel=1e-4)
        assert found[f"test/integration_factor/{name}"] > 0
        assert found[f"test/vulnerability/{name}"] > 0


def test_no_key_says_certified(make_model, data, make_trainer):
    (found,) = make_trainer(Estimated([0.1])).test(make_model(), datamodule=data, verbose=False)
    assert not [key for key in found if "certified" in key]
    assert "test/estimated_accuracy/joint@0.1" in found


@pytest.mark.parametrize("batch_size", [7, 400])
def test_numbers_do_not_depend_on_the_split_into_batches(batch_size, make_model, data, make_trainer):
    observers = [Estimated([0.05]), MissingModalities("dropped")]
    (whole,) = make_trainer(*observers).test(make_model(), datamodule=data, verbose=False)
    data.batch_size = batch_size
    (split,) = make_trainer(*observers).test(make_model(), datamodule=data, verbose=False)
    assert whole == pytest.approx(split, rel=1e-4)


@pytest.mark.parametrize("batches", ["tuple", "dict and target", "dict"])
@pytest.mark.parametrize("kind", [Positional, Keywords, TakesDict, GivesTuple, GivesDict])
def test_any_module_by_naming_its_inputs(kind, batches, make_trainer):
    torch.manual_seed(0)
    model = kind(None)
    image, audio, y = torch.randn(20, 4), torch.randn(20, 3), torch.arange(20) % 5
    dataset = {
        "tuple": TensorDataset(image, audio, y),
        "dict and target": Named(image, audio, y, nested=True),
        "dict": Named(image, audio, y, nested=False),
    }[batches]
    names = ("image", "audio")
    trainer = make_trainer(Estimated([0.1], inputs=names), MissingModalities(inputs=names))
    (found,) = trainer.test(model, DataLoader(dataset, batch_size=8), verbose=False)
    expected = expected_metrics(lambda x: model.logits(**x), {"image": image, "audio": audio}, y, [0.1])
    for key, value in expected.items():
        assert found[f"test/{key}"] == pytest.approx(value, rel=1e-4, abs=1e-6), key
    for name in names:
        kept = {"image": image, "audio": audio} | {name: torch.zeros_like({"image": image, "audio": audio}[name])}
        accuracy = (model.logits(**kept).argmax(1) == y).float().mean().item()
        assert found[f"test/accuracy_zeroed/{name}"] == pytest.approx(accuracy)


def test_missing_subsets_by_zeros_and_by_dropping(data, make_trainer):
    data.views = ("fou", "mor", "kar")
    sizes = data.in_features
    model = CRMTModule({name: MLP(size, 10) for name, size in sizes.items()}, num_classes=10)
    observers = [MissingModalities("zeroed"), MissingModalities("dropped", max_missing=1)]
    (found,) = make_trainer(*observers).test(model, datamodule=data, verbose=False)
    zeroed = {key.split("/")[2] for key in found if "zeroed" in key}
    assert zeroed == {"none", "fou", "mor", "kar", "fou+mor", "fou+kar", "mor+kar", "worst"}
    assert {key.split("/")[2] for key in found if "dropped" in key} == {"none", "fou", "mor", "kar", "worst"}
    assert found["test/accuracy_zeroed/none"] == pytest.approx(found["test/accuracy/joint"])
    assert found["test/accuracy_dropped/none"] == pytest.approx(found["test/accuracy/joint"])
    part = data.parts["test"]
    scores = model.eval()(part.inputs).scores
    weights, bias = model.head.integration_weights, model.head.bias
    logits = weights["fou"] * scores["fou"] + weights["kar"] * scores["kar"] + bias
    expected = (logits.argmax(1) == part.target).float().mean().item()
    assert found["test/accuracy_dropped/mor"] == pytest.approx(expected)
    blind = {name: x if name == "kar" else torch.zeros_like(x) for name, x in part.inputs.items()}
    expected = (model(blind).logits.argmax(1) == part.target).float().mean().item()
    assert found["test/accuracy_zeroed/fou+mor"] == pytest.approx(expected)


def test_the_worst_is_right_whatever_is_missing_and_values_may_stand_for_it(make_model, data, make_trainer):
    model = make_model()
    make_trainer(max_epochs=8, limit_val_batches=0).fit(model, datamodule=data)
    means = mean_inputs(data.train_dataloader())
    observers = [MissingModalities(), MissingModalities({"mor": means["mor"], "fou": 0.1})]
    (found,) = make_trainer(*observers).test(model, datamodule=data, verbose=False)
    part = data.parts["test"]
    model.eval()
    stands = {
        "zeroed": {"fou": torch.zeros(76), "mor": torch.zeros(6)},
        "imputed": {"fou": torch.full((76,), 0.1), "mor": means["mor"].float()},
    }
    for kind, stand in stands.items():
        right = model(part.inputs).logits.argmax(1) == part.target
        for name, x in part.inputs.items():
            without = model({**part.inputs, name: stand[name].expand_as(x)}).logits.argmax(1) == part.target
            assert found[f"test/accuracy_{kind}/{name}"] == pytest.approx(without.float().mean().item())
            right &= without
        assert found[f"test/accuracy_{kind}/worst"] == pytest.approx(right.float().mean().item())
        assert right.any()
        assert right.float().mean() < min(found[f"test/accuracy_{kind}/{name}"] for name in ("fou", "mor"))


def test_a_value_for_some_modalities_leaves_the_others_alone(make_model, data, make_trainer):
    (found,) = make_trainer(MissingModalities({"mor": -1})).test(make_model(), datamodule=data, verbose=False)
    assert {key for key in found if "imputed" in key} == {
        f"test/accuracy_imputed/{x}" for x in ("none", "mor", "worst")
    }


def test_measured_every_n_epochs_logged_every_epoch(make_model, data, make_trainer, tmp_path):
    key = "val/estimated_radius/joint"
    seen = []

    class Watch(CertifiedRobustness):
        def on_validation_epoch_end(self, trainer, pl_module):
            super().on_validation_epoch_end(trainer, pl_module)
            seen.append(trainer.callback_metrics.get(key))

    best = ModelCheckpoint(tmp_path, monitor=key, mode="max")
    callbacks = [Watch(constants="estimated", every_n_epochs=2), best]
    make_trainer(*callbacks, max_epochs=6, enable_checkpointing=True, num_sanity_val_steps=2).fit(
        make_model(), datamodule=data
    )
    sanity, *epochs = [None if value is None else float(value) for value in seen]
    assert sanity is None
    assert epochs[0] == epochs[1] != epochs[2] == epochs[3] != epochs[4] != epochs[5], "0, 2, 4, and the last"
    assert float(best.best_model_score) == max(epochs)


def test_two_loaders_are_kept_apart(make_model, data, make_trainer):
    data.setup()
    loaders = [data.val_dataloader(), data.test_dataloader()]
    found = make_trainer(Estimated(), MissingModalities()).test(make_model(), loaders, verbose=False)
    keys = {key for each in found for key in each}
    assert {"test/estimated_radius/joint/dataloader_idx_0", "test/estimated_radius/joint/dataloader_idx_1"} <= keys


def test_max_batches_limits_the_cost(make_model, data, make_trainer):
    (few,) = make_trainer(MissingModalities(max_batches=1)).test(make_model(), datamodule=data, verbose=False)
    part = data.parts["test"]
    model = make_model().eval()
    blind = {"fou": part.inputs["fou"][:200], "mor": torch.zeros(200, 6)}
    expected = (model(blind).logits.argmax(1) == part.target[:200]).float().mean().item()
    assert few["test/accuracy_zeroed/mor"] == pytest.approx(expected)


def test_a_model_that_diverged_has_radius_zero_and_the_run_goes_on(data, make_trainer):
    model = Positional(None)
    with torch.no_grad():
        model.image_net.weight[0, 0] = torch.nan
    image, audio, y = torch.randn(20, 4), torch.randn(20, 3), torch.arange(20) % 5
    loader = DataLoader(TensorDataset(image, audio, y), batch_size=8)
    trainer = make_trainer(Estimated([0.0], inputs=("image", "audio")))
    (found,) = trainer.test(model, loader, verbose=False)
    for name in ("joint", "image", "audio"):
        assert found[f"test/estimated_radius/{name}"] == 0
        assert found[f"test/estimated_accuracy/{name}@0"] == 0


@pytest.mark.parametrize(
    ("callback", "error", "message"),
    [
        (
            lambda: Estimated([-0.1]),
            ValueError,
            "`radii` must be at least 0, finite and different, got [-0.1]",
        ),
        (
            lambda: Estimated(every_n_epochs=0),
            ValueError,
            "`every_n_epochs` must be at least 1, got 0",
        ),
        (
            lambda: Estimated(max_batches=0),
            ValueError,
            "`max_batches` must be at least 1, got 0",
        ),
        (
            lambda: Estimated(inputs="fou"),
            TypeError,
            "`inputs` must be a sequence of names, got the string",
        ),
        (
            lambda: MissingModalities("noise"),
            ValueError,
            "`fill` must be 'zeroed', 'dropped' or values by modality, got 'no",
        ),
        (
            lambda: MissingModalities({}),
            ValueError,
            "`fill` must be 'zeroed', 'dropped' or values by modality, got {}",
        ),
        (lambda: MissingModalities(max_missing=0), ValueError, "`max_missing` must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_refused(callback, error, message):
    with pytest.raises(error, match=re.escape(message)):
        callback()


@pytest.mark.parametrize(
    ("callback", "error", "message"),
    [
        (Estimated(), ValueError, "`inputs` must name the modalities of Positional"),
        (
            Estimated(inputs=("a", "b", "c")),
            ValueError,
            "how to call Positional.forward(first, second)",
        ),
        (CertifiedRobustness(inputs=("a", "b")), TypeError, "constants='sound' needs a CRMT module"),
        (CertifiedRobustness(inputs=("a", "b"), constants="rigorous"), TypeError, "choose constants='estimated'"),
        (Estimated(inputs=("a", "b"), budgets=[{"c": 1.0}]), ValueError, "among ['a', 'b'], got ['c']"),
        (MissingModalities("dropped", inputs=("a", "b")), TypeError, "needs late fusion, whose scores"),
        (
            MissingModalities({"c": 1.0}, inputs=("a", "b")),
            ValueError,
            "`fill` must name modalities among ['a', 'b']",
        ),
        (MissingModalities({"b": torch.zeros(2)}, inputs=("a", "b")), ValueError, "or have the shape (3,) of a sample"),
    ],
)
def test_what_does_not_fit_the_module_is_refused(callback, error, message, make_trainer):
    loader = DataLoader(TensorDataset(torch.randn(8, 4), torch.randn(8, 3), torch.arange(8) % 5), batch_size=8)
    with pytest.raises(error, match=re.escape(message)):
        make_trainer(callback).test(Positional(None), loader, verbose=False)


def test_an_unknown_modality_lists_the_known_ones(make_model, data, make_trainer):
    with pytest.raises(ValueError, match=re.escape("got ['fou', 'zer']: missing ['mor'], unknown ['zer']")):
        make_trainer(Estimated(inputs=("fou", "zer"))).test(make_model(), datamodule=data, verbose=False)


def test_a_model_that_detaches_is_told_so(make_trainer):
    class Detaches(Positional):
        def forward(self, first, second):
            return self.logits(first.detach(), second.detach())

    loader = DataLoader(TensorDataset(torch.randn(8, 4), torch.randn(8, 3), torch.arange(8) % 5), batch_size=8)
    with pytest.raises(RuntimeError, match="carry no gradient to its inputs"):
        make_trainer(Estimated(inputs=("a", "b"))).test(Detaches(None), loader, verbose=False)


def test_linear_head_has_integration_factors(make_model, data, make_trainer):
    model = make_model(head=LinearFusion)
    (found,) = make_trainer(Estimated()).test(model, datamodule=data, verbose=False)
    assert found["test/integration_factor/fou"] > 0


def loader_of(y):
    return DataLoader(TensorDataset(torch.randn(len(y), 4), torch.randn(len(y), 3), y), batch_size=8)


@pytest.mark.parametrize("callback", [Estimated, MissingModalities])
@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.zeros(8, 1, dtype=torch.long), "`target` must have shape (8,)"),
        (torch.full((8,), 5), "class indices from 0 to 4, got values from 5 to 5"),
    ],
)
def test_bad_targets_are_named(callback, y, message, make_trainer):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_trainer(callback(inputs=("a", "b"))).test(Positional(None), loader_of(y), verbose=False)


def test_a_single_logit_is_refused(make_trainer):
    class Binary(Positional):
        def forward(self, first, second):
            return self.logits(first, second)[:, :1]

    with pytest.raises(TypeError, match=re.escape("for a single logit z, return stack([0, z], dim=1)")):
        make_trainer(Estimated(inputs=("a", "b"))).test(
            Binary(None), loader_of(torch.zeros(8, dtype=torch.long)), verbose=False
        )


def test_a_rhythm_that_never_meets_the_validations_still_measures(make_model, data, make_trainer):
    trainer = make_trainer(Estimated(every_n_epochs=2), check_val_every_n_epoch=2, max_epochs=4)
    trainer.fit(make_model(), datamodule=data)
    assert "val/estimated_radius/joint" in trainer.callback_metrics


def test_extra_keywords_of_forward_are_left_alone(make_trainer):
    class Extra(TakesDict):
        def forward(self, batch, **kwargs):
            return super().forward(batch)

    trainer = make_trainer(Estimated(inputs=("image", "audio")))
    (found,) = trainer.test(Extra(None), loader_of(torch.arange(8) % 5), verbose=False)
    assert found["test/estimated_radius/joint"] >= 0


def lipschitz_model(**settings):
    torch.manual_seed(0)
    encoders = {"fou": LipschitzMLP(76, 16, (16,)), "mor": LipschitzMLP(6, 16, (16,))}
    return CRMTModule(encoders, num_classes=10, **settings)


def test_certified_numbers_are_those_of_the_certificate(data, make_trainer):
    model = lipschitz_model()
    make_trainer(max_epochs=30, limit_val_batches=0).fit(model, datamodule=data)
    callback = CertifiedRobustness([0.02, 0.05], budgets=[{"fou": 0.02, "mor": 0.03}])
    (found,) = make_trainer(callback).test(model, datamodule=data, verbose=False)
    part = data.parts["test"]
    certificate = model.certify(part.inputs)
    assert certificate.soundness.certified
    right = certificate.prediction == part.target
    for name, radius in {"joint": certificate.radius(), "mor": certificate.radius(["mor"])}.items():
        robust = right & (radius > 0.02)
        assert 0 < robust.float().mean() < right.float().mean()
        assert found[f"test/certified_accuracy/{name}@0.02"] == pytest.approx(robust.float().mean().item())
        assert found[f"test/certified_radius/{name}"] == pytest.approx((radius * right).mean().item(), rel=1e-4)
    worst = min((right & (certificate.radius() > 0.02))[part.target == k].float().mean().item() for k in range(10))
    assert found["test/certified_accuracy_worst_class/joint@0.02"] == pytest.approx(worst)
    third = (right & (certificate.radius() > 0.05))[part.target == 3].float().mean().item()
    assert found["test/certified_accuracy_of_class/3@0.05"] == pytest.approx(third)
    alone = certify_late_fusion(model, part.inputs, missing=["fou"])
    robust = (alone.prediction == part.target) & (alone.radius() > 0.02)
    assert found["test/certified_accuracy_dropped/fou@0.02"] == pytest.approx(robust.float().mean().item())
    tolerated = (right & certificate.tolerates({"fou": 0.02, "mor": 0.03})).float().mean().item()
    assert found["test/certified_accuracy/fou=0.02+mor=0.03"] == pytest.approx(tolerated)
    assert not [key for key in found if "estimated" in key]


def test_estimates_never_fall_below_bounds(data, make_trainer):
    observers = [CertifiedRobustness([0.02]), Estimated([0.02])]
    model = lipschitz_model()
    make_trainer(max_epochs=10, limit_val_batches=0).fit(model, datamodule=data)
    (found,) = make_trainer(*observers).test(model, datamodule=data, verbose=False)
    for name in ("joint", "fou", "mor"):
        assert found[f"test/certified_radius/{name}"] <= found[f"test/estimated_radius/{name}"] * 1.0001


def test_rigorous_certificates_of_fixed_weights(make_trainer, data):
    model = with_fixed_weights(lipschitz_model())
    observers = [CertifiedRobustness([0.0], constants=level) for level in ("sound", "rigorous")]
    found = [make_trainer(observer).test(model, datamodule=data, verbose=False)[0] for observer in observers]
    sound, rigorous = (each["test/certified_radius/joint"] for each in found)
    assert 0.9 * sound < rigorous < sound


def test_encoders_without_a_bound_fail_before_training(data, make_trainer):
    encoders = {"fou": nn.Sequential(nn.Linear(76, 16), nn.LayerNorm(16)), "mor": MLP(6, 16)}
    model = CRMTModule(encoders, num_classes=10, in_features={"fou": 16})

    class Never(Callback):
        def on_train_batch_start(self, *args):
            raise AssertionError("training began")

    with pytest.raises(ValueError, match="the encoder of 'fou': no Lipschitz bound is known for '1', a LayerNorm"):
        make_trainer(CertifiedRobustness(), Never(), num_sanity_val_steps=1).fit(model, datamodule=data)
