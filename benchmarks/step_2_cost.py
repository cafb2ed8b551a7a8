# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What step 2 costs, in epochs of step 1.

python benchmarks/step_2_cost.py

Two small convolutional networks with batch normalisation and an orthogonal head, on random images, trained for some
epochs. Seconds of an epoch of step 1 under the Trainer (the median of all but the first), of the pass that keeps scores
and measures the constants, and of ten epochs on the kept scores, medians but for the search; also in epochs of step 1.
"near": classes for which a search ends within 1 % of the exhaustive maximum, in every modality. Processor time of one
thread.
"""

import logging
import time
import warnings
from functools import partial
from statistics import median

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from measuring import Row, benchmark_parser, in_turn, save
from torch.utils.data import DataLoader

from lightning_crmt import CRMTModule, ProbeSearch, keep_scores, reweight
from lightning_crmt.data.module import MultimodalDataset
from lightning_crmt.encoders import ConvNet2d


class EpochTimes(Callback):
    """Seconds of each training epoch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start = time.process_time()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds.append(time.process_time() - self.start)


def measure(classes: int, samples: int, side: int, epochs: int, repeats: int) -> list[Row]:
    """Prints lines of the table for one number of classes."""
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
    rows: list[Row] = []
    exact = None
    for name, constants in (("exhaustive", "estimated"), ("search", ProbeSearch())):
        kept = keep_scores(model, in_order, constants)
        works = {
            "pass": partial(keep_scores, model, in_order, constants),
            "weights": partial(reweight, model.head, *kept),
        }
        turns = in_turn(works, repeats if exact is None else 1, warm_up=0)
        passed, weighted = (turns.milliseconds(work) / 1000 for work in works)
        exact = exact or kept.constants.values
        gap = torch.stack([1 - kept.constants.values[m] / exact[m] for m in inputs]).amax(dim=0)
        print(
            f"{classes:>5}{name:>12}{epoch:>10.2f}{passed:>11.2f}{passed / epoch:>8.2f}"
            f"{weighted:>11.2f}{weighted / epoch:>8.2f}{100 * float((gap <= 0.01).float().mean()):>8.1f} %",
            flush=True,
        )
        if name == "exhaustive":
            passes = f"Pass of step 2 in epochs of step 1, {classes} classes"
            rows.append(Row(passes, passed / epoch))
            weights = f"Ten epochs on the scores in epochs of step 1, {classes} classes"
            rows.append(Row(weights, weighted / epoch))
    return rows


def main() -> None:
    """Print two lines per number of classes."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--classes", nargs="+", type=int, default=[10, 309])
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--side", type=int, default=64, help="of the images, in pixels")
    parser.add_argument("--epochs", type=int, default=6, help="of step 1")
    parser.add_argument("--repeats", type=int, default=5, help="of the pass and of the epochs on the scores")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    print(
        f"{'K':>5}{'constants':>12}{'epoch s':>10}{'pass s':>11}{'epochs':>8}{'weights s':>11}{'epochs':>8}{'near':>10}"
    )
    rows: list[Row] = []
    for classes in arguments.classes:
        rows += measure(classes, arguments.samples, arguments.side, arguments.epochs, arguments.repeats)
    save(rows, arguments.rows)


if __name__ == "__main__":
    main()
