# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
import copy
import csv
import re
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule, seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import Strategy
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, SubsetRandomSampler

from lightning_crmt import (
    CRMTModule,
    LinearFusion,
    ProbeSearch,
    Soundness,
    keep_scores,
    reweight,
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

Estimated = partial(CertifiedRobustness, constants="estimated")


class Record(Callback):
    """Copies of everything: after the last step of training, at the last validation, and when checkpoints are saved."""

    def on_train_start(self, trainer, pl_module):
        self.start = copy.deepcopy(pl_module.state_dict())

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        self.before = copy.deepcopy(pl_module.state_dict())

    def on_validation_start(self, trainer, pl_module):
        self.validated = copy.deepcopy(pl_module.state_dict())

    def on_train_batch_end(self, trainer, pl_module, *rest):
        # Called before that of step 2, which stands after this callback.
        self.stepped = copy.deepcopy(pl_module.state_dict())


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


WEIGHTS = {"head.raw_weights.fou", "head.raw_weights.mor"}


@pytest.mark.parametrize(
    "settings", [{}, {"accumulate_grad_batches": 4}, {"precision": "bf16-mixed"}, {"max_steps": 9}]
)
def test_the_weights_alone_move_after_the_last_step_and_before_validation(settings, make_model, data, make_trainer):
    record, model, step_2 = Record(), make_model(), IntegrationReweighting()
    make_trainer(record, step_2, **({"max_epochs": 2} | settings)).fit(model, datamodule=data)
    assert len(changed(record.start, record.stepped)) > 10
    assert changed(record.stepped, model.state_dict()) == WEIGHTS, "buffers of BatchNorm count as well"
    if "max_steps" not in settings:  # which ends within an epoch, after which Lightning validates nothing
        assert changed(record.validated, model.state_dict()) == set()
    assert all((a >= 0).all() for a in model.head.integration_weights.values())
    assert step_2.reweighted.objective[-1] < step_2.reweighted.objective[0]


def test_it_is_the_function_on_all_training_samples(make_model, data, make_trainer):
    record, model, settings = Record(), make_model(), {"epochs": 4, "lr": 0.02, "batch_size": 30, "objective": "mean"}
    step_2 = IntegrationReweighting(**settings, optimizer=torch.optim.SGD, seed=3)
    make_trainer(record, step_2, max_epochs=2).fit(model, datamodule=data)
    assert len(step_2.kept.target) == len(data.parts["train"].target)
    again = make_model()
    again.load_state_dict(record.stepped)
    train = data.parts["train"]
    kept = keep_scores(again, [(train.inputs, train.target)])
    expected = reweight(again.head, *kept, **settings, optimizer=torch.optim.SGD, seed=3)
    for name, weight in expected.head.integration_weights.items():
        torch.testing.assert_close(model.head.integration_weights[name], weight, rtol=1e-5, atol=1e-6)


def test_checkpoints_and_their_metrics_see_it(make_model, data, make_trainer, tmp_path):
    saving, model = (
        ModelCheckpoint(tmp_path, filename="last", monitor="val/accuracy/joint", save_last=True),
        make_model(),
    )
    trainer = make_trainer(saving, IntegrationReweighting(), max_epochs=1, enable_checkpointing=True)
    trainer.fit(model, datamodule=data)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert changed(saved, model.state_dict()) == set()
    (found,) = trainer.validate(model, datamodule=data, verbose=False)
    assert found["val/accuracy/joint"] == pytest.approx(float(saving.current_score))


def test_curves_are_logged(make_model, data, make_trainer, tmp_path):
    logger, model = CSVLogger(tmp_path), make_model()
    step_2 = IntegrationReweighting(epochs=5)
    trainer = make_trainer(step_2, logger=logger, max_epochs=1)
    trainer.fit(model, datamodule=data)
    text = (Path(logger.log_dir) / "metrics.csv").read_text()
    rows = [row for row in csv.DictReader(text.splitlines()) if row["train/integration_objective"] and not row["epoch"]]
    assert [int(row["step"]) for row in rows] == [trainer.global_step + i for i in range(1, 6)]
    assert [float(row["train/integration_objective"]) for row in rows] == pytest.approx(step_2.reweighted.objective)
    for name in ("fou", "mor"):
        curve = [float(row[f"train/integration_weight/{name}"]) for row in rows]
        assert curve == pytest.approx([weights[name] for weights in step_2.reweighted.weights])
        assert curve[-1] == pytest.approx(float(model.head.integration_weights[name].detach().mean()))
    assert float(trainer.callback_metrics["train/integration_objective"]) == pytest.approx(
        step_2.reweighted.objective[-1]
    )


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("epochs_done", [1, 2])
def test_a_resumed_run_equals_the_uninterrupted_one(epochs_done, make_model, data, make_trainer, tmp_path):
    def fit(model, **settings):
        # Lightning does not restore the random state that Dropout draws from.
        model.encoders["fou"][3].p = 0.0
        every_epoch = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        trainer = make_trainer(IntegrationReweighting(), every_epoch, max_epochs=3, enable_checkpointing=True)
        trainer.fit(model, datamodule=data, **settings)
        return model.state_dict()

    whole = fit(make_model(seed=0))
    saved = tmp_path / f"epoch={epochs_done - 1}.ckpt"
    assert changed(whole, fit(make_model(seed=1), ckpt_path=saved)) == set()


def test_the_running_loader_keeps_its_batches(make_model, data, make_trainer):
    """With persistent workers, iterating the Trainer's own loader would empty the epoch under way."""

    seen = []

    class Count(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            seen.append(trainer.fit_loop.epoch_loop.batch_idx + 1)

    data.num_workers = 1
    make_trainer(IntegrationReweighting(), Count(), max_epochs=2).fit(make_model(), datamodule=data)
    assert seen == [6, 6]


def test_progress_bars_are_shown(make_model, data, make_trainer, capfd):
    trainer = make_trainer(IntegrationReweighting(), max_epochs=1, enable_progress_bar=True)
    trainer.fit(make_model(), datamodule=data)
    shown = capfd.readouterr().err
    assert "Scores and Lipschitz constants" in shown
    assert "Integration reweighting" in shown


def test_own_batches_for_the_pass(make_model, data, make_trainer):
    data.setup()
    few = DataLoader(data.parts["val"], batch_size=100)
    step_2 = IntegrationReweighting(dataloader=few)
    make_trainer(step_2, max_epochs=1).fit(make_model(), datamodule=data)
    assert torch.equal(step_2.kept.target, data.parts["val"].target)


def test_augmented_data_are_passed_over_several_times(make_model, data, make_trainer):
    data.setup()

    class Noisy(Dataset):
        def __init__(self, part):
            self.part = part

        def __len__(self):
            return len(self.part.target)

        def __getitem__(self, index):
            inputs, target = self.part[index]
            return {name: value + 0.1 * torch.randn_like(value) for name, value in inputs.items()}, target

    model, step_2 = make_model(), IntegrationReweighting(passes=3)
    loader = DataLoader(Noisy(data.parts["train"]), batch_size=200)
    make_trainer(step_2, max_epochs=1).fit(model, loader, data.val_dataloader())
    size = len(data.parts["train"].target)
    assert torch.equal(step_2.kept.target, data.parts["train"].target.repeat(3))
    first, second, _ = step_2.kept.scores["fou"].split(size)
    assert not torch.equal(first, second)


@pytest.mark.slow
def test_observers_leave_no_trace(make_model, data, make_trainer):
    def fit(*observers):
        model = make_model()
        make_trainer(IntegrationReweighting(), *observers, max_epochs=2, num_sanity_val_steps=1).fit(
            model, datamodule=data
        )
        return model.state_dict()

    attacks = {
        "pgd": PGD(Budget(0.1), steps=3, restarts=2),
        "near": MinimumNorm(Budget(1.0), steps=2, restarts=1),
    }
    observers = Estimated([0.1]), MissingModalities(), MissingModalities("dropped")
    assert changed(fit(), fit(*observers, AdversarialRobustness(attacks, max_batches=1))) == set()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "`epochs` must be at least 1, got 0"),
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"passes": 0}, "`passes` must be at least 1, got 0"),
        ({"constants": "rigorous"}, "`constants` must be 'estimated' or 'sound', got 'rigorous'"),
        ({"lr": 0.0}, "`lr` must be above 0, got 0.0"),
        ({"objective": "median"}, "`objective` must be one of ('mean', 'clipped'), got 'median'"),
        ({"clip": -1.0}, "`clip` must be above 0, got -1.0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        IntegrationReweighting(**settings)


@pytest.mark.parametrize(("settings", "epochs"), [({"last_epochs": 4}, 4), ({"start_epoch": 7}, 10)])
def test_names_of_the_last_release_are_met_with_a_warning(settings, epochs):
    with pytest.warns(
        DeprecationWarning, match="step 2 follows the last epoch of training, for `epochs` on kept scores"
    ):
        assert IntegrationReweighting(**settings).epochs == epochs


@pytest.mark.filterwarnings("ignore:`last_epochs` and `start_epoch`:DeprecationWarning")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"last_epochs": 0}, "`last_epochs` must be at least 1, got 0"),
        ({"start_epoch": -1}, "`start_epoch` must be at least 0, got -1"),
    ],
)
def test_they_are_checked_as_they_were(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        IntegrationReweighting(**settings)


class Never(Callback):
    def on_train_batch_start(self, *args):
        raise AssertionError("training began")


class Odd(Sampler):
    def __iter__(self):
        return iter(range(100))

    def __len__(self):
        return 100


@pytest.mark.parametrize(
    ("trainer", "model", "error", "message"),
    [
        ({"limit_train_batches": 0}, {}, ValueError, "`limit_train_batches` must be above 0 for step 2 to see samples"),
        ({}, {"head": LinearFusion}, TypeError, "needs late fusion with integration weights"),
    ],
)
def test_what_must_fail_fails_before_training(trainer, model, error, message, make_model, data, make_trainer):
    with pytest.raises(error, match=re.escape(message)):
        make_trainer(IntegrationReweighting(), Never(), **trainer).fit(make_model(**model), datamodule=data)


def test_a_plain_module_is_refused(data, make_trainer):
    class Plain(LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def training_step(self, batch, batch_idx): ...

        def validation_step(self, batch, batch_idx): ...

        def configure_optimizers(self): ...

    with pytest.raises(TypeError, match="got a Plain: subclass CRMTModule, or put CRMTMixin before your own class"):
        make_trainer(IntegrationReweighting()).fit(Plain(), datamodule=data)


def test_scores_that_do_not_fit_into_memory_are_refused_before_training(make_model, data, make_trainer, monkeypatch):
    monkeypatch.setattr("lightning_crmt.callbacks.integration_reweighting._memory", lambda: 2**16)
    message = r"step 2 keeps 24,000 scores in memory, 0.0 GiB where there are 0.0: give a `dataloader` with fewer"
    with pytest.raises(ValueError, match=message):
        make_trainer(IntegrationReweighting(), Never()).fit(make_model(), datamodule=data)


def test_several_loaders_and_an_unknown_sampler_are_refused_before_training(make_model, data, make_trainer):
    data.setup()
    loader = DataLoader(data.parts["train"], batch_size=50, sampler=Odd())
    for loaders, message in (
        (loader, "cannot know which samples a Odd leaves out; pass `dataloader=`"),
        ([data.train_dataloader(), data.train_dataloader()], "can rebuild a single DataLoader"),
    ):
        with pytest.raises(TypeError, match=message):
            make_trainer(IntegrationReweighting(), Never()).fit(make_model(), loaders, data.val_dataloader())


def test_a_strategy_that_keeps_parameters_in_pieces_is_refused(make_model, data, make_trainer):
    trainer = make_trainer(IntegrationReweighting(), Never())
    trainer.strategy.__class__ = type("FSDPStrategy", (Strategy,), dict(vars(Strategy)))
    with pytest.raises(RuntimeError, match=r"hold whole parameters.* lightning-crmt reweight"):
        trainer.callbacks[0].setup(trainer, make_model(), "fit")


@pytest.mark.filterwarnings("ignore:.*does not have `__len__`", "ignore:Your `IterableDataset`")
def test_a_stream_without_length_is_taken(make_model, data, make_trainer):
    data.setup()
    train = data.parts["train"]

    class Stream(IterableDataset):
        def __iter__(self):
            return (train[i] for i in range(100))

    step_2 = IntegrationReweighting()
    make_trainer(step_2, max_epochs=1).fit(make_model(), DataLoader(Stream(), batch_size=30), data.val_dataloader())
    assert torch.equal(step_2.kept.target, train.target[:100])


def test_a_fit_that_ends_early_is_reweighted_with_a_warning(make_model, data, make_trainer):
    class Stop(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = True

    record, model = Record(), make_model()
    with pytest.warns(UserWarning, match="the fit ended early, after 1 epochs: step 2 follows its last validation"):
        make_trainer(Stop(), record, IntegrationReweighting()).fit(model, datamodule=data)
    assert changed(record.validated, model.state_dict()) == WEIGHTS


def test_averages_that_would_replace_the_weights_are_warned_about(make_model, data, make_trainer):
    with pytest.warns(UserWarning, match="StochasticWeightAveraging replaces the weights of step 2 by averages"):
        make_trainer(StochasticWeightAveraging(1e-2), IntegrationReweighting(), max_epochs=2).fit(make_model(), data)


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-true", "bf16-mixed"])
def test_every_precision_reaches_step_two(precision, make_model, data, make_trainer):
    model, step_2 = make_model(), IntegrationReweighting(epochs=2)
    make_trainer(step_2, max_epochs=1, precision=precision).fit(model, datamodule=data)
    assert all(value.isfinite().all() for value in step_2.lipschitz.values.values())
    assert step_2.reweighted.clip > 0
    for name, weight in step_2.reweighted.head.integration_weights.items():
        torch.testing.assert_close(model.head.integration_weights[name], weight.to(model.head.bias), rtol=0, atol=0)


def test_used_again_it_measures_anew(make_model, data, make_trainer):
    step_2 = IntegrationReweighting()
    make_trainer(step_2, max_epochs=1).fit(make_model(), datamodule=data)
    before = step_2.lipschitz.values["fou"]
    make_trainer(step_2, max_epochs=1).fit(make_model(seed=5), datamodule=data)
    assert not torch.equal(before, step_2.lipschitz.values["fou"])


def test_a_fast_development_run_goes_through_step_two(make_model, data, make_trainer):
    step_2 = IntegrationReweighting()
    make_trainer(step_2, max_epochs=50, fast_dev_run=True).fit(make_model(), datamodule=data)
    assert len(step_2.kept.target) == data.batch_size


def test_sound_constants(data, make_trainer):
    seed_everything(0, verbose=False)
    model = CRMTModule({"fou": LipschitzMLP(76, 16, (16,)), "mor": LipschitzMLP(6, 16, (16,))}, num_classes=10)
    step_2 = IntegrationReweighting(constants="sound")
    make_trainer(step_2, max_epochs=1).fit(model, datamodule=data)
    assert step_2.lipschitz.soundness is Soundness.SOUND
    assert step_2.lipschitz.of == "encoder"
    assert float(step_2.lipschitz.values["fou"]) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("constants", "expected"),
    [
        ({"class_path": "ProbeSearch", "init_args": {"pilots": 16}}, ProbeSearch(pilots=16)),
        ({"class_path": "lightning_crmt.ProbeSearch"}, ProbeSearch()),
        ("estimated", Soundness.ESTIMATED),
    ],
)
def test_it_is_set_up_from_yaml(constants, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning-crmt"])
    config = yaml.safe_load((Path(__file__).parent.parent / "examples" / "mfeat.yaml").read_text())
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": 1.0, "momentum": 0.5}}
    settings = {"epochs": 1, "constants": constants, "optimizer": optimizer}
    config["trainer"]["callbacks"] = [{"class_path": "IntegrationReweighting", "init_args": settings}]
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    words = ["--trainer.fast_dev_run=2", "--trainer.enable_progress_bar=false"]
    cli = command_line(["fit", "--config", str(path), *words])
    (callback,) = (each for each in cli.trainer.callbacks if isinstance(each, IntegrationReweighting))
    assert callback.constants == expected
    assert callback.lipschitz.soundness is Soundness.ESTIMATED
    (group,) = callback.optimizer([nn.Parameter(torch.ones(1))]).param_groups
    assert group["momentum"] == 0.5


def test_samples_that_training_leaves_out_are_not_read(make_model, data, make_trainer):
    data.setup()
    few = DataLoader(data.parts["train"], batch_size=50, sampler=SubsetRandomSampler(range(0, 1200, 10)))
    step_2 = IntegrationReweighting()
    make_trainer(step_2, max_epochs=1).fit(make_model(), few, data.val_dataloader())
    assert torch.equal(step_2.kept.target, data.parts["train"].target[::10])


def test_a_generator_of_batches_is_refused():
    with pytest.raises(TypeError, match="must not be an iterator, got a generator"):
        IntegrationReweighting(dataloader=(batch for batch in []))
