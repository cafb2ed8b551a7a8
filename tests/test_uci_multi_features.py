# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
import inspect
import math
import re

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback

from lightning_crmt import data as room
from lightning_crmt.data import EpochShuffle, MultimodalDataModule, MultimodalDataset, UCIMultiFeatures
from lightning_crmt.data.mfeat import VIEWS

MODULES = [
    getattr(room, name)
    for name in room.__all__
    if inspect.isclass(getattr(room, name)) and issubclass(getattr(room, name), MultimodalDataModule)
]


def test_split_is_stratified_complete_and_disjoint():
    data = UCIMultiFeatures(views=("pix",), seed=3)
    data.setup()
    for name, each in {"train": 120, "val": 40, "test": 40}.items():
        assert torch.bincount(data.parts[name].target).tolist() == [each] * 10
    rows = torch.cat([part.inputs["pix"] for part in data.parts.values()])
    other = UCIMultiFeatures(views=("pix",), seed=4)
    other.setup()
    assert len(rows) == 2000
    assert len(rows.unique(dim=0)) >= 1990, "a few digits have equal pixel averages"
    assert not torch.equal(other.parts["test"].inputs["pix"], data.parts["test"].inputs["pix"])


def test_scaled_on_the_training_part():
    data = UCIMultiFeatures(views=tuple(VIEWS))
    data.setup()
    for view, size in VIEWS.items():
        train = data.parts["train"].inputs[view].double()
        assert train.shape == (1200, size)
        assert train.mean(0).abs().max() < 1e-6
        deviation = train.std(0, correction=0) * math.sqrt(size)
        assert ((deviation - 1).abs() < 1e-4).logical_or(deviation == 0).all()
        assert train.square().sum(1).mean() == pytest.approx(1, abs=0.02)
        assert data.parts["test"].inputs[view].mean(0).abs().max() > 1e-4, "not standardised by itself"


def test_deterministic():
    def first_batches(seed):
        data = UCIMultiFeatures(seed=seed)
        data.setup()
        return next(iter(data.train_dataloader())), next(iter(data.test_dataloader()))

    for once, again in zip(first_batches(0), first_batches(0), strict=True):
        assert torch.equal(once[0]["fou"], again[0]["fou"])
        assert torch.equal(once[1], again[1])


class Seen(Callback):
    """The batches of each epoch."""

    def __init__(self):
        self.batches = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append((trainer.current_epoch, batch[0]["fou"].clone()))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_goes_on_with_the_order(workers, make_model, make_trainer, tmp_path):
    def fit(epochs, **settings):
        seen = Seen()
        trainer = make_trainer(seen, max_epochs=epochs)
        trainer.fit(make_model(), UCIMultiFeatures(batch_size=300, num_workers=workers), **settings)
        return seen.batches, trainer

    whole, _ = fit(3)
    _, trainer = fit(2)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    rest, _ = fit(3, ckpt_path=tmp_path / "two.ckpt")
    assert [epoch for epoch, _ in rest] == [2] * 4
    for (_, once), (_, again) in zip(whole[-4:], rest, strict=True):
        assert torch.equal(once, again)


def test_training_order_depends_on_seed_and_epoch_alone():
    shuffle, again = EpochShuffle(range(50), seed=1), EpochShuffle(range(50), seed=1)
    first = list(shuffle)
    assert sorted(first) == list(range(50))
    shuffle.set_epoch(1)
    assert list(shuffle) != first
    assert list(again) == first
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(shuffle)
    assert torch.equal(before, torch.get_rng_state())


def test_processes_share_an_epoch():
    shares = [EpochShuffle(range(11), seed=3, processes=3, rank=rank) for rank in range(3)]
    for epoch in range(2):
        for share in shares:
            share.set_epoch(epoch)
        drawn = [index for share in shares for index in share]
        assert set(drawn) == set(range(11))
        assert len(drawn) == 12, "one repeats to even out the processes"


@pytest.mark.parametrize("kind", MODULES)
def test_settings_are_by_keyword_beyond_the_first(kind):
    kinds = [each.kind for each in inspect.signature(kind.__init__).parameters.values()]
    assert kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD) <= 2, "self and one more"


@pytest.mark.parametrize("kind", [kind for kind in MODULES if kind is not MultimodalDataModule])
def test_settings_that_are_handed_on_are_known_to_the_command_line(kind, capsys):
    """They are read from the code of the constructors, with the defaults and the help of those they belong to."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "data")
    needed = {"root": "x", "inputs": "{a: a.npy}", "target": "y.npy", "table": "x.csv", "modalities": "[a]"}
    required = [
        name
        for name, each in inspect.signature(kind).parameters.items()
        if each.default is each.empty and each.kind is not each.VAR_KEYWORD
    ]
    root = [f"--data.{name}={needed[name]}" for name in required]
    settings = parser.parse_args([*root, "--data.seed=3"]).data
    assert (settings.batch_size, settings.num_workers, settings.seed) == (64, 4 if "root" in required else 0, 3)
    assert "samples per batch and process" in " ".join(parser.format_help().split())
    for wrong in ("--data.batchsize=3", "--data.folders={}", "--data.batch_size=many"):
        with pytest.raises(Exception, match=re.escape(wrong.split("=")[0].removeprefix("--data."))):
            parser.parse_args([*root, wrong])


def test_order_of_views_is_the_callers():
    data = UCIMultiFeatures(views=("mor", "fou"))
    data.setup()
    (inputs, _) = next(iter(data.val_dataloader()))
    assert list(inputs) == ["mor", "fou"]
    assert data.in_features == {"mor": 6, "fou": 76}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"views": ("fou", "morph")}, "`views` must be different names among ['fac', 'fou'"),
        ({"views": ("fou", "fou")}, "got ('fou', 'fou')"),
        ({"views": ()}, "got ()"),
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"num_workers": -1}, "`num_workers` must be at least 0, got -1"),
        ({"seed": -1}, "`seed` must be at least 0, got -1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        UCIMultiFeatures(**settings)


def test_ragged_samples_are_refused():
    with pytest.raises(ValueError, match="`inputs` must have one batch size"):
        MultimodalDataset({"a": torch.zeros(3, 1), "b": torch.zeros(4, 1)}, torch.zeros(3))
    with pytest.raises(ValueError, match="`target` must have shape"):
        MultimodalDataset({"a": torch.zeros(3, 1)}, torch.zeros(4))


def test_memory_is_pinned_for_a_fit_on_a_gpu_alone(data, make_trainer, monkeypatch):
    """And not for one on the CPU of a machine that has a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    data.trainer = make_trainer()
    assert not data.train_dataloader().pin_memory
    assert not data.val_dataloader().pin_memory
    monkeypatch.setattr(type(data.trainer.strategy), "root_device", torch.device("cuda", 1))
    assert data.train_dataloader().pin_memory
