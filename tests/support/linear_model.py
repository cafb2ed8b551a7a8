# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Linear models of several inputs, whose distances to the boundary are known exactly."""

import math
from itertools import chain

import torch
from torch import nn

from lightning_crmt.attacks import Budget

SIZES = {"audio": (5,), "image": (2, 3)}
BOX = {"audio": (-2.0, 2.0), "image": (-2.0, 2.0)}
ALL = {"audio": 1.0, "image": 1.0}

#: What is searched, as a function of the factor, and the exact factor.
THREATS = {
    "joint": (lambda t: Budget(t), {"radii": ALL, "joint": True}),
    "alone": (lambda t: Budget(t, modalities=["image"]), {"radii": {"image": 1.0}}),
    "product": (lambda t: Budget({"audio": t, "image": 0.3 * t}), {"radii": {"audio": 1.0, "image": 0.3}}),
    "linf": (lambda t: Budget(t, norm="linf"), {"radii": ALL, "norm": "linf"}),
    "joint, box": (lambda t: Budget(t, box=BOX), {"radii": ALL, "joint": True, "box": BOX}),
    "linf, box": (lambda t: Budget(t, norm="linf", box=BOX), {"radii": ALL, "norm": "linf", "box": BOX}),
    "product, box": (lambda t: Budget({"audio": t, "image": t}, box=BOX), {"radii": ALL, "box": BOX}),
}


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


class Counting(Linear):
    def __init__(self, **settings):
        super().__init__(**settings)
        self.seen = []

    def forward(self, inputs):
        self.seen.append(len(inputs["audio"]))
        return super().forward(inputs)


class Detaching(Linear):
    def forward(self, inputs):
        return super().forward({n: v.detach() if n == "audio" else v for n, v in inputs.items()})


def predict(model, inputs):
    with torch.no_grad():
        output = model(inputs)
    return (output["logits"] if isinstance(output, dict) else output).argmax(dim=1)


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
    logits = model(inputs).tolist()
    weights = {n: model.weights[n].tolist() for n in radii}
    flat = {n: inputs[n].flatten(1).tolist() for n in radii}
    ends = {n: (-math.inf, math.inf) if box is None else box[n] for n in radii}
    factors = []
    for i, row in enumerate(logits):
        p = row.index(max(row))
        room = {n: [(ends[n][0] - x, ends[n][1] - x) for x in flat[n][i]] for n in radii}
        best = math.inf
        for j in range(len(row)):
            if j != p:
                slopes = {n: [a - b for a, b in zip(weights[n][j], weights[n][p], strict=True)] for n in radii}
                if joint:
                    groups = [([*chain(*slopes.values())], [*chain(*room.values())], next(iter(radii.values())))]
                else:
                    groups = [(slopes[n], room[n], radii[n]) for n in radii]
                needed = row[p] - row[j]
                gain = lambda t, groups=groups: sum(_most(g, room, t * r, norm) for g, room, r in groups)  # noqa: E731
                if gain(1e3) >= needed:
                    best = min(best, _bisect(lambda t, gain=gain, needed=needed: gain(t) >= needed, 1e3))
        factors.append(best)
    return torch.tensor(factors, dtype=torch.float64)


def _most(slope, room, radius, norm):
    """max <g, d> over d within the radius and the room."""
    along = lambda steps: sum(g * step for g, step in zip(slope, steps, strict=True))  # noqa: E731
    moved = lambda c: [min(max(c * g, low), high) for g, (low, high) in zip(slope, room, strict=True)]  # noqa: E731
    if norm == "linf":
        return along(
            [min(max(math.copysign(radius, g), low), high) for g, (low, high) in zip(slope, room, strict=True)]
        )
    if all(math.isinf(low) for low, _ in room):
        return radius * math.hypot(*slope)
    if math.hypot(*moved(1e3)) <= radius:
        return along(moved(1e3))
    return along(moved(_bisect(lambda c: math.hypot(*moved(c)) >= radius, 1e3)))


def _bisect(reached, high):
    low = 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high
