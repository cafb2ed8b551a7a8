# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What attacks leave of the accuracy, in every validation and test epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_warn
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lightning_crmt.attacks import (
    PROBABILITIES,
    Attack,
    BudgetedAttack,
    MinimumNormAttack,
    check_fits,
    distance_by,
    public_logits,
    right_answers,
    surviving,
    suspicions,
)
from lightning_crmt.callbacks.observer import Measurement, Observer, Reduce
from lightning_crmt.checks import check_target, describe
from lightning_crmt.training import NamedModel

#: Samples that the checks of an attack are made on.
_CHECKED = 32


class AdversarialRobustness(Observer):
    r"""Logs how many predictions withstand attacks: upper bounds of the robustness, whatever the attacks are.

    Takes any classifier, in evaluation mode and the precision of its parameters. A prediction counts as robust if it is
    right on the clean input and on the attacked one; what the attack stored is measured again, and predicted by a plain
    forward. With several radii only what withstood the smaller ones is attacked further, so a curve never rises.

    Logged under ``val/`` and ``test/``, for an attack called *name*:

    - ``robust_accuracy/name@r``: share that is right and stays so; ``@r`` is the radius that was allowed, in units of
      the inputs, as ``@0.2`` or, for a radius by modality, ``@audio=0.1+image=0.3``; an attack that has no size, such
      as a missing modality, goes without;
    - ``adversarial_distance/name``, ``adversarial_distance_median/name``: for attacks that search for the nearest
      adversarial input, such as ``MinimumNorm``, its mean and (lower) median distance in units of their budget; a wrong
      prediction counts as 0, and what nothing fools is infinite. The accuracy at each radius is read off them;
    - ``clean_accuracy/name``: share that is right among the same samples, which ``max_batches`` may make fewer than
      those of ``accuracy/joint``.

    Once per fit, validation or test, each attack is checked on at most 32 samples of the first batch, and what makes
    its numbers doubtful is a warning: see :func:`~lightning_crmt.attacks.sanity_checks.suspicions`, also for the cost,
    about that of attacking 100 samples.

    Args:
        attacks: by the names that their keys have.
        radii: multiples of the budgets at which accuracy is logged: with ``Budget(1.0)`` the radii themselves; with
            ``Budget(0.5)`` and 0.2 the radius, and the key, is 0.1. By default a fixed budget is taken as it is.
        inputs: names of the modalities in the order of the batch; not needed for a CRMT module.
        every_n_epochs: in a fit, measure in the first epoch with a validation, then when n epochs have passed, and in
            the last; ``validate`` and ``test`` always measure.
        max_batches: measure the first so many batches of a loader; all by default.

    Raises:
        ValueError: if a name or a radius does not fit a key; on ``setup``, if two callbacks have an attack of the same
            name, or names of modalities are needed and missing.
        TypeError: if ``attacks`` does not map names to attacks.
        ValueError, TypeError: on the first batch, that of the sanity check if there is one, if a budget does not fit
            the inputs.
        RuntimeError: during an evaluation, if an attack left its budget.

    >>> from lightning_crmt.attacks import PGD, Budget, MinimumNorm
    >>> callback = AdversarialRobustness(
    ...     {"pgd": PGD(Budget(1.0)), "pgd-image": PGD(Budget(1.0, modalities=["image"]))},
    ...     radii=[0.1, 0.2], inputs=("image", "audio"), max_batches=10)
    """

    def __init__(
        self,
        attacks: Mapping[str, Attack],
        radii: Sequence[float] | None = None,
        inputs: Sequence[str] | None = None,
        every_n_epochs: int = 1,
        max_batches: int | None = None,
    ) -> None:
        super().__init__(inputs=inputs, every_n_epochs=every_n_epochs, max_batches=max_batches)
        if not isinstance(attacks, Mapping) or not attacks:
            raise TypeError(f"`attacks` must map names to attacks, at least one, got {describe(attacks)}")
        for name, attack in attacks.items():
            if not isinstance(name, str) or not name or "/" in name or "@" in name:
                raise ValueError(f"`attacks` must have names that are non-empty, without '/' and '@', got {name!r}")
            if not isinstance(attack, Attack):
                raise TypeError(f"`attacks[{name!r}]` must be an attack such as PGD(Budget(0.2)), got {attack!r}")
            if not isinstance(attack, BudgetedAttack):
                continue
            if any(isinstance(r, Tensor) and r.dim() > 0 for r in _radii_of(attack).values()):
                raise ValueError(f"`attacks[{name!r}]` must have one radius for all samples, got {attack.budget}")
            if isinstance(attack.towards, Tensor) and attack.towards.dim() > 0:
                raise ValueError(f"`attacks[{name!r}]` must lead towards one class, got {attack.towards}")
        if radii is not None:
            if not isinstance(radii, Sequence) or not all(isinstance(r, int | float) for r in radii):
                raise TypeError(f"`radii` must be numbers, got {radii!r}")
            if not radii or not all(0 <= r < math.inf for r in radii):
                raise ValueError(f"`radii` must be at least one, at least 0 and finite, got {radii}")
            if len({f"{r:g}" for r in radii}) != len(radii):
                raise ValueError(f"`radii` must differ in their first six digits, which name the keys, got {radii}")
        self.attacks = dict(attacks)
        self.radii = None if radii is None else list(radii)
        self._to_check: set[str] = set()
        self._trying = False

    @property
    @override
    def state_key(self) -> str:
        # Several may observe the same fit, at different rhythms.
        return f"{type(self).__qualname__}[{', '.join(self.attacks)}]"

    @property
    def threats(self) -> dict[str, str]:
        """What each attack that has a budget perturbs: ``"joint"`` or modalities joined by ``+``, and the norm.

        The norm is said where it is not l2: ``"joint"``, ``"audio"``, ``"audio+image"``, ``"joint, linf"``.
        """
        found = {}
        for name, attack in self.attacks.items():
            if isinstance(attack, BudgetedAttack):
                own = _radii_of(attack)
                where = "+".join(attack.budget.modalities or ["joint"] if "" in own else own)
                found[name] = where if attack.budget.norm == "l2" else f"{where}, {attack.budget.norm}"
        return found

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        others = [c for c in trainer.callbacks if isinstance(c, AdversarialRobustness) and c is not self]  # type: ignore[attr-defined]
        if shared := [name for name in self.attacks for other in others if name in other.attacks]:
            raise ValueError(f"`attacks` of two callbacks must have different names, got {shared} in both")
        self._to_check = set(self.attacks)

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_epoch_start(trainer, pl_module)
        # What an untrained model does says little of the attack: the sanity check leaves the checks to what follows.
        self._trying = trainer.sanity_checking

    @override
    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_test_epoch_start(trainer, pl_module)
        self._trying = False

    @override
    def measurement(self, model: NamedModel) -> Measurement:
        return _Withstood(model, self.attacks, self.radii, self._check)

    def _check(self, model: NamedModel, inputs: dict[str, Tensor], target: Tensor) -> None:
        if self._trying:
            return
        # Spread over the batch: data may be in the order of its classes.
        rows = slice(None, None, max(1, -(-len(target) // _CHECKED)))
        few = {name: value[rows] for name, value in inputs.items()}
        found = [
            (suspicion, "" if suspicion == PROBABILITIES else f", attack {name!r}")
            for name in [name for name in self.attacks if name in self._to_check]
            for suspicion in suspicions(self.attacks[name], model, few, target[rows])
        ]
        for suspicion, of in dict.fromkeys(found):  # what is said of the model is the same for all attacks
            rank_zero_warn(f"AdversarialRobustness{of}: {suspicion}")
        self._to_check = set()


class _Withstood(Measurement):
    """Counts predictions that withstand each attack, and keeps the distances that were searched for."""

    def __init__(
        self,
        model: NamedModel,
        attacks: Mapping[str, Attack],
        radii: Sequence[float] | None,
        check: Callable[[NamedModel, dict[str, Tensor], Tensor], None],
    ) -> None:
        self.model = model
        self.attacks = attacks
        self.radii = radii
        self.check = check
        self.counts: dict[str, Tensor] = {}
        self.distances: dict[str, list[Tensor]] = {}

    @override
    def update(self, inputs: dict[str, Tensor], target: Tensor) -> None:
        # First, and in the sanity check too: an untrained model may be right nowhere, and then no attack is called.
        check_fits(self.attacks.values(), self.model, inputs)
        clean = public_logits(self.model, inputs)
        check_target(target, clean.shape[1], len(clean))
        self.check(self.model, inputs, target)
        right = right_answers(clean, target)
        self._add("samples", torch.ones_like(right))
        for name, attack in self.attacks.items():
            self._add(f"clean_accuracy/{name}", right)
            if isinstance(attack, MinimumNormAttack):
                distance = self._search(attack, name, inputs, target, right)
                self.distances.setdefault(name, []).append(distance)
                for at, factor in _factors(attack, self.radii or []).items():
                    self._add(f"robust_accuracy/{name}{at}", distance > factor)
                continue
            factors = _factors(attack, self.radii)
            masks = surviving(attack, self.model, inputs, target, list(factors.values()), right, name)
            for at, mask in zip(factors, masks, strict=True):
                self._add(f"robust_accuracy/{name}{at}", mask)

    @override
    def compute(self, reduce: Reduce) -> dict[str, float]:
        totals = dict(zip(self.counts, reduce(torch.stack(list(self.counts.values())), "sum").tolist(), strict=True))
        samples = totals.pop("samples")
        numbers = {key: total / samples for key, total in totals.items()}
        for name, found in self.distances.items():
            distance = torch.cat(found).float()
            numbers[f"adversarial_distance/{name}"] = reduce(distance.sum(), "sum").item() / samples
            numbers[f"adversarial_distance_median/{name}"] = _median(distance, reduce)
        return numbers

    def _search(
        self, attack: MinimumNormAttack, name: str, inputs: dict[str, Tensor], target: Tensor, right: Tensor
    ) -> Tensor:
        distance = torch.zeros(len(right), dtype=torch.float64, device=right.device)
        rows = right.nonzero().squeeze(1)
        if len(rows):
            part = {key: value[rows.to(value.device)] for key, value in inputs.items()}
            distance[rows] = distance_by(attack, self.model, part, target[rows.to(target.device)], name)
        return distance

    def _add(self, key: str, mask: Tensor) -> None:
        self.counts[key] = self.counts.get(key, torch.zeros((), device=mask.device)) + mask.float().sum()


def _radii_of(attack: BudgetedAttack) -> dict[str, float | Tensor]:
    """Radii of an attack's budget by modality, under "" if there is one for all."""
    radius = attack.budget.radius
    return dict(radius) if isinstance(radius, Mapping) else {"": radius}


def _factors(attack: Attack, radii: Sequence[float] | None) -> dict[str, float]:
    """Factors of the attack's budget, by what their keys end with: the radii that are allowed."""
    if not isinstance(attack, BudgetedAttack):
        return {"": 1.0}
    own = _radii_of(attack)
    factors = [1.0] if radii is None else radii
    return {"@" + "+".join(f"{m}={r * f:g}" if m else f"{r * f:g}" for m, r in own.items()): f for f in factors}


def _median(values: Tensor, reduce: Reduce) -> float:
    """Lower median over all processes, of numbers that are at least 0; found by counting, byte by byte."""
    bits = values.view(torch.int32).long()  # such floats are in the order of their bits
    place = (int(reduce(torch.tensor(len(bits), device=bits.device), "sum").item()) - 1) // 2
    found = 0
    for shift in (24, 16, 8, 0):
        digits = (bits[bits >> (shift + 8) == found] >> shift) & 255
        upto = reduce(torch.bincount(digits, minlength=256), "sum").cumsum(0)
        digit = int((upto <= place).sum())
        place -= int(upto[digit - 1]) if digit else 0
        found = (found << 8) | digit
    return torch.tensor(found, dtype=torch.int32).view(torch.float32).item()
