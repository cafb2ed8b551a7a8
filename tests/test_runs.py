# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
import pytest

from lightning_crmt.report import Run, load_runs, save_run


def test_runs_come_back_as_they_were_saved(tmp_path):
    runs = [
        Run(
            "joint",
            "mfeat",
            1,
            {"test/accuracy/joint": 0.5},
            {"val/loss": [(0, 1.5), (1, 0.25)]},
            seconds=1.5,
            counts={"test/accuracy/joint": 5},
            samples=9,
        ),
        Run("crmt", "mfeat", 0, error="RuntimeError: no", versions={"torch": "2.13.0"}, threats={"pgd": "joint"}),
    ]
    for run in runs:
        save_run(run, tmp_path / run.method)
    assert load_runs(tmp_path) == runs[::-1]


def test_a_folder_without_runs_and_a_broken_file_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="must hold runs"):
        load_runs(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json must hold a run"):
        load_runs(tmp_path)
