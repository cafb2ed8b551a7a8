# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What loggers get of a report is what stands in its files; step 2 has its curve; the sweep's words are understood."""

import csv
import importlib
import json
import math
import re
import struct
import sys
import time
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger

from lightning_crmt.callbacks import CertifiedRobustness, IntegrationReweighting, RobustnessFigures
from lightning_crmt.cli import CRMTCLI, main
from lightning_crmt.cli.comparison.cells import resolved
from lightning_crmt.cli.comparison.curves import Curves
from lightning_crmt.report import Run, find_runs, log_report, save_run, write_report

ROOT = Path(__file__).parent.parent
AT = "test/certified_accuracy/joint@{}"


def runs():
    """Three seeds of two methods, with what is hard to write: odd names, a failure, numbers that are none."""
    made = [
        Run(
            method,
            "digits, $a$ | b/c",
            seed,
            {AT.format(radius): 0.9 - place / 7 - radius - seed / 97 for radius in (0.1, 0.2)}
            | {"test/loss": math.inf if seed else 1 / 3},
            history={f"val/margin/{name}": [(0, 0.1), (1, 0.3 + place)] for name in ("joint", "fou")},
            seconds=1.5 + seed,
            samples=400,
            config_hash=f"12e{place}{seed}",
            versions={"torch": "2", "lightning": "2"},
        )
        for place, method in enumerate(["joint", "crmt | x"])
        for seed in range(3)
    ]
    return [*made, Run("crmt | x", "digits, $a$ | b/c", 3, error="out of memory")]


def written(tmp_path):
    folder = tmp_path / "done"
    for place, run in enumerate(runs()):
        save_run(run, folder / str(place))
    write_report(find_runs(folder), folder, baseline="joint")
    return folder


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def same(cell, text):
    """Whether a logged cell is what the CSV says, to the last digit."""
    if cell is None or text == "":
        return cell in (None, "") and text == ""
    try:
        number = float(text)
    except ValueError:
        return cell == text
    return cell == text or float(cell) == number or (math.isnan(number) and math.isnan(float(cell)))


@pytest.fixture
def wandb(monkeypatch, tmp_path):
    found = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DISABLE_CODE", "true")
    monkeypatch.chdir(tmp_path)
    yield found
    found.teardown()


def records(data, block=2**15):
    """What a file holds that is written as the logs of LevelDB are, behind a head of 7 bytes."""
    at, parts = 7, []
    while at + 7 <= len(data):
        if block - at % block < 7:  # too small for a head: filled up
            at += block - at % block
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])  # behind a checksum
        if at + 7 + length > len(data):  # not written to its end
            return
        parts.append(data[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield b"".join(parts)
            parts = []


def ended(file, kind, seconds=60):
    """The records of a run once its last one is there: another process writes them."""
    deadline = time.monotonic() + seconds
    while True:
        found = list(map(kind.FromString, records(file.read_bytes())))
        if found and found[-1].HasField("exit"):
            return found
        assert time.monotonic() < deadline, f"no end of {file}"
        time.sleep(0.1)


def offline(folder):
    """What an offline run holds: its logged media by name, and the artifacts that would be uploaded."""
    pb = importlib.import_module("wandb.proto.wandb_internal_pb2")
    (file,) = folder.rglob("*.wandb")
    logged, artifacts = {}, []
    for record in ended(file, pb.Record):
        for item in record.history.item:
            value = json.loads(item.value_json)
            name, *part = item.nested_key or [item.key]
            if part:  # newer versions write the parts of an image or a table one by one
                logged.setdefault(name, {})[part[0]] = value
            else:
                logged[name] = value
        artifacts += [record.artifact] * record.HasField("artifact")
    return logged, artifacts, file.parent / "files"


def test_an_offline_run_of_weights_and_biases_holds_what_the_files_hold(wandb, tmp_path, monkeypatch, capsys):
    folder = written(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-crmt"])
    main(["report", "done", "--baseline", "joint", "--wandb", "robust"])
    assert "Weights & Biases: " in capsys.readouterr().out
    logged, artifacts, files = offline(tmp_path / "wandb")
    found = json.loads((files / logged["report/runs"]["path"]).read_text())
    head, *rows = rows_of(folder / "runs.csv")
    assert found["columns"] == head
    assert len(found["data"]) == len(rows) == 7
    for cells, texts in zip(found["data"], rows, strict=True):
        assert all(map(same, cells, texts)), (cells, texts)
    tables = [name for name, each in logged.items() if isinstance(each, dict) and each["_type"] == "table-file"]
    means = next(json.loads((files / logged[name]["path"]).read_text()) for name in tables if "glance" in name)
    summary = (folder / "summary.md").read_text()
    assert all(cell.split(" *")[0].split(" =")[0] in summary for row in means["data"] for cell in row[1:])
    images = {name: each for name, each in logged.items() if name.startswith("report/digits") and name not in tables}
    assert {name.rpartition("/")[2] for name in images} >= {"bounds_joint", "differences", "over_epochs"}
    assert all((files / path).stat().st_size > 5000 for each in images.values() for path in each["filenames"])
    assert "guaranteed" in images["report/digits_a_b_c/bounds_joint"]["captions"][0]
    (artifact,) = [each for each in artifacts if each.type == "report"]
    assert artifact.name == "report-done"
    names = {entry.path for entry in artifact.manifest.contents}
    assert names == {"report.html", "runs.csv", "runs.json", "summary.md", "summary.tex"}


def test_a_fit_with_weights_and_biases_logs_its_figures(wandb, data, make_model, make_trainer, tmp_path):
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    observers = [CertifiedRobustness([0.1, 0.2], constants="estimated"), RobustnessFigures()]
    make_trainer(*observers, logger=logger, max_epochs=1).fit(make_model(), data)
    wandb.finish()
    logged, _, files = offline(tmp_path)
    (path,) = logged["val/estimated_curve"]["filenames"]
    assert (files / path).stat().st_size > 5000


class Events:
    """Stands in for the writer of TensorBoard."""

    def __init__(self):
        self.figures, self.texts = {}, {}

    def add_figure(self, name, figure, step):
        self.figures[name] = figure, step

    def add_text(self, name, text, step):
        self.texts[name] = text


def check_events(figures, texts, folder, log_dir):
    assert {name.rpartition("/")[2] for name in figures} >= {"bounds_joint", "differences", "over_epochs"}
    lines = texts["report/runs"].splitlines()
    head, *rows = rows_of(folder / "runs.csv")
    assert len(lines) == 2 + len(rows)
    assert all(line.replace("\\|", "").count("|") == len(head) + 1 for line in lines)
    for line, row in zip(lines[2:], rows, strict=True):
        cells = [cell.strip() for cell in line.replace("\\|", "!").strip("|").split("|")]
        assert cells[-len(row) + 12 :] == row[12:], "numbers have all their digits"
    assert (log_dir / "report.html").read_bytes() == (folder / "report.html").read_bytes()


def test_tensorboard_gets_images_and_tables_as_text(tmp_path, monkeypatch):
    folder, events = written(tmp_path), Events()
    monkeypatch.setattr("lightning.pytorch.loggers.tensorboard.TensorBoardLogger.experiment", events)
    monkeypatch.setattr(TensorBoardLogger, "__init__", lambda self: None)
    monkeypatch.setattr(TensorBoardLogger, "log_dir", str(tmp_path / "log"))
    log_report(find_runs(folder), folder, [TensorBoardLogger()], baseline="joint")
    check_events(events.figures, events.texts, folder, tmp_path / "log")
    assert not (folder / "figures").exists()


def test_files_of_events_hold_them(tmp_path):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder, logger = written(tmp_path), TensorBoardLogger(tmp_path, name="log", version="")
    log_report(find_runs(folder), folder, [logger], baseline="joint")
    logger.experiment.flush()
    events = reading.EventAccumulator(logger.log_dir, size_guidance={"tensors": 0, "images": 0}).Reload()
    texts = {
        tag.removesuffix("/text_summary"): events.Tensors(tag)[0].tensor_proto.string_val[0].decode()
        for tag in events.Tags()["tensors"]
    }
    check_events(events.Tags()["images"], texts, folder, Path(logger.log_dir))


def test_files_where_no_logger_takes_figures(tmp_path):
    folder = written(tmp_path)
    log_report(find_runs(folder), folder, [CSVLogger(tmp_path)], baseline="joint")
    assert (folder / "tables" / "report_runs.csv").read_bytes() == (folder / "runs.csv").read_bytes()
    _, *keys = rows_of(folder / "tables" / "report_keys.csv")
    assert {row[0] for row in keys} == set(rows_of(folder / "runs.csv")[0][12:])
    drawn = folder / "figures" / "report_digits_a_b_c_bounds_joint.png"
    assert b"guaranteed" in drawn.read_bytes(), "the picture says what it shows"


def test_the_code_of_the_documentation_runs(wandb, tmp_path):
    pytest.importorskip("tensorboard")
    text = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    names = {}
    for code in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        exec(compile(code, "docs/report.md", "exec"), names)
    wandb.finish()
    logged, artifacts, _ = offline(tmp_path / "wandb")
    assert logged["report/runs"]["nrows"] == 6
    assert "report-two" in [each.name for each in artifacts]
    assert list((tmp_path / "results" / "report").rglob("report.html"))


def test_a_folder_without_a_report_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`folder` must hold a report, report\.html, as `write_report`"):
        log_report(runs(), tmp_path, [])


def test_wandb_that_is_not_installed_is_told_before_the_work(tmp_path, monkeypatch):
    folder = written(tmp_path)
    (folder / "report.html").unlink()
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr(sys, "argv", ["lightning-crmt"])
    with pytest.raises(ModuleNotFoundError, match=r"--wandb needs wandb .*lightning_crmt\[wandb\]"):
        main(["report", str(folder), "--wandb", "robust"])
    assert not (folder / "report.html").exists()


def test_what_weights_and_biases_refuses_is_told_in_a_line(wandb, tmp_path, monkeypatch, capsys):
    folder = written(tmp_path)

    def refuse(*args, **settings):
        raise wandb.errors.UsageError("No API key configured")

    monkeypatch.setattr(wandb, "init", refuse)
    monkeypatch.setattr(sys, "argv", ["lightning-crmt"])
    with pytest.raises(SystemExit) as stop:
        main(["report", "done", "--wandb", "robust"])
    assert stop.value.code == 2
    assert "report.html is written, Weights & Biases did not take it: No API key" in capsys.readouterr().err
    assert (folder / "report.html").is_file()


@pytest.mark.parametrize("max_epochs", [1, 3])
def test_step_2_has_a_curve_of_its_own(max_epochs, data, make_model, make_trainer, tmp_path):
    """Whatever the last epoch of step 1 is, which Lightning logs the last values with."""
    curves, step_2 = Curves(str(tmp_path)), IntegrationReweighting(epochs=5)
    loggers = [curves, CSVLogger(tmp_path, name="", version="")]
    trainer = make_trainer(step_2, CertifiedRobustness([0.1], constants="estimated"), logger=loggers,
                           max_epochs=max_epochs)  # fmt: skip
    trainer.fit(make_model(), data)
    (run,) = find_runs(tmp_path)
    for history in (curves.history, run.history):
        epochs, objective = zip(*history["train/integration_objective"], strict=True)
        assert epochs == (1, 2, 3, 4, 5)
        assert objective == pytest.approx(step_2.reweighted.objective)
        for name in ("fou", "mor"):
            weights = [each[name] for each in step_2.reweighted.weights]
            points = history[f"train/integration_weight/{name}"]
            assert points == [(epoch, pytest.approx(each)) for epoch, each in enumerate(weights, 1)]
        assert [epoch for epoch, _ in history["val/margin/joint"]] == list(range(max_epochs))
    assert curves.history.keys() == run.history.keys()


def test_what_others_log_without_an_epoch_is_no_curve():
    curves = Curves(".")
    for step in range(3):
        curves.log_metrics({"lr-AdamW": 0.1}, step)
    curves.log_metrics({"epoch": 0, "val/loss": 1.0})
    curves.log_metrics({"val/loss": 9.0})
    assert curves.history == {"val/loss": [(0, 1.0)]}


def sweep_words(choose):
    """The sweep, and the words of ``fit`` that its agent would start it with."""
    sweep = yaml.safe_load((ROOT / "examples" / "sweeps" / "mfeat.yaml").read_text(encoding="utf-8"))
    environment, program, command, *words, arguments = sweep["command"]
    assert (environment, program, command, arguments) == ("${env}", "lightning-crmt", "fit", "${args}")
    chosen = {name: choose(each) for name, each in sweep["parameters"].items()}
    return sweep, [*words, *(f"--{name}={value}" for name, value in chosen.items())], chosen


@pytest.mark.parametrize("choose", [lambda each: each["values"][0] if "values" in each else each["min"],
                                    lambda each: each["values"][-1] if "values" in each else each["max"]])  # fmt: skip
def test_the_words_of_the_sweep_are_understood(choose, monkeypatch):
    monkeypatch.chdir(ROOT)
    _, words, chosen = sweep_words(choose)
    config = resolved(words, CRMTCLI)
    for name, value in chosen.items():
        place = config
        for step in name.split("."):
            place = place[step]
        assert place == value
    logger = config["trainer"]["logger"]
    assert logger["class_path"].endswith(".WandbLogger")
    assert logger["init_args"]["save_dir"] == "results/sweep"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:AdversarialRobustness, attack")
def test_the_sweep_logs_its_metric(wandb, tmp_path, monkeypatch):
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "mfeat.yaml").write_bytes((ROOT / "examples" / "mfeat.yaml").read_bytes())
    monkeypatch.setattr(sys, "argv", ["lightning-crmt"])
    sweep, words, _ = sweep_words(lambda each: each["values"][-1] if "values" in each else each["min"])
    main(["fit", *words, "--trainer.max_epochs=1", "--trainer.accelerator=cpu"])
    wandb.finish()
    logged, *_ = offline(tmp_path / "results" / "sweep")
    assert 0 < logged[sweep["metric"]["name"]] < math.inf
