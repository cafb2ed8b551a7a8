# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""One scale for inputs of different modalities, from the training part alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

#: Values that are summed up at once.
_PORTION = 2**18


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


class Scale(NamedTuple):
    r"""Mean and factor of each channel, :math:`x = f_c (v - \mu_c)`.

    Attributes:
        mean: :math:`\mu`, ``(C,)``, double precision.
        factor: :math:`f`, ``(C,)``.
        channel: the dimension of a sample that holds the channels; None if all of its values share one.
    """

    mean: Tensor
    factor: Tensor
    channel: int | None

    def __call__(self, value: Tensor) -> Tensor:
        """One sample, scaled, in single precision; computed in double."""
        mean, factor = self.along(value.dim())
        return ((value.double() - mean) * factor).float()

    def along(self, dimensions: int) -> tuple[Tensor, Tensor]:
        """Mean and factor in the shape that goes with samples of so many dimensions.

        >>> Scale(torch.zeros(3), torch.ones(3), channel=0).along(3)[0].shape
        torch.Size([3, 1, 1])
        """
        shape = [1] * dimensions
        if self.channel is not None:
            shape[self.channel] = -1
        return self.mean.reshape(shape), self.factor.reshape(shape)


def fitted_scale(values: Iterable[Tensor], channel: int | None, norm: float | None = None) -> Scale:
    r"""What standardises samples that are read one after the other, whatever their lengths.

    Channels that are constant are not divided. With ``norm``, samples get a mean squared norm of ``norm``² over these
    ``values``: radii of modalities of any dimension then compare.

    Args:
        values: samples to learn from, those of the training part, each of the same number of channels.
        channel: the dimension of a sample that holds the channels, each with its own mean and deviation; None if all
            values of a sample share one.
        norm: root of the mean squared norm.

    Raises:
        ValueError: if there is no value.

    >>> scale = fitted_scale([torch.tensor([1.0, 5.0]), torch.tensor([3.0, 5.0])], channel=0)
    >>> scale(torch.tensor([7.0, 6.0]))
    tensor([5., 1.])
    """
    count, samples = 0, 0
    mean = square = low = high = torch.zeros(0)
    for portion, number in _portions(values, channel):
        # Means and sums of squares of both halves joined (Chan et al., 1979), which cancels nothing.
        new, seen = portion.mean(0), len(portion)
        inner = (portion - new).square().sum(0)
        least, most = portion.aminmax(dim=0)
        if count == 0:
            mean, square, low, high = new, inner, least, most
        else:
            apart = new - mean
            square = square + inner + apart.square() * (count * seen / (count + seen))
            mean = mean + apart * (seen / (count + seen))
            low, high = torch.minimum(low, least), torch.maximum(high, most)
        count, samples = count + seen, samples + number
    if count == 0:
        raise ValueError("`values` must hold at least one value, got none")
    varies = high > low  # a variance would be rounded
    factor = torch.where(varies, (square / count).sqrt(), 1.0).reciprocal()
    if norm is not None and varies.any():
        # Each value that varies has the mean square 1.
        factor = factor * (norm / math.sqrt(count * int(varies.sum()) / samples))
    return Scale(mean, factor, channel)


def _portions(values: Iterable[Tensor], channel: int | None) -> Iterable[tuple[Tensor, int]]:
    """Many values at once, ``(n, C)`` in double precision, and of how many samples they are."""
    held: list[Tensor] = []
    size = 0
    for value in values:
        channels = 1 if channel is None else value.shape[channel]
        held.append((value if channel is None else value.movedim(channel, -1)).reshape(-1, channels))
        size += value.numel()
        if size >= _PORTION:
            yield torch.cat(held).double(), len(held)
            held, size = [], 0
    if held:
        yield torch.cat(held).double(), len(held)
