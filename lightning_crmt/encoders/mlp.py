# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""An encoder for tables of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class MLP(nn.Module):
    """Fully connected encoder: linear layers with ReLU between them, none after the last.

    Args:
        in_features: size of the flattened input.
        out_features: size of the features.
        hidden: sizes of the hidden layers.

    Raises:
        ValueError: if a size is below 1.

    >>> import torch
    >>> MLP(6, 32, hidden=(64,))(torch.zeros(5, 6)).shape
    torch.Size([5, 32])
    """

    def __init__(self, in_features: int, out_features: int, hidden: Sequence[int] = (64,)) -> None:
        super().__init__()
        sizes = [in_features, *hidden, out_features]
        if min(sizes) < 1:
            raise ValueError(f"layer sizes must be at least 1, got {sizes}")
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])
        self.out_features = out_features

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(B, out_features)`` of ``(B, ...)``."""
        features: Tensor = self.layers(x)
        return features
