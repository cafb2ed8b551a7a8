# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The command line: ``lightning-crmt fit --config run.yaml``."""

from __future__ import annotations

from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import ArgsType, LightningCLI

# Classes are found in YAML by their short names once their modules are imported.
from lightning_crmt import attacks, callbacks, data, encoders, module  # noqa: F401
from lightning_crmt.version import __version__


def main(args: ArgsType = None) -> None:
    """Run LightningCLI on any model and data module; those of this package go by their short names."""
    LightningCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,  # the module makes its own, with a group for the integration weights
        save_config_kwargs={"overwrite": True},
        seed_everything_default=0,
        parser_kwargs={"prog": "lightning-crmt", "version": __version__},
        args=args,
    )
