# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Linear maps of norm 1 by construction: matrices and convolutions made orthogonal from a free parameter."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from lightning_crmt.checks import check_at_least
from lightning_crmt.layers.fixed_weights import Fixable

#: Rows by the identity of the frozen parameter, which is kept so that no other one can have it.
_KEPT: ContextVar[dict[int, tuple[Tensor, Tensor]] | None] = ContextVar("kept rows", default=None)


@contextmanager
def kept_rows() -> Iterator[None]:
    """Inside, the orthonormal rows of a frozen parameter are computed once; parameters must not change meanwhile.

    For many passes through the same model, where a decomposition in each would cost as much as the rest.

    >>> layer = OrthogonalLinear(5, 3).requires_grad_(False)
    >>> with kept_rows():
    ...     orthonormal_rows(layer.raw) is orthonormal_rows(layer.raw)
    True
    """
    token = _KEPT.set({})
    try:
        yield
    finally:
        _KEPT.reset(token)


def orthonormal_rows(raw: Tensor) -> Tensor:
    r"""Rows that are orthonormal, as a smooth function of a free parameter.

    The Q factor of the transpose, with the signs that make the diagonal of R positive: so it is unique.

    Args:
        raw: ``(..., n, d)`` with n <= d, of full rank.

    Returns:
        ``(..., n, d)`` in single precision, or in double if ``raw`` is: there is no QR in half precision, and norms and
        margins deserve better anyway.

    >>> rows = orthonormal_rows(torch.randn(3, 5))
    >>> torch.allclose(rows @ rows.mT, torch.eye(3), atol=1e-6)
    True
    """
    frozen = isinstance(raw, nn.Parameter) and not raw.requires_grad
    kept = _KEPT.get() if frozen and not torch.compiler.is_compiling() else None
    if kept is not None and id(raw) in kept:
        return kept[id(raw)][1]
    with torch.autocast(raw.device.type, enabled=False):
        wide = raw if raw.dtype is torch.float64 else raw.float()
        q, r = torch.linalg.qr(wide.mT)
        signs = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(q.dtype)
        rows: Tensor = (q * signs[..., None, :]).mT
    if kept is not None:
        kept[id(raw)] = (raw, rows)
    return rows


Plain = TypeVar("Plain", bound=nn.Linear | nn.Conv1d | nn.Conv2d)


def _storing(weight: Tensor, bias: Tensor | None, plain: Plain) -> Plain:
    plain.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        plain.bias = nn.Parameter(bias.detach().clone())
    return plain


def _orthogonal(raw: Tensor) -> Tensor:
    """``raw`` made orthonormal along its shorter side."""
    return orthonormal_rows(raw) if raw.shape[0] <= raw.shape[1] else orthonormal_rows(raw.mT).mT


class OrthogonalLinear(nn.Module, Fixable):
    r"""Linear layer :math:`x \mapsto W x + b` with orthonormal rows, or columns where there are more rows.

    .. math:: W W^\top = I \text{ or } W^\top W = I, \qquad \|W\|_2 = 1

    W is computed from the free parameter ``raw`` in every forward pass, so it is orthogonal up to rounding whatever the
    optimiser or weight decay does. :func:`~lightning_crmt.lipschitz.lipschitz_bound` measures W and does not assume 1.

    Args:
        in_features: size of the last dimension of the input.
        out_features: size of the last dimension of the output.
        bias: whether to add a bias.

    Raises:
        ValueError: if a size is below 1.

    >>> layer = OrthogonalLinear(5, 3)
    >>> layer(torch.randn(2, 5)).shape
    torch.Size([2, 3])
    >>> torch.allclose(layer.weight @ layer.weight.mT, torch.eye(3), atol=1e-6)
    True
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        check_at_least(1, in_features=in_features, out_features=out_features)
        self.in_features = in_features
        self.out_features = out_features
        self.raw = nn.Parameter(nn.init.orthogonal_(torch.empty(out_features, in_features)))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    @property
    def weight(self) -> Tensor:
        """The orthogonal matrix W, ``(out_features, in_features)``."""
        return _orthogonal(self.raw).to(self.raw.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., out_features)`` of ``(..., in_features)``."""
        return F.linear(x, self.weight, self.bias)

    @override
    def fixed(self) -> nn.Linear:
        """A linear layer that stores W."""
        self._refuse_overridden(OrthogonalLinear, "forward")
        # On no device: its own random weights are not wanted, nor the random numbers they would take.
        plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        return _storing(self.weight, self.bias, plain)

    @override
    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class _OrthogonalConv(nn.Module, Fixable):
    # One kernel of size k and stride s is the product of
    #  - a matrix with orthonormal rows or columns on disjoint patches of size s, and
    #  - along every axis, k - s convolutions with two taps P and I - P, P an orthogonal projector.
    # A two-tap convolution has the symbol P + e^{iw} (I - P), which is unitary, so on infinite signals every factor has
    # norm 1. Zero padding extends a finite signal by zeros, an isometry, and keeps some of the outputs, a projection:
    # the norm stays at most 1 for every input size. On a torus the same holds if the stride divides its size: it has
    # size / stride outputs, all of which are there if both borders together are padded by k - s rows or more.
    axes: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int | Literal["same"] | None = None,
        bias: bool = True,
        padding_mode: Literal["zeros", "circular"] = "zeros",
    ) -> None:
        super().__init__()
        check_at_least(1, in_channels=in_channels, out_channels=out_channels, stride=stride)
        if isinstance(padding, str):
            if padding != "same" or stride > 1:
                raise ValueError(
                    f"`padding` must be a number, or 'same' where `stride` is 1, got {padding!r} and {stride}"
                )
        else:
            check_at_least(0, padding=padding)
        if kernel_size < stride:
            raise ValueError(f"`kernel_size` must be at least `stride` = {stride}, got {kernel_size}")
        if padding_mode not in ("zeros", "circular"):
            raise ValueError(f"`padding_mode` must be 'zeros' or 'circular', got {padding_mode!r}")
        if padding is None:
            padding, odd = divmod(kernel_size - stride, 2)
            if odd and padding_mode == "circular":  # or the last outputs would be missing
                padding = padding + 1 if stride > 1 else "same"
        if padding_mode == "circular" and not isinstance(padding, str) and 2 * padding >= kernel_size:
            raise ValueError(
                f"`padding` must be below half of `kernel_size` = {kernel_size} if circular, or outputs appear twice; "
                f"got {padding}"
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = kernel_size
        self.stride = stride
        self.padding = padding
        self.padding_mode = padding_mode
        # The taps mix channels on the wider side, where there is more to mix; a single channel has nothing.
        self._taps_on_output = stride == 1 and out_channels > in_channels
        width = out_channels if self._taps_on_output else in_channels
        patch = torch.empty(out_channels, in_channels * stride**self.axes)
        self.raw_patch = nn.Parameter(nn.init.orthogonal_(patch))
        self._taps = (self.axes * (kernel_size - stride), width // 2, width)
        # One channel has no projectors but 0 and 1: nothing to train, and DDP dislikes parameters without gradient.
        free = nn.init.normal_(torch.empty(self._taps), std=1 / math.sqrt(width)) if math.prod(self._taps) else None
        self.raw_taps = None if free is None else nn.Parameter(free)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    @property
    def weight(self) -> Tensor:
        """The kernel, ``(out_channels, in_channels, kernel_size, ...)``."""
        with torch.autocast(self.raw_patch.device.type, enabled=False):
            patch = (self.out_channels, self.in_channels) + (self.stride,) * self.axes
            kernel = _orthogonal(self.raw_patch).reshape(patch)
            count, _, width = self._taps
            projectors = kernel.new_zeros(count, width, width)
            if self.raw_taps is not None:
                rows = orthonormal_rows(self.raw_taps)
                projectors = rows.mT @ rows
            for index, projector in enumerate(projectors):
                kernel = self._compose(kernel, projector, axis=index % self.axes, flip=index // self.axes % 2 == 1)
        return kernel.to(self.raw_patch.dtype)

    def _compose(self, kernel: Tensor, projector: Tensor, axis: int, flip: bool) -> Tensor:
        if self._taps_on_output:
            here = torch.einsum("po,oi...->pi...", projector, kernel)
        else:
            here = torch.einsum("oi...,ip->op...", kernel, projector)
        there = kernel - here
        # Every other factor has its taps the other way round: otherwise they would shift the image to one side.
        first, second = (there, here) if flip else (here, there)
        after = [0] * (2 * self.axes)
        after[2 * (self.axes - 1 - axis) + 1] = 1  # F.pad counts axes from the last
        before = [0] * (2 * self.axes)
        before[2 * (self.axes - 1 - axis)] = 1
        return F.pad(first, after) + F.pad(second, before)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, out_channels, ...)`` of ``(B, in_channels, ...)``.

        Raises:
            ValueError: if padding is circular and the stride does not divide the size of the input: patches would
                overlap where it closes, and the norm exceed 1.
        """
        convolve = F.conv1d if self.axes == 1 else F.conv2d
        circular = self.padding_mode == "circular"
        if circular and any(size % self.stride for size in x.shape[2:]):
            raise ValueError(
                f"`x` must have sizes that `stride` = {self.stride} divides if padding is circular, "
                f"got {tuple(x.shape)}"
            )
        padding, both = self.padding, self.kernel_size - 1
        if padding == "same":
            around = [both // 2, both - both // 2]
        elif circular and not isinstance(padding, str):
            around = [padding, padding]
        else:  # also of another name, if it was set since
            return convolve(x, self.weight, self.bias, self.stride, padding)
        x = F.pad(x, around * self.axes, mode="circular" if circular else "constant")
        return convolve(x, self.weight, self.bias, self.stride)

    @override
    def fixed(self) -> nn.Conv1d | nn.Conv2d:
        """A convolution that stores the kernel."""
        self._refuse_overridden(_OrthogonalConv, "forward")
        plain = (nn.Conv1d if self.axes == 1 else nn.Conv2d)(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            bias=self.bias is not None,
            padding_mode=self.padding_mode,
            device="meta",
        )
        return _storing(self.weight, self.bias, plain)

    @override
    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding!r}, bias={self.bias is not None}, padding_mode={self.padding_mode!r}"
        )


class OrthogonalConv1d(_OrthogonalConv):
    """:class:`OrthogonalConv2d` for sequences ``(B, C, T)``, with the same arguments and errors.

    With circular padding, as it is by default, it keeps every norm if ``out_channels >= in_channels * stride``.

    >>> layer = OrthogonalConv1d(4, 8, kernel_size=3, padding_mode="circular", bias=False)
    >>> x = torch.randn(2, 4, 50)
    >>> layer(x).shape, torch.allclose(layer(x).norm(), x.norm())
    (torch.Size([2, 8, 50]), True)
    """

    axes = 1


class OrthogonalConv2d(_OrthogonalConv):
    r"""Convolution whose operator has norm at most 1, for every input size, zero or circular padding, any stride.

    With circular padding, which takes sizes that the stride divides, it is orthogonal: it keeps every norm if
    ``out_channels >= in_channels * stride**2`` and ``padding`` is left as it is, ``"same"``, or a number of at least
    ``(kernel_size - stride) / 2``; with less, outputs are missing, and what is in them alone is lost. With zero padding
    it keeps norms but for what is lost at the border.

    The kernel is a product of orthogonal factors, one on patches of size ``stride`` and two-tap convolutions
    :math:`(P, I - P)` with projectors P of half rank along each axis (block convolution, Xiao et al., ICML 2018, Li et
    al., NeurIPS 2019; the strided form as in Boissin et al., 2025). No layer beyond ``torch`` is needed.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: side of the kernel, at least ``stride``; equal to it, patches do not overlap.
        stride: step between patches.
        padding: rows added at each border, below half of ``kernel_size`` if circular; or ``"same"``, with stride 1:
            ``kernel_size - 1`` rows at both together, the odd one at the end. By default half of
            ``kernel_size - stride``, which divides sizes by ``stride``. Where that is no whole number, it is rounded
            down for zeros and up for circular padding, or is ``"same"``.
        bias: whether to add a bias per channel.
        padding_mode: ``"zeros"`` or ``"circular"``.

    Raises:
        ValueError: if an argument is out of range.

    >>> layer = OrthogonalConv2d(4, 16, kernel_size=4, stride=2, padding_mode="circular", bias=False)
    >>> x = torch.randn(2, 4, 8, 8)
    >>> layer(x).shape
    torch.Size([2, 16, 4, 4])
    >>> torch.allclose(layer(x).norm(), x.norm())
    True
    """

    axes = 2
