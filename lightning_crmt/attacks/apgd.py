# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Projected gradient descent that finds its step sizes itself."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from typing_extensions import override

from lightning_crmt.attacks.fixed_budget import FixedBudget
from lightning_crmt.attacks.search.ascent import Ascent, follow
from lightning_crmt.attacks.search.attacked_model import AttackedModel
from lightning_crmt.attacks.search.loss import Loss, Objective
from lightning_crmt.attacks.threat.budget import Budget
from lightning_crmt.attacks.threat.geometry import Perturbation, choose, times
from lightning_crmt.modality import Inputs


class APGD(FixedBudget):
    r"""Auto-PGD (Croce & Hein, ICML 2020) over several inputs.

    .. math::
        z_{t+1} &= \Pi\big(\delta_t + \eta_t \arg\max_u \langle \nabla L(\delta_t), u \rangle\big) \\
        \delta_{t+1} &= \Pi\big(\delta_t + 0.75 (z_{t+1} - \delta_t) + 0.25 (\delta_t - \delta_{t-1})\big)

    with u and the projection in the budget. Each sample's step :math:`\eta`, at first twice the budget, is halved at
    checkpoints :math:`p_{j+1} = p_j + \max(p_j - p_{j-1} - 0.03, 0.06)`, in shares of ``steps``, where the loss rose in
    less than three quarters of the steps since the last, or where neither the step was halved there nor a new best
    found since; the walk then goes on from the best place so far.

    Args:
        budget: what a perturbation may be.
        steps: gradient steps per restart, at least 2.
        restarts: number of starts.
        loss: what is raised: ``"margin"``, the strongest rival's logit minus the target's, ``"ce"`` or ``"dlr"``.
        targeted: raise the logit of each wrong class in turn, ``K - 1`` times the cost; not with ``"ce"``.
        classes: with ``targeted``, aim at so many wrong classes with the largest logits; all by default.
        random_start: begin the first start at random within the budget too, rather than at the clean input.
        seed: of the random starts.

    Raises:
        ValueError: for settings out of range; on call, if the model has too few classes for ``"dlr"``.

    >>> from lightning_crmt import LinearFusion
    >>> head = LinearFusion({"audio": 4}, num_classes=3)
    >>> x = {"audio": torch.randn(5, 4)}
    >>> y = head(x).logits.argmax(1)
    >>> bool((head(APGD(Budget(10.0))(head, x, y)).logits.argmax(1) != y).all())
    True
    """

    def __init__(
        self,
        budget: Budget,
        steps: int = 50,
        restarts: int = 1,
        loss: Loss = "margin",
        targeted: bool = False,
        classes: int | None = None,
        random_start: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(budget, loss=loss, targeted=targeted, classes=classes, restarts=restarts, seed=seed)
        if steps < 2:
            raise ValueError(f"`steps` must be at least 2, got {steps}")
        self.steps = steps
        self.random_start = random_start

    @override
    def _search(
        self,
        oracle: AttackedModel,
        budget: Budget,
        delta: Perturbation,
        objective: Objective,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        return follow(_Walk(budget, oracle.inputs, delta, checkpoints(self.steps)), oracle, objective, self.steps)


def checkpoints(steps: int) -> list[int]:
    """The steps after which sizes are reviewed.

    >>> checkpoints(100)
    [22, 41, 57, 70, 80, 87, 93, 99]
    """
    shares, found = [0.0, 0.22], []
    while shares[-1] < 1:
        found.append(math.ceil(round(shares[-1] * steps, 9)))
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return sorted(set(found))


class _Walk(Ascent):
    def __init__(self, budget: Budget, inputs: Inputs, delta: Perturbation, reviews: list[int]) -> None:
        super().__init__(budget, inputs, delta)
        self.reviews, self.steps, self.reviewed = set(reviews), 0, 0
        self.before = self.best = self.uphill = self.delta  # the last place, the best one and the gradient there
        whole = next(iter(delta.values()))
        start = torch.full((len(whole),), -torch.inf, dtype=torch.float64, device=whole.device)
        #: Per sample: best loss, that at the last review, the last loss, rises since the last review, step size,
        #: whether the size was halved in the last review.
        self.each = {
            "best": start,
            "reviewed": start,
            "last": -start,
            "rises": torch.zeros_like(start),
            "size": torch.full_like(start, 2.0),
            "halved": torch.ones_like(start, dtype=torch.bool),
        }

    @override
    def advance(self, loss: Tensor, gradient: Perturbation) -> None:
        each = self.each
        loss = loss.nan_to_num(-torch.inf, torch.inf, -torch.inf)
        each["rises"] = each["rises"] + (loss > each["last"])
        each["last"] = loss
        better = loss > each["best"]
        each["best"] = torch.where(better, loss, each["best"])
        self.best = {name: choose(better, d, self.best[name]) for name, d in self.delta.items()}
        self.uphill = {name: choose(better, g, self.uphill[name]) for name, g in gradient.items()}
        here = self.delta
        if self.steps in self.reviews:
            halve = self._review()
            here = {name: choose(halve, self.best[name], d) for name, d in here.items()}
            gradient = {name: choose(halve, self.uphill[name], g) for name, g in gradient.items()}
        ahead = self.budget.ahead(gradient, self.inputs)
        share = 1.0 if self.steps == 0 else 0.75
        aim = self.budget.project({name: d + times(ahead[name], each["size"]) for name, d in here.items()}, self.inputs)
        moved = {name: d + share * (aim[name] - d) + (1 - share) * (d - self.before[name]) for name, d in here.items()}
        self.before, self.delta = here, self.budget.project(moved, self.inputs)
        self.steps += 1

    def _review(self) -> Tensor:
        each = self.each
        seldom = each["rises"] < 0.75 * (self.steps - self.reviewed)
        stuck = ~each["halved"] & (each["best"] <= each["reviewed"])
        halve = seldom | stuck
        each["size"] = torch.where(halve, each["size"] / 2, each["size"])
        each["halved"], each["reviewed"] = halve, each["best"]
        each["rises"] = torch.zeros_like(each["rises"])
        self.reviewed = self.steps
        return halve

    @override
    def select(self, rows: Tensor) -> None:
        super().select(rows)
        self.before, self.best, self.uphill = (
            {name: value[rows] for name, value in part.items()} for part in (self.before, self.best, self.uphill)
        )
        self.each = {name: value[rows] for name, value in self.each.items()}

    @override
    def end(self) -> Perturbation:
        return self.best
