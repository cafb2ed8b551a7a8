# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The files around the package agree with it and with each other: version, dates, Pythons, tools."""

import re
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

import lightning_crmt

ROOT = Path(__file__).parent.parent


def text_of(name):
    return (ROOT / name).read_text()


@pytest.fixture(scope="module")
def config():
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    return config


def test_the_newest_section_of_the_changelog_is_the_version_with_its_date():
    newest = re.search(r"^## (.*)$", text_of("CHANGELOG.md"), re.MULTILINE)[1]
    version, date = re.fullmatch(r"(\S+) \((\d{4}-\d{2}-\d{2})\)", newest).groups()
    cited = yaml.safe_load(text_of("CITATION.cff"))
    assert version == lightning_crmt.__version__ == str(cited["version"])
    assert date == cited["date-released"]


def test_the_citation_has_what_its_format_asks_for():
    """The format is that of citation-file-format 1.2.0, whose required keys these are."""
    cited = yaml.safe_load(text_of("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert cited["cff-version"] == "1.2.0"
    assert cited["authors"] == [{"name": "the lightning_crmt authors"}]
    (paper,) = cited["references"]
    assert {"type", "title", "authors"} <= paper.keys()
    assert [person["family-names"] for person in paper["authors"]] == ["Yang", "Wei", "Liang", "Hu"]


def test_ci_runs_every_python_that_the_package_names(config):
    jobs = yaml.safe_load(text_of(".github/workflows/ci.yml"))["jobs"]
    fixed = {step["with"]["python-version"] for step in jobs["run"]["steps"] if "with" in step}
    pythons = fixed | set(jobs["pythons"]["strategy"]["matrix"]["python-version"])
    named = re.findall(r"Python :: (3\.\d+)", config["metadata"]["classifiers"])
    assert sorted(pythons) == sorted(named)
    assert config["options"]["python_requires"] == ">=" + min(named, key=lambda each: int(each[2:]))


def test_ci_runs_what_there_is():
    jobs = yaml.safe_load(text_of(".github/workflows/ci.yml"))["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    targets = re.findall(r"^([\w-]+):", text_of("Makefile"), re.MULTILINE)
    for command in commands:
        program, *words = command.split()
        assert set(words) <= set(targets) if program == "make" else (ROOT / program).is_file()
    assert ".ci/run" in commands


def test_hooks_before_a_commit_are_those_of_make_lint():
    hooks = yaml.safe_load(text_of(".pre-commit-config.yaml"))["repos"][0]["hooks"]
    run = {hook["entry"].replace(" --force-exclude", "") for hook in hooks}
    lint = text_of("Makefile").split("\nlint:")[1].split("\n\n")[0]
    assert run == {words.removesuffix(" .") for words in re.findall(r"-m (ruff .*)", lint)}
    pinned = re.search(r"^(ruff==[\d.]+)", text_of("constraints.txt"), re.MULTILINE)[1]
    assert {tool for hook in hooks for tool in hook["additional_dependencies"]} == {pinned}


def test_every_extra_is_tried_alone(config):
    tried = re.findall(r'^    "(\w+)": \[', text_of(".ci/extras.py"), re.MULTILINE)
    assert {*tried, "docs", "lint", "test"} == set(config["options.extras_require"])


def test_forms_for_reports_can_be_read():
    for form in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        read = yaml.safe_load(form.read_text())
        if form.name != "config.yml":
            assert {"name", "description", "body"} <= read.keys()
            assert len({part["id"] for part in read["body"] if "id" in part}) >= 2
