# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
import re
import warnings

import pytest
import torch
from lightning.pytorch import LightningModule
from support.linear_model import Linear, distances, samples
from support.modules import GivesDict, GivesTuple, Keywords, Named, Positional, TakesDict
from torch.utils.data import DataLoader, TensorDataset

from lightning_crmt import CRMTModule
from lightning_crmt.attacks import PGD, Budget, BudgetedAttack, MinimumNorm, MissingModality
from lightning_crmt.callbacks import AdversarialRobustness, MissingModalities
from lightning_crmt.encoders import MLP

NAMES = ("image", "audio")


def quick(radius=1.0, **settings):
    return PGD(Budget(radius, **settings), steps=5)


def right(model, inputs, y):
    return model.logits(**inputs).argmax(1) == y


@pytest.mark.parametrize("batches", ["tuple", "dict and target", "dict"])
@pytest.mark.parametrize("kind", [Positional, Keywords, TakesDict, GivesTuple, GivesDict])
def test_any_module_by_naming_its_inputs(kind, batches, make_trainer):
    torch.manual_seed(0)
    model = kind(None)
    x = {"image": torch.randn(60, 4), "audio": torch.randn(60, 3)}
    y = torch.where(torch.arange(60) % 4 > 0, model.logits(**x).argmax(1), torch.arange(60) % 5)
    dataset = {
        "tuple": TensorDataset(*x.values(), y),
        "dict and target": Named(*x.values(), y, nested=True),
        "dict": Named(*x.values(), y, nested=False),
    }[batches]
    attacks = {"pgd": quick(0.1), "pgd-image": quick(0.4, modalities=["image"])}
    trainer = make_trainer(AdversarialRobustness(attacks, inputs=NAMES))
    (found,) = trainer.test(model, DataLoader(dataset, batch_size=8), verbose=False)
    expected = {f"clean_accuracy/{name}": right(model, x, y) for name in attacks}
    for name, attack in attacks.items():
        moved = attack(lambda inputs: model.logits(**inputs), x, y)
        expected[f"robust_accuracy/{name}@{attack.budget.radius}"] = right(model, x, y) & right(model, moved, y)
    assert found == {f"test/{key}": pytest.approx(mask.float().mean().item()) for key, mask in expected.items()}
    assert 0 < found["test/robust_accuracy/pgd@0.1"] < found["test/clean_accuracy/pgd"] < 1


class Known(LightningModule):
    """Linear, so that the distance of each sample is known."""

    def __init__(self):
        super().__init__()
        self.model = Linear()

    def forward(self, audio, image):
        return self.model({"audio": audio, "image": image})

    def test_step(self, batch, batch_idx): ...


@pytest.mark.parametrize("joint", [True, False])
def test_numbers_are_those_of_the_exact_distances(joint, make_trainer):
    model, x = Known(), samples(20)
    y = model.model(x).argmax(1)
    exact = distances(model.model, x, {"audio": 1.0, "image": 1.0} if joint else {"image": 1.0}, joint=joint)
    y[:3] = (y[:3] + 1) % 4  # what is wrong counts as 0
    exact[:3] = 0
    budget = Budget(1.0) if joint else Budget(1.0, modalities=["image"])
    radii = [round(float(exact.quantile(q)), 3) for q in (0.8, 0.3, 0.5)]
    attacks = {"pgd": PGD(budget, restarts=2, targeted=True), "nearest": MinimumNorm(budget)}
    trainer = make_trainer(AdversarialRobustness(attacks, radii=radii, inputs=("audio", "image")), precision="64-true")
    loader = DataLoader(TensorDataset(x["audio"], x["image"], y), batch_size=8)
    (found,) = trainer.test(model, loader, verbose=False)
    for name in attacks:
        assert found.pop(f"test/clean_accuracy/{name}") == pytest.approx(17 / 20)
    assert found.pop("test/adversarial_distance/nearest") == pytest.approx(exact.mean().item(), rel=1e-4)
    assert found.pop("test/adversarial_distance_median/nearest") == pytest.approx(exact.median().item(), rel=1e-4)
    share = {f"{r:g}": (exact > r).double().mean().item() for r in radii}
    assert len(set(share.values())) == 3
    expected = {f"test/robust_accuracy/{name}@{r}": s for name in attacks for r, s in share.items()}
    assert found == pytest.approx(expected)


class Counts(BudgetedAttack):
    """Does nothing, and keeps count of what it is called with."""

    def __init__(self, budget):
        self.budget, self.calls = budget, []

    def __call__(self, model, inputs, target):
        self.calls.append((self.budget.radius, len(target)))
        return dict(inputs)


def test_the_search_is_done_once_for_all_radii(make_model, data, make_trainer):
    class Once(MinimumNorm):
        calls = 0

        def search(self, model, inputs, target):
            Once.calls += 1
            return super().search(model, inputs, target)

    callback = AdversarialRobustness({"near": Once(Budget(1.0), steps=2, restarts=1)}, radii=[0.01, 0.02, 0.04])
    callback._check = lambda *args: None
    (found,) = make_trainer(callback).test(make_model(), datamodule=data, verbose=False)
    assert Once.calls == 2, "one for each batch"
    assert len([key for key in found if "robust_accuracy/near@" in key]) == 3


@pytest.mark.parametrize(
    ("budget", "radii", "keys"),
    [
        (Budget(0.2), None, ["pgd@0.2"]),
        (Budget({"fou": 0.1, "mor": 0.3}), None, ["pgd@fou=0.1+mor=0.3"]),
        (Budget({"fou": 0.1, "mor": 0.3}), [2, 0.5], ["pgd@fou=0.2+mor=0.6", "pgd@fou=0.05+mor=0.15"]),
        (Budget(0.5), [0.1, 2], ["pgd@0.05", "pgd@1"]),
        (Budget(0.5), None, ["pgd@0.5"]),
        (Budget(torch.tensor(0.25)), None, ["pgd@0.25"]),
    ],
)
def test_keys_say_what_was_allowed(budget, radii, keys, make_model, data, make_trainer):
    """The real radius, with or without ``radii``."""
    callback = AdversarialRobustness({"pgd": PGD(budget, steps=2)}, radii=radii, max_batches=1)
    callback._check = lambda *args: None
    (found,) = make_trainer(callback).test(make_model(), datamodule=data, verbose=False)
    assert [key for key in found if "robust" in key] == [f"test/robust_accuracy/{key}" for key in keys]


@pytest.mark.parametrize("unit", [1.0, 0.5])
def test_the_distance_is_compared_with_the_radius_in_the_key(unit, make_trainer):
    model, x = Known(), samples(20)
    exact = distances(model.model, x, {"audio": 1.0, "image": 1.0}, joint=True)
    radius = round(float(exact.median()), 3)
    attacks = {"nearest": MinimumNorm(Budget(unit)), "apart": MinimumNorm(Budget({"image": unit}), steps=5)}
    trainer = make_trainer(AdversarialRobustness(attacks, radii=[radius / unit], inputs=("audio", "image")))
    loader = DataLoader(TensorDataset(x["audio"].float(), x["image"].float(), model.model(x).argmax(1)), batch_size=20)
    (found,) = trainer.test(model.float(), loader, verbose=False)
    share = (exact > radius).double().mean().item()
    assert found[f"test/robust_accuracy/nearest@{radius:g}"] == pytest.approx(share)
    assert found["test/adversarial_distance/nearest"] == pytest.approx(exact.mean().item() / unit, rel=1e-3)
    assert f"test/robust_accuracy/apart@image={radius:g}" in found


@pytest.mark.parametrize("fill", ["zeroed", "dropped"])
def test_a_missing_modality_is_an_attack_without_a_radius(fill, make_model, data, make_trainer):
    """What it withstands is what is right whatever is missing, and two callbacks agree."""
    model = make_model()
    make_trainer(max_epochs=8, limit_val_batches=0).fit(model, datamodule=data)
    attacked = AdversarialRobustness({"gone": MissingModality(fill)}, radii=[0.1, 0.2])
    (found,) = make_trainer(attacked, MissingModalities(fill)).test(model, datamodule=data, verbose=False)
    assert [key for key in found if "robust" in key] == ["test/robust_accuracy/gone"]
    assert found["test/robust_accuracy/gone"] == pytest.approx(found[f"test/accuracy_{fill}/worst"])
    assert 0 < found["test/robust_accuracy/gone"] < found["test/clean_accuracy/gone"]


def test_only_survivors_are_attacked_further(make_model, data, make_trainer):
    attack = Counts(Budget(1.0))
    callback = AdversarialRobustness({"idle": attack, "pgd": quick(0.05)}, radii=[0.3, 0.1], max_batches=1)
    callback._check = lambda *args: None
    model = make_model()
    make_trainer(max_epochs=8, limit_val_batches=0).fit(model, datamodule=data)
    (found,) = make_trainer(callback).test(model, datamodule=data, verbose=False)
    rightly = round(200 * found["test/clean_accuracy/pgd"])
    assert 20 < rightly < 200
    assert attack.calls == [(0.1, rightly), (0.3, rightly)], "the smallest first, and no wrong ones"


@pytest.mark.parametrize("batch_size", [50, 400])
def test_numbers_do_not_depend_on_the_split_into_batches(batch_size, make_model, data, make_trainer):
    model = make_model()
    make_trainer(max_epochs=8, limit_val_batches=0).fit(model, datamodule=data)
    observer = AdversarialRobustness({"pgd": quick()}, radii=[0.05, 0.1])
    observer._check = lambda *args: None
    (whole,) = make_trainer(observer).test(model, datamodule=data, verbose=False)
    data.batch_size = batch_size
    (split,) = make_trainer(observer).test(model, datamodule=data, verbose=False)
    assert 0 < whole["test/robust_accuracy/pgd@0.05"] < whole["test/clean_accuracy/pgd"]
    assert whole == pytest.approx(split, rel=1e-4)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
def test_the_same_in_fit_validate_and_test(precision, make_model, data, make_trainer):
    """Under no_grad, inference mode and autocast; sanity check included; frozen parameters stay so."""
    model = make_model()
    for parameter in model.encoders["mor"].parameters():
        parameter.requires_grad_(False)
    callback = AdversarialRobustness({"pgd": PGD(Budget(0.05), steps=5)}, max_batches=1)
    trainer = make_trainer(callback, precision=precision, num_sanity_val_steps=1, max_epochs=3)
    data.setup()
    trainer.fit(model, data.train_dataloader(), data.val_dataloader())
    keys = ["val/robust_accuracy/pgd@0.05", "val/clean_accuracy/pgd"]
    fitted = {key: float(trainer.callback_metrics[key]) for key in keys}
    assert 0 < fitted[keys[0]] < fitted[keys[1]]
    (validated,) = trainer.validate(model, data.val_dataloader(), verbose=False)
    (tested,) = trainer.test(model, data.val_dataloader(), verbose=False)
    for key, value in fitted.items():
        assert value == pytest.approx(validated[key], abs=1e-6)
        assert value == pytest.approx(tested[key.replace("val", "test")], abs=1e-6)
    assert not any(p.requires_grad or p.grad is not None for p in model.encoders["mor"].parameters())
    assert all(p.requires_grad for p in model.encoders["fou"].parameters())


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (quick(modalities=["zer"]), "Budget(1.0, modalities=['zer']) must name modalities among ['fou', 'mor'], got"),
        (quick({"fuo": 0.1}), "Budget({'fuo': 0.1}) must name modalities among ['fou', 'mor'], got ['fuo']"),
        (quick(box={"fou": (0.0, 1e-3)}), "`inputs['fou']` must lie in its box (0.0, 0.001) before the attack"),
        (MissingModality(modalities=["zer"]), "must be among ['fou', 'mor'], got ['zer']"),
    ],
)
def test_what_cannot_be_attacked_fails_at_the_sanity_check(attack, message, make_model, data, make_trainer):
    """Also where the untrained model is right nowhere, and no attack would be called."""

    class NeverRight(type(make_model())):
        def split_batch(self, batch):
            inputs, _ = super().split_batch(batch)
            return inputs, (self(inputs).logits.argmax(1) + 1) % 10

        def on_train_start(self):
            raise AssertionError("too late")

    torch.manual_seed(0)
    model = NeverRight({"fou": MLP(76, 16), "mor": MLP(6, 16)}, num_classes=10)
    with pytest.raises(ValueError, match=re.escape(message)):
        make_trainer(AdversarialRobustness({"pgd": attack}), num_sanity_val_steps=1).fit(model, datamodule=data)


def test_integers_are_refused_at_once(make_trainer):
    dataset = TensorDataset(torch.ones(8, 4, dtype=torch.long), torch.randn(8, 3), torch.zeros(8, dtype=torch.long))

    class Counted(Positional):
        def forward(self, first, second):
            return super().forward(first.float(), second)

    callback = AdversarialRobustness({"pgd": quick(0.1)}, inputs=NAMES)
    with pytest.raises(TypeError, match=re.escape("`inputs['image']` must be floating point to be perturbed")):
        make_trainer(callback).test(Counted(None), DataLoader(dataset, batch_size=8), verbose=False)


class Probabilities(Positional):
    def forward(self, first, second):
        return super().forward(first, second).softmax(1)


def test_probabilities_are_warned_of_once(make_trainer):
    torch.manual_seed(0)
    model = Probabilities(None)
    image, audio = torch.randn(16, 4), torch.randn(16, 3)
    loader = DataLoader(TensorDataset(image, audio, model(image, audio).argmax(1)), batch_size=8)
    trainer = make_trainer(AdversarialRobustness({"one": quick(0.1), "other": quick(0.2)}, inputs=NAMES))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.test(model, loader, verbose=False)
    said = [str(each.message) for each in caught if "returns probabilities" in str(each.message)]
    assert len(said) == 1
    assert said[0].startswith("AdversarialRobustness: the model returns probabilities")


class Rounded(CRMTModule):
    def forward(self, inputs):
        output = super().forward(inputs)
        return output if self.training else output._replace(logits=(5 * output.logits).round())


@pytest.mark.filterwarnings("ignore:AdversarialRobustness, attack")  # the others, that `pytest.warns` emits again
@pytest.mark.parametrize("sanity", [0, 1])
def test_doubts_are_warned_of_once_in_a_fit(sanity, data, make_trainer):
    torch.manual_seed(0)
    model = Rounded({"fou": MLP(76, 16), "mor": MLP(6, 16)}, num_classes=10)
    attacks = {"first": quick(0.1), "second": quick(0.2)}
    trainer = make_trainer(AdversarialRobustness(attacks, max_batches=1), num_sanity_val_steps=sanity)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(model, datamodule=data)
    said = [str(each.message) for each in caught if "AdversarialRobustness" in str(each.message)]
    for name in attacks:
        blind = [each for each in said if f"attack {name!r}" in each and "gradients are 0 or not finite" in each]
        assert len(blind) == 1, said
    with pytest.warns(UserWarning, match="AdversarialRobustness, attack 'first'"):
        trainer.test(model, datamodule=data, verbose=False)


def test_the_checks_wait_for_a_trained_model_and_see_all_classes(make_model, data, make_trainer, monkeypatch):
    seen = []
    where = "lightning_crmt.callbacks.adversarial_robustness.suspicions"
    monkeypatch.setattr(where, lambda attack, model, inputs, y: seen.append((trainer.sanity_checking, y)) or [])
    trainer = make_trainer(AdversarialRobustness({"pgd": quick(0.1)}, max_batches=1), num_sanity_val_steps=1)
    data.batch_size = 400
    trainer.fit(make_model(), datamodule=data)
    ((during_the_sanity_check, y),) = seen
    assert not during_the_sanity_check
    assert len(y) <= 32
    assert len(y.unique()) == 10


def test_a_healthy_model_is_trained_and_tested_without_a_warning(data, make_trainer):
    """Warnings are errors here."""
    torch.manual_seed(0)
    model = CRMTModule({"fou": MLP(76, 16), "mor": MLP(6, 16)}, num_classes=10)
    attacks = {"pgd": quick(0.1), "near": MinimumNorm(Budget(1.0, modalities=["fou"]), steps=10, restarts=1)}
    trainer = make_trainer(AdversarialRobustness(attacks, max_batches=1, every_n_epochs=5), max_epochs=10)
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data, verbose=False)


def test_an_attack_that_leaves_its_budget_stops_the_run(make_model, data, make_trainer):
    class Cheats(PGD):
        def __call__(self, model, inputs, target):
            return {name: value + 1 for name, value in inputs.items()}

    callback = AdversarialRobustness({"too-strong": Cheats(Budget(0.1))})
    callback._check = lambda *args: None
    with pytest.raises(RuntimeError, match=re.escape("the attack 'too-strong' changed sample")):
        make_trainer(callback).test(make_model(), datamodule=data, verbose=False)


def test_a_model_that_diverged_withstands_nothing_and_the_run_goes_on(make_trainer):
    model = Positional(None)
    with torch.no_grad():
        model.image_net.weight[0, 0] = torch.nan
    dataset = TensorDataset(torch.randn(20, 4), torch.randn(20, 3), torch.zeros(20, dtype=torch.long))
    attacks = {"pgd": quick(), "near": MinimumNorm(Budget(1.0), steps=2, restarts=1)}
    trainer = make_trainer(AdversarialRobustness(attacks, radii=[0.0, 0.1], inputs=NAMES))
    (found,) = trainer.test(model, DataLoader(dataset, batch_size=8), verbose=False)
    assert set(found.values()) == {0.0}


def test_several_observe_the_same_fit(make_model, data, make_trainer):
    often = AdversarialRobustness({"quick": PGD(Budget(0.1), steps=2)}, max_batches=1)
    seldom = AdversarialRobustness({"slow": PGD(Budget(0.1), steps=4)}, every_n_epochs=10, max_batches=1)
    for each in (often, seldom):
        each._check = lambda *args: None
    assert often.state_key != seldom.state_key
    trainer = make_trainer(often, seldom)
    trainer.fit(make_model(), datamodule=data)
    assert {"val/robust_accuracy/quick@0.1", "val/robust_accuracy/slow@0.1"} <= set(trainer.callback_metrics)
    again = AdversarialRobustness({"quick": quick()})
    with pytest.raises(
        ValueError, match=re.escape("`attacks` of two callbacks must have different names, got ['quick']")
    ):
        make_trainer(often, again).test(make_model(), datamodule=data, verbose=False)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"attacks": {}}, TypeError, "`attacks` must map names to attacks, at least one, got a dict with keys []"),
        ({"attacks": [quick()]}, TypeError, "`attacks` must map names to attacks, at least one, got a list"),
        (
            {"attacks": {"pgd": PGD}},
            TypeError,
            "`attacks['pgd']` must be an attack such as PGD(Budget(0.2)), got <class",
        ),
        ({"attacks": {"a/b": quick()}}, ValueError, "hold none of '/@=', which keys are made of, got 'a/b'"),
        ({"attacks": {"size=1": quick()}}, ValueError, "which keys are made of, got 'size=1'"),
        ({"attacks": {"pgd@1": quick()}}, ValueError, "hold none of '/@=', which keys are made of, got 'pgd@1'"),
        (
            {"attacks": {"pgd": quick(torch.rand(3))}},
            ValueError,
            "`attacks['pgd']` must have one radius for all samples",
        ),
        ({"radii": []}, ValueError, "`radii` must be at least one, got none"),
        ({"radii": [0.1, -1]}, ValueError, "`radii` must be at least 0, finite and different, got [0.1, -1]"),
        ({"radii": [0.1, 0.1]}, ValueError, "`radii` must be at least 0, finite and different, got [0.1, 0.1]"),
        ({"radii": ["much"]}, TypeError, "`radii` must be numbers, got ['much']"),
        ({"radii": 0.1}, TypeError, "`radii` must be numbers, got 0.1"),
        ({"every_n_epochs": 0}, ValueError, "`every_n_epochs` must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_refused(settings, error, message):
    with pytest.raises(error, match=re.escape(message)):
        AdversarialRobustness(**({"attacks": {"pgd": quick()}} | settings))


def test_callbacks_on_different_samples_keep_their_numbers_apart(make_model, data, make_trainer):
    callbacks = [AdversarialRobustness({name: quick(0.05)}, max_batches=n) for name, n in (("some", 1), ("all", None))]
    for callback in callbacks:
        callback._check = lambda *args: None
    model = make_model()
    make_trainer(max_epochs=4, limit_val_batches=0).fit(model, datamodule=data)
    (both,) = make_trainer(*callbacks).test(model, datamodule=data, verbose=False)
    for callback in callbacks:
        (alone,) = make_trainer(callback).test(model, datamodule=data, verbose=False)
        assert alone.items() <= both.items()
    assert both["test/clean_accuracy/some"] != both["test/clean_accuracy/all"]
