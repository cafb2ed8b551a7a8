# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Several attacks on one threat: for each sample the worst that any of them finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor
from typing_extensions import Self, override

from lightning_crmt.attacks.attack import BudgetedAttack
from lightning_crmt.attacks.minimum_norm import Adversarial, MinimumNormAttack
from lightning_crmt.attacks.search.attacked_model import Classes, Model, under_attack
from lightning_crmt.attacks.search.worst_case import WorstCase
from lightning_crmt.attacks.threat.budget import Radius
from lightning_crmt.attacks.threat.per_sample import like
from lightning_crmt.checks import describe
from lightning_crmt.modality import Inputs


@dataclass(eq=False)
class _Several(BudgetedAttack):
    """Attacks with one budget."""

    attacks: Sequence[BudgetedAttack]

    def __post_init__(self) -> None:
        self.attacks = list(self.attacks)
        if not self.attacks:
            raise ValueError("`attacks` must hold at least one attack, got none")
        for attack in self.attacks:
            if not isinstance(attack, BudgetedAttack):
                raise TypeError(f"`attacks` must hold attacks within a budget, got {describe(attack)}")
        first = self.attacks[0]
        for attack in self.attacks[1:]:
            if attack.budget != first.budget:
                raise ValueError(f"`attacks` must have one budget, got {first.budget} and {attack.budget}")
            if not _same(attack.towards, first.towards):
                raise ValueError(f"`attacks` must have one `towards`, got {first.towards} and {attack.towards}")
        self.budget, self.towards = first.budget, first.towards

    @override
    def scaled(self, factor: Radius) -> Self:
        return type(self)([attack.scaled(factor) for attack in self.attacks])

    @override
    def select(self, rows: Tensor) -> Self:
        return type(self)([attack.select(rows) for attack in self.attacks])


@dataclass(eq=False)
class Ensemble(_Several):
    """Attacks within one budget, one after the other, each on the samples that the earlier ones did not fool.

    A sample keeps the first input that fools the model, else the one that came nearest to it. So put cheap attacks
    first. Inputs outside of the budget, as a minimum-norm attack may return, are projected into it before they are
    judged.

    Args:
        attacks: at least one; all with the same budget and ``towards``, so that accuracy under them is well defined.

    Raises:
        ValueError: if there are none, or budgets or classes to lead towards differ.
        TypeError: if one is not an attack.

    >>> from lightning_crmt import LinearFusion
    >>> from lightning_crmt.attacks import FGM, PGD, Budget
    >>> head, x = LinearFusion({"audio": 4}, num_classes=3), {"audio": torch.randn(5, 4)}
    >>> attack = Ensemble([FGM(Budget(10.0)), PGD(Budget(10.0), targeted=True)])
    >>> y = head(x).logits.argmax(1)
    >>> bool((attack.logits(head, x, y).argmax(1) != y).all())
    True
    """

    @override
    def __call__(self, model: Model, inputs: Inputs, target: Tensor) -> dict[str, Tensor]:
        """Perturbed inputs within the budget: the first that fools the model, else the one that came nearest to it."""
        with under_attack(model, inputs, target, self.budget, self.towards) as attacked:
            worst = WorstCase(attacked)
            for attack in self.attacks:
                rows = worst.rows()
                if len(rows) == 0:
                    break
                part = attacked.select(rows)
                worst.take(rows, part, attack.select(rows)(model, part.inputs, part.target))
            return {**inputs, **worst.inputs}


@dataclass(eq=False)
class MinimumNormEnsemble(_Several, MinimumNormAttack):
    """Minimum-norm attacks in one unit: for each sample the smallest perturbation that any of them finds.

    Args:
        attacks: at least one, such as :class:`MinimumNorm`; all with the same budget and ``towards``.

    Raises:
        ValueError: if there are none, or budgets or classes to lead towards differ.
        TypeError: if one has no ``search``.

    >>> from lightning_crmt import LinearFusion
    >>> head, x = LinearFusion({"audio": 4}, num_classes=3), {"audio": torch.randn(5, 4)}
    >>> from lightning_crmt.attacks import Budget, MinimumNorm
    >>> both = [MinimumNorm(Budget(1.0), steps=10), MinimumNorm(Budget(1.0), steps=10, seed=1)]
    >>> y = head(x).logits.argmax(1)
    >>> bool((MinimumNormEnsemble(both).search(head, x, y).factor <= both[0].search(head, x, y).factor).all())
    True
    """

    attacks: Sequence[MinimumNormAttack]

    def __post_init__(self) -> None:
        super().__post_init__()
        for attack in self.attacks:
            if not isinstance(attack, MinimumNormAttack):
                raise TypeError(
                    f"`attacks` must hold minimum-norm attacks, with a method `search`, got {describe(attack)}"
                )

    @override
    def search(self, model: Model, inputs: Inputs, target: Tensor) -> Adversarial:
        """Perturbed inputs and the factors of the budget they need, as :meth:`MinimumNorm.search` has them."""

        def nearer(one: Adversarial, other: Adversarial) -> Adversarial:
            closer = other.factor < one.factor
            chosen = {
                name: value if value is inputs[name] else torch.where(like(closer, value), other.inputs[name], value)
                for name, value in one.inputs.items()
            }
            return Adversarial(chosen, torch.minimum(one.factor, other.factor))

        return reduce(nearer, [attack.search(model, inputs, target) for attack in self.attacks])


def _same(one: Classes | None, other: Classes | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(torch.as_tensor(one), torch.as_tensor(other))
