# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Kernels of convolutions of norm 1, as products of orthogonal factors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_crmt.checks import check_at_least
from lightning_crmt.layers.fixed_weights import Fixable
from lightning_crmt.layers.orthogonal import orthogonal, orthonormal_rows


def by_axis(name: str, value: int | Sequence[int], axes: int, least: int = 1) -> tuple[int, ...]:
    """A setting that may be one number for all axes."""
    sizes = tuple(value) if isinstance(value, Sequence) else (value,) * axes
    if len(sizes) != axes:
        raise ValueError(f"`{name}` must be one number or {axes}, one for each axis, got {value!r}")
    check_at_least(least, **{name: min(sizes)})
    return sizes


@dataclass(frozen=True)
class BlockKernel:
    """How a kernel ``(rows, columns / groups, *sizes)`` is made of orthogonal factors.

    In each group it is the product of

    - a matrix with orthonormal rows or columns on disjoint patches, and
    - along every axis, as many convolutions with two taps P and I - P as the patch is smaller than the kernel there,
      P an orthogonal projector.

    A two-tap convolution has the symbol P + e^{iw} (I - P), which is unitary, so on infinite signals every factor has
    norm 1 if patches are as far apart as the stride, or further. A dilated kernel sees each residue class of places
    apart, a signal of its own, in which it moves by stride / gcd(stride, dilation).

    Zero padding extends a finite signal by zeros, an isometry, and keeps some of the outputs, a projection: the norm
    stays at most 1 for every input size. The same holds for any other padding that is an isometry. On a torus it
    holds if the stride divides its size: it has size / stride outputs, all of which are there if both borders
    together are padded by what the kernel spans less the stride. A transpose has the norm of what it transposes.
    """

    rows: int
    columns: int
    groups: int
    sizes: tuple[int, ...]
    patch: tuple[int, ...]

    @property
    def on_rows(self) -> bool:
        """Whether taps mix the rows: the wider side, where there is more to mix."""
        return math.prod(self.patch) == 1 and self.rows > self.columns

    @property
    def width(self) -> int:
        """How many channels the taps mix; a single one has nothing to mix."""
        return (self.rows if self.on_rows else self.columns) // self.groups

    @property
    def taps(self) -> list[tuple[int, bool]]:
        """Axes of two-tap factors, and whether the taps are the other way round.

        Every other one is: otherwise they would shift the image to one side.
        """
        missing = [size - patch for size, patch in zip(self.sizes, self.patch, strict=True)]
        turns = range(max(missing))
        return [(axis, turn % 2 == 1) for turn in turns for axis, count in enumerate(missing) if turn < count]

    def parameters(self) -> tuple[nn.Parameter, nn.Parameter | None]:
        """Free parameters of the patches and of the taps, if these have any."""
        apart = () if self.groups == 1 else (self.groups,)
        patches = torch.empty(*apart, self.rows // self.groups, self.columns // self.groups * math.prod(self.patch))
        for patch in patches.view(-1, *patches.shape[-2:]):
            nn.init.orthogonal_(patch)
        shape = (len(self.taps), *apart, self.width // 2, self.width)
        if not math.prod(shape):
            # One channel has no projectors but 0 and 1: nothing to train, and DDP dislikes parameters without gradient.
            return nn.Parameter(patches), None
        return nn.Parameter(patches), nn.Parameter(nn.init.normal_(torch.empty(shape), std=1 / math.sqrt(self.width)))

    def kernel(self, raw_patch: Tensor, raw_taps: Tensor | None) -> Tensor:
        """The kernel of these free parameters."""
        with torch.autocast(raw_patch.device.type, enabled=False):
            grouped = (self.groups, self.rows // self.groups, self.columns // self.groups)
            kernel = orthogonal(raw_patch).reshape(*grouped, *self.patch)
            projectors = kernel.new_zeros(len(self.taps), self.groups, self.width, self.width)
            if raw_taps is not None:
                rows = orthonormal_rows(raw_taps)
                projectors = (rows.mT @ rows).reshape(projectors.shape)
            for (axis, flip), projector in zip(self.taps, projectors, strict=True):
                kernel = self._compose(kernel, projector, axis, flip)
        return kernel.flatten(0, 1).to(raw_patch.dtype)

    def _compose(self, kernel: Tensor, projector: Tensor, axis: int, flip: bool) -> Tensor:
        if self.on_rows:
            here = torch.einsum("gpo,goi...->gpi...", projector, kernel)
        else:
            here = torch.einsum("goi...,gip->gop...", kernel, projector)
        there = kernel - here
        first, second = (there, here) if flip else (here, there)
        last = len(self.sizes) - 1 - axis  # F.pad counts axes from the last
        return F.pad(first, [0, 0] * last + [0, 1]) + F.pad(second, [0, 0] * last + [1, 0])


def block_kernel(
    rows: int, columns: int, groups: int, sizes: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> BlockKernel:
    """The one of a convolution with these settings; of a transposed one, with its input in the place of rows."""
    if rows % groups or columns % groups:
        raise ValueError(f"`groups` must divide the channels of input and output, got {groups}")
    axes = zip(sizes, stride, dilation, strict=True)
    patch = tuple(min(size, step // math.gcd(step, apart)) for size, step, apart in axes)
    return BlockKernel(rows, columns, groups, sizes, patch)


class BlockConvolution(nn.Module, Fixable):
    """What a convolution with such a kernel and a transposed one have in common: all settings but the padding."""

    axes: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int],
        dilation: int | Sequence[int],
        groups: int,
    ) -> None:
        super().__init__()
        check_at_least(1, in_channels=in_channels, out_channels=out_channels, groups=groups)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = by_axis("kernel_size", kernel_size, self.axes)
        self.stride = by_axis("stride", stride, self.axes)
        self.dilation = by_axis("dilation", dilation, self.axes)
        self.groups = groups

    def _make_parameters(self, rows: int, columns: int, bias: bool) -> None:
        self._blocks = block_kernel(rows, columns, self.groups, self.kernel_size, self.stride, self.dilation)
        self.raw_patch, self.raw_taps = self._blocks.parameters()
        self.bias = nn.Parameter(torch.zeros(self.out_channels)) if bias else None

    @property
    def weight(self) -> Tensor:
        """The kernel, in the shape that torch's layer of this kind has."""
        return self._blocks.kernel(self.raw_patch, self.raw_taps)
