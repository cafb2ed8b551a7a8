# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""``lightning-crmt report`` on comparisons, on plain logs, and on folders that hold neither."""

import csv
import shutil

import pytest

from lightning_crmt.cli import main
from lightning_crmt.report import Run, find_runs, save_run

KEY = "test/accuracy/joint"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning-crmt"])


def runs(*methods):
    return [
        Run(method, "mfeat", seed, {KEY: 0.5 + place / 10 + seed * (place + 1) / 100})
        for place, method in enumerate(methods)
        for seed in range(3)
    ]


def test_a_comparison_becomes_a_page_and_a_table(tmp_path, capsys):
    for run in runs("joint", "crmt"):
        save_run(run, tmp_path / "done" / "cells" / f"{run.method}{run.seed}")
    main(["report", "done", "--baseline", "joint", "--out", "there", "--title", "Which & why"])
    shown = capsys.readouterr().out
    assert "joint" in shown
    assert "page: there/report.html" in shown
    page = (tmp_path / "there" / "report.html").read_text(encoding="utf-8")
    assert "<h1>Which &amp; why</h1>" in page
    assert "lightning-crmt report done --baseline joint --out there" in page
    assert {file.name for file in (tmp_path / "there").iterdir()} == {
        "report.html", "runs.csv", "runs.json", "summary.md", "summary.tex",
    }  # fmt: skip


def test_the_baseline_of_the_comparison_is_kept(tmp_path, capsys):
    for run in runs("crmt", "joint"):
        save_run(run, tmp_path / "done" / "cells" / f"{run.method}{run.seed}")
    (tmp_path / "done" / "baseline.txt").write_text("joint")
    main(["report", "done"])
    assert "differences to joint" in (tmp_path / "done" / "summary.md").read_text()
    main(["report", "done", "--baseline", "crmt"])
    assert "differences to crmt" in (tmp_path / "done" / "summary.md").read_text()


def write_log(folder, rows, config=None):
    folder.mkdir(parents=True)
    with (folder / "metrics.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, sorted({name for row in rows for name in row}))
        writer.writeheader()
        writer.writerows(rows)
    if config is not None:
        (folder / "config.yaml").write_text(config, encoding="utf-8")


def test_a_log_is_a_run(tmp_path):
    rows = [
        {"epoch": 0, "step": 3, "val/accuracy/joint": 0.4, "train/loss": 2.0},
        {"epoch": 1, "step": 6, "val/accuracy/joint": 0.6},
        {"epoch": 2, "step": 9, KEY: 0.7, "test_acc": 0.1, "lr-AdamW": 0.01},
    ]
    write_log(tmp_path / "logs" / "version_10", rows, "seed_everything: 7\ndata: {class_path: a.b.Own}\n")
    write_log(tmp_path / "logs" / "version_9", rows[:2], "model: !!python/object:a.b {}\n")
    validated, tested = find_runs("logs")
    assert (tested.method, tested.data, tested.seed) == ("version_10", "Own", 7)
    assert tested.numbers == {KEY: 0.7, "test_acc": 0.1}
    assert tested.history == {"val/accuracy/joint": [(0, 0.4), (1, 0.6)], "train/loss": [(0, 2.0)]}
    assert (validated.method, validated.data, validated.seed) == ("version_9", "data", 0)
    assert validated.numbers == {"val/accuracy/joint": 0.6}
    assert find_runs("logs/version_10")[0].method == "version_10"
    assert all(not run.error for run in (validated, tested))


def test_a_test_goes_with_the_fit_whose_checkpoint_it_is_of(tmp_path):
    fitted, tested = {"epoch": 0, "step": 3, "val/accuracy/joint": 0.4}, {"epoch": 1, "step": 3, KEY: 0.7}
    of_fit = "seed_everything: 3\nckpt_path: logs/fit/checkpoints/last.ckpt\n"
    write_log(tmp_path / "logs" / "fit", [fitted], "seed_everything: 3\n")
    write_log(tmp_path / "logs" / "test", [tested], of_fit)
    write_log(tmp_path / "logs" / "resumed", [fitted], of_fit)
    run, resumed = find_runs("logs")
    assert (run.method, run.seed, run.numbers) == ("fit", 3, {KEY: 0.7})
    assert run.history == {"val/accuracy/joint": [(0, 0.4)]}
    assert resumed.method == "resumed"
    write_log(tmp_path / "logs" / "again", [tested], of_fit)
    assert {run.method for run in find_runs("logs")} == {"fit", "test", "again", "resumed"}


def test_a_log_without_numbers_is_a_run_that_failed(tmp_path):
    write_log(tmp_path / "a", [{"epoch": 0, "step": 1, "train/loss": 1.0}])
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "metrics.csv").touch()
    assert ["no number of the test" in run.error for run in find_runs(".")] == [True, True]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:AdversarialRobustness, attack")
@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # Lightning's, of each test with a checkpoint
@pytest.mark.filterwarnings("ignore:.*hardly ever right")  # after two epochs
def test_a_fit_and_a_test_of_the_command_line_become_pages(tmp_path, capsys):
    root = __file__.rpartition("tests")[0]
    shutil.copy(f"{root}examples/mfeat.yaml", "run.yaml")
    words = [
        "--config", "run.yaml", "--trainer.max_epochs=2", "--trainer.enable_progress_bar=false",
        "--trainer.accelerator=cpu", "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs",
    ]  # fmt: skip
    main(["fit", *words])
    (path,) = (tmp_path / "logs").rglob("*.ckpt")
    main(["test", *words, "--ckpt_path", str(path)])
    main(["report", "logs"])
    assert "page: logs/report.html" in capsys.readouterr().out
    (run,) = find_runs("logs")
    assert (run.method, run.data) == ("lightning_logs/version_0", "UCIMultiFeatures")
    assert KEY in run.numbers
    assert all(key.startswith("test/") for key in run.numbers)
    assert len(run.history["val/accuracy/joint"]) == 2
    assert "CRMTModule" in run.config


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "a folder must be given, with runs"),
        (["nowhere"], "FOLDER must be a folder, got nowhere"),
        ([".", "--basline", "joint"], "--basline"),
        (["."], "must hold runs of a comparison or logs of CSVLogger"),
        (["done", "--baseline", "jiont"], "`baseline` must be one of the methods joint, got 'jiont'; did you mean"),
        (["broken"], "run.json must hold a run"),
        (["no_log"], "metrics.csv must be a log of CSVLogger"),
    ],
)
def test_mistakes_are_told(words, told, tmp_path, capsys, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    if words[:1] == ["done"]:
        save_run(runs("joint")[0], tmp_path / "done")
    for name, file, text in (("broken", "run.json", "{"), ("no_log", "metrics.csv", "epoch,val/loss\n0,high\n")):
        if words[:1] == [name]:
            (tmp_path / name).mkdir()
            (tmp_path / name / file).write_text(text, encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["lightning-crmt", "report", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert told in error
    assert len(error.strip().splitlines()) <= 5
