# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What a perturbation may be; every search asks here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lightning_crmt.modality import Inputs, check_modality_names

#: A change of the inputs, by modality; those left out stay as they are.
Perturbation: TypeAlias = dict[str, Tensor]
#: One radius for all samples, or one per sample ``(B,)``.
Radius: TypeAlias = float | Tensor


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
        box: lowest and highest value an input may take after the attack, by modality.

    Raises:
        ValueError: if a radius is negative or NaN, a box is empty, or arguments contradict each other.

    >>> Budget(0.2), Budget(0.2, modalities=["audio"]), Budget({"audio": 0.1, "image": 0.3})
    (Budget(0.2), Budget(0.2, modalities=['audio']), Budget({'audio': 0.1, 'image': 0.3}))
    """

    def __init__(
        self,
        radius: Radius | Mapping[str, Radius],
        *,
        modalities: Sequence[str] | None = None,
        norm: Literal["l2", "linf"] = "l2",
        box: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        if norm not in ("l2", "linf"):
            raise ValueError(f"`norm` must be 'l2' or 'linf', got {norm!r}")
        if isinstance(radius, Mapping):
            check_modality_names("radius", radius)
            if modalities is not None:
                raise ValueError(f"`modalities` are named by `radius` already, got {list(modalities)}")
        elif isinstance(modalities, str):
            raise TypeError(f"`modalities` must be a sequence of names, got the string {modalities!r}")
        elif modalities is not None:
            check_modality_names("modalities", modalities)
        for value in radius.values() if isinstance(radius, Mapping) else [radius]:
            if not bool((torch.as_tensor(value) >= 0).all()):
                raise ValueError(f"`radius` must be at least 0, got {radius}")
        for name, (low, high) in (box or {}).items():
            if not low < high:
                raise ValueError(f"`box[{name!r}]` must be (low, high) with low < high, got {(low, high)}")
        self.radius = dict(radius) if isinstance(radius, Mapping) else radius
        self.modalities = None if modalities is None else list(modalities)
        self.norm = norm
        self.box = dict(box or {})

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
            ValueError: if the budget names one that ``inputs`` lacks, or the clean input lies outside its box.
        """
        chosen = list(self.radius) if isinstance(self.radius, dict) else (self.modalities or list(inputs))
        unknown = [name for name in [*chosen, *self.box] if name not in inputs]
        if unknown:
            raise ValueError(f"{self} must name modalities among {list(inputs)}, got {unknown}")
        for name, (low, high) in self.box.items():
            if bool((inputs[name] < low).any()) or bool((inputs[name] > high).any()):
                raise ValueError(f"`inputs[{name!r}]` must lie in its box {(low, high)} before the attack")
        return chosen

    def project(self, delta: Perturbation, inputs: Inputs, factor: Radius = 1.0) -> Perturbation:
        """The nearest perturbation within ``factor`` times the budget; then clipped to the box, which only shrinks it.

        Args:
            delta: by attacked modality.
            inputs: the clean inputs.
            factor: scales all radii, a number or one per sample ``(B,)``.
        """
        radii = self._radii(delta, factor)
        if self.norm == "linf":
            delta = {name: d.clamp(-_like(radii[name], d), _like(radii[name], d)) for name, d in delta.items()}
        else:
            norms = self._norms(delta)
            scales = {name: (radii[name] / norms[name].clamp(min=1e-30)).clamp(max=1) for name in delta}
            delta = {name: d * _like(scales[name].to(d), d) for name, d in delta.items()}
        for name, (low, high) in self.box.items():
            if name in delta:
                delta[name] = (inputs[name] + delta[name]).clamp(low, high) - inputs[name]
        return delta

    def size(self, delta: Perturbation) -> Tensor:
        """The smallest factor of the budget that contains ``delta``, ``(B,)``, in float64; 1 on its border."""
        radii = self._radii(delta, 1.0)
        shares = []
        for name, norm in self._norms(delta).items():
            share = norm / radii[name]
            shares.append(torch.where(norm == 0, torch.zeros_like(share), share))
        return torch.stack(shares).amax(dim=0)

    def steepest(self, gradient: Perturbation) -> tuple[Perturbation, Tensor]:
        r"""The perturbation in the budget along which a loss with this gradient grows most, and by how much.

        .. math:: \arg\max_\delta \langle g, \delta \rangle, \qquad \max_\delta \langle g, \delta \rangle

        the latter of shape ``(B,)``; boxes are not considered.
        """
        radii = self._radii(gradient, 1.0)
        if self.norm == "linf":
            best = {name: g.sign() * _like(radii[name].to(g), g) for name, g in gradient.items()}
        else:
            norms = self._norms(gradient)
            best = {
                name: g * _like((radii[name] / norms[name].clamp(min=1e-30)).to(g), g) for name, g in gradient.items()
            }
        gains = [(best[name] * g).flatten(1).sum(dim=1) for name, g in gradient.items()]
        return best, torch.stack(gains).sum(dim=0)

    def random(self, inputs: Inputs, generator: torch.Generator) -> Perturbation:
        """A random perturbation in the budget; the same direction for all samples, so that batches may be split."""
        noise: Perturbation = {}
        for name in self.attacked(inputs):
            shape, value = (1, *inputs[name].shape[1:]), inputs[name]
            draw: Callable[..., Tensor] = torch.rand if self.norm == "linf" else torch.randn
            each = draw(shape, generator=generator, dtype=value.dtype)
            noise[name] = (2 * each - 1 if self.norm == "linf" else each).to(value.device).expand_as(value)
        if self.norm == "linf":
            radii = self._radii(noise, 1.0)
            noise = {name: each * _like(radii[name].to(each), each) for name, each in noise.items()}
        else:
            length = torch.rand((), generator=generator).item()
            noise = {name: each * length for name, each in self.steepest(noise)[0].items()}
        return self.project(noise, inputs)

    def apply(self, delta: Perturbation, inputs: Inputs, factor: Radius = 1.0) -> dict[str, Tensor]:
        """``inputs`` plus ``delta``; what is stored keeps the budget, measured in float64 after rounding."""
        moved = {name: inputs[name] + d for name, d in delta.items()}
        for _ in range(8):
            stored = {name: moved[name].double() - inputs[name].double() for name in delta}
            excess = self.size(stored) / torch.as_tensor(factor, dtype=torch.float64, device=_device(delta))
            excess = torch.where(self.size(stored) == 0, torch.zeros_like(excess), excess)
            if bool((excess <= 1).all()):
                break
            shrink = torch.where(excess > 1, (1 - 1e-6) / excess, torch.ones_like(excess))
            delta = {name: d * _like(shrink.to(d), d) for name, d in delta.items()}
            moved = {name: inputs[name] + d for name, d in delta.items()}
        else:  # the radius is below the spacing of floating point numbers
            keep = {name: _like(excess <= 1, moved[name]) for name in delta}
            moved = {name: torch.where(keep[name], moved[name], inputs[name]) for name in delta}
        return {name: moved.get(name, value) for name, value in inputs.items()}

    def _norms(self, delta: Perturbation) -> dict[str, Tensor]:
        """Norm of each modality, the joint one for all where they share a radius; ``(B,)`` in float64."""
        order = torch.inf if self.norm == "linf" else 2
        norms = {name: torch.linalg.vector_norm(d.flatten(1).double(), order, dim=1) for name, d in delta.items()}
        if self.joint:
            together = torch.linalg.vector_norm(torch.stack(list(norms.values())), dim=0)
            norms = dict.fromkeys(norms, together)
        return norms

    def _radii(self, delta: Perturbation, factor: Radius) -> dict[str, Tensor]:
        first = next(iter(delta.values()))
        scale = torch.as_tensor(factor, dtype=torch.float64, device=first.device)
        radii = {}
        for name in delta:
            radius = self.radius[name] if isinstance(self.radius, dict) else self.radius
            radii[name] = (torch.as_tensor(radius, dtype=torch.float64, device=first.device) * scale).expand(len(first))
        return radii


def _like(per_sample: Tensor, value: Tensor) -> Tensor:
    """``(B,)`` made to multiply ``value`` of shape ``(B, ...)``."""
    return per_sample.reshape(-1, *[1] * (value.dim() - 1)).to(value.dtype if per_sample.dtype != torch.bool else None)


def _device(delta: Perturbation) -> torch.device:
    return next(iter(delta.values())).device
