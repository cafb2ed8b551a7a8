# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Certificates that are wrong on purpose, by a known share, and whether ``verify_certificate`` finds them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fuzzing import exact
from fuzzing.exact import Reference, Threat
from fuzzing.nets import Draw, with_features
from lightning_crmt import (
    Certificate,
    CertificateViolation,
    CRMTModule,
    LinearFusion,
    Soundness,
    verify_certificate,
)
from lightning_crmt.encoders import MLP, ConvNet1d, LipschitzMLP

Inputs = dict[str, Tensor]
#: Classes of every model here.
CLASSES = 3


def linear(draw: Draw, name: str) -> tuple[nn.Module, Tensor]:
    """One layer."""
    return nn.Linear(6, 4), torch.randn(1, 6)


def one_dimensional(draw: Draw, name: str) -> tuple[nn.Module, Tensor]:
    """Of one number."""
    net = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 6), nn.ReLU())
    return with_features(net, (6,), 4), torch.randn(1, 1)


def small_relu(draw: Draw, name: str) -> tuple[nn.Module, Tensor]:
    """Few ReLUs."""
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4)), torch.randn(1, 2)


def mlp(draw: Draw, name: str) -> tuple[nn.Module, Tensor]:
    """Two hidden layers."""
    return MLP(12, 4, hidden=(24, 24)), torch.randn(1, 12)


def conv(draw: Draw, name: str) -> tuple[nn.Module, Tensor]:
    """Sequences."""
    return ConvNet1d(2, 4, channels=(6, 8)), torch.randn(1, 2, 16)


def lipschitz(draw: Draw, name: str) -> tuple[nn.Module, Tensor]:
    """1-Lipschitz by construction."""
    return LipschitzMLP(12, 4, hidden=(16, 16)), torch.randn(1, 12)


KINDS: dict[str, Callable[[Draw, str], tuple[nn.Module, Tensor]]] = {
    "linear": linear,
    "one-dimensional": one_dimensional,
    "small ReLU": small_relu,
    "MLP": mlp,
    "conv": conv,
    "LipschitzMLP": lipschitz,
}


def build(kind: str, modalities: int, seed: int, count: int) -> tuple[CRMTModule, Inputs]:
    """A model in float64 whose classes are all predicted, and inputs."""
    draw = Draw(seed)
    names = [f"m{i}" for i in range(modalities)]
    encoders, shapes = {}, {}
    for name in names:
        encoders[name], sample = KINDS[kind](draw, name)
        shapes[name] = sample.shape[1:]
    model = CRMTModule(encoders, CLASSES, head=LinearFusion, in_features=dict.fromkeys(names, 4)).double().eval()
    inputs = {name: 1.5 * torch.randn(count, *shape, dtype=torch.float64) for name, shape in shapes.items()}
    with torch.no_grad():  # no class far ahead of the others everywhere
        logits = model(inputs).logits
        model.head.bias.sub_(logits.mean(dim=0))
    return model.requires_grad_(False), inputs


def distances(kind: str, model: CRMTModule, inputs: Inputs, prediction: Tensor, threat: Threat) -> Tensor:
    """The true distance, or the nearest that several searches find."""
    reference = Reference(model, model)
    if kind == "linear":
        return exact.affine(reference, inputs, prediction, [threat])[0]
    start = exact.by_minimum_norm(reference, inputs, prediction, threat, torch.ones(len(prediction)).double(), 40)
    if kind == "small ReLU" and len(inputs) <= 2:
        weights = {n: [(e[0].weight, e[0].bias), (e[2].weight, e[2].bias)] for n, e in model.encoders.items()}
        rows = {name: value.detach() for name, value in model.head.class_weights.items()}
        nearest = exact.by_regions(reference, weights, rows, model.head.bias, inputs, prediction, threat)
        return torch.minimum(start, nearest)
    radius = torch.where(start.isfinite(), start, 3.0)
    if kind == "one-dimensional" and len(threat.modalities) <= 2:
        points = 2000 if len(threat.modalities) == 1 else 120
        start = torch.minimum(start, exact.on_a_grid(reference, inputs, prediction, threat, radius, points))
    for _ in range(2):
        start = torch.minimum(start, exact.searched(reference, inputs, prediction, threat, radius, steps=40))
        radius = torch.where(start.isfinite(), start, 3.0)
    return start


def too_long(
    model: CRMTModule, inputs: Inputs, joint: Tensor, alone: Mapping[str, Tensor], excess: float
) -> Certificate:
    """A certificate whose joint radius is longer than the distance ``joint`` by a share; claims nothing where unknown.

    The modalities share it as their own distances say, so that no claim about one alone gives it away by far more.
    """
    with torch.no_grad():
        logits = model(inputs).logits
    prediction = logits.argmax(dim=1)
    parts = {name: 1 / distance.clamp(max=1e6) for name, distance in alone.items()}
    whole = torch.stack(list(parts.values())).norm(dim=0)
    margins = torch.ones_like(logits).scatter(1, prediction[:, None], 0.0)
    margins[~(joint.isfinite() & (joint > 0))] = 0.0
    slopes = {
        name: (part / whole / (joint * (1 + excess)))[:, None].expand_as(margins).nan_to_num(1.0).contiguous()
        for name, part in parts.items()
    }
    return Certificate(prediction=prediction, margins=margins, sensitivities=slopes, soundness=Soundness.SOUND)


def found(model: CRMTModule, certificate: Certificate, inputs: Inputs, **settings: int) -> tuple[int, int]:
    """In how many samples ``verify_certificate`` finds a violation, and how many claim something.

    It stops at the first; so that sample's claim is withdrawn and it is asked again.
    """
    claims = int((certificate.radius() > 0).sum())
    for count in range(claims + 1):
        try:
            verify_certificate(model, certificate, inputs, **settings)
        except CertificateViolation as error:
            margins = certificate.margins.clone()
            margins[error.counterexample.sample] = 0.0
            certificate = dataclasses.replace(certificate, margins=margins)
        else:
            return count, claims
    return claims, claims


def measure(
    kind: str, modalities: int, seed: int, count: int, excesses: tuple[float, ...] = (0.01, 0.05, 0.2), **settings: int
) -> dict[float, tuple[int, int]]:
    """For each excess, samples whose violation is found, of those that claim something."""
    with torch.random.fork_rng(devices=[]):
        model, inputs = build(kind, modalities, seed, count)
        with torch.no_grad():
            prediction = model(inputs).logits.argmax(dim=1)
        joint = distances(kind, model, inputs, prediction, Threat(tuple(inputs)))
        alone = {
            name: joint if len(inputs) == 1 else distances(kind, model, inputs, prediction, Threat((name,)))
            for name in inputs
        }
        return {
            excess: found(model, too_long(model, inputs, joint, alone, excess), inputs, **settings)
            for excess in excesses
        }
