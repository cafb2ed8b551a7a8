# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""ResNet-18 for images, spectrograms and frames of videos: one vector per sample, or tokens."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_crmt.checks import check_at_least, describe
from lightning_crmt.modality import at_least_single


class ResNet18(nn.Module):
    r"""ResNet-18 (He et al., CVPR 2016) without its classifier, for any number of channels, from scratch.

    A 7 x 7 convolution of stride 2, a maximum over 3 x 3 of stride 2, four stages of two residual blocks; all in all
    the map :math:`\phi` shrinks an image 32 times. Its mean over height, width and, for a stack of frames, time is

    .. math:: z = \frac{1}{T h w} \sum_{t, i, j} \phi(x_t)_{:, i, j}

    512 features at the usual width. Convolutions are initialised as by He et al. (ICCV 2015), with the variance
    :math:`2 / n` where n is the number of outputs that an input takes part in. Parameters have the names and shapes of
    torchvision's ``resnet18``: weights for that one load by ``load_state_dict(weights, strict=False)``, which leaves
    out its ``fc``.

    There is no rule for a sound bound of its Lipschitz constant: radii can be estimated only.

    Args:
        in_channels: channels of the input: 3 of an image, 1 of a spectrogram, 2 of optical flow.
        width: channels of the first stage; later stages have two, four and eight times as many.

    Raises:
        ValueError: if a size is below 1.

    >>> encoder = ResNet18(in_channels=3, width=8)
    >>> encoder(torch.randn(2, 3, 40, 64)).shape, encoder(torch.randn(2, 5, 3, 40, 64)).shape
    (torch.Size([2, 64]), torch.Size([2, 64]))
    """

    def __init__(self, in_channels: int = 3, width: int = 64) -> None:
        super().__init__()
        check_at_least(1, in_channels=in_channels, width=width)
        self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(width, width, stride=1)
        self.layer2 = _stage(width, 2 * width, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, stride=2)
        self.layer4 = _stage(4 * width, 8 * width, stride=2)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        self.in_channels = in_channels
        self.out_features = 8 * width

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(B, out_features)`` of images ``(B, C, H, W)`` or stacks of frames ``(B, T, C, H, W)``.

        Raises:
            ValueError: if the input has another shape or other channels.
        """
        features = self._maps(x).mean(dim=(-2, -1))
        return features.mean(dim=1) if x.dim() == 5 else features

    def _maps(self, x: Tensor) -> Tensor:
        """``(B, d, h, w)``, or ``(B, T, d, h, w)`` of a stack of frames."""
        if x.dim() not in (4, 5) or x.shape[-3] != self.in_channels or 0 in x.shape[1:]:
            image = f"{self.in_channels}, H, W"
            raise ValueError(f"`x` must have shape (B, {image}) or (B, T, {image}), got {describe(x)}")
        images = x.flatten(0, 1) if x.dim() == 5 else x
        maps: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        maps = self.layer4(self.layer3(self.layer2(self.layer1(maps))))
        return maps.reshape(*x.shape[:2], *maps.shape[1:]) if x.dim() == 5 else maps


class ResNet18Tokens(ResNet18):
    r"""ResNet-18 that keeps time: a sequence of tokens for :class:`~lightning_crmt.fusion.AttentionFusion`.

    Each frame of a stack is a token, its map averaged over height and width. In a spectrogram each moment of the map is
    a token, averaged over frequency: one for every 32 moments of the input. Positions are marked by adding the sines
    and cosines of Vaswani et al. (NeurIPS 2017), which need no parameters and serve sequences of any length,

    .. math:: p_{t, 2i} = \sin(t / 10000^{2i/d}), \qquad p_{t, 2i + 1} = \cos(t / 10000^{2i/d}) .

    Parameters are those of :class:`ResNet18`, so that one's weights load into the other.

    Args:
        in_channels: channels of the input.
        width: channels of the first stage; tokens have eight times as many.
        time_axis: where time is in inputs ``(B, C, H, W)``: ``"height"``, as in the spectrograms of this package's
            data modules, or ``"width"``. Stacks of frames have an axis for it.

    Raises:
        ValueError: if a size is below 1, or ``time_axis`` is unknown.

    >>> encoder = ResNet18Tokens(in_channels=1, width=8)
    >>> encoder(torch.randn(2, 1, 100, 64)).shape, encoder(torch.randn(2, 5, 1, 40, 64)).shape
    (torch.Size([2, 4, 64]), torch.Size([2, 5, 64]))
    """

    def __init__(self, in_channels: int = 3, width: int = 64, time_axis: Literal["height", "width"] = "height") -> None:
        super().__init__(in_channels, width)
        if time_axis not in ("height", "width"):
            raise ValueError(f"`time_axis` must be 'height' or 'width', got {time_axis!r}")
        self.time_axis = time_axis

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``(B, T, out_features)`` of T frames ``(B, T, C, H, W)``, or of ``(B, C, H, W)`` along its time.

        Raises:
            ValueError: if the input has another shape or other channels.
        """
        maps = self._maps(x)
        frequency = -1 if self.time_axis == "height" else -2
        tokens = maps.mean(dim=(-2, -1)) if x.dim() == 5 else maps.mean(dim=frequency).mT
        return tokens + _positions(tokens)


class _Block(nn.Module):
    """Two 3 x 3 convolutions with a shortcut around them, which is a 1 x 1 convolution where the shape changes."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.downsample: nn.Module | None = None
        if stride > 1 or before != after:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        branch = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        maps: Tensor = self.relu(branch + shortcut)
        return maps


def _stage(before: int, after: int, stride: int) -> nn.Sequential:
    return nn.Sequential(_Block(before, after, stride), _Block(after, after, stride=1))


def _positions(tokens: Tensor) -> Tensor:
    """Sines and cosines ``(T, d)`` for tokens ``(B, T, d)``; d is even."""
    count, size = tokens.shape[1:]
    like = at_least_single(tokens[:0])
    place = torch.arange(count, dtype=like.dtype, device=like.device)
    exponent = torch.arange(0, size, 2, dtype=like.dtype, device=like.device) / size
    angle = place[:, None] / 10000**exponent
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).to(tokens.dtype)
