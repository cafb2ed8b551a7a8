# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Matrices made orthogonal from a free parameter, and the linear layer that has one."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from lightning_crmt.checks import check_at_least
from lightning_crmt.layers.fixed_weights import Fixable

#: By the identity of a frozen parameter, which is kept so that no other one can have it: its stamp, and its rows.
_KEPT: ContextVar[dict[int, tuple[Tensor, Hashable, Tensor]] | None] = ContextVar("kept rows", default=None)


@contextmanager
def kept_rows() -> Iterator[None]:
    """Inside, the orthonormal rows of a frozen parameter are computed once, and again should it change.

    For many passes through the same model, where a decomposition in each would cost as much as the rest. A change in
    place through ``parameter.data`` is not seen.

    >>> layer = OrthogonalLinear(5, 3).requires_grad_(False)
    >>> with kept_rows():
    ...     orthonormal_rows(layer.raw) is orthonormal_rows(layer.raw)
    True
    """
    token = _KEPT.set({})
    try:
        yield
    finally:
        _KEPT.reset(token)


def orthonormal_rows(raw: Tensor) -> Tensor:
    r"""Rows that are orthonormal, as a smooth function of a free parameter.

    The Q factor of the transpose, with the signs that make the diagonal of R positive: so it is unique.

    Args:
        raw: ``(..., n, d)`` with n <= d, of full rank.

    Returns:
        ``(..., n, d)`` in single precision, or in double if ``raw`` is: there is no QR in half precision, and norms and
        margins deserve better anyway.

    >>> rows = orthonormal_rows(torch.randn(3, 5))
    >>> torch.allclose(rows @ rows.mT, torch.eye(3), atol=1e-6)
    True
    """
    return _kept(raw, _rows)


def _rows(raw: Tensor) -> Tensor:
    with torch.autocast(raw.device.type, enabled=False):
        wide = raw if raw.dtype is torch.float64 else raw.float()
        q, r = torch.linalg.qr(wide.mT)
        signs = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(q.dtype)
        rows: Tensor = (q * signs[..., None, :]).mT
    return rows


def _columns(raw: Tensor) -> Tensor:
    return _rows(raw.mT).mT


def _kept(raw: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
    """``compute(raw)``, or what it was if :func:`kept_rows` says so and the frozen ``raw`` is as it was."""
    frozen = isinstance(raw, nn.Parameter) and not raw.requires_grad
    kept = _KEPT.get() if frozen and not torch.compiler.is_compiling() else None
    if kept is None:
        return compute(raw)
    stamp = raw.dtype, raw.data_ptr(), None if raw.is_inference() else raw._version
    if id(raw) in kept:
        _, before, rows = kept[id(raw)]
        # What was computed in inference mode is of no use to a gradient.
        if before == stamp and (torch.is_inference_mode_enabled() or not rows.is_inference()):
            return rows
    rows = compute(raw)
    kept[id(raw)] = (raw, stamp, rows)
    return rows


Plain = TypeVar("Plain", nn.Linear, nn.Conv1d | nn.Conv2d, nn.ConvTranspose1d | nn.ConvTranspose2d)


def storing(weight: Tensor, bias: Tensor | None, plain: Plain) -> Plain:
    """The plain layer, with copies of these as its parameters."""
    plain.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        plain.bias = nn.Parameter(bias.detach().clone())
    return plain


def orthogonal(raw: Tensor) -> Tensor:
    """``raw`` made orthonormal along its shorter side."""
    return _kept(raw, _rows if raw.shape[-2] <= raw.shape[-1] else _columns)


class OrthogonalLinear(nn.Module, Fixable):
    r"""Linear layer :math:`x \mapsto W x + b` with orthonormal rows, or columns where there are more rows.

    .. math:: W W^\top = I \text{ or } W^\top W = I, \qquad \|W\|_2 = 1

    W is computed from the free parameter ``raw`` in every forward pass, so it is orthogonal up to rounding whatever the
    optimiser or weight decay does. :func:`~lightning_crmt.lipschitz.lipschitz_bound` measures W and does not assume 1.

    Args:
        in_features: size of the last dimension of the input.
        out_features: size of the last dimension of the output.
        bias: whether to add a bias.

    Raises:
        ValueError: if a size is below 1.

    >>> layer = OrthogonalLinear(5, 3)
    >>> layer(torch.randn(2, 5)).shape
    torch.Size([2, 3])
    >>> torch.allclose(layer.weight @ layer.weight.mT, torch.eye(3), atol=1e-6)
    True
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        check_at_least(1, in_features=in_features, out_features=out_features)
        self.in_features = in_features
        self.out_features = out_features
        self.raw = nn.Parameter(nn.init.orthogonal_(torch.empty(out_features, in_features)))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    @property
    def weight(self) -> Tensor:
        """The orthogonal matrix W, ``(out_features, in_features)``."""
        return orthogonal(self.raw).to(self.raw.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., out_features)`` of ``(..., in_features)``."""
        return F.linear(x, self.weight, self.bias)

    @override
    def fixed(self) -> nn.Linear:
        """A linear layer that stores W."""
        self._refuse_overridden(OrthogonalLinear, "forward")
        # On no device: its own random weights are not wanted, nor the random numbers they would take.
        plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        return storing(self.weight, self.bias, plain)

    @override
    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
