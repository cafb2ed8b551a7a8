# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The rules for torch's and this package's layers, each with the reason why it is an upper bound."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightning_crmt.encoders import MLP, ConvNet1d, ConvNet2d, LipschitzCNN, LipschitzMLP
from lightning_crmt.layers import (
    GroupSort,
    MaxMin,
    OrthogonalConv1d,
    OrthogonalConv2d,
    OrthogonalLinear,
    Residual,
    Scale,
    ScaledAvgPool1d,
    ScaledAvgPool2d,
)
from lightning_crmt.lipschitz.bounds.convolution import Convolution, convolution_norm
from lightning_crmt.lipschitz.bounds.matrix import SLACK, spectral_norm
from lightning_crmt.lipschitz.bounds.registry import Place, inherits_forward, lipschitz_rule

# Their forward is nn.Linear's or nn.Conv2d's on a weight they compute: it is that weight that gets measured.
inherits_forward(
    [
        "orthogonium.layers.linear.ortho_linear.OrthoLinear",
        "orthogonium.layers.linear.ortho_linear.UnitNormLinear",
        "deel.torchlip.modules.linear.SpectralLinear",
        "deel.torchlip.modules.linear.FrobeniusLinear",
    ],
    nn.Linear,
)
inherits_forward(
    [
        "orthogonium.layers.conv.AOC.fast_block_ortho_conv.FastBlockConv2d",
        "orthogonium.layers.conv.AOC.rko_conv.RKOConv2d",
        "orthogonium.layers.conv.AOC.bcop_x_rko_conv.BcopRkoConv2d",
        "orthogonium.layers.conv.AOL.aol.AOLConv2D",
        "orthogonium.layers.conv.adaptiveSOC.soc_x_rko_conv.SOCRkoConv2d",
        "orthogonium.layers.conv.adaptiveSOC.fast_skew_ortho_conv.FastSOC",
    ],
    nn.Conv2d,
)


@lipschitz_rule(nn.Sequential)
def _sequential(module: nn.Sequential, place: Place) -> float:
    total, shape = 1.0, place.input_shape
    # Not named_children(): that leaves out a module that stands there twice.
    parts = list(module._modules.items())
    bounds, shapes = [], []
    for name, part in parts:
        assert part is not None
        bounds.append(place.bound(part, name, shape))
        shapes.append(shape)
        shape = place.output_shape(part, shape)
    index = 0
    while index < len(parts):
        bound = bounds[index]
        if index + 1 < len(parts):
            folded = _folded(parts[index][1], parts[index + 1][1], shapes[index])
            if folded is not None:
                bound = min(bound * bounds[index + 1], folded)
                index += 1
        total *= bound
        index += 1
    return total


@lipschitz_rule(nn.Linear, OrthogonalLinear)
def _linear(layer: nn.Linear | OrthogonalLinear, place: Place) -> float:
    return spectral_norm(_finite(layer.weight, "weight"))


@lipschitz_rule(nn.Conv1d, nn.Conv2d, OrthogonalConv1d, OrthogonalConv2d)
def _convolution(layer: nn.Conv1d | nn.Conv2d | OrthogonalConv1d | OrthogonalConv2d, place: Place) -> float:
    operator = convolution_of(layer)
    return convolution_norm(operator, _spatial(place.input_shape, operator.axes))


@lipschitz_rule(nn.BatchNorm1d, nn.BatchNorm2d)
def _batch_norm(layer: nn.BatchNorm1d | nn.BatchNorm2d, place: Place) -> float:
    return float(batch_norm_scale(layer).max()) * SLACK


@lipschitz_rule(
    nn.Identity,
    # identity in evaluation mode
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
    # slopes from -1 to 1 everywhere
    nn.ReLU,
    nn.ReLU6,
    nn.Tanh,
    nn.Softsign,
    nn.LogSigmoid,
    # permute, or extend by constants
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ChannelShuffle,
    nn.ZeroPad1d,
    nn.ZeroPad2d,
    # sorting changes no distance between sorted vectors by more than it was
    GroupSort,
    MaxMin,
    # disjoint windows, each a row (1, ..., 1) / sqrt(n) of norm 1
    ScaledAvgPool1d,
    ScaledAvgPool2d,
)
def _one(layer: nn.Module, place: Place) -> float:
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


@lipschitz_rule(nn.AvgPool1d, nn.AvgPool2d)
def _average(layer: nn.AvgPool1d | nn.AvgPool2d, place: Place) -> float:
    # All entries of the operator have one sign; norm <= sqrt(largest row sum * largest column sum).
    axes = 1 if isinstance(layer, nn.AvgPool1d) else 2
    if layer.ceil_mode or (any(_by_axis(layer.padding, axes)) and not layer.count_include_pad):
        raise ValueError("`ceil_mode` or `count_include_pad=False` with padding divide windows at the border by less")
    area = math.prod(_by_axis(layer.kernel_size, axes))
    divisor: int = abs(getattr(layer, "divisor_override", None) or area)
    windows = _windows(_by_axis(layer.kernel_size, axes), _by_axis(layer.stride, axes), (1,) * axes)
    return math.sqrt(area * windows) / divisor * SLACK


@lipschitz_rule(nn.MaxPool1d, nn.MaxPool2d)
def _maximum(layer: nn.MaxPool1d | nn.MaxPool2d, place: Place) -> float:
    # Maxima of a window differ by at most the largest difference in it, so squares add up over the windows.
    axes = 1 if isinstance(layer, nn.MaxPool1d) else 2
    if layer.return_indices:
        raise ValueError("`return_indices` must be False: indices jump")
    kernel, stride, dilation = (_by_axis(x, axes) for x in (layer.kernel_size, layer.stride, layer.dilation))
    windows = _windows(kernel, stride, dilation)
    return 1.0 if windows == 1 else math.sqrt(windows) * SLACK


@lipschitz_rule(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
def _global_average(layer: nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d, place: Place) -> float:
    axes = 1 if isinstance(layer, nn.AdaptiveAvgPool1d) else 2
    _refuse_but_global(layer.output_size)
    # Without the sizes, that of a single input.
    sizes = _spatial(place.input_shape, axes) or (1,)
    return SLACK / math.sqrt(math.prod(sizes))


@lipschitz_rule(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d)
def _global_maximum(layer: nn.AdaptiveMaxPool1d | nn.AdaptiveMaxPool2d, place: Place) -> float:
    _refuse_but_global(layer.output_size)
    if layer.return_indices:
        raise ValueError("`return_indices` must be False: indices jump")
    return 1.0


@lipschitz_rule(Scale)
def _scale(layer: Scale, place: Place) -> float:
    return abs(layer.factor)


@lipschitz_rule(Residual)
def _residual(layer: Residual, place: Place) -> float:
    branch = place.bound(layer.branch, "branch", place.input_shape)
    # The weight may have been learnt, and have left [0, 1].
    weight = float(layer.weight)
    return (abs(1 - weight) + abs(weight) * branch) * SLACK


@lipschitz_rule(MLP, ConvNet1d, ConvNet2d, LipschitzMLP, LipschitzCNN)
def _encoder(encoder: MLP | ConvNet1d | ConvNet2d | LipschitzMLP | LipschitzCNN, place: Place) -> float:
    return place.bound(encoder.layers, "layers", place.input_shape)


def _finite(weight: object, name: str) -> Tensor:
    """``weight`` in double precision on the CPU: exactly the numbers that run."""
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        kind = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
        raise ValueError(f"`{name}` must be a real floating point tensor, got {kind}")
    if not weight.isfinite().all():
        raise ValueError(f"`{name}` must be finite, it holds NaN or Inf: the model diverged")
    return weight.detach().to("cpu", torch.float64)


def convolution_of(layer: nn.Conv1d | nn.Conv2d | OrthogonalConv1d | OrthogonalConv2d) -> Convolution:
    """The operator of a layer, without its bias."""
    kernel = _finite(layer.weight, "weight")
    axes = kernel.dim() - 2
    if isinstance(layer, OrthogonalConv1d | OrthogonalConv2d):
        around = ((layer.padding, layer.padding),) * axes
        return Convolution(kernel, (layer.stride,) * axes, around, (1,) * axes, 1, layer.padding_mode)
    stride, dilation = tuple(layer.stride), tuple(layer.dilation)
    if layer.padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel.shape[2:], strict=True)]
        padding = tuple((each // 2, each - each // 2) for each in total)
    elif layer.padding == "valid":
        padding = ((0, 0),) * axes
    else:
        assert not isinstance(layer.padding, str)
        padding = tuple((each, each) for each in _by_axis(layer.padding, axes))
    return Convolution(kernel, stride, padding, dilation, layer.groups, layer.padding_mode)


def batch_norm_scale(layer: nn.BatchNorm1d | nn.BatchNorm2d) -> Tensor:
    """What each channel is multiplied by in evaluation mode."""
    if layer.running_var is None or layer.running_mean is None:
        raise ValueError("it must track running statistics; with those of the batch, samples influence each other")
    _finite(layer.running_mean, "running_mean")
    variance = _finite(layer.running_var, "running_var") + layer.eps
    if not (variance > 0).all():
        raise ValueError("`running_var + eps` must be above 0")
    gain = torch.ones_like(variance) if layer.weight is None else _finite(layer.weight, "weight").abs()
    return gain / variance.sqrt()


def _folded(layer: nn.Module | None, norm: nn.Module | None, shape: tuple[int, ...] | None) -> float | None:
    """Bound of a linear map and the batch normalisation after it as one map; ``None`` if they are not such a pair."""
    pair = (type(layer), type(norm))
    if pair in ((nn.Linear, nn.BatchNorm1d), (OrthogonalLinear, nn.BatchNorm1d)) and shape is not None:
        if len(shape) != 1:  # on (B, T, C) the channels are T
            return None
        weight = _finite(layer.weight, "weight")  # type: ignore[union-attr]
        return spectral_norm(batch_norm_scale(norm)[:, None] * weight)  # type: ignore[arg-type]
    convolutions = ((nn.Conv1d, nn.BatchNorm1d), (nn.Conv2d, nn.BatchNorm2d))
    orthogonal = ((OrthogonalConv1d, nn.BatchNorm1d), (OrthogonalConv2d, nn.BatchNorm2d))
    if pair in (*convolutions, *orthogonal):
        operator = convolution_of(layer)  # type: ignore[arg-type]
        scale = batch_norm_scale(norm)  # type: ignore[arg-type]
        scaled = operator.kernel * scale.reshape(-1, *(1,) * (1 + operator.axes))
        folded = Convolution(
            scaled, *(getattr(operator, name) for name in ("stride", "padding", "dilation", "groups", "mode"))
        )
        return convolution_norm(folded, _spatial(shape, operator.axes))
    return None


def _spatial(shape: tuple[int, ...] | None, axes: int) -> tuple[int, ...] | None:
    if shape is None:
        return None
    if len(shape) != axes + 1:
        raise ValueError(f"the input of one sample must have channels and {axes} axes, got shape {shape}")
    return shape[1:]


def _by_axis(value: int | tuple[int, ...], axes: int) -> tuple[int, ...]:
    return (value,) * axes if isinstance(value, int) else tuple(value)


def _windows(kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> int:
    """In how many pooling windows an input can be."""
    return math.prod(min(k, -(-(d * (k - 1) + 1) // s)) for k, s, d in zip(kernel, stride, dilation, strict=True))


def _refuse_but_global(output_size: object) -> None:
    sizes = output_size if isinstance(output_size, tuple | list) else (output_size,)
    if any(size != 1 for size in sizes):
        raise ValueError(f"`output_size` must be 1, windows of other sizes may overlap, got {output_size}")
