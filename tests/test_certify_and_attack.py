# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""``certify`` and ``attack`` on checkpoints: their tables say the same as their rows, and as the library."""

import csv
import subprocess
import sys
from pathlib import Path

import lightning
import pytest
import torch
import yaml
from lightning.pytorch import Trainer, seed_everything

from lightning_crmt import CRMTModule
from lightning_crmt.attacks import PGD, Budget
from lightning_crmt.callbacks import AdversarialRobustness, CertifiedRobustness, SmoothedRobustness
from lightning_crmt.cli import main
from lightning_crmt.data import UCIMultiFeatures
from lightning_crmt.encoders import LipschitzMLP
from lightning_crmt.evaluation import Key

CONFIG = """
seed_everything: 0
model:
  class_path: CRMTModule
  init_args:
    num_classes: 10
    encoders:
      fou: {class_path: LipschitzMLP, init_args: {in_features: 76, out_features: 32, hidden: [32]}}
      mor: {class_path: LipschitzMLP, init_args: {in_features: 6, out_features: 32, hidden: [32]}}
    optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1.0e-2}}
data: {class_path: UCIMultiFeatures, init_args: {views: [fou, mor], batch_size: 64}}
trainer:
  max_epochs: 1
  accelerator: cpu
  logger: {class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: .}}
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - {class_path: CertifiedRobustness, init_args: {radii: [0.5]}}
    - {class_path: lightning.pytorch.callbacks.DeviceStatsMonitor}
"""

FOREIGN = """
import torch
from lightning.pytorch import Callback, LightningModule
from torch import nn

from lightning_crmt.encoders import LipschitzMLP


class Foreign(LightningModule):
    def __init__(self):
        super().__init__()
        self.fou, self.mor = nn.Linear(76, 10), nn.Linear(6, 10)
        self.share = 1.0

    def forward(self, fou, mor):
        return self.fou(fou) + self.share * self.mor(mor)

    def validation_step(self, batch, batch_idx): ...
    def test_step(self, batch, batch_idx): ...


class NoRule(LipschitzMLP):
    def forward(self, x):
        return super().forward(x).sin()


class Changes(Callback):
    def setup(self, trainer, pl_module, stage):
        pl_module.share = 0.0
"""


def module():
    encoders = {name: LipschitzMLP(size, 32, (32,)) for name, size in (("fou", 76), ("mor", 6))}
    return CRMTModule(encoders, 10)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a config and a checkpoint of it."""
    folder = tmp_path_factory.mktemp("trained")
    seed_everything(0, verbose=False)
    torch.set_num_threads(1)
    made = CRMTModule(dict(module().encoders), 10, optimizer=lambda groups: torch.optim.AdamW(groups, 1e-2))
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(made, datamodule=UCIMultiFeatures(views=("fou", "mor"), batch_size=64))
    trainer.save_checkpoint(folder / "model.ckpt")
    return folder


@pytest.fixture(autouse=True)
def folder(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["lightning-crmt"])
    monkeypatch.delenv("LIGHTNING_CRMT_TRACEBACK", raising=False)
    Path("run.yaml").write_text(CONFIG)
    Path("foreign.py").write_text(FOREIGN)
    Path("model.ckpt").symlink_to(trained / "model.ckpt")
    yield tmp_path
    sys.modules.pop("foreign", None)


def done(subcommand, *words, out="out", code=0):
    """What the program leaves behind: its rows and its numbers."""
    words = [subcommand, "--config", "run.yaml", "--ckpt_path", "model.ckpt", "--out", out, *map(str, words)]
    if code:
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == code
    else:
        main(words)
    file = {"certify": "certificates.csv", "attack": "attacks.csv"}[subcommand]
    with (Path(out) / file).open() as rows, (Path(out) / "summary.csv").open() as numbers:
        return list(csv.DictReader(rows)), {row["key"]: float(row["value"]) for row in csv.DictReader(numbers)}


def logged(observer, trained, split="test"):
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=[observer]
    )
    data = UCIMultiFeatures(views=("fou", "mor"), batch_size=64)
    run = trainer.test if split == "test" else trainer.validate
    run(module(), datamodule=data, ckpt_path=str(trained / "model.ckpt"), verbose=False)
    return observer.numbers


def mean(flags):
    flags = list(flags)
    return sum(flags) / len(flags)


@pytest.mark.parametrize(("level", "split"), [("sound", "test"), ("estimated", "val")])
def test_certificates_are_those_of_the_callback_and_the_summary_is_of_the_rows(level, split, trained, capsys):
    budget = {"fou": 0.1, "mor": 0.3}
    words = ["--level", level, "--split", split, "--radii", 0.1, 0.3, "--budget", "fou=0.1,mor=0.3", "--samples", 100]
    rows, numbers = done("certify", *words)
    shown = capsys.readouterr().out
    expected = logged(
        CertifiedRobustness([0.1, 0.3], constants=level, budgets=[budget], max_samples=100), trained, split
    )
    sure = "certified" if level == "sound" else "estimated"
    kept = {key: value for key, value in expected.items() if Key.parse(key).sure}
    assert len(kept) > 8
    assert numbers == pytest.approx(kept | {f"{split}/accuracy/joint": mean(row["right"] == "1" for row in rows)})
    places = [int(row["index"]) for row in rows]
    assert len(set(places)) == 100
    assert {int(row["target"]) for row in rows} == set(range(10)), "the parts are in the order of their classes"
    for of in ("joint", "fou", "mor"):
        for radius in (0.1, 0.3):
            share = mean(row["right"] == "1" and float(row[f"{sure}_to_stay/{of}"]) > radius for row in rows)
            assert numbers[f"{split}/{sure}_accuracy/{of}@{radius}"] == pytest.approx(share)
    share = mean(row["right"] == row[f"{sure}_to_stay/fou=0.1+mor=0.3"] == "1" for row in rows)
    assert numbers[f"{split}/{sure}_accuracy/fou=0.1+mor=0.3"] == pytest.approx(share)
    # What is told is what is written; and it says how sure, of how many, in which norm.
    assert Path("out/protocol.txt").read_text() in shown
    for part in (
        "100 samples",
        f"100, evenly spread, of the {'test' if split == 'test' else 'validation'} part",
        "l2",
        level,
    ):
        assert part in shown
    assert Path(f"out/{split}_{sure}_curve.png").stat().st_size > 1000
    assert f"{numbers[f'{split}/{sure}_accuracy/joint@0.3']:.4f}" in shown
    assert not list(Path().glob("lightning_logs*"))


def test_the_smoothed_classifier_is_that_of_the_callback(trained, capsys):
    words = ["--level", "smoothed", "--radii", 0.1, 0.3, "--budget", "fou=0.1,mor=0.3", "--samples", 24]
    words += ["--max_draws", 2000, "--alpha", 0.01, "--seed", 3]
    rows, numbers = done("certify", *words, "--sigma", "fou=0.25,mor=0.5")
    shown = capsys.readouterr().out
    settings = {"alpha": 0.01, "max_draws": 2000, "seed": 3, "max_samples": 24, "budgets": [{"fou": 0.1, "mor": 0.3}]}
    expected = logged(SmoothedRobustness({"fou": 0.25, "mor": 0.5}, [0.1, 0.3], **settings), trained)
    assert numbers == expected
    assert "test/accuracy/joint" not in numbers  # of the model itself
    for of in ("joint", "fou", "mor"):
        for radius in (0.1, 0.3):
            stays = [float(row[f"probably_certified_to_stay/{of}"]) > radius for row in rows]
            share = mean(row["right"] == "1" and each for row, each in zip(rows, stays, strict=True))
            assert numbers[f"test/probably_certified_accuracy/{of}@{radius}"] == pytest.approx(share)
    for row in rows:
        assert (row["abstained"] == "1") == (row["prediction"] == "-1")
        assert 0 < int(row["draws"]) <= 3000
    for part in ("smoothed", "{'fou': 0.25, 'mor': 0.5}", "probability 0.01", "sequential", "2000 draws", "seed 3"):
        assert part in shown
    # Stopped before it had written, it goes on from what was finished, and its sigma may stand in the config.
    for file in Path("out").iterdir():
        if file.name != "finished":
            file.unlink()
    saved = sum(file.stat().st_size for file in Path("out/finished").iterdir())
    config = yaml.safe_load(CONFIG)
    callback = {"class_path": "SmoothedRobustness", "init_args": {"sigma": {"fou": 0.25, "mor": 0.5}}}
    config["trainer"]["callbacks"] = [callback]
    Path("run.yaml").write_text(yaml.safe_dump(config))
    again, same = done("certify", *words)
    assert (again, same) == (rows, numbers)
    assert sum(file.stat().st_size for file in Path("out/finished").iterdir()) == saved


def test_without_matplotlib_there_is_no_figure_and_all_else(trained, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    rows, _ = done("certify", "--radii", 0.1, 0.2, "--samples", 10)
    assert len(rows) == 10
    assert "figures need matplotlib" in capsys.readouterr().out
    assert not list(Path("out").glob("*.png"))


def test_one_modality_alone_is_called_so(trained):
    rows, numbers = done("certify", "--modalities", "mor", "--radii", 0.2, "--samples", 50)
    assert {name for name in rows[0] if "/" in name} == {"certified_to_stay/mor"}
    assert "test/certified_accuracy/mor@0.2" in numbers
    assert "test/certified_accuracy/joint@0.2" not in numbers


def test_attacks_are_those_of_the_callback_and_the_summary_is_of_the_rows(trained, capsys):
    words = ["--attack", "PGD", "--attack", "MinimumNorm", "--steps", 5, "--radii", 0.1, 0.4, "--samples", 60]
    rows, numbers = done("attack", *words)
    shown = capsys.readouterr().out
    expected = logged(
        AdversarialRobustness({"PGD": PGD(Budget(1.0), steps=5)}, radii=[0.1, 0.4], max_samples=60), trained
    )
    assert numbers.items() >= expected.items()
    assert len(rows) == 60
    columns = [name for name in rows[0] if name.startswith("stays_right/")]
    assert len(columns) == 4
    for column in columns:
        share = mean(row[column] == "1" for row in rows)
        assert numbers[f"test/robust_accuracy/{column.removeprefix('stays_right/')}"] == pytest.approx(share)
    for row in rows:
        for attack in ("PGD", "MinimumNorm"):
            size = float(row[f"size_of_perturbation/{attack}"])
            assert (size == 0) == (row["right"] == "0")
            for radius in (0.1, 0.4):
                assert (row[f"stays_right/{attack}@{radius}"] == "1") == (size > radius * (1 + 1e-6))
    for radius in (0.1, 0.4):
        both = mean(all(row[f"stays_right/{name}@{radius}"] == "1" for name in ("PGD", "MinimumNorm")) for row in rows)
        assert numbers[f"test/robust_accuracy/all@{radius}"] == both
    assert numbers["test/robust_accuracy/all@0.4"] < numbers["test/clean_accuracy/all"]
    for part in ("PGD(steps=5, restarts=1", "l2, in units", "60 samples", "upper bound"):
        assert part in shown
    assert Path("out/test_robust_curve.png").exists()


def test_certified_is_below_withstood(trained):
    """Of the same samples, radius by radius and one by one."""
    certified, _ = done("certify", "--radii", 0.1, 0.4, "--samples", 60, out="certified")
    attacked, _ = done("attack", "--steps", 4, "--radii", 0.1, 0.4, "--samples", 60, out="attacked")
    for here, there in zip(certified, attacked, strict=True):
        assert [here[name] for name in ("index", "target", "prediction", "right")] == [
            there[name] for name in ("index", "target", "prediction", "right")
        ]
        for radius in (0.1, 0.4):
            if here["right"] == "1" and float(here["certified_to_stay/joint"]) > radius:
                assert there[f"stays_right/strongest@{radius}"] == "1"


def test_a_budget_of_several_modalities(trained):
    rows, numbers = done("attack", "--attack", "PGD", "--budget", "fou=0.2,mor=0.4", "--samples", 30)
    expected = AdversarialRobustness({"PGD": PGD(Budget({"fou": 0.2, "mor": 0.4}))}, max_samples=30)
    assert numbers == logged(expected, trained)
    assert "stays_right/PGD@fou=0.2+mor=0.4" in rows[0]


def test_scripts_can_tell_by_the_status(trained, capsys):
    words = ["--radii", 0.01, 5, "--samples", 50]
    done("certify", *words, "--at_least", 0, out="enough")
    done("certify", *words, "--at_least", 0.3, out="below", code=3)
    assert "below 0.3: test/certified_accuracy/joint@5 is 0.0000" in capsys.readouterr().out
    words = ["--attack", "FGM", "--radii", 0.01, "--samples", 50]
    done("attack", *words, "--at_least", 0.3, out="withstood")
    done("attack", *words, "--at_least", 1, out="fallen", code=3)


def test_a_foreign_module_is_read_as_the_config_or_the_words_say(folder, capsys):
    sys.path.append(str(folder))
    save_foreign()
    config = yaml.safe_load(CONFIG)
    config["model"] = "foreign.Foreign"
    config["trainer"]["callbacks"] = ["foreign.Changes"]
    Path("run.yaml").write_text(yaml.safe_dump(config))
    words = ["--ckpt_path", "foreign.ckpt", "--level", "estimated", "--radii", 0.1, "--samples", 20]
    named, _ = done("certify", *words, "--inputs", "fou", "mor", out="named")
    config["trainer"]["callbacks"] = [
        {"class_path": "CertifiedRobustness", "init_args": {"constants": "estimated", "inputs": ["fou", "mor"]}}
    ]
    Path("run.yaml").write_text(yaml.safe_dump(config))
    configured, _ = done("certify", *words, out="configured")
    # A callback of one's own stays, as it may change what the model computes; that of the config does not.
    assert {row["estimated_to_stay/mor"] for row in named} == {"inf"}
    assert all(0 < float(row["estimated_to_stay/mor"]) < 100 for row in configured)


def test_a_config_that_fit_saved(folder, capsys):
    main(["fit", "--config", "run.yaml", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1",
          "--trainer.callbacks=[]"])  # fmt: skip
    (saved,) = Path("lightning_logs").rglob("config.yaml")
    Path("run.yaml").write_text(saved.read_text())
    _, numbers = done("certify", "--radii", 0.1, "--samples", 10)
    assert "test/certified_accuracy/joint@0.1" in numbers


def save_foreign():
    from foreign import Foreign

    torch.save(
        {"state_dict": Foreign().state_dict(), "pytorch-lightning_version": lightning.__version__}, "foreign.ckpt"
    )


CERTIFY = ["certify", "--config", "run.yaml", "--ckpt_path", "model.ckpt", "--out", "out"]
ATTACK = ["attack", *CERTIFY[1:]]
FOREIGN_ONE = ["--model=foreign.Foreign", "--ckpt_path", "foreign.ckpt"]
NO_BOUND = ["--model.init_args.encoders.mor.class_path=foreign.NoRule"]

MISTAKES = {
    "no checkpoint": (["certify", "--config", "run.yaml", "--out", "out"], "--ckpt_path must be given: a model as the"),
    "no such checkpoint": (
        [*CERTIFY, "--ckpt_path", "no.ckpt"],
        "--ckpt_path must be a checkpoint, got no.ckpt: there",
    ),
    "not a checkpoint": ([*CERTIFY, "--ckpt_path", "text.ckpt"], "`ckpt_path` must be a checkpoint"),
    "no checkpoint of Lightning": ([*CERTIFY, "--ckpt_path", "weights.ckpt"], "--ckpt_path must be a checkpoint as a"),
    "checkpoint of another": (
        [*CERTIFY, "--model.init_args.num_classes=7"],
        "--ckpt_path must be a checkpoint of this",
    ),
    "no folder": (["certify", "--config", "run.yaml", "--ckpt_path", "model.ckpt"], "--out must be given: the folder"),
    "folder in use": ([*CERTIFY, "--out", "used"], "--out must be a new folder or an empty one, got used"),
    "level": ([*CERTIFY, "--level", "sond"], "--level must be sound, rigorous, smoothed or estimated, got 'sond'"),
    "option": ([*CERTIFY, "--radi", "0.1"], "there is no option `--radi`; did you mean `--radii`?"),
    "option of fit": ([*CERTIFY, "--trainer.max_epoch=1"], "there is no option `--trainer.max_epoch`; did you mean"),
    "no number": ([*CERTIFY, "--radii", "a"], "argument --radii: invalid float value: 'a'"),
    "negative radius": ([*CERTIFY, "--radii", "-1"], "--radii must be at least 0, finite and different, got [-1.0]"),
    "equal radii": ([*ATTACK, "--radii", "1", "1"], "--radii must be at least 0, finite and different, got [1.0, 1.0]"),
    "form of a budget": ([*CERTIFY, "--budget", "fou"], "--budget must be like audio=0.1,image=0.3, got 'fou'"),
    "budget twice": ([*CERTIFY, "--budget", "fou=1,fou=2"], "--budget must name each modality once, as in audio=0.1"),
    "budget of another": ([*CERTIFY, "--budget", "audio=1"], "--budget must name modalities among ['fou', 'mor'], got"),
    "modality": ([*CERTIFY, "--modalities", "audio"], "--modalities must name modalities among ['fou', 'mor'], got"),
    "no samples": ([*CERTIFY, "--samples", "0"], "--samples must be at least 1, got 0"),
    "no share": (
        [*CERTIFY, "--radii", "1", "--at_least", "70"],
        "--at_least must be a share between 0 and 1, got '70'",
    ),
    "share of nothing": ([*CERTIFY, "--at_least", "0.7"], "--at_least needs --radii or --budget: a share of samples"),
    "split": ([*CERTIFY, "--split", "tst"], "--split must be val or test, got 'tst'; did you mean `test`?"),
    "no CRMT module": ([*CERTIFY, *FOREIGN_ONE, "--inputs", "fou", "mor"], "--level 'sound' needs a CRMT module"),
    "no names": ([*CERTIFY, *FOREIGN_ONE, "--level", "estimated"], "--inputs must name the modalities of Foreign"),
    "no noise": ([*CERTIFY, "--level", "smoothed"], "--sigma must be given: the standard deviation of the noise"),
    "form of the noise": (
        [*CERTIFY, "--level", "smoothed", "--sigma", "a"],
        "--sigma must be like audio=0.1,image=0.3",
    ),
    "noise of none": (
        [*CERTIFY, "--level=smoothed", "--sigma=a=1"],
        "--sigma must name modalities among ['fou', 'mor']",
    ),
    "noise without smoothing": ([*CERTIFY, "--sigma", "1"], "--sigma must be with --level smoothed, got sound"),
    "alpha": ([*CERTIFY, "--level=smoothed", "--sigma=1", "--alpha=2"], "--alpha must be"),
    "where there is noise": (
        [*CERTIFY, "--level=smoothed", "--sigma=1", "--modalities", "fou"],
        "--modalities are those",
    ),
    "no bound": ([*CERTIFY, *NO_BOUND], "the encoder of 'mor': no Lipschitz bound is known for"),
    "attack": ([*ATTACK, "--radii", "1", "--attack", "APGDD"], "--attack must be strongest, paper_pgd, paper_fgm or a"),
    "attack twice": ([*ATTACK, "--radii", "1", "--attack=PGD", "--attack=PGD"], "--attack must be different ones, got"),
    "no size": (ATTACK, "give either --radii or --budget: what an attack may do must have a size"),
    "two sizes": ([*ATTACK, "--radii", "1", "--budget", "fou=1"], "give either --radii or --budget: what an attack"),
    "modalities twice": ([*ATTACK, "--budget", "fou=1", "--modalities", "fou"], "--modalities are named by --budget"),
    "attacked modality": (
        [*ATTACK, "--radii", "1", "--modalities", "audio"],
        "--modalities must name modalities among",
    ),
    "setting of none": ([*ATTACK, "--radii=1", "--attack=paper_fgm", "--steps=3"], "--steps must be a setting of an"),
    "steps": ([*ATTACK, "--radii", "1", "--steps", "0"], "--steps must be at least 2, got 0"),
    "norm": ([*ATTACK, "--radii", "1", "--norm", "l1"], "--norm must be l2 or linf, got 'l1'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name, folder, monkeypatch, capsys):
    Path("used").mkdir()
    Path("used/file").touch()
    Path("text.ckpt").write_text("no checkpoint")
    sys.path.append(str(folder))
    torch.save({"weights": torch.zeros(2)}, "weights.ckpt")
    save_foreign()
    words, first = MISTAKES[name]
    monkeypatch.setattr(sys, "argv", ["lightning-crmt", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    shown = capsys.readouterr().err
    lines = shown[shown.index("error: ") :].rstrip("\n").split("\n")
    assert lines[0].startswith(f"error: {first}")
    assert len(lines) <= 5
    assert "Traceback" not in shown
    assert not Path("out").exists()


def test_help_fits_on_a_screen(capsys):
    for subcommand in ("certify", "attack"):
        with pytest.raises(SystemExit) as stop:
            main([subcommand, "--help"])
        assert stop.value.code == 0
        shown = capsys.readouterr().out
        assert shown.count("\n") <= 40
        assert max(map(len, shown.splitlines())) <= 120


def lines_of(path):
    return path.read_text().splitlines()[1:]


@pytest.mark.slow
def test_two_processes_measure_the_same(trained, folder):
    for subcommand, file in (("certify", "certificates.csv"), ("attack", "attacks.csv")):
        words = [] if subcommand == "certify" else ["--attack", "PGD", "--steps", "5"]
        words += ["--radii", "0.1", "0.3", "--samples", "77"]
        done(subcommand, *words, out=f"{subcommand}-1")
        shared = ["--config", "run.yaml", "--ckpt_path", "model.ckpt", "--out", f"{subcommand}-2"]
        shared += ["--trainer.devices=2", "--trainer.strategy=ddp"]
        subprocess.run(
            [sys.executable, "-m", "lightning_crmt", subcommand, *words, *shared],
            check=True, timeout=300, capture_output=True,
        )  # fmt: skip
        folders = [Path(f"{subcommand}-{processes}") for processes in (1, 2)]
        alone, both = ([list(map(float, row.split(","))) for row in lines_of(each / file)] for each in folders)
        assert len(alone) == len(both) == 77
        for here, there in zip(alone, both, strict=True):  # rounding depends on the split of the batch
            assert here == pytest.approx(there, rel=1e-3)
        assert "2 processes" in Path(f"{subcommand}-2", "protocol.txt").read_text()
