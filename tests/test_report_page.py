# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The page is well-formed, needs nothing from elsewhere, and says what the CSV says."""

import csv
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean, stdev

import pytest

from lightning_crmt.report import Run, save_run, summarise, write_report
from lightning_crmt.report.verdict import against_baseline, answers, guarantees, scope

html5lib = pytest.importorskip("html5lib")
pytest.importorskip("matplotlib")

#: Elements that have no end.
_VOID = {"meta", "br", "hr", "img", "link", "input"}
AWFUL = 'a|b & <i>"50%"</i> $x_1$ </script><script>alert(1)</script> \n \x00 é \ud800' + "long" * 40
RADII = (0.1, 0.2, 0.3)


def comparison(seeds=3):
    """Three methods on two data sets: one far ahead of the baseline, one near it; with a failed run."""
    runs = []
    for data in ("mfeat", "watch"):
        for place, (method, level) in enumerate([("joint", 0.3), ("near", 0.31), ("crmt", 0.7)]):
            for seed in range(seeds):
                wiggle = ((seed * 7 + place * (seed + 1)) % 5 - 2) / 200
                numbers = {"test/accuracy/joint": 0.8 + wiggle / 2, "test/accuracy/fou": 0.5 + wiggle}
                for radius in RADII:
                    numbers[f"test/certified_accuracy/joint@{radius}"] = level - radius + wiggle
                    numbers[f"test/robust_accuracy/pgd@{radius}"] = level + 0.1 - radius + wiggle
                numbers |= {"test/accuracy_zeroed/fou": level, "test/loss": 1.5 + wiggle}
                history = {"val/vulnerability/fou": [(0, 1.0), (1, 2.0)]}
                runs.append(
                    Run(
                        method, data, seed, numbers, history, {"test/robust_accuracy/pgd@0.1": 50}, seconds=2.0,
                        peak_memory=2**29, parameters=10, samples=400, threats={"pgd": "joint"}, config="model: {}\n",
                        versions={"torch": "2.13.0"}, command=f"lightning-crmt fit --seed_everything {seed}",
                    )
                )  # fmt: skip
    return [*runs, Run("joint", "mfeat", 99, error="RuntimeError: <b>no</b>")]


def awful():
    numbers = {
        "test/accuracy/joint": 0.5, "test/certified_radius/joint": math.inf, "test/loss": math.nan, AWFUL: 1.0,
        "test/certified_accuracy/joint@0.1": math.nan,
    }  # fmt: skip
    numbers |= {f"test/certified_accuracy_of_class/{k}@0.1": k / 200 for k in range(120)}
    finished = Run(AWFUL, AWFUL, 0, numbers, choice={AWFUL: AWFUL}, config=AWFUL, command=AWFUL)
    return [finished, Run(AWFUL, AWFUL, 1, error=AWFUL), Run("b", AWFUL, 0, error=AWFUL)]


CASES = {
    "comparison": lambda: (comparison(), "joint"),
    "one seed": lambda: (comparison(1), "joint"),
    "one run": lambda: (comparison()[:1], None),
    "nothing but failures": lambda: ([Run("a", "x", 0, error="no"), Run("b", "x", 0, error="no")], "a"),
    "awful": lambda: (awful(), "b"),
    "nothing known": lambda: ([Run("a", "x", 0, {"my_loss": 1.0})], None),
}


@pytest.fixture(scope="module", params=CASES)
def page(request, tmp_path_factory):
    runs, baseline = CASES[request.param]()
    return write_report(runs, tmp_path_factory.mktemp("out"), baseline=baseline).read_text(encoding="utf-8")


class Read(HTMLParser):
    """What is in a page, and whether each element ends where it must."""

    def __init__(self, page):
        super().__init__()
        self.open, self.found, self.headings, self.text = [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in _VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_it_is_html_to_the_letter(page):
    parser = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False)
    parser.parse(page)
    Read(page)


def test_it_needs_nothing_from_elsewhere_and_runs_no_script(page):
    elements = Read(page).found
    assert not {tag for tag, _ in elements} & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in elements:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("src", "href", "xlink:href", "srcset", "action", "poster"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:image/png;base64,")), (tag, value)
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_headings_are_in_order_and_everything_has_a_name(page):
    read = Read(page)
    assert read.headings[0] == 1
    assert read.headings.count(1) == 1
    assert all(later <= before + 1 for before, later in zip(read.headings, read.headings[1:], strict=False))
    ids = [attributes["id"] for _, attributes in read.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in read.found:
        if tag == "svg":
            assert attributes["role"] == "img"
            assert set(attributes["aria-labelledby"].split()) <= set(ids)
        assert tag != "img" or attributes.get("alt")
        if attributes.get("href", "").startswith("#"):
            assert attributes["href"][1:] in ids
        if tag == "th":
            assert attributes["scope"] in ("col", "row")
    assert ("html", {"lang": "en"}) in read.found
    assert [tag for tag, _ in read.found].count("caption") == [tag for tag, _ in read.found].count("table")
    for used in re.findall(r"url\(#([^)]*)\)", page):
        assert used in ids


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_report(comparison(), tmp_path_factory.mktemp("out"), baseline="joint", command="make <it>")


def test_parts_are_in_the_order_in_which_one_asks(written):
    titles = re.findall("<h2[^>]*>(.*?)</h2>", written.read_text(encoding="utf-8"))
    assert titles == [
        "Verdict", "Tables", "Figures", "Threats and protocol", "What each number is", "Settings", "All runs",
        "Environment", "Command",
    ]  # fmt: skip


def test_numbers_are_those_of_the_csv(written):
    page = written.read_text(encoding="utf-8")
    with (written.parent / "runs.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for data in ("mfeat", "watch"):
        for method in ("joint", "near", "crmt"):
            for key in ("test/accuracy/joint", "test/certified_accuracy/joint@0.2", "test/robust_accuracy/pgd@0.2"):
                own = [row for row in rows if (row["method"], row["data"]) == (method, data) and not row["error"]]
                values = [float(row[key]) for row in own]
                assert f"{100 * fmean(values):.1f} ± {100 * stdev(values):.1f}" in page
                assert all(f">{row[key]}<" in page for row in own)
    assert "50 samples" in page  # of the attack, which saw fewer
    assert "RuntimeError: &lt;b&gt;no&lt;/b&gt;" in page
    assert "make &lt;it&gt;" in page


def test_the_same_runs_make_the_same_page(tmp_path):
    pages = [write_report(comparison(), tmp_path / str(each), baseline="joint").read_bytes() for each in range(2)]
    assert pages[0] == pages[1]


def by_question(found):
    return {answer.question: answer.text for answer in found}


def test_the_verdict_says_what_intervals_support_and_no_more():
    summary = summarise(comparison(), "joint")
    told = by_question(answers(summary.on_data[0]))
    assert "No method can be called the best" in told["Right, unchanged inputs"]
    assert told["Guaranteed right, all modalities up to 0.2"].startswith("crmt is the best, 49.5 ± 0.5 %")
    against = by_question(against_baseline(summary.on_data[0], "joint"))
    assert "joint" not in against
    assert against["near"].startswith("No difference shown")
    assert against["crmt"].startswith("Better: guaranteed right, all modalities up to 0.2 (+")
    assert "right, unchanged inputs" in against["crmt"].split("No difference shown")[1]
    (guaranteed,) = guarantees(summary.on_data[0])
    assert "crmt" in guaranteed.text
    assert "400 samples" in guaranteed.text
    assert "1 of 19 runs failed" in scope(summary)


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds_are_no_claim(seeds):
    summary = summarise(comparison(seeds), "joint")
    for on in summary.on_data:
        for answer in answers(on):
            assert "No method can be called better" in answer.text
        for answer in against_baseline(on, "joint"):
            assert answer.text.startswith("No difference shown")


def test_guarantees_of_single_modalities_and_of_no_number_are_told_as_such():
    certified = "test/certified_accuracy/audio@0.1"
    (alone,) = guarantees(summarise([Run("a", "x", 0, {certified: 0.9})]).on_data[0])
    assert "With a, the share of samples" in alone.text
    assert "audio" in alone.text
    (nothing,) = guarantees(summarise([Run("a", "x", 0, {certified: math.nan})]).on_data[0])
    assert "NaN" in nothing.text
    (on,) = summarise([Run("a", "x", 0, {"test/accuracy/joint": math.nan})]).on_data
    assert "gave NaN" in answers(on)[0].text


def test_without_certificates_nothing_is_guaranteed():
    numbers = {"test/estimated_accuracy/joint@0.1": 0.9, "test/robust_accuracy/pgd@0.1": 0.9}
    (on,) = summarise([Run("a", "x", seed, numbers) for seed in range(3)]).on_data
    (answer,) = guarantees(on)
    assert answer.text.startswith("Nothing")
    assert "promises nothing" in answer.text
    assert answer.sure == ""


def test_the_code_of_its_documentation_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parent.parent / "docs" / "report.md").read_text(encoding="utf-8")
    code, _for_loggers = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    exec(compile(code, "docs/report.md", "exec"), {})
    assert "crmt is the best" in (tmp_path / "results" / "two" / "report.html").read_text(encoding="utf-8")


def test_the_code_of_the_documentation_of_figures_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for run in comparison()[:9]:
        save_run(run, tmp_path / "results" / "compare" / f"{run.method}{run.seed}")
    text = (Path(__file__).parent.parent / "docs" / "figures.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    exec(compile(code, "docs/figures.md", "exec"), {})
    assert (tmp_path / "mfeat_bounds_joint.svg").is_file()
