# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Who still stands, and the worst input found for each sample within a budget."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_crmt.attacks.search.attacked_model import AttackedModel
from lightning_crmt.attacks.search.loss import rival_margin
from lightning_crmt.attacks.threat.budget import Budget
from lightning_crmt.attacks.threat.geometry import choose
from lightning_crmt.modality import Inputs


class WorstCase:
    """The first input found for each sample that fools the model, else the one that came nearest to it.

    What counts is what is stored, under the public forward: logits that a search saw came with a graph, for which some
    layers take another path.

    Attributes:
        robust: which samples nothing was found for, ``(B,)``.
    """

    def __init__(self, oracle: AttackedModel, budget: Budget) -> None:
        self.oracle, self.budget = oracle, budget
        self.found = {name: oracle.inputs[name].clone() for name in oracle.attacked}
        self.robust = ~oracle.fooled(oracle.clean_logits)
        self.lead = self._lead(oracle, oracle.clean_logits)

    def rows(self) -> Tensor:
        """Indices of the robust ones: what fell already costs nothing more."""
        return self.robust.nonzero().squeeze(1)

    def take(self, rows: Tensor, part: AttackedModel, budget: Budget, tried: Inputs) -> None:
        """Judge what was tried for the samples in ``rows``, of which ``part`` and ``budget`` are.

        What lies outside of the budget is first pulled back into it.
        """
        delta = budget.difference(tried, part.inputs)
        outside = budget.size(delta) > 1
        if bool(outside.any()):
            inside = budget.apply(budget.project(delta, part.inputs), part.inputs)
            tried = {name: choose(outside, inside[name], tried[name]) for name in part.attacked}
        logits = part.logits({**part.inputs, **{name: tried[name] for name in part.attacked}})
        fooled, lead = part.fooled(logits), self._lead(part, logits)
        nearer = fooled | (lead > self.lead[rows])
        for name, value in self.found.items():
            value[rows] = choose(nearer, tried[name], value[rows])
        self.lead[rows] = torch.where(nearer, lead, self.lead[rows])
        self.robust[rows] = ~fooled

    def answer(self, inputs: Inputs) -> dict[str, Tensor]:
        """``inputs`` with those modalities replaced that were attacked."""
        return {name: self.found.get(name, value) for name, value in inputs.items()}

    def _lead(self, oracle: AttackedModel, logits: Tensor) -> Tensor:
        return rival_margin(oracle.target)(logits).nan_to_num(-torch.inf, torch.inf, -torch.inf)
