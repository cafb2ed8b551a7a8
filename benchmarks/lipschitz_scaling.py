# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Lipschitz estimation by search against the exhaustive pass: time, and how far below its maximum each class ends.

python benchmarks/lipschitz_scaling.py

Two modalities, each a smooth random prototype per class, built of parts that classes share, with clutter and noise;
encoders trained for some epochs with a late-fusion head, and untrained ones. Both passes see the same model and the
same batches, one after the other, on one thread; seconds are of processor time. A class is near if what the search
finds for it is within 1 % of the exhaustive maximum, in every modality.

The gain grows with the classes, and with the samples, as what is learnt from the pilots is paid once. It is least where
a forward pass costs as much as a backward pass, as with linear layers only: most of the time goes into the probes then.
For sizes as of large data sets: --samples 22000 16384, and patience for the exhaustive pass.
"""

import argparse
import time

import torch
from torch import Tensor, nn

from lightning_crmt import FusionOutput, LinearFusion, ProbeSearch, estimate_lipschitz

SIDE = 28


def conv(channels: int) -> nn.Module:
    """Three strided convolutions and a linear layer."""
    layers: list[nn.Module] = []
    for before, after in [(channels, 8), (8, 16), (16, 32)]:
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 4 * 4, 64))


def mlp(channels: int) -> nn.Module:
    """Three linear layers."""
    sizes = [(channels * SIDE * SIDE, 256), (256, 256)]
    layers = [layer for before, after in sizes for layer in (nn.Linear(before, after), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(256, 64))


class Classifier(nn.Module):
    """An encoder per modality and a late-fusion head."""

    def __init__(self, encoder: str, num_classes: int) -> None:
        super().__init__()
        make = {"conv": conv, "mlp": mlp}[encoder]
        self.encoders = nn.ModuleDict({"image": make(3), "audio": make(1)})
        self.head = LinearFusion({"image": 64, "audio": 64}, num_classes)

    def forward(self, inputs: dict[str, Tensor]) -> FusionOutput:
        """Joint logits and uni-modal scores."""
        output: FusionOutput = self.head({name: encoder(inputs[name]) for name, encoder in self.encoders.items()})
        return output


def data(samples: int, num_classes: int, generator: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
    """Images that mix a class prototype, built of shared parts, with smooth clutter, and noise."""

    def smooth(count: int, channels: int) -> Tensor:
        coarse = torch.randn(count, channels, 6, 6, generator=generator)
        return nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic", align_corners=False)

    labels = torch.randint(num_classes, (samples,), generator=generator)
    inputs = {}
    for name, channels, noise in [("image", 3, 0.3), ("audio", 1, 0.5)]:
        weights = torch.randn(num_classes, 24, generator=generator) / 24**0.5
        prototypes = torch.einsum("kp,pchw->kchw", weights, smooth(24, channels))
        contrast = 0.5 + torch.rand(samples, 1, 1, 1, generator=generator)
        clean = contrast * (prototypes[labels] + 0.6 * smooth(samples, channels))
        inputs[name] = clean + noise * torch.randn(clean.shape, generator=generator)
    return inputs, labels


def train(model: nn.Module, inputs: dict[str, Tensor], labels: Tensor, epochs: int) -> float:
    """Train, and return the accuracy during the last epoch."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    right = 0
    for _ in range(epochs):
        right = 0
        for rows in torch.randperm(len(labels)).split(64):
            output = model({name: value[rows] for name, value in inputs.items()})
            loss = nn.functional.cross_entropy(output.logits, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            right += int((output.logits.argmax(dim=1) == labels[rows]).sum())
    return right / len(labels)


def compare(encoder: str, num_classes: int, epochs: int, samples: int, seed: int, search: ProbeSearch) -> str:
    """One line of the table."""
    torch.manual_seed(seed)
    inputs, labels = data(samples, num_classes, torch.Generator().manual_seed(seed))
    model = Classifier(encoder, num_classes)
    accuracy = train(model, inputs, labels, epochs) if epochs else float("nan")
    batches = [{n: v[rows] for n, v in inputs.items()} for rows in torch.arange(samples).split(64)]
    estimate_lipschitz(model, batches[:1])
    start = time.process_time()
    exhaustive = estimate_lipschitz(model, batches)
    middle = time.process_time()
    found = estimate_lipschitz(model, batches, search=search)
    end = time.process_time()
    gap = torch.stack([1 - found.values[name] / exhaustive.values[name] for name in inputs]).amax(dim=0)
    speedup = (middle - start) / (end - middle)
    return (
        f"{encoder:>8}{epochs:>7}{accuracy:>10.2f}{num_classes:>5}{samples:>7}{seed:>5}"
        f"{middle - start:>14.1f}{end - middle:>9.1f}{speedup:>9.1f}{100 * float(gap.max()):>11.2f} %"
        f"{100 * float((gap <= 0.01).float().mean()):>8.1f} %"
    )


def main() -> None:
    """Print a line per configuration."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", default=["conv", "mlp"])
    parser.add_argument("--classes", nargs="+", type=int, default=[31, 309])
    parser.add_argument("--epochs", nargs="+", type=int, default=[8, 0], help="0: untrained")
    parser.add_argument("--samples", nargs="+", type=int, default=[16384, 8192], help="one for each of --classes")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--probes", type=int, help="from the number of classes if not given")
    parser.add_argument("--pilots", type=int, default=ProbeSearch.pilots)
    parser.add_argument("--caution", type=float, default=ProbeSearch.caution)
    parser.add_argument("--pool", type=int, default=ProbeSearch.pool)
    arguments = parser.parse_args()
    if len(arguments.samples) != len(arguments.classes):
        parser.error(f"give as many --samples as --classes, got {arguments.samples} and {arguments.classes}")
    torch.set_num_threads(1)
    search = ProbeSearch(
        probes=arguments.probes,
        pilots=arguments.pilots,
        caution=arguments.caution,
        pool=arguments.pool,
    )
    print(search)
    print(
        f"{'encoder':>8}{'epochs':>7}{'accuracy':>10}{'K':>5}{'N':>7}{'seed':>5}{'exhaustive s':>14}{'search s':>9}"
        f"{'speedup':>9}{'worst gap':>13}{'near':>10}"
    )
    for epochs in arguments.epochs:
        # Untrained encoders, for which the search is not made, are shown with the fewest classes.
        sizes = sorted(zip(arguments.classes, arguments.samples, strict=True))
        for num_classes, samples in sizes if epochs else sizes[:1]:
            for encoder in arguments.encoders:
                for seed in arguments.seeds:
                    print(compare(encoder, num_classes, epochs, samples, seed, search), flush=True)


if __name__ == "__main__":
    main()
