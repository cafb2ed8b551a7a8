# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
r"""The rules for pooling and interpolation.

Averages and interpolation act along one axis after the other, each by a matrix of its own, and the norm of such a
Kronecker product is the product of their norms,

.. math:: \| A_1 \otimes A_2 \|_2 = \|A_1\|_2 \, \|A_2\|_2 .

The matrices are what the layer does to the unit vectors of an axis. Where the axis is long, no entry being negative,
the norm is at most :math:`\sqrt{r c}`, with the largest sums of a row and of a column r and c.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_crmt.lipschitz.bounds.bound import Place, lipschitz_rule
from lightning_crmt.lipschitz.bounds.norms import SLACK, spectral_norm

#: From ``(N, size)`` to ``(N, other size)``: what a layer does along one axis.
Along: TypeAlias = Callable[[Tensor], Tensor]

# Axes up to this size have their matrix written out.
_DENSE_UP_TO = 512

_AXES: dict[type[nn.Module], int] = {
    nn.AvgPool1d: 1, nn.AvgPool2d: 2, nn.AvgPool3d: 3, nn.MaxPool1d: 1, nn.MaxPool2d: 2, nn.MaxPool3d: 3,
    nn.AdaptiveAvgPool1d: 1, nn.AdaptiveAvgPool2d: 2, nn.AdaptiveAvgPool3d: 3, nn.AdaptiveMaxPool1d: 1,
    nn.AdaptiveMaxPool2d: 2, nn.AdaptiveMaxPool3d: 3, nn.LPPool1d: 1, nn.LPPool2d: 2, nn.LPPool3d: 3,
}  # fmt: skip


def spatial(shape: tuple[int, ...] | None, axes: int) -> tuple[int, ...] | None:
    """Sizes of a sample's axes behind its channels, of which there must be so many; ``None`` if they are unknown."""
    if shape is None:
        return None
    if len(shape) != axes + 1:
        raise ValueError(f"the input of one sample must have channels and {axes} axes, got shape {shape}")
    return shape[1:]


def by_axis(value: int | tuple[int, ...], axes: int) -> tuple[int, ...]:
    """A setting of a layer, which may be one number for all axes."""
    return (value,) * axes if isinstance(value, int) else tuple(value)


@lipschitz_rule(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
def _average(layer: nn.AvgPool1d | nn.AvgPool2d | nn.AvgPool3d, place: Place) -> float:
    axes = _AXES[type(layer)]
    sizes = spatial(place.input_shape, axes)
    kernel, stride, padding = (by_axis(x, axes) for x in (layer.kernel_size, layer.stride, layer.padding))
    divisor = 0 if isinstance(layer, nn.AvgPool1d) else abs(layer.divisor_override or 0)
    if sizes is None:
        if layer.ceil_mode or (any(padding) and not layer.count_include_pad):
            raise ValueError(
                "`ceil_mode` or `count_include_pad=False` with padding divide windows at the border by less: the bound "
                "needs `input_shape`"
            )
        area = math.prod(kernel)
        return math.sqrt(area * _windows(kernel, stride, (1,) * axes)) / (divisor or area) * SLACK

    def along(axis: int) -> Along:
        def apply(x: Tensor) -> Tensor:
            pooled: Tensor = F.avg_pool2d(
                x[:, None, :, None], (kernel[axis], 1), (stride[axis], 1), (padding[axis], 0), layer.ceil_mode,
                layer.count_include_pad, 1 if divisor else None,
            )  # fmt: skip
            return pooled.flatten(1)

        return apply

    return _separable(sizes, along) / (divisor or 1)


@lipschitz_rule(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
def _adaptive_average(layer: nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d | nn.AdaptiveAvgPool3d, place: Place) -> float:
    axes = _AXES[type(layer)]
    sizes = spatial(place.input_shape, axes)
    if sizes is None:
        _refuse_but_global(layer.output_size, "must be 1 if `input_shape` is not given")
        return SLACK  # of a single input
    outputs = _each_axis(layer.output_size, axes)
    return _separable(
        sizes,
        lambda axis: lambda x: F.adaptive_avg_pool1d(x[:, None], outputs[axis] or x.shape[1])[:, 0],
    )


@lipschitz_rule(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)
def _upsample(layer: nn.Upsample, place: Place) -> float:
    linear = layer.mode in ("linear", "bilinear", "trilinear")
    if not linear and layer.mode not in ("nearest", "nearest-exact"):
        raise ValueError(f"`mode` must be nearest, nearest-exact, linear, bilinear or trilinear, got {layer.mode!r}")
    if place.input_shape is None:
        raise ValueError("the bound needs `input_shape`: how often an input is repeated depends on it")
    sizes = place.input_shape[1:]
    if not sizes:
        raise ValueError(f"the input of one sample must have channels and axes, got shape {place.input_shape}")
    place.output_shape(layer, place.input_shape)  # refuses other numbers of axes

    def along(axis: int) -> Along:
        def apply(x: Tensor) -> Tensor:
            resized: Tensor = F.interpolate(
                x[:, None],
                size=_each_axis(layer.size, len(sizes))[axis],
                scale_factor=_each_axis(layer.scale_factor, len(sizes))[axis],
                mode="linear" if linear else layer.mode,
                align_corners=layer.align_corners if linear else None,
                recompute_scale_factor=layer.recompute_scale_factor,
            )
            return resized[:, 0]

        if linear and not layer.align_corners and not layer.recompute_scale_factor and layer.scale_factor is not None:
            factor = _each_axis(layer.scale_factor, len(sizes))[axis]
            if factor != 1 and int(sizes[axis] * factor) == sizes[axis]:
                raise ValueError(
                    f"it keeps the {sizes[axis]} inputs of an axis and has `scale_factor` {factor} there: it copies "
                    "them or moves them by this factor, depending on what runs it; use recompute_scale_factor=True"
                )
        index = torch.arange(sizes[axis], dtype=torch.float64)[None]
        # Where a position falls between two inputs, single precision may choose the other one.
        if not linear and not torch.equal(apply(index), apply(index.float()).double()):
            raise ValueError("it must choose the same inputs in single and in double precision")
        return apply

    return _separable(sizes, along)


@lipschitz_rule(nn.LPPool1d, nn.LPPool2d, nn.LPPool3d)
def _power_average(layer: nn.LPPool1d | nn.LPPool2d | nn.LPPool3d, place: Place) -> float:
    # Norms of a window differ by at most the norm of the difference in it, so squares add up over the windows.
    axes = _AXES[type(layer)]
    spatial(place.input_shape, axes)
    if layer.norm_type != 2:
        raise ValueError(f"`norm_type` must be 2, got {layer.norm_type}: of other powers the bound is another")
    if layer.ceil_mode:
        raise ValueError("`ceil_mode` must be False: it multiplies windows at the border by more")
    kernel = by_axis(layer.kernel_size, axes)
    stride = kernel if layer.stride is None else by_axis(layer.stride, axes)
    return _overlap(_windows(kernel, stride, (1,) * axes))


@lipschitz_rule(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
def _maximum(layer: nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d, place: Place) -> float:
    # Maxima of a window differ by at most the largest difference in it, so squares add up over the windows.
    axes = _AXES[type(layer)]
    spatial(place.input_shape, axes)
    if layer.return_indices:
        raise ValueError("`return_indices` must be False: indices jump")
    kernel, stride, dilation = (by_axis(x, axes) for x in (layer.kernel_size, layer.stride, layer.dilation))
    return _overlap(_windows(kernel, stride, dilation))


@lipschitz_rule(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
def _global_maximum(layer: nn.AdaptiveMaxPool1d | nn.AdaptiveMaxPool2d | nn.AdaptiveMaxPool3d, place: Place) -> float:
    spatial(place.input_shape, _AXES[type(layer)])
    _refuse_but_global(layer.output_size, "must be 1, windows of other sizes may overlap")
    if layer.return_indices:
        raise ValueError("`return_indices` must be False: indices jump")
    return 1.0


def _each_axis(value: Any, axes: int) -> list[Any]:
    return list(value) if isinstance(value, tuple | list) else [value] * axes


def _separable(sizes: tuple[int, ...], along: Callable[[int], Along]) -> float:
    """Bound of a map that acts along each axis by its own matrix, without negative entries."""
    return math.prod(_axis_norm(along(axis), size) for axis, size in enumerate(sizes))


def _axis_norm(apply: Along, size: int) -> float:
    if size <= _DENSE_UP_TO:
        return spectral_norm(apply(torch.eye(size, dtype=torch.float64)))
    with torch.inference_mode(False), torch.enable_grad():
        ones = torch.ones(1, size, dtype=torch.float64, requires_grad=True)
        rows = apply(ones)
        (columns,) = torch.autograd.grad(rows.sum(), ones)
    return math.sqrt(float(rows.max()) * float(columns.max())) * SLACK


def _windows(kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> int:
    """In how many pooling windows an input can be."""
    return math.prod(min(k, -(-(d * (k - 1) + 1) // s)) for k, s, d in zip(kernel, stride, dilation, strict=True))


def _overlap(windows: int) -> float:
    return 1.0 if windows == 1 else math.sqrt(windows) * SLACK


def _refuse_but_global(output_size: object, why: str) -> None:
    sizes = output_size if isinstance(output_size, tuple | list) else (output_size,)
    if any(size != 1 for size in sizes):
        raise ValueError(f"`output_size` {why}, got {output_size}")
