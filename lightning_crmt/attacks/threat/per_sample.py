# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Values with one row per sample, and perturbations of several modalities treated as one vector."""

from __future__ import annotations

import copy
from typing import Any, TypeAlias

import torch
from torch import Tensor
from typing_extensions import Self

from lightning_crmt.modality import widened

#: A change of the inputs, by modality; those left out stay as they are.
Perturbation: TypeAlias = dict[str, Tensor]


class PerSample:
    """A value that may hold something for each sample: tensors ``(B, ...)``, dicts of them, or values like this one."""

    def select(self, rows: Tensor) -> Self:
        """The same value for some of the samples, whose indices are ``rows``."""
        other = copy.copy(self)
        vars(other).update(select(vars(self), rows))
        return other


def select(value: Any, rows: Tensor) -> Any:
    """``value`` for some of the samples: rows of tensors ``(B, ...)``; what is not per sample stays as it is.

    >>> select({"each": torch.arange(3), "all": torch.tensor(7), "name": "audio"}, torch.tensor([2]))
    {'each': tensor([2]), 'all': tensor(7), 'name': 'audio'}
    """
    if isinstance(value, Tensor):
        return value[rows.to(value.device)] if value.dim() > 0 else value
    if isinstance(value, dict):
        return {name: select(each, rows) for name, each in value.items()}
    return value.select(rows) if isinstance(value, PerSample) else value


def times(value: Tensor, per_sample: Tensor) -> Tensor:
    """``value`` of shape ``(B, ...)`` times a number per sample ``(B,)``, in the precision of ``value``."""
    return value * like(per_sample, value).to(value.dtype)


def like(per_sample: Tensor, value: Tensor) -> Tensor:
    """``(B,)`` in a shape that broadcasts with ``value``, ``(B, ...)``.

    >>> like(torch.tensor([1.0, 2.0]), torch.zeros(2, 3, 4)).shape
    torch.Size([2, 1, 1])
    """
    return per_sample.reshape(-1, *[1] * (value.dim() - 1))


def smallest(value: Tensor) -> float:
    """The smallest normal number in the precision of ``value``: what may stand for 0 where it is divided by.

    >>> smallest(torch.ones(2))
    1.1754943508222875e-38
    """
    return torch.finfo(value.dtype).tiny


def choose(take: Tensor, new: Perturbation, old: Perturbation) -> Perturbation:
    """For each modality of ``old`` that of ``new`` for the samples in ``take``, ``(B,)``."""
    return {name: torch.where(like(take, each), new[name], each) for name, each in old.items()}


def dot(one: Perturbation, other: Perturbation) -> Tensor:
    """Inner product over all modalities, ``(B,)``."""
    return torch.stack([(widened(d) * other[name]).flatten(1).sum(dim=1) for name, d in one.items()]).sum(dim=0)
