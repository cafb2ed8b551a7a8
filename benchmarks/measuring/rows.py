# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Rows of the table of quick benchmarks: a question, what was measured, and the goal."""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One question and its answer.

    Args:
        question: what is asked, such as "PGD over its bare passes, 16 x 16".
        value: the answer; None if there is none, which ``note`` explains.
        unit: ``"x"`` for a ratio, ``"%"``, ``"s"``, ``"ms"``, ``"MiB"``.
        goal: what it is held to; None where it is shown for information.
        at_least: the goal is a lower bound.
        note: in place of a value, or after it.
    """

    question: str
    value: float | None = None
    unit: str = "x"
    goal: float | None = None
    at_least: bool = False
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None where there is none, or no value."""
        if self.value is None or self.goal is None:
            return None
        return self.value >= self.goal if self.at_least else self.value <= self.goal

    def cells(self) -> tuple[str, str, str]:
        """Figure, goal, and whether it is met, as shown."""
        figure = " ".join(filter(None, [_shown(self.value, self.unit), f"({self.note})" if self.note else ""]))
        goal = "" if self.goal is None else f"{'>=' if self.at_least else '<='} {_shown(self.goal, self.unit)}"
        return figure or "-", goal, {True: "yes", False: "**no**", None: ""}[self.met]


def _shown(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 or unit == "%" else 2
    return f"{value:.{digits}f}{'' if unit == 'x' else ' '}{unit}"


def benchmark_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the option by which ``benchmarks/quick.py`` gets the rows."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, metavar="FILE", help="also write the rows of the quick table, as JSON")
    return parser


def save(rows: Iterable[Row], path: Path | None) -> None:
    """Write rows as JSON; nothing without a path."""
    if path is not None:
        path.write_text(json.dumps([asdict(row) for row in rows]))


def load(path: Path) -> list[Row]:
    """What :func:`save` wrote."""
    return [Row(**each) for each in json.loads(path.read_text())]


def table(rows: Mapping[str, Sequence[Row]]) -> str:
    """A table in Markdown; rows by the command that makes them."""
    lines = ["| question | figure | goal | met | command |", "|---|---:|---:|---|---|"]
    for command, each in rows.items():
        for row in each:
            figure, goal, met = (cell.replace("|", "\\|").replace("\n", " ") for cell in row.cells())
            lines.append(f"| {row.question} | {figure} | {goal} | {met} | `{command}` |")
    return "\n".join(lines)


def write_between(path: Path, marker: str, text: str) -> None:
    """Replace what stands between ``<!-- marker -->`` and ``<!-- end of marker -->`` in a file.

    Raises:
        ValueError: if the two lines are not there, once each and in this order.
    """
    begin, end = f"<!-- {marker} -->\n", f"<!-- end of {marker} -->\n"
    whole = path.read_text()
    before, found, rest = whole.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed or begin in rest or end in after:
        raise ValueError(f"{path} must hold the lines {begin.strip()!r} and {end.strip()!r} once, in this order")
    path.write_text(f"{before}{begin}{text.rstrip()}\n{end}{after}")
