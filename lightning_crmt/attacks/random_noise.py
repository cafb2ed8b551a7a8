# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Random perturbations: what a robust model should not even notice."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from torch import Tensor
from typing_extensions import override

from lightning_crmt.attacks.attack import FixedBudget
from lightning_crmt.attacks.search.ascent import Start
from lightning_crmt.attacks.search.attacked_model import Classes
from lightning_crmt.attacks.threat.budget import Budget
from lightning_crmt.checks import check_at_least


@dataclass(eq=False)
class RandomNoise(FixedBudget):
    """Random perturbations within the budget, one after the other; a sample keeps the first that fools the model.

    The floor under every other attack: one that finds less than this is broken.

    Args:
        budget: what a perturbation may be.
        samples: number of draws, the same for all samples of a batch.
        towards: a class, or one per sample ``(B,)``, that counts as fooled; any wrong one by default.
        seed: of the draws.

    >>> import torch
    >>> from lightning_crmt import LinearFusion
    >>> head, x = LinearFusion({"audio": 4}, num_classes=3), {"audio": torch.randn(5, 4)}
    >>> y = head(x).logits.argmax(1)
    >>> bool((RandomNoise(Budget(0.0)).logits(head, x, y).argmax(1) == y).all())
    True
    """

    budget: Budget
    _: KW_ONLY
    samples: int = 20
    towards: Classes | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_at_least(1, samples=self.samples)
        self.restarts, self.random_start = self.samples, True
        super().__post_init__()

    @override
    def _search(self, start: Start) -> dict[str, Tensor]:
        return start.attacked.budget.apply(start.delta, start.attacked.inputs)
