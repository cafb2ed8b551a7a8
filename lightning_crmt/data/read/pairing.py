# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Splits by class, and pairs of samples of two data sets that share their classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def stratified_split(target: Tensor, shares: Sequence[float], generator: torch.Generator) -> list[Tensor]:
    """Rows of the parts, sorted; each part has its share of every class, at random.

    Args:
        target: class of each row, ``(N,)``.
        shares: of the parts; they add up to 1.
        generator: decides who goes where.

    >>> parts = stratified_split(torch.tensor([0, 1] * 10), (0.6, 0.2, 0.2), torch.Generator().manual_seed(0))
    >>> [len(part) for part in parts]
    [12, 4, 4]
    """
    parts: list[list[Tensor]] = [[] for _ in shares]
    for label in sorted(set(target.tolist())):
        rows = (target == label).nonzero().squeeze(1)
        rows = rows[torch.randperm(len(rows), generator=generator)]
        ends = [round(sum(shares[: i + 1]) * len(rows)) for i in range(len(shares))]
        for part, start, end in zip(parts, [0, *ends[:-1]], ends, strict=True):
            part.append(rows[start:end])
    return [torch.cat(part).sort().values for part in parts]


def pair_by_class(target: Tensor, other: Tensor, generator: torch.Generator) -> Tensor:
    """For each sample of one data set, a random row of the same class of another.

    Rows of the other are used as evenly as their number allows: none twice while one of its class is left.

    Args:
        target: class of each sample, ``(N,)``.
        other: class of each row of the other data set, ``(M,)``.
        generator: decides who meets whom.

    Returns:
        Rows of the other data set, ``(N,)``.

    Raises:
        ValueError: if the other data set lacks a class.

    >>> pair_by_class(torch.tensor([1, 0, 1]), torch.tensor([0, 1]), torch.Generator())
    tensor([1, 0, 1])
    """
    rows = torch.empty_like(target, dtype=torch.int64)
    for label in sorted(set(target.tolist())):
        places = (target == label).nonzero().squeeze(1)
        candidates = (other == label).nonzero().squeeze(1)
        if not len(candidates):
            raise ValueError(f"`other` must hold every class of `target`, has none of class {label}")
        rounds = -(-len(places) // len(candidates))
        drawn = [candidates[torch.randperm(len(candidates), generator=generator)] for _ in range(rounds)]
        rows[places] = torch.cat(drawn)[: len(places)]
    return rows
