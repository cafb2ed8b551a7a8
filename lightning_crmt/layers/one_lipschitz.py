# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""1-Lipschitz layers in the l2 norm, to build encoders whose sound bound is 1, and one that scales."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from lightning_crmt.checks import check_at_least


class GroupSort(nn.Module):
    """Sorts each group of channels: an activation that keeps every norm, and every gradient's norm.

    (Anil, Lucas and Grosse, ICML 2019.) Where ReLU halves what an orthogonal layer preserved, sorting only permutes.

    Args:
        group_size: channels per group, at least 2; must divide the number of channels, dimension 1 of the input.

    Raises:
        ValueError: if ``group_size`` is below 2, or does not divide the channels of an input.

    >>> GroupSort()(torch.tensor([[3.0, 1.0, 2.0, 5.0]]))
    tensor([[1., 3., 2., 5.]])
    """

    def __init__(self, group_size: int = 2) -> None:
        super().__init__()
        check_at_least(2, group_size=group_size)
        self.group_size = group_size

    def forward(self, x: Tensor) -> Tensor:
        """The same shape, ``(B, C, ...)``."""
        if x.dim() < 2 or x.shape[1] % self.group_size:
            raise ValueError(
                f"`x` must have shape (B, C, ...) with C a multiple of `group_size` = {self.group_size}, "
                f"got {tuple(x.shape)}"
            )
        # Not -1, which says nothing in an empty batch.
        groups = x.reshape(x.shape[0], x.shape[1] // self.group_size, self.group_size, *x.shape[2:])
        if self.group_size > 2:
            return torch.sort(groups, dim=2).values.flatten(1, 2)
        if torch.compiler.is_compiling():  # compilers and exporters do better with plain operations
            return _SortedPairs.forward(groups).flatten(1, 2)
        return _sorted_pairs(groups).flatten(1, 2)

    @override
    def extra_repr(self) -> str:
        return f"group_size={self.group_size}"


class _SortedPairs(torch.autograd.Function):
    """Pairs along dimension 2, sorted: several times cheaper than ``torch.sort``, and than what autograd makes of it.

    Equal numbers stay where they are, and so does their gradient, so that its norm is kept there too.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(pairs: Tensor) -> Tensor:
        first, second = pairs.unbind(2)
        return torch.stack([torch.minimum(first, second), torch.maximum(first, second)], dim=2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        first, second = ctx.saved_tensors[0].unbind(2)
        low, high = gradient.unbind(2)
        swapped = first > second
        return torch.stack([torch.where(swapped, high, low), torch.where(swapped, low, high)], dim=2)

    jvp = backward  # swapping is its own transpose


_sorted_pairs: Callable[[Tensor], Tensor] = _SortedPairs.apply


#: The name that :class:`GroupSort` of pairs has elsewhere.
MaxMin = GroupSort


class _ScaledAvgPool(nn.Module):
    axes: int

    def __init__(self, kernel_size: int | None = None) -> None:
        super().__init__()
        check_at_least(1, kernel_size=kernel_size)
        self.kernel_size = kernel_size

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, ...)`` of ``(B, C, ...)``."""
        sizes = list(x.shape[2:]) if self.kernel_size is None else [self.kernel_size] * self.axes
        pool = F.avg_pool1d if self.axes == 1 else F.avg_pool2d
        return pool(x, sizes) * math.sqrt(math.prod(sizes))

    @override
    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}"


class ScaledAvgPool1d(_ScaledAvgPool):
    """:class:`ScaledAvgPool2d` for sequences ``(B, C, T)``, on windows of ``kernel_size`` or on all of T.

    >>> ScaledAvgPool1d(4)(torch.ones(1, 1, 8))
    tensor([[[2., 2.]]])
    """

    axes = 1


class ScaledAvgPool2d(_ScaledAvgPool):
    r"""Average pooling on disjoint windows, scaled up to norm 1.

    .. math:: y = \sqrt{n}\, \frac 1 n \sum_{i \in \text{window}} x_i, \qquad n = \text{size of the window}

    A plain average has norm :math:`1 / \sqrt n`, which a certificate would lose. ``nn.MaxPool2d`` on disjoint windows
    has norm 1 as it is.

    Args:
        kernel_size: side of the window; ``None`` pools over the whole input.

    Raises:
        ValueError: if ``kernel_size`` is below 1.

    >>> ScaledAvgPool2d(2)(torch.ones(1, 1, 4, 4))
    tensor([[[[2., 2.],
              [2., 2.]]]])
    """

    axes = 2


class ScaledPad(nn.Module):
    r"""Padding by inputs that are there already, each divided by the square root of how often it then appears.

    .. math:: \|y\|^2 = \sum_i c_i \Big( \frac{x_i}{\sqrt{c_i}} \Big)^2 = \|x\|^2

    so it keeps every norm. ``nn.ReflectionPad2d`` and its like have norm :math:`\sqrt{\max c}`, 2 for most sizes.

    Args:
        padding: rows before and after, by axis, from the first axis behind the channels.
        mode: ``"reflect"``, ``"replicate"`` or ``"circular"``; the first needs inputs longer than the padding, the last
            no shorter.

    Raises:
        ValueError: if the padding is below 0 or the mode is unknown.

    >>> ScaledPad([(1, 1)], "replicate")(torch.tensor([[[2.0, 1.0, 4.0]]]))
    tensor([[[1.4142, 1.4142, 1.0000, 2.8284, 2.8284]]])
    """

    def __init__(self, padding: Sequence[tuple[int, int]], mode: str) -> None:
        super().__init__()
        self.padding = [(before, after) for before, after in padding]
        check_at_least(0, padding=min(min(pair) for pair in self.padding))
        if mode not in ("reflect", "replicate", "circular"):
            raise ValueError(f"`mode` must be 'reflect', 'replicate' or 'circular', got {mode!r}")
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, ...)`` of ``(B, C, ...)``, longer along each axis by both of its paddings."""
        for axis, around in enumerate(reversed(self.padding), start=1):
            size = x.shape[-axis]
            places = torch.arange(size, dtype=torch.float32, device=x.device)  # exact up to 2^24; integers have no pad
            padded = F.pad(places.reshape(1, 1, size), around, mode=self.mode).flatten().long()
            counts = torch.zeros_like(places).index_add(0, padded, torch.ones_like(padded, dtype=torch.float32))
            share = counts.to(torch.promote_types(x.dtype, torch.float32)).rsqrt().to(x.dtype)
            x = x * share.reshape(size, *(1,) * (axis - 1))
        return F.pad(x, [rows for pair in reversed(self.padding) for rows in pair], mode=self.mode)

    @override
    def extra_repr(self) -> str:
        return f"{self.padding}, mode={self.mode!r}"


class Residual(nn.Module):
    r"""Convex combination of the identity and a branch: 1-Lipschitz if the branch is.

    .. math:: y = (1 - w)\, x + w\, f(x)

    The plain residual :math:`x + f(x)` has bound :math:`1 + L`, which doubles with every block.

    Args:
        branch: the module f; keeps the shape of its input.
        weight: w, from 0 to 1.

    Raises:
        ValueError: if ``weight`` is out of range.

    >>> Residual(nn.ReLU(), weight=0.25)(torch.tensor([[4.0, -4.0]]))
    tensor([[ 4., -3.]])
    """

    def __init__(self, branch: nn.Module, weight: float = 0.5) -> None:
        super().__init__()
        if not 0 <= weight <= 1:
            raise ValueError(f"`weight` must be from 0 to 1, got {weight}")
        self.branch = branch
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        """The same shape.

        Raises:
            ValueError: if the branch changes the shape.
        """
        kept = (1 - self.weight) * x  # before the branch, which may begin with an activation in place
        branch = self.branch(x)
        if branch.shape != kept.shape:
            raise ValueError(f"`branch` must keep the shape {tuple(kept.shape)}, it returned {tuple(branch.shape)}")
        mixed: Tensor = kept + self.weight * branch
        return mixed

    @override
    def extra_repr(self) -> str:
        return f"weight={self.weight}"


class Scale(nn.Module):
    r"""Multiplies by a fixed factor :math:`c`; counts as :math:`|c|` in every bound.

    A 1-Lipschitz network separates classes by at most the distance of their inputs, so its logits need a scale. As a
    layer it is counted by the bound.

    Args:
        factor: c, finite.

    Raises:
        ValueError: if it is not.

    >>> Scale(3.0)(torch.ones(2))
    tensor([3., 3.])
    """

    def __init__(self, factor: float) -> None:
        super().__init__()
        if not math.isfinite(factor):
            raise ValueError(f"`factor` must be finite, got {factor}")
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return x * self.factor

    @override
    def extra_repr(self) -> str:
        return f"factor={self.factor}"
