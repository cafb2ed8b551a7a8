# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Random perturbations: what a robust model should not even notice."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from lightning_crmt.attacks.fixed_budget import FixedBudget, at_least_one
from lightning_crmt.attacks.search.attacked_model import AttackedModel
from lightning_crmt.attacks.search.loss import Objective
from lightning_crmt.attacks.threat.budget import Budget
from lightning_crmt.attacks.threat.geometry import Perturbation


class RandomNoise(FixedBudget):
    """Random perturbations within the budget, one after the other; a sample keeps the first that fools the model.

    The floor under every other attack: one that finds less than this is broken.

    Args:
        budget: what a perturbation may be.
        samples: number of draws, the same for all samples of a batch.
        seed: of the draws.

    >>> from lightning_crmt import LinearFusion
    >>> head, x = LinearFusion({"audio": 4}, num_classes=3), {"audio": torch.randn(5, 4)}
    >>> y = head(x).logits.argmax(1)
    >>> bool((RandomNoise(Budget(0.0)).logits(head, x, y).argmax(1) == y).all())
    True
    """

    random_start = True

    def __init__(self, budget: Budget, samples: int = 20, seed: int = 0) -> None:
        at_least_one(samples=samples)
        super().__init__(budget, restarts=samples, seed=seed)
        self.samples = samples

    @override
    def _search(
        self,
        oracle: AttackedModel,
        budget: Budget,
        delta: Perturbation,
        objective: Objective,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        return budget.apply(delta, oracle.inputs)
