# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Replace layers and heads that compute their weights by plain ones that store them."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any

from torch import nn

from lightning_crmt.layers.orthogonal import OrthogonalConv1d, OrthogonalConv2d, OrthogonalLinear, _OrthogonalConv


class Fixable(ABC):
    """A module that knows its own replacement in :func:`with_fixed_weights`."""

    @abstractmethod
    def fixed(self) -> nn.Module:
        """A module that computes the same from numbers that are stored."""


def with_fixed_weights(module: nn.Module) -> nn.Module:
    """A copy of ``module`` whose orthogonal layers and heads are plain ones, with the weights they have now.

    For deployment: nothing is orthogonalised in its forward pass, and its weights are the same on every machine, where
    a QR decomposition may differ in the last bit. Training the copy would leave orthogonality behind.

    >>> plain = with_fixed_weights(nn.Sequential(OrthogonalLinear(4, 4), nn.ReLU()))
    >>> plain
    Sequential(
      (0): Linear(in_features=4, out_features=4, bias=True)
      (1): ReLU()
    )
    """
    plain: dict[nn.Module, nn.Module] = {}  # by layer, for one that stands in several places
    fixed = copy.deepcopy(module)
    for parent in list(fixed.modules()):
        for name, child in parent._modules.items():
            if child is not None and _is_computed(child):
                plain[child] = plain.get(child) or _plain(child)
                setattr(parent, name, plain[child])
    return _plain(fixed) if _is_computed(fixed) else fixed


_PLAIN: dict[type[nn.Module], type[nn.Linear | nn.Conv1d | nn.Conv2d]] = {
    OrthogonalLinear: nn.Linear,
    OrthogonalConv1d: nn.Conv1d,
    OrthogonalConv2d: nn.Conv2d,
}


def _is_computed(module: nn.Module) -> bool:
    return type(module) in _PLAIN or isinstance(module, Fixable)


def _plain(layer: nn.Module) -> nn.Module:
    if isinstance(layer, Fixable):
        return layer.fixed().train(layer.training)
    assert isinstance(layer, OrthogonalLinear | _OrthogonalConv)
    # On no device: its own random weights are not wanted, nor the random numbers they would take.
    settings: dict[str, Any] = {"bias": layer.bias is not None, "device": "meta"}
    sizes: tuple[int, ...]
    if isinstance(layer, OrthogonalLinear):
        sizes = (layer.in_features, layer.out_features)
    else:
        sizes = (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding)
        settings["padding_mode"] = layer.padding_mode
    plain = _PLAIN[type(layer)](*sizes, **settings)
    plain.weight = nn.Parameter(layer.weight.detach().clone())
    if layer.bias is not None:
        plain.bias = nn.Parameter(layer.bias.detach().clone())
    return plain.train(layer.training)
