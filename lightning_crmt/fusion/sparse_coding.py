# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Sparse codes of features over a dictionary, and the features that the dictionary reconstructs from them."""

from __future__ import annotations

import torch
from torch import Tensor


def sparse_codes(features: Tensor, atoms: Tensor, penalty: float, steps: int = 2000, tolerance: float = 8e-4) -> Tensor:
    r"""Codes of least penalised error, by iterative shrinkage and thresholding (Beck and Teboulle, SIAM J. IS 2009).

    .. math:: c_i = \arg\min_c \tfrac 1 2 \lVert z_i - D c \rVert^2 + \lambda \lVert c \rVert_1

    with step size 1 over the largest eigenvalue of :math:`D^\top D`, so that no step increases the error.

    Args:
        features: :math:`z_i`, ``(B, d)``.
        atoms: columns of D as rows, ``(A, d)``.
        penalty: :math:`\lambda`, at least 0.
        steps: the most iterations.
        tolerance: stop when no sample's code changes by more than this share of its norm.

    Returns:
        Codes, ``(B, A)``, without a graph.

    >>> codes = sparse_codes(torch.tensor([[3.0, -0.5]]), torch.eye(2), penalty=1.0)  # shrinks towards 0
    >>> codes
    tensor([[2., -0.]])
    """
    with torch.no_grad():
        gram, cross = atoms @ atoms.mT, features @ atoms.mT
        largest = torch.linalg.eigvalsh(gram)[-1].clamp(min=torch.finfo(gram.dtype).tiny)
        threshold = penalty / largest
        codes = torch.zeros_like(cross)
        for step in range(steps):
            moved = codes + (cross - codes @ gram) / largest
            last, codes = codes, moved.sign() * (moved.abs() - threshold).clamp(min=0)
            # Checking costs a synchronisation with the device.
            if step % 10 == 9 and bool(((codes - last).norm(dim=1) <= tolerance * codes.norm(dim=1)).all()):
                break
    return codes


def reconstruction(
    features: Tensor, atoms: Tensor, penalty: float, steps: int = 2000, tolerance: float = 8e-4
) -> Tensor:
    r"""Reconstruction of features by the dictionary, :math:`D c(z)`, ``(B, d)``, with its own gradient.

    While the same atoms are active, :math:`D c(z)` moves with the projection of z onto them. That projection is the
    gradient given here, in place of one through all iterations, or of none: an attack without a gradient through a
    defence makes it look stronger than it is.

    Args:
        features: z, ``(B, d)``.
        atoms: ``(A, d)``.
        penalty, steps, tolerance: see :func:`sparse_codes`.

    >>> z = torch.tensor([[3.0, -0.5]], requires_grad=True)
    >>> reconstruction(z, torch.eye(2), penalty=1.0).sum().backward()
    >>> z.grad.round(decimals=3)
    tensor([[1., 0.]])
    """
    codes = sparse_codes(features, atoms, penalty, steps, tolerance)
    value = codes @ atoms
    if not (torch.is_grad_enabled() and features.requires_grad):
        return value
    with torch.no_grad():
        active = codes != 0
        gram = atoms @ atoms.mT
        # One system per sample; rows of atoms that are not active are those of the identity.
        system = torch.where(active[:, :, None] & active[:, None, :], gram, 0.0)
        # Atoms may repeat, or outnumber the dimensions: a little weight on the diagonal keeps the system solvable.
        ridge = 1e-6 * gram.diagonal().amax().clamp(min=torch.finfo(gram.dtype).tiny)
        system = system + torch.diag_embed(torch.where(active, ridge, 1.0))
    projected = torch.linalg.solve(system, ((features @ atoms.mT) * active)[:, :, None])[:, :, 0] @ atoms
    moving: Tensor = projected - projected.detach()
    return value + moving
