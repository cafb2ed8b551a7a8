# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The values that an input may take, before or after normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_crmt.checks import describe
from lightning_crmt.modality import widened


@dataclass(frozen=True)
class Box:
    r"""Lowest and highest value of an input, given before a normalisation :math:`(x - \mu) / \sigma`.

    The model's inputs then lie within :math:`[(l - \mu) / \sigma, (h - \mu) / \sigma]`. Without a normalisation leave
    ``mean`` and ``std`` out.

    Args:
        low: lowest value before the normalisation.
        high: highest value before it, above ``low``.
        mean: what was subtracted: a number, or one for each channel, the first dimension after the batch.
        std: what was divided by, likewise; above 0.

    Raises:
        ValueError: if the box is empty, ``std`` is not above 0, something is not finite, or ``mean`` and ``std`` are
            for different numbers of channels.

    >>> low, high = Box(0.0, 1.0, mean=[0.5, 0.25], std=[0.5, 0.25]).bounds(torch.zeros(1, 2, 3, 3))
    >>> low.flatten().tolist(), high.flatten().tolist()
    ([-1.0, -1.0], [1.0, 3.0])
    """

    low: float
    high: float
    mean: float | Sequence[float] = 0.0
    std: float | Sequence[float] = 1.0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"a box must be (low, high) with low < high, got {(self.low, self.high)}")
        mean, std = _numbers(self.mean), _numbers(self.std)
        if mean.dim() > 1 or not bool(mean.isfinite().all()):
            raise ValueError(f"`mean` must be a finite number, or one for each channel, got {self.mean}")
        if std.dim() > 1 or not bool((std.isfinite() & (std > 0)).all()):
            raise ValueError(f"`std` must be above 0 and finite, a number or one for each channel, got {self.std}")
        if mean.dim() == std.dim() == 1 and len(mean) != len(std):
            raise ValueError(f"`mean` and `std` must be for one number of channels, got {len(mean)} and {len(std)}")
        # Lists would make a box unhashable.
        for name, given in (("mean", self.mean), ("std", self.std)):
            object.__setattr__(self, name, tuple(given) if isinstance(given, Sequence) else given)

    def bounds(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Lowest and highest value of the model's input, in the widest precision, in a shape that fits ``value``.

        Raises:
            ValueError: if ``value`` has another number of channels.
        """
        mean, std = (self._broadcast(_numbers(given), value) for given in (self.mean, self.std))
        return (self.low - mean) / std, (self.high - mean) / std

    def contains(self, value: Tensor, where: Tensor | None = None) -> bool:
        """Whether ``value``, or its part ``where``, is in the box, up to rounding to single precision or its own."""
        low, high = self.bounds(value)
        mean, std = (self._broadcast(_numbers(given), value) for given in (self.mean, self.std))
        largest = max((abs(bound) for bound in (self.low, self.high) if abs(bound) < torch.inf), default=0.0)
        eps = max(torch.finfo(value.dtype).eps, torch.finfo(torch.float32).eps)
        slack = 8 * eps * (largest + mean.abs()) / std
        inside = (value >= low - slack) & (value <= high + slack)
        return bool((inside if where is None else inside | ~where).all())

    def __repr__(self) -> str:
        plain = self.mean == 0 and self.std == 1
        return f"({self.low}, {self.high})" if plain else f"Box({self.low}, {self.high}, {self.mean}, {self.std})"

    def _broadcast(self, numbers: Tensor, value: Tensor) -> Tensor:
        if numbers.dim() == 1 and value.shape[1] != len(numbers):
            raise ValueError(
                f"a box with `mean` and `std` for {len(numbers)} channels needs inputs of shape "
                f"(B, {len(numbers)}, ...), got {describe(value)}"
            )
        return widened(numbers, value.device).reshape(1, -1, *[1] * (value.dim() - 2))


def _numbers(given: float | Sequence[float]) -> Tensor:
    return torch.as_tensor(given, dtype=torch.float64)


def as_box(given: tuple[float, float] | Box) -> Box:
    """``given``, or the box from its lowest to its highest value.

    >>> as_box((0.0, 1.0)).high
    1.0
    """
    if isinstance(given, Box):
        return given
    if not isinstance(given, Sequence) or len(given) != 2:
        raise TypeError(f"a box must be (low, high) or a Box, got {given!r}")
    return Box(*given)
