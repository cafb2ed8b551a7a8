# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Upper bounds of the spectral norm of matrices, sound in exact arithmetic with a slack for float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Relative slack of every norm: some thousand times what float64 loses on matrices of a few thousand rows.
SLACK = 1 + 1e-9

_EXACT_UP_TO = 4096
_GRAM_STEPS = 8


def spectral_norm(matrix: Tensor) -> float:
    r"""An upper bound of the largest singular value, over all matrices of a batch.

    The square root of the largest eigenvalue of the Gram matrix of the shorter side, up to side 4096; by Gram iteration
    above. Never by power iteration, which approaches the norm from below.

    Args:
        matrix: ``(..., m, n)``, double or complex double.

    >>> spectral_norm(torch.tensor([[3.0, 0.0], [4.0, 0.0]], dtype=torch.float64))
    5.000000005
    """
    if matrix.numel() == 0:
        return 0.0
    scale = float(matrix.abs().max())  # keeps the squares in range
    if scale == 0:
        return 0.0
    # LAPACK's symmetric solver may fail to converge, or lose digits, on wildly scaled matrices: these come in near 1.
    matrix = matrix / scale
    gram = matrix @ matrix.mH if matrix.shape[-2] <= matrix.shape[-1] else matrix.mH @ matrix
    if gram.shape[-1] <= _EXACT_UP_TO:
        square = float(torch.linalg.eigvalsh(gram)[..., -1].max())
    else:
        square = gram_iteration(gram)
    return scale * math.sqrt(max(square, 0.0)) * SLACK


def gram_iteration(gram: Tensor) -> float:
    r"""An upper bound of the largest eigenvalue of positive semi-definite matrices, by repeated squaring.

    .. math:: \lambda_{\max}(G) = \lambda_{\max}(G^{2^k})^{2^{-k}} \le \|G^{2^k}\|^{2^{-k}}

    for any matrix norm, here the smaller of the Frobenius norm and the largest row sum: an upper bound at every k
    (Delattre et al., ICML 2023). A Gram matrix of side n comes out at most :math:`n^{2^{-k} / 2}` too large, 1.6 % for
    n = 4096 and k = 8, 0.8 % for the norm itself.

    Args:
        gram: ``(..., n, n)``, not all zero.
    """
    # The logarithm of what was divided away, in units of the current power.
    log = 0.0
    for _ in range(_GRAM_STEPS):
        scale = float(torch.linalg.matrix_norm(gram).max())
        gram = gram / scale
        log = 2 * (log + float(torch.tensor(scale, dtype=torch.float64).log()))
        gram = gram @ gram
    frobenius = torch.linalg.matrix_norm(gram)
    row_sums = gram.abs().sum(dim=-1).amax(dim=-1)
    last = torch.minimum(frobenius, row_sums).max()
    return float(((log + last.log()) / 2**_GRAM_STEPS).exp())
