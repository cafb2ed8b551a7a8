# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Projected gradient descent within a fixed budget."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from lightning_crmt.attacks.fixed_budget import FixedBudget, at_least_one
from lightning_crmt.attacks.search.ascent import Ascent, follow
from lightning_crmt.attacks.search.attacked_model import AttackedModel
from lightning_crmt.attacks.search.loss import Loss, Objective
from lightning_crmt.attacks.threat.budget import Budget
from lightning_crmt.attacks.threat.geometry import Perturbation, norms_of, times
from lightning_crmt.modality import Inputs


class PGD(FixedBudget):
    r"""Projected gradient descent (after Madry et al., ICLR 2018) over several inputs.

    .. math:: \delta \leftarrow \Pi\big(\delta + \eta \arg\max_{u} \langle g, u \rangle\big), \qquad
        g \leftarrow \mu g + \nabla L / \|\nabla L\|

    with u and the projection in the budget, so that a joint l2 ball takes the gradient normalised over all modalities
    together, a product of balls each by itself, l-infinity its sign. Each sample keeps the first input found that fools
    the model. The first restart begins at the clean input, the others at random within the budget.

    Args:
        budget: what a perturbation may be.
        steps: gradient steps per restart.
        restarts: number of starts.
        loss: what is raised: ``"margin"``, the strongest rival's logit minus the target's, ``"ce"`` or ``"dlr"``.
        targeted: raise the logit of each wrong class in turn, ``K - 1`` times the cost; not with ``"ce"``.
        step_size: of the first step, in units of the budget's radius; 2.5 / steps by default.
        seed: of the random starts.
        classes: with ``targeted``, aim at so many wrong classes with the largest logits; all by default.
        momentum: :math:`\mu`, below 1 (Dong et al., CVPR 2018).
        decay: step sizes fall linearly towards this share of the first; 1 keeps them constant.

    Raises:
        ValueError: for settings out of range; on call, if the model has too few classes for ``"dlr"``.

    >>> from lightning_crmt import LinearFusion
    >>> head = LinearFusion({"audio": 4}, num_classes=3)
    >>> x = {"audio": torch.randn(5, 4)}
    >>> y = head(x).logits.argmax(1)
    >>> bool((head(PGD(Budget(10.0))(head, x, y)).logits.argmax(1) != y).all())
    True
    """

    def __init__(
        self,
        budget: Budget,
        steps: int = 40,
        restarts: int = 1,
        loss: Loss = "margin",
        targeted: bool = False,
        step_size: float | None = None,
        seed: int = 0,
        classes: int | None = None,
        momentum: float = 0.0,
        decay: float = 0.1,
    ) -> None:
        super().__init__(budget, loss=loss, targeted=targeted, classes=classes, restarts=restarts, seed=seed)
        at_least_one(steps=steps)
        if step_size is not None and not step_size > 0:
            raise ValueError(f"`step_size` must be above 0, got {step_size}")
        if not 0 <= momentum < 1:
            raise ValueError(f"`momentum` must be at least 0 and below 1, got {momentum}")
        if not 0 < decay <= 1:
            raise ValueError(f"`decay` must be above 0 and at most 1, got {decay}")
        self.steps = steps
        self.step_size = step_size
        self.momentum = momentum
        self.decay = decay

    @override
    def _search(
        self,
        oracle: AttackedModel,
        budget: Budget,
        delta: Perturbation,
        objective: Objective,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        first = 2.5 / self.steps if self.step_size is None else self.step_size
        sizes = [first * (1 - (1 - self.decay) * step / self.steps) for step in range(self.steps)]
        return follow(Descent(budget, oracle.inputs, delta, sizes, self.momentum), oracle, objective, self.steps)


class Descent(Ascent):
    """Steps of given sizes, in units of the budget's radius, along the steepest direction, with momentum."""

    def __init__(
        self, budget: Budget, inputs: Inputs, delta: Perturbation, sizes: list[float], momentum: float
    ) -> None:
        super().__init__(budget, inputs, delta)
        self.sizes, self.momentum = iter(sizes), momentum
        self.velocity: Perturbation = {}

    @override
    def advance(self, loss: Tensor, gradient: Perturbation) -> None:
        if self.momentum > 0:
            norm = norms_of(gradient, "l2", joint=True)[next(iter(gradient))].clamp(min=1e-300)
            fresh = {name: times(each.double(), 1 / norm).to(each.dtype) for name, each in gradient.items()}
            old = self.velocity or {name: torch.zeros_like(each) for name, each in fresh.items()}
            gradient = self.velocity = {name: self.momentum * old[name] + each for name, each in fresh.items()}
        ahead = self.budget.ahead(gradient, self.inputs)
        size = next(self.sizes)
        # In place: fresh memory costs more than these sums.
        moved = {n: torch.add(self.delta[n], each, alpha=size, out=each) for n, each in ahead.items()}
        self.delta = self.budget.project_(moved, self.inputs)

    @override
    def select(self, rows: Tensor) -> None:
        super().select(rows)
        self.velocity = {name: each[rows] for name, each in self.velocity.items()}
