# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Linear models of several inputs, whose distances to the boundary are known exactly."""

import torch
from torch import nn

SIZES = {"audio": (5,), "image": (2, 3)}


class Linear(nn.Module):
    """h = sum_m W^m x^m + b."""

    def __init__(self, num_classes=4, sizes=SIZES, dtype=torch.float64, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        draw = lambda *shape: nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))  # noqa: E731
        self.weights = nn.ParameterDict({n: draw(num_classes, torch.Size(s).numel()) for n, s in sizes.items()})
        self.bias = draw(num_classes)

    def forward(self, inputs):
        return self.bias + sum(inputs[n].flatten(1) @ w.mT for n, w in self.weights.items())


def samples(batch_size=20, sizes=SIZES, dtype=torch.float64, seed=1, low=None, high=None):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda shape: torch.rand((batch_size, *shape), generator=generator, dtype=torch.float64)  # noqa: E731
    low, high = (-2, 2) if low is None else (low, high)
    return {name: (low + (high - low) * draw(shape)).to(dtype) for name, shape in sizes.items()}


def distances(model, inputs, radii, norm="l2", joint=False, box=None):
    """Smallest factor of ``radii`` that reaches a boundary: bisection over the factor, one sample and class at a time.

    Within a factor t, the most that a margin can fall is a sum over modalities, or for a joint ball the optimum of one
    problem over all; each by bisection over the multiplier of its constraint.
    """
    logits = model(inputs).detach()
    factors = []
    for i, row in enumerate(logits):
        p = int(row.argmax())
        best = torch.inf
        for j in range(len(row)):
            if j != p:
                slopes = {n: (model.weights[n][j] - model.weights[n][p]).detach() for n in radii}
                rooms = {}
                for n in radii:
                    x = inputs[n][i].flatten()
                    low, high = (-torch.inf, torch.inf) if box is None else box[n]
                    rooms[n] = (low - x, high - x)
                if joint:
                    flat = torch.cat(list(slopes.values()))
                    room = [torch.cat(side) for side in zip(*rooms.values(), strict=True)]
                    groups = [(flat, room, next(iter(radii.values())))]
                else:
                    groups = [(slopes[n], rooms[n], radii[n]) for n in radii]
                needed = float(row[p] - row[j])
                gain = lambda t, groups=groups: sum(_most(g, room, t * r, norm) for g, room, r in groups)  # noqa: E731
                if gain(1e3) >= needed:
                    best = min(best, _bisect(lambda t, gain=gain, needed=needed: gain(t) >= needed, 1e3))
        factors.append(best)
    return torch.tensor(factors, dtype=torch.float64)


def _most(slope, room, radius, norm):
    """max <g, d> over d within the radius and the room."""
    if norm == "linf":
        return float((slope * (slope.sign() * radius).clamp(*room)).sum())
    if room[0].isinf().all():
        return radius * float(slope.norm())
    moved = lambda c: (c * slope).clamp(*room)  # noqa: E731
    if float(moved(1e3).norm()) <= radius:
        return float((slope * moved(1e3)).sum())
    c = _bisect(lambda c: float(moved(c).norm()) >= radius, 1e3)
    return float((slope * moved(c)).sum())


def _bisect(reached, high):
    low = 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high
