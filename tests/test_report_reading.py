# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What a reader of a report needs: what is missing, what marks mean, how wide shares are, what differs, colours."""

import math
import re
from pathlib import Path

import pytest
from scipy import stats

import lightning_crmt.report
from lightning_crmt.cli import main
from lightning_crmt.evaluation import Key
from lightning_crmt.report import (
    NOT_RUN,
    Run,
    find_runs,
    headline_text,
    save_planned,
    save_run,
    summarise,
    with_missing,
)
from lightning_crmt.report.figures.drawing import looks
from lightning_crmt.report.formats import to_latex, to_markdown
from lightning_crmt.report.grouping import grouped, headline
from lightning_crmt.report.page import page_of
from lightning_crmt.report.settings_diff import differences, what_differs
from lightning_crmt.report.short_verdict import short_verdict
from lightning_crmt.report.statistics import share_interval
from lightning_crmt.report.text_tables import differences_table, means_table
from lightning_crmt.report.verdict import scope
from lightning_crmt.report.wording import Wording

CLEAN, PROVED, ATTACKED = "test/accuracy/joint", "test/certified_accuracy/joint@0.2", "test/robust_accuracy/pgd@0.2"


def runs(seeds=3, **methods):
    """Of each method a run per seed, whose numbers differ a little."""
    return [
        Run(method, "mfeat", seed, {CLEAN: 0.8 + seed / 400, PROVED: proved * (1 + seed / 100), ATTACKED: 0.7},
            samples=400, threats={"pgd": "joint"})
        for method, proved in methods.items() for seed in range(seeds)
    ]  # fmt: skip


@pytest.mark.parametrize("n", [1, 7, 400])
def test_the_interval_of_a_share_is_that_of_clopper_and_pearson(n):
    for right in {0, 1, n // 2, n}:
        low, high = share_interval(right / n, n)
        exact = stats.binomtest(right, n).proportion_ci(0.95, method="exact")
        assert (low, high) == (pytest.approx(exact.low, abs=1e-9), pytest.approx(exact.high, abs=1e-9))


def test_the_interval_holds_the_true_share_often_enough():
    """Summed over all that may be drawn: at least 95 %."""
    for true in (0.003, 0.1, 0.5, 0.97):
        held = sum(
            stats.binom.pmf(right, 60, true)
            for right in range(61)
            if share_interval(right / 60, 60)[0] <= true <= share_interval(right / 60, 60)[1]
        )
        assert held >= 0.95


@pytest.mark.parametrize(("share", "n"), [(0.5, 0), (0.5, 3), (math.nan, 10), (math.inf, 10), (1.2, 10)])
def test_what_is_no_share_of_so_many_has_no_interval(share, n):
    assert all(map(math.isnan, share_interval(share, n)))


def test_one_seed_has_intervals_of_its_share_and_several_have_spreads():
    one, three = (headline_text(runs(seeds, a=0.5, b=0.25)) for seeds in (1, 3))
    assert "80.0 [75.7, 83.8]" in one
    assert "Clopper and Pearson" in one
    assert "it says nothing of other seeds" in one
    assert "Nothing is marked" in one
    assert "±" in three
    assert "[" not in three


def test_the_worst_class_has_the_number_of_its_samples_or_none():
    worst = "test/certified_accuracy_worst_class/joint@0.2"
    for counts, told in (({worst: 38}, (38,)), ({}, ())):
        (on,) = summarise([Run("a", "x", 0, {worst: 0.5}, counts=counts, samples=400)]).on_data
        (column,) = on.columns.values()
        assert column.counts == told
        (row,) = means_table("t", on, on.columns).rows
        assert row[2].text == "50.0"  # the class was looked for: no binomial interval


def test_marks_are_explained_in_every_format():
    values = {"best": [0.8, 0.83, 0.81], "near": [0.82, 0.8, 0.8], "behind": [0.1, 0.12, 0.14]}
    text = headline_text([Run(name, "x", s, {CLEAN: v}) for name, each in values.items() for s, v in enumerate(each)])
    assert "*: the best mean" in text
    assert "=: cannot be told from the best mean" in text
    summary = summarise(runs(a=0.5, b=0.25), "a")
    (on,) = summary.on_data
    tables = means_table("t", on, on.columns), differences_table("t", on, on.columns, "a")
    assert "- bold: the best mean" in to_markdown(tables[0])
    assert r"\footnotesize bold: the best mean" in to_latex(tables[0])
    assert "the best mean" not in to_markdown(tables[1])
    for show in (to_markdown, to_latex):
        assert "A lower guarantee is no lower robustness" in show(tables[0])


def test_equal_means_are_best_together():
    (on,) = summarise(runs(a=0.5, b=0.5, c=0.0)).on_data
    table = means_table("t", on, [key for key in on.columns if key.sure == "certified"])
    assert [row[2].mark for row in table.rows] == ["best", "best", ""]
    (answer,) = [each for each in short_verdict(on) if each.sure == "guaranteed"]
    assert answer.text.startswith("a and b have the highest mean")


def test_the_verdict_is_short_and_says_what_is_guaranteed():
    (on,) = summarise(runs(joint=0.1, near=0.1, crmt=0.6), "joint").on_data
    told = short_verdict(on, "joint")
    assert len(told) <= 8
    assert len(re.findall(r"[.!?](?=\s|$)", " ".join(answer.text for answer in told))) <= 9
    by = {answer.question: answer.text for answer in told}
    assert by["Guaranteed right under every change of all modalities together, up to l2 radius 0.2"].startswith("crmt")
    assert "Right under the attack pgd on all modalities together (l2), up to radius 0.2" in by
    assert "A lower guarantee is no lower robustness" in by["What a guarantee is"]
    assert by["near against joint"] == "No difference shown at any of the numbers above."


@pytest.mark.parametrize("seeds", [1, 2])
def test_too_few_seeds_are_told_once_and_claim_nothing(seeds):
    (on,) = summarise(runs(seeds, joint=0.1, crmt=0.6), "joint").on_data
    told = " ".join(answer.text for answer in short_verdict(on, "joint"))
    assert told.count("seed") == 1
    assert "best" not in told
    assert "against joint" not in " ".join(answer.question for answer in short_verdict(on, "joint"))


def test_many_methods_share_sentences():
    methods = {f"m{place}": 0.1 + place / 20 for place in range(12)}
    (on,) = summarise(runs(**methods), "m0").on_data
    assert len(short_verdict(on, "m0")) <= 8


def test_what_is_not_run_yet_is_missing_and_not_failed():
    done = runs(2, joint=0.1, crmt=0.6)
    rows = [*done, Run("crmt", "mfeat", 2, error=NOT_RUN), Run("joint", "mfeat", 2, error="out of memory")]
    told = scope(summarise(rows))
    assert told.endswith("Not complete: 4 of 6 runs finished, 1 failed, not run yet: crmt/mfeat/2.")
    (on,) = summarise(rows).on_data
    assert [run.method for run in on.failed] == ["joint"]
    assert [run.method for run in on.missing] == ["crmt"]


def test_report_knows_the_plan_of_an_unfinished_comparison(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning-crmt"])
    for run in runs(2, crmt=0.6):
        save_run(run, tmp_path / "done" / "cells" / f"{run.method}{run.seed}")
    planned = [Run(m, "mfeat", seed, error=NOT_RUN) for m in ("joint", "crmt") for seed in range(3)]
    save_planned(planned, tmp_path / "done")
    (tmp_path / "done" / "baseline.txt").write_text("joint")
    found = find_runs("done")
    assert [(run.method, run.seed, bool(run.error)) for run in found] == [
        ("joint", 0, True), ("joint", 1, True), ("joint", 2, True),
        ("crmt", 0, False), ("crmt", 1, False), ("crmt", 2, True),
    ]  # fmt: skip
    main(["report", "done"])
    page = (tmp_path / "done" / "report.html").read_text(encoding="utf-8")
    assert "All runs finished" not in page
    assert "not run yet: joint/mfeat/0, joint/mfeat/1, joint/mfeat/2 and crmt/mfeat/2" in page
    assert "0 of 3" in capsys.readouterr().out
    (tmp_path / "done" / "planned.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="must hold the plan of a comparison"):
        find_runs("done")


def test_settings_that_differ_and_no_others():
    radius = {"class_path": "a.Radius", "init_args": {"radius": 0.2}}
    missing = {"class_path": "a.Missing", "init_args": {"every": 1}}
    model = {"class_path": "M", "init_args": {"rho": 0.0, "head": {"class_path": "x.Linear"}, "size": 3}}
    ours = {"model": model, "trainer": {"callbacks": [missing]}, "same": [1, 2]}
    other = {"class_path": "M", "init_args": {"rho": 0.3, "head": {"class_path": "x.Orthogonal"}, "size": 3}}
    theirs = {
        "model": other,
        "trainer": {"callbacks": [{**missing, "init_args": {"every": 2}}, radius]},
        "same": [1, 2],
    }
    assert differences(ours, ours) == []
    assert differences(ours, theirs) == [
        ("model.rho", "0.0", "0.3"),
        ("model.head", "Linear()", "Orthogonal()"),
        ("trainer.callbacks.Missing.every", "1", "2"),
        ("trainer.callbacks", "-", "Radius(radius=0.2)"),
    ]
    assert differences(theirs, ours)[-1] == ("trainer.callbacks", "Radius(radius=0.2)", "-")
    assert what_differs([Run("a", "x", 0, config="!!python/object:a.b {}"), Run("b", "x", 0)]) == ("", {})


def test_an_estimate_at_radius_0_is_measured():
    """As in a comparison where it is there for the lowest recall alone."""
    names = {"accuracy": "joint", "accuracy_worst_class": "joint", "accuracy_zeroed": "fou", "accuracy_of_class": "3"}
    numbers = {f"test/estimated_{what}/{of}@0": 0.5 for what, of in names.items()}
    numbers |= {"test/estimated_accuracy/fou=0+mor=0": 0.5, CLEAN: 0.5}
    page = page_of([Run(method, "mfeat", seed, numbers) for method in "ab" for seed in range(3)], baseline="a")
    assert "estimated, no guarantee" not in page
    assert "stimated right" not in page
    assert "may be done to the inputs</h3>\n<p>mfeat: nothing" in page
    words = [Wording(Key.parse(name)) for name in numbers]
    assert {each.sure for each in words} == {"measured"}
    assert {each.threat for each in words} == {""}
    assert len({each.title for each in words}) == len({each.meaning for each in words}) == len(words)
    assert words[0].title == "right at radius 0, all modalities"
    assert words[1].meaning == (
        "share of samples that are right with no change made to all modalities together, in the class where this "
        "share is lowest"
    )
    groups = {group.name: list(map(str, group.keys)) for group in grouped(each.key for each in words)}
    assert set(groups) == {"clean", "missing", "classes"}
    assert list(map(str, headline(each.key for each in words))) == [
        CLEAN,
        "test/estimated_accuracy_worst_class/joint@0",
    ]


@pytest.mark.parametrize("sure", ["certified", "estimated"])
def test_what_is_shown_first_is_of_radii_above_0(sure):
    at_zero, above = (Key("test", "accuracy", "joint", radius, sure=sure) for radius in (0.0, 0.1))
    assert headline([at_zero, above]) == ([above] if sure == "certified" else [at_zero, above])
    assert headline([at_zero]) == [at_zero]


def test_data_without_a_name_are_called_by_their_class(tmp_path):
    def planned(data, *classes):
        save_planned([Run("joint", data, seed, error=NOT_RUN) for seed in range(3)], tmp_path)
        configs = [f"data: {{class_path: lightning_crmt.data.{name}}}" for name in classes]
        found = [Run("joint", data, seed, {CLEAN: 0.5}, config=config) for seed, config in enumerate(configs)]
        return {run.data for run in with_missing(found, tmp_path)}

    assert planned("data", "SpokenDigits", "SpokenDigits") == {"SpokenDigits"}
    assert planned("data", "SpokenDigits", "WatchMotion") == {"data"}
    assert planned("digits", "SpokenDigits") == {"digits"}
    assert planned("data") == {"data"}


def test_names_of_methods_are_explained_where_their_files_do(tmp_path):
    said = "JT, joint training: <cross-entropy>."
    save_planned([Run(method, "x", 0, error=NOT_RUN, about=said * (method == "jt")) for method in ["jt", "crmt"]],
                 tmp_path)  # fmt: skip
    page = page_of(with_missing([Run("jt", "x", 0, {CLEAN: 0.5})], tmp_path))
    assert page.count("<dt>jt</dt><dd>JT, joint training: &lt;cross-entropy&gt;.</dd>") == 1
    assert "<dt>crmt</dt>" not in page
    assert "What the methods are" not in page_of(runs(joint=0.5))


def luminance(colour):
    """Relative luminance as WCAG 2 defines it."""
    digits = colour.lstrip("#")
    digits = "".join(each * 2 for each in digits) if len(digits) == 3 else digits
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def test_colours_of_the_page_are_told_from_what_they_stand_on():
    """Text has a contrast of 4.5 at least, in light, in the dark and on paper; marks of figures have 3, on white."""
    assert contrast("#000", "#fff") == pytest.approx(21)
    page = Path(lightning_crmt.report.__file__).with_name("page.html").read_text(encoding="utf-8")
    blocks = [dict(re.findall(r"--(\w+): (#\w+)", block)) for block in re.findall(r":root \{([^}]*)\}", page)]
    assert len(blocks) == 3
    for colours in blocks:
        for name in ("ink", "quiet", "link", "certified", "probable", "survived", "estimated", "measured"):
            for ground in ("paper", "soft"):
                assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground, colours)
    for look in looks(map(str, range(10))).values():
        assert contrast(look.colour, "#fff") >= 3, look.colour


def test_what_only_the_tables_show_to_be_worse_is_in_the_verdict():
    def run(method, seed, right, at_small, at_large):
        keys = ("accuracy/joint", "estimated_accuracy/joint@0.1", "estimated_accuracy/mor@0.1")
        values = (right, at_small, at_large)
        return Run(method, "x", seed, {f"test/{key}": value for key, value in zip(keys, values, strict=True)})

    runs = [
        run(method, seed, 0.9, 0.5 + gain + 0.01 * seed, 0.6 - 3 * gain + (1 + gain) * 0.01 * seed)
        for method, gain in (("joint", 0.0), ("other", 0.1))
        for seed in range(5)
    ]
    (on,) = summarise(runs, "joint").on_data
    (told,) = [answer.text for answer in short_verdict(on, "joint") if answer.question == "other against joint"]
    assert "worse at one number of the tables below, most at “" in told
    assert "mor" in told.rpartition("worse at")[2]
    assert re.search(r"(29|30)\.\d", told.rpartition("worse at")[2])
