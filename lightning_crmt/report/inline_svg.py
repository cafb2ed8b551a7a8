# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""A figure as SVG that stands within a page: with a name, identifiers of its own, and nothing from elsewhere."""

from __future__ import annotations

import html
import io
import re
from importlib import import_module

from lightning_crmt.report.figures import Drawing


def inline_svg(drawing: Drawing, name: str, title: str) -> str:
    """The figure as an ``svg`` element whose text is text.

    Args:
        drawing: the figure, and what it shows in words, which becomes its description.
        name: begins all identifiers, so that two figures of a page share none: letters, digits and ``-``.
        title: what the figure is called.
    """
    file = io.StringIO()
    with import_module("matplotlib").rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        drawing.figure.savefig(file, format="svg", metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)  # it would hold for the whole page
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)  # of each text, for those whose letters are paths
    svg = svg.replace("xlink:href=", "href=")
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'\bhref="#', f'href="#{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-")
    (box,) = re.findall(r'viewBox="([^"]*)"', svg)[:1]
    head = (
        f'<svg viewBox="{box}" role="img" aria-labelledby="{name}-title {name}-text">'
        f'<title id="{name}-title">{html.escape(title)}</title><desc id="{name}-text">{html.escape(drawing.alt)}</desc>'
    )
    return head + svg[svg.index(">") + 1 :].strip()
