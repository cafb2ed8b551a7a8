# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What a perturbation may be; every search asks here and nowhere else."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from lightning_crmt.attacks.threat.box import Box, as_box
from lightning_crmt.attacks.threat.geometry import (
    Perturbation,
    Room,
    choose,
    dot,
    like,
    longest_within,
    norms_of,
    nudged_towards,
    times,
)
from lightning_crmt.attacks.threat.radius import Radius, check_radius
from lightning_crmt.checks import check_modality_names, describe
from lightning_crmt.modality import Inputs


class Budget:
    r"""The set of allowed perturbations :math:`\delta`, of some or all modalities.

    - one radius: :math:`\sqrt{\sum_m \|\delta^m\|_2^2} \le \epsilon`, the modalities together;
    - a radius for each: :math:`\|\delta^m\| \le \epsilon^m`, a product of balls, in l2 or l-infinity.

    A modality that is not attacked is not touched: the very same tensor comes back. Radii are in units of the model's
    inputs, after whatever normalisation came before them.

    Args:
        radius: a number, one per sample ``(B,)``, or either by modality.
        modalities: with a single radius, those that are perturbed; all by default.
        norm: ``"l2"``, or ``"linf"`` for the l-infinity norm of each modality.
        box: lowest and highest value an input may take after the attack, by modality; as a
            :class:`~lightning_crmt.attacks.Box` in units from before a normalisation.

    Raises:
        ValueError: if a radius is negative, NaN or infinite, a box is empty, or arguments contradict each other.

    >>> Budget(0.2), Budget(0.2, modalities=["audio"]), Budget({"audio": 0.1, "image": 0.3})
    (Budget(0.2), Budget(0.2, modalities=['audio']), Budget({'audio': 0.1, 'image': 0.3}))
    """

    def __init__(
        self,
        radius: Radius | Mapping[str, Radius],
        *,
        modalities: Sequence[str] | None = None,
        norm: Literal["l2", "linf"] = "l2",
        box: Mapping[str, tuple[float, float] | Box] | None = None,
    ) -> None:
        if norm not in ("l2", "linf"):
            raise ValueError(f"`norm` must be 'l2' or 'linf', got {norm!r}")
        check_radius(radius)
        if isinstance(radius, Mapping) and modalities is not None:
            raise ValueError(f"`modalities` are named by `radius` already, got {list(modalities)}")
        if isinstance(modalities, str):
            raise TypeError(f"`modalities` must be a sequence of names, got the string {modalities!r}")
        if modalities is not None:
            check_modality_names("modalities", modalities)
        if box is not None and not isinstance(box, Mapping):
            raise TypeError(f"`box` must be by modality, as in {{'image': (0.0, 1.0)}}, got {box!r}")
        self.radius = dict(radius) if isinstance(radius, Mapping) else radius
        self.modalities = None if modalities is None else list(modalities)
        self.norm = norm
        self.box = {name: as_box(each) for name, each in (box or {}).items()}

    def __repr__(self) -> str:
        parts = [repr(self.radius)]
        parts += [f"modalities={self.modalities}"] if self.modalities is not None else []
        parts += [f"norm={self.norm!r}"] if self.norm != "l2" else []
        parts += [f"box={self.box}"] if self.box else []
        return f"Budget({', '.join(parts)})"

    @property
    def joint(self) -> bool:
        """Whether the modalities share one l2 radius."""
        return self.norm == "l2" and not isinstance(self.radius, dict)

    def attacked(self, inputs: Inputs) -> list[str]:
        """The modalities that are perturbed.

        Raises:
            ValueError: if the budget names one that ``inputs`` lacks, has radii for another number of samples, or the
                clean input lies outside its box.
            TypeError: if one of them holds integers.

        >>> Budget({"audio": 0.1}).attacked({"image": torch.zeros(1, 3)})
        Traceback (most recent call last):
            ...
        ValueError: Budget({'audio': 0.1}) must name modalities among ['image'], got ['audio']
        """
        chosen = list(self.radius) if isinstance(self.radius, dict) else (self.modalities or list(inputs))
        unknown = [name for name in [*chosen, *self.box] if name not in inputs]
        if unknown:
            raise ValueError(f"{self} must name modalities among {list(inputs)}, got {unknown}")
        for name in chosen:
            value = inputs[name]
            if not value.is_floating_point():
                raise TypeError(
                    f"`inputs[{name!r}]` must be floating point to be perturbed, got {describe(value)}; "
                    "leave it out of the budget, or make the embedded sequence the input"
                )
            radius = torch.as_tensor(self.radius[name] if isinstance(self.radius, dict) else self.radius)
            if radius.shape not in ((), (len(value),)):
                raise ValueError(
                    f"`radius` must be a number or one for each of {len(value)} samples, got {len(radius)}"
                )
        for name, box in self.box.items():
            if not box.contains(inputs[name]):
                found = tuple(bound.item() for bound in inputs[name].aminmax())
                raise ValueError(
                    f"`inputs[{name!r}]` must lie in its box {box} before the attack, got values in {found}"
                )
        return chosen

    def select(self, rows: Tensor) -> Budget:
        """The budget of some of the samples.

        >>> Budget(torch.tensor([0.1, 0.2, 0.3])).select(torch.tensor([2]))
        Budget(tensor([0.3000]))
        """

        def chosen(radius: Radius) -> Radius:
            one_each = isinstance(radius, Tensor) and radius.dim() == 1
            return radius[rows.to(radius.device)] if one_each and isinstance(radius, Tensor) else radius

        other = copy.copy(self)
        if isinstance(self.radius, dict):
            other.radius = {name: chosen(radius) for name, radius in self.radius.items()}
        else:
            other.radius = chosen(self.radius)
        return other

    def scaled(self, factor: Radius) -> Budget:
        """The budget with all radii multiplied by ``factor``, a number or one per sample.

        >>> Budget({"audio": 0.1, "image": 0.3}).scaled(2.0)
        Budget({'audio': 0.2, 'image': 0.6})
        """
        several = isinstance(self.radius, dict)
        radius = (
            {n: r * factor for n, r in self.radius.items()} if isinstance(self.radius, dict) else (self.radius * factor)
        )
        return Budget(radius, modalities=None if several else self.modalities, norm=self.norm, box=self.box)

    def project(self, delta: Perturbation, inputs: Inputs, factor: Radius = 1.0) -> Perturbation:
        """The perturbation nearest to ``delta`` within the box and ``factor`` times the budget.

        Args:
            delta: by attacked modality.
            inputs: the clean inputs.
            factor: scales all radii, a number or one per sample ``(B,)``.

        >>> x = {"audio": torch.zeros(1, 2)}
        >>> Budget(1.0).project({"audio": torch.tensor([[3.0, 4.0]]).double()}, x)
        {'audio': tensor([[0.6000, 0.8000]], dtype=torch.float64)}
        >>> Budget(1.0, box={"audio": (0.0, 0.6)}).project({"audio": torch.tensor([[3.0, 4.0]]).double()}, x)
        {'audio': tensor([[0.6000, 0.6000]], dtype=torch.float64)}
        """
        return self._longest(delta, inputs, factor, at_most=1.0)

    def project_(self, delta: Perturbation, inputs: Inputs) -> Perturbation:
        """:meth:`project`, which may use the memory of ``delta``."""
        return self._longest(delta, inputs, 1.0, at_most=1.0, in_place=True)

    def steepest(self, gradient: Perturbation, inputs: Inputs, factor: Radius = 1.0) -> tuple[Perturbation, Tensor]:
        r"""Where in the budget, and its box, a loss with this gradient grows most to first order, and by how much.

        .. math:: \arg\max_\delta \langle g, \delta \rangle, \qquad \max_\delta \langle g, \delta \rangle

        the latter of shape ``(B,)``. The arguments are those of :meth:`project`.

        >>> x, g = {"audio": torch.zeros(1, 2)}, {"audio": torch.tensor([[3.0, 4.0]]).double()}
        >>> Budget(2.0).steepest(g, x)
        ({'audio': tensor([[1.2000, 1.6000]], dtype=torch.float64)}, tensor([10.], dtype=torch.float64))
        """
        best = self.ahead(gradient, inputs, factor)
        return best, dot(best, gradient)

    def ahead(self, gradient: Perturbation, inputs: Inputs, factor: Radius = 1.0) -> Perturbation:
        """The first of what :meth:`steepest` answers."""
        if self.norm == "l2":
            return self._longest(gradient, inputs, factor, at_most=torch.inf)
        radii = self._radii(gradient, factor)
        return self._boxed({name: times(g.sign(), radii[name]) for name, g in gradient.items()}, inputs)

    def size(self, delta: Perturbation) -> Tensor:
        """The smallest factor of the budget that contains ``delta``, ``(B,)``, in float64; 1 on its border.

        >>> Budget({"audio": 2.0, "image": 1.0}).size({"audio": torch.ones(1, 1), "image": torch.ones(1, 4)})
        tensor([2.], dtype=torch.float64)
        """
        radii = self._radii(delta, 1.0)
        norms = norms_of(delta, self.norm, self.joint)
        shares = [torch.where(norm == 0, torch.zeros_like(norm), norm / radii[name]) for name, norm in norms.items()]
        return torch.stack(shares).amax(dim=0)

    def random(self, inputs: Inputs, generator: torch.Generator, factor: Radius = 1.0) -> Perturbation:
        """A random perturbation in the budget; the same direction for all samples, so that batches may be split."""
        noise: Perturbation = {}
        for name in self.attacked(inputs):
            value = inputs[name]
            drawn = torch.randn((1, *value.shape[1:]), generator=generator, dtype=torch.float64)
            noise[name] = drawn.to(value.device).expand_as(value)
        length = torch.rand((), generator=generator, dtype=torch.float64).item()
        if self.norm == "linf":
            radii = self._radii(noise, factor)
            uniform = {name: torch.special.ndtr(each) * 2 - 1 for name, each in noise.items()}
            return self._boxed({name: times(each, radii[name]) for name, each in uniform.items()}, inputs)
        direction, _ = self.steepest(noise, inputs, factor)
        return {name: length * each for name, each in direction.items()}

    def apply(self, delta: Perturbation, inputs: Inputs) -> dict[str, Tensor]:
        """``inputs`` plus ``delta`` in the precision of the inputs, never further away than ``delta`` is.

        Rounded to nearest; where that would leave the budget, towards the clean input, entry by entry.

        >>> x = {"audio": torch.full((1, 1), 1e8)}
        >>> Budget(7.0).apply({"audio": torch.full((1, 1), 7.0)}, x)["audio"] - x["audio"]
        tensor([[0.]])
        """
        moved = self.near(delta, inputs)
        too_far = self.size(self.difference(moved, inputs)) > self.size(delta)
        if bool(too_far.any()):
            inward = {name: nudged_towards(inputs[name], moved[name], d) for name, d in delta.items()}
            moved |= {name: choose(too_far, inward[name], moved[name]) for name in delta}
        return moved

    def near(self, delta: Perturbation, inputs: Inputs) -> dict[str, Tensor]:
        """``inputs`` plus ``delta``, rounded to nearest, in the box; rounding may lead out of the budget."""
        moved = {name: (inputs[name] + d).to(inputs[name].dtype) for name, d in delta.items()}
        for name in (name for name in self.box if name in moved):
            low, high = (bound.to(moved[name].dtype) for bound in self.box[name].bounds(inputs[name]))
            moved[name] = moved[name].clamp(torch.minimum(low, inputs[name]), torch.maximum(high, inputs[name]))
        return {name: moved.get(name, value) for name, value in inputs.items()}

    def is_coarse(self, inputs: Inputs) -> bool:
        """Whether the inputs' precision is coarse next to the budget: rounding moves them by a thousandth of it."""
        names = list(self.difference(inputs, inputs))
        rounding = {name: inputs[name] * torch.finfo(inputs[name].dtype).eps for name in names}
        return bool((self.size(rounding) > 1e-3).any())

    def difference(self, moved: Inputs, inputs: Inputs) -> Perturbation:
        """What was changed, in float64, by attacked modality: what a search is measured by."""
        names = list(self.radius) if isinstance(self.radius, dict) else (self.modalities or list(inputs))
        return {name: moved[name].double() - inputs[name].double() for name in names}

    def _longest(
        self, delta: Perturbation, inputs: Inputs, factor: Radius, at_most: float, in_place: bool = False
    ) -> Perturbation:
        radii = self._radii(delta, factor)
        if self.norm == "linf":
            limits = {name: like(radii[name], d).to(d.dtype) for name, d in delta.items()}
            return self._boxed({name: d.clamp(-limits[name], limits[name]) for name, d in delta.items()}, inputs)
        groups = [list(delta)] if self.joint else [[name] for name in delta]
        room = self._room(inputs, delta)
        found: Perturbation = {}
        for group in groups:
            found |= longest_within({name: delta[name] for name in group}, radii[group[0]], room, at_most, in_place)
        return {name: found[name] for name in delta}

    def _boxed(self, delta: Perturbation, inputs: Inputs) -> Perturbation:
        room = self._room(inputs, delta)
        return {name: d.clamp(*room[name]) if name in room else d for name, d in delta.items()}

    def _room(self, inputs: Inputs, delta: Perturbation) -> Room:
        room = {}
        for name in (name for name in self.box if name in delta):
            low, high = (bound.to(delta[name].dtype) for bound in self.box[name].bounds(inputs[name]))
            clean = inputs[name].to(delta[name].dtype)
            room[name] = (low - clean).clamp(max=0), (high - clean).clamp(min=0)  # a clean input may stay as it is
        return room

    def _radii(self, delta: Perturbation, factor: Radius) -> dict[str, Tensor]:
        first = next(iter(delta.values()))

        def each(radius: Radius) -> Tensor:
            if isinstance(radius, Tensor) or isinstance(factor, Tensor):
                wide = [torch.as_tensor(r, dtype=torch.float64, device=first.device) for r in (radius, factor)]
                return (wide[0] * wide[1]).expand(len(first))
            return torch.full((len(first),), radius * factor, dtype=torch.float64, device=first.device)

        if isinstance(self.radius, dict):
            return {name: each(self.radius[name]) for name in delta}
        return dict.fromkeys(delta, each(self.radius))
