# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The rules for layers of torch and of this package, each with the reason why it is an upper bound.

Those for pooling and interpolation have a file of their own.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lightning_crmt.encoders import MLP, ConvNet1d, ConvNet2d, LipschitzCNN, LipschitzMLP
from lightning_crmt.layers import (
    GroupSort,
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
from lightning_crmt.lipschitz.bounds.bound import Place, lipschitz_rule
from lightning_crmt.lipschitz.bounds.norms import SLACK, Convolution, convolution_norm, spectral_norm
from lightning_crmt.lipschitz.bounds.resampling import by_axis, spatial
from lightning_crmt.lipschitz.gate import exact_numbers

Convolutional: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d | OrthogonalConv1d | OrthogonalConv2d
Transposed: TypeAlias = (
    nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d | OrthogonalConvTranspose1d | OrthogonalConvTranspose2d
)

_IDENTITY_IN_EVALUATION = [nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout]
_SLOPES_UP_TO_ONE = [nn.ReLU, nn.ReLU6, nn.Tanh, nn.Softsign, nn.LogSigmoid, nn.Hardtanh]
# They permute, or extend by constants.
_REORDERING = [nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.ZeroPad1d]
# Sorting changes no distance between sorted vectors by more than it was. Windows that are disjoint are each a row
# (1, ..., 1) / sqrt(n) of norm 1. What padding repeats c times is divided by sqrt(c).
_OWN = [GroupSort, ScaledAvgPool1d, ScaledAvgPool2d, ScaledPad]
#: Bounds that hold whatever the settings.
CONSTANTS: dict[type[nn.Module], float] = {
    **dict.fromkeys([*_IDENTITY_IN_EVALUATION, *_SLOPES_UP_TO_ONE, *_REORDERING, *_OWN], 1.0),
    nn.Sigmoid: 0.25,
    nn.Hardsigmoid: 1 / 6 + 1e-8,  # torch's own sixth is that of single precision
    # s + x s (1 - s), s = sigmoid(x), is largest where x (2 s - 1) = 2, at x = 2.3993...: there it is 1.099839...
    nn.SiLU: 1.09985,
    # scale * alpha, the slope just left of 0: 1.0507009873554805 * 1.6732632423543772 = 1.758099340847376...
    nn.SELU: 1.7580993408474,
}


@lipschitz_rule(*CONSTANTS)
def _constant(layer: nn.Module, place: Place) -> float:
    return CONSTANTS[type(layer)]


@lipschitz_rule(nn.ZeroPad2d)
def _zero_pad(layer: nn.ZeroPad2d, place: Place) -> float:
    if place.input_shape is not None and len(place.input_shape) < 2:
        raise ValueError(f"samples must have two axes, so that they stay apart, got shape {place.input_shape}")
    return 1.0


@lipschitz_rule(nn.Sequential)
def _sequential(module: nn.Sequential, place: Place) -> float:
    bounds: list[float] = []
    before, shape_before, shape = None, None, place.input_shape
    # Not named_children(): that leaves out a module that is in it twice.
    for name, part in zip(module._modules, module, strict=True):
        bound = place.bound(part, name, shape)
        folded = _folded(before, part, shape_before)
        if folded is None:
            bounds.append(bound)
        else:
            bounds[-1] = max(min(bounds[-1] * bound, folded), sys.float_info.min) if bounds[-1] and bound else 0.0
        before, shape_before, shape = part, shape, place.output_shape(part, shape)
    total = 1.0
    for bound in bounds:  # a product too small for a number does not become 0: a later layer may make up for it
        total = max(total * bound, sys.float_info.min) if total and bound else 0.0
    return total


@lipschitz_rule(nn.Linear, OrthogonalLinear)
def _linear(layer: nn.Linear | OrthogonalLinear, place: Place) -> float:
    return spectral_norm(exact_numbers(layer.weight, "weight"))


@lipschitz_rule(nn.Conv1d, nn.Conv2d, nn.Conv3d, OrthogonalConv1d, OrthogonalConv2d)
def _convolution(layer: Convolutional, place: Place) -> float:
    operator = convolution_of(layer)
    return convolution_norm(operator, spatial(place.input_shape, operator.axes))


@lipschitz_rule(
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    OrthogonalConvTranspose1d,
    OrthogonalConvTranspose2d,
)
def _transposed(layer: Transposed, place: Place) -> float:
    # The adjoint, which has the same norm, is the convolution by the same kernel, from the sizes that come out here.
    kernel = exact_numbers(layer.weight, "weight")
    if isinstance(layer.padding, str):
        raise ValueError(f"`padding` must be numbers, got {layer.padding!r}")
    padding = tuple((each, each) for each in by_axis(layer.padding, kernel.dim() - 2))
    adjoint = Convolution(kernel, tuple(layer.stride), padding, tuple(layer.dilation), layer.groups)
    spatial(place.input_shape, adjoint.axes)
    return convolution_norm(adjoint, spatial(place.output_shape(layer, place.input_shape), adjoint.axes))


@lipschitz_rule(nn.BatchNorm1d, nn.BatchNorm2d)
def _batch_norm(layer: nn.BatchNorm1d | nn.BatchNorm2d, place: Place) -> float:
    return float(batch_norm_scale(layer).max()) * SLACK


@lipschitz_rule(nn.LeakyReLU)
def _leaky_relu(layer: nn.LeakyReLU, place: Place) -> float:
    return _slopes(layer.negative_slope)


@lipschitz_rule(nn.PReLU)
def _prelu(layer: nn.PReLU, place: Place) -> float:
    return _slopes(*layer.weight.detach().double().flatten().tolist())


@lipschitz_rule(nn.ELU)
def _elu(layer: nn.ELU, place: Place) -> float:
    return _slopes(layer.alpha)  # alpha e^x below 0


@lipschitz_rule(nn.GELU)
def _gelu(layer: nn.GELU, place: Place) -> float:
    if layer.approximate != "none":
        raise ValueError(f"`approximate` must be 'none', got {layer.approximate!r}: its slope is another")
    # The slope of x Phi(x) is Phi(x) + x phi(x). Its derivative (2 - x^2) phi(x) vanishes at sqrt(2): it is 1.128904...
    return 1.12891


@lipschitz_rule(nn.Softplus)
def _softplus(layer: nn.Softplus, place: Place) -> float:
    # torch's Softplus returns x above its threshold t, a jump of log(1 + e^-t): no slope bounds it. From t = 40 on, the
    # jump is below what double precision resolves at t.
    # Above 80, its exponential overflows in single precision before x is returned.
    if not (layer.beta > 0 and 40 <= layer.threshold <= 80):
        raise ValueError(
            "it jumps at its threshold and so has no Lipschitz constant, or overflows below it; "
            f"use threshold=40, where neither can be seen, got beta={layer.beta}, threshold={layer.threshold}"
        )
    return 1.0


@lipschitz_rule(nn.Flatten)
def _flatten(layer: nn.Flatten, place: Place) -> float:
    if layer.start_dim < 1:
        raise ValueError(f"`start_dim` must be at least 1, so that samples stay apart, got {layer.start_dim}")
    return 1.0


@lipschitz_rule(nn.Unflatten)
def _unflatten(layer: nn.Unflatten, place: Place) -> float:
    if not isinstance(layer.dim, int) or (layer.dim < 1 and layer.dim != -1):
        raise ValueError(f"`dim` must be at least 1, so that samples stay apart, got {layer.dim!r}")
    return 1.0


@lipschitz_rule(Scale)
def _scale(layer: Scale, place: Place) -> float:
    return abs(layer.factor)


@lipschitz_rule(Residual)
def _residual(layer: Residual, place: Place) -> float:
    branch = place.bound(layer.branch, "branch", place.input_shape)
    weight = float(layer.weight)  # it may have been learnt, and have left [0, 1]
    return (abs(1 - weight) + abs(weight) * branch) * SLACK


@lipschitz_rule(MLP, ConvNet1d, ConvNet2d, LipschitzMLP, LipschitzCNN)
def _encoder(encoder: MLP | ConvNet1d | ConvNet2d | LipschitzMLP | LipschitzCNN, place: Place) -> float:
    return place.bound(encoder.layers, "layers", place.input_shape)


def convolution_of(layer: Convolutional) -> Convolution:
    """The operator of a layer, without its bias."""
    kernel = exact_numbers(layer.weight, "weight")
    stride, dilation = tuple(layer.stride), tuple(layer.dilation)
    if isinstance(layer.padding, str):
        same = layer.padding == "same"  # or "valid"
        totals = [d * (k - 1) * same for d, k in zip(dilation, kernel.shape[2:], strict=True)]
        padding = tuple((total // 2, total - total // 2) for total in totals)
    else:
        padding = tuple((each, each) for each in by_axis(layer.padding, kernel.dim() - 2))
    around = [size for before_after in reversed(padding) for size in before_after]
    if isinstance(layer, OrthogonalConv1d | OrthogonalConv2d):
        return Convolution(kernel, stride, padding, dilation, layer.groups, layer.padding_mode, scaled=True)
    if layer.padding_mode != "zeros" and list(layer._reversed_padding_repeated_twice) != around:
        raise ValueError(f"`padding` must be as it was when the layer was made, it was changed to {layer.padding}")
    return Convolution(kernel, stride, padding, dilation, layer.groups, layer.padding_mode)


def batch_norm_scale(layer: nn.BatchNorm1d | nn.BatchNorm2d) -> Tensor:
    """What each channel is multiplied by in evaluation mode."""
    if layer.running_var is None or layer.running_mean is None:
        raise ValueError("it must track running statistics; with those of the batch, samples influence each other")
    exact_numbers(layer.running_mean, "running_mean")
    variance = exact_numbers(layer.running_var, "running_var") + layer.eps
    if not (variance > 0).all():
        raise ValueError("`running_var + eps` must be above 0")
    gain = torch.ones_like(variance) if layer.weight is None else exact_numbers(layer.weight, "weight").abs()
    return gain / variance.sqrt()


#: Linear maps that are bounded together with the batch normalisation after them.
_BEFORE_NORM: dict[type[nn.Module], tuple[type[nn.Module], ...]] = {
    nn.BatchNorm1d: (nn.Linear, OrthogonalLinear, nn.Conv1d, OrthogonalConv1d),
    nn.BatchNorm2d: (nn.Conv2d, OrthogonalConv2d),
}


def _folded(layer: Any, norm: Any, shape: tuple[int, ...] | None) -> float | None:
    """Bound of a linear map and the batch normalisation after it as one map; ``None`` if they are not such a pair."""
    if type(layer) not in _BEFORE_NORM.get(type(norm), ()):
        return None
    if isinstance(layer, nn.Linear | OrthogonalLinear):
        if shape is None or len(shape) != 1:  # on (B, T, C) the channels are T
            return None
        return spectral_norm(batch_norm_scale(norm)[:, None] * exact_numbers(layer.weight, "weight"))
    operator = convolution_of(layer)
    scale = batch_norm_scale(norm).reshape(-1, *(1,) * (1 + operator.axes))
    return convolution_norm(replace(operator, kernel=operator.kernel * scale), spatial(shape, operator.axes))


def _slopes(*slopes: float) -> float:
    """Bound for slope 1 on the right of 0 and one of ``slopes`` on the left."""
    if not all(math.isfinite(slope) for slope in slopes):
        raise ValueError(f"slopes must be finite, got {slopes}")
    return max(1.0, *(abs(slope) for slope in slopes))
