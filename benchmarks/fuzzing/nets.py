# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Random models of every layer that has a Lipschitz rule, with random weights, and random inputs for them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_crmt import CRMTModule, FixedFusion, LinearFusion, OrthogonalFusion
from lightning_crmt.encoders import MLP, ConvNet1d, ConvNet2d, LipschitzCNN, LipschitzMLP
from lightning_crmt.layers import (
    GroupSort,
    MaxMin,
    OrthogonalConv1d,
    OrthogonalConv2d,
    OrthogonalConvTranspose1d,
    OrthogonalConvTranspose2d,
    OrthogonalLinear,
    Residual,
    Scale,
    ScaledAvgPool1d,
    ScaledAvgPool2d,
    ScaledPad,
)

Shape = tuple[int, ...]


@dataclass
class Draw:
    """All that a trial draws at random comes from here: from one seed, and written down under a name.

    Attributes:
        seed: of everything.
        gently: keep to double precision, fresh constants, weights that are in range, and inputs off the boundary.
        settings: what is printed with a violation.
    """

    seed: int
    gently: bool = False
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        torch.manual_seed(self.seed)

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def among(self, values: Sequence[Any]) -> Any:
        return self.random.choice(values)

    def power(self, low: float, high: float) -> float:
        """Ten to a uniform power."""
        return 10 ** self.random.uniform(low, high)

    def note(self, name: str, value: Any) -> Any:
        """``value``, kept among the settings that are printed with a violation."""
        self.settings[name] = f"{value:.6g}" if isinstance(value, float) else value
        return value


# Layers.


def linear_layers(draw: Draw, shape: Shape) -> list[Callable[[], nn.Module]]:
    """Makers of affine layers for samples of this shape."""
    pick = draw.among
    anywhere: list[Callable[[], nn.Module]] = [
        nn.Identity,
        lambda: nn.Dropout(0.5),
        lambda: Scale(pick([-1, 1]) * draw.power(-1, 1)),
    ]
    if len(shape) == 1:
        (d,) = shape
        return [
            *anywhere,
            lambda: nn.Linear(d, pick([1, 2, 3, 5, 8]), bias=draw.chance(0.8)),
            lambda: nn.Linear(d, pick([1, 2, 3, 5, 8])),
            lambda: OrthogonalLinear(d, pick([1, 2, 4, 8])),
            lambda: OrthogonalLinear(d, d, bias=False),
            lambda: nn.BatchNorm1d(d, affine=draw.chance(0.8)),
            lambda: residual(draw, nn.Linear(d, d)),
            lambda: residual(draw, OrthogonalLinear(d, d)),
            lambda: nn.AlphaDropout(0.3),
            lambda: nn.Unflatten(1, (1, d)),
            lambda: nn.Unflatten(1, (d, 1)),
            lambda: repeated(nn.Linear(d, d)),
            lambda: nn.Sequential(nn.Linear(d, d), nn.BatchNorm1d(d)),
        ]
    c, axes = shape[0], len(shape) - 1
    conv, norm = (nn.Conv1d, nn.BatchNorm1d) if axes == 1 else (nn.Conv2d, nn.BatchNorm2d)
    orthogonal = OrthogonalConv1d if axes == 1 else OrthogonalConv2d
    transposed = OrthogonalConvTranspose1d if axes == 1 else OrthogonalConvTranspose2d
    average = nn.AvgPool1d if axes == 1 else nn.AvgPool2d

    def convolution(kind: Callable[..., nn.Module] = conv, **fixed: Any) -> nn.Module:
        groups = pick([g for g in (1, 1, 2, 3) if c % g == 0])
        settings: dict[str, Any] = {
            "kernel_size": pick([1, 2, 3, 5]),
            "stride": pick([1, 1, 2, 3]),
            "padding": pick([0, 1, 2, "same", "valid"]),
            "dilation": pick([1, 1, 2]),
            "groups": groups,
            "bias": draw.chance(0.7),
            "padding_mode": pick(["zeros", "zeros", "circular", "reflect", "replicate"]),
        } | fixed
        if settings["padding"] == "same":
            settings["stride"] = 1
        return kind(c, settings["groups"] * pick([1, 2, 3]), **settings)

    return [
        *anywhere,
        convolution,
        convolution,
        convolution,
        lambda: nn.Sequential(made := convolution(), norm(made.out_channels)),
        lambda: orthogonal(c, pick([1, 2, 4]), pick([2, 3, 4]), pick([1, 2]), padding_mode=pick(["zeros", "circular"])),
        lambda: convolution(orthogonal),
        lambda: transposed(c, pick([1, 2, 4]), pick([1, 2, 3]), pick([1, 2]), pick([0, 0, 1]), dilation=pick([1, 2])),
        lambda: ScaledPad([(pick([0, 1]), pick([1, 2]))] * axes, pick(["reflect", "replicate", "circular"])),
        lambda: orthogonal(c, pick([1, 2, 4, 8]), pick([1, 3])),
        lambda: norm(c, affine=draw.chance(0.8)),
        lambda: average(pick([2, 3]), pick([1, 2, 3]), pick([0, 1])),
        lambda: (nn.AdaptiveAvgPool1d if axes == 1 else nn.AdaptiveAvgPool2d)(1),
        lambda: (ScaledAvgPool1d if axes == 1 else ScaledAvgPool2d)(pick([None, 2])),
        lambda: (nn.ZeroPad1d if axes == 1 else nn.ZeroPad2d)(pick([1, 2])),
        lambda: (nn.Dropout1d if axes == 1 else nn.Dropout2d)(0.5),
        lambda: nn.FeatureAlphaDropout(0.3),
        lambda: residual(draw, conv(c, c, 3, padding=1)),
        lambda: nn.PixelUnshuffle(2) if axes == 2 else nn.Flatten(),
        lambda: nn.PixelShuffle(2) if axes == 2 else nn.Flatten(),
        lambda: nn.ChannelShuffle(2) if axes == 2 else nn.Flatten(),
        lambda: nn.Linear(shape[-1], pick([1, 3, 5])),
        lambda: nn.Flatten(),
    ]


def isometries(draw: Draw, shape: Shape) -> list[Callable[[], nn.Module]]:
    """Makers of layers whose product of bounds is attained: with these alone, a certificate has no room to be wrong."""
    pick = draw.among
    flip = [nn.Identity, lambda: Scale(-1.0)]
    anywhere: list[Callable[[], nn.Module]] = [
        nn.Identity,
        lambda: nn.Dropout(0.5),
        lambda: Scale(pick([-1, 1]) * draw.power(-1, 1)),
        lambda: residual(draw, pick(flip)()),
        lambda: scales(draw),
    ]
    if len(shape) == 1:
        (d,) = shape
        return [
            *anywhere,
            lambda: OrthogonalLinear(d, d, bias=draw.chance(0.5)),
            lambda: residual(draw, OrthogonalLinear(d, d)),
            lambda: nn.Unflatten(1, (1, d)),
            lambda: even(nn.BatchNorm1d(d)),
        ]
    c, axes = shape[0], len(shape) - 1
    orthogonal = OrthogonalConv1d if axes == 1 else OrthogonalConv2d
    transposed = OrthogonalConvTranspose1d if axes == 1 else OrthogonalConvTranspose2d
    return [
        *anywhere,
        lambda: orthogonal(c, c, 3, padding_mode="circular", dilation=pick([1, 2])),
        lambda: transposed(c, c, pick([2, 3]), pick([1, 2])),
        lambda: ScaledPad([(0, 1)] * axes, pick(["reflect", "replicate", "circular"])),
        lambda: orthogonal(c, c * 2**axes, 2, 2, padding_mode="circular"),
        lambda: (nn.Conv1d if axes == 1 else nn.Conv2d)(c, c, 1, groups=c),
        lambda: (nn.ZeroPad1d if axes == 1 else nn.ZeroPad2d)(1),
        lambda: even((nn.BatchNorm1d if axes == 1 else nn.BatchNorm2d)(c)),
        lambda: nn.PixelUnshuffle(2) if axes == 2 else nn.Flatten(),
        lambda: nn.ChannelShuffle(2) if axes == 2 else nn.Flatten(),
        nn.Flatten,
    ]


def even(norm: nn.Module) -> nn.Module:
    """Batch normalisation that is left to scale all channels alike."""
    norm.track = False  # known to `vary_weights`
    return norm


def activations(draw: Draw, shape: Shape) -> list[Callable[[], nn.Module]]:
    """Makers of layers that are not affine."""
    pick = draw.among
    made: list[Callable[[], nn.Module]] = [
        nn.ReLU,
        nn.ReLU,
        nn.ReLU6,
        nn.Tanh,
        nn.Softsign,
        nn.LogSigmoid,
        nn.Sigmoid,
        lambda: nn.LeakyReLU(pick([0.01, 0.3, -0.7, 2.5])),
        lambda: prelu(pick([1, shape[0]])),
        lambda: nn.ELU(pick([0.5, 1.0, 3.0])),
        nn.SELU,
        nn.GELU,
        nn.SiLU,
        lambda: nn.Softplus(draw.power(-1, 1), pick([40, 60, 100, 1000])),
        lambda: nn.Hardtanh(-draw.power(-1, 1), draw.power(-1, 1)),
        nn.Hardsigmoid,
        lambda: residual(draw, nn.Sequential(nn.Tanh())),
    ]
    if shape[0] % 2 == 0:
        made += [MaxMin, lambda: GroupSort(2), lambda: GroupSort(shape[0])]
    if len(shape) > 1:
        maximum = nn.MaxPool1d if len(shape) == 2 else nn.MaxPool2d
        made += [
            lambda: maximum(pick([2, 3]), pick([1, 2, 3]), dilation=pick([1, 1, 2]), ceil_mode=draw.chance(0.2)),
            lambda: maximum(3, 1, padding=1),
            lambda: (nn.AdaptiveMaxPool1d if len(shape) == 2 else nn.AdaptiveMaxPool2d)(1),
        ]
    return made


def prelu(size: int) -> nn.PReLU:
    """With slopes that are not all small, nor all positive."""
    layer = nn.PReLU(size)
    with torch.no_grad():
        layer.weight.uniform_(-1.5, 1.5)
    return layer


def repeated(layer: nn.Module) -> nn.Sequential:
    """The same module in two places."""
    return nn.Sequential(layer, nn.Identity(), layer)


def residual(draw: Draw, branch: nn.Module) -> Residual:
    """With a weight that was learnt or set, now and then to outside of where it begins."""
    layer = Residual(branch, draw.random.random())
    if draw.chance(0.3) and not draw.gently:
        weight = draw.random.uniform(-0.5, 2.5)
        learnt = draw.chance(0.5)
        layer.weight = nn.Parameter(torch.tensor(weight)) if learnt else weight  # type: ignore[assignment]
        draw.note("residual weight", weight)
    return layer


def scales(draw: Draw) -> nn.Sequential:
    """A long chain of factors that cancel, the same two modules over and over, as ``[Scale(a), Scale(1 / a)] * n``.

    Of some factors the one whose chain strays farthest in single precision: most come back to where they were.
    """
    x = 1 + torch.rand(64)

    def stray(factor: float) -> float:
        y = x
        for _ in range(10):
            y = y * factor * (1 / factor)
        return float((y - x).abs().mean())

    factor = max((draw.random.uniform(0.5, 2.0) for _ in range(20)), key=stray)
    up, down = Scale(factor), Scale(1 / factor)
    return nn.Sequential(*[up, down] * draw.among([1, 10, 30, 100]))


def sequence(
    draw: Draw, shape: Shape, depth: int, linear: bool, limit: int = 96, tight: bool = False
) -> tuple[nn.Sequential, Shape]:
    """A chain of ``depth`` layers, and the shape of a sample behind it."""
    parts: list[nn.Module] = []
    for _ in range(depth):
        for _ in range(20):
            makers = isometries(draw, shape) if tight else linear_layers(draw, shape)
            if not (linear or tight) and draw.chance(0.45):
                makers = activations(draw, shape)
            try:
                part = draw.among(makers)().eval()
                after = shape_after(part, shape)
            except (RuntimeError, ValueError, TypeError, IndexError):
                continue
            if after and 0 < math.prod(after) <= limit:
                parts.append(part)
                shape = after
                break
    return nn.Sequential(*parts), shape


def shape_after(part: nn.Module, shape: Shape) -> Shape:
    """Shape of a sample behind a layer; empty where it does not keep samples apart."""
    with torch.no_grad():
        after = part(torch.rand(2, *shape))
    return tuple(after.shape[1:]) if after.dim() > 1 and len(after) == 2 else ()


def with_features(net: nn.Sequential, shape: Shape, size: int) -> nn.Sequential:
    """Flattened and read off by a linear layer."""
    if len(shape) > 1:
        net.append(nn.Flatten())
    return net.append(nn.Linear(math.prod(shape), size))


def ready_made(draw: Draw, shape: Shape, size: int) -> nn.Module:
    """An encoder of the package."""
    if len(shape) == 1:
        if draw.chance(0.5):
            return MLP(shape[0], size, hidden=draw.among([(4,), (8, 6)]))
        return LipschitzMLP(shape[0], size, hidden=draw.among([(), (4,), (8, 6)]), scale=draw.among([1.0, 3.0]))
    small = min(shape[1:])
    if len(shape) == 2:
        if small >= 4 and draw.chance(0.5):
            return ConvNet1d(shape[0], size, channels=draw.among([(3,), (2, 4)]), kernel_size=3)
        return LipschitzCNN(shape[0], size, input_size=shape[1:], channels=(4,))
    if small >= 4 and draw.chance(0.5):
        return ConvNet2d(shape[0], size, channels=draw.among([(3,), (2, 4)]))
    return LipschitzCNN(shape[0], size, input_size=shape[1:], channels=(4,))


def vary_weights(draw: Draw, net: nn.Module, extreme: bool) -> None:
    """Weights as training may leave them, statistics of batch normalisation far from where they begin."""
    with torch.no_grad():
        for part in net.modules():
            if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d):
                part.weight.mul_(draw.power(-0.3, 0.5))
            if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d) and not hasattr(part, "track"):
                wide = 4.0 if extreme else 0.5
                part.running_mean.normal_().mul_(draw.power(-1, wide / 2))
                part.running_var.copy_(10 ** ((torch.rand_like(part.running_var) - 0.5) * 2 * wide))
                if part.weight is not None:
                    part.weight.normal_().add_(draw.among([0.0, 1.0]))
                    part.bias.normal_()


# Models.


def head_of(draw: Draw, classes: int, sizes: dict[str, int]) -> nn.Module:
    """One of the three heads of late fusion."""
    kinds = ["linear", "fixed"] + ["orthogonal"] * (min(sizes.values()) >= classes)
    kind = draw.note("head", draw.among(kinds))
    if kind == "fixed":
        rows = {name: torch.randn(classes, size) for name, size in sizes.items()}
        return FixedFusion(rows, {name: torch.rand(classes) for name in sizes}, torch.randn(classes))
    head = LinearFusion(sizes, classes) if kind == "linear" else OrthogonalFusion(sizes, classes)
    with torch.no_grad():
        head.bias.normal_().mul_(0.3)
        for weight in head.integration_parameters():
            weight.uniform_(-1.0, 2.0)
    return head


def model_of(draw: Draw, encoders: dict[str, nn.Module], sizes: dict[str, int], classes: int) -> CRMTModule:
    """Encoders under a head; the module itself computes nothing more."""
    head = head_of(draw, classes, sizes)
    return CRMTModule(encoders, classes, head=lambda *_: head, in_features=sizes).eval()


def shrink_head(model: CRMTModule, factor: float) -> None:
    """Weights and bias of the head times ``factor``: a tiny one changes no prediction and no distance."""
    head = model.head
    with torch.no_grad():
        head.bias.mul_(factor)
        if isinstance(head, LinearFusion):
            for rows in head.rows.values():
                rows.mul_(factor)
        elif isinstance(head, OrthogonalFusion):
            for weight in head.integration_parameters():
                weight.mul_(factor)
        else:
            for weight in head.integration_weights.values():
                weight.mul_(factor)


def in_units(draw: Draw, encoder: nn.Module, shape: Shape, norms: bool = True) -> tuple[nn.Module, float, float]:
    """An encoder for inputs in raw units, offset + scale z, with the normalisation folded into what is in front."""
    units = draw.note("units", draw.among(["plain"] * 5 + ["small", "large", "offset", "sensor"]))
    if units == "plain":
        return encoder, 0.0, 1.0
    scale = draw.power(*{"small": (-6, -2), "large": (2, 5), "offset": (-2, 0), "sensor": (-3, -1)}[units])
    offset = {"offset": draw.power(1, 3), "sensor": draw.power(3, 5)}.get(units, 0.0)
    draw.note("scale", scale), draw.note("offset", offset)
    if len(shape) == 1 and (draw.chance(0.5) or not norms):
        first = nn.Linear(shape[0], shape[0])
        with torch.no_grad():
            first.weight.copy_(torch.randn_like(first.weight) / math.sqrt(shape[0]) / scale)
            first.bias.copy_(-offset * first.weight.double().sum(1))
    else:
        first = {1: nn.BatchNorm1d, 2: nn.BatchNorm1d, 3: nn.BatchNorm2d}[len(shape)](shape[0])
        with torch.no_grad():
            first.running_mean.fill_(offset)
            first.running_var.fill_(scale**2)
            first.eps = 1e-3 * scale**2
    return nn.Sequential(first.eval(), encoder), offset, scale


def inputs_of(draw: Draw, shape: Shape, offset: float, scale: float, count: int) -> Tensor:
    """A batch in raw units."""
    return offset + scale * torch.randn(count, *shape) * draw.among([0.5, 1.0, 2.0])
