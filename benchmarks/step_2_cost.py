# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What step 2 costs, in epochs of step 1.

python benchmarks/step_2_cost.py

Two small convolutional networks with batch normalisation and an orthogonal head, on random images, trained for some
epochs. Seconds of an epoch of step 1 under the Trainer (the median of all but the first), of the pass that keeps scores
and measures the constants, and of ten epochs on the kept scores; the last two also in epochs of step 1. "near": classes
for which a search ends within 1 % of the exhaustive maximum, in every modality.
"""

import argparse
import logging
import time
import warnings
from statistics import median

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from lightning_crmt import CRMTModule, ProbeSearch, keep_scores, reweight
from lightning_crmt.data.module import MultimodalDataset
from lightning_crmt.encoders import ConvNet2d


class EpochTimes(Callback):
    """Seconds of each training epoch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds.append(time.perf_counter() - self.start)


def measure(classes: int, samples: int, side: int, epochs: int) -> str:
    """Lines of the table for one number of classes."""
    torch.manual_seed(0)
    width = max(64, classes)
    model = CRMTModule({"image": ConvNet2d(3, width), "audio": ConvNet2d(1, width)}, num_classes=classes)
    target = torch.randint(classes, (samples,))
    inputs = {
        name: torch.randn(classes, channels, side, side)[target] + 0.5 * torch.randn(samples, channels, side, side)
        for name, channels in {"image": 3, "audio": 1}.items()
    }
    loader = DataLoader(MultimodalDataset(inputs, target), batch_size=64, shuffle=True)
    times = EpochTimes()
    Trainer(
        max_epochs=epochs, callbacks=[times], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu",
    ).fit(model, loader)  # fmt: skip
    epoch = median(times.seconds[1:])
    in_order = [({name: value[rows] for name, value in inputs.items()}, target[rows]) for rows in
                torch.arange(samples).split(64)]  # fmt: skip
    lines, exact = [], None
    for name, constants in (("exhaustive", "estimated"), ("search", ProbeSearch())):
        start = time.perf_counter()
        kept = keep_scores(model, in_order, constants)
        middle = time.perf_counter()
        reweight(model.head, *kept)
        end = time.perf_counter()
        exact = exact or kept.constants.values
        gap = torch.stack([1 - kept.constants.values[m] / exact[m] for m in inputs]).amax(dim=0)
        lines.append(
            f"{classes:>5}{name:>12}{epoch:>10.2f}{middle - start:>11.2f}{(middle - start) / epoch:>8.2f}"
            f"{end - middle:>11.2f}{(end - middle) / epoch:>8.2f}{100 * float((gap <= 0.01).float().mean()):>8.1f} %"
        )
    return "\n".join(lines)


def main() -> None:
    """Print two lines per number of classes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", nargs="+", type=int, default=[10, 309])
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--side", type=int, default=64, help="of the images, in pixels")
    parser.add_argument("--epochs", type=int, default=6, help="of step 1")
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    print(
        f"{'K':>5}{'constants':>12}{'epoch s':>10}{'pass s':>11}{'epochs':>8}{'weights s':>11}{'epochs':>8}{'near':>10}"
    )
    for classes in arguments.classes:
        print(measure(classes, arguments.samples, arguments.side, arguments.epochs), flush=True)


if __name__ == "__main__":
    main()
