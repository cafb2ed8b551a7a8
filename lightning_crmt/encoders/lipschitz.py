# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Encoders that are 1-Lipschitz by construction, so that sound certificates are tight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from lightning_crmt.checks import check_positive
from lightning_crmt.layers import GroupSort, OrthogonalConv1d, OrthogonalConv2d, OrthogonalLinear, Scale


class LipschitzMLP(nn.Module):
    """Fully connected encoder of orthogonal layers with GroupSort between them; its Lipschitz constant is ``scale``.

    A 1-Lipschitz network cannot make its features grow, so cross-entropy needs another way to become small: train with
    a temperature, that is with ``scale`` above 1, or with a hinge at the wanted radius.

    Args:
        in_features: size of the flattened input.
        out_features: size of the features.
        hidden: sizes of the hidden layers, multiples of ``group_size``.
        group_size: see :class:`~lightning_crmt.layers.GroupSort`.
        scale: factor on the input, above 0; it counts in the bound.

    Raises:
        ValueError: if a size is below 1 or not a multiple of ``group_size``, or ``scale`` is not above 0.

    >>> import torch
    >>> from lightning_crmt.lipschitz import lipschitz_bound
    >>> encoder = LipschitzMLP(6, 32, hidden=(64,))
    >>> encoder(torch.zeros(5, 6)).shape
    torch.Size([5, 32])
    >>> 0.99999 < lipschitz_bound(encoder) < 1.00001
    True
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden: Sequence[int] = (128,),
        group_size: int = 2,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        _check(hidden, "hidden", group_size, scale)
        layers: list[nn.Module] = [nn.Flatten(), *_scaling(scale)]
        for before, after in pairwise([in_features, *hidden]):
            layers += [OrthogonalLinear(before, after), GroupSort(group_size)]
        layers.append(OrthogonalLinear([in_features, *hidden][-1], out_features))
        self.layers = nn.Sequential(*layers)
        self.out_features = out_features

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(B, out_features)`` of ``(B, ...)``."""
        features: Tensor = self.layers(x)
        return features


class LipschitzCNN(nn.Module):
    """Convolutional encoder of orthogonal layers with GroupSort, for small images, spectrograms or sequences.

    Each stage is a convolution of size and stride 2, which halves the input, and one of size 3, both orthogonal and
    followed by GroupSort; an orthogonal linear layer reads off the features. Where each stage has four times the
    channels of the one before it (twice, for sequences), nothing of the input is lost on the way. Its Lipschitz
    constant is at most ``scale``.

    Args:
        in_channels: channels of the input.
        out_features: size of the features.
        input_size: height and width of the input; or its length alone, for sequences ``(B, C, T)``.
        channels: channels of each stage, multiples of ``group_size``.
        group_size: see :class:`~lightning_crmt.layers.GroupSort`.
        scale: factor on the input, above 0; it counts in the bound.

    Raises:
        ValueError: if a size is out of range, the input is too small to be halved so often, or ``scale`` not above 0.

    >>> import torch
    >>> LipschitzCNN(1, 64, input_size=(16, 15))(torch.zeros(2, 1, 16, 15)).shape
    torch.Size([2, 64])
    >>> LipschitzCNN(3, 64, input_size=[100])(torch.zeros(2, 3, 100)).shape
    torch.Size([2, 64])
    """

    def __init__(
        self,
        in_channels: int,
        out_features: int,
        input_size: Sequence[int],
        channels: Sequence[int] = (16, 64),
        group_size: int = 2,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        _check(channels, "channels", group_size, scale)
        if not isinstance(input_size, Sequence) or len(input_size) not in (1, 2):
            raise ValueError(f"`input_size` must be (height, width) or (length,), got {input_size}")
        sizes = [size // 2 ** len(channels) for size in input_size]
        if min(sizes) < 1:
            raise ValueError(
                f"`input_size` must allow {len(channels)} halvings, one per entry of `channels`, "
                f"got {tuple(input_size)}"
            )
        convolution = OrthogonalConv1d if len(input_size) == 1 else OrthogonalConv2d
        layers: list[nn.Module] = _scaling(scale)
        for before, after in pairwise([in_channels, *channels]):
            layers += [convolution(before, after, kernel_size=2, stride=2), GroupSort(group_size)]
            layers += [convolution(after, after, kernel_size=3), GroupSort(group_size)]
        flat = [in_channels, *channels][-1] * math.prod(sizes)
        layers += [nn.Flatten(), OrthogonalLinear(flat, out_features)]
        self.layers = nn.Sequential(*layers)
        self.in_channels = in_channels
        self.input_size = tuple(input_size)
        self.out_features = out_features

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(B, out_features)`` of ``(B, in_channels, *input_size)``.

        Raises:
            ValueError: if the input has another size.
        """
        if tuple(x.shape[1:]) != (self.in_channels, *self.input_size):
            shape = ", ".join(map(str, ("B", self.in_channels, *self.input_size)))
            raise ValueError(f"`x` must have shape ({shape}), got {tuple(x.shape)}")
        features: Tensor = self.layers(x)
        return features


def _check(sizes: Sequence[int], name: str, group_size: int, scale: float) -> None:
    for size in sizes:
        if size < 1 or size % group_size:
            raise ValueError(f"`{name}` must hold multiples of `group_size` = {group_size}, got {list(sizes)}")
    check_positive(scale=scale)


def _scaling(scale: float) -> list[nn.Module]:
    return [] if scale == 1 else [Scale(scale)]
