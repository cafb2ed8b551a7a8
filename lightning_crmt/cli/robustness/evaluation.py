# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""A checkpoint under an observer, through the Trainer of its config."""

from __future__ import annotations

import argparse
import hashlib
import platform
import shlex
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.cli import LightningCLI, SaveConfigCallback

from lightning_crmt.cli.robustness.options import Options, in_options
from lightning_crmt.cli.robustness.results import Evidence, Results, read_report, read_summary
from lightning_crmt.evaluation import Key
from lightning_crmt.lipschitz import NoBoundError
from lightning_crmt.training import callbacks_of
from lightning_crmt.version import __version__

#: Where callbacks come from that train, observe or save; those of one's own may change what the model computes.
_LEFT_OUT = ("lightning_crmt.", "lightning.")


def evaluate(
    parser: Options, own: argparse.Namespace, cli: LightningCLI, observer: Evidence, file: str
) -> tuple[str, dict[Key, float]]:
    """Measure the checkpoint; what there is to tell, and the numbers. Other processes than the first tell nothing.

    Args:
        parser: of the words.
        own: options of the subcommand.
        cli: model, data and Trainer of the config.
        observer: a callback, too.
        file: name of the table with a row for each sample.

    Raises:
        SystemExit: with status 2 and the reason, where something is missing.
    """
    trainer: Any = cli.trainer  # Lightning declares no `callbacks`
    data = cli.datamodule
    if data is None:
        parser.error("--data must be given")
    results = Results(observer, own.out, file, _protocol(parser, own, cli))
    trainer.callbacks = [*filter(_stays, trainer.callbacks), observer, results]
    run = trainer.test if own.split == "test" else trainer.validate
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint need to be provided")
        try:
            run(cli.model, datamodule=data, ckpt_path=str(Path(own.ckpt_path).resolve()), verbose=False)
        except NoBoundError as error:
            parser.error(in_options(str(error)))
        except (RuntimeError, KeyError) as error:
            if "loading state_dict" in str(error):
                parser.error(f"--ckpt_path must be a checkpoint of this config: {error}")
            if "pytorch-lightning_version" in str(error):
                parser.error(f"--ckpt_path must be a checkpoint as a Trainer saves it, got {own.ckpt_path}")
            raise
    if not trainer.is_global_zero:
        return "", {}
    return f"{read_report(own.out)}written: {own.out}", read_summary(own.out)


def inputs_of(own: argparse.Namespace, cli: LightningCLI) -> dict[str, Any]:
    """How to read batches of a module that is no CRMT module: as said, or as callbacks of the config do."""
    settings: dict[str, Any] = {"inputs": own.inputs, "split_batch": own.split_batch}
    for name, value in settings.items():
        others = [getattr(each, name, None) for each in callbacks_of(cli.trainer, Callback) if not _stays(each)]
        settings[name] = value if value is not None else next((each for each in others if each is not None), None)
    return settings


def status(parser: Options, own: argparse.Namespace, shares: dict[Key, float]) -> tuple[str, int]:
    """What is to be said of ``--at_least``, and the exit status."""
    low = {key: share for key, share in shares.items() if own.at_least is not None and not share >= own.at_least}
    if not low:
        return "", 0
    lines = [f"below {own.at_least:g}: {key} is {share:.4f}" for key, share in low.items()]
    return "\n" + "\n".join(lines), 3


def _stays(callback: Callback) -> bool:
    if isinstance(callback, SaveConfigCallback):
        return False
    return isinstance(callback, ProgressBar) or not type(callback).__module__.startswith(_LEFT_OUT)


def _protocol(parser: Options, own: argparse.Namespace, cli: LightningCLI) -> dict[str, str]:
    trainer = cli.trainer
    digest = hashlib.sha256(Path(own.ckpt_path).read_bytes()).hexdigest()
    part = "the validation part" if own.split == "val" else "the test part"
    which = "all" if own.samples is None else f"{own.samples}, evenly spread,"
    seed = cli.config.get("seed_everything")
    processes = f", {trainer.world_size} processes" if trainer.world_size > 1 else ""
    versions = {"lightning_crmt": __version__, "torch": torch.__version__, "lightning": lightning.__version__}
    said = ", ".join(f"{name} {version}" for name, version in versions.items())
    return {
        "of": f"{which} of {part} of {type(cli.datamodule).__name__}",
        "model": type(cli.model).__name__,
        "checkpoint": f"{own.ckpt_path}, SHA-256 {digest}",
        "run on": f"{trainer.strategy.root_device.type}, precision {trainer.precision}{processes}",
        "seed of everything": str(seed),
        "versions": f"{said}, Python {platform.python_version()}",
        "command": f"{parser.prog} {shlex.join(parser.words)}",
    }
