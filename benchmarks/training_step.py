# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What a training step of CRMT costs over the same networks in plain torch, and its head over a linear layer.

python benchmarks/training_step.py

And what a step costs where encoders are 1-Lipschitz by construction. Bare loops without a Trainer, one thread, the same
optimiser, batches of 64; medians of runs that take turns. "plain" is what one would write without this package:
encoders, features concatenated, one linear layer, cross-entropy; beside 1-Lipschitz encoders it is linear layers and
convolutions of the same shapes, with ReLU. The head is one modality with 309 classes and 512 features, forward and
backward, beside ``nn.Linear``, torch's own orthogonal parametrisation, the floor, which is the QR decomposition alone,
and a Cholesky decomposition of the Gram matrix, twice for its errors: the same map for what is well conditioned, which
fails where singular values are 1,000s apart.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from measuring import Row, benchmark_parser, in_turn, save
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from lightning_crmt import CRMTModule, OrthogonalFusion
from lightning_crmt.encoders import MLP, LipschitzCNN, LipschitzMLP, ResNet18
from lightning_crmt.layers import GroupSort, with_fixed_weights

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


def steps(make: Callable[[], Parts], features: int) -> dict[str, Callable[[], None]]:
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

    return {"plain": plain_step, "CRMT": crmt_step}


def one_lipschitz() -> dict[str, tuple[nn.Module, Tensor]]:
    """1-Lipschitz encoders and a batch for each."""
    return {
        "MLP 76-64-64": (LipschitzMLP(76, 64, hidden=(64,)), torch.randn(64, 76)),
        "MLP 76-128-64": (LipschitzMLP(76, 64, hidden=(128,)), torch.randn(64, 76)),
        "CNN, 1 x 28 x 28": (LipschitzCNN(1, 64, (28, 28)), torch.randn(64, 1, 28, 28)),
        "CNN, 3 x 100": (LipschitzCNN(3, 64, [100]), torch.randn(64, 3, 100)),
    }


def encoder_steps(encoder: nn.Module, x: Tensor) -> dict[str, Callable[[], None]]:
    """A step of plain layers of the same shapes, and one of the encoder."""
    layers = with_fixed_weights(encoder).get_submodule("layers").children()
    plain = nn.Sequential(*(nn.ReLU() if isinstance(layer, GroupSort) else layer for layer in layers))
    target = torch.randint(10, (len(x),))

    def step(model: nn.Module) -> Callable[[], None]:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

        def run() -> None:
            optimizer.zero_grad()
            F.cross_entropy(model(x), target).backward()
            optimizer.step()

        return run

    return {name: step(nn.Sequential(e, nn.Linear(64, 10))) for name, e in (("plain", plain), ("1-Lipschitz", encoder))}


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


def main() -> None:
    """Print three tables."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=200, help="of small networks and heads; a tenth of large ones")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    rows, few = [], min(arguments.repeats, max(5, arguments.repeats // 20))
    print(f"{'networks':<20}{'plain, ms':>12}{'CRMT, ms':>12}{'ratio':>8}")
    for name, make, features, repeats in (
        ("MLPs of the demo", small, 64, arguments.repeats),
        ("two ResNet-18s", large, 512, few),
    ):
        turns = in_turn(steps(make, features), repeats, warm_up=1 + (make is small))
        plain, crmt, ratio = *map(turns.milliseconds, turns.seconds), turns.ratio("CRMT", "plain")
        print(f"{name:<20}{plain:>12.2f}{crmt:>12.2f}{ratio:>8.2f}", flush=True)
        rows.append(Row(f"Training step of CRMT over plain torch, {name}", ratio))
    print(f"\n{'encoder':<20}{'plain, ms':>12}{'1-Lip., ms':>12}{'ratio':>8}")
    for name, (encoder, x) in one_lipschitz().items():
        is_table = x.dim() == 2
        turns = in_turn(encoder_steps(encoder, x), max(5, arguments.repeats // (2 if is_table else 5)), warm_up=3)
        plain, constrained, ratio = *map(turns.milliseconds, turns.seconds), turns.ratio("1-Lipschitz", "plain")
        print(f"{name:<20}{plain:>12.2f}{constrained:>12.2f}{ratio:>8.2f}", flush=True)
        about = f"Training step of a 1-Lipschitz {name} over plain layers of its shapes"
        rows.append(Row(about, ratio, goal=1.5 if is_table else 3))
    print(f"\n{'head, K=309, d=512':<20}{'batch':>7}{'ms':>10}{'ratio':>8}")
    for batch in (64, 256):
        turns = in_turn(heads(batch), max(5, arguments.repeats // 5), warm_up=3)
        for name in turns.seconds:
            print(f"{name:<20}{batch:>7}{turns.milliseconds(name):>10.2f}{turns.ratio(name, 'nn.Linear'):>8.1f}")
        about = f"Orthogonal head over its QR decomposition alone, 309 classes, 512 features, batch {batch}"
        rows.append(Row(about, turns.ratio("OrthogonalFusion", "QR alone")))
    save(rows, arguments.rows)


if __name__ == "__main__":
    main()
