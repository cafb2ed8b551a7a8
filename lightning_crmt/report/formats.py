# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Tables as Markdown, as LaTeX, and for a terminal."""

from __future__ import annotations

import re
import textwrap

from lightning_crmt.report.text_tables import Entry, TextTable, marks_told

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "±": r"$\pm$",
}  # fmt: skip


def to_markdown(table: TextTable) -> str:
    """The table as Markdown, with a line for each mark and for what each column means.

    The best is bold, what cannot be told from it has ``=`` after it, and a clear difference is bold too.
    """
    lines = [f"**{escape_markdown(table.title)}**", ""]
    lines += ["| " + " | ".join(map(escape_markdown, table.head)) + " |", "|" + "---|" * len(table.head)]
    lines += ["| " + " | ".join(_in_markdown(entry) for entry in row) + " |" for row in table.rows]
    told = [*marks_told([table], "bold"), *legend(table)]
    return "\n".join([*lines, "", *(f"- {escape_markdown(line)}" for line in told)]) + "\n"


def to_latex(table: TextTable) -> str:
    r"""The table as LaTeX, which needs no package; what each column means stands in comments.

    The best is bold, what cannot be told from it has an equals sign, and a clear difference is bold too.
    """
    body = [" & ".join(_in_latex(entry) for entry in row) + r" \\" for row in table.rows]
    caption = escape_latex(table.title)
    lines = [
        *(f"% {line}" for line in legend(table)),
        r"\begin{table}",
        rf"\caption{{{caption}}}",
        r"\begin{tabular}{" + "l" * len(table.names) + "r" * len(table.words) + "}",
        r"\hline",
        " & ".join(map(escape_latex, table.head)) + r" \\",
        r"\hline",
        *body,
        r"\hline",
        r"\end{tabular}",
        *(rf"\par\footnotesize {escape_latex(line)}" for line in marks_told([table], "bold")),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def to_text(table: TextTable) -> str:
    """The table for a terminal: the best has ``*``, what cannot be told from it ``=``, a clear difference ``*``."""
    heads = [textwrap.wrap(_one_line(head), _HEAD, break_long_words=False) or [""] for head in table.head]
    height = max(map(len, heads))
    rows = [list(line) for line in zip(*([""] * (height - len(head)) + head for head in heads), strict=True)]
    rows += [[f"{_one_line(entry.text)}{_SIGN[entry.mark]}" for entry in row] for row in table.rows]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    first = len(table.names)
    lines = [
        "  ".join(
            cell.ljust(width) if place < first else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([_one_line(table.title), *lines]) + "\n"


def to_rows(table: TextTable) -> list[list[str | float | None]]:
    """The cells as text, marked as for a terminal."""
    return [[f"{entry.text}{_SIGN[entry.mark]}" for entry in row] for row in table.rows]


def legend(table: TextTable) -> list[str]:
    """A line for each column: what it means, how sure it is, and of how many samples; none for differences."""
    if table.names == ("difference",):  # whose columns are those of the table before it
        return []
    counts = table.counts or ("",) * len(table.words)
    return [
        _one_line(f"{words.title}: {words.meaning}; {words.sure}{f'; {count}' if count else ''}; {words.key}")
        for words, count in zip(table.words, counts, strict=True)
    ]


def escape_markdown(text: str) -> str:
    r"""``text`` so that Markdown shows it as it is, in one line.

    >>> escape_markdown("a|b_c <i>")
    'a\\|b\\_c &lt;i&gt;'
    """
    text = re.sub(r"([\\`*_{}\[\]#|~])", r"\\\1", _one_line(text))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def escape_latex(text: str) -> str:
    r"""``text`` so that LaTeX shows it as it is, in one line.

    >>> escape_latex("50 % of a_b")
    '50 \\% of a\\_b'
    """
    return "".join(_LATEX.get(letter, letter) for letter in _one_line(text))


#: Letters of a line of the head in a terminal, unless a word is longer.
_HEAD = 18

_SIGN = {"best": " *", "level": " =", "clear": " *", "": ""}


def _in_markdown(entry: Entry) -> str:
    text = escape_markdown(entry.text)
    if entry.mark in ("best", "clear"):
        return f"**{text}**"
    return f"{text} =" if entry.mark == "level" else text


def _in_latex(entry: Entry) -> str:
    text = escape_latex(entry.text)
    text = f"{{{text}}}" if text.startswith(("[", "*")) else text  # else an argument of the line before
    if entry.mark in ("best", "clear"):
        return rf"\textbf{{{text}}}"
    return f"{text} $=$" if entry.mark == "level" else text


def _one_line(text: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
