# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
import copy
import pickle
import re
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule, seed_everything
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, Sampler, SubsetRandomSampler

from lightning_crmt import (
    CRMTModule,
    LinearFusion,
    OrthogonalFusion,
    ProbeSearch,
    Soundness,
    estimate_lipschitz,
    integration_objective,
)
from lightning_crmt.attacks import PGD, Budget, MinimumNorm
from lightning_crmt.callbacks import (
    AdversarialRobustness,
    CertifiedRobustness,
    IntegrationReweighting,
    MissingModalities,
)
from lightning_crmt.cli import command_line
from lightning_crmt.encoders import LipschitzMLP
from lightning_crmt.losses import true_class_radii

Estimated = partial(CertifiedRobustness, constants="estimated")


class Record(Callback):
    """Copies of everything at the start of each epoch, and at the end."""

    def __init__(self):
        self.states = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.states.append(copy.deepcopy(pl_module.state_dict()))

    def on_train_end(self, trainer, pl_module):
        self.states.append(copy.deepcopy(pl_module.state_dict()))


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


WEIGHTS = {"head.raw_weights.fou", "head.raw_weights.mor"}


@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}])
def test_step_two_moves_the_weights_alone(settings, make_model, data, make_trainer):
    record, model = Record(), make_model()
    step_2 = IntegrationReweighting(last_epochs=2)
    make_trainer(record, step_2, max_epochs=4, **settings).fit(model, datamodule=data)
    assert len(changed(record.states[0], record.states[1])) > 10
    assert changed(record.states[2], record.states[4]) == WEIGHTS, "buffers of BatchNorm count as well"
    assert all((a >= 0).all() for a in model.head.integration_weights.values())


def test_step_two_lowers_its_objective_and_keeps_the_norm(make_model, data, make_trainer):
    record, model = Record(), make_model()
    step_2 = IntegrationReweighting(last_epochs=5)
    make_trainer(record, step_2, max_epochs=15).fit(model, datamodule=data)
    train = data.parts["train"]

    def at(state):
        model.load_state_dict(state)
        model.eval()
        with torch.no_grad():
            loss = integration_objective(
                model(train.inputs), train.target, model.head, step_2.lipschitz, clip=step_2._clip
            )
            norm = torch.cat([p.flatten() for p in model.head.integration_parameters()]).norm()
        return loss.item(), norm.item()

    (before, norm_before), (after, norm_after) = at(record.states[10]), at(record.states[15])
    assert after < before - 0.002
    assert norm_after == pytest.approx(norm_before, rel=1e-5)


def test_constants_and_clip_are_those_of_the_training_data(make_model, data, make_trainer):
    record, model = Record(), make_model()
    step_2 = IntegrationReweighting(last_epochs=1)
    make_trainer(record, step_2, max_epochs=3).fit(model, datamodule=data)
    model.load_state_dict(record.states[2])
    train = data.parts["train"]
    tau = estimate_lipschitz(model, [train.inputs])
    for name, value in tau.values.items():
        torch.testing.assert_close(step_2.lipschitz.values[name], value)
    model.eval()
    radii = true_class_radii(model(train.inputs), train.target, model.head, tau)
    assert step_2._clip == pytest.approx(radii.abs().mean().item(), rel=1e-4)


@pytest.mark.filterwarnings("ignore:Found 1 module.s. in eval mode")  # as meant here
def test_everything_is_given_back(make_model, data, make_trainer):
    model = make_model()
    frozen = model.encoders["fou"][0].weight.requires_grad_(False)
    model.encoders["fou"][1].eval()
    make_trainer(IntegrationReweighting(last_epochs=1), max_epochs=2).fit(model, datamodule=data)
    assert not frozen.requires_grad
    assert all(p.requires_grad for p in model.parameters() if p is not frozen)
    assert not model.encoders["fou"][1].training
    assert model.encoders["fou"][3].training
    assert model.training_stage.objective is None


def test_given_back_after_an_error_too(make_model, data, make_trainer):
    class Fail(Callback):
        def on_train_batch_end(self, trainer, pl_module, *rest):
            if trainer.current_epoch == 1:
                raise KeyError("on purpose")

    model = make_model()
    with pytest.raises(KeyError, match="on purpose"):
        make_trainer(IntegrationReweighting(last_epochs=1), Fail(), max_epochs=2).fit(model, datamodule=data)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.training_stage.objective is None


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("epochs_done", [1, 2, 3])  # within step 1, at the switch, within step 2
@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, lambda groups: torch.optim.SGD(groups, 0.1, momentum=0.9)])
def test_a_resumed_run_equals_the_uninterrupted_one(epochs_done, optimizer, make_model, data, make_trainer, tmp_path):
    def fit(model, **settings):
        # Lightning does not restore the random state that Dropout draws from.
        model.encoders["fou"][3].p = 0.0
        every_epoch = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        trainer = make_trainer(
            IntegrationReweighting(last_epochs=2), every_epoch, max_epochs=4, enable_checkpointing=True
        )
        trainer.fit(model, datamodule=data, **settings)
        return model.state_dict()

    whole = fit(make_model(seed=0, optimizer=optimizer))
    saved = tmp_path / f"epoch={epochs_done - 1}.ckpt"
    resumed = fit(make_model(seed=1, optimizer=optimizer), ckpt_path=saved, weights_only=True)
    assert changed(whole, resumed) == set()


@pytest.mark.filterwarnings(
    "ignore:Checkpoint directory .* exists and is not empty",
    "ignore:You're resuming from a checkpoint that ended before the epoch ended",
)
def test_resumed_within_an_epoch_of_step_two_all_stays_frozen(make_model, data, make_trainer, tmp_path):
    def fit(model, **settings):
        saving = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=14)
        step_2 = IntegrationReweighting(last_epochs=2)
        make_trainer(step_2, saving, max_epochs=4, enable_checkpointing=True).fit(model, datamodule=data, **settings)
        return model.state_dict()

    fit(make_model(seed=0))
    saved = tmp_path / "step=14.ckpt"  # 6 steps an epoch
    before = torch.load(saved, weights_only=True)["state_dict"]
    assert changed(before, fit(make_model(seed=1), ckpt_path=saved, weights_only=True)) == WEIGHTS


def test_a_scheduler_does_not_slow_step_two_down(make_model, data, make_trainer):
    model = make_model(lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=1e-6))
    record = Record()
    make_trainer(record, IntegrationReweighting(last_epochs=1), max_epochs=3).fit(model, datamodule=data)
    assert (record.states[2]["head.raw_weights.fou"] - record.states[3]["head.raw_weights.fou"]).abs().max() > 0.01


def test_the_running_loader_keeps_its_batches(make_model, data, make_trainer):
    """With persistent workers, iterating the Trainer's own loader would empty the epoch under way."""

    seen = []

    class Count(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            seen.append(trainer.fit_loop.epoch_loop.batch_idx + 1)

    data.num_workers = 1
    make_trainer(IntegrationReweighting(last_epochs=1), Count(), max_epochs=2).fit(make_model(), datamodule=data)
    assert seen == [6, 6]


def test_the_pass_shows_a_progress_bar(make_model, data, make_trainer, capfd):
    trainer = make_trainer(IntegrationReweighting(last_epochs=1), max_epochs=2, enable_progress_bar=True)
    trainer.fit(make_model(), datamodule=data)
    assert "Lipschitz constants" in capfd.readouterr().err


def test_own_batches_for_the_pass(make_model, data, make_trainer):
    data.setup()
    few = DataLoader(data.parts["val"], batch_size=100)
    record, model, step_2 = Record(), make_model(), IntegrationReweighting(last_epochs=1, dataloader=few)
    make_trainer(record, step_2, max_epochs=2).fit(model, datamodule=data)
    model.load_state_dict(record.states[1])
    tau = estimate_lipschitz(model, [data.parts["val"].inputs])
    torch.testing.assert_close(step_2.lipschitz.values["mor"], tau.values["mor"])


@pytest.mark.slow
def test_observers_leave_no_trace(make_model, data, make_trainer):
    def fit(*observers):
        model = make_model()
        make_trainer(IntegrationReweighting(last_epochs=1), *observers, num_sanity_val_steps=1).fit(
            model, datamodule=data
        )
        return model.state_dict()

    assert (
        changed(
            fit(),
            fit(
                Estimated([0.1]),
                MissingModalities(),
                MissingModalities("dropped"),
                AdversarialRobustness(
                    {
                        "pgd": PGD(Budget(0.1), steps=3, restarts=2),
                        "near": MinimumNorm(Budget(1.0), steps=2, restarts=1),
                    },
                    max_batches=1,
                ),
            ),
        )
        == set()
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give one of `last_epochs` and `start_epoch`, got None and None"),
        ({"last_epochs": 1, "start_epoch": 1}, "give one of `last_epochs` and `start_epoch`"),
        ({"last_epochs": 0}, "`last_epochs` must be at least 1, got 0"),
        ({"start_epoch": -1}, "`start_epoch` must be at least 0, got -1"),
        ({"last_epochs": 1, "constants": "rigorous"}, "`constants` must be 'estimated' or 'sound', got 'rigorous'"),
        ({"last_epochs": 1, "lr": 0.0}, "`lr` must be above 0, got 0.0"),
        ({"last_epochs": 1, "objective": "median"}, "`objective` must be 'mean' or 'clipped', got 'median'"),
        ({"last_epochs": 1, "clip": -1.0}, "`clip` must be above 0, got -1.0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        IntegrationReweighting(**settings)


class Never(Callback):
    def on_train_batch_start(self, *args):
        raise AssertionError("training began")


@pytest.mark.parametrize(
    ("step_2", "trainer", "model", "error", "message"),
    [
        ({"last_epochs": 3}, {}, {}, None, None),
        ({"last_epochs": 4}, {}, {}, ValueError, "`last_epochs=4` puts the switch at epoch -1, outside the 3 epochs"),
        ({"start_epoch": 3}, {}, {}, ValueError, "`start_epoch=3` puts the switch at epoch 3, outside the 3 epochs"),
        ({"last_epochs": 1}, {"max_epochs": -1}, {}, ValueError, "`last_epochs` needs a Trainer with `max_epochs`"),
        ({"start_epoch": 2}, {"max_steps": 12}, {}, ValueError, "`max_steps=12` ends this fit before step 2"),
        ({"last_epochs": 1}, {}, {"head": LinearFusion}, TypeError, "needs a head with integration weights"),
    ],
)
def test_what_must_fail_fails_before_training(step_2, trainer, model, error, message, make_model, data, make_trainer):
    callbacks = [IntegrationReweighting(**step_2), *([Never()] if error else [])]
    made = make_trainer(*callbacks, **trainer)
    if error is None:
        made.fit(make_model(**model), datamodule=data)
        return
    with pytest.raises(error, match=re.escape(message)):
        made.fit(make_model(**model), datamodule=data)


def test_a_plain_module_is_refused(data, make_trainer):
    class Plain(LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def training_step(self, batch, batch_idx): ...

        def validation_step(self, batch, batch_idx): ...

        def configure_optimizers(self): ...

    with pytest.raises(TypeError, match="got a Plain: subclass CRMTModule, or put CRMTMixin before your own class"):
        make_trainer(IntegrationReweighting(last_epochs=1)).fit(Plain(), datamodule=data)


def test_an_optimizer_without_the_weights_is_refused(make_model, data, make_trainer):
    model = make_model()
    model.configure_optimizers = lambda: torch.optim.SGD(model.encoders.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="the optimizer must hold the integration weights"):
        make_trainer(IntegrationReweighting(last_epochs=1), Never()).fit(model, datamodule=data)


def test_early_stopping_is_warned_about(make_model, data, make_trainer):
    stop = EarlyStopping("val/loss", patience=100)
    with pytest.warns(UserWarning, match=re.escape("Trainer(min_epochs=3) keeps it from doing so")):
        make_trainer(stop, IntegrationReweighting(last_epochs=1)).fit(make_model(), datamodule=data)


def test_a_fit_that_ends_early_says_so(make_model, data, make_trainer):
    class Stop(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = True

    with pytest.warns(UserWarning, match="the fit ended after 1 epochs, before step 2 began at epoch 2"):
        make_trainer(Stop(), IntegrationReweighting(last_epochs=1)).fit(make_model(), datamodule=data)


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-true", "bf16-mixed"])
def test_every_precision_reaches_step_two(precision, make_model, data, make_trainer):
    model, step_2 = make_model(), IntegrationReweighting(last_epochs=1)
    make_trainer(step_2, max_epochs=2, precision=precision).fit(model, datamodule=data)
    assert all(value.isfinite().all() for value in step_2.lipschitz.values.values())
    assert step_2._clip > 0


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_trained_longer_from_step_two_it_measures_anew(make_model, data, make_trainer, tmp_path):
    def fit(model, max_epochs, **settings):
        step_2, record = IntegrationReweighting(last_epochs=1), Record()
        saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        trainer = make_trainer(record, step_2, saving, max_epochs=max_epochs, enable_checkpointing=True)
        trainer.fit(model, datamodule=data, **settings)
        return step_2, record

    one_group = lambda model: torch.optim.AdamW(model.parameters(), lr=1e-4)  # noqa: E731
    first, again = make_model(), make_model(seed=1)
    for model in (first, again):
        model.configure_optimizers = lambda model=model: one_group(model)
    short, _ = fit(first, 2)
    longer, record = fit(again, 4, ckpt_path=tmp_path / "epoch=1.ckpt", weights_only=True)
    assert not torch.equal(short.lipschitz.values["fou"], longer.lipschitz.values["fou"])
    step = (record.states[0]["encoders.mor.layers.1.weight"] - record.states[1]["encoders.mor.layers.1.weight"]).abs()
    assert 0 < step.max() < 6 * 2e-4, "step 1 goes on at its own learning rate"


def test_used_again_it_measures_anew(make_model, data, make_trainer):
    step_2 = IntegrationReweighting(last_epochs=1)
    make_trainer(step_2, max_epochs=2).fit(make_model(), datamodule=data)
    before = step_2.lipschitz.values["fou"]
    make_trainer(step_2, max_epochs=2).fit(make_model(seed=5), datamodule=data)
    assert not torch.equal(before, step_2.lipschitz.values["fou"])


def test_a_fast_development_run_goes_through_step_two(make_model, data, make_trainer):
    step_2 = IntegrationReweighting(last_epochs=10)
    make_trainer(step_2, max_epochs=50, fast_dev_run=True).fit(make_model(), datamodule=data)
    assert step_2.lipschitz is not None


def test_sound_constants(data, make_trainer):
    seed_everything(0, verbose=False)
    model = CRMTModule({"fou": LipschitzMLP(76, 16, (16,)), "mor": LipschitzMLP(6, 16, (16,))}, num_classes=10)
    step_2 = IntegrationReweighting(last_epochs=1, constants="sound")
    make_trainer(step_2, max_epochs=2).fit(model, datamodule=data)
    assert step_2.lipschitz.soundness is Soundness.SOUND
    assert step_2.lipschitz.of == "encoder"
    assert float(step_2.lipschitz.values["fou"]) == pytest.approx(1, abs=1e-4)


def test_a_search_takes_fewer_gradients_and_finds_the_constants(make_model, data, make_trainer):
    record, model = Record(), make_model(head=OrthogonalFusion)
    step_2 = IntegrationReweighting(last_epochs=1, constants=ProbeSearch(pilots=16))
    make_trainer(record, step_2, max_epochs=2).fit(model, datamodule=data)
    assert step_2.constants is step_2.lipschitz.soundness is Soundness.ESTIMATED
    model.load_state_dict(record.states[1])
    all_taken = estimate_lipschitz(model, [data.parts["train"].inputs])
    for name, value in all_taken.values.items():
        assert (step_2.lipschitz.values[name] <= value * (1 + 1e-5)).all()
        assert (step_2.lipschitz.values[name] >= value * 0.95).all()


@pytest.mark.parametrize(
    ("constants", "search"),
    [
        ({"class_path": "ProbeSearch", "init_args": {"pilots": 16}}, ProbeSearch(pilots=16)),
        ({"class_path": "lightning_crmt.ProbeSearch"}, ProbeSearch()),
        ("estimated", None),
    ],
)
def test_a_search_is_chosen_from_yaml(constants, search, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning-crmt"])
    config = yaml.safe_load((Path(__file__).parent.parent / "examples" / "mfeat.yaml").read_text())
    step_2 = {"class_path": "IntegrationReweighting", "init_args": {"last_epochs": 1, "constants": constants}}
    config["trainer"]["callbacks"] = [step_2]
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    words = ["--trainer.fast_dev_run=2", "--trainer.enable_progress_bar=false"]
    cli = command_line(["fit", "--config", str(path), *words])
    (callback,) = (each for each in cli.trainer.callbacks if isinstance(each, IntegrationReweighting))
    assert callback.search == search
    assert callback.lipschitz.soundness is Soundness.ESTIMATED


def test_samples_that_training_leaves_out_are_not_read(make_model, data, make_trainer):
    data.setup()
    few = DataLoader(data.parts["train"], batch_size=50, sampler=SubsetRandomSampler(range(0, 1200, 10)))
    record, model, step_2 = Record(), make_model(), IntegrationReweighting(last_epochs=1)
    make_trainer(record, step_2, max_epochs=2).fit(model, few, data.val_dataloader())
    model.load_state_dict(record.states[1])
    tau = estimate_lipschitz(model, [{name: x[::10] for name, x in data.parts["train"].inputs.items()}])
    torch.testing.assert_close(step_2.lipschitz.values["fou"], tau.values["fou"])


def test_an_unknown_sampler_asks_for_batches(make_model, data, make_trainer):
    class Odd(Sampler):
        def __iter__(self):
            return iter(range(100))

        def __len__(self):
            return 100

    data.setup()
    loader = DataLoader(data.parts["train"], batch_size=50, sampler=Odd())
    with pytest.raises(TypeError, match="cannot know which samples a Odd leaves out; pass `dataloader=`"):
        make_trainer(IntegrationReweighting(last_epochs=1), Never(), max_epochs=2).fit(
            make_model(), loader, data.val_dataloader()
        )


def test_a_generator_of_batches_is_refused():
    with pytest.raises(TypeError, match="must not be an iterator, got a generator"):
        IntegrationReweighting(last_epochs=1, dataloader=(batch for batch in []))


def test_step_two_without_its_loss_is_an_error(data, make_trainer, make_model):
    model = make_model()
    model.training_step = lambda batch, batch_idx: model(batch[0]).logits.square().mean()
    with pytest.raises(RuntimeError, match="step 2 trains on what `crmt_loss` returns"):
        make_trainer(IntegrationReweighting(last_epochs=1), max_epochs=2).fit(model, datamodule=data)


def test_the_module_can_be_pickled_within_step_two(make_model, data, make_trainer):
    class Pickle(Callback):
        def on_train_batch_end(self, trainer, pl_module, *rest):
            pl_module.trainer = None
            pickle.dumps(pl_module)
            pl_module.trainer = trainer

    make_trainer(IntegrationReweighting(last_epochs=1), Pickle(), max_epochs=2).fit(make_model(), datamodule=data)
