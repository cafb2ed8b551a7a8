# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Does any float32 input inside a rigorous certificate change the float32 prediction? And what does the proof cost?

python benchmarks/rigorous.py --probes 100000 --threads 2 --batch-sizes 1 7 64 0

Digits in two views, three kinds of encoders. Probes lie just inside the certified radius, against the gradient of
the margin to the nearest class, or in random directions; each is rounded to float32, drawn back until its distance is
within the radius, and scored by the public forward in batches of every size (0: 2000, as drawn). "sound" is the same
certificate without a slack for rounding: what flips there is what the slack is for. With square orthogonal encoders the
bound is attained: they show it best.
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from lightning_crmt import Certificate, CRMTModule, with_fixed_weights
from lightning_crmt.data import UCIMultiFeatures
from lightning_crmt.data.module import MultimodalDataset
from lightning_crmt.encoders import MLP, LipschitzMLP
from lightning_crmt.layers import OrthogonalLinear

TEMPERATURE = 10


def train(encoders: dict[str, nn.Module], part: MultimodalDataset, epochs: int) -> CRMTModule:
    """A plain loop: cross-entropy with a temperature."""
    model = CRMTModule(encoders, num_classes=10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for index in torch.randperm(len(part.target)).split(100):
            loss = nn.functional.cross_entropy(
                TEMPERATURE * model({m: x[index] for m, x in part.inputs.items()}).logits, part.target[index]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return with_fixed_weights(model.eval())


def flips(
    model: CRMTModule, inputs: dict[str, Tensor], certificate: Certificate, probes: int, seed: int, sizes: list[int]
) -> tuple[int, int]:
    """How many of ``probes`` inside the joint ball change the prediction, for any size of batch, and were tried."""
    generator = torch.Generator().manual_seed(seed)
    radius = certificate.radius().double()
    usable = ((radius > 0) & radius.isfinite()).nonzero().flatten()
    flat = torch.cat(list(inputs.values()), dim=1)
    rival = certificate.nearest_class()
    leaves = {m: x.clone().requires_grad_(True) for m, x in inputs.items()}
    logits = model(leaves).logits
    margin = logits.gather(1, certificate.prediction[:, None]) - logits.gather(1, rival[:, None])
    downhill = -torch.cat(torch.autograd.grad(margin.sum(), list(leaves.values())), dim=1)
    changed = tried = 0
    batch = 2000
    for start in tqdm(range(0, probes, batch), leave=False):
        rows = usable[torch.arange(start, min(start + batch, probes)) % len(usable)]
        # From straight downhill to straight anywhere.
        share = torch.rand(len(rows), 1, generator=generator) ** 4
        share = share * (torch.rand(len(rows), 1, generator=generator) < 0.7)
        noise = torch.randn(len(rows), flat.shape[1], generator=generator)
        unit = nn.functional.normalize(downhill[rows].double(), dim=1)
        direction = unit * (1 - share) + share * nn.functional.normalize(noise.double(), dim=1)
        direction = nn.functional.normalize(direction, dim=1)
        length = radius[rows, None].clone()
        for _ in range(60):
            probe = (flat[rows].double() + length * direction).float()
            distance = (probe.double() - flat[rows].double()).norm(dim=1, keepdim=True)
            outside = distance > radius[rows, None] * (1 - 1e-15)
            if not outside.any():
                break
            length = torch.where(outside, length * (1 - 1e-7), length)
        probe, rows = probe[~outside.flatten()], rows[~outside.flatten()]
        with torch.no_grad():
            changes = torch.zeros(len(rows), dtype=torch.bool)
            for size in sizes:
                logits = []
                for piece in probe.split(size or len(probe)):
                    parts = piece.split([x.shape[1] for x in inputs.values()], dim=1)
                    logits.append(model(dict(zip(inputs, parts, strict=True))).logits)
                changes |= torch.cat(logits).argmax(dim=1) != certificate.prediction[rows]
        changed += int(changes.sum())
        tried += len(rows)
    return changed, tried


def main() -> None:
    """Print one row per kind of encoder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--probes", type=int, default=100_000)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    kinds = {
        "orthogonal": {"kar": OrthogonalLinear(64, 64), "zer": OrthogonalLinear(47, 47)},
        "MLP": {m: MLP(d, 64, hidden=(128,)) for m, d in {"fou": 76, "mor": 6}.items()},
        "LipschitzMLP": {m: LipschitzMLP(d, 64, hidden=(128,)) for m, d in {"fou": 76, "mor": 6}.items()},
    }
    print(f"{'encoders':<14}{'clean':>8}{'median radius':>15}{'slack, %':>10}{'sound flips':>20}{'rigorous flips':>20}")
    for kind, encoders in kinds.items():
        data = UCIMultiFeatures(views=tuple(encoders))
        data.setup()
        test = data.parts["test"]
        model = train(encoders, data.parts["train"], arguments.epochs)
        sound = model.certify(test.inputs)
        rigorous = model.certify(test.inputs, level="rigorous")
        clean = float((sound.prediction == test.target).float().mean())
        median = float(sound.radius().double().median())
        cost = 100 * (1 - float(rigorous.radius().median()) / median) if median else math.nan
        row = f"{kind:<14}{clean:>8.3f}{median:>15.4f}{cost:>10.3f}"
        for certificate in (sound, rigorous):
            changed, tried = flips(model, test.inputs, certificate, arguments.probes, 1, arguments.batch_sizes)
            row += f"{f'{changed} of {tried}':>20}"
        print(row)


if __name__ == "__main__":
    main()
