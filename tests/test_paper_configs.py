# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The configs of the paper's experiments: they agree with each other, and each trains and tests on small clips."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("PIL")

from lightning.pytorch import Callback
from support import clips, prepared

from lightning_crmt.callbacks import AdversarialRobustness, IntegrationReweighting
from lightning_crmt.cli import command_line, main
from lightning_crmt.methods import AdversarialTraining, Mixup

PAPER = Path(__file__).parent.parent / "examples" / "paper"
CONFIGS = sorted(path.stem for path in PAPER.glob("*.yaml"))
DATA = {"kinetics_sounds": prepared.kinetics_sounds, "ucf101": prepared.ucf101, "vggsound": prepared.vggsound}
METHODS = {"jt": set(), "crmt_jt": set(), "crmt_at": {AdversarialTraining}, "crmt_mix": {Mixup}}
CLASSES = {"kinetics_sounds": 31, "ucf101": 101, "vggsound": 309}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-crmt"])


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """A prepared folder for each data set."""
    folders = {name: tmp_path_factory.mktemp(name) for name in DATA}
    for name, make in DATA.items():
        make(folders[name])
    return folders


def data_of(name):
    return next(each for each in DATA if name.startswith(each))


def small(name, root):
    """Words that make a config small: narrow encoders, little pictures, two classes."""
    encoders = yaml.safe_load((PAPER / f"{name}.yaml").read_text())["model"]["init_args"]["encoders"]
    for encoder in encoders.values():
        encoder["init_args"]["width"] = 4
    words = [
        f"--model.init_args.encoders={json.dumps(encoders)}",
        "--model.init_args.num_classes=2",
        f"--data.init_args.root={root}",
        "--data.init_args.size=32",
        "--data.init_args.batch_size=4",
        "--data.init_args.num_workers=0",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        "--trainer.log_every_n_steps=1",
    ]
    if name.startswith("kinetics_sounds"):
        words.append(f"--data.init_args.classes={json.dumps(prepared.CLASSES)}")
    return words


def test_all_experiments_are_there():
    assert set(CONFIGS) == {f"{data}_{method}" for data in DATA for method in METHODS} | {"vggsound_transformer"}


def test_every_part_is_used():
    text = "".join((PAPER / f"{name}.yaml").read_text() for name in CONFIGS)
    assert [path.name for path in (PAPER / "parts").glob("*.yaml") if f"parts/{path.name}" not in text] == []


@pytest.mark.parametrize("name", CONFIGS)
def test_settings_are_those_of_the_paper(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", f"--config={PAPER / name}.yaml", "--print_config"])
    assert stop.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    data, method = data_of(name), name.removeprefix(data_of(name))[1:]
    model, trainer = config["model"]["init_args"], config["trainer"]
    kinds = [each["class_path"].rpartition(".")[2] for each in trainer["callbacks"]]
    crmt = method.startswith("crmt")
    assert model["num_classes"] == CLASSES[data]
    assert model["rho"] == (0.0 if method == "jt" else 2.0)
    assert model["head"]["class_path"].rpartition(".")[2] == {
        "jt": "LinearFusion",
        "transformer": "AttentionFusion",
    }.get(method, "OrthogonalFusion")
    if crmt:
        assert model["head"]["init_args"]["initial_weight"] == 0.1
        step_two = trainer["callbacks"][kinds.index("IntegrationReweighting")]["init_args"]
        assert (step_two["lr"], step_two["epochs"], step_two["objective"]) == (3e-5, 47, "mean")
    optimizer = model["optimizer"]["init_args"]
    assert model["optimizer"]["class_path"] == "torch.optim.SGD"
    assert (optimizer["lr"], optimizer["momentum"], optimizer["weight_decay"]) == (1e-3, 0.9, 1e-4)
    assert model["lr_scheduler"]["init_args"]["milestones"] == [60, 120]
    assert model["lr_scheduler"]["init_args"]["gamma"] == 0.1
    assert trainer["max_epochs"] == 140
    assert config["data"]["init_args"]["batch_size"] == 64
    assert config["data"]["init_args"]["size"] == 224
    channels = {modality: each["init_args"]["in_channels"] for modality, each in model["encoders"].items()}
    assert channels == ({"image": 3, "flow": 20} if data == "ucf101" else {"image": 3, "audio": 1})
    assert {"ModelCheckpoint", "MissingModalities", "AdversarialRobustness"} <= set(kinds)
    assert ("IntegrationReweighting" in kinds) == crmt


class Losses(Callback):
    """Keeps which loss each training epoch logged, and that it was finite."""

    def __init__(self):
        self.names = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        assert torch.isfinite(outputs["loss"])
        self.names.append(pl_module.stage_objective.name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:AdversarialRobustness, attack")  # weak attacks, a model that has learnt nothing
@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_trains_both_steps_and_tests(name, roots):
    cli = command_line([f"--config={PAPER / name}.yaml", *small(name, roots[data_of(name)])], run=False)
    trainer, losses = cli.trainer, Losses()
    found = {type(callback) for callback in trainer.callbacks} & {AdversarialTraining, Mixup}
    assert found == METHODS.get(name.removeprefix(data_of(name))[1:], set())
    trainer.callbacks.append(losses)
    trainer.fit_loop.max_epochs = 2
    trainer.limit_train_batches = trainer.limit_val_batches = trainer.limit_test_batches = 1
    steps = [callback for callback in trainer.callbacks if isinstance(callback, IntegrationReweighting)]
    (attacked,) = (callback for callback in trainer.callbacks if isinstance(callback, AdversarialRobustness))
    trainer.callbacks.remove(attacked)  # costs more than all else; it comes back for the test
    trainer.fit(cli.model, datamodule=cli.datamodule)
    assert losses.names == ["loss", "loss"]
    assert all(len(step.reweighted.objective) == 47 for step in steps)
    best = Path(trainer.checkpoint_callback.best_model_path)
    assert best.is_file()
    assert torch.load(best.parent / "last.ckpt", weights_only=True)["epoch"] == 1
    other = "flow" if name.startswith("ucf101") else "audio"
    names = [f"{attack}{which}" for attack in ("fgm", "pgd") for which in ("", "-image", f"-{other}")]
    assert list(attacked.attacks) == names
    if not name.endswith("s_jt"):  # all six once
        attacked.attacks = {"pgd": attacked.attacks["pgd"]}
    attacked.radii = [1.0]
    trainer.callbacks.append(attacked)
    (results,) = trainer.test(cli.model, datamodule=cli.datamodule, ckpt_path="last", verbose=False)
    for attack in attacked.attacks:
        assert 0 <= results[f"test/robust_accuracy/{attack}@1"] <= 1
    assert f"test/accuracy_zeroed/{other}" in results


def test_folders_and_lists_by_part_from_the_command_line_and_from_yaml(tmp_path):
    frames, parts = {"train": "a", "test": "b"}, {"train": "train.txt", "test": "test.csv"}
    config = ["--config", str(PAPER / "kinetics_sounds_jt.yaml")]
    words = [f"--data.init_args.{name}={json.dumps(value)}" for name, value in (("frames", frames), ("parts", parts))]
    own = tmp_path / "own.yaml"
    given = {"root": "x", "frames": frames, "parts": parts}
    own.write_text(yaml.safe_dump({"data": {"class_path": "KineticsSounds", "init_args": given}}))
    for way in (words, ["--config", str(own)]):
        data = command_line([*config, *way], run=False).datamodule
        assert data.folders == {"image": frames, "audio": "spectrograms"}
        assert data.sources == parts


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # a new version of the log, as it should be
@pytest.mark.skipif(not clips.have_ffmpeg(), reason="neither ffmpeg nor imageio-ffmpeg is there")
@pytest.mark.parametrize(("data", "kinds"), [("kinetics_sounds", "spectrograms"), ("ucf101", "flow")])
def test_from_videos_to_numbers(data, kinds, tmp_path, capsys):
    """What a user does: prepare, fit, test."""
    if kinds == "flow":
        pytest.importorskip("cv2")
    root, listed = tmp_path / "prepared", {"train": [], "test": []}
    for label, name in enumerate(["singing", "playing_guitar"], 1):
        for group, part in ((1, "test"), (2, "train"), (3, "train")):
            seen = clips.moving(label, 0, 1, seed=group)
            path = f"{name}/v_{name}_g{group:02d}_c01.avi" if data == "ucf101" else f"{part}/{name}/{group}.avi"
            listed[part].append(f"{path} {label}" if part == "train" else path)
            clips.encode(tmp_path / "videos" / path, seen, clips.tone(1000 * label, 1), ["-c:a", "pcm_s16le"])
    if data == "ucf101":
        (root / "ucfTrainTestlist").mkdir(parents=True)
        (root / "ucfTrainTestlist" / "classInd.txt").write_text("1 singing\n2 playing_guitar\n")
        for part, lines in listed.items():
            (root / "ucfTrainTestlist" / f"{part}list01.txt").write_text("\n".join(lines))
    with pytest.raises(SystemExit) as stop:
        main(["prepare", str(tmp_path / "videos"), str(root), "--size=48", "--kinds", "frames", kinds])
    assert stop.value.code == 0
    words = [f"--config={PAPER / data}_jt.yaml", *small(f"{data}_jt", root)]
    words.append(f"--trainer.callbacks={json.dumps([str(PAPER / 'parts' / 'best.yaml')])}")
    main(["fit", *words, "--trainer.max_epochs=2"])
    capsys.readouterr()
    main(["test", *words, *(f"--ckpt_path={path}" for path in tmp_path.glob("lightning_logs/*/checkpoints/best.ckpt"))])
    shown = capsys.readouterr().out
    for modality in ("joint", "image", "flow" if data == "ucf101" else "audio"):
        assert f"test/accuracy/{modality}" in shown
