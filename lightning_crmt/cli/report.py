# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""``lightning-crmt report``: tables and one page from finished runs."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from typing_extensions import override

from lightning_crmt.cli.explain import stop
from lightning_crmt.report import find_runs, headline_text, write_report

_DESCRIPTION = """Tables, figures and one page from finished runs: those of a comparison, or the folder of a fit or test
with CSVLogger. The page, report.html, opens without a network; beside it are runs.csv, runs.json, summary.md and
summary.tex."""


class _Parser(argparse.ArgumentParser):
    @override
    def error(self, message: str) -> NoReturn:
        """Explain in a line, as all subcommands do."""
        stop(message.replace("the following arguments are required: FOLDER", "a folder must be given, with runs"))


def report_command(words: Sequence[str], prog: str) -> str:
    """Do what the words say; what there is to tell at the end.

    Args:
        words: those after ``report``.
        prog: what the program is called.

    Raises:
        SystemExit: with status 2 and the reason, for words that cannot be followed.
        FileNotFoundError: if the folder holds no runs.
        ValueError: if a run cannot be read, or no method has the name of the baseline.
    """
    parser = _Parser(f"{prog} report", description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="of a comparison, of a run, or of several logs")
    parser.add_argument("--baseline", metavar="METHOD", help="the method that the others are compared with")
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="where to write; by default the folder itself")
    parser.add_argument("--title", default="", help="of the page; by default the methods and the data")
    own = parser.parse_args(words)
    if not own.folder.is_dir():
        parser.error(f"FOLDER must be a folder, got {own.folder}")
    runs = find_runs(own.folder)
    command = shlex.join([prog, "report", *words])
    page = write_report(runs, own.out or own.folder, baseline=own.baseline, title=own.title, command=command)
    return f"{headline_text(runs, own.baseline)}\npage: {page}"
