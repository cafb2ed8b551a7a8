# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The command line: ``lightning-crmt fit --config run.yaml``, and ``methods``, ``prepare``, ``reweight``."""

from __future__ import annotations

import sys
from functools import partial

from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import ArgsType, LightningCLI

# Classes are found in YAML by their short names once their modules are imported.
from lightning_crmt import attacks, callbacks, data, encoders, fusion, methods, module  # noqa: F401
from lightning_crmt.cli.methods import listing
from lightning_crmt.cli.reweight import reweight_command
from lightning_crmt.data import prepare_command
from lightning_crmt.version import __version__


def main(args: ArgsType = None) -> None:
    """Run LightningCLI on any model and data module, those of this package by their short names.

    Three subcommands are not LightningCLI's: ``methods`` prints the methods of training with a line for each,
    ``prepare`` turns a folder of videos into frames, flow and spectrograms, ``reweight`` does step 2 on a checkpoint.
    """
    match sys.argv[1:] if args is None else args:
        case ["methods"]:
            print(listing())  # noqa: T201
        case ["prepare", *words]:
            sys.exit(prepare_command(words))
        case ["reweight", *words]:
            print(reweight_command(words, partial(command_line, run=False)))  # noqa: T201
        case _:
            command_line(args)


def command_line(args: ArgsType = None, run: bool = True) -> LightningCLI:
    """LightningCLI as this package sets it up.

    Args:
        args: the words of the command line, by default those typed.
        run: execute the subcommand; else take no subcommand, and only make model, data and Trainer.
    """
    return LightningCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,  # the module makes its own, with a group for the integration weights
        save_config_kwargs={"overwrite": True},
        seed_everything_default=0,
        parser_kwargs={
            "prog": "lightning-crmt",
            "version": __version__,
            "epilog": "lightning-crmt methods: list the methods of training with a line for each. "
            "lightning-crmt prepare: turn a folder of videos into frames, flow and spectrograms. "
            "lightning-crmt reweight: step 2 of CRMT on a checkpoint.",
        },
        args=args,
        run=run,
    )
