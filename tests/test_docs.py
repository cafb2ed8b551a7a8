# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The site has a place for everything public, and links that lead somewhere; ``make docs`` builds it."""

import importlib
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PACKAGE = ROOT / "lightning_crmt"

#: The package and its rooms, those that say what they export.
ROOMS = [
    "lightning_crmt",
    *(path.parent.name for path in sorted(PACKAGE.glob("*/__init__.py")) if "\n__all__ = " in path.read_text()),
]


def names_on(page):
    """What a page of the reference documents, and what it refers to under "Also here"."""
    text = page.read_text()
    documented = re.findall(r"^\.\. (?:auto\w+|py:data):: (\w+)$", text, re.MULTILINE)
    referred = re.findall(r"^- (?::\w+:`(\w+) <|``(\w+)``)", text, re.MULTILINE)
    return documented, [first or second for first, second in referred]


@pytest.mark.parametrize("room", ROOMS)
def test_everything_public_is_in_the_reference_once(room):
    """A name that is missing goes into ``docs/reference/ROOM.rst``, to the others of its kind."""
    module = importlib.import_module("lightning_crmt" + ("" if room == "lightning_crmt" else f".{room}"))
    page = DOCS / "reference" / f"{room}.rst"
    documented, referred = names_on(page)
    assert f".. currentmodule:: {module.__name__}\n" in page.read_text()
    assert sorted(documented + referred) == sorted(module.__all__)


def test_what_is_referred_to_is_documented_in_its_room():
    for room in ROOMS:
        text = (DOCS / "reference" / f"{room}.rst").read_text()
        for name, target in re.findall(r"^- :\w+:`(\w+) <([\w.]+)>`", text, re.MULTILINE):
            home, _, last = target.rpartition(".")
            assert last == name
            assert name in names_on(DOCS / "reference" / f"{home.rpartition('.')[2]}.rst")[0]


PAGES = sorted([ROOT / "README.md", *DOCS.rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert anchor in [slug(heading) for heading in headings], link


def slug(heading):
    """The anchor of a heading, as GitHub and MyST make it."""
    return re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()).replace(" ", "-")


def test_every_page_is_in_the_contents():
    listed = set()
    for page in [*DOCS.rglob("*.md"), *DOCS.rglob("*.rst")]:
        for block in re.findall(r"(?:```\{toctree\}|\.\. toctree::)\n(.*?)(?:```|\Z)", page.read_text(), re.DOTALL):
            listed |= {(page.parent / line.strip()).resolve() for line in block.split("\n") if line.strip()}
    pages = {path.with_suffix("") for path in [*DOCS.rglob("*.md"), *DOCS.rglob("*.rst")]}
    assert pages - listed == {DOCS / "index"}


def test_links_to_files_that_are_no_pages_are_mended():
    spec = importlib.util.spec_from_file_location("repository_files", DOCS / "extensions" / "repository_files.py")
    extension = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(extension)
    table = extension.link_from
    page = DOCS / "benchmarks" / "methods.md"
    source = ROOT / "benchmarks" / "methods.md"
    assert table(page, source, "../docs/step_2.md") == "../step_2.md"
    assert table(page, source, "../examples/methods") == "../examples.md"
    assert table(page, source, "../examples/mfeat.yaml") == "../../examples/mfeat.yaml"
    assert table(page, source, "digits_and_motion.md") == "digits_and_motion.md"
    assert table(DOCS / "methods.md", DOCS / "methods.md", "../benchmarks/methods.md") == "benchmarks/methods.md"
    assert table(DOCS / "methods.md", DOCS / "methods.md", "../README.md") == "index.md"
