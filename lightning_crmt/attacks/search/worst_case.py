# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The best results of searches so far: the worst input within a budget, or the nearest that fools the model.

Only stored inputs count, judged by the public forward pass: the logits that a search saw came with a graph, for which
some layers take another path.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_crmt.attacks.search.attacked_model import AttackedModel
from lightning_crmt.attacks.search.loss import lead
from lightning_crmt.attacks.threat.per_sample import choose
from lightning_crmt.modality import Inputs, widened


class WorstCase:
    """For each sample the first input within the budget that fools the model, else the one that came nearest to it.

    Attributes:
        inputs: these inputs, of the attacked modalities.
    """

    def __init__(self, attacked: AttackedModel) -> None:
        self.attacked = attacked
        self.inputs = {name: attacked.inputs[name].clone() for name in attacked.modalities}
        self._left = ~attacked.fooled(attacked.clean_logits) & ~attacked.left_alone()
        self._lead = lead(attacked.objective("margin"), attacked.clean_logits)

    def rows(self) -> Tensor:
        """Indices of the samples still to attack; those already fooled cost nothing more."""
        return self._left.nonzero().squeeze(1)

    def take(self, rows: Tensor, part: AttackedModel, tried: Inputs) -> None:
        """Judge the inputs tried for the samples in ``rows``; ``part`` is the attacked model for these samples.

        What lies outside of the budget is first pulled back into it. Inputs that are not finite are outside too: that
        a model has no answer to them says nothing against it.
        """
        delta = part.budget.difference(tried, part.inputs)
        outside = ~(part.budget.size(delta) <= 1)
        delta = {name: each.nan_to_num(0.0, 0.0, 0.0) for name, each in delta.items()}
        tried = {name: tried[name] for name in part.modalities}
        if bool(outside.any()):
            inside = part.budget.apply(part.budget.project(delta, part.inputs), part.inputs)
            tried = choose(outside, inside, tried)
        logits = part.logits({**part.inputs, **tried})
        fooled, ahead = part.fooled(logits), lead(part.objective("margin"), logits)
        nearer = fooled | (ahead > self._lead[rows])
        kept = choose(nearer, tried, {name: value[rows] for name, value in self.inputs.items()})
        for name, value in self.inputs.items():
            value[rows] = kept[name]
        self._lead[rows] = torch.where(nearer, ahead, self._lead[rows])
        self._left[rows] = ~fooled


class Nearest:
    """For each sample the smallest perturbation that fools the model, measured on the stored inputs.

    Attributes:
        inputs: the attacked modalities; clean where no perturbation fooled the model.
        factor: size in units of the budget, ``(B,)``, float64: 0 where the clean input fools the model already,
            infinite where no perturbation did.
    """

    def __init__(self, attacked: AttackedModel) -> None:
        self.attacked = attacked
        self.inputs = {name: attacked.inputs[name] for name in attacked.modalities}
        self.factor = widened(torch.where(attacked.fooled(attacked.clean_logits), 0.0, torch.inf))

    def moved(self) -> dict[str, Tensor]:
        """All inputs, with these perturbations."""
        return {**self.attacked.inputs, **self.inputs}

    def take(self, moved: Inputs, fooled: Tensor, size: Tensor | None = None) -> None:
        """Keep what fools the model and is smaller; ``size`` is that of its perturbation, where it is known."""
        if not bool(fooled.any()):
            return
        if size is None:
            size = self.attacked.budget.size(self.attacked.budget.difference(moved, self.attacked.inputs))
        better = fooled & (size < self.factor)
        self.inputs = choose(better, dict(moved), self.inputs)
        self.factor = torch.where(better, size, self.factor)

    def confirm(self) -> None:
        """Forget what does not fool the public forward."""
        fooled = self.attacked.fooled(self.attacked.logits(self.moved()))
        self.inputs = choose(fooled, self.inputs, {name: self.attacked.inputs[name] for name in self.inputs})
        self.factor = torch.where(fooled, self.factor, torch.inf)
