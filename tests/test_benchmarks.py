# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The benchmarks run with the package as it is: each finds what it imports, and says how it is used."""

import runpy
import sys
from pathlib import Path

import pytest
import yaml

from lightning_crmt.cli import main
from lightning_crmt.report import Run, save_run

FOLDER = Path(__file__).parent.parent / "benchmarks"
COMPARISONS = [path for path in FOLDER.glob("*.yaml") if "methods" in yaml.safe_load(path.read_text())]
COMPARISONS += (FOLDER.parent / "examples" / "comparisons").glob("*.yaml")


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_every_benchmark_says_how_it_is_used(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [path.name, "--help"])
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(path), run_name="__main__")
    assert end.value.code == 0
    assert f"python benchmarks/{path.name}" in capsys.readouterr().out


@pytest.mark.slow
# methods_six_views has the methods of methods.yaml, and takes as long as three others.
@pytest.mark.parametrize("path", sorted(p for p in COMPARISONS if p.stem != "methods_six_views"), ids=lambda p: p.stem)
def test_every_comparison_can_be_planned(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    main(["compare", str(path), "--dry-run"])
    comparison = yaml.safe_load(path.read_text())
    shown = capsys.readouterr().out
    for method in comparison["methods"]:
        assert f"new       {method}/" in shown
    assert f"{len(comparison['methods']) * len(comparison.get('data', [0])) * comparison['seeds']} runs" in shown


def test_tables_of_comparisons_are_means_over_views_paired_by_seed(tmp_path, monkeypatch, capsys):
    (tmp_path / "some.yaml").write_text("{out: found, methods: {jt: [], crmt_jt: [], only_a: [], failed: []}}")
    monkeypatch.chdir(tmp_path)
    numbers = {
        "jt": [(0.9, 0.5, 0.7, 0.4, 0.2), (0.8, 0.3, 0.5, 0.2, 0.4)],
        "crmt_jt": [(0.9, 0.6, 0.8, 0.5, 0.5), (0.9, 0.5, 0.5, 0.4, 0.2)],
    }
    keys = ["accuracy/joint", "accuracy/a", "accuracy/b", "robust_accuracy/pgd-a@0.2", "robust_accuracy/pgd-b@0.2"]
    keys = [f"test/{key}" for key in keys]
    runs = [
        Run(method, "x", seed, dict(zip(keys, values, strict=True)))
        for method, each in numbers.items()
        for seed, values in enumerate(each)
    ]
    runs += [Run("only_a", "x", seed, {keys[0]: 0.5, keys[1]: 0.5}) for seed in range(2)]
    runs.append(Run("failed", "x", 0, error="out of memory"))
    for place, run in enumerate(runs):
        save_run(run, tmp_path / "found" / str(place))
    monkeypatch.setattr(sys, "argv", ["comparison_tables.py", "some.yaml"])
    runpy.run_path(str(FOLDER / "comparison_tables.py"), run_name="__main__")
    first, second = (
        [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
        for text in capsys.readouterr().out.strip().split("\n\n")
    )
    head, _, *rows = first
    assert [row[0] for row in rows] == ["jt", "crmt_jt", "only_a"]
    column = {title: [row[place] for row in rows] for place, title in enumerate(head)}
    assert column["clean"] == ["85.0 ± 7.1", "90.0 ± 0.0", "50.0 ± 0.0"]
    assert column["a alone"] == ["40.0 ± 14.1", "55.0 ± 7.1", "50.0 ± 0.0"]
    assert column["alone"] == ["50.0 ± 14.1", "60.0 ± 14.1", "-"]  # of 60 and 40, of 70 and 50
    assert column["attacked"] == ["30.0 ± 0.0", "40.0 ± 14.1", "-"]  # of 30 and 30, of 50 and 30
    assert "certified" not in head
    head, _, *rows = second
    found = {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}
    assert list(found) == ["crmt_jt - jt", "jt - only_a", "crmt_jt - only_a"]
    assert found["crmt_jt - jt"]["clean"] == "5.0 ± 7.1 (1/2)"
    assert found["crmt_jt - jt"]["attacked"] == "10.0 ± 14.1 (1/2)"  # by seed: 20 and 0
    assert found["jt - only_a"]["attacked"] == "-"
