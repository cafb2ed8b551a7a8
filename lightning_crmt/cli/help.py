# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The help of the command line: short where asked by ``--help``, complete by ``--help.full``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser
from typing_extensions import override

HEADLINE = "Robust multi-modal classifiers for PyTorch Lightning, and honest numbers about their robustness."

#: The subcommands of LightningCLI, in a line each.
SUBCOMMANDS = {
    "fit": "train a model, and log how accurate and how robust it is",
    "validate": "measure a model on the validation part",
    "test": "measure a model on the test part",
    "predict": "class probabilities of a model, saved beside the logs",
}

#: What every subcommand of LightningCLI takes.
_USUAL = {
    "-c, --config FILE": "settings in YAML; of several, and of the options after them, the later one wins",
    "--model CLASS": "the module, such as CRMTModule; its arguments: --model.rho 0.5",
    "--data CLASS": "the data module, such as UCIMultiFeatures; its arguments: --data.batch_size 64",
    "--trainer.OPTION VALUE": "of Lightning's Trainer: --trainer.max_epochs 10",
    "--seed_everything INT": "makes runs repeatable",
    "--ckpt_path FILE": "a checkpoint: to resume from for fit, to judge for the others",
    "--print_config": "print all settings, those left out too, and stop",
}

_SHORT = """usage: {typed} --config FILE [--OPTION VALUE ...]

{headline}
{typed}: {what}.

{options}

To find out more:
{more}
"""

_OVERVIEW = """usage: {prog} SUBCOMMAND ...

{headline}

{subcommands}

{prog} SUBCOMMAND --help says what a subcommand takes, {prog} --version the version.
To begin with: {prog} methods, and {prog} fit --help
"""


class Parser(LightningArgumentParser):
    """LightningCLI's parser, which says little when asked for help; whoever wants every option asks for it."""

    #: The text in place of all options.
    short_help: str = ""

    @override
    def print_help(self, file: Any = None) -> None:
        """Print the short help, if there is one."""
        if self.short_help:
            (file or sys.stdout).write(self.short_help)
        else:
            super().print_help(file)


class FullHelp(argparse.Action):
    """``--help.full``: every option."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print what argparse makes of all options, and stop."""
        if isinstance(parser, Parser):
            parser.short_help = ""
        parser.print_help()
        parser.exit()


def overview(prog: str, subcommands: Mapping[str, str]) -> str:
    """All subcommands with a line each.

    >>> print(overview("lightning-crmt", {"fit": "train"}).splitlines()[4])
      lightning-crmt fit  train
    """
    lines = {f"{prog} {name}": text for name, text in subcommands.items()}
    return _OVERVIEW.format(prog=prog, headline=HEADLINE, subcommands=_columns(lines))


def short_help(prog: str, subcommand: str, further: Mapping[str, str]) -> str:
    """The usual options of a subcommand, further ones, and how to find out more.

    Args:
        prog: the program, as typed.
        subcommand: of LightningCLI.
        further: options beside the usual ones, without dashes, and their help.
    """
    typed = f"{prog} {subcommand}"
    more = {
        f"{prog} methods": "methods of training, heads and attacks with a line each",
        f"{typed} --model.help CRMTModule": "what a class takes",
        f"{typed} --data.help UCIMultiFeatures": "",
        f"{typed} --trainer.callbacks.help CertifiedRobustness": "",
        f"{typed} --help.full": "every option, a long list",
    }
    also = {f"--{name} VALUE": text for name, text in further.items()}
    what = SUBCOMMANDS.get(subcommand, subcommand)
    return _SHORT.format(
        typed=typed, headline=HEADLINE, what=what, options=_columns(_USUAL | also), more=_columns(more)
    )


def _columns(lines: Mapping[str, str]) -> str:
    width = max(map(len, lines))
    return "\n".join(f"  {name:<{width}}  {text}".rstrip() for name, text in lines.items())
