# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""How much faster are two processes than one, each on one thread, where two cores are free?

python benchmarks/two_processes.py

Epochs of training, and of validation under PGD and with sound certificates, of two small convolutional nets on random
pictures of 32 x 32 in batches of 32, by one process and by two (``ddp_fork``, gloo), which share the same samples. Wall
clock between the hooks of the Trainer; fits take turns, and the median over all epochs but each first one is shown.
Each process bounds the networks for itself, in its first batch of a validation epoch: seconds here, where an epoch has
eight batches. So validation is timed after that batch, per batch of either process. On a busy machine the figure says
how busy it is.
"""

import json
import logging
import os
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from measuring import Row, benchmark_parser, save
from torch import nn
from torch.utils.data import DataLoader

from lightning_crmt import CRMTModule, LinearFusion
from lightning_crmt.attacks import PGD, Budget
from lightning_crmt.callbacks import AdversarialRobustness, CertifiedRobustness
from lightning_crmt.data.module import MultimodalDataset


class Clock(Callback):
    """Writes the seconds of each epoch to a file at the end of the fit, from the first process."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.seconds: dict[str, list[float]] = {"training": [], "validation": []}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds["training"].append(time.perf_counter() - self.start)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx == 0:  # the observers come before
            self.start, self.batches = time.perf_counter(), 0
        else:
            self.batches += trainer.world_size

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds["validation"].append((time.perf_counter() - self.start) / self.batches)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self.file.write_text(json.dumps(self.seconds))


def encoder(channels: int) -> nn.Module:
    """(B, channels, 32, 32) to (B, 64), of layers that have a bound."""
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(64, 64, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 8 * 8, 64),
    )  # fmt: skip


def fit(processes: int, samples: int, epochs: int, folder: Path) -> dict[str, list[float]]:
    """Seconds of training, and of a batch of validation, by epoch."""
    torch.manual_seed(0)
    channels = {"image": 3, "audio": 1}
    model = CRMTModule({name: encoder(c) for name, c in channels.items()}, num_classes=10, head=LinearFusion)
    target = torch.randint(10, (samples,))
    inputs = {name: torch.randn(samples, c, 32, 32) for name, c in channels.items()}
    part = slice(samples // 2)
    held_out = MultimodalDataset({name: value[part] for name, value in inputs.items()}, target[part])
    loaders: list[DataLoader] = [
        DataLoader(MultimodalDataset(inputs, target), batch_size=32, shuffle=True),
        DataLoader(held_out, batch_size=32),
    ]
    measured: list[Callback] = [AdversarialRobustness({"pgd": PGD(Budget(0.1), steps=5)}), CertifiedRobustness([0.1])]
    file = folder / "seconds.json"
    Trainer(
        max_epochs=epochs, callbacks=[*measured, Clock(file)], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, accelerator="cpu", devices=processes,
        strategy="auto" if processes == 1 else "ddp_fork", num_sanity_val_steps=0, default_root_dir=folder,
    ).fit(model, *loaders)  # fmt: skip
    seconds: dict[str, list[float]] = json.loads(file.read_text())
    return {name: each[1:] for name, each in seconds.items()}


def main() -> None:
    """Print a line for training and one for validation."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=3, help="of each fit")
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    for name in ("lightning.pytorch", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    found: dict[int, dict[str, list[float]]] = {1: {}, 2: {}}
    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(arguments.turns):
            for processes, of in found.items():
                for name, seconds in fit(processes, arguments.samples, arguments.epochs, Path(scratch)).items():
                    of.setdefault(name, []).extend(seconds)
    rows = []
    print(f"{'epoch or batch of':<18}{'one, s':>10}{'two, s':>10}{'ratio':>8}")
    for name in found[1]:
        one, two = (median(of[name]) for of in found.values())
        print(f"{name:<18}{one:>10.2f}{two:>10.2f}{one / two:>8.2f}")
        about = f"Speed of two processes over one, {name}"
        about += " after its first batch" * (name == "validation")
        rows.append(Row(about, one / two, goal=1.7, at_least=True))
    save(rows, arguments.rows)


if __name__ == "__main__":
    main()
