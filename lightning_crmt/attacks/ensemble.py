# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Several attacks on one threat: for each sample the worst that any of them finds."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from typing_extensions import Self, override

from lightning_crmt.attacks.attack import Attack
from lightning_crmt.attacks.minimum_norm import Adversarial
from lightning_crmt.attacks.scoring import SearchesDistance
from lightning_crmt.attacks.search.attacked_model import Model, under_attack
from lightning_crmt.attacks.search.worst_case import WorstCase
from lightning_crmt.attacks.threat.budget import Budget
from lightning_crmt.attacks.threat.geometry import choose
from lightning_crmt.attacks.threat.radius import Radius
from lightning_crmt.checks import describe
from lightning_crmt.modality import Inputs


class _Several(Attack):
    """Attacks with one budget."""

    def __init__(self, attacks: Sequence[Attack]) -> None:
        self.attacks = list(attacks)
        self.budget = _common_budget(self.attacks)

    @override
    def scaled(self, factor: Radius) -> Self:
        return self._with([attack.scaled(factor) for attack in self.attacks])

    @override
    def select(self, rows: Tensor) -> Self:
        return self._with([attack.select(rows) for attack in self.attacks])

    def _with(self, attacks: list[Attack]) -> Self:
        other = copy.copy(self)
        other.attacks, other.budget = attacks, attacks[0].budget
        return other


class Ensemble(_Several):
    """Attacks within one budget, one after the other, each on the samples that the ones before left standing.

    A sample keeps the first input that fools the model, else the one that came nearest to it. So put the cheap ones
    first. What an attack finds outside of the budget, as a minimum-norm attack may, is pulled back into it before it is
    judged.

    Args:
        attacks: at least one; all with the same budget, so that an accuracy under them means something.

    Raises:
        ValueError: if there are none, or budgets differ.
        TypeError: if one is no attack.

    >>> from lightning_crmt import LinearFusion
    >>> from lightning_crmt.attacks import FGM, PGD
    >>> head, x = LinearFusion({"audio": 4}, num_classes=3), {"audio": torch.randn(5, 4)}
    >>> attack = Ensemble([FGM(Budget(10.0)), PGD(Budget(10.0), targeted=True)])
    >>> y = head(x).logits.argmax(1)
    >>> bool((attack.logits(head, x, y).argmax(1) != y).all())
    True
    """

    @override
    def __call__(self, model: Model, inputs: Inputs, target: Tensor) -> dict[str, Tensor]:
        """Perturbed inputs within the budget: the first that fools the model, else the one that came nearest to it."""
        with under_attack(model, inputs, target, self.budget) as oracle:
            survivors = WorstCase(oracle, self.budget)
            for attack in self.attacks:
                rows = survivors.rows()
                if len(rows) == 0:
                    break
                part = oracle.select(rows)
                tried = attack.select(rows)(model, part.inputs, part.target)
                survivors.take(rows, part, self.budget.select(rows), tried)
            return survivors.answer(inputs)


class MinimumNormEnsemble(_Several):
    """Minimum-norm attacks in one unit: for each sample the smallest perturbation that any of them finds.

    Args:
        attacks: at least one, such as :class:`MinimumNorm`; all with the same budget.

    Raises:
        ValueError: if there are none, or budgets differ.
        TypeError: if one has no ``search``.

    >>> from lightning_crmt import LinearFusion
    >>> head, x = LinearFusion({"audio": 4}, num_classes=3), {"audio": torch.randn(5, 4)}
    >>> from lightning_crmt.attacks import MinimumNorm
    >>> both = [MinimumNorm(Budget(1.0), steps=10), MinimumNorm(Budget(1.0), steps=10, seed=1)]
    >>> y = head(x).logits.argmax(1)
    >>> bool((MinimumNormEnsemble(both).search(head, x, y).factor <= both[0].search(head, x, y).factor).all())
    True
    """

    def __init__(self, attacks: Sequence[Attack]) -> None:
        super().__init__(attacks)
        for attack in attacks:
            if not isinstance(attack, SearchesDistance):
                raise TypeError(
                    f"`attacks` must hold minimum-norm attacks, with a method `search`, got {describe(attack)}"
                )

    @override
    def __call__(self, model: Model, inputs: Inputs, target: Tensor) -> dict[str, Tensor]:
        """The perturbed inputs of :meth:`search`."""
        return self.search(model, inputs, target).inputs

    def search(self, model: Model, inputs: Inputs, target: Tensor) -> Adversarial:
        """Perturbed inputs and the factors of the budget they need, as :meth:`MinimumNorm.search` has them."""
        best: Adversarial | None = None
        for attack in self.attacks:
            assert isinstance(attack, SearchesDistance)
            found = attack.search(model, inputs, target)
            if best is None:
                best = found
                continue
            nearer = found.factor < best.factor
            changed = {
                name: value if value is inputs[name] else choose(nearer, found.inputs[name], value)
                for name, value in best.inputs.items()
            }
            best = Adversarial(changed, torch.minimum(found.factor, best.factor))
        assert best is not None
        return best


def _common_budget(attacks: Sequence[Attack]) -> Budget:
    if not attacks:
        raise ValueError("`attacks` must hold at least one attack, got none")
    for attack in attacks:
        if not isinstance(attack, Attack) or not isinstance(getattr(attack, "budget", None), Budget):
            raise TypeError(f"`attacks` must hold attacks within a budget, got {describe(attack)}")
        if not _same(attack.budget, attacks[0].budget):
            raise ValueError(f"`attacks` must have one budget, got {attacks[0].budget} and {attack.budget}")
    return attacks[0].budget


def _same(one: Budget, other: Budget) -> bool:
    plain = (one.norm, one.modalities, one.box) == (other.norm, other.modalities, other.box)
    return plain and _same_radius(one.radius, other.radius)


def _same_radius(one: Radius | Mapping[str, Radius], other: Radius | Mapping[str, Radius]) -> bool:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same_radius(radius, other[name]) for name, radius in one.items())
    if isinstance(one, Mapping) or isinstance(other, Mapping):
        return False
    return torch.equal(torch.as_tensor(one, dtype=torch.float64), torch.as_tensor(other, dtype=torch.float64))
