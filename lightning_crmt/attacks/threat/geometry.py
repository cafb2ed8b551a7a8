# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Perturbations of several modalities as vectors, one per sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import torch
from torch import Tensor

#: A change of the inputs, by modality; those left out stay as they are.
Perturbation: TypeAlias = dict[str, Tensor]
#: How far each entry may move down and up, for the modalities that have a box.
Room: TypeAlias = Mapping[str, tuple[Tensor, Tensor]]


def times(value: Tensor, per_sample: Tensor) -> Tensor:
    """``value`` of shape ``(B, ...)`` times a number per sample ``(B,)``, in the precision of ``value``."""
    return value * like(per_sample, value).to(value.dtype)


def like(per_sample: Tensor, value: Tensor) -> Tensor:
    """``(B,)`` in a shape that broadcasts with ``value``, ``(B, ...)``."""
    return per_sample.reshape(-1, *[1] * (value.dim() - 1))


def choose(take: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """``new`` for the samples in ``take``, else ``old``."""
    return torch.where(like(take, new), new, old)


def dot(one: Perturbation, other: Perturbation) -> Tensor:
    """Inner product over all modalities, ``(B,)``."""
    return torch.stack([(d.double() * other[name]).flatten(1).sum(dim=1) for name, d in one.items()]).sum(dim=0)


def norms_of(delta: Perturbation, norm: Literal["l2", "linf"], joint: bool) -> dict[str, Tensor]:
    """Norm of each modality, or for each the norm of all together; ``(B,)``."""
    norms = {name: _norm(d.flatten(1), 2 if norm == "l2" else torch.inf) for name, d in delta.items()}
    if len(norms) == 1:
        return norms
    return dict.fromkeys(norms, torch.linalg.vector_norm(torch.stack(list(norms.values())), dim=0)) if joint else norms


def longest_within(
    direction: Perturbation, radius: Tensor, room: Room, at_most: float, in_place: bool = False
) -> Perturbation:
    r"""The longest :math:`\mathrm{clip}(c \, u)` of joint l2 norm at most ``radius``, :math:`0 \le c \le` ``at_most``.

    For ``at_most=1`` that is the projection of u onto the ball cut by the box, for infinity the point of it that is
    farthest along u: the conditions of Karush, Kuhn and Tucker give both this form.
    """
    norm = norms_of(direction, "l2", joint=True)[next(iter(direction))]
    scale = (radius / norm).clamp_(max=at_most).masked_fill_(norm == 0, 0.0)
    if not any(name in room for name in direction):
        return _stretched(direction, scale, in_place)
    scaled = _stretched(direction, scale)
    while True:
        # What the clipped entries do not use of the radius is left to the others; each round clips more of them.
        clipped = {name: d.clamp(*room[name]) if name in room else d for name, d in scaled.items()}
        free = {name: clipped[name] == d for name, d in scaled.items()}
        used = _squares({name: d.masked_fill(free[name], 0) for name, d in clipped.items()})
        left = _squares({name: d.masked_fill(~free[name], 0) for name, d in direction.items()})
        wanted = ((radius.square() - used).clamp(min=0) / left.clamp(min=1e-300)).sqrt().clamp(max=at_most)
        grows = (left > 0) & (wanted > scale * (1 + 1e-12))
        if not bool(grows.any()):
            return clipped
        scale = torch.where(grows, wanted, scale)
        scaled = _stretched(direction, scale)


def nudged_towards(clean: Tensor, moved: Tensor, delta: Tensor) -> Tensor:
    """``moved``, one floating point number closer to ``clean`` wherever it is further away than ``delta``."""
    over = (moved.double() - clean.double()).abs() > delta.abs()
    # Half precision has no nextafter on the CPU; there the entry stays clean.
    closer = clean if moved.dtype is torch.float16 else torch.nextafter(moved, clean)
    return torch.where(over, closer, moved)


def _norm(vectors: Tensor, order: float) -> Tensor:
    if (
        vectors.device.type == "cpu"
    ):  # where double precision takes four times as long, and a look at the result nothing
        norm: Tensor = torch.linalg.vector_norm(vectors, order, dim=1).double()
        if bool(((norm > 1e-15) & (norm < 1e15)).all()):
            return norm
    # The squares of a tiny gradient vanish in single precision.
    exact: Tensor = torch.linalg.vector_norm(vectors, order, dim=1, dtype=torch.float64)
    return exact


def _stretched(direction: Perturbation, scale: Tensor, in_place: bool = False) -> Perturbation:
    # What a tiny gradient would be multiplied by need not fit in single precision.
    factors = {name: like(scale, d).clamp(max=_most(d)).to(d.dtype) for name, d in direction.items()}
    return {name: d.mul_(factors[name]) if in_place else d * factors[name] for name, d in direction.items()}


def _most(value: Tensor) -> float:
    return float(torch.finfo(value.dtype).max)


def _squares(value: Perturbation) -> Tensor:
    return torch.stack([d.square().flatten(1).sum(dim=1, dtype=torch.float64) for d in value.values()]).sum(dim=0)
