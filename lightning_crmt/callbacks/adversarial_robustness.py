# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Accuracy under attacks, in every validation and test epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_warn
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lightning_crmt.attacks import (
    PROBABILITIES,
    PROBABILITIES_OF_LABELS,
    Attack,
    BudgetedAttack,
    MinimumNormAttack,
    check_fits,
    distance_by,
    public_logits,
    right_answers,
    survival,
    suspicions,
)
from lightning_crmt.callbacks.observer import Measurement, Observer, Samples, check_radii
from lightning_crmt.checks import describe
from lightning_crmt.evaluation import Key, Reduce, check_key_name, lower_median
from lightning_crmt.modality import select, widest
from lightning_crmt.targets import answers, check_answers, has_labels
from lightning_crmt.training import NamedModel, SplitBatch, callbacks_of

#: Number of samples on which an attack is checked.
_CHECKED = 32


class Attacked(NamedTuple):
    """What attacks did to the samples of one batch.

    Attributes:
        prediction: for the clean inputs, classes ``(B,)`` or labels ``(B, K)`` bool.
        target: what is right, in the same form.
        withstood: which samples are right and stay so, ``(B,)`` bool, by the key of each attack and radius.
        size: by attack, that of the perturbation that made a sample wrong, in units of the attack's budget, ``(B,)``;
            0 where it was wrong without, infinite where nothing was found, NaN for an attack without a size.
        samples: which they are.
    """

    prediction: Tensor
    target: Tensor
    withstood: dict[Key, Tensor]
    size: dict[str, Tensor]
    samples: Samples


class AdversarialRobustness(Observer):
    r"""Logs how many predictions withstand attacks: upper bounds of the robustness, whatever the attacks are.

    Takes any classifier, in evaluation mode and the precision of its parameters. A prediction counts as robust if it is
    right on the clean input and on the attacked one, one of several labels where all are; the size of the attacked
    input is measured again, and a plain forward pass predicts it. With several radii, samples that fall at one are not
    attacked at larger ones, so a curve never rises.

    Logged under ``val/`` and ``test/``, for an attack called *name*:

    - ``robust_accuracy/name@r``: share that is right and stays so; ``@r`` is the radius that was allowed, in units of
      the inputs, as ``@0.2`` or, for a radius by modality, ``@audio=0.1+image=0.3``; left out for an attack without
      a size, such as a missing modality;
    - ``adversarial_distance/name``, ``adversarial_distance_median/name``: for attacks that search for the nearest
      adversarial input, such as ``MinimumNorm``, its mean and (lower) median distance in units of their budget; a wrong
      prediction counts as 0; infinite where the search finds nothing. The accuracy at each radius is read off them;
    - ``clean_accuracy/name``: share that is right among the same samples, which with ``max_batches`` are fewer than
      those of ``accuracy/joint``.

    Once per fit, validation or test, each attack is checked on at most 32 samples of the first batch, with a
    warning for every reason to doubt its numbers: see :func:`~lightning_crmt.attacks.sanity_checks.suspicions`. This
    costs about as much as attacking 100 samples.

    Args:
        attacks: attacks by name; the names appear in the keys.
        radii: multiples of the budgets at which accuracy is logged: with ``Budget(1.0)`` the radii themselves; with
            ``Budget(0.5)`` and 0.2 the radius, and the key, is 0.1. By default a fixed budget is taken as it is.
        inputs: names of the modalities in the order of the batch; not needed for a CRMT module.
        split_batch: a function from a batch to ``(inputs, target)``, inputs by name, or its import path, for batches of
            another form; what its inputs hold beside the modalities is handed to the module and never changed.
        every_n_epochs: during a fit, measure at the first validation, then once every n epochs, and in the last epoch;
            ``validate`` and ``test`` always measure.
        max_batches: how many batches of each loader to measure, from the first on; all by default.
        max_samples: how many samples of each loader to measure, evenly spread over it and all processes, each once;
            all by default.

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
        *,
        radii: Sequence[float] | None = None,
        inputs: Sequence[str] | None = None,
        split_batch: SplitBatch | str | None = None,
        every_n_epochs: int = 1,
        max_batches: int | None = None,
        max_samples: int | None = None,
    ) -> None:
        super().__init__(
            inputs=inputs,
            split_batch=split_batch,
            every_n_epochs=every_n_epochs,
            max_batches=max_batches,
            max_samples=max_samples,
        )
        if not isinstance(attacks, Mapping) or not attacks:
            raise TypeError(f"`attacks` must map names to attacks, at least one, got {describe(attacks)}")
        for name, attack in attacks.items():
            check_key_name("attacks", name)
            if not isinstance(attack, Attack):
                raise TypeError(f"`attacks[{name!r}]` must be an attack such as PGD(Budget(0.2)), got {attack!r}")
            if not isinstance(attack, BudgetedAttack):
                continue
            if any(isinstance(r, Tensor) and r.dim() > 0 for r in _radii_of(attack).values()):
                raise ValueError(f"`attacks[{name!r}]` must have one radius for all samples, got {attack.budget}")
            if any(isinstance(mask, Tensor) for mask in attack.budget.mask.values()):
                raise ValueError(
                    f"`attacks[{name!r}]` must have masks that are names of what the batches hold, such as "
                    f"'.attention_mask', got {attack.budget}"
                )
            if isinstance(attack.towards, Tensor) and attack.towards.dim() > 0:
                raise ValueError(f"`attacks[{name!r}]` must lead towards one class, got {attack.towards}")
        if radii is not None and len(check_radii(radii)) == 0:
            raise ValueError("`radii` must be at least one, got none")
        self.attacks = dict(attacks)
        self.radii = None if radii is None else list(radii)
        self.factors = {name: _factors(name, attack, self.radii) for name, attack in attacks.items()}

    @property
    @override
    def state_key(self) -> str:
        # Several may observe the same fit, at different rhythms.
        return f"{type(self).__qualname__}[{', '.join(self.attacks)}]"

    @property
    @override
    def parts(self) -> int:
        return len(self.attacks)

    @property
    def threats(self) -> dict[str, str]:
        """What each attack that has a budget perturbs: ``"joint"`` or modalities joined by ``+``, and the norm.

        The norm is said where it is not l2: ``"joint"``, ``"audio"``, ``"audio+image"``, ``"joint, linf"``.
        """
        threats = {}
        for name, attack in self.attacks.items():
            if isinstance(attack, BudgetedAttack):
                own = _radii_of(attack)
                where = "+".join(attack.budget.modalities or ["joint"] if "" in own else own)
                threats[name] = where if attack.budget.norm == "l2" else f"{where}, {attack.budget.norm}"
        return threats

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        others = [each for each in callbacks_of(trainer, AdversarialRobustness) if each is not self]
        if shared := [name for name in self.attacks for other in others if name in other.attacks]:
            raise ValueError(f"`attacks` of two callbacks must have different names, got {shared} in both")

    @override
    def _forget(self) -> None:
        super()._forget()
        self._checked = False

    @override
    def measurement(self, model: NamedModel) -> Measurement:
        return _Withstood(self, model)

    def on_attacked(self, attacked: Attacked) -> None:
        """Called with what the attacks did to each measured batch; does nothing by default."""

    def on_doubts(self, doubts: Sequence[str]) -> None:
        """Called with every reason to doubt the numbers, which it warns of."""
        for doubt in doubts:
            rank_zero_warn(f"AdversarialRobustness{doubt}")

    @override
    def on_measured(self, model: NamedModel, inputs: dict[str, Tensor], target: Tensor) -> None:
        # Not in the sanity check: an untrained model says little about the attack.
        if not self._checked:
            self._checked = True
            self._check(model, inputs, target)

    def _check(self, model: NamedModel, inputs: dict[str, Tensor], target: Tensor) -> None:
        # Spread over the batch: data may be in the order of its classes.
        rows = slice(None, None, max(1, -(-len(target) // _CHECKED)))
        few = {name: value[rows] for name, value in inputs.items()}
        doubts = [
            (suspicion, "" if suspicion in (PROBABILITIES, PROBABILITIES_OF_LABELS) else f", attack {name!r}")
            for name, attack in self.attacks.items()
            for suspicion in suspicions(attack, model, few, target[rows])
        ]
        # A doubt about the model is the same for all attacks.
        self.on_doubts([f"{of}: {suspicion}" for suspicion, of in dict.fromkeys(doubts)])


class _Withstood(Measurement):
    """Counts predictions that withstand each attack, and keeps the distances that were searched for."""

    def __init__(self, settings: AdversarialRobustness, model: NamedModel) -> None:
        super().__init__()
        self.settings = settings
        self.model = model
        self.distances: dict[str, list[Tensor]] = {}

    @override
    def update(self, inputs: dict[str, Tensor], target: Tensor) -> None:
        # First, and in the sanity check too: an untrained model may be right nowhere, and then no attack is called.
        check_fits(self.settings.attacks.values(), self.model, inputs)
        clean = public_logits(self.model, inputs)
        target = check_answers(target, clean.shape[1], len(clean))
        right = right_answers(clean, target)
        values: dict[Key, Tensor] = {}
        withstood: dict[Key, Tensor] = {}
        size: dict[str, Tensor] = {}
        for number, (name, attack) in enumerate(self.settings.attacks.items()):
            if number > 0:
                self.part_done()
            values[Key("", "clean_accuracy", name)] = right
            factors = self.settings.factors[name]
            if isinstance(attack, MinimumNormAttack):
                distance = self._search(attack, name, inputs, target, right)
                self.distances.setdefault(name, []).append(distance)
                withstood |= {key: distance > factor for key, factor in factors.items()}
                size[name] = distance
            else:
                found = survival(attack, self.model, inputs, target, list(factors.values()), right, name)
                withstood |= dict(zip(factors, found.masks, strict=True))
                size[name] = found.size
        self.means.add(values | withstood)
        prediction = answers(clean, has_labels(target))
        self.settings.on_attacked(Attacked(prediction, target, withstood, size, self.samples))

    @override
    def compute(self, reduce: Reduce) -> dict[Key, float]:
        distances = {name: torch.cat(each) for name, each in self.distances.items()}
        self.means.add({Key("", "adversarial_distance", name): each for name, each in distances.items()})
        medians = {name: lower_median(each, reduce) for name, each in distances.items()}
        return super().compute(reduce) | {
            Key("", "adversarial_distance_median", name): median for name, median in medians.items()
        }

    def _search(
        self, attack: MinimumNormAttack, name: str, inputs: dict[str, Tensor], target: Tensor, right: Tensor
    ) -> Tensor:
        distance = torch.zeros(len(right), dtype=widest(right.device), device=right.device)
        rows = right.nonzero().squeeze(1)
        if len(rows):
            distance[rows] = distance_by(attack, self.model, select(inputs, rows), target[rows.to(target.device)], name)
        return distance


def _radii_of(attack: BudgetedAttack) -> dict[str, float | Tensor]:
    """Radii of an attack's budget by modality, under "" if there is one for all."""
    radius = attack.budget.radius
    return dict(radius) if isinstance(radius, Mapping) else {"": radius}


def _factors(name: str, attack: Attack, radii: Sequence[float] | None) -> dict[Key, float]:
    """Factors of the attack's budget, by the keys of the radii that they allow.

    Raises:
        ValueError: if two of them allow the same.
    """
    if not isinstance(attack, BudgetedAttack):
        return {Key("", "accuracy", name, sure="robust"): 1.0}
    own = _radii_of(attack)
    if radii is None:
        radii = [] if isinstance(attack, MinimumNormAttack) else [1.0]
    factors = {}
    for factor in radii:
        allowed = {modality: _product(radius, factor) for modality, radius in own.items()}
        radius = allowed.pop("", None)
        factors[Key("", "accuracy", name, radius, tuple(allowed.items()), sure="robust")] = factor
    if len(factors) != len(radii):
        raise ValueError(f"`radii` must differ in the digits that the budget of {name!r} has, got {radii}")
    return factors


def _product(radius: float | Tensor, factor: float) -> float:
    """The product as a person would write it: 0.3 for 0.1 times 3, also for a tensor in single precision."""
    digits = 6 if isinstance(radius, Tensor) and radius.dtype is not torch.float64 else 15
    return float(f"{float(radius * factor):.{digits}g}")
