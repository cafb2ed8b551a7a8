# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Raw values come back as they were; summaries say what the numbers allow, whatever names and errors hold."""

import csv
import html
import json
import math
import re
from statistics import fmean, stdev

import pytest

from lightning_crmt.evaluation import Key
from lightning_crmt.report import Run, summarise, write_tables
from lightning_crmt.report.formats import escape_latex, escape_markdown, to_latex, to_markdown, to_text
from lightning_crmt.report.grouping import grouped, headline
from lightning_crmt.report.text_tables import differences_table, means_table, ranks_table
from lightning_crmt.report.wording import Wording

AWFUL = 'a|b & <i>"50%"</i> $x_1$ \\end{table} [*]\n# `~^é\x00'


def read(folder):
    with (folder / "runs.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def runs():
    numbers = {"test/accuracy/joint": 0.1 + 0.2, "test/certified_radius/joint": math.inf, "test/loss": math.nan}
    return [
        Run(AWFUL, "x", 0, numbers, samples=40, versions={"torch": "2.13.0", "numpy": "2.0"}, choice={"rho": "0.3"}),
        Run(AWFUL, "x", 1, error=AWFUL),
        Run("b", "x", 0, {"test/accuracy/joint": 0.25, "not/a/key/at/all": 1.0}, seconds=2.5, config_hash="ab"),
    ]


def test_the_csv_has_a_row_for_each_run_and_every_digit(tmp_path, runs):
    write_tables(runs, tmp_path)
    first, failed, other = read(tmp_path)
    assert first["method"] == AWFUL
    assert failed["error"] == AWFUL
    assert float(first["test/accuracy/joint"]) == 0.1 + 0.2
    assert float(first["test/certified_radius/joint"]) == math.inf
    assert math.isnan(float(first["test/loss"]))
    assert failed["test/accuracy/joint"] == other["test/loss"] == ""
    assert (first["versions"], first["choice"]) == ("torch=2.13.0; numpy=2.0", "rho=0.3")
    assert (other["seconds"], other["config_hash"]) == ("2.5", "ab")


def test_the_json_is_json_and_says_what_each_key_means(tmp_path, runs):
    write_tables(runs, tmp_path)

    def refuse(name):
        raise AssertionError(name)

    found = json.loads((tmp_path / "runs.json").read_text(encoding="utf-8"), parse_constant=refuse)
    numbers = found["runs"][0]["numbers"]
    assert {key: float(value) for key, value in numbers.items()} == pytest.approx(
        {str(key): value for key, value in runs[0].keys().items()}, nan_ok=True
    )
    assert [each["method"] for each in found["runs"]] == [AWFUL, AWFUL, "b"]
    assert found["keys"].keys() >= numbers.keys()
    assert found["keys"]["test/certified_radius/joint"]["sure"] == "guaranteed"


def test_tables_are_whole_whatever_the_names(tmp_path, runs):
    write_tables(runs, tmp_path)
    markdown = (tmp_path / "summary.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE)
    assert blocks
    for block in blocks:
        columns = {len(re.split(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(columns) == 1, block
    assert "<i>" not in markdown
    latex = (tmp_path / "summary.tex").read_text(encoding="utf-8")
    assert latex.count(r"\end{table}") == latex.count(r"\begin{table}")
    for body in re.findall(r"\\begin{tabular}{(l*r*)}\n(.*?)\\end{tabular}", latex, re.DOTALL):
        for line in body[1].splitlines():
            if not line.startswith(r"\hline"):
                assert len(re.findall(r"(?<!\\)&", line)) == len(body[0]) - 1, line
    code = re.sub(r"(?m)^%.*", "", latex)
    assert not re.search(r"(?<!\\)[%#_]", code)


def test_escaping_comes_back_as_it_was():
    """Undo what Markdown undoes."""
    text = re.sub(r"\\([\\`*_{}\[\]#|~])", r"\1", html.unescape(escape_markdown("x *y* [z](u) \\ &amp; <b>")))
    assert text == "x *y* [z](u) \\ &amp; <b>"
    assert escape_latex("a\\b{c}~^%") == r"a\textbackslash{}b\{c\}\textasciitilde{}\textasciicircum{}\%"


def test_means_and_spreads_are_those_of_the_csv(tmp_path):
    values = [0.8132, 0.8491, 0.7999, 0.861]
    write_tables([Run("a", "x", seed, {"test/accuracy/joint": each}) for seed, each in enumerate(values)], tmp_path)
    raw = [float(row["test/accuracy/joint"]) for row in read(tmp_path)]
    assert raw == values
    assert f"| {100 * fmean(raw):.1f} ± {100 * stdev(raw):.1f} |" in (tmp_path / "summary.md").read_text(
        encoding="utf-8"
    )


def test_marks_stand_in_every_format():
    values = {"best": [0.8, 0.83, 0.81], "near": [0.82, 0.8, 0.8], "behind": [0.1, 0.12, 0.14]}
    runs = [
        Run(method, "x", seed, {"test/accuracy/joint": value})
        for method, each in values.items()
        for seed, value in enumerate(each)
    ]
    (on,) = summarise(runs).on_data
    table = means_table("t", on, on.columns)
    marks = {row[0].text: row[2].mark for row in table.rows}
    assert marks == {"best": "best", "near": "level", "behind": ""}
    assert "**81.3 ± 1.5**" in to_markdown(table)
    assert "80.7 ± 1.2 =" in to_markdown(table)
    assert r"\textbf{81.3 $\pm$ 1.5}" in to_latex(table)
    assert "81.3 ± 1.5 *" in to_text(table)
    lines = to_text(table).splitlines()[1:]
    assert len({len(line) for line in lines if "*" in line or "=" in line}) == 1


def test_missing_seeds_are_told_in_the_row_and_in_the_cell():
    both = {"test/accuracy/joint": 0.5, "test/accuracy/audio": 0.5}
    runs = [Run("a", "x", seed, dict(list(both.items())[: 1 + (seed > 0)])) for seed in range(3)]
    runs.append(Run("a", "x", 3, error="out of memory"))
    (on,) = summarise(runs).on_data
    ((_, seeds, joint, audio),) = means_table("t", on, on.columns).rows
    assert seeds.text == "3 of 4"
    assert "n =" not in joint.text
    assert audio.text.endswith("(n = 2)")


KEYS = [
    "test/accuracy/joint", "test/accuracy/audio", "test/accuracy_zeroed/audio+image", "test/accuracy_dropped/worst",
    "test/accuracy_imputed/none", "test/accuracy_present/audio", "test/certified_accuracy/joint@0.2",
    "test/certified_accuracy/audio=0.1+image=0.3", "test/certified_accuracy_dropped/audio@0.2",
    "test/certified_accuracy_worst_class/joint@0.2", "test/certified_accuracy_of_class/3@0.2",
    "test/estimated_accuracy/audio@0.2", "test/probably_certified_accuracy/joint@0.5", "test/robust_accuracy/pgd@0.2",
    "test/robust_accuracy/pgd@audio=0.1+image=0.3", "test/robust_accuracy/missing", "test/clean_accuracy/pgd",
    "test/adversarial_distance/near", "test/adversarial_distance_median/near", "test/certified_radius/joint",
    "test/estimated_radius/audio", "test/certified_radius_dropped/audio", "test/margin/joint", "test/loss",
    "test/vulnerability/audio", "test/integration_factor/audio", "test/certified_label_accuracy/joint@0.2",
    "test/smoothed_accuracy/joint", "test/smoothed_abstained/joint", "test/reliance/audio", "val/accuracy/joint",
    "test/accuracy/joint/dataloader_idx_1", "test/radius/joint", "my_own",
]  # fmt: skip


def test_every_key_has_words_of_its_own():
    words = [Wording(Key.parse(key), {"pgd": "audio+image, linf, other samples"}) for key in KEYS]
    assert len({each.title for each in words}) == len(KEYS)
    assert len({each.meaning for each in words}) == len(KEYS)
    for each in words:
        assert each.unit
        assert each.sure
        assert bool(each.threat) == bool(each.key.sure), each.key
        if each.key.sure == "certified":
            assert "guarantee" in each.title
        elif each.key.sure:
            assert "guaranteed" not in each.title or each.title.startswith(("probably", "radius guaranteed with"))
    robust = words[KEYS.index("test/robust_accuracy/pgd@0.2")]
    assert robust.threat == "attack pgd on audio and image (linf, other samples), up to radius 0.2"


def test_groups_hold_each_key_once_and_the_headline_is_short():
    keys = [Key.parse(key) for key in KEYS] + [Key("test", "accuracy", f"m{i}") for i in range(100)]
    held = [key for group in grouped(reversed(keys)) for key in group.keys]
    assert sorted(map(str, held)) == sorted(map(str, keys))
    first = headline(keys)
    assert len(first) <= 8
    assert str(first[0]) == "test/accuracy/joint"
    assert {"certified", "robust"} <= {key.sure for key in first}
    assert held == [key for group in grouped(keys) for key in group.keys]


def test_what_few_modalities_answer_alone_and_mean_radii_are_shown_first():
    keys = ["accuracy/joint", "accuracy/a", "accuracy/b", "estimated_accuracy/joint@0.1", "estimated_radius/joint"]
    keys = [Key.parse(f"test/{key}") for key in [*keys, "estimated_radius/a", "accuracy_zeroed/a"]]
    assert {str(key) for key in keys} - {str(key) for key in headline(keys)} == {"test/estimated_radius/a"}
    third = Key("test", "accuracy", "c")
    assert not any(key.what == "accuracy" and key.of in "abc" for key in headline([*keys, third]))


def test_ranks_are_no_percentages_and_few_seeds_are_told_beside_the_interval():
    runs = [
        Run(method, data, seed, {"test/accuracy/joint": value + seed * (place + 1) / 100})
        for data in ("x", "y")
        for place, (method, value) in enumerate([("a", 0.5), ("b", 0.7)])
        for seed in range(2)
    ]
    summary = summarise(runs, "a")
    (key,) = summary.ranks
    ranked = ranks_table("r", summary, [key])
    assert [[entry.text for entry in row] for row in ranked.rows] == [["a", "2.00"], ["b", "1.00"]]
    assert "%" not in "".join(ranked.head)
    table = differences_table("d", summary.on_data[0], [key], "a")
    assert table.rows[0][1].text.endswith("] (n = 2)")
    assert table.rows[0][1].mark == ""
