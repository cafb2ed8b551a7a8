# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
r"""The steps that a network is made of, where it can be proved how far rounding takes each from what it should be.

Everything here bounds what the network computes at *every* point x' with :math:`\|x' - x\|_2 \le r` of samples x, for
all r at once, because each bound is affine in r. All numbers are sums and products of numbers >= 0, and each step
multiplies its results by ``_ROUNDED_UP``, far more than the rounding of its own double precision arithmetic takes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_crmt.lipschitz.rigorous.verified import UNDERFLOW, UNIT_ROUNDOFF, gamma, norm_up, product_up, sum_up

# More than 2^31 roundings of double precision.
_ROUNDED_UP = 1 + 2.0**-20
#: Radii and magnitudes up to this cannot make single precision overflow.
LARGEST = 2.0**60


@dataclass(frozen=True)
class Cloud:
    r"""What the network may hold between two steps, at any x' at distance r of x.

    Attributes:
        centre: ``(B, ...)`` in double precision, near the value at x.
        spread: ``(B,)``; the computed value is within ``spread + reach * r`` of the centre.
        reach: see there.
        error: ``(B,)``; the computed value is within ``error + growth * r`` of the exact one at the same x'.
        growth: see there.
        dtype: the precision in which the network runs.
    """

    centre: Tensor
    spread: Tensor
    reach: float
    error: Tensor
    growth: float
    dtype: torch.dtype

    @property
    def magnitude(self) -> Tensor:
        """``(B,)``; the norm of the computed value is at most ``magnitude + reach * r``."""
        return (_norms(self.centre) + self.spread) * _ROUNDED_UP

    def passed(self, centre: Tensor, slope: float, local: Tensor, local_growth: float, here: Tensor) -> Cloud:
        """The cloud after a step.

        Args:
            centre: the step's value at the old centre, in double precision.
            slope: bound of the step's Lipschitz constant.
            local: ``(B,)``; ``local + local_growth * r`` bounds what the step itself loses in the network's precision.
            local_growth: see there.
            here: ``(B,)``, what it lost in the double precision of ``centre``.
        """
        return Cloud(
            centre,
            (slope * self.spread + local + here) * _ROUNDED_UP,
            (slope * self.reach + local_growth) * _ROUNDED_UP,
            (slope * self.error + local) * _ROUNDED_UP,
            (slope * self.growth + local_growth) * _ROUNDED_UP,
            self.dtype,
        )


class Step(ABC):
    """A map with a Lipschitz bound and a bound of its rounding error, both proved."""

    @property
    @abstractmethod
    def bound(self) -> float:
        """Upper bound of the l2 Lipschitz constant of the exact map."""

    @abstractmethod
    def advance(self, cloud: Cloud) -> Cloud:
        """The cloud after the step."""


class Exact(Step):
    """A 1-Lipschitz map that chooses, reorders or keeps numbers and so rounds nothing.

    Args:
        module: in evaluation mode.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    @property
    @override
    def bound(self) -> float:
        return 1.0

    @override
    def advance(self, cloud: Cloud) -> Cloud:
        # A copy, for activations in place.
        return replace(cloud, centre=self.module(cloud.centre.clone()))


class Affine(Step):
    r""":math:`x \mapsto W x + b` along the last dimension, by inner products summed in any order.

    The computed value at a computed input z is off by at most :math:`\gamma_{n+1} (|W| |z| + |b|)` in each entry.

    Args:
        weight: ``(m, n)``, in double precision on the CPU.
        bias: ``(m,)``, or ``None``.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight
        self.bias = weight.new_zeros(weight.shape[0]) if bias is None else bias

    @cached_property
    def bound(self) -> float:
        """Upper bound of the spectral norm of W."""
        return norm_up(self.weight)

    @cached_property
    def _absolute_norm(self) -> float:
        return norm_up(self.weight.abs())

    @override
    def advance(self, cloud: Cloud) -> Cloud:
        terms = self.weight.shape[1] + 1
        sums = _norms(nn.functional.linear(cloud.centre.abs(), self.weight.abs(), self.bias.abs())) * _ROUNDED_UP
        centre = nn.functional.linear(cloud.centre, self.weight, self.bias)
        entries = centre[0].numel()
        relative = gamma(terms, UNIT_ROUNDOFF[cloud.dtype])
        moving = self._absolute_norm * cloud.reach * _ROUNDED_UP
        fixed = (sums + self._absolute_norm * cloud.spread) * _ROUNDED_UP
        _refuse_overflow(fixed, moving)
        local = relative * fixed + _lost(cloud.dtype, terms, entries)
        here = gamma(terms) * sums + _lost(torch.float64, terms, entries)
        return cloud.passed(centre, self.bound, local, relative * moving, here)


class Scaling(Step):
    r""":math:`x \mapsto c\,x`, c rounded to the network's precision.

    Args:
        factor: c, 0 or of a magnitude between 1e-30 and 1e30.
    """

    def __init__(self, factor: float) -> None:
        if not (factor == 0 or 1e-30 <= abs(factor) <= 1e30):
            raise ValueError(f"`factor` must be 0 or of a magnitude from 1e-30 to 1e30, got {factor}")
        self.factor = factor

    @property
    @override
    def bound(self) -> float:
        return abs(self.factor)

    @override
    def advance(self, cloud: Cloud) -> Cloud:
        _refuse_overflow(cloud.magnitude * self.bound, cloud.reach * self.bound)
        entries = cloud.centre[0].numel()
        relative = gamma(2, UNIT_ROUNDOFF[cloud.dtype]) * self.bound
        local = relative * cloud.magnitude + _lost(cloud.dtype, 2, entries)
        here = gamma(2) * self.bound * cloud.magnitude + _lost(torch.float64, 2, entries)
        return cloud.passed(cloud.centre * self.factor, self.bound, local, relative * cloud.reach, here)


class Mixture(Step):
    r""":math:`x \mapsto (1 - w) x + w f(x)`.

    Args:
        branch: the steps of f.
        weight: w, from 0 to 1, 0 or at least 1e-30.
    """

    def __init__(self, branch: Sequence[Step], weight: float) -> None:
        if not (weight == 0 or 1e-30 <= weight <= 1):
            raise ValueError(f"`weight` must be 0, or from 1e-30 to 1, got {weight}")
        self.branch = branch
        self.weight = weight
        self._rest = sum_up(1 - weight)

    @property
    @override
    def bound(self) -> float:
        return sum_up(self._rest, product_up(self.weight, *(step.bound for step in self.branch)))

    @override
    def advance(self, cloud: Cloud) -> Cloud:
        kept, found = cloud, cloud
        for step in self.branch:
            found = step.advance(found)
        entries = cloud.centre[0].numel()
        # Rounded: 1 - w, the factors to the network's precision, the products, the sum.
        fixed = self._rest * kept.magnitude + self.weight * found.magnitude
        moving = self._rest * kept.reach + self.weight * found.reach
        _refuse_overflow(fixed, moving)
        relative = gamma(4, UNIT_ROUNDOFF[cloud.dtype])
        local = relative * fixed + _lost(cloud.dtype, 4, entries)
        here = gamma(4) * fixed + _lost(torch.float64, 4, entries)
        # `passed` with the two paths already mixed.
        mixed = Cloud(
            centre=(1 - self.weight) * kept.centre + self.weight * found.centre,
            spread=self._rest * kept.spread + self.weight * found.spread,
            reach=moving,
            error=self._rest * kept.error + self.weight * found.error,
            growth=self._rest * kept.growth + self.weight * found.growth,
            dtype=cloud.dtype,
        )
        return mixed.passed(mixed.centre, 1.0, local, relative * moving, here)


def _norms(x: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norms * _ROUNDED_UP


def _lost(dtype: torch.dtype, terms: int, entries: int) -> float:
    """What underflow may take from a vector of sums of products, in its l2 norm, were it flushed to zero."""
    return 4.0 * terms * math.sqrt(entries) * UNDERFLOW[dtype]


def _refuse_overflow(fixed: Tensor, moving: float) -> None:
    if not (float(fixed.max()) <= LARGEST and moving <= LARGEST):
        raise ValueError(f"values must stay below {LARGEST:.0e}, where single precision cannot overflow")
