# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""``lightning-crmt compare``: a comparison from the command line."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from typing_extensions import override

from lightning_crmt.cli.command_line import CRMTCLI
from lightning_crmt.cli.comparison.cells import cells_of
from lightning_crmt.cli.comparison.folder import CellFolder
from lightning_crmt.cli.comparison.plan import Comparison, ComparisonError, read_comparison
from lightning_crmt.cli.comparison.runner import chosen_by, compare, state_of, what_is_stale
from lightning_crmt.cli.explain import at, few_lines, stop
from lightning_crmt.cli.findings import Step
from lightning_crmt.cli.places import find_place
from lightning_crmt.report import headline_text, with_missing, write_report

_DESCRIPTION = """Train and test methods x data x seeds, each by the path of fit and test, in processes of their own.
What is finished is not repeated. Further options are those of fit, and hold for all runs: --trainer.max_epochs 1"""

_EXAMPLE = """a comparison to begin with, where joint.yaml and crmt.yaml are configs of fit:

  seeds: 3
  baseline: joint
  methods:
    joint: joint.yaml
    crmt: [joint.yaml, crmt.yaml]

results/NAME-OF-THE-FILE gets a folder for each run; docs/compare.md says the rest

exit status: 0 done; 1 a bug, with its traceback; 2 words or a file that cannot be followed; 3 a run failed
"""


class _Parser(argparse.ArgumentParser):
    @override
    def error(self, message: str) -> NoReturn:
        """Explain in a line, as all subcommands do."""
        stop(message.replace("the following arguments are required: comparison", "a comparison must be given, a file"))


def compare_command(words: Sequence[str], cli: type[CRMTCLI]) -> tuple[str, int]:
    """Do what the words say; what there is to tell at the end, and the exit status: 3 if a run failed.

    Args:
        words: those after ``compare``.
        cli: the command line that each run is by.

    Raises:
        SystemExit: with status 2 and the reason, for words or a comparison that cannot be followed.
    """
    parser = _Parser(
        f"{cli.prog} compare",
        description=_DESCRIPTION,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("comparison", type=Path, help="a YAML file of methods, data and seeds")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="in place of the one that the file says")
    parser.add_argument("--jobs", type=int, metavar="N", help="processes; by default one per GPU, or per core")
    parser.add_argument(
        "--only", nargs="+", action="extend", default=[], metavar="METHOD/DATA/SEED", help="with * and ?, as 'crmt_*'"
    )
    parser.add_argument("--retry-failed", action="store_true", help="do again what ended with an error")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    own, others = parser.parse_known_args(words)
    try:
        comparison = read_comparison(own.comparison)
        if own.out:
            comparison = replace(comparison, out=own.out)
        if own.dry_run:
            return _plan(comparison, own.only, own.retry_failed, others, cli), 0
        runs = compare(
            comparison,
            jobs=own.jobs,
            only=own.only,
            retry_failed=own.retry_failed,
            words=others,
            cli=cli,
            tell=_tell,
        )
    except ComparisonError as error:
        place = find_place(["--config", str(own.comparison)], [Step(step) for step in error.steps])
        stop(few_lines(*str(error).splitlines()[:4], at(place)))
    except FileExistsError as error:
        stop(str(error))
    except KeyboardInterrupt:
        # 130 is what shells expect of a program that was interrupted.
        return f"\nstopped; the same command goes on from the runs that have ended in {comparison.out}", 130
    if not runs:
        return f"no run has ended yet: {comparison.out}", 0
    # The page is of the whole comparison, with --only, too.
    rows, baseline = with_missing(runs, comparison.out), comparison.baseline or None
    command = shlex.join([cli.prog, "compare", *words])
    try:
        page = str(write_report(rows, comparison.out, baseline=baseline, command=command))
    except ModuleNotFoundError as error:  # the tables are there
        page = f"none: {error}"
    failed = [run for run in runs if run.error]
    told = f"\n{len(failed)} of {len(runs)} runs failed; --retry-failed does them again" * bool(failed)
    if len(rows) > len(runs):
        told += f"\n{len(rows) - len(runs)} of {len(rows)} runs are not done yet"
        told += "; the same command without --only does them" * bool(own.only)
    tables = headline_text(rows, baseline)
    return (
        f"\n{tables}\npage: {page}\nall tables, and a folder for each run: {comparison.out}{told}",
        3 if failed else 0,
    )


def _tell(line: str) -> None:
    """A line above the bar, at once, also where the lines go to a file."""
    Tqdm.write(line)
    sys.stdout.flush()


def _plan(
    comparison: Comparison, only: Sequence[str], retry_failed: bool, words: Sequence[str], cli: type[CRMTCLI]
) -> str:
    cells, folder = cells_of(comparison, words, cli), CellFolder(comparison.out)
    lines, counts = [], Counter[str]()
    chosen = chosen_by(only, cells)
    for cell in chosen:
        select = comparison.methods[cell.method].select
        state = state_of(cell, folder, candidate=select is not None)
        counts[state] += 1
        choice = "".join(f"  {name}={text}" for name, text in cell.choice.items())
        lines.append(f"{state:<9} {cell.name}{choice}")
    left = [state for state in counts if state not in ("finished", *([] if retry_failed else ["failed"]))]
    count = sum(counts[state] for state in left)
    return "\n".join([*lines, *what_is_stale(chosen, folder), f"{len(lines)} runs, {count} to do, in {comparison.out}"])
