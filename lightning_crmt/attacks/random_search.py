# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""A search that asks for predictions only: gradients that lie cannot mislead it."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from lightning_crmt.attacks.fixed_budget import FixedBudget, at_least_one
from lightning_crmt.attacks.search.attacked_model import AttackedModel
from lightning_crmt.attacks.search.loss import Objective
from lightning_crmt.attacks.threat.budget import Budget
from lightning_crmt.attacks.threat.geometry import Perturbation, choose, times


class RandomSearch(FixedBudget):
    r"""Random search by logits alone, in any budget: a check that gradients are not masked.

    Each step tries a random direction u forwards and backwards, :math:`\Pi(\delta \pm \eta u)`, and keeps what raises
    the margin of the strongest wrong class. Differences of the two margins, times u, add up to an estimate of the
    gradient (as in Ilyas et al., ICML 2018), along which every fourth step goes instead. If it finds more than an
    attack by gradients, that attack is misled. Large inputs need many queries; it is no attack to report alone.

    Args:
        budget: what a perturbation may be.
        steps: random directions, two queries each.
        restarts: number of starts, the first at the clean input.
        seed: of all that is random.

    >>> from lightning_crmt import LinearFusion
    >>> head, x = LinearFusion({"audio": 4}, num_classes=3), {"audio": torch.randn(5, 4)}
    >>> y = head(x).logits.argmax(1)
    >>> bool((RandomSearch(Budget(10.0)).logits(head, x, y).argmax(1) != y).all())
    True
    """

    def __init__(self, budget: Budget, steps: int = 200, restarts: int = 1, seed: int = 0) -> None:
        super().__init__(budget, restarts=restarts, seed=seed)
        at_least_one(steps=steps)
        self.steps = steps

    @override
    def _search(
        self,
        oracle: AttackedModel,
        budget: Budget,
        delta: Perturbation,
        objective: Objective,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        stops = {name: oracle.inputs[name].clone() for name in oracle.attacked}
        rows = torch.arange(len(oracle.target), device=oracle.target.device)
        state = _State(budget, oracle, objective, delta)
        for step in range(self.steps):
            noise = {name: coarse_noise(each, generator) for name, each in delta.items()}
            fooled = state.fooled
            if bool(fooled.any()):
                for name, value in stops.items():
                    value[rows[fooled]] = state.best[name][fooled]
                on = (~fooled).nonzero().squeeze(1)
                if len(on) == 0:
                    return stops
                rows = rows[on]
                state.select(on)
            state.along_slope() if step % 4 == 3 else state.along(noise)
        for name, value in stops.items():
            value[rows] = state.best[name]
        return stops


def coarse_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian noise ``(1, ...)`` for ``like``, ``(B, ...)``, in random blocks along its last dimensions.

    Networks for images and sounds see blocks better than single pixels. Vectors have none.
    """
    sizes = list(like.shape[1:])
    block = 2 ** int(torch.randint(4, (), generator=generator))
    spatial = range(max(1, len(sizes) - 2), len(sizes))
    for i in spatial:
        sizes[i] = -(-sizes[i] // block)
    noise = torch.randn((1, *sizes), generator=generator, dtype=torch.float64).to(like.device)
    for i in spatial:
        noise = noise.repeat_interleave(block, dim=i + 1).narrow(i + 1, 0, like.shape[i + 1])
    return noise


class _State:
    """The best place so far, its lead, and what was learnt of the slope; one row for each sample."""

    def __init__(self, budget: Budget, oracle: AttackedModel, objective: Objective, delta: Perturbation) -> None:
        self.budget, self.oracle, self.objective = budget, oracle, objective
        self.delta = delta
        self.slope = {name: torch.zeros_like(each, dtype=torch.float64) for name, each in delta.items()}
        self.best = budget.apply(delta, oracle.inputs)
        self.lead, self.fooled = self._judge(self.best)
        self.size = torch.ones_like(self.lead)

    def select(self, rows: Tensor) -> None:
        self.budget, self.oracle = self.budget.select(rows), self.oracle.select(rows)
        self.objective = self.objective.select(rows)
        self.delta, self.slope, self.best = (
            {name: each[rows] for name, each in part.items()} for part in (self.delta, self.slope, self.best)
        )
        self.lead, self.fooled, self.size = self.lead[rows], self.fooled[rows], self.size[rows]

    def along(self, noise: Perturbation) -> None:
        """Try a direction and its opposite, and learn the slope along it."""
        noise = {name: each.expand_as(self.delta[name]) for name, each in noise.items()}
        ahead, _ = self.budget.steepest(noise, self.oracle.inputs)
        before = self.lead
        leads = []
        for sign in (1, -1):
            leads.append(self._try({n: d + times(ahead[n], sign * self.size) for n, d in self.delta.items()}))
        gained = ((leads[0] - leads[1]) / self.size).nan_to_num(0.0, 0.0, 0.0)
        self.slope = {name: 0.99 * each + times(noise[name], gained) for name, each in self.slope.items()}
        self.size = (self.size * torch.where(self.lead > before, 1.3, 0.8)).clamp(0.01, 2)

    def along_slope(self) -> None:
        """Try a step, and all the way, along the slope as it seems."""
        ahead, _ = self.budget.steepest(self.slope, self.oracle.inputs)
        self._try({name: d + times(ahead[name], self.size) for name, d in self.delta.items()})
        self._try(ahead)

    def _try(self, delta: Perturbation) -> Tensor:
        delta = self.budget.project(delta, self.oracle.inputs)
        tried = self.budget.apply(delta, self.oracle.inputs)
        lead, fooled = self._judge(tried)
        better = (fooled & ~self.fooled) | ((lead > self.lead) & (fooled | ~self.fooled))
        self.delta = {name: choose(better, delta[name], each) for name, each in self.delta.items()}
        self.best = {name: choose(better, tried[name], self.best[name]) for name in self.best}
        self.lead, self.fooled = torch.where(better, lead, self.lead), torch.where(better, fooled, self.fooled)
        return lead

    def _judge(self, tried: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        logits = self.oracle.logits(tried)
        lead = self.objective(logits).double().nan_to_num(-torch.inf, torch.inf, -torch.inf)
        return lead, self.oracle.fooled(logits)
