# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
r"""The steps that a network is made of, each with a proved bound of its rounding error.

Everything here bounds what the network computes at *every* point x' with :math:`\|x' - x\|_2 \le r` of samples x, for
all r at once, because each bound is affine in r. All numbers are sums and products of numbers >= 0, and each step
multiplies its results by ``_ROUNDED_UP``, far more than its own double precision arithmetic loses by rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lightning_crmt.lipschitz.rigorous.verified import UNDERFLOW, UNIT_ROUNDOFF, gamma, norm_up, product_up, sum_up

# More than 2^31 roundings of double precision.
_ROUNDED_UP = 1 + 2.0**-20
#: Radii and magnitudes up to this cannot make single precision overflow.
LARGEST = 2.0**60


@dataclass(frozen=True)
class Growing:
    r"""A bound that holds at distance r from a sample: ``at + growth * r``, for all r at once.

    Attributes:
        at: at the sample itself, ``(B,)`` in double precision.
        growth: increase per unit of r.
    """

    at: Tensor
    growth: float

    def __add__(self, other: Growing | Tensor | float) -> Growing:
        if isinstance(other, Growing):
            return Growing(self.at + other.at, self.growth + other.growth)
        return Growing(self.at + other, self.growth)

    def __rmul__(self, factor: float) -> Growing:
        return Growing(factor * self.at, factor * self.growth)


@dataclass(frozen=True)
class ErrorBound:
    r"""Bounds of the value between two steps of the network, at any x' at distance r from x.

    Attributes:
        centre: ``(B, ...)`` in double precision, near the value at x.
        spread: the distance of the computed value from the centre.
        error: the distance of the computed value from the exact one at the same x'.
        dtype: the precision in which the network runs.
    """

    centre: Tensor
    spread: Growing
    error: Growing
    dtype: torch.dtype

    @property
    def magnitude(self) -> Growing:
        """The norm of the computed value."""
        return Growing((_norms(self.centre) + self.spread.at) * _ROUNDED_UP, self.spread.growth)

    def after(
        self, centre: Tensor, slope: float, value: Growing, here: Tensor, terms: int, factor: float = 1.0
    ) -> ErrorBound:
        """The bounds after a step.

        Args:
            centre: the step's value at the old centre, in double precision.
            slope: bound of the step's Lipschitz constant.
            value: with ``factor``, bounds the norm of what the step rounds in the network's precision.
            here: ``(B,)``, with ``factor``, that of what it rounded in the double precision of ``centre``.
            terms: how many roundings each entry takes.
            factor: see ``value`` and ``here``.

        Raises:
            ValueError: if a value could overflow.
        """
        largest = factor * value
        if not (float(largest.at.max()) <= LARGEST and largest.growth <= LARGEST):
            raise ValueError(f"values must stay below {LARGEST:.0e}, where single precision cannot overflow")
        # Underflow may take all of a product that is so small, were it flushed to zero.
        flushed = 4.0 * terms * math.sqrt(centre[0].numel())
        local = gamma(terms, UNIT_ROUNDOFF[self.dtype]) * factor * value + flushed * UNDERFLOW[self.dtype]
        centre_lost = gamma(terms) * factor * here + flushed * UNDERFLOW[torch.float64]
        return ErrorBound(
            centre,
            _ROUNDED_UP * (slope * self.spread + local + centre_lost),
            _ROUNDED_UP * (slope * self.error + local),
            self.dtype,
        )


@dataclass(frozen=True)
class Step:
    """A map with a Lipschitz bound and a bound of its rounding error, both proved.

    Attributes:
        bound: upper bound of the l2 Lipschitz constant of the exact map.
        advance: from the bounds before the step to those after it; raises a ``ValueError`` if a value could overflow.
    """

    bound: float
    advance: Callable[[ErrorBound], ErrorBound]


def exact(module: nn.Module) -> Step:
    """A 1-Lipschitz map that chooses, reorders or keeps numbers and so rounds nothing.

    Args:
        module: in evaluation mode.
    """
    # Of a copy, for activations in place.
    return Step(1.0, lambda before: replace(before, centre=module(before.centre.clone())))


def affine(weight: Tensor, bias: Tensor | None) -> Step:
    r""":math:`x \mapsto W x + b` along the last dimension, by inner products summed in any order.

    The computed value at a computed input z is off by at most :math:`\gamma_{n+1} (|W| |z| + |b|)` in each entry.

    Args:
        weight: ``(m, n)``, in double precision on the CPU.
        bias: ``(m,)``, or ``None``.
    """
    bound = norm_up(weight)
    absolute = weight.abs(), None if bias is None else bias.abs()

    def advance(before: ErrorBound) -> ErrorBound:
        sums = _norms(nn.functional.linear(before.centre.abs(), *absolute)) * _ROUNDED_UP
        centre = nn.functional.linear(before.centre, weight, bias)
        value = _ROUNDED_UP * (norm_up(absolute[0]) * before.spread + sums)
        return before.after(centre, bound, value, sums, terms=weight.shape[1] + 1)

    return Step(bound, advance)


def scaling(factor: float) -> Step:
    r""":math:`x \mapsto c\,x`, c rounded to the network's precision.

    Args:
        factor: c, 0 or of a magnitude between 1e-30 and 1e30.
    """
    if not (factor == 0 or 1e-30 <= abs(factor) <= 1e30):
        raise ValueError(f"`factor` must be 0 or of a magnitude from 1e-30 to 1e30, got {factor}")
    bound = abs(factor)

    def advance(before: ErrorBound) -> ErrorBound:
        value = before.magnitude
        return before.after(before.centre * factor, bound, value, value.at, terms=2, factor=bound)

    return Step(bound, advance)


def mixture(branch: Sequence[Step], weight: float) -> Step:
    r""":math:`x \mapsto (1 - w) x + w f(x)`.

    Args:
        branch: the steps of f.
        weight: w, from 0 to 1, 0 or at least 1e-30.
    """
    if not (weight == 0 or 1e-30 <= weight <= 1):
        raise ValueError(f"`weight` must be 0, or from 1e-30 to 1, got {weight}")
    rest = sum_up(1 - weight)

    def advance(before: ErrorBound) -> ErrorBound:
        other = before
        for step in branch:
            other = step.advance(other)
        centre = (1 - weight) * before.centre + weight * other.centre
        spread = rest * before.spread + weight * other.spread
        error = rest * before.error + weight * other.error
        value = rest * before.magnitude + weight * other.magnitude
        # Rounded: 1 - w, the factors to the network's precision, the products, the sum.
        return ErrorBound(centre, spread, error, before.dtype).after(centre, 1.0, value, value.at, terms=4)

    return Step(sum_up(rest, product_up(weight, *(step.bound for step in branch))), advance)


def _norms(x: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norms * _ROUNDED_UP
