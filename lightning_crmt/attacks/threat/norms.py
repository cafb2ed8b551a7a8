# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The l2 and the l-infinity norm: lengths, projections and steepest directions; another norm is another class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor
from typing_extensions import override

from lightning_crmt.attacks.threat.per_sample import Perturbation, like, smallest, times
from lightning_crmt.modality import widest

#: How far each entry may move down and up, for the modalities that have a box.
Room: TypeAlias = Mapping[str, tuple[Tensor, Tensor]]


class Norm(ABC):
    """A norm of the perturbations of some modalities, taken together, and what a search within a radius needs of it.

    A subclass can be given as ``Budget(0.1, norm=MyNorm())``. Perturbations are by modality, ``(B, ...)`` each; radii
    and lengths are one per sample, ``(B,)``, in float64, or float32 on a device that has no float64;
    ``room`` says by modality how far each entry may move down and up, for those with a box.

    >>> from lightning_crmt.attacks import PGD, Budget
    >>> from lightning_crmt.attacks.threat.norms import L2
    >>> class LargestPart(Norm):  # the largest l2 norm of a modality, so that each has the whole radius
    ...     def length(self, delta):
    ...         return torch.stack([L2().length({name: d}) for name, d in delta.items()]).amax(dim=0)
    ...     def project(self, delta, radius, room, in_place=False):
    ...         return {name: L2().project({name: d}, radius, room)[name] for name, d in delta.items()}
    ...     def steepest(self, gradient, radius, room):
    ...         return {name: L2().steepest({name: g}, radius, room)[name] for name, g in gradient.items()}
    >>> budget = Budget(0.5, norm=LargestPart())
    >>> budget.size({"audio": torch.ones(1, 1), "image": torch.ones(1, 4)})
    tensor([4.], dtype=torch.float64)
    >>> model = lambda inputs: inputs["audio"] + inputs["image"] + torch.tensor([9.0, 0.0])
    >>> moved = PGD(budget)(model, {"audio": torch.zeros(1, 2), "image": torch.zeros(1, 2)}, torch.tensor([0]))
    >>> moved["audio"].norm(), moved["image"].norm()
    (tensor(0.5000), tensor(0.5000))
    """

    @abstractmethod
    def length(self, delta: Perturbation) -> Tensor:
        """The norm, ``(B,)``, in the widest precision of the device."""

    @abstractmethod
    def project(self, delta: Perturbation, radius: Tensor, room: Room, in_place: bool = False) -> Perturbation:
        """The perturbation nearest to ``delta``, in l2, within the radius and the room.

        With ``in_place`` the memory of ``delta`` may be used.
        """

    @abstractmethod
    def steepest(self, gradient: Perturbation, radius: Tensor, room: Room) -> Perturbation:
        """The perturbation within the radius and the room with the largest inner product with ``gradient``."""

    def random(self, noise: Perturbation, share: float, radius: Tensor, room: Room) -> Perturbation:
        """A random perturbation within the radius and the room, from Gaussian noise and a share drawn from [0, 1]."""
        return {name: share * each for name, each in self.steepest(noise, radius, room).items()}

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class L2(Norm):
    """The Euclidean norm of all entries."""

    @override
    def length(self, delta: Perturbation) -> Tensor:
        lengths = _vector_norms(delta, 2)
        if len(lengths) == 1:
            return lengths[0]
        if lengths.dtype is not torch.float64:
            return _vector_norm(lengths.mT, 2)
        joint: Tensor = torch.linalg.vector_norm(lengths, dim=0)
        return joint

    @override
    def project(self, delta: Perturbation, radius: Tensor, room: Room, in_place: bool = False) -> Perturbation:
        return self._longest(delta, radius, room, 1.0, in_place)

    @override
    def steepest(self, gradient: Perturbation, radius: Tensor, room: Room) -> Perturbation:
        if radius.dtype is not torch.float64:  # squares of tiny entries would vanish
            gradient = _stretched(gradient, 1 / self.length(gradient).clamp(min=smallest(radius)))
        return self._longest(gradient, radius, room, torch.inf)

    def _longest(
        self, direction: Perturbation, radius: Tensor, room: Room, at_most: float, in_place: bool = False
    ) -> Perturbation:
        r"""The longest :math:`\mathrm{clip}(c \, u)` within the radius, :math:`0 \le c \le` ``at_most``.

        For ``at_most=1`` that is the projection of u onto the ball cut by the box, for infinity the point of it that is
        farthest along u: the conditions of Karush, Kuhn and Tucker give both this form.
        """
        norm = self.length(direction)
        scale = (radius / norm).clamp_(max=at_most).masked_fill_(norm == 0, 0.0)
        if not any(name in room for name in direction):
            return _stretched(direction, scale, in_place)
        scaled = _stretched(direction, scale)
        while True:
            # The part of the radius that clipped entries do not use is left to the others; each round clips more.
            clipped = _clipped(scaled, room)
            free = {name: clipped[name] == d for name, d in scaled.items()}
            used = _squares({name: d.masked_fill(free[name], 0) for name, d in clipped.items()})
            left = _squares({name: d.masked_fill(~free[name], 0) for name, d in direction.items()})
            wanted = ((radius.square() - used).clamp(min=0) / left.clamp(min=smallest(left))).sqrt().clamp(max=at_most)
            grows = (left > 0) & (wanted > scale * (1 + max(1e-12, 4 * torch.finfo(scale.dtype).eps)))
            if not bool(grows.any()):
                return clipped
            scale = torch.where(grows, wanted, scale)
            scaled = _stretched(direction, scale)


class LInf(Norm):
    """The largest absolute value of all entries."""

    @override
    def length(self, delta: Perturbation) -> Tensor:
        return _vector_norms(delta, torch.inf).amax(dim=0)

    @override
    def project(self, delta: Perturbation, radius: Tensor, room: Room, in_place: bool = False) -> Perturbation:
        limits = {name: like(radius, d).to(d.dtype) for name, d in delta.items()}
        return _clipped({name: d.clamp(-limits[name], limits[name]) for name, d in delta.items()}, room)

    @override
    def steepest(self, gradient: Perturbation, radius: Tensor, room: Room) -> Perturbation:
        return _clipped({name: times(g.sign(), radius) for name, g in gradient.items()}, room)

    @override
    def random(self, noise: Perturbation, share: float, radius: Tensor, room: Room) -> Perturbation:
        uniform = {name: torch.special.ndtr(each) * 2 - 1 for name, each in noise.items()}
        return _clipped({name: times(each, radius) for name, each in uniform.items()}, room)


def _vector_norms(values: Perturbation, order: float) -> Tensor:
    """The norm of each modality, ``(M, B)``, in the widest precision of the device."""
    vectors = [each.flatten(1) for each in values.values()]
    # On the CPU double precision takes four times as long; checking the result costs little.
    if vectors[0].device.type == "cpu":
        norms = torch.stack([torch.linalg.vector_norm(each, order, dim=1) for each in vectors]).double()
        if bool(((norms > 1e-15) & (norms < 1e15)).all()):
            return norms
    return torch.stack([_vector_norm(each, order) for each in vectors])


def _vector_norm(vectors: Tensor, order: float) -> Tensor:
    """The norm of each row, also where squares of a tiny gradient vanish in single precision."""
    exact: Tensor
    if widest(vectors.device) is torch.float64:
        exact = torch.linalg.vector_norm(vectors, order, dim=1, dtype=torch.float64)
    else:
        largest = vectors.abs().amax(dim=1).float()
        unit = vectors / torch.where((largest > 0) & largest.isfinite(), largest, 1.0)[:, None]
        exact = torch.linalg.vector_norm(unit, order, dim=1) * torch.where(largest > 0, largest, 1.0)
    return exact


def _clipped(delta: Perturbation, room: Room) -> Perturbation:
    return {name: d.clamp(*room[name]) if name in room else d for name, d in delta.items()}


def _stretched(direction: Perturbation, scale: Tensor, in_place: bool = False) -> Perturbation:
    # What a tiny gradient would be multiplied by need not fit in single precision.
    dtypes = {d.dtype for d in direction.values()}
    factors = {dtype: scale.clamp(max=torch.finfo(dtype).max).to(dtype) for dtype in dtypes}
    shaped = {name: like(factors[d.dtype], d) for name, d in direction.items()}
    return {name: d.mul_(shaped[name]) if in_place else d * shaped[name] for name, d in direction.items()}


def _squares(value: Perturbation) -> Tensor:
    return torch.stack([d.square().flatten(1).sum(dim=1, dtype=widest(d.device)) for d in value.values()]).sum(dim=0)
