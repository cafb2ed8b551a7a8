# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Replace layers and heads that compute their weights by plain ones that store them."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod

from torch import nn


class Fixable(ABC):
    """A module that computes its weights, and knows the plain module that stores them instead.

    :func:`with_fixed_weights` replaces modules of such types, those of your own too:

    >>> class UnitRows(nn.Linear, Fixable):
    ...     def forward(self, x):
    ...         return nn.functional.linear(x, nn.functional.normalize(self.weight, dim=1), self.bias)
    ...     def fixed(self):
    ...         plain = nn.Linear(self.in_features, self.out_features)
    ...         rows = nn.functional.normalize(self.weight, dim=1)
    ...         plain.load_state_dict({"weight": rows, "bias": self.bias})
    ...         return plain
    >>> with_fixed_weights(nn.Sequential(UnitRows(4, 2)))
    Sequential(
      (0): Linear(in_features=4, out_features=2, bias=True)
    )
    """

    @abstractmethod
    def fixed(self) -> nn.Module:
        """A module that computes the same from numbers that are stored.

        Raises:
            TypeError: if a subclass computes its output in its own way.
        """

    def _refuse_overridden(self, kind: type[nn.Module], *names: str) -> None:
        """What replaces a ``kind`` computes what these of its methods do, and nothing else."""
        if any(getattr(type(self), name) is not getattr(kind, name) for name in names):
            methods = " or ".join(f"`{name}`" for name in names)
            raise TypeError(f"{type(self).__name__} must not override {methods} to be fixed, it does")


def with_fixed_weights(module: nn.Module) -> nn.Module:
    """A copy of ``module`` whose orthogonal layers and heads are plain ones, with the weights they have now.

    For deployment: nothing is orthogonalised in its forward pass, and its weights are the same on every machine, where
    a QR decomposition may differ in the last bit. Training the copy would leave orthogonality behind.

    Args:
        module: a model or a part of one; it is left as it is.

    Raises:
        TypeError: if a subclass of an orthogonal layer or head computes its output in its own way.

    >>> from lightning_crmt.layers import OrthogonalLinear
    >>> with_fixed_weights(nn.Sequential(OrthogonalLinear(4, 4), nn.ReLU()))
    Sequential(
      (0): Linear(in_features=4, out_features=4, bias=True)
      (1): ReLU()
    )
    """
    # Where a copy is known already, deepcopy takes it: also for a layer that is used in several places.
    known = {id(part): part.fixed().train(part.training) for part in module.modules() if isinstance(part, Fixable)}
    return copy.deepcopy(module, known)
