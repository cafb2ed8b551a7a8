# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What attacks within a fixed budget share: starts, wrong classes to aim at, and samples that still stand."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from typing_extensions import override

from lightning_crmt.attacks.attack import Attack
from lightning_crmt.attacks.search.attacked_model import AttackedModel, Model, under_attack
from lightning_crmt.attacks.search.loss import Loss, Objective, check_classes, check_loss
from lightning_crmt.attacks.search.worst_case import WorstCase
from lightning_crmt.attacks.threat.budget import Budget
from lightning_crmt.attacks.threat.geometry import Perturbation
from lightning_crmt.modality import Inputs


class FixedBudget(Attack):
    """An attack that looks for any input within the budget that fools the model; subclasses say how.

    Args:
        budget: what a perturbation may be.
        loss: what is raised, see :class:`~lightning_crmt.attacks.search.loss.Objective`.
        targeted: raise the logit of each wrong class in turn, ``K - 1`` times the cost.
        classes: with ``targeted``, aim at so many wrong classes with the largest logits; all by default.
        restarts: number of starts.
        seed: of all that is random.
    """

    #: Whether the first start is random too, rather than the clean input.
    random_start: bool = False

    def __init__(
        self,
        budget: Budget,
        *,
        loss: Loss = "margin",
        targeted: bool = False,
        classes: int | None = None,
        restarts: int = 1,
        seed: int = 0,
    ) -> None:
        at_least_one(restarts=restarts, classes=classes)
        check_loss(loss, targeted)
        if classes is not None and not targeted:
            raise ValueError(f"`classes` needs targeted=True, got classes={classes} without")
        self.budget = budget
        self.loss: Loss = loss
        self.targeted = targeted
        self.classes = classes
        self.restarts = restarts
        self.seed = seed

    @override
    def __call__(self, model: Model, inputs: Inputs, target: Tensor) -> dict[str, Tensor]:
        """Perturbed inputs within the budget: the first that fools the model, else the one that came nearest to it."""
        with under_attack(model, inputs, target, self.budget) as oracle:
            check_classes(self.loss, self.targeted, oracle.clean_logits.shape[1])
            survivors = WorstCase(oracle, self.budget)
            generator = torch.Generator().manual_seed(self.seed)
            for start in range(self.restarts):
                begin = self._begin(oracle, generator, start)
                for rival in oracle.rivals()[: self.classes] if self.targeted else [None]:
                    rows = survivors.rows()
                    if len(rows) == 0:
                        break
                    part, budget = oracle.select(rows), self.budget.select(rows)
                    objective = Objective(self.loss, part.target, None if rival is None else rival[rows])
                    delta = {name: each[rows] for name, each in begin.items()}
                    survivors.take(rows, part, budget, self._search(part, budget, delta, objective, generator))
            return survivors.answer(inputs)

    @abstractmethod
    def _search(
        self,
        oracle: AttackedModel,
        budget: Budget,
        delta: Perturbation,
        objective: Objective,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Perturbed inputs, those that fool the model where such were found.

        The same draws for all samples: what is found for one must not depend on which others are in the batch.
        """

    def _begin(self, oracle: AttackedModel, generator: torch.Generator, start: int) -> Perturbation:
        clean = start == 0 and not self.random_start
        return self.budget.random(oracle.inputs, generator, factor=0.0 if clean else 1.0)


def at_least_one(**settings: int | None) -> None:
    """Refuse counts below 1.

    >>> at_least_one(steps=0)
    Traceback (most recent call last):
        ...
    ValueError: `steps` must be at least 1, got 0
    """
    for name, value in settings.items():
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}")
