# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The command line, as a user types it and mistypes it."""

import copy
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml

from lightning_crmt import CRMTModule, export_program, methods
from lightning_crmt.cli import main
from lightning_crmt.training import Source

EXAMPLES = Path(__file__).parent.parent / "examples"
CONFIG = EXAMPLES / "mfeat.yaml"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-crmt"])


def edited(tmp_path, edit):
    config = yaml.safe_load(CONFIG.read_text())
    edit(config)
    path = tmp_path / "edited.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def attacks_of(config):
    (found,) = [c for c in config["trainer"]["callbacks"] if c["class_path"] == "AdversarialRobustness"]
    return found["init_args"]["attacks"]


def error_of(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        main([str(arg) for arg in args])
    assert stop.value.code == 2
    return capsys.readouterr().err


# --- step 2 on a checkpoint


def checkpoint(tmp_path, capsys):
    """A config without step 2, and a checkpoint of it."""

    def without(config):
        config["trainer"].update(max_epochs=1, enable_progress_bar=False, callbacks=[])

    config = str(edited(tmp_path, without))
    main(["fit", "--config", config])
    capsys.readouterr()
    (path,) = tmp_path.glob("lightning_logs/version_0/checkpoints/*.ckpt")
    return config, path


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_reweight_does_step_two_on_a_checkpoint(tmp_path, capsys):
    config, path = checkpoint(tmp_path, capsys)
    words = ["--config", config, "--ckpt_path", str(path)]
    main(["reweight", *words, "--out", "after/two.ckpt", "--trainer.callbacks", "[]"])
    shown = capsys.readouterr().out
    assert "over 1200 samples" in shown
    assert "written: after/two.ckpt" in shown
    before, after = (torch.load(each, weights_only=True)["state_dict"] for each in (path, "after/two.ckpt"))
    changed = {name for name, value in before.items() if not value.equal(after[name])}
    assert changed == {"head.raw_weights.fou", "head.raw_weights.mor"}
    main(["test", "--config", config, "--ckpt_path=after/two.ckpt"])
    assert "test/accuracy/joint" in capsys.readouterr().out

    # Whether it was done already is said, by whichever of both.
    assert "already" not in shown
    main(["reweight", "--config", config, "--ckpt_path", "after/two.ckpt", "--out", "three.ckpt"])
    assert "step 2 had been done on this checkpoint already, and went on" in capsys.readouterr().out
    in_fit = "--trainer.callbacks=[{class_path: IntegrationReweighting}]"
    main(["fit", "--config", config, in_fit, "--trainer.logger.init_args.save_dir=fit"])
    (done,) = (tmp_path / "fit").rglob("*.ckpt")
    main(["reweight", "--config", config, "--ckpt_path", str(done), "--out", "four.ckpt"])
    assert "already" in capsys.readouterr().out

    # The settings are those of the callback in the config.
    step_2 = "{class_path: IntegrationReweighting, init_args: {epochs: 1, lr: 1.0e-9}}"
    main(["reweight", *words, "--out", "still.ckpt", "--trainer.callbacks", f"[{step_2}]"])
    still = torch.load("still.ckpt", weights_only=True)["state_dict"]
    for name, value in before.items():
        torch.testing.assert_close(still[name], value, rtol=0, atol=1e-6)


def test_what_reweight_cannot_follow_is_said(tmp_path, capsys):
    config, path = checkpoint(tmp_path, capsys)
    assert "--ckpt_path must be a file, got no.ckpt" in error_of(
        capsys, "reweight", "--config", config, "--ckpt_path", "no.ckpt", "--out", "two.ckpt"
    )
    assert "--out must not exist yet" in error_of(
        capsys, "reweight", "--config", config, "--ckpt_path", path, "--out", path
    )
    words = ["--config", config, "--out", "two.ckpt"]
    (tmp_path / "broken.ckpt").write_text("hello")
    torch.save({"weights": 1}, tmp_path / "other.ckpt")
    for other in ("broken.ckpt", "other.ckpt"):
        error = error_of(capsys, "reweight", *words, "--ckpt_path", other)
        assert "--ckpt_path must be a checkpoint with a `state_dict`" in error
    seven = "--model.init_args.num_classes=7"
    assert "of this config: Error" in error_of(capsys, "reweight", *words, "--ckpt_path", path, seven)
    assert not (tmp_path / "two.ckpt").exists()
    assert "the following arguments are required: --out" in error_of(capsys, "reweight", "--ckpt_path", path)
    assert "trainer" in error_of(
        capsys, "reweight", "--config", config, "--ckpt_path", path, "--out", "two.ckpt", "--trainer.epochs=3"
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # a new version of the log, as it should be
def test_fit_then_test_from_the_checkpoint(tmp_path, capsys):
    def shorten(config):
        config["trainer"].update(max_epochs=3, enable_progress_bar=False)
        config["trainer"]["callbacks"][0]["init_args"]["epochs"] = 1

    config = ["--config", str(edited(tmp_path, shorten))]
    main(["fit", *config])
    (checkpoint,) = tmp_path.glob("lightning_logs/version_0/checkpoints/*.ckpt")
    capsys.readouterr()
    main(["test", *config, f"--ckpt_path={checkpoint}"])
    shown = capsys.readouterr().out
    keys = "accuracy/joint", "estimated_accuracy/mor@0.2", "accuracy_zeroed/mor", "robust_accuracy/pgd@0.2"
    for key in (f"test/{key}" for key in keys):
        assert key in shown


def test_from_a_checkpoint_to_a_program_as_the_page_says(tmp_path, capsys):
    config, path = checkpoint(tmp_path, capsys)
    Path(config).rename("run.yaml")
    path.rename("last.ckpt")
    page = (EXAMPLES.parent / "docs" / "export.md").read_text()
    (block,) = [each for each in re.findall(r"^```text\n(.*?)^```", page, re.DOTALL | re.MULTILINE) if "made" in each]
    names = {"torch": torch, "export_program": export_program}
    exec(block, names)
    inputs = {name: torch.cat([value, value]) for name, value in names["example"].items()}
    found = torch.export.load("model.pt2").module()(inputs).logits
    torch.testing.assert_close(found, names["made"].model.eval()(inputs).logits)
    weights = torch.load("last.ckpt", weights_only=True)["state_dict"]
    assert all(value.equal(weights[name]) for name, value in names["made"].model.state_dict().items())


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_predictions_are_saved_beside_the_logs(tmp_path, capsys):
    config, path = checkpoint(tmp_path, capsys)
    words = ["predict", "--config", config, "--ckpt_path", str(path)]
    main([*words, "--trainer.logger.init_args.save_dir=here"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "predictions" in line]
    (saved,) = (tmp_path / "here").rglob("predictions.pt")
    assert line == f"predictions: {saved.relative_to(tmp_path)}"
    probabilities = torch.cat(torch.load(saved, weights_only=True))
    assert probabilities.shape == (400, 10)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(400))
    main([*words, "--trainer.logger=false", "--trainer.default_root_dir=there"])
    assert torch.equal(torch.cat(torch.load("there/predictions.pt", weights_only=True)), probabilities)

    (tmp_path / "writer.py").write_text(
        "from lightning.pytorch.callbacks import BasePredictionWriter\n"
        "class Writer(BasePredictionWriter):\n"
        "    def write_on_epoch_end(self, *args):\n"
        "        print('written elsewhere')\n"
    )
    capsys.readouterr()
    elsewhere = "--trainer.logger.init_args.save_dir=elsewhere"
    main([*words, elsewhere, "--trainer.callbacks=[{class_path: writer.Writer, init_args: {write_interval: epoch}}]"])
    assert "written elsewhere" in capsys.readouterr().out
    for none in ("--return_predictions=false", "--trainer.fast_dev_run=1"):
        main([*words, elsewhere, none])
        assert "predictions:" not in capsys.readouterr().out
    assert not list((tmp_path / "elsewhere").rglob("predictions.pt"))


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_config_trains(path, tmp_path):
    main(["fit", "--config", str(path), "--trainer.fast_dev_run=1", "--trainer.enable_progress_bar=false"])


@pytest.mark.slow
def test_a_module_can_be_copied_while_it_is_trained(tmp_path, monkeypatch):
    """The factory of its optimizer leads to the parser, and so to the Trainer, whose loaders cannot be copied."""

    def few(config):
        config["trainer"].update(enable_progress_bar=False, callbacks=[{"class_path": "PrototypicalRebalancing"}])

    def copying(module, outputs, batch, batch_idx):
        copied = copy.deepcopy(module)
        assert copied.configure_optimizers().defaults["lr"] == 1e-3
        copies.append(copied)

    copies = []
    monkeypatch.setattr(CRMTModule, "on_train_batch_end", copying)
    main(["fit", "--config", str(edited(tmp_path, few)), "--trainer.fast_dev_run=2"])
    assert len(copies) == 2


def test_as_a_module_in_its_own_process(tmp_path):
    command = [sys.executable, "-m", "lightning_crmt", "fit", "--config", str(CONFIG), "--print_config"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, timeout=120).stdout
    printed = yaml.safe_load(shown)
    assert printed["model"]["class_path"] == "lightning_crmt.CRMTModule"
    assert printed["model"]["init_args"]["rho"] == 0.3
    assert printed["trainer"]["max_epochs"] == 40


def test_attacks_by_long_and_short_names(tmp_path, capsys):
    def attack(config):
        long = {"class_path": "lightning_crmt.attacks.Budget", "init_args": {"radius": {"fou": 0.1, "mor": 0.2}}}
        attacks_of(config).update(
            {
                "long": {"class_path": "lightning_crmt.attacks.PGD", "init_args": {"budget": long, "steps": 2}},
                "gone": {"class_path": "MissingModality", "init_args": {"fill": {"mor": 0.5}}},
                "several": {
                    "class_path": "Ensemble",
                    "init_args": {
                        "attacks": [
                            {"class_path": "FGM", "init_args": {"budget": {"radius": 1, "modalities": ["mor"]}}}
                        ]
                    },
                },
            }
        )

    config = edited(tmp_path, attack)
    main(["test", "--config", str(config), "--trainer.limit_test_batches=1", "--trainer.enable_progress_bar=false"])
    shown = capsys.readouterr().out
    for key in ("pgd@0.3 ", "long@fou=0.01+", "gone ", "several@0.2 "):  # the table breaks long names
        assert f"test/robust_accuracy/{key}" in shown


@pytest.mark.parametrize(
    ("where", "key"),
    [
        (lambda c: c["model"]["init_args"], "rhoo"),
        (lambda c: c["model"]["init_args"]["encoders"]["fou"]["init_args"], "widht"),
        (lambda c: c["data"]["init_args"], "vews"),
        (lambda c: c["trainer"], "max_epoch"),
        (lambda c: c["trainer"]["callbacks"][0]["init_args"], "last_epoch"),
        (lambda c: c["trainer"]["callbacks"][1]["init_args"], "radius"),
        (lambda c: attacks_of(c), "step"),
        (lambda c: attacks_of(c)["pgd"]["init_args"], "stps"),
        (lambda c: attacks_of(c)["pgd"]["init_args"]["budget"], "modality"),
        (lambda c: c, "modell"),
    ],
)
def test_a_misspelt_key_is_named(where, key, tmp_path, capsys):
    path = edited(tmp_path, lambda config: where(config).update({key: 1}))
    assert key in error_of(capsys, "fit", "--config", path)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda c: c["model"].update(class_path="CRMTModul"), ["CRMTModul"]),
        (lambda c: c["model"]["init_args"].update(rho="much"), ["rho", "much"]),
        (lambda c: c["model"]["init_args"].update(rho=-1.0), ["`rho` must be at least 0, got -1.0"]),
        (lambda c: c["data"]["init_args"].update(views=["fou", "morph"]), ["`views` must be different names among"]),
        (lambda c: c["trainer"]["callbacks"][0]["init_args"].update(objective="median"), ["objective", "median"]),
    ],
)
def test_a_bad_value_is_explained(edit, words, tmp_path, capsys):
    path = edited(tmp_path, edit)
    try:
        main(["fit", "--config", str(path)])
    except SystemExit:
        message = capsys.readouterr().err
    except ValueError as error:  # raised by the class itself, once everything is parsed
        message = str(error)
    assert all(word in message for word in words)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("CRMTModule", "weight of the margin regularisation"),
        ("UCIMultiFeatures", "names among"),
    ],
)
def test_help_documents_arguments(name, sentence, capsys):
    group = "model" if name == "CRMTModule" else "data"
    with pytest.raises(SystemExit) as stop:
        main(["fit", f"--{group}.help={name}"])
    assert stop.value.code == 0
    assert sentence in " ".join(capsys.readouterr().out.split())


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert "0.1.0" in capsys.readouterr().out


def test_methods_and_heads_are_listed_with_a_line_each(capsys):
    main(["methods"])
    shown = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    assert {"Mixup", "GradientModulation", "OrthogonalFusion", "GatedFusion"} <= shown.keys()
    assert not {"Method", "LateFusion", "FusionHead", "JointFusion"} & shown.keys()
    assert all(len(line.split(maxsplit=1)[1]) > 20 for line in shown.values())
    assert shown["Mixup"].split()[1] == "paper"
    assert " ".join(shown["ParetoGradients"].split()[1:3]) == "authors' code"
    kinds = {name: getattr(methods, name) for name in methods.__all__ if name not in ("Method", "blending_weights")}
    assert all(kind.source in get_args(Source) and kind.source in shown[name] for name, kind in kinds.items())


OVERLAYS = ("base", "six_views", "six_views_lipschitz")
METHODS = sorted(path.stem for path in (EXAMPLES / "methods").glob("*.yaml") if path.stem not in OVERLAYS)


def fit(*names, words=("--trainer.fast_dev_run=1",)):
    configs = [f"--config={EXAMPLES / 'methods' / name}.yaml" for name in names]
    main(["fit", *configs, "--trainer.enable_progress_bar=false", *words])


def train_teachers():
    """Leaves the checkpoint that umt.yaml names; a fast development run would save none."""
    fit("base", "umt_teachers", words=("--trainer.max_epochs=1", "--trainer.limit_train_batches=1"))


@pytest.mark.parametrize("name", ["base", *METHODS])
def test_every_method_trains(name, tmp_path):
    if name == "umt":
        train_teachers()
    fit("base", *([] if name == "base" else [name]))


#: Configs that hold a number for each of the two views.
OF_TWO_VIEWS = ("gblend_offline", "umt_teachers")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_with_six_views_or_says_why_not(name, tmp_path):
    if name == "umt":
        train_teachers()
    files = ["base", "six_views", name, *(["six_views_lipschitz"] if name == "lipschitz_at" else [])]
    if name in OF_TWO_VIEWS:
        with pytest.raises(ValueError, match="`weights` must hold exactly the modalities"):
            fit(*files)
    else:
        fit(*files)


def test_methods_compose_on_the_command_line(tmp_path, capsys):
    files = [EXAMPLES / "methods" / f"{name}.yaml" for name in ("base", "crmt_at", "crmt_mix")]
    with pytest.raises(SystemExit):
        main(["fit", *(f"--config={path}" for path in files), "--print_config"])
    callbacks = yaml.safe_load(capsys.readouterr().out)["trainer"]["callbacks"]
    kinds = [callback["class_path"].rpartition(".")[2] for callback in callbacks]
    assert kinds.index("AdversarialTraining") < kinds.index("Mixup")
