# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Convolutions of norm 1 by construction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from lightning_crmt.layers.block_kernel import BlockConvolution, by_axis
from lightning_crmt.layers.one_lipschitz import ScaledPad
from lightning_crmt.layers.orthogonal import storing


class _OrthogonalConv(BlockConvolution):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | Literal["same", "valid"] | None = None,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, dilation, groups)
        if padding_mode not in ("zeros", "reflect", "replicate", "circular"):
            raise ValueError(
                f"`padding_mode` must be 'zeros', 'reflect', 'replicate' or 'circular', got {padding_mode!r}"
            )
        self.padding_mode = padding_mode
        self.padding = self._padding(padding)
        self._make_parameters(out_channels, in_channels, bias)

    def _padding(self, padding: int | Sequence[int] | str | None) -> tuple[int, ...] | str:
        circular = self.padding_mode == "circular"
        spans = tuple(d * (k - 1) + 1 for k, d in zip(self.kernel_size, self.dilation, strict=True))
        if padding is None:
            missing = [max(span - step, 0) for span, step in zip(spans, self.stride, strict=True)]
            if circular and max(self.stride) == 1 and any(each % 2 for each in missing):
                return "same"  # or the last outputs would be missing
            # Rounded up it would have outputs twice where the stride is 1.
            up = [circular and step > 1 for step in self.stride]
            return tuple((each + more) // 2 for each, more in zip(missing, up, strict=True))
        if isinstance(padding, str):
            if padding not in ("same", "valid") or (padding == "same" and max(self.stride) > 1):
                raise ValueError(
                    f"`padding` must be numbers, 'valid', or 'same' where `stride` is 1, got {padding!r} and "
                    f"{self.stride}"
                )
            return padding
        rows = by_axis("padding", padding, self.axes, least=0)
        if circular and any(2 * each >= span for each, span in zip(rows, spans, strict=True)):
            raise ValueError(
                f"`padding` must be below half of what the kernel spans, {spans}, if circular, or outputs appear "
                f"twice; got {rows}"
            )
        return rows

    def forward(self, x: Tensor) -> Tensor:
        """``(B, out_channels, ...)`` of ``(B, in_channels, ...)``.

        Raises:
            ValueError: if padding is circular and the stride does not divide the size of the input: patches would
                overlap where it closes, and the norm exceed 1.
        """
        if self.padding_mode == "circular" and any(
            size % step for size, step in zip(x.shape[-self.axes :], self.stride, strict=False)
        ):
            raise ValueError(
                f"`x` must have sizes that `stride` = {self.stride} divides if padding is circular, "
                f"got {tuple(x.shape)}"
            )
        if self.padding_mode in ("reflect", "replicate"):
            x = self._scaled_pad()(x)
        elif self.padding == "same" or self.padding_mode == "circular":
            around = [rows for pair in reversed(self._around()) for rows in pair]
            x = F.pad(x, around, mode="circular" if self.padding_mode == "circular" else "constant")
        elif not isinstance(self.padding, str):
            return self._convolve(x, self.padding)
        return self._convolve(x, 0)

    def _convolve(self, x: Tensor, padding: int | tuple[int, ...]) -> Tensor:
        convolve = F.conv1d if self.axes == 1 else F.conv2d
        return convolve(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)

    def _around(self) -> list[tuple[int, int]]:
        """Rows before and after, by axis; of the present ``padding``, should it have been set."""
        if isinstance(self.padding, str):
            same = self.padding == "same"
            both = [d * (k - 1) * same for k, d in zip(self.kernel_size, self.dilation, strict=True)]
            return [(rows // 2, rows - rows // 2) for rows in both]
        return [(rows, rows) for rows in by_axis("padding", self.padding, self.axes, least=0)]

    def _scaled_pad(self) -> ScaledPad:
        return ScaledPad(self._around(), self.padding_mode)

    @override
    def fixed(self) -> nn.Module:
        """A convolution that stores the kernel, behind a :class:`ScaledPad` if padding repeats inputs."""
        self._refuse_overridden(_OrthogonalConv, "forward")
        repeats = self.padding_mode in ("reflect", "replicate")
        settings: dict[str, Any] = {
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "padding": 0 if repeats else self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
            "bias": self.bias is not None,
            "padding_mode": "zeros" if repeats else self.padding_mode,
            "device": "meta",
        }
        plain = (nn.Conv1d if self.axes == 1 else nn.Conv2d)(self.in_channels, self.out_channels, **settings)
        stored = storing(self.weight, self.bias, plain)
        return nn.Sequential(self._scaled_pad(), stored) if repeats else stored

    @override
    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding!r}, dilation={self.dilation}, groups={self.groups}, "
            f"bias={self.bias is not None}, padding_mode={self.padding_mode!r}"
        )


class OrthogonalConv1d(_OrthogonalConv):
    """:class:`OrthogonalConv2d` for sequences ``(B, C, T)``, with the same arguments and errors.

    With circular padding, as it is by default, it keeps every norm if ``out_channels >= in_channels * stride``.

    >>> import torch
    >>> layer = OrthogonalConv1d(4, 8, kernel_size=3, padding_mode="circular", bias=False)
    >>> x = torch.randn(2, 4, 50)
    >>> layer(x).shape, torch.allclose(layer(x).norm(), x.norm())
    (torch.Size([2, 8, 50]), True)
    """

    axes = 1


class OrthogonalConv2d(_OrthogonalConv):
    r"""Convolution whose operator has norm at most 1, for every input size and all settings of ``nn.Conv2d``.

    The kernel is a product of orthogonal factors, one on patches of the size of the stride and two-tap convolutions
    :math:`(P, I - P)` with projectors P of half rank along each axis (block convolution, Xiao et al., ICML 2018, Li et
    al., NeurIPS 2019; the strided form, groups and dilation as in Boissin et al., 2025). No layer beyond ``torch`` is
    needed. What becomes of norms depends on the padding:

    - ``"circular"``, which takes sizes that the stride divides, keeps every norm if ``out_channels`` is at least
      ``in_channels`` times the strides of all axes, and along each axis the kernel is no shorter than the stride, which
      has no divisor in common with the dilation, and both paddings together are at least
      ``dilation * (kernel_size - 1) + 1 - stride``, as by default but for axes of stride 1 beside longer strides; with
      less, outputs are missing, and what is in them alone is lost.
    - ``"zeros"`` keeps norms likewise, but for what is lost at the border.
    - ``"reflect"`` and ``"replicate"`` repeat inputs, which can raise the norm to 2 and more. So each input is divided
      by the square root of how often it is there after padding, as by :class:`ScaledPad`, and nothing else is changed:
      what stands further from the border than the padding is wide stays as it is.

    A group of one channel has nothing to mix: a depthwise convolution by one of these kernels only shifts.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: of the kernel, one number or one by axis; equal to the stride, patches do not overlap, and below
            it, some inputs are not read.
        stride: step between patches, one number or one by axis.
        padding: rows added at each border, one number or one by axis, below half of what the kernel spans if circular;
            or ``"valid"``, none; or ``"same"``, with stride 1: ``dilation * (kernel_size - 1)`` rows at both together,
            the odd one at the end. By default half of ``dilation * (kernel_size - 1) + 1 - stride``, which divides
            sizes by ``stride``. Where that is no whole number, it is rounded down; with circular padding up, where the
            stride is above 1, or it is ``"same"`` where all strides are 1.
        dilation: step between taps of the kernel, one number or one by axis.
        groups: blocks of channels that do not mix; divides both numbers of channels.
        bias: whether to add a bias per channel.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.

    Raises:
        ValueError: if an argument is out of range.

    >>> import torch
    >>> layer = OrthogonalConv2d(4, 16, kernel_size=4, stride=2, padding_mode="circular", bias=False)
    >>> x = torch.randn(2, 4, 8, 8)
    >>> layer(x).shape
    torch.Size([2, 16, 4, 4])
    >>> torch.allclose(layer(x).norm(), x.norm())
    True
    """

    axes = 2
