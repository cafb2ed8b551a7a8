# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""One scale for inputs of different modalities, from the training part alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def scaled(value: Tensor, train: Tensor, over: Sequence[int], norm: float) -> Tensor:
    r"""Standardise with mean and deviation of the training rows, and give these rows a mean squared norm of ``norm``².

    .. math:: u = (v - \mu) / \sigma, \qquad x = r u \big/ \sqrt{\operatorname{mean}_{\text{train}} \|u\|_2^2}

    Then :math:`l_2` radii of modalities of any dimension compare: :math:`r`, ``norm``, is the size of an input.

    Args:
        value: all rows, ``(N, ...)``.
        train: rows of the training part.
        over: dimensions that share mean and deviation, 0 among them; every other has its own.
        norm: root of the mean squared norm, above 0.

    Returns:
        Single precision, of the shape of ``value``.

    Raises:
        ValueError: if ``norm`` is not above 0.

    >>> x = scaled(torch.rand(50, 3, 4) * 9, torch.arange(40), over=(0, 2), norm=10.0)
    >>> x[:40].square().sum((1, 2)).mean().round(decimals=4)
    tensor(100.)
    """
    check_norm(norm)
    # In double precision: sums over millions of values.
    value = value.double()
    seen = value[train]
    mean, deviation = seen.mean(list(over), keepdim=True), seen.std(list(over), correction=0, keepdim=True)
    deviation = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    value = (value - mean) / deviation
    size = value[train].flatten(1).square().sum(1).mean().sqrt()
    return (value * (norm / size) if size > 0 else value).float()


def check_norm(norm: float) -> None:
    """Refuse what no input can be scaled to."""
    if not (math.isfinite(norm) and norm > 0):
        raise ValueError(f"`norm` must be above 0, got {norm}")
