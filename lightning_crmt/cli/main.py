# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The program: ``lightning-crmt fit --config run.yaml``, and subcommands of our own, such as ``certify``."""

from __future__ import annotations

import os
import sys
import warnings
from functools import partial

from lightning.pytorch.cli import ArgsType

# Classes are found in YAML by their short names once their modules are imported.
from lightning_crmt import attacks, callbacks, data, encoders, fusion, methods, module  # noqa: F401
from lightning_crmt.checks import did_you_mean
from lightning_crmt.cli.command_line import CRMTCLI
from lightning_crmt.cli.comparison import compare_command
from lightning_crmt.cli.explain import ExplainingParser, stop
from lightning_crmt.cli.failures import TRACEBACK, explain_failure, unwrapped
from lightning_crmt.cli.help import SUBCOMMANDS, overview
from lightning_crmt.cli.methods import listing
from lightning_crmt.cli.report import report_command
from lightning_crmt.cli.reweight import reweight_command
from lightning_crmt.cli.robustness import attack_command, certify_command
from lightning_crmt.data import prepare_command

#: The other subcommands.
_OWN = {
    "compare": "train and test methods x data x seeds, several at a time",
    "methods": "list methods of training, heads and attacks with a line each",
    "prepare": "turn a folder of videos into frames, flow and spectrograms",
    "report": "tables, figures and one page from finished runs",
    "reweight": "step 2 of CRMT on a checkpoint",
    "certify": "how far inputs may change before predictions of a checkpoint do",
    "attack": "how many predictions of a checkpoint withstand attacks",
}


def main(args: ArgsType = None, cli: type[CRMTCLI] = CRMTCLI) -> None:
    """Run the command line on any model and data module, those of this package by their short names.

    Where nothing is passed, as from a shell, wrong values end the program with status 2 and at most five lines, those
    that constructors and the Trainer refuse included; errors in code of one's own show their traceback, and all do
    where ``LIGHTNING_CRMT_TRACEBACK`` is set. Called from Python, with words, constructors and the Trainer raise.

    Args:
        args: the words, by default those typed.
        cli: the command line to run, :class:`~lightning_crmt.cli.CRMTCLI` or a subclass.

    >>> main(["methods"])  # doctest: +ELLIPSIS
    Methods of training, ...
    """
    if args is not None:
        _run(args, cli)
        return
    words = sys.argv[1:]
    try:
        _run(words, cli)
    except Exception as error:
        told = (
            None if os.environ.get(TRACEBACK) else explain_failure(error, words, CRMTCLI.instantiate_classes.__code__)
        )
        if told is None:
            bug = unwrapped(error)
            raise bug from bug.__cause__
        stop(told)


def command_line(args: ArgsType = None, run: bool = True) -> CRMTCLI:
    """The command line with its model, data module and Trainer; see :class:`~lightning_crmt.cli.CRMTCLI`."""
    return CRMTCLI(args, run)


def _run(words: ArgsType, cli: type[CRMTCLI]) -> None:
    subcommands = {name: SUBCOMMANDS.get(name, "") for name in cli.subcommands()} | _OWN
    match words:
        case []:
            sys.stderr.write(overview(cli.prog, subcommands))
            sys.exit(2)  # nothing was asked for, so nothing was done
        case ["-h" | "--help"]:
            print(overview(cli.prog, subcommands), end="")  # noqa: T201
            sys.exit(0)
        case ["compare", *rest]:
            told, status = compare_command(list(map(str, rest)), cli)
            print(told)  # noqa: T201
            if status:
                sys.exit(status)
        case ["methods"]:
            print(listing())  # noqa: T201
        case ["methods", *rest]:
            stop(f"`{cli.prog} methods` takes nothing, got {' '.join(map(str, rest))}")
        case ["prepare", *rest]:
            sys.exit(prepare_command(rest, ExplainingParser))
        case ["report", *rest]:
            print(report_command([str(word) for word in rest], cli.prog))  # noqa: T201
        case ["reweight", *rest]:
            print(reweight_command(rest, partial(_parts, cli)))  # noqa: T201
        case ["certify" | "attack" as word, *rest]:
            command = certify_command if word == "certify" else attack_command
            text, status = command(rest, partial(_parts, cli))
            print(text, end="\n" * bool(text))  # noqa: T201
            if status:
                sys.exit(status)
        case [str(word), *_] if not word.startswith("-") and word not in subcommands:
            near = did_you_mean(word, subcommands)
            stop(f"there is no subcommand `{word}`{near}\n  there are {', '.join(subcommands)}")
        case _:
            # What was typed is passed as such: LightningCLI warns of words that are passed beside those typed.
            cli(None if words == sys.argv[1:] else words)


def _parts(cli: type[CRMTCLI], words: list[str]) -> CRMTCLI:
    """Model, data module and Trainer of some of the words that were typed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LightningCLI's args parameter")  # of words passed beside those typed
        return cli(words, run=False)
