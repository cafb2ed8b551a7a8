# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Following a gradient through a budget, sample by sample until it is fooled."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from lightning_crmt.attacks.search.attacked_model import AttackedModel
from lightning_crmt.attacks.search.loss import Objective
from lightning_crmt.attacks.threat.budget import Budget
from lightning_crmt.attacks.threat.geometry import Perturbation
from lightning_crmt.modality import Inputs, at_least_single


class Ascent(ABC):
    """Where a search stands, and where it goes from there.

    Args:
        budget: within which it walks.
        inputs: the clean inputs.
        delta: where it begins.
    """

    def __init__(self, budget: Budget, inputs: Inputs, delta: Perturbation) -> None:
        self.budget, self.inputs = budget, inputs
        # A search needs no more digits than the model has; what it finds is measured in double precision.
        self.delta = {name: each.to(at_least_single(inputs[name]).dtype) for name, each in delta.items()}
        self.coarse = budget.is_coarse(inputs)

    def place(self, delta: Perturbation) -> dict[str, Tensor]:
        """Inputs that are ``delta`` away."""
        return (self.budget.apply if self.coarse else self.budget.near)(delta, self.inputs)

    @abstractmethod
    def advance(self, loss: Tensor, gradient: Perturbation) -> None:
        """Move ``delta``, knowing the loss ``(B,)`` and its gradient there."""

    def select(self, rows: Tensor) -> None:
        """Go on with some of the samples."""
        self.budget = self.budget.select(rows)
        self.inputs = {name: value[rows] for name, value in self.inputs.items()}
        self.delta = {name: each[rows] for name, each in self.delta.items()}

    def end(self) -> Perturbation:
        """What the walk has come to."""
        return self.delta


def follow(walk: Ascent, oracle: AttackedModel, objective: Objective, steps: int) -> dict[str, Tensor]:
    """For each sample the first place on the walk where the model is fooled, else where it ends."""
    stops = {name: oracle.inputs[name].clone() for name in oracle.attacked}
    rows = torch.arange(len(oracle.target), device=oracle.target.device)
    for _ in range(steps):
        tried = walk.place(walk.delta)
        logits, loss, gradient = oracle.gradient(tried, objective)
        fooled = oracle.fooled(logits)
        if bool(fooled.any()):
            on = (~fooled).nonzero().squeeze(1)
            for name, value in stops.items():
                value[rows[fooled]] = tried[name][fooled]
            if len(on) == 0:
                return stops
            rows, oracle, objective = rows[on], oracle.select(on), objective.select(on)
            loss, gradient = loss[on], {name: each[on] for name, each in gradient.items()}
            walk.select(on)
        walk.advance(loss, gradient)
    last = walk.place(walk.end())
    for name, value in stops.items():
        value[rows] = last[name]
    return stops
