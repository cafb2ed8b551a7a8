# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Which perturbations are allowed; the one place that every search asks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NoReturn, TypeAlias

import torch
from torch import Tensor

from lightning_crmt.attacks.threat.box import Box, as_box
from lightning_crmt.attacks.threat.mask import MaskSource, check_mask, free_entries
from lightning_crmt.attacks.threat.norms import L2, LInf, Norm, Room
from lightning_crmt.attacks.threat.per_sample import PerSample, Perturbation, like
from lightning_crmt.checks import check_modality_names, describe
from lightning_crmt.modality import Inputs, continuous_of, modalities_of, widened, widest

#: One radius for all samples, or one per sample ``(B,)``.
Radius: TypeAlias = float | Tensor

_NORMS: dict[str, Norm] = {"l2": L2(), "linf": LInf()}


class Budget(PerSample):
    r"""The set of allowed perturbations :math:`\delta`, of some or all modalities.

    - one radius: :math:`\sqrt{\sum_m \|\delta^m\|_2^2} \le \epsilon`, the modalities together;
    - a radius for each: :math:`\|\delta^m\| \le \epsilon^m`, a product of balls, in l2 or l-infinity.

    A modality that is not attacked is not touched: the same tensor object comes back. Radii are in units of the model's
    inputs, after whatever normalisation came before them. A budget is immutable; two are equal if they have the
    same modalities, radii, norm, boxes and masks.

    Padding is not perturbed: masked entries come back bit by bit, and a modality that a sample lacks, by
    ``"audio.present"``, does too. Without ``mask`` the context of the batch says what is padding:
    ``"audio.attention_mask"`` for the modality ``audio``; ``".attention_mask"``, which is of the whole batch, for the
    one modality that it fits, but for none if it fits token ids. No other name is taken for a mask, as there is no
    telling what a 1 means in it: name it in ``mask``.

    Args:
        radius: a number, one per sample ``(B,)``, or either by modality.
        modalities: with a single radius, those that are perturbed; all by default.
        norm: ``"l2"``, ``"linf"`` for the l-infinity norm of each modality, or a norm of your own, a ``Norm``.
        box: lowest and highest value an input may take after the attack, by modality; as a
            :class:`~lightning_crmt.attacks.Box` in units from before a normalisation.
        mask: what may be perturbed, by modality: the name of a context entry, such as ``".pixel_mask"``, a tensor with
            a row for each sample, or None to perturb padding too. Either holds 1 for real entries and 0 for padding, in
            the shape of the first dimensions of the modality, ``(B, T)`` for ``(B, T, ...)``, or of all but the
            channels, ``(B, H, W)`` for ``(B, C, H, W)``.

    Raises:
        ValueError: if a radius is negative, NaN or infinite, a box is empty, or arguments contradict each other.
        TypeError: if an argument is of another type.

    >>> Budget(0.2), Budget(0.2, modalities=["audio"]), Budget({"audio": 0.1, "image": 0.3})
    (Budget(0.2), Budget(0.2, modalities=['audio']), Budget({'audio': 0.1, 'image': 0.3}))
    >>> Budget(0.2, modalities=["audio"]) == Budget({"audio": 0.2})
    True
    >>> x, g = {"audio": torch.zeros(1, 3)}, {"audio": torch.tensor([[3.0, 4.0, 9.0]])}
    >>> Budget(1.0).steepest(g, {**x, "audio.attention_mask": torch.tensor([[1, 1, 0]])})["audio"]
    tensor([[0.6000, 0.8000, 0.0000]])
    """

    radius: Radius | Mapping[str, Radius]
    modalities: Sequence[str] | None
    norm: Literal["l2", "linf"] | Norm
    box: Mapping[str, Box]
    mask: Mapping[str, MaskSource]

    def __init__(
        self,
        radius: Radius | Mapping[str, Radius],
        *,
        modalities: Sequence[str] | None = None,
        norm: Literal["l2", "linf"] | Norm = "l2",
        box: Mapping[str, tuple[float, float] | Box] | None = None,
        mask: Mapping[str, Tensor | str | None] | None = None,
    ) -> None:
        if not isinstance(norm, Norm) and norm not in _NORMS:
            raise ValueError(f"`norm` must be 'l2' or 'linf', got {norm!r}; for another norm give a Norm")
        _check_radius(radius)
        if isinstance(radius, Mapping) and modalities is not None:
            raise ValueError(f"`modalities` are named by `radius` already, got {list(modalities)}")
        if isinstance(modalities, str):
            raise TypeError(f"`modalities` must be a sequence of names, got the string {modalities!r}")
        if modalities is not None:
            check_modality_names("modalities", modalities)
        if box is not None and not isinstance(box, Mapping):
            raise TypeError(f"`box` must be by modality, as in {{'image': (0.0, 1.0)}}, got {box!r}")
        _check_masks(mask)
        vars(self).update(
            radius=dict(radius) if isinstance(radius, Mapping) else radius,
            modalities=None if modalities is None else list(modalities),
            norm=norm,
            box={name: as_box(each) for name, each in (box or {}).items()},
            mask=dict(mask or {}),
        )

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a Budget does not change: make another one with another `{name}`")

    def __repr__(self) -> str:
        parts = [repr(self.radius)]
        parts += [f"modalities={self.modalities}"] if self.modalities is not None else []
        parts += [f"norm={self.norm!r}"] if self.norm != "l2" else []
        parts += [f"box={self.box}"] if self.box else []
        masks = {n: describe(each) if isinstance(each, Tensor) else each for n, each in self.mask.items()}
        parts += [f"mask={masks}"] if masks else []
        return f"Budget({', '.join(parts)})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Budget) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[object, ...]:
        groups = self.groups(self.modalities or [""])
        radii = {(frozenset(names), _number(radius)) for names, radius in groups}
        masks = frozenset((name, _content(each)) for name, each in self.mask.items())
        return frozenset(radii), self.norm, frozenset(self.box.items()), masks

    def groups(self, names: Collection[str]) -> list[tuple[Collection[str], Radius]]:
        """The normal form: each group of modalities that share a radius, with that radius.

        Args:
            names: the perturbed modalities, used where the budget does not name them itself.

        >>> Budget(0.2).groups(["audio", "image"]), Budget({"audio": 0.1, "image": 0.3}).groups([])
        ([(['audio', 'image'], 0.2)], [(('audio',), 0.1), (('image',), 0.3)])
        """
        if isinstance(self.radius, Mapping):
            return [((name,), radius) for name, radius in self.radius.items()]
        return [(names, self.radius)]

    def names(self, inputs: Inputs) -> list[str]:
        """The modalities of ``inputs`` that are perturbed."""
        return [name for names, _ in self.groups(self.modalities or list(modalities_of(inputs))) for name in names]

    def attacked(self, inputs: Inputs) -> list[str]:
        """The modalities that are perturbed, after a check that the budget fits ``inputs``.

        Raises:
            ValueError: if the budget names one that ``inputs`` lacks, has radii for another number of samples, the
                clean input lies outside its box, or a mask does not fit.
            TypeError: if one of them holds integers.

        >>> Budget({"audio": 0.1}).attacked({"image": torch.zeros(1, 3)})
        Traceback (most recent call last):
            ...
        ValueError: Budget({'audio': 0.1}) must name modalities among ['image'], got ['audio']
        """
        known = list(modalities_of(inputs))
        groups = self.groups(self.modalities or known)
        chosen = [(name, radius) for names, radius in groups for name in names]
        unknown = [name for name in [*dict(chosen), *self.box, *self.mask] if name not in known]
        if unknown:
            raise ValueError(f"{self} must name modalities among {known}, got {unknown}")
        for name, radius in chosen:
            value = inputs[name]
            if not value.is_floating_point():
                raise TypeError(
                    f"`inputs[{name!r}]` must be floating point to be perturbed, got {describe(value)}; "
                    f"leave it out of the budget, modalities={list(continuous_of(inputs))}, or make the embedded "
                    "sequence the input"
                )
            if isinstance(radius, Tensor) and radius.shape not in ((), (len(value),)):
                raise ValueError(
                    f"`radius` must be a number or one for each of {len(value)} samples, got {len(radius)}"
                )
            check_mask(name, inputs, self.mask)
        for name, box in self.box.items():
            if not box.contains(inputs[name], self.free(name, inputs)):
                values = tuple(bound.item() for bound in inputs[name].aminmax())
                raise ValueError(
                    f"`inputs[{name!r}]` must lie in its box {box} before the attack, got values in {values}"
                )
        return list(dict(chosen))

    def scaled(self, factor: Radius) -> Budget:
        """The budget with all radii multiplied by ``factor``, a number or one per sample.

        >>> Budget({"audio": 0.1, "image": 0.3}).scaled(2.0)
        Budget({'audio': 0.2, 'image': 0.6})
        """
        if isinstance(self.radius, Mapping):
            radius: Radius | Mapping[str, Radius] = {name: each * factor for name, each in self.radius.items()}
        else:
            radius = self.radius * factor
        return Budget(radius, modalities=self.modalities, norm=self.norm, box=self.box, mask=self.mask)

    def free(self, name: str, inputs: Inputs) -> Tensor | None:
        """Which entries of a modality may be perturbed, bool, in a shape that broadcasts with it; None for all."""
        return free_entries(name, inputs, self.mask)

    def masked(self, values: Perturbation, inputs: Inputs, *, in_place: bool = False) -> Perturbation:
        """``values`` by modality, such as gradients, with 0 for entries that may not be perturbed.

        Args:
            values: by modality, ``(B, ...)``.
            inputs: the clean inputs, with their context.
            in_place: the memory of ``values`` may be used.

        >>> x = {"audio": torch.zeros(1, 2), "audio.attention_mask": torch.tensor([[1, 0]])}
        >>> Budget(0.1).masked({"audio": torch.ones(1, 2)}, x)
        {'audio': tensor([[1., 0.]])}
        """
        masked = dict(values)
        for name, value in values.items():
            free = self.free(name, inputs)
            if free is not None:
                masked[name] = value.masked_fill_(~free, 0) if in_place else value.masked_fill(~free, 0)
        return masked

    def project(
        self, delta: Perturbation, inputs: Inputs, factor: Radius = 1.0, *, in_place: bool = False
    ) -> Perturbation:
        """The perturbation nearest to ``delta`` within the box and ``factor`` times the budget.

        Args:
            delta: by attacked modality.
            inputs: the clean inputs.
            factor: scales all radii, a number or one per sample ``(B,)``.
            in_place: the memory of ``delta`` may be used.

        >>> x = {"audio": torch.zeros(1, 2)}
        >>> Budget(1.0).project({"audio": torch.tensor([[3.0, 4.0]]).double()}, x)
        {'audio': tensor([[0.6000, 0.8000]], dtype=torch.float64)}
        >>> Budget(1.0, box={"audio": (0.0, 0.6)}).project({"audio": torch.tensor([[3.0, 4.0]]).double()}, x)
        {'audio': tensor([[0.6000, 0.6000]], dtype=torch.float64)}
        """
        delta = self.masked(delta, inputs, in_place=in_place)
        room = self.room(inputs, delta)
        projected: Perturbation = {}
        for part, radius in self.parts(delta, factor):
            projected |= self._norm.project(part, radius, room, in_place)
        return projected

    def steepest(self, gradient: Perturbation, inputs: Inputs, factor: Radius = 1.0) -> Perturbation:
        r"""Where in the budget, and its box, a loss with this gradient grows most to first order.

        .. math:: \arg\max_\delta \langle g, \delta \rangle

        The arguments are those of :meth:`project`.

        >>> x, g = {"audio": torch.zeros(1, 2)}, {"audio": torch.tensor([[3.0, 4.0]]).double()}
        >>> Budget(2.0).steepest(g, x)
        {'audio': tensor([[1.2000, 1.6000]], dtype=torch.float64)}
        """
        gradient = self.masked(gradient, inputs)
        room = self.room(inputs, gradient)
        ahead: Perturbation = {}
        for part, radius in self.parts(gradient, factor):
            ahead |= self._norm.steepest(part, radius, room)
        return ahead

    def size(self, delta: Perturbation) -> Tensor:
        """The smallest factor of the budget that contains ``delta``, ``(B,)``, in float64; 1 on its border.

        >>> Budget({"audio": 2.0, "image": 1.0}).size({"audio": torch.ones(1, 1), "image": torch.ones(1, 4)})
        tensor([2.], dtype=torch.float64)
        """
        shares = []
        for part, radius in self.parts(delta):
            length = self._norm.length(part)
            shares.append(torch.where(length == 0, torch.zeros_like(length), length / radius))
        return torch.stack(shares).amax(dim=0)

    def random(self, inputs: Inputs, generator: torch.Generator, factor: Radius = 1.0) -> Perturbation:
        """A random perturbation in the budget; the same direction for all samples, so that batches may be split."""
        noise: Perturbation = {}
        for name in self.names(inputs):
            value = inputs[name]
            drawn = torch.randn((1, *value.shape[1:]), generator=generator, dtype=torch.float64)
            noise[name] = widened(drawn, value.device).expand_as(value)
        noise = self.masked(noise, inputs)
        share = torch.rand((), generator=generator, dtype=torch.float64).item()
        room = self.room(inputs, noise)
        drawn_within: Perturbation = {}
        for part, radius in self.parts(noise, factor):
            drawn_within |= self._norm.random(part, share, radius, room)
        return drawn_within

    def apply(self, delta: Perturbation, inputs: Inputs) -> dict[str, Tensor]:
        """``inputs`` plus ``delta`` in the precision of the inputs, never further away than ``delta`` is.

        Rounded to nearest; where that would leave the budget, towards the clean input, entry by entry.

        >>> x = {"audio": torch.full((1, 1), 1e8)}
        >>> Budget(7.0).apply({"audio": torch.full((1, 1), 7.0)}, x)["audio"] - x["audio"]
        tensor([[0.]])
        """
        return self.apply_and_measure(delta, inputs)[0]

    def apply_and_measure(self, delta: Perturbation, inputs: Inputs) -> tuple[dict[str, Tensor], Tensor, Tensor | None]:
        """What :meth:`apply` gives, the size of ``delta``, and where it is known already that of the difference."""
        moved, given = self.near(delta, inputs), self.size(delta)
        apart = self.difference(moved, inputs)
        size = self.size(apart)
        too_far = size > given
        if not bool(too_far.any()):
            return moved, given, size
        for name, d in delta.items():
            over = (apart[name].abs_() > d.abs()) & like(too_far, d)
            moved[name] = torch.where(over, _closer(inputs[name], moved[name]), moved[name])
        return moved, given, None

    def near(self, delta: Perturbation, inputs: Inputs) -> dict[str, Tensor]:
        """``inputs`` plus ``delta``, rounded to nearest, in the box; rounding may lead out of the budget."""
        moved = {name: (inputs[name] + d).to(inputs[name].dtype) for name, d in delta.items()}
        for name in (name for name in self.box if name in moved):
            low, high = (bound.to(moved[name].dtype) for bound in self.box[name].bounds(inputs[name]))
            moved[name] = moved[name].clamp(torch.minimum(low, inputs[name]), torch.maximum(high, inputs[name]))
        for name, value in moved.items():
            free = self.free(name, inputs)
            if free is not None:  # bit by bit: adding 0 turns -0 into 0
                moved[name] = torch.where(free, value, inputs[name])
        return {**inputs, **moved}

    def is_coarse(self, inputs: Inputs) -> bool:
        """Whether the inputs' precision is coarse next to the budget: rounding moves them by a thousandth of it."""
        rounding = {name: inputs[name] * torch.finfo(inputs[name].dtype).eps for name in self.names(inputs)}
        return bool((self.size(rounding) > 1e-3).any())

    def difference(self, moved: Inputs, inputs: Inputs) -> Perturbation:
        """The perturbation in the widest precision, by attacked modality: what a search is judged by.

        Infinite where an entry changed that may not, so that it is in no budget.
        """
        delta = {name: widened(moved[name]) - widened(inputs[name]) for name in self.names(inputs)}
        for name, each in delta.items():
            free = self.free(name, inputs)
            if free is not None:
                delta[name] = each.masked_fill(~free & (moved[name] != inputs[name]), torch.inf)
        return delta

    def parts(self, delta: Perturbation, factor: Radius = 1.0) -> list[tuple[Perturbation, Tensor]]:
        """``delta`` in parts that share a radius, each with ``factor`` times that radius, ``(B,)``, in float64."""
        one = next(iter(delta.values()))
        dtype = widest(one.device)

        def per_sample(radius: Radius) -> Tensor:
            if isinstance(radius, Tensor) or isinstance(factor, Tensor):
                wide = [widened(r, one.device) if isinstance(r, Tensor) else r for r in (radius, factor)]
                return torch.as_tensor(wide[0] * wide[1]).expand(len(one))
            return torch.full((len(one),), radius * factor, dtype=dtype, device=one.device)

        if isinstance(self.radius, Mapping):
            return [({name: d}, per_sample(self.radius[name])) for name, d in delta.items()]
        return [(delta, per_sample(self.radius))]

    def room(self, inputs: Inputs, delta: Perturbation) -> Room:
        """How far each entry may move down and up, in the precision of ``delta``, for modalities that have a box."""
        room = {}
        for name in (name for name in self.box if name in delta):
            low, high = (bound.to(delta[name].dtype) for bound in self.box[name].bounds(inputs[name]))
            clean = inputs[name].to(delta[name].dtype)
            room[name] = (low - clean).clamp(max=0), (high - clean).clamp(min=0)  # a clean input may stay as it is
        return room

    @property
    def _norm(self) -> Norm:
        return self.norm if isinstance(self.norm, Norm) else _NORMS[self.norm]


def _check_radius(radius: Radius | Mapping[str, Radius]) -> None:
    if isinstance(radius, Mapping):
        check_modality_names("radius", radius)
    for each in radius.values() if isinstance(radius, Mapping) else [radius]:
        if isinstance(each, bool) or not isinstance(each, int | float | Tensor):
            raise TypeError(
                f"`radius` must be a number, a tensor with one per sample, or either by modality, got {describe(each)}"
            )
        given = torch.as_tensor(each)
        if given.dim() > 1 or not bool(((given >= 0) & (given < torch.inf)).all()):
            raise ValueError(f"`radius` must be finite and at least 0, a number or one per sample, got {radius}")


def _check_masks(mask: object) -> None:
    if mask is not None and not isinstance(mask, Mapping):
        raise TypeError(f"`mask` must be by modality, as in {{'audio': '.lengths_mask'}}, got {describe(mask)}")
    for name, each in (mask or {}).items():
        if each is not None and not isinstance(each, str | Tensor):
            raise TypeError(f"`mask[{name!r}]` must be a tensor, the name of context, or None, got {describe(each)}")


def _content(mask: MaskSource) -> object:
    """What masks are compared by."""
    return (mask.shape, bytes((mask != 0).flatten().tolist())) if isinstance(mask, Tensor) else mask


def _number(radius: Radius) -> object:
    """What radii are compared by."""
    if isinstance(radius, Tensor):
        return radius.item() if radius.dim() == 0 else tuple(radius.tolist())
    return radius


def _closer(clean: Tensor, moved: Tensor) -> Tensor:
    """``moved``, one floating point number closer to ``clean``."""
    # Half precision has no nextafter on the CPU; there the entry stays clean.
    return clean if moved.dtype is torch.float16 else torch.nextafter(moved, clean)
