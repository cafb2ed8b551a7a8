# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Pages of the repository as pages of the site: those of ``benchmarks/``, and links to files that are no pages.

The same link must lead somewhere for those who read the files and for those who read the site. Here a link to a page of
``benchmarks/`` leads to its page on the site, a link to a folder of examples to the list of them, and one to any other
file downloads it, which MyST does by itself. A docstring names a page as ``docs/report.md``, which is where it is for
those who read the code; in the reference it is a link.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

DOCS = Path(__file__).parent.parent
ROOT = DOCS.parent

#: A link by a relative path, without its anchor.
LINK = re.compile(r"(?<=\]\()(?![a-z+]+:|#|/)([^)#\s]+)(?=[)#])")

#: A page that a docstring names.
NAMED = re.compile(r"``(?:docs/(\w+)|(benchmarks/\w+))\.md``")


def link_from(page: Path, source: Path, link: str) -> str:
    """What a link in the text of ``source`` must be on ``page``, both in ``docs/`` where the page is its own source.

    >>> link_from(DOCS / "benchmarks/methods.md", ROOT / "benchmarks/methods.md", "../docs/step_2.md")
    '../step_2.md'
    >>> link_from(DOCS / "methods.md", DOCS / "methods.md", "../examples/methods")
    'examples.md'
    """
    target = (source.parent / link).resolve()
    if target.parent == ROOT / "benchmarks" and target.suffix == ".md":
        target = DOCS / "benchmarks" / ("index.md" if target.stem == "README" else target.name)
    elif target.is_dir() and ROOT in target.parents:
        target = DOCS / "examples.md"
    elif target == ROOT / "README.md":
        target = DOCS / "index.md"
    return Path(os.path.relpath(target, page.parent)).as_posix()


def read(app: Sphinx, docname: str, content: list[str]) -> None:
    """Put the text of a page of the repository in the place of the line that names it, and mend links."""
    page = Path(app.env.doc2path(docname))
    if page.suffix != ".md":
        return
    mended = LINK.sub(lambda found: link_from(page, page, found[1]), content[0])
    named = re.match(r"% the text of (\S+)\n", mended)
    if named:
        source = ROOT / named[1]
        app.env.note_dependency(str(source))
        text = LINK.sub(lambda found: link_from(page, source, found[1]), source.read_text())
        mended = f"{text}\n{mended[named.end() :]}"
    content[0] = mended


def link_pages(app: Sphinx | None, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Make links of the pages that a docstring names.

    >>> lines = ["See ``docs/report.md``, ``benchmarks/methods.md``."]
    >>> link_pages(None, "function", "", None, None, lines)
    >>> lines
    ['See :doc:`/report`, :doc:`/benchmarks/methods`.']
    """
    lines[:] = [NAMED.sub(lambda found: f":doc:`/{found[1] or found[2]}`", line) for line in lines]


def setup(app: Sphinx) -> dict[str, Any]:
    """What Sphinx calls."""
    app.connect("source-read", read)
    app.connect("autodoc-process-docstring", link_pages)
    return {"parallel_read_safe": True}
