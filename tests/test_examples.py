# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Every page under examples/ runs, and does what it says."""

import importlib.util
import re
from pathlib import Path

import pytest

from lightning_crmt.cli import main
from lightning_crmt.report import load_runs

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.filterwarnings("ignore:.*tensorboardX.*")
def test_door_one_subclass():
    found = load("subclass").main(max_epochs=15)
    assert found["test/accuracy/joint"] > 0.8
    assert found["test/accuracy_zeroed/mor"] > 0.6
    assert found["test/estimated_radius/joint"] > 0.1


def test_door_two_existing_module():
    found = load("existing_module").main(max_epochs=10)
    assert found["val/accuracy"] > 0.75
    assert 0 < found["val/estimated_radius/joint"] <= found["val/estimated_radius/shape"]
    assert "val/accuracy_zeroed/fourier" in found
    assert 0 < found["val/robust_accuracy/pgd@0.1"] < found["val/clean_accuracy/pgd"]


def test_demo_makes_a_table_and_a_page(tmp_path, capsys):
    words = ["--jobs", "2", "--only", "CRMT*/*/0", "--trainer.max_epochs=15"]
    main(["compare", str(ROOT / "examples" / "comparisons" / "demo.yaml"), *words])
    shown = capsys.readouterr().out
    before, after = (run.numbers for run in load_runs("results/demo"))
    assert after["test/estimated_radius/joint"] > before["test/estimated_radius/joint"]
    assert after["test/accuracy/fou"] == before["test/accuracy/fou"] > 0.3  # step 2 leaves the scores alone
    for method, numbers in (("CRMT step 1", before), ("CRMT step 1+2", after)):
        (row,) = re.finditer(rf"^{re.escape(method)} +1( of 5)? .*", shown, re.MULTILINE)
        for key in ("accuracy/joint", "accuracy/fou", "accuracy/mor", "accuracy_zeroed/fou", "accuracy_zeroed/mor"):
            assert f" {100 * numbers[f'test/{key}']:.1f}" in row[0]
        assert f" {numbers['test/estimated_radius/joint']:.4f}" in row[0]
    assert (tmp_path / "results" / "demo" / "report.html").stat().st_size > 10_000


#: Pages whose Python runs from top to bottom, and how many blocks of it they have at least.
PAGES = {
    "README.md": 3,
    "docs/attacks.md": 2,
    "docs/export.md": 3,
    "docs/get_started.md": 3,
    "docs/how_to/missing_modalities.md": 1,
    "docs/how_to/new_attack.md": 3,
    "docs/how_to/new_lipschitz_rule.md": 2,
    "docs/how_to/new_method.md": 1,
    "docs/lipschitz_constants.md": 2,
    "docs/methods.md": 1,
    "docs/smoothing.md": 3,
    "docs/tokens_and_gaps.md": 3,
    "docs/without_lightning.md": 1,
    "docs/your_data.md": 3,
}


@pytest.mark.parametrize("page", PAGES)
def test_python_on_the_page_runs(page):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= PAGES[page]
    names: dict[str, object] = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
