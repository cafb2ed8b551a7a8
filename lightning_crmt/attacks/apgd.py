# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Projected gradient descent that chooses its own step sizes."""

# No postponed annotations: on Python 3.10 jsonargparse cannot read KW_ONLY from them.
import math
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor
from typing_extensions import override

from lightning_crmt.attacks.attack import FixedBudget
from lightning_crmt.attacks.search.ascent import Ascent, Start
from lightning_crmt.attacks.search.attacked_model import Classes
from lightning_crmt.attacks.search.loss import Loss
from lightning_crmt.attacks.threat.budget import Budget
from lightning_crmt.attacks.threat.per_sample import choose, times
from lightning_crmt.modality import widest


@dataclass(eq=False)
class APGD(FixedBudget):
    r"""Auto-PGD (Croce & Hein, ICML 2020) over several inputs.

    .. math::
        z_{t+1} &= \Pi\big(\delta_t + \eta_t \arg\max_u \langle \nabla L(\delta_t), u \rangle\big) \\
        \delta_{t+1} &= \Pi\big(\delta_t + 0.75 (z_{t+1} - \delta_t) + 0.25 (\delta_t - \delta_{t-1})\big)

    with u and the projection in the budget. Each sample's step :math:`\eta`, at first twice the budget, is halved at
    checkpoints :math:`p_{j+1} = p_j + \max(p_j - p_{j-1} - 0.03, 0.06)`, in shares of ``steps``, where the loss rose in
    less than three quarters of the steps since the last, or where at the last checkpoint the step was not halved and
    no better point was reached since; the search then continues from the best point so far.

    Args:
        budget: the allowed perturbations.
        steps: gradient steps per restart, at least 2.
        restarts: number of starts.
        loss: the loss to maximise: ``"margin"``, the strongest rival's logit minus the target's, ``"ce"`` or ``"dlr"``.
        targeted: raise the logit of each wrong class in turn, ``K - 1`` times the cost; not with ``"ce"``.
        classes: with ``targeted``, how many wrong classes to aim at, largest logits first; all by default.
        towards: a class, or one per sample ``(B,)``, to aim for; any wrong class by default.
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

    budget: Budget
    _: KW_ONLY
    steps: int = 50
    restarts: int = 1
    loss: Loss = "margin"
    targeted: bool = False
    classes: int | None = None
    towards: Classes | None = None
    random_start: bool = False
    seed: int = 0

    least_steps = 2

    @override
    def _search(self, start: Start) -> dict[str, Tensor]:
        return _AutoDescent(start, checkpoints(self.steps)).run(self.steps)


def checkpoints(steps: int) -> list[int]:
    """The steps after which sizes are reviewed.

    >>> checkpoints(100)
    [22, 41, 57, 70, 80, 87, 93, 99]
    """
    shares, steps_after = [0.0, 0.22], []
    while shares[-1] < 1:
        steps_after.append(math.ceil(round(shares[-1] * steps, 9)))
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return sorted(set(steps_after))


class _AutoDescent(Ascent):
    """Steps with a size of its own for each sample, and momentum."""

    def __init__(self, start: Start, reviews: list[int]) -> None:
        super().__init__(start)
        self.reviews, self.steps, self.reviewed = set(reviews), 0, 0
        self.before = self.best = self.uphill = self.delta  # the last place, the best one and the gradient there
        size, device = len(self.attacked.target), self.attacked.target.device
        lowest = torch.full((size,), -torch.inf, dtype=widest(device), device=device)
        self.best_loss = self.loss_reviewed = lowest  # the largest so far, and until the last review
        self.last_loss = -lowest
        self.rises = torch.zeros_like(lowest)  # since the last review
        self.size = torch.full_like(lowest, 2.0)
        self.halved = torch.ones_like(lowest, dtype=torch.bool)  # whether the last review halved the size

    @override
    def advance(self) -> None:
        loss = self.loss.nan_to_num(-torch.inf, torch.inf, -torch.inf)
        self.rises = self.rises + (loss > self.last_loss)
        self.last_loss = loss
        better = loss > self.best_loss
        self.best_loss = torch.where(better, loss, self.best_loss)
        self.best = choose(better, self.delta, self.best)
        self.uphill = choose(better, self.gradient, self.uphill)
        here, gradient = self.delta, self.gradient
        if self.steps in self.reviews:
            halve = self._review()
            here, gradient = choose(halve, self.best, here), choose(halve, self.uphill, gradient)
        budget, inputs = self.attacked.budget, self.attacked.inputs
        ahead = budget.steepest(gradient, inputs)
        share = 1.0 if self.steps == 0 else 0.75
        aim = {name: times(ahead[name], self.size).add_(d) for name, d in here.items()}
        aim = budget.project(aim, inputs, in_place=True)
        # d + share (aim - d) + (1 - share) (d - before)
        moved = {name: (aim[name] - d).mul_(share).add_(d) for name, d in here.items()}
        for name, d in here.items():
            moved[name].add_((d - self.before[name]).mul_(1 - share))
        self.before, self.delta = here, budget.project(moved, inputs, in_place=True)
        self.steps += 1

    def _review(self) -> Tensor:
        seldom = self.rises < 0.75 * (self.steps - self.reviewed)
        stuck = ~self.halved & (self.best_loss <= self.loss_reviewed)
        self.halved = seldom | stuck
        self.size = torch.where(self.halved, self.size / 2, self.size)
        self.loss_reviewed, self.rises, self.reviewed = self.best_loss, torch.zeros_like(self.rises), self.steps
        return self.halved

    @override
    def end(self) -> dict[str, Tensor]:
        return self.place(self.best)
