# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
r"""Norms with a proof that survives rounding: upper bounds computed in double precision, every error counted.

The model is IEEE 754 arithmetic, rounding to nearest, with unit roundoff :math:`u = 2^{-53}`. A sum of n terms in any
order, or an inner product with or without fused operations, is off by at most :math:`\gamma_n = n u / (1 - n u)` times
the sum of the absolute terms (Higham, Accuracy and Stability of Numerical Algorithms, chapter 3), plus what underflow
loses. That is all that is assumed of the libraries that multiply matrices here, and nothing is assumed of the one that
diagonalises: its answer is checked.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Unit roundoff by precision; also an upper bound of a result that underflows, even where it is flushed to zero.
UNIT_ROUNDOFF = {torch.float64: 2.0**-53, torch.float32: 2.0**-24}
UNDERFLOW = {torch.float64: 2.0**-1022, torch.float32: 2.0**-126}

_U = UNIT_ROUNDOFF[torch.float64]
# Far above all that underflows in a product of matrices with entries up to 1 and fewer than 2^40 entries.
_ABSOLUTE = 2.0**-900


def up(value: float) -> float:
    """The next double: an upper bound of the exact result of the operation that rounded to ``value``."""
    return math.nextafter(value, math.inf)


def product_up(*factors: float) -> float:
    """Upper bound of a product of numbers >= 0.

    >>> product_up(0.1, 3.0) > 0.3
    True
    """
    total = 1.0
    for factor in factors:
        total = up(total * factor)
    return total


def sum_up(*terms: float) -> float:
    """Upper bound of a sum of numbers >= 0."""
    total = 0.0
    for term in terms:
        total = up(total + term)
    return total


def gamma(count: int, unit: float = _U) -> float:
    r"""Upper bound of :math:`\gamma_n = n u / (1 - n u)`.

    Args:
        count: n, the number of roundings.
        unit: u, the unit roundoff; that of double precision by default.

    Raises:
        ValueError: if n u is 1/2 or more: the bound says nothing about so many roundings.

    >>> f"{gamma(1000, UNIT_ROUNDOFF[torch.float32]):.3e}"  # the relative error of a sum of 1000 numbers, at most
    '5.961e-05'
    """
    if count * unit >= 0.5:
        raise ValueError(f"inner products must be shorter than {int(0.5 / unit)}, got {count}")
    return up(up(count * unit) / (1 - count * unit)) * (1 + 4 * _U)


def inflated(sums: Tensor, terms: int) -> Tensor:
    """Upper bounds of sums of ``terms`` numbers >= 0 that were added in double precision in whatever order."""
    # computed >= exact (1 - u)^(n - 1) >= exact (1 - n u), and (1 - n u)(1 + 2 n u) >= 1; the rest is for this product.
    return sums * (1 + (2 * terms + 8) * _U)


def frobenius_up(matrix: Tensor) -> float:
    """Upper bound of the Frobenius norm of a matrix with entries up to 1 in absolute value, in double precision."""
    square = float(inflated(matrix.square().sum(), 2 * matrix.numel() + 2))
    return up(math.sqrt(up(square + _ABSOLUTE)))


def norm_up(matrix: Tensor) -> float:
    r"""An upper bound of the spectral norm of a matrix of floating point numbers, proof against rounding.

    With any V, here the eigenvectors of the Gram matrix as LAPACK gives them, :math:`B = W V` and
    :math:`E = V^\top V - I`,

    .. math:: \|W\|_2 \le \|B\|_2 / \sqrt{1 - \|E\|_2}, \qquad
              \|B\|_2^2 \le \sqrt{\|B^\top B\|_1 \, \|B^\top B\|_\infty}

    where each product is replaced by its computed value plus a bound of its error,
    :math:`\gamma_n \|\cdot\|_F \|\cdot\|_F`. About 1e-13 above the norm for a side of 100.

    Args:
        matrix: ``(m, n)``, real, of any floating point type; its entries are taken as exact.

    Raises:
        ValueError: if it is not finite, or too large for the error bounds to say anything.

    >>> norm_up(torch.tensor([[3.0, 0.0], [4.0, 0.0]])) - 5 < 1e-13
    True
    """
    if matrix.dim() != 2 or not matrix.is_floating_point():
        raise ValueError(f"`matrix` must be real and have two dimensions, got {matrix.dtype} {tuple(matrix.shape)}")
    matrix = matrix.detach().cpu().double()
    if not matrix.isfinite().all():
        raise ValueError("`matrix` must be finite, it holds NaN or Inf")
    largest = float(matrix.abs().max()) if matrix.numel() else 0.0
    if largest == 0:
        return 0.0
    # By a power of two, which is exact but for entries that underflow; they are in _ABSOLUTE.
    exponent = math.frexp(largest)[1]
    half = exponent // 2  # in two steps, since 2^-exponent itself may not be a double
    matrix = matrix * 2.0**-half * 2.0 ** (half - exponent)
    if matrix.shape[0] < matrix.shape[1]:
        matrix = matrix.mT
    rows, columns = matrix.shape
    vectors = torch.linalg.eigh(matrix.mT @ matrix).eigenvectors
    if not (vectors.abs() <= 1.5).all():
        raise ValueError("`matrix` could not be diagonalised")
    vectors = vectors / 2  # entries up to 1; the norm of V is divided out below
    norm_v = frobenius_up(vectors)
    # E of V / 2 is V^T V - I / 4.
    gram = vectors.mT @ vectors
    gram.diagonal().sub_(0.25)  # exact for entries within [1/8, 1/2], and else the bound below fails anyway
    error_e = sum_up(
        _absolute_norm_up(gram), product_up(gamma(columns), norm_v, norm_v), product_up(4.0, _U), _ABSOLUTE
    )
    if error_e >= 0.125:
        raise ValueError("`matrix` could not be diagonalised")
    image = matrix @ vectors
    error_b = sum_up(product_up(gamma(columns), frobenius_up(matrix), norm_v), _ABSOLUTE)
    # Its entries may exceed 1; the largest is at most the length of a row.
    scale = 2.0 ** math.ceil(math.log2(max(columns, 1)) + 1)
    image = image / scale
    norm_b = frobenius_up(image)
    square = sum_up(_absolute_norm_up(image.mT @ image), product_up(gamma(rows), norm_b, norm_b), _ABSOLUTE)
    norm_image = sum_up(product_up(scale, up(math.sqrt(square))), error_b)
    smallest = math.nextafter(math.sqrt(math.nextafter(0.25 - error_e, 0.0)), 0.0)
    bound = up(norm_image / smallest) + _ABSOLUTE
    return up(math.ldexp(up(bound), exponent))


def _absolute_norm_up(matrix: Tensor) -> float:
    """Upper bound of the spectral norm of a square matrix through its row and column sums."""
    absolute = matrix.abs()
    by_row = float(inflated(absolute.sum(dim=1), matrix.shape[1]).max())
    by_column = float(inflated(absolute.sum(dim=0), matrix.shape[0]).max())
    return up(math.sqrt(up(by_row * by_column)))
