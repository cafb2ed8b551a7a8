# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Small convolutional encoders for sensors, small images and spectrograms of any size."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from lightning_crmt.checks import check_at_least, describe


class _ConvNet(nn.Module):
    """The network on signals with the axes that ``axes`` names; see the subclasses."""

    axes: tuple[str, ...]

    def __init__(self, in_channels: int, out_features: int, channels: Sequence[int], kernel_size: int) -> None:
        super().__init__()
        sizes = [in_channels, *channels, out_features]
        check_at_least(1, in_channels=in_channels, out_features=out_features)
        if not channels or min(channels) < 1:
            raise ValueError(f"`channels` must hold at least one size, all at least 1, got {list(channels)}")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"`kernel_size` must be odd and at least 1, got {kernel_size}")
        one = len(self.axes) == 1
        convolution, norm = (nn.Conv1d, nn.BatchNorm1d) if one else (nn.Conv2d, nn.BatchNorm2d)
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes[:-1]):
            # The normalisation after it has a bias.
            layers += [convolution(before, after, kernel_size, padding=kernel_size // 2, bias=False), norm(after)]
            layers += [nn.ReLU(), nn.MaxPool1d(2) if one else nn.MaxPool2d(2)]
        layers += [nn.AdaptiveAvgPool1d(1) if one else nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-2], out_features))
        self.in_channels = in_channels
        self.out_features = out_features
        self.smallest = 2 ** len(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(B, out_features)`` of a signal ``(B, C, ...)``.

        Raises:
            ValueError: if the input has another rank, other channels, or is smaller than one halving per stage needs.
        """
        shape, sizes = ", ".join(["B", str(self.in_channels), *self.axes]), x.shape[2:]
        if len(sizes) != len(self.axes) or x.shape[1] != self.in_channels or min(sizes) < self.smallest:
            raise ValueError(
                f"`x` must have shape ({shape}), {' and '.join(self.axes)} at least {self.smallest} to be halved "
                f"once per entry of `channels`, got {describe(x)}"
            )
        features: Tensor = self.layers(x)
        return features


class ConvNet1d(_ConvNet):
    """Convolutional encoder for sensors and other sequences ``(B, C, T)`` of any length.

    Each stage is a convolution of stride 1, batch normalisation, ReLU and a maximum over pairs, which halves the
    sequence; the mean over what is left of time goes through a linear layer. Sequences are at least
    ``2 ** len(channels)`` long, and of one length within a batch.

    Args:
        in_channels: channels of the input, such as the axes of an accelerometer.
        out_features: size of the features.
        channels: channels of each stage.
        kernel_size: of the convolutions, odd.

    Raises:
        ValueError: if a size is below 1, there is no stage, or ``kernel_size`` is even.

    >>> import torch
    >>> encoder = ConvNet1d(3, 64)
    >>> encoder(torch.randn(2, 3, 100)).shape, encoder(torch.randn(2, 3, 37)).shape
    (torch.Size([2, 64]), torch.Size([2, 64]))
    """

    axes = ("T",)

    def __init__(
        self, in_channels: int, out_features: int, channels: Sequence[int] = (32, 64, 128), kernel_size: int = 5
    ) -> None:
        super().__init__(in_channels, out_features, channels, kernel_size)


class ConvNet2d(_ConvNet):
    """Convolutional encoder for small images and spectrograms ``(B, C, H, W)`` of any size.

    Stages as in :class:`ConvNet1d`, with a maximum over 2 x 2. Inputs are at least ``2 ** len(channels)`` high and
    wide.

    Args:
        in_channels: channels of the input.
        out_features: size of the features.
        channels: channels of each stage.
        kernel_size: of the convolutions, odd.

    Raises:
        ValueError: if a size is below 1, there is no stage, or ``kernel_size`` is even.

    >>> import torch
    >>> encoder = ConvNet2d(1, 64)
    >>> encoder(torch.randn(2, 1, 28, 28)).shape, encoder(torch.randn(2, 1, 64, 41)).shape
    (torch.Size([2, 64]), torch.Size([2, 64]))
    """

    axes = ("H", "W")

    def __init__(
        self, in_channels: int, out_features: int, channels: Sequence[int] = (16, 32, 64), kernel_size: int = 3
    ) -> None:
        super().__init__(in_channels, out_features, channels, kernel_size)
