# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Does any float32 input inside a rigorous certificate change the float32 prediction? And what does the proof cost?

python benchmarks/rigorous.py --probes 100000

Digits in two views, three kinds of encoders. Probes lie just inside the certified radius, against the gradient of
the margin to the nearest class, or in random directions; each is rounded to float32, drawn back until its distance is
within the radius, and scored by the public forward. "sound" is the same certificate without a slack for rounding: what
flips there is what the slack is for. With square orthogonal encoders the bound is attained: they show it best.
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from lightning_crmt import Certificate, FusionOutput, OrthogonalFusion, certify
from lightning_crmt.data import UCIMultiFeatures
from lightning_crmt.data.module import MultimodalDataset
from lightning_crmt.encoders import MLP, LipschitzMLP
from lightning_crmt.fusion import LinearFusion
from lightning_crmt.layers import OrthogonalLinear, with_fixed_weights
from lightning_crmt.lipschitz import ForwardError, LipschitzConstants, encoder_bounds, forward_error
from lightning_crmt.lipschitz.verified import UNDERFLOW, UNIT_ROUNDOFF, gamma

UP = 1 + 2.0**-40  # over the rounding of the double precision arithmetic here
TEMPERATURE = 10


class Late(nn.Module):
    """Encoders by name and a head."""

    def __init__(self, encoders: dict[str, nn.Module]) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        self.head = OrthogonalFusion({m: encoder.out_features for m, encoder in encoders.items()}, num_classes=10)

    def forward(self, inputs: dict[str, Tensor]) -> FusionOutput:
        return self.head({name: encoder(inputs[name]) for name, encoder in self.encoders.items()})


def rounding(
    head: LinearFusion, lipschitz: LipschitzConstants, errors: dict[str, ForwardError]
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Slack of every margin ``(B, K, K)``, and the sensitivities with what rounding adds to them, ``{m: (K, K)}``.

    With :math:`e^m(r) = \alpha^m + \beta^m r` the error of the features, :math:`w = a d` the class weights, t terms in
    a logit, and :math:`\|\hat z^m\| \le \mu^m + \nu^m r`, a computed margin at distance :math:`r^m` is at least

    .. math:: \hat m_{pj} - \sum_m \left( 2 \|\Delta w^m\| \alpha^m + 2 \gamma_t (\|w_p^m\| + \|w_j^m\|) \mu^m \right)
              - 2 \gamma_t (|b_p| + |b_j|)
              - \sum_m \left( \|\Delta w^m\| (L_m + \beta^m) + \gamma_t (\|w_p^m\| + \|w_j^m\|) \nu^m \right) r^m .
    """
    dtype = head.bias.dtype
    terms = max(head.in_features.values()) + len(head.in_features) + 2
    relative = gamma(terms, UNIT_ROUNDOFF[dtype])
    weights = head.integration_weights
    bias = head.bias.detach().cpu().double().abs()
    slack = 2 * relative * (bias[:, None] + bias[None, :]) + 64 * terms * len(weights) * UNDERFLOW[dtype]
    slopes = {}
    for name, directions in head.directions.items():
        # The exact products, up to double precision: float32's do not round here.
        rows = weights[name].detach().cpu().double()[:, None] * directions.detach().cpu().double()
        norms = rows.norm(dim=1)
        both = (norms[:, None] + norms[None, :]) * UP
        apart = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist") * UP + both * 2.0**-50
        error = errors[name]
        slack = slack + 2 * (apart * error.at[:, None, None] + relative * both * error.magnitude[:, None, None])
        slopes[name] = (apart * (lipschitz.values[name].double() + error.growth) + relative * both * error.reach) * UP
    return slack * UP, slopes


def rigorous_certificate(model: Late, inputs: dict[str, Tensor]) -> Certificate:
    """What ``certify`` is to return at level rigorous."""
    lipschitz = encoder_bounds(model.encoders, level="rigorous")
    errors = {name: forward_error(encoder, inputs[name]) for name, encoder in model.encoders.items()}
    with torch.no_grad():
        logits = model(inputs).logits.cpu()
        slack, slopes = rounding(model.head, lipschitz, errors)
    prediction = logits.argmax(dim=1)
    logits = logits.double()
    margins = logits.gather(1, prediction[:, None]) - logits
    rows = torch.arange(len(logits))
    margins = margins * torch.where(margins > 0, 1 / UP, UP) - slack[rows, prediction]
    own = prediction[:, None] == torch.arange(logits.shape[1])
    margins = margins.masked_fill(own, 0)
    return Certificate(prediction, margins, {m: s[prediction] for m, s in slopes.items()}, lipschitz.soundness)


def train(encoders: dict[str, nn.Module], part: MultimodalDataset, epochs: int) -> Late:
    """A plain loop: cross-entropy with a temperature."""
    model = Late(encoders)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for index in torch.randperm(len(part.target)).split(100):
            loss = nn.functional.cross_entropy(
                TEMPERATURE * model({m: x[index] for m, x in part.inputs.items()}).logits, part.target[index]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    # Fixed numbers from here on: at level rigorous, none may be computed anew.
    fixed = LinearFusion(model.head.in_features, num_classes=10)
    with torch.no_grad():
        for name, rows in model.head.class_weights.items():
            fixed.rows[name].copy_(rows)
        fixed.bias.copy_(model.head.bias)
    model.head = fixed
    return with_fixed_weights(model.eval())


def flips(model: Late, inputs: dict[str, Tensor], certificate: Certificate, probes: int, seed: int) -> tuple[int, int]:
    """How many of ``probes`` inside the joint ball change the prediction, and how many were tried."""
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
            parts = dict(zip(inputs, probe.split([x.shape[1] for x in inputs.values()], dim=1), strict=True))
            found = model(parts).logits.argmax(dim=1)
        changed += int((found != certificate.prediction[rows]).sum())
        tried += len(rows)
    return changed, tried


def main() -> None:
    """Print one row per kind of encoder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--probes", type=int, default=100_000)
    parser.add_argument("--epochs", type=int, default=60)
    arguments = parser.parse_args()
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
        with torch.no_grad():
            output = model(test.inputs)
        sound = certify(output, model.head, encoder_bounds(model.encoders))
        rigorous = rigorous_certificate(model, test.inputs)
        clean = float((sound.prediction == test.target).float().mean())
        median = float(sound.radius().double().median())
        cost = 100 * (1 - float(rigorous.radius().median()) / median) if median else math.nan
        row = f"{kind:<14}{clean:>8.3f}{median:>15.4f}{cost:>10.3f}"
        for certificate in (sound, rigorous):
            changed, tried = flips(model, test.inputs, certificate, arguments.probes, seed=1)
            row += f"{f'{changed} of {tried}':>20}"
        print(row)


if __name__ == "__main__":
    main()
