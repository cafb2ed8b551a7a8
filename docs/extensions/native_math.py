# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Formulas as MathML, which browsers draw by themselves: pages load no script and need no network for them."""

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.application import Sphinx


def mathml(formula: str, block: bool) -> str:
    r"""The formula in MathML.

    >>> mathml(r"\big( x \dots", block=False).startswith("<math")
    True
    """
    known = re.sub(r"\\[bB]ig(?![a-z])", "", formula).replace(r"\dots", r"\ldots")  # parentheses have a size anyway
    if block and ("\\\\" in known or "&" in known):
        known = rf"\begin{{aligned}}{known}\end{{aligned}}"
    return str(latex2mathml.tex2mathml(known, as_block=block))


def in_line(writer: Any, node: nodes.math) -> None:
    """Write a formula of a line."""
    writer.body.append(mathml(node.astext(), block=False))
    raise nodes.SkipNode


def displayed(writer: Any, node: nodes.math_block) -> None:
    """Write a formula of its own; several, parted by empty lines, below each other."""
    for part in re.split(r"\n\s*\n", node.astext().strip()):
        writer.body.append(f'<div class="formula">{mathml(part.strip(), block=True)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """What Sphinx calls."""
    app.add_html_math_renderer("mathml", (in_line, None), (displayed, None))
    return {"parallel_read_safe": True}
