# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Linear maps of norm 1 by construction: matrices and convolutions made orthogonal from a free parameter."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from lightning_crmt.checks import check_at_least
from lightning_crmt.layers.fixed_weights import Fixable
from lightning_crmt.layers.one_lipschitz import ScaledPad

#: By the identity of a frozen parameter, which is kept so that no other one can have it: its stamp, and its rows.
_KEPT: ContextVar[dict[int, tuple[Tensor, Hashable, Tensor]] | None] = ContextVar("kept rows", default=None)


@contextmanager
def kept_rows() -> Iterator[None]:
    """Inside, the orthonormal rows of a frozen parameter are computed once, and again should it change.

    For many passes through the same model, where a decomposition in each would cost as much as the rest. A change in
    place through ``parameter.data`` is not seen.

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
    return _kept(raw, _rows)


def _rows(raw: Tensor) -> Tensor:
    with torch.autocast(raw.device.type, enabled=False):
        wide = raw if raw.dtype is torch.float64 else raw.float()
        q, r = torch.linalg.qr(wide.mT)
        signs = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(q.dtype)
        rows: Tensor = (q * signs[..., None, :]).mT
    return rows


def _columns(raw: Tensor) -> Tensor:
    return _rows(raw.mT).mT


def _kept(raw: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
    """``compute(raw)``, or what it was if :func:`kept_rows` says so and the frozen ``raw`` is as it was."""
    frozen = isinstance(raw, nn.Parameter) and not raw.requires_grad
    kept = _KEPT.get() if frozen and not torch.compiler.is_compiling() else None
    if kept is None:
        return compute(raw)
    stamp = raw.dtype, raw.data_ptr(), None if raw.is_inference() else raw._version
    if id(raw) in kept:
        _, before, rows = kept[id(raw)]
        # What was computed in inference mode is of no use to a gradient.
        if before == stamp and (torch.is_inference_mode_enabled() or not rows.is_inference()):
            return rows
    rows = compute(raw)
    kept[id(raw)] = (raw, stamp, rows)
    return rows


Plain = TypeVar("Plain", nn.Linear, nn.Conv1d | nn.Conv2d, nn.ConvTranspose1d | nn.ConvTranspose2d)


def _storing(weight: Tensor, bias: Tensor | None, plain: Plain) -> Plain:
    plain.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        plain.bias = nn.Parameter(bias.detach().clone())
    return plain


def _orthogonal(raw: Tensor) -> Tensor:
    """``raw`` made orthonormal along its shorter side."""
    return _kept(raw, _rows if raw.shape[-2] <= raw.shape[-1] else _columns)


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


def _by_axis(name: str, value: int | Sequence[int], axes: int, least: int = 1) -> tuple[int, ...]:
    """A setting that may be one number for all axes."""
    sizes = tuple(value) if isinstance(value, Sequence) else (value,) * axes
    if len(sizes) != axes:
        raise ValueError(f"`{name}` must be one number or {axes}, one for each axis, got {value!r}")
    check_at_least(least, **{name: min(sizes)})
    return sizes


@dataclass(frozen=True)
class _Blocks:
    # How a kernel (rows, columns / groups, *sizes) is made of orthogonal factors. In each group it is the product of
    #  - a matrix with orthonormal rows or columns on disjoint patches, and
    #  - along every axis, as many convolutions with two taps P and I - P as the patch is smaller than the kernel there,
    #    P an orthogonal projector.
    # A two-tap convolution has the symbol P + e^{iw} (I - P), which is unitary, so on infinite signals every factor has
    # norm 1 if patches are as far apart as the stride, or further. A dilated kernel sees each residue class of places
    # apart, a signal of its own, in which it moves by stride / gcd(stride, dilation).
    # Zero padding extends a finite signal by zeros, an isometry, and keeps some of the outputs, a projection: the norm
    # stays at most 1 for every input size. The same holds for any other padding that is an isometry. On a torus it
    # holds if the stride divides its size: it has size / stride outputs, all of which are there if both borders
    # together are padded by what the kernel spans less the stride. A transpose has the norm of what it transposes.
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
        with torch.autocast(raw_patch.device.type, enabled=False):
            grouped = (self.groups, self.rows // self.groups, self.columns // self.groups)
            kernel = _orthogonal(raw_patch).reshape(*grouped, *self.patch)
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


def _blocks(
    rows: int, columns: int, groups: int, sizes: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> _Blocks:
    if rows % groups or columns % groups:
        raise ValueError(f"`groups` must divide the channels of input and output, got {groups}")
    axes = zip(sizes, stride, dilation, strict=True)
    patch = tuple(min(size, step // math.gcd(step, apart)) for size, step, apart in axes)
    return _Blocks(rows, columns, groups, sizes, patch)


class _OrthogonalConv(nn.Module, Fixable):
    axes: int

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
        super().__init__()
        check_at_least(1, in_channels=in_channels, out_channels=out_channels, groups=groups)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = _by_axis("kernel_size", kernel_size, self.axes)
        self.stride = _by_axis("stride", stride, self.axes)
        self.dilation = _by_axis("dilation", dilation, self.axes)
        self.groups = groups
        if padding_mode not in ("zeros", "reflect", "replicate", "circular"):
            raise ValueError(
                f"`padding_mode` must be 'zeros', 'reflect', 'replicate' or 'circular', got {padding_mode!r}"
            )
        self.padding_mode = padding_mode
        self.padding = self._padding(padding)
        self._blocks = _blocks(out_channels, in_channels, groups, self.kernel_size, self.stride, self.dilation)
        self.raw_patch, self.raw_taps = self._blocks.parameters()
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

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
        rows = _by_axis("padding", padding, self.axes, least=0)
        if circular and any(2 * each >= span for each, span in zip(rows, spans, strict=True)):
            raise ValueError(
                f"`padding` must be below half of what the kernel spans, {spans}, if circular, or outputs appear "
                f"twice; got {rows}"
            )
        return rows

    @property
    def weight(self) -> Tensor:
        """The kernel, ``(out_channels, in_channels / groups, *kernel_size)``."""
        return self._blocks.kernel(self.raw_patch, self.raw_taps)

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
        return [(rows, rows) for rows in _by_axis("padding", self.padding, self.axes, least=0)]

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
        stored = _storing(self.weight, self.bias, plain)
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

    >>> layer = OrthogonalConv2d(4, 16, kernel_size=4, stride=2, padding_mode="circular", bias=False)
    >>> x = torch.randn(2, 4, 8, 8)
    >>> layer(x).shape
    torch.Size([2, 16, 4, 4])
    >>> torch.allclose(layer(x).norm(), x.norm())
    True
    """

    axes = 2


class _OrthogonalConvTranspose(nn.Module, Fixable):
    axes: int

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
        super().__init__()
        check_at_least(1, in_channels=in_channels, out_channels=out_channels, groups=groups)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = _by_axis("kernel_size", kernel_size, self.axes)
        self.stride = _by_axis("stride", stride, self.axes)
        self.padding = _by_axis("padding", padding, self.axes, least=0)
        self.output_padding = _by_axis("output_padding", output_padding, self.axes, least=0)
        self.groups = groups
        self.dilation = _by_axis("dilation", dilation, self.axes)
        larger = [max(pair) for pair in zip(self.stride, self.dilation, strict=True)]
        if any(rows >= limit for rows, limit in zip(self.output_padding, larger, strict=True)):
            raise ValueError(
                f"`output_padding` must be below the larger of `stride` and `dilation`, {tuple(larger)}, "
                f"got {self.output_padding}"
            )
        self._blocks = _blocks(in_channels, out_channels, groups, self.kernel_size, self.stride, self.dilation)
        self.raw_patch, self.raw_taps = self._blocks.parameters()
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    @property
    def weight(self) -> Tensor:
        """The kernel, ``(in_channels, out_channels / groups, *kernel_size)``."""
        return self._blocks.kernel(self.raw_patch, self.raw_taps)

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
        return _storing(self.weight, self.bias, plain)

    @override
    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, output_padding={self.output_padding}, groups={self.groups}, "
            f"bias={self.bias is not None}, dilation={self.dilation}"
        )


class OrthogonalConvTranspose1d(_OrthogonalConvTranspose):
    """:class:`OrthogonalConvTranspose2d` for sequences ``(B, C, T)``, with the same arguments and errors.

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

    >>> layer = OrthogonalConvTranspose2d(8, 2, kernel_size=2, stride=2, bias=False)
    >>> x = torch.randn(2, 8, 4, 4)
    >>> layer(x).shape
    torch.Size([2, 2, 8, 8])
    >>> torch.allclose(layer(x).norm(), x.norm())
    True
    """

    axes = 2
