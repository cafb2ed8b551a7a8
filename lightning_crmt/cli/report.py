# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""``lightning-crmt report``: tables and one page from finished runs."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from lightning.pytorch.loggers import WandbLogger
from typing_extensions import override

from lightning_crmt.checks import require_package
from lightning_crmt.cli.explain import few_lines, stop
from lightning_crmt.report import find_runs, headline_text, log_report, write_report

_DESCRIPTION = """Tables, figures and one page from finished runs: those of a comparison, or the folder of a fit or test
with CSVLogger. The page, report.html, opens without a network; beside it are runs.csv, runs.json, summary.md and
summary.tex."""


#: Where a comparison keeps the name of the method that others are compared with.
BASELINE = "baseline.txt"


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
        ModuleNotFoundError: naming the extra, if a package is not installed.
        ValueError: if a run cannot be read, or no method has the name of the baseline.
    """
    parser = _Parser(f"{prog} report", description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="of a comparison, of a run, or of several logs")
    parser.add_argument(
        "--baseline",
        metavar="METHOD",
        help="what others are compared with; as in the comparison by default",
    )
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="where to write; by default the folder itself")
    parser.add_argument("--title", default="", help="of the page; by default the methods and the data")
    parser.add_argument("--wandb", metavar="PROJECT", help="send it to Weights & Biases too, as a run of its own")
    own = parser.parse_args(words)
    if own.wandb is not None:
        wandb = require_package("wandb", "--wandb needs wandb", "wandb")
    if not own.folder.is_dir():
        parser.error(f"FOLDER must be a folder, got {own.folder}")
    runs, kept = find_runs(own.folder), own.folder / BASELINE
    if own.baseline is None and kept.is_file():
        own.baseline = kept.read_text(encoding="utf-8") or None
    command = shlex.join([prog, "report", *words])
    page = write_report(runs, own.out or own.folder, baseline=own.baseline, title=own.title, command=command)
    told = f"{headline_text(runs, own.baseline)}\npage: {page}"
    if own.wandb is None:
        return told
    logger = WandbLogger(project=own.wandb, name=own.title or own.folder.resolve().name, job_type="report")
    try:
        place = logger.experiment.url or Path(logger.experiment.dir).parent
        log_report(runs, page.parent, [logger], baseline=own.baseline)
        logger.experiment.finish()
    except wandb.Error as error:  # as without a login
        stop(few_lines(f"{page} is written, Weights & Biases did not take it: {error}"))
    return f"{told}\nWeights & Biases: {place}"
