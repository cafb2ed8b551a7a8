# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What all observers share: keys, and runs that start empty."""

import re

import pytest
import torch
from lightning.pytorch import Callback

from lightning_crmt import CRMTModule, Soundness
from lightning_crmt.attacks import FGM, PGD, Budget
from lightning_crmt.callbacks import AdversarialRobustness, CertifiedRobustness, MissingModalities, SmoothedRobustness
from lightning_crmt.encoders import MLP, LipschitzMLP
from lightning_crmt.evaluation import Key, read_keys
from lightning_crmt.fusion import AttentionFusion

OBSERVERS = {
    "certified": lambda **s: CertifiedRobustness([0.1], **s),
    "estimated": lambda **s: CertifiedRobustness([0.1], constants="estimated", **s),
    "missing": lambda **s: MissingModalities(**s),
    "smoothed": lambda **s: SmoothedRobustness(0.1, [0.1], max_draws=128, max_samples=20, **s),
    "attacked": lambda **s: AdversarialRobustness({"fgm": FGM(Budget(0.1))}, max_batches=1, **s),
}
each_observer = pytest.mark.parametrize("make", OBSERVERS.values(), ids=OBSERVERS)


def model(names=("fou", "mor"), lr=1e-2, seed=0):
    torch.manual_seed(seed)
    encoders = {name: LipschitzMLP(size, 16, (16,)) for name, size in zip(names, (76, 6), strict=True)}
    return CRMTModule(encoders, 10, optimizer=lambda groups: torch.optim.AdamW(groups, lr))


class Stops(Callback):
    def __init__(self, error, epoch):
        self.error, self.epoch = error, epoch

    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.current_epoch == self.epoch:
            raise self.error


class Logged(Callback):
    """The numbers of an observer after each validation of a fit."""

    def __init__(self):
        self.epochs = []

    def on_validation_end(self, trainer, module):
        numbers = {str(key): value for key, value in read_keys(trainer.callback_metrics).items()}
        self.epochs.append({key: value for key, value in numbers.items() if "loss" not in key})


@pytest.mark.filterwarnings("ignore:AdversarialRobustness, attack")  # of models that have learnt next to nothing
@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
@each_observer
def test_after_a_fit_that_failed_it_measures_like_a_fresh_one(make, error, data, make_trainer):
    used = make(every_n_epochs=3)
    stopped = make_trainer(used, Stops(error, 2), max_epochs=5)
    with pytest.raises((RuntimeError, SystemExit)):  # Lightning leaves the program at Ctrl-C
        stopped.fit(model(), datamodule=data)
    assert stopped.current_epoch == 2
    fresh = make(every_n_epochs=3)
    for name, value in vars(fresh).items():  # Lightning leaves its `log` there
        if name in ("_last", "_measured_at", "_checked"):  # for a checkpoint after the error; the next run forgets them
            continue
        assert str(getattr(used, name)) == str(value), name
    logged = [Logged(), Logged()]
    for observer, seen in zip((used, fresh), logged, strict=True):
        make_trainer(observer, seen, max_epochs=2).fit(model(seed=1), datamodule=data)
    assert logged[0].epochs == logged[1].epochs
    assert len(logged[0].epochs) == 2


@pytest.mark.filterwarnings("ignore:AdversarialRobustness, attack")
@each_observer
def test_a_test_after_a_fit_logs_the_test_alone(make, data, make_trainer):
    observer = make()
    module = model()
    trainer = make_trainer(observer, max_epochs=1)
    trainer.fit(module, datamodule=data)
    assert {key.split for key in read_keys(trainer.callback_metrics)} == {"train", "val"}
    (found,) = trainer.test(module, datamodule=data, verbose=False)
    assert {key.split for key in read_keys(found)} == {"test"}


def test_a_rhythm_of_your_own_is_that_of_the_validations(data, make_trainer):
    class Never(MissingModalities):
        def due(self, trainer):
            return False

    module, trainer = model(), make_trainer(Never(), max_epochs=1)
    trainer.fit(module, datamodule=data)
    assert not [key for key in trainer.callback_metrics if "zeroed" in key]
    (found,) = trainer.test(module, datamodule=data, verbose=False)
    assert "test/accuracy_zeroed/none" in found


@pytest.mark.filterwarnings("ignore:AdversarialRobustness, attack")
@pytest.mark.parametrize("name", ["a+b", "a=b", "a@b", "joint", "worst", "dataloader_idx_0"])
def test_names_that_keys_cannot_carry_are_refused_before_training(name, data, make_trainer):
    trainer = make_trainer(MissingModalities(), max_epochs=1)
    with pytest.raises(ValueError, match=rf"`inputs` must (not )?have names .*got {re.escape(repr(name))}"):
        trainer.fit(model(names=(name, "mor")), datamodule=data)
    assert trainer.global_step == 0


@pytest.mark.parametrize(
    ("observer", "message"),
    [
        (CertifiedRobustness([0.1]), "constants='sound' needs late fusion as the module's `head`"),
        (CertifiedRobustness([0.1], budgets=[{"zer": 0.1}]), "`budgets` must name modalities among"),
        (MissingModalities("dropped"), "`fill='dropped'` needs late fusion"),
        (MissingModalities({"zer": 0.1}), "`fill` must name modalities among"),
    ],
)
def test_what_cannot_be_measured_is_known_before_training(observer, message, data, make_trainer):
    module = CRMTModule({"fou": MLP(76, 16), "mor": MLP(6, 16)}, 10, head=AttentionFusion)
    trainer = make_trainer(observer, max_epochs=1, num_sanity_val_steps=0)
    with pytest.raises((TypeError, ValueError), match=message):
        trainer.fit(module, datamodule=data)
    assert trainer.global_step == 0


@pytest.mark.parametrize(
    ("radius", "factor", "expected"),
    [(0.1, 3, "0.3"), (0.7, 0.1, "0.07"), (torch.tensor(0.1), 1, "0.1"), (torch.tensor(0.1), 3, "0.3")],
)
def test_the_radius_in_a_key_is_what_one_would_write(radius, factor, expected):
    callback = AdversarialRobustness({"pgd": PGD(Budget(radius))}, radii=[factor])
    assert [str(key) for key in callback.factors["pgd"]] == [f"robust_accuracy/pgd@{expected}"]
    apart = AdversarialRobustness({"pgd": PGD(Budget({"fou": radius, "mor": 3.0}))}, radii=[factor])
    assert [key.budget[0] for key in apart.factors["pgd"]] == [("fou", float(expected))]


def test_radii_that_a_budget_makes_equal_are_refused():
    with pytest.raises(ValueError, match=r"`radii` must differ in the digits that the budget of 'pgd' has, got \[1, "):
        AdversarialRobustness({"pgd": PGD(Budget(torch.tensor(0.1)))}, radii=[1, 1 + 1e-9])


def test_radii_may_differ_in_any_digit(data, make_trainer):
    (found,) = make_trainer(CertifiedRobustness([0.1, 0.1 + 1e-9])).test(model(), datamodule=data, verbose=False)
    keys = {key.radius for key in read_keys(found) if (key.what, key.of) == ("accuracy", "joint") and key.sure}
    assert keys == {0.1, 0.1 + 1e-9}
    assert Key("test", "accuracy", "joint", 0.1 + 1e-9, sure="certified") in read_keys(found)


def test_the_old_name_of_fill_works_for_one_release():
    with pytest.warns(DeprecationWarning, match="`represent` is called `fill` now"):
        callback = MissingModalities(represent="dropped")
    assert callback.fill == "dropped"
    assert callback.state_key == "MissingModalities[dropped]"


@pytest.mark.parametrize("value", [Soundness.RIGOROUS, "rigorous", "RIGOROUS"])
def test_trust_is_given_as_a_level_or_its_name(value):
    callback = CertifiedRobustness(constants=value)
    assert callback.constants is Soundness.RIGOROUS
    assert callback.state_key == "CertifiedRobustness[rigorous]"
    with pytest.raises(ValueError, match="`constants` must be 'sound', 'rigorous' or 'estimated', got 'probabilistic'"):
        CertifiedRobustness(constants=Soundness.PROBABILISTIC)


@pytest.mark.parametrize(
    "make",
    [
        lambda: CertifiedRobustness([0.1], "estimated"),
        lambda: AdversarialRobustness({"fgm": FGM(Budget(0.1))}, [0.1]),
        lambda: MissingModalities("zeroed", 1),
    ],
)
def test_settings_have_names(make):
    with pytest.raises(TypeError, match="positional argument"):
        make()


@pytest.mark.filterwarnings("ignore:AdversarialRobustness, attack")
def test_it_says_of_how_many_samples_each_number_is(data, make_trainer):
    seen = {"fou": 0, "mor": 0}

    class Lacking(Callback):
        """Some samples lack `mor`."""

        def on_test_batch_start(self, trainer, module, batch, index, dataloader_idx=0):
            present = torch.arange(len(batch[1])) % 3 > 0
            batch[0]["mor.present"] = present
            seen["fou"] += len(present)
            seen["mor"] += int(present.sum())

    observers = [CertifiedRobustness([0.1]), AdversarialRobustness({"fgm": FGM(Budget(0.1))}, max_batches=1)]
    make_trainer(Lacking(), *observers).test(model(), datamodule=data, verbose=False)
    certified, attacked = (each.samples for each in observers)
    assert certified["test/certified_accuracy/joint@0.1"] == certified["test/certified_radius/fou"] == seen["fou"]
    assert certified["test/certified_radius/mor"] == seen["mor"] < seen["fou"]
    assert attacked == {"test/clean_accuracy/fgm": 200, "test/robust_accuracy/fgm@0.1": 200}
    make_trainer(observers[0]).validate(model(), datamodule=data, verbose=False)
    assert not any(key.startswith("test/") for key in observers[0].samples)
