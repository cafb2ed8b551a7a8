# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What does measuring robustness in every validation epoch cost?

python benchmarks/validation_epoch.py

``Trainer.validate`` with and without ``CertifiedRobustness``, which take turns: sound certificates of two views of UCI
Multiple Features, and of random pictures and spectrograms of 32 x 32 in batches of 64, for 1-Lipschitz encoders and
plain ones. "logging": with a callback that logs as many constant numbers and does nothing else, which is what Lightning
takes for them. Processor time of one thread. Weights change before each, as they do in a fit: nothing is known of them
yet.

These epochs are short, 20 to 130 ms without certificates, so what is paid once in an epoch decides their ratio: bounds
of the networks, and 60 numbers for Lightning. Each is measured with the same batches four times as well: the time of
those that were added says what a long epoch costs, and has the goal; what is left of a short one is paid once.
"""

import logging
import warnings
from collections.abc import Callable

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from measuring import Row, Turns, benchmark_parser, in_turn, save
from torch import nn
from torch.utils.data import DataLoader

from lightning_crmt import CRMTModule, LinearFusion
from lightning_crmt.callbacks import CertifiedRobustness
from lightning_crmt.data import UCIMultiFeatures
from lightning_crmt.data.module import MultimodalDataset
from lightning_crmt.encoders import MLP, LipschitzCNN, LipschitzMLP

RADII = [0.1, 0.2, 0.3]
#: How many times the samples a long epoch has.
LONG = 4


def views(kind: type[nn.Module]) -> tuple[CRMTModule, DataLoader]:
    """Two views of digits: 400 samples."""
    data = UCIMultiFeatures(views=("fou", "mor"), seed=0)
    data.setup("fit")
    encoders = {"fou": kind(76, 64, hidden=(64,)), "mor": kind(6, 6, hidden=())}
    return CRMTModule(encoders, num_classes=10, head=LinearFusion), data.val_dataloader()


def convolution(channels: int) -> nn.Module:
    """(B, channels, 32, 32) to (B, 64), of layers that have a bound."""
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 64, 3, stride=2, padding=1),
        nn.ReLU(), nn.Flatten(), nn.Linear(64 * 64, 64),
    )  # fmt: skip


def pictures(make: Callable[[int], nn.Module]) -> tuple[CRMTModule, DataLoader]:
    """Random ones: 320 samples."""
    channels = {"image": 3, "audio": 1}
    inputs = {name: torch.randn(320, count, 32, 32) for name, count in channels.items()}
    encoders = {name: make(count) for name, count in channels.items()}
    loader = DataLoader(MultimodalDataset(inputs, torch.randint(10, (320,))), batch_size=64)
    return CRMTModule(encoders, num_classes=10, head=LinearFusion), loader


MODELS: dict[str, Callable[[], tuple[CRMTModule, DataLoader]]] = {
    "mfeat, LipschitzMLP": lambda: views(LipschitzMLP),
    "mfeat, MLP": lambda: views(MLP),
    "pictures, LipschitzCNN": lambda: pictures(lambda count: LipschitzCNN(count, 64, input_size=(32, 32))),
    "pictures, convolutions": lambda: pictures(convolution),
}


class Logging(Callback):
    """Logs numbers that cost nothing to find."""

    def __init__(self, names: list[str]) -> None:
        self.numbers = dict.fromkeys(names, 0.0)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log_dict(self.numbers, sync_dist=True, add_dataloader_idx=False)


def measure(model: CRMTModule, loader: DataLoader, repeats: int) -> tuple[Turns, int]:
    """All ways to validate, and how many numbers the callback logs."""
    batches = list(loader)

    def validation(callback: Callback | None, times: int = 1) -> tuple[Trainer, Callable[[], None]]:
        trainer = Trainer(
            callbacks=callback, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, accelerator="cpu",
        )  # fmt: skip

        repeated: DataLoader = DataLoader(batches * times, batch_size=None)

        def validate() -> None:
            with torch.no_grad():
                for weight in model.encoders.parameters():
                    weight.mul_(1.0001)
            trainer.validate(model, repeated, verbose=False)

        return trainer, validate

    plain, without = validation(None)
    certifying, certify = validation(CertifiedRobustness(RADII))
    without()
    certify()
    names = sorted(certifying.callback_metrics.keys() - plain.callback_metrics.keys())
    works = {
        "without": without,
        "with": certify,
        "logging": validation(Logging(names))[1],
        "without, long": validation(None, LONG)[1],
        "with, long": validation(CertifiedRobustness(RADII), LONG)[1],
    }
    return in_turn(works, repeats), len(names)


def shares(turns: Turns) -> tuple[float, float]:
    """What a sample that is added costs with the callback, over without; and milliseconds that it pays once."""
    seconds = {name: np.array(each) for name, each in turns.seconds.items()}
    added = {name: (seconds[f"{name}, long"] - seconds[name]) / (LONG - 1) for name in ("with", "without")}
    once = seconds["with"] - added["with"] - (seconds["without"] - added["without"])
    return float(np.median(added["with"] / added["without"])), 1e3 * float(np.median(once))


def main() -> None:
    """Print a line per model."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    columns = (
        f"{'without, ms':>12}{'with, ms':>12}{'ratio':>8}{'logging, ms':>14}{'ratio':>8}{'added':>8}{'once, ms':>10}"
    )
    print(f"{'':<26}{columns}")
    for name, make in MODELS.items():
        turns, numbers = measure(*make(), arguments.repeats)
        ratio, logged = turns.ratio("with", "without"), turns.ratio("logging", "without")
        times = [turns.milliseconds(work) for work in ("without", "with", "logging")]
        added, once = shares(turns)
        print(
            f"{name:<26}{times[0]:>12.1f}{times[1]:>12.1f}{ratio:>8.2f}{times[2]:>14.1f}{logged:>8.2f}{added:>8.2f}"
            f"{once:>10.0f}",
            flush=True,
        )
        about = f"Validation with CertifiedRobustness over without, {name}"
        note = f"and {once:.0f} ms once in an epoch, {times[2] - times[0]:.0f} of it to log {numbers} numbers"
        rows.append(Row(f"{about}, each further sample", added, goal=3, note=note))
        rows.append(Row(f"{about}, an epoch of {times[0]:.0f} ms", ratio))
    save(rows, arguments.rows)


if __name__ == "__main__":
    main()
