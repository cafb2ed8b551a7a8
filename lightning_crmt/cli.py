# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The command line: ``lightning-crmt fit --config run.yaml``, ``lightning-crmt methods``."""

from __future__ import annotations

import sys

from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import ArgsType, LightningCLI

# Classes are found in YAML by their short names once their modules are imported.
from lightning_crmt import attacks, callbacks, data, encoders, fusion, methods, module  # noqa: F401
from lightning_crmt.methods.listing import listing
from lightning_crmt.version import __version__


def main(args: ArgsType = None) -> None:
    """Run LightningCLI on any model and data module, those of this package by their short names; or list the methods.

    ``methods`` prints the methods of training with a line for each; everything else is LightningCLI's.
    """
    given = sys.argv[1:] if args is None else args
    if given == ["methods"]:
        print(listing())  # noqa: T201
        return
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
            "epilog": "lightning-crmt methods: list the methods of training with a line for each.",
        },
        args=args,
        run=run,
    )
