# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""A fit that is killed and resumed equals one that was not, to the bit; ``benchmarks/resume.py`` tries more moments."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from support.every_callback import MAKE, head_for

from lightning_crmt import CRMTModule
from lightning_crmt.callbacks import CertifiedRobustness, IntegrationReweighting, MissingModalities
from lightning_crmt.random_state import random_state

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from resume import Final, Kill, KilledError, differences, resumable


@pytest.fixture
def fit(make_model, make_trainer, data):
    """What a fit of six batches an epoch ends with; the model has BatchNorm and Dropout."""
    data.setup()
    resumable(data)

    def run(seed, *callbacks, name="", path=None, **settings):
        model = make_model(seed=seed, head=head_for(name), optimizer=lambda groups: torch.optim.AdamW(groups, 0.01))
        final = Final()
        trainer = make_trainer(*callbacks[:1], final, *callbacks[1:], **({"max_epochs": 4} | settings))
        trainer.fit(model, data, ckpt_path=path)  # since lightning 2.6 torch decides, and reads weights only
        return final.state

    return run


def killed(fit, tmp_path, make, step, **settings):
    """What the uninterrupted fit ends with, and what the resumed one does."""
    path = tmp_path / "killed.ckpt"
    with pytest.raises(KilledError):
        fit(0, make(), Kill(step, path), **settings)
    return fit(0, make(), **settings), fit(1, make(), path=path, **settings)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Found . module.s. in eval mode")
@pytest.mark.parametrize("name", MAKE)
def test_killed_at_a_random_moment(name, fit, tmp_path):
    step = random.Random(name).randrange(7, 24)
    assert differences(*killed(fit, tmp_path, MAKE[name], step, name=name)) == []


@pytest.mark.parametrize("step", [12, 15])
@pytest.mark.parametrize("name", ["GaussianNoise", "Mixup", "ModalityDropout", "NoiseConsistency"])
def test_killed_at_the_end_of_an_epoch_and_in_the_middle(name, step, fit, tmp_path):
    whole, resumed = killed(fit, tmp_path, MAKE[name], step)
    assert differences(whole, resumed) == []
    assert differences(whole, fit(2, MAKE[name]())), "or the case shows nothing"


class Watched(MissingModalities):
    """Keeps the epochs that it measured in."""

    def __init__(self, every_n_epochs):
        super().__init__(every_n_epochs=every_n_epochs)
        self.epochs = []

    def on_measured(self, model, inputs, target):
        self.epochs.append(model.module.current_epoch)


def test_observers_keep_their_rhythm(fit, tmp_path):
    path = tmp_path / "killed.ckpt"
    with pytest.raises(KilledError):
        fit(0, Watched(3), Watched(2), Kill(12, path), max_epochs=7)
    seldom, often, other = Watched(3), Watched(2), CertifiedRobustness([0.1], constants="estimated")
    numbers = fit(1, seldom, often, other, path=path, max_epochs=7)["numbers"]
    assert sorted({*seldom.epochs}) == [3, 6]
    assert sorted({*often.epochs}) == [2, 4, 6]
    assert "val/estimated_accuracy/joint@0.1" in numbers


def test_numbers_of_a_resumed_fit_are_there_before_it_measures(fit, tmp_path):
    whole, resumed = killed(fit, tmp_path, lambda: MissingModalities(every_n_epochs=20), 6, max_epochs=3)
    assert differences(whole, resumed) == []


def test_only_a_resumed_fit_goes_on_from_the_random_state(fit, make_model, make_trainer, data, tmp_path):
    path = tmp_path / "killed.ckpt"
    with pytest.raises(KilledError):
        fit(0, MissingModalities(), Kill(8, path))
    cpu, numbers = torch.device("cpu"), {}
    encoders, model = dict(make_model().encoders), make_model()
    before = random_state(cpu)
    for run in ("validate", "test"):
        trainer = make_trainer(MissingModalities())
        (numbers[run],) = getattr(trainer, run)(model, data, ckpt_path=path, verbose=False)
    CRMTModule.load_from_checkpoint(path, encoders=encoders, num_classes=10)
    after = random_state(cpu)
    assert {key.partition("/")[0] for key in numbers["test"]} == {"test"}
    for part in ("python", "numpy"):  # loaders draw a seed from torch
        assert differences(before[part], after[part]) == []


def test_what_draws_from_python_and_numpy(fit, tmp_path):
    class Draws(Callback):
        def __init__(self):
            self.drawn = []

        def on_train_batch_start(self, *_):
            self.drawn.append((random.random(), np.random.rand()))

    path, whole, resumed = tmp_path / "killed.ckpt", Draws(), Draws()
    with pytest.raises(KilledError):
        fit(0, Draws(), Kill(8, path))
    fit(0, whole)
    fit(1, resumed, path=path)
    assert resumed.drawn == whole.drawn[8:]


class KillAtLast(Kill):
    """Kills after a step even if it is the last of an epoch, before the validation."""

    def on_train_batch_end(self, trainer, *_):
        self._kill(trainer)


class DyingReweighting(IntegrationReweighting):
    """Dies after an epoch on the kept scores."""

    def reweight(self, head, kept, on_epoch=None):
        def die(*_):
            raise KilledError

        return super().reweight(head, kept, die)


def step_2():
    return IntegrationReweighting(epochs=2)


@pytest.mark.slow
def test_killed_within_step_2(fit, tmp_path):
    class Save(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 21:
                trainer.save_checkpoint(path)

    path = tmp_path / "killed.ckpt"
    with pytest.raises(KilledError):
        fit(0, DyingReweighting(epochs=2), Save())
    assert differences(fit(0, step_2()), fit(1, step_2(), path=path)) == []


@pytest.mark.slow
def test_killed_at_the_step_before_step_2(fit, tmp_path):
    assert differences(*killed(fit, tmp_path, step_2, 23)) == []


WEIGHTS = ("state_dict", "optimizer_states", "callbacks", "global_step")


@pytest.mark.slow
def test_killed_between_the_last_step_of_training_and_step_2(fit, tmp_path):
    path = tmp_path / "killed.ckpt"
    with pytest.raises(KilledError):
        fit(0, KillAtLast(24, path), step_2())
    with pytest.warns(UserWarning, match="step 2 follows its last validation, which did not see it"):
        resumed = fit(1, step_2(), path=path)
    whole = fit(0, step_2())
    for part in WEIGHTS:
        assert differences(whole[part], resumed[part]) == []


@pytest.mark.slow
def test_killed_between_step_2_and_its_validation(fit, tmp_path):
    path, after = tmp_path / "killed.ckpt", step_2()
    with pytest.raises(KilledError):
        fit(0, step_2(), KillAtLast(24, path))
    whole, resumed = fit(0, step_2()), fit(1, after, path=path)
    assert after.reweighted is None
    for part in WEIGHTS:
        assert differences(whole[part], resumed[part]) == []


@pytest.mark.slow
def test_killed_after_all_and_resumed_for_no_more_or_for_longer(fit, make_model, make_trainer, data, tmp_path):
    path, again = tmp_path / "killed.ckpt", step_2()
    with pytest.raises(KilledError):
        fit(0, step_2(), Kill(24, path))
    model = make_model(seed=1, optimizer=lambda groups: torch.optim.AdamW(groups, 0.01))
    make_trainer(step_2(), max_epochs=4).fit(model, data, ckpt_path=path, weights_only=True)
    assert differences(fit(0, step_2())["state_dict"], dict(model.state_dict())) == []
    longer = fit(1, again, path=path, max_epochs=5)
    assert again.reweighted is not None
    assert longer["callbacks"]["IntegrationReweighting"] == {"done_at": 30}
