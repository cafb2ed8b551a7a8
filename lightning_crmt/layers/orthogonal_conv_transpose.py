# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Transposed convolutions of norm 1 by construction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from lightning_crmt.layers.block_kernel import BlockConvolution, by_axis
from lightning_crmt.layers.orthogonal import storing


class _OrthogonalConvTranspose(BlockConvolution):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        output_padding: int | Sequence[int] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | Sequence[int] = 1,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, dilation, groups)
        self.padding = by_axis("padding", padding, self.axes, least=0)
        self.output_padding = by_axis("output_padding", output_padding, self.axes, least=0)
        larger = [max(pair) for pair in zip(self.stride, self.dilation, strict=True)]
        if any(rows >= limit for rows, limit in zip(self.output_padding, larger, strict=True)):
            raise ValueError(
                f"`output_padding` must be below the larger of `stride` and `dilation`, {tuple(larger)}, "
                f"got {self.output_padding}"
            )
        self._make_parameters(in_channels, out_channels, bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, out_channels, ...)`` of ``(B, in_channels, ...)``."""
        transposed = F.conv_transpose1d if self.axes == 1 else F.conv_transpose2d
        return transposed(
            x, self.weight, self.bias, self.stride, self.padding, self.output_padding, self.groups, self.dilation
        )

    @override
    def fixed(self) -> nn.ConvTranspose1d | nn.ConvTranspose2d:
        """A transposed convolution that stores the kernel."""
        self._refuse_overridden(_OrthogonalConvTranspose, "forward")
        settings: dict[str, Any] = {
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "padding": self.padding,
            "output_padding": self.output_padding,
            "groups": self.groups,
            "bias": self.bias is not None,
            "dilation": self.dilation,
            "device": "meta",
        }
        kind = nn.ConvTranspose1d if self.axes == 1 else nn.ConvTranspose2d
        plain = kind(self.in_channels, self.out_channels, **settings)
        return storing(self.weight, self.bias, plain)

    @override
    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, output_padding={self.output_padding}, groups={self.groups}, "
            f"bias={self.bias is not None}, dilation={self.dilation}"
        )


class OrthogonalConvTranspose1d(_OrthogonalConvTranspose):
    """:class:`OrthogonalConvTranspose2d` for sequences ``(B, C, T)``, with the same arguments and errors.

    >>> import torch
    >>> layer = OrthogonalConvTranspose1d(6, 3, kernel_size=4, stride=2, bias=False)
    >>> x = torch.randn(2, 6, 5)
    >>> layer(x).shape, torch.allclose(layer(x).norm(), x.norm())
    (torch.Size([2, 3, 12]), True)
    """

    axes = 1


class OrthogonalConvTranspose2d(_OrthogonalConvTranspose):
    """Transposed convolution whose operator has norm at most 1, for every input size and all settings of torch's.

    It is the transpose of an :class:`OrthogonalConv2d` with zero padding, whose norm it has. With ``padding=0`` it
    keeps every norm if ``in_channels`` is at most ``out_channels`` times the product over the axes of
    ``min(kernel_size, stride / gcd(stride, dilation))``; with more padding, but for what is lost at the border.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: of the kernel, one number or one by axis.
        stride: step between patches of the output, one number or one by axis.
        padding: rows taken away at each border of the output, one number or one by axis.
        output_padding: rows added at the end of the output, one number or one by axis, below the stride or dilation.
        groups: blocks of channels that do not mix; divides both numbers of channels.
        bias: whether to add a bias per channel.
        dilation: step between taps of the kernel, one number or one by axis.

    Raises:
        ValueError: if an argument is out of range.

    >>> import torch
    >>> layer = OrthogonalConvTranspose2d(8, 2, kernel_size=2, stride=2, bias=False)
    >>> x = torch.randn(2, 8, 4, 4)
    >>> layer(x).shape
    torch.Size([2, 2, 8, 8])
    >>> torch.allclose(layer(x).norm(), x.norm())
    True
    """

    axes = 2
