# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The table of quick benchmarks: what rows say, where it is written, and that no benchmark is left out."""

import re
import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(FOLDER))

import quick  # noqa: E402
from measuring import Row, in_turn, load, save, table, write_between  # noqa: E402


def test_rows_say_whether_goals_are_met():
    rows = {
        "python a.py": [Row("slower?", 1.204, goal=1.2), Row("faster?", 1.9, goal=1.7, at_least=True)],
        "python b.py": [Row("how much?", 7.26, "%"), Row("broke", note="failed: a | b")],
    }
    assert table(rows).splitlines()[2:] == [
        "| slower? | 1.20x | <= 1.20x | **no** | `python a.py` |",
        "| faster? | 1.90x | >= 1.70x | yes | `python a.py` |",
        "| how much? | 7.3 % |  |  | `python b.py` |",
        r"| broke | (failed: a \| b) |  |  | `python b.py` |",
    ]


def test_rows_travel_through_files(tmp_path):
    rows = [Row("a", 1.5, "s", 2.0, True, "b"), Row("c", note="d")]
    save(rows, tmp_path / "rows.json")
    assert load(tmp_path / "rows.json") == rows


def test_only_what_stands_between_the_marks_is_replaced(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- quick -->\nold\n<!-- end of quick -->\nafter\n")
    for text in ("new\n", "newer"):
        write_between(page, "quick", text)
        assert page.read_text() == f"before\n<!-- quick -->\n{text.strip()}\n<!-- end of quick -->\nafter\n"


@pytest.mark.parametrize("text", ["", "<!-- quick -->\n", "<!-- end of quick -->\n<!-- quick -->\n"])
def test_a_page_without_marks_is_left_alone(tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match="must hold the lines"):
        write_between(page, "quick", "new")
    assert page.read_text() == text


def test_works_take_turns_and_ratios_are_of_the_same_turn():
    ticks, order = iter([0, 1, 1, 3, 10, 12, 12, 20, 30, 31, 31, 33]), []
    works = {"one": lambda: order.append("one"), "other": lambda: order.append("other")}
    turns = in_turn(works, 2, warm_up=1, clock=lambda: next(ticks))
    assert order == ["one", "other"] * 3
    assert turns.seconds == {"one": [2, 1], "other": [8, 2]}
    assert turns.ratio("other", "one") == (4 + 2) / 2
    assert turns.milliseconds("one") == 1500


def test_a_benchmark_that_fails_or_hangs_has_a_row(tmp_path, monkeypatch):
    monkeypatch.setattr(quick, "FOLDER", tmp_path)
    monkeypatch.setattr(quick, "QUICK", {"broken": [], "endless": []})
    (tmp_path / "broken.py").write_text("raise SystemExit('no such thing')")
    (tmp_path / "endless.py").write_text("import time; time.sleep(60)")
    assert quick.rows_of("broken", 60) == ([Row("broken", note="failed: no such thing")], False)
    assert quick.rows_of("endless", 0.5) == ([Row("endless", note="took longer than 0.5 s")], False)


def test_every_benchmark_stands_on_a_page():
    pages = "".join(page.read_text() for page in FOLDER.glob("*.md"))
    named = set(re.findall(r"benchmarks/(\w+)\.py", pages)) | set(quick.QUICK)
    assert {path.stem for path in FOLDER.glob("*.py")} <= named
    assert all((FOLDER / f"{name}.py").exists() for name in quick.QUICK)


def test_the_table_has_its_place(tmp_path):
    page = tmp_path / "README.md"
    page.write_text((FOLDER / "README.md").read_text())
    write_between(page, "quick", table({}))


#: Words by which they take seconds; imports and attacks take longer.
SHORT = {
    "certification_cost": "--samples 50 --repeats 1",
    "validation_epoch": "--repeats 1",
    "attack_overhead": "--sizes 16 --threads 1 --repetitions 1 --batch-size 4",
    "step_2_cost": "--classes 10 --samples 64 --side 16 --epochs 2 --repeats 1",
    "video_loading": "--clips 8 --frames 7 --repeats 1",
    "memory": "--repeats 1 --classes 10",
    "two_processes": "--samples 256 --epochs 2 --turns 1",
    "training_step": "--repeats 1",
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SHORT)
def test_quick_benchmarks_answer(name, tmp_path, monkeypatch):
    for variable in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):  # or it would start anew in place of pytest
        monkeypatch.setenv(variable, "1000000000")
    words = [f"{name}.py", *SHORT[name].split(), "--rows", str(tmp_path / "rows.json")]
    monkeypatch.setattr(sys, "argv", words)
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    rows = load(tmp_path / "rows.json")
    assert rows
    assert all(row.value is not None for row in rows)
