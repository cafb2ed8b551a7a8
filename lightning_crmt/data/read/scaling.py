# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""One scale for inputs of different modalities, from the training part alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def standardised(value: Tensor, train: Tensor, over: Sequence[int]) -> Tensor:
    r"""Subtract the mean of the training rows and divide by their deviation, :math:`u = (v - \mu) / \sigma`.

    Values that are constant over the training rows are not divided.

    Args:
        value: all rows, ``(N, ...)``.
        train: indices of the training rows.
        over: dimensions that share mean and deviation, 0 among them; every other has its own.

    Returns:
        Double precision, for sums over millions of values, of the shape of ``value``.

    >>> standardised(torch.tensor([[1.0, 5.0], [3.0, 5.0], [7.0, 6.0]]), torch.tensor([0, 1]), over=(0,))
    tensor([[-1.,  0.], [ 1.,  0.], [ 5.,  1.]], dtype=torch.float64)
    """
    value = value.double()
    seen = value[train]
    mean, deviation = seen.mean(list(over), keepdim=True), seen.std(list(over), correction=0, keepdim=True)
    return (value - mean) / torch.where(deviation > 0, deviation, torch.ones_like(deviation))


def scaled(value: Tensor, train: Tensor, over: Sequence[int], norm: float) -> Tensor:
    r"""Standardise, and give the training rows a mean squared norm of ``norm``².

    .. math:: x = r u \big/ \sqrt{\operatorname{mean}_{\text{train}} \|u\|_2^2}, \qquad u = (v - \mu) / \sigma

    Then :math:`l_2` radii of modalities of any dimension compare: :math:`r`, ``norm``, is the size of an input.

    Args:
        value: all rows, ``(N, ...)``.
        train: indices of the training rows.
        over: dimensions that share mean and deviation, 0 among them; every other has its own.
        norm: root of the mean squared norm, above 0.

    Returns:
        Single precision, of the shape of ``value``.

    >>> x = scaled(torch.rand(50, 3, 4) * 9, torch.arange(40), over=(0, 2), norm=10.0)
    >>> x[:40].square().sum((1, 2)).mean().round(decimals=4)
    tensor(100.)
    """
    value = standardised(value, train, over)
    size = value[train].flatten(1).square().sum(1).mean().sqrt()
    return (value * (norm / size) if size > 0 else value).float()
