# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What a training step of CRMT costs over the same networks in plain torch, and its head over a linear layer.

python benchmarks/training_step.py

Bare loops without a Trainer, one thread, the same optimiser, batches of 64; medians of runs that take turns. "plain" is
what one would write without this package: encoders, features concatenated, one linear layer, cross-entropy. The head is
one modality with 309 classes and 512 features, forward and backward, beside ``nn.Linear``, torch's own orthogonal
parametrisation, the floor, which is the QR decomposition alone, and a Cholesky decomposition of the Gram matrix, twice
for its errors: the same map for what is well conditioned, which fails where singular values are 1,000s apart.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from lightning_crmt import CRMTModule, OrthogonalFusion
from lightning_crmt.encoders import MLP, ResNet18

#: Encoders and a batch, by modality.
Parts: TypeAlias = tuple[dict[str, nn.Module], dict[str, Tensor]]


def small() -> Parts:
    """The networks of the demo."""
    shapes = {"fou": 76, "mor": 6}
    encoders: dict[str, nn.Module] = {name: MLP(size, 64, hidden=(128,)) for name, size in shapes.items()}
    return encoders, {name: torch.randn(64, size) for name, size in shapes.items()}


def large() -> Parts:
    """Two ResNet-18s, for small pictures, as two cores have to do."""
    channels = {"image": 3, "audio": 1}
    encoders: dict[str, nn.Module] = {name: ResNet18(count) for name, count in channels.items()}
    return encoders, {name: torch.randn(64, count, 64, 64) for name, count in channels.items()}


class Plain(nn.Module):
    """Encoders and a linear layer on all features."""

    def __init__(self, encoders: dict[str, nn.Module], features: int, classes: int) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        self.head = nn.Linear(features * len(encoders), classes)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        logits: Tensor = self.head(torch.cat([encoder(inputs[name]) for name, encoder in self.encoders.items()], dim=1))
        return logits


def steps(
    make: Callable[[], tuple[dict[str, nn.Module], dict[str, Tensor]]], features: int
) -> list[Callable[[], None]]:
    """A plain step and one of CRMT."""
    encoders, inputs = make()
    target = torch.randint(10, (64,))
    plain = Plain(encoders, features, 10)
    model = CRMTModule(make()[0], num_classes=10, in_features=dict.fromkeys(inputs, features))
    optimizers = [torch.optim.SGD(each.parameters(), lr=1e-3, momentum=0.9) for each in (plain, model)]

    def plain_step() -> None:
        optimizers[0].zero_grad()
        F.cross_entropy(plain(inputs), target).backward()
        optimizers[0].step()

    def crmt_step() -> None:
        optimizers[1].zero_grad()
        taken, classes = model.training_batch((inputs, target))
        model.crmt_loss(model(taken), classes).backward()
        optimizers[1].step()

    return [plain_step, crmt_step]


def heads(batch: int, classes: int = 309, size: int = 512) -> dict[str, Callable[[], None]]:
    """Forward and backward of heads on the same features."""
    features = torch.randn(batch, size, requires_grad=True)
    linear, head = nn.Linear(size, classes), OrthogonalFusion({"m": size}, classes)
    torchs = orthogonal(nn.Linear(size, classes))
    raw = nn.Parameter(torch.randn(size, classes))

    def by_cholesky() -> Tensor:
        rows = raw.mT
        for _ in range(2):
            rows = torch.linalg.solve_triangular(torch.linalg.cholesky(rows @ rows.mT), rows, upper=False)
        return rows

    return {
        "nn.Linear": lambda: linear(features).sum().backward(),
        "OrthogonalFusion": lambda: head({"m": features}).logits.sum().backward(),
        "torch's orthogonal": lambda: torchs(features).sum().backward(),
        "QR alone": lambda: torch.linalg.qr(raw).Q.sum().backward(),
        "Cholesky, twice": lambda: by_cholesky().sum().backward(),
    }


def timed(runs: list[Callable[[], None]], repeats: int) -> list[float]:
    """Median milliseconds of each; they take turns."""
    times: list[list[float]] = [[] for _ in runs]
    for repeat in range(repeats + 3):
        for run, found in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            if repeat >= 3:
                found.append(1000 * (time.perf_counter() - start))
    return [median(found) for found in times]


def main() -> None:
    """Print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=200, help="of small networks and heads; a tenth of large ones")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(f"{'networks':<20}{'plain, ms':>12}{'CRMT, ms':>12}{'ratio':>8}")
    for name, make, features, repeats in (
        ("MLPs of the demo", small, 64, arguments.repeats),
        ("two ResNet-18s", large, 512, max(3, arguments.repeats // 20)),
    ):
        plain, crmt = timed(steps(make, features), repeats)
        print(f"{name:<20}{plain:>12.2f}{crmt:>12.2f}{crmt / plain:>8.2f}")
    print(f"\n{'head, K=309, d=512':<20}{'batch':>7}{'ms':>10}{'ratio':>8}")
    for batch in (64, 256):
        runs = heads(batch)
        found = timed(list(runs.values()), max(3, arguments.repeats // 5))
        for name, each in zip(runs, found, strict=True):
            print(f"{name:<20}{batch:>7}{each:>10.2f}{each / found[0]:>8.1f}")


if __name__ == "__main__":
    main()
