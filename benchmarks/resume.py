# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Does a fit that is killed at a random moment and resumed equal one that was not, to the bit?

python benchmarks/resume.py --moments 10
python benchmarks/resume.py --moments 3 --only mixup crmt_jt

Every row is one file of examples/methods on top of base.yaml, with Dropout in the encoders; crmt_jt, crmt_at and
crmt_mix do step 2 as well. A moment is a step of the optimizer: the fit saves a checkpoint right after it, or after the
validation if it was the last of an epoch, and dies; another, which began with other weights and another random state,
resumes. The loader can go on in the middle of an epoch. Compared are weights, optimizer, callbacks, random states and
logged numbers. A row names what differed, or says how many moments left no difference.
"""

import argparse
import copy
import logging
import os
import random
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from torch import nn
from torch.utils.data import DataLoader

from lightning_crmt.cli import command_line
from lightning_crmt.encoders import MLP

CONFIGS = Path(__file__).resolve().parent.parent / "examples" / "methods"
#: Those files that are no methods of two views.
OTHERS = ("base", "six_views", "six_views_lipschitz", "umt_teachers", "token_ablation")
METHODS = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem not in OTHERS)


class Resumable(DataLoader[Any]):
    """Batches in the order of a sampler that is given by the epoch; they go on where a checkpoint was saved."""

    given = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        given, self.given = self.given, 0
        for place, indices in enumerate(self.batch_sampler or ()):
            if place >= given:
                self.given = (place + 1) % len(self)
                yield self.collate_fn([self.dataset[i] for i in indices])

    def state_dict(self) -> dict[str, int]:
        """How many batches of the epoch were given."""
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin the next epoch after as many."""
        self.given = state["given"]


class KilledError(Exception):
    """The end of a fit that is interrupted."""


class Kill(Callback):
    """Saves a checkpoint at a step of the optimizer, and kills the fit; stands after all other callbacks."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def _kill(self, trainer: Trainer) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            raise KilledError

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._kill(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._kill(trainer)


class Final(Callback):
    """All that a fit ends with."""

    state: dict[str, Any]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning's own record of its loops counts from the resumption.
        checkpoint = trainer._checkpoint_connector.dump_checkpoint()
        wanted = (
            "state_dict",
            "optimizer_states",
            "lr_schedulers",
            "callbacks",
            "random_state",
            "epoch",
            "global_step",
        )
        self.state = copy.deepcopy({key: checkpoint[key] for key in wanted})
        self.state["numbers"] = {key: value for key, value in trainer.callback_metrics.items() if "val/" in key}


def resumable(datamodule: LightningDataModule) -> None:
    """Make the training loader one that goes on in the middle of an epoch."""
    make = datamodule.train_dataloader

    def train_dataloader() -> Resumable:
        loader = make()
        return Resumable(loader.dataset, batch_size=loader.batch_size, sampler=loader.sampler)

    datamodule.train_dataloader = train_dataloader  # type: ignore[method-assign]


def differences(first: Any, second: Any, at: str = "") -> list[str]:
    """Where two nested states differ in any bit."""
    if isinstance(first, dict) and isinstance(second, dict):
        keys = {**first, **second}
        return [place for key in keys for place in differences(first.get(key), second.get(key), f"{at}/{key}")]
    if isinstance(first, list | tuple) and isinstance(second, list | tuple) and len(first) == len(second):
        pairs = zip(first, second, strict=True)
        return [place for i, pair in enumerate(pairs) for place in differences(*pair, f"{at}/{i}")]
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        same = first.shape == second.shape and first.dtype == second.dtype
        return [] if same and torch.equal(first.nan_to_num(), second.nan_to_num()) else [at]
    return [] if first == second or (first != first and second != second) else [at]


def fit(method: str, seed: int, *callbacks: Callback, path: Path | None = None) -> tuple[dict[str, Any], int]:
    """What a fit ends with, and how many steps it made."""
    words = [
        f"--config={CONFIGS / 'base.yaml'}",
        f"--config={CONFIGS / method}.yaml",
        f"--seed_everything={seed}",
        "--trainer.logger=false",
        "--trainer.enable_progress_bar=false",
        f"--trainer.enable_checkpointing={str(method == 'umt_teachers').lower()}",
        "--trainer.accelerator=cpu",
    ]
    cli, final = command_line(words, run=False), Final()
    for encoder in cli.model.encoders.values():
        if isinstance(encoder, MLP):
            encoder.layers.append(nn.Dropout(0.1))
    resumable(cli.datamodule)
    cli.trainer.callbacks.extend([final, *callbacks])
    seed_everything(seed, verbose=False)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=path)
    return final.state, cli.trainer.global_step


def row(method: str, moments: int, seed: int) -> str:
    """What differed after the interruptions of one method."""
    whole, steps = fit(method, seed)
    drawn = random.Random(seed).sample(range(1, steps), moments)
    found: dict[str, list[int]] = {}
    for moment in sorted(drawn):
        path = Path(f"{method}-{moment}.ckpt").absolute()
        try:
            fit(method, seed, Kill(moment, path))
        except KilledError:
            resumed, _ = fit(method, seed + 1, path=path)
            for place in differences(whole, resumed):
                found.setdefault(place, []).append(moment)
        path.unlink()
    return "; ".join(f"{place} after {where}" for place, where in found.items()) or f"{moments} of {moments} equal"


def main() -> None:
    """Print a row per method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=METHODS, default=METHODS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for method in arguments.only:
            if method == "umt":
                fit("umt_teachers", arguments.seed)
            print(f"{method:<18}{row(method, arguments.moments, arguments.seed)}", flush=True)


if __name__ == "__main__":
    main()
