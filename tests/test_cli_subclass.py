# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""A command line of one's own, as docs/command_line.md shows it."""

import importlib
import importlib.machinery
import re
import sys
from pathlib import Path

import pytest

from lightning_crmt.cli import CRMTCLI, main

DOCS = Path(__file__).parent.parent / "docs" / "command_line.md"


@pytest.fixture(autouse=True)
def files_of_the_page(tmp_path, monkeypatch):
    """Each block of code that begins with the name of a file becomes that file."""
    blocks = re.findall(r"^```(?:python|yaml)\n# (\S+)\n(.*?)^```", DOCS.read_text(), re.DOTALL | re.MULTILINE)
    for name, content in blocks:
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["mine"])
    yield
    for name, _ in blocks:
        sys.modules.pop(name.removesuffix(".py"), None)


def class_of(name):
    """The command line in a file of the page."""
    sys.path.append(str(Path.cwd()))
    (found,) = [
        each
        for each in vars(importlib.import_module(name)).values()
        if isinstance(each, type) and issubclass(each, CRMTCLI) and each is not CRMTCLI
    ]
    return found


def test_classes_in_the_working_folder_are_found():
    main(["fit", "--config", "run.yaml", "--trainer.fast_dev_run=1", "--trainer.enable_progress_bar=false"])
    assert type(sys.modules["my_encoders"].Mine(3)).__module__ == "my_encoders"


def test_classes_beside_a_config_elsewhere_are_found(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    main(["fit", "--config=../run.yaml", "--trainer.fast_dev_run=1", "--trainer.enable_progress_bar=false"])


def test_a_file_here_does_not_take_the_place_of_what_is_installed(tmp_path):
    (tmp_path / "yaml.py").write_text("raise RuntimeError('imported')")
    main(["fit", "--config", "run.yaml", "--trainer.fast_dev_run=1", "--trainer.enable_progress_bar=false"])
    assert str(tmp_path) in sys.path
    assert not importlib.machinery.PathFinder.find_spec("yaml").origin.startswith(str(tmp_path))


def test_arguments_are_added_and_linked(capsys):
    mine = class_of("mine")
    assert mine(["--config", "run.yaml", "--repetition=3"], run=False).datamodule.seed == 3
    with pytest.raises(SystemExit) as stop:
        mine(["fit", "--config", "run.yaml", "--repetitoin=3"])
    assert stop.value.code == 2
    assert "did you mean `--repetition`?" in capsys.readouterr().err


def test_what_is_added_is_in_the_short_help_under_its_own_name(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--help"], cli=class_of("mine"))
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    assert "usage: mine fit" in shown
    assert re.search(r"--repetition VALUE +decides the order", shown)
    assert "lightning-crmt" not in shown


def test_a_command_line_of_ones_own_does_step_two_as_well(tmp_path, capsys):
    words = ["--config", "run.yaml", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
    main(["fit", *words, "--trainer.enable_checkpointing=true"], cli=class_of("mine"))
    (path,) = tmp_path.glob("**/*.ckpt")
    main(["reweight", *words, "--repetition=1", "--ckpt_path", str(path), "--out", "two.ckpt"], cli=class_of("mine"))
    assert "written: two.ckpt" in capsys.readouterr().out


def test_the_environment_is_read(monkeypatch, capsys):
    command_line = class_of("from_environment")
    monkeypatch.setenv("PL_TRAINER__MAX_STEPS", "7")
    monkeypatch.setenv("PL_TRAINER__MAX_EPOCHS", "9")
    made = command_line(["--config", "run.yaml"], run=False)
    assert (made.trainer.max_steps, made.trainer.max_epochs) == (7, 1)  # a config wins
    monkeypatch.setenv("PL_TRAINER__MAX_STEPS", "many")
    with pytest.raises(SystemExit):
        command_line(["--config", "run.yaml"], run=False)
    assert "`trainer.max_steps` must be an integer, got 'many'" in capsys.readouterr().err


def test_values_refer_to_others_by_omegaconf():
    pytest.importorskip("omegaconf")
    words = ["--config=run.yaml", "--config=refers.yaml"]
    assert class_of("with_omegaconf")(words, run=False).trainer.check_val_every_n_epoch == 3


def test_settings_of_lightning_cli_may_be_others(tmp_path):
    made = CRMTCLI(["--config", "run.yaml"], run=False, trainer_defaults={"max_steps": 5}, seed_everything_default=3)
    assert made.trainer.max_steps == 5
    assert made.config.seed_everything == 3
