# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluations that observers make slow show one bar, where the Trainer shows bars, and leave nothing behind."""

import re

import pytest
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from torch.utils.data import DataLoader

from lightning_crmt.attacks import FGM, PGD, Budget
from lightning_crmt.callbacks import AdversarialRobustness, CertifiedRobustness, MissingModalities, observer
from lightning_crmt.training import ProgressBar

SHOWN = re.compile(r"Measuring robustness: +\d+%\|.*?\| (\d+)/(\d+) \[\d\d:\d\d<[\d:?]+")


def loader(batches=3):
    generator = torch.Generator().manual_seed(0)
    batch = {"fou": torch.randn(30, 76, generator=generator), "mor": torch.randn(30, 6, generator=generator)}
    return DataLoader([(batch, torch.arange(30) % 10)] * batches, batch_size=None)


def observers(**settings):
    attacks = {"fgm": FGM(Budget(0.1)), "pgd": PGD(Budget(0.1), steps=1)}
    return [
        MissingModalities(),
        AdversarialRobustness(attacks, radii=[0.1], **settings),
        CertifiedRobustness([0.1], constants="estimated"),
    ]


@pytest.fixture
def impatient(monkeypatch):
    """Every evaluation is a slow one, and every step of a bar is drawn."""
    monkeypatch.setattr(observer, "_PATIENCE", 0.0)
    monkeypatch.setattr(Tqdm, "monitor_interval", 0)
    monkeypatch.setattr(Tqdm, "update", lambda bar, n=1: (setattr(bar, "n", bar.n + n), bar.refresh()))


def shown(capsys):
    captured = capsys.readouterr()
    assert "Measuring" not in captured.out  # results may be sent to a file
    return [(int(done), int(total)) for done, total in SHOWN.findall(captured.err)], captured.err


def run(trainer, what, model):
    data = loader()
    trainer.fit(model, data, data) if what == "fit" else getattr(trainer, what)(model, data, verbose=False)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("what", ["fit", "validate", "test"])
def test_one_bar_counts_batches_and_attacks_of_all_observers(what, make_model, make_trainer, capsys):
    settings = {"enable_progress_bar": True, "max_epochs": 1}
    run(make_trainer(*observers(), TQDMProgressBar(), **settings), what, make_model())
    steps, _ = shown(capsys)
    # Two attacks, one certificate and one look at missing modalities for each of three batches.
    assert sorted(set(steps)) == [(done, 12) for done in range(13)]
    assert steps == sorted(steps)
    assert not any(bar.desc.startswith("Measuring") for bar in Tqdm._instances)


@pytest.mark.usefixtures("impatient")
def test_what_is_not_measured_is_not_counted(make_model, make_trainer, capsys):
    callbacks = observers(max_batches=1, every_n_epochs=2)
    settings = {"enable_progress_bar": True, "max_epochs": 3, "num_sanity_val_steps": 2}
    run(make_trainer(*callbacks, TQDMProgressBar(), **settings), "fit", make_model())
    steps, _ = shown(capsys)
    # The attacks in the first and the third epoch, on one of three batches.
    ends = [step for step, after in zip(steps, [*steps[1:], (0, 0)], strict=True) if after < step]
    assert ends == [(8, 8), (6, 6), (8, 8)]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("bars", [[], [TQDMProgressBar(refresh_rate=0)]])
def test_none_where_the_trainer_shows_none(bars, make_model, make_trainer, capsys):
    run(make_trainer(*observers(), *bars, enable_progress_bar=bool(bars)), "test", make_model())
    assert shown(capsys)[0] == []


def test_none_where_it_is_quick(make_model, make_trainer, capsys):
    run(make_trainer(*observers(), TQDMProgressBar(), enable_progress_bar=True), "test", make_model())
    assert "Measuring" not in shown(capsys)[1]


def test_none_on_other_ranks(make_trainer, monkeypatch, capsys):
    trainer = make_trainer(TQDMProgressBar(), enable_progress_bar=True)
    monkeypatch.setattr(type(trainer), "is_global_zero", False)
    with ProgressBar(trainer, "Measuring robustness", total=2) as bar:
        bar.update()
    assert shown(capsys)[1] == ""


class Broken(CertifiedRobustness):
    error: type[BaseException]

    def on_measured(self, model, inputs, target):
        raise self.error


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_it_is_gone_after_an_error(error, make_model, make_trainer, capsys):
    callbacks = [MissingModalities(), Broken([0.1], constants="estimated")]
    callbacks[1].error = error
    with pytest.raises((ZeroDivisionError, KeyboardInterrupt, SystemExit)):
        run(make_trainer(*callbacks, TQDMProgressBar(), enable_progress_bar=True), "test", make_model())
    assert shown(capsys)[0][-1] == (1, 6)
    assert not any(bar.desc.startswith("Measuring") for bar in Tqdm._instances)
    assert all(callback._bar is None for callback in callbacks)
    run(make_trainer(*observers(), TQDMProgressBar(), enable_progress_bar=True), "test", make_model())
    assert shown(capsys)[0][-1] == (12, 12)


@pytest.mark.usefixtures("impatient")
def test_streams_have_no_end_that_is_known(make_model, make_trainer, capsys):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(loader())

    trainer = make_trainer(MissingModalities(), TQDMProgressBar(), enable_progress_bar=True)
    trainer.test(make_model(), DataLoader(Stream(), batch_size=None), verbose=False)
    assert re.search(r"Measuring robustness: 3it \[", capsys.readouterr().err)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("what", ["fit", "validate", "test"])
def test_a_rich_bar_gets_a_line_that_is_hidden_at_the_end(what, make_model, make_trainer, monkeypatch, capsys):
    pytest.importorskip("rich")
    from lightning.pytorch.callbacks import RichProgressBar
    from lightning.pytorch.callbacks.progress.rich_progress import CustomProgress

    bar, seen = RichProgressBar(), []
    update = CustomProgress.update

    def watched(progress, task, **settings):
        update(progress, task, **settings)
        seen.extend(
            (each.completed, each.total) for each in progress.tasks if each.visible and "Mea" in each.description
        )

    monkeypatch.setattr(CustomProgress, "update", watched)
    run(make_trainer(*observers(), bar, enable_progress_bar=True, max_epochs=2), what, make_model())
    assert {(done, 12) for done in range(1, 13)} <= set(seen)
    tasks = [task for task in bar.progress.tasks if task.description.startswith("Measuring")]
    assert tasks
    assert not any(task.visible for task in tasks)
    assert "Measuring robustness:" not in capsys.readouterr().err  # no second program draws
