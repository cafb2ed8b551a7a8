# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The tables of guarantees beside what adversarial training survives."""

import importlib.util
import sys
from pathlib import Path

import pytest

from lightning_crmt.cli import read_comparison
from lightning_crmt.report import Run, save_run

FOLDER = Path(__file__).parent.parent / "benchmarks"
RADII = (0.1, 0.2)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("beside", FOLDER / "certified_beside_attacked.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(method, seed, attacked, certified=(), chosen_by=()):
    history = {
        f"val/robust_accuracy/nearest@{radius}": [(9, 0.0), (19, value)]
        for radius, value in zip(RADII, chosen_by, strict=False)
    }
    numbers = {"test/accuracy/joint": 0.9}
    numbers |= {f"test/robust_accuracy/nearest@{radius}": value for radius, value in zip(RADII, attacked, strict=False)}
    numbers |= {
        f"test/certified_accuracy/joint@{radius}": value for radius, value in zip(RADII, certified, strict=False)
    }
    return Run(method, "six_views", seed, numbers, history=history)


RUNS = [
    run("at_1", 0, (0.8, 0.9), (), (0.6, 0.3)),  # the better one at 0.2 as well, as the test part would have it
    run("at_1", 1, (0.8, 0.9), (), (0.6, 0.3)),
    run("at_4", 0, (0.7, 0.6), (), (0.5, 0.4)),
    run("at_4", 1, (0.7, 0.7), (), (0.5, 0.4)),
    run("at_4", 2, (0.7, 0.1), (), (0.9, 0.0)),  # a seed that the other has not
    run("jt", 0, (0.4, 0.3)),
    run("radius_hinge", 0, (), (0.85, 0.75)),
    run("radius_hinge", 1, (), (0.75, 0.71)),
    Run("radius_hinge", "six_views", 2, error="killed"),
]


def test_a_guarantee_is_paired_by_seed_with_the_best_that_was_attacked(script):
    table = script.differences(script.rows_of(RUNS))
    header, _, row = table.splitlines()
    assert header == "| certified less attacked at | 0.1 (at_1) | 0.2 (at_4) |"
    assert row == "| radius_hinge | 0.0 ± 7.1 (1/2) | 8.0 ± 9.9 (2/2) |"


def test_the_baseline_is_first_and_what_was_not_measured_is_a_dash(script):
    lines = script.numbers_table(script.rows_of(RUNS)).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| jt", "| at_1", "| at_4", "| radius_hinge"]
    assert "| 80.0 ± 7.1 | 73.0 ± 2.8 |" in lines[-1]
    assert lines[-1].endswith("| - | 2 |")


def test_tables_and_figure_come_from_the_folder_of_a_comparison(script, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    for number, each in enumerate(RUNS):
        save_run(each, tmp_path / "cells" / str(number))
    monkeypatch.setattr(sys, "argv", ["script", str(tmp_path)])
    script.main()
    assert "six views" in capsys.readouterr().out
    drawn = (tmp_path / "certified.svg").read_text()
    assert "hinge on the radius, certified" in drawn


def test_every_method_of_the_comparison_has_settings_of_its_own_on_every_data_set():
    comparison = read_comparison(FOLDER / "certified.yaml")
    for data in comparison.data:
        words = {
            method: comparison.words_of(method, data, settings.words) for method, settings in comparison.methods.items()
        }
        assert len(set(words.values())) == len(words)
