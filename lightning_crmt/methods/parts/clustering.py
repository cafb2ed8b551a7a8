# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""How well clusters of features match classes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: The most rounds of one run; it ends earlier when no point changes its cluster.
_ROUNDS = 300


def purity(features: Tensor, target: Tensor, clusters: int, seed: int = 0, restarts: int = 10) -> float:
    r"""Purity of a k-means clustering: the share of samples that are of the commonest class of their cluster.

    Each feature is first scaled to [-1, 1]. The same features always give the same number.

    Args:
        features: ``(N, d)``.
        target: classes, ``(N,)``.
        clusters: k, at least 1; at most N are made.
        seed: of the starting points, drawn by k-means++.
        restarts: the number of starts, of which the tightest clustering counts.

    >>> features = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
    >>> purity(features, torch.tensor([0, 0, 1, 0]), clusters=2)
    0.75
    """
    low, high = features.amin(dim=0), features.amax(dim=0)
    # A constant feature carries no information, and is not scaled.
    points = 2 * (features - low) / torch.where(high > low, high - low, 1) - 1
    assigned = k_means(points, clusters, seed, restarts)
    counts = torch.zeros(int(assigned.max()) + 1, int(target.max()) + 1, dtype=torch.long)
    counts.index_put_((assigned.cpu(), target.cpu()), torch.tensor(1), accumulate=True)
    return int(counts.amax(dim=1).sum()) / len(target)


def k_means(points: Tensor, clusters: int, seed: int = 0, restarts: int = 10) -> Tensor:
    """The cluster of each point, ``(N,)``: the best of several runs of Lloyd's algorithm from k-means++ starts."""
    generator = torch.Generator().manual_seed(seed)
    least, best = math.inf, torch.zeros(len(points), dtype=torch.long)
    for _ in range(restarts):
        centres = _starts(points, min(clusters, len(points)), generator)
        assigned = torch.cdist(points, centres).argmin(dim=1)
        for _ in range(_ROUNDS):
            centres = _means(points, assigned, centres)
            distances, again = torch.cdist(points, centres).min(dim=1)
            spread = float(distances.square().sum())
            if again.equal(assigned):
                break
            assigned = again
        if spread < least:
            least, best = spread, assigned
    return best


def _starts(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Points drawn one by one, each with a chance in proportion to its squared distance to those before."""
    chosen = [int(torch.randint(len(points), (), generator=generator))]
    nearest = torch.full((len(points),), math.inf, dtype=points.dtype, device=points.device)
    for _ in range(clusters - 1):
        nearest = torch.minimum(nearest, (points - points[chosen[-1]]).square().sum(dim=1))
        # All points may have been chosen already.
        chances = nearest.cpu().double() if bool(nearest.any()) else torch.ones(len(points), dtype=torch.double)
        draw = torch.rand((), generator=generator, dtype=torch.double) * chances.sum()
        chosen.append(min(int(torch.searchsorted(chances.cumsum(dim=0), draw, right=True)), len(points) - 1))
    return points[chosen]


def _means(points: Tensor, assigned: Tensor, centres: Tensor) -> Tensor:
    """The mean of each cluster; an empty one keeps its centre."""
    sums = torch.zeros_like(centres).index_add_(0, assigned, points)
    counts = torch.bincount(assigned, minlength=len(centres))[:, None]
    return torch.where(counts > 0, sums / counts.clamp(min=1), centres)
