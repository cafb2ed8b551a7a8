# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Searches that go step by step, and stop for each sample at the first input that fools the model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor
from typing_extensions import override

from lightning_crmt.attacks.search.attacked_model import AttackedModel
from lightning_crmt.attacks.search.loss import Objective
from lightning_crmt.attacks.threat.per_sample import PerSample, Perturbation, select
from lightning_crmt.modality import at_least_single


@dataclass
class Start(PerSample):
    """Where a search begins.

    Attributes:
        attacked: the model and its clean inputs.
        objective: what is raised.
        delta: the first perturbation.
        generator: makes all random draws; they are the same for all samples, so that the result for one does not
            depend on the others in the batch.
    """

    attacked: AttackedModel
    objective: Objective
    delta: Perturbation
    generator: torch.Generator = field(default_factory=torch.Generator)


class Search(ABC):
    """A search in progress: where it is, what it remembers about each sample, and how it goes on.

    Attributes:
        delta: the perturbation where the search is.
        tried: the inputs there.
    """

    tried: dict[str, Tensor]

    def __init__(self, start: Start) -> None:
        self.attacked, self.objective, self.delta = start.attacked, start.objective, start.delta

    @abstractmethod
    def look(self) -> Tensor:
        """Put the current inputs into ``tried``, and say where they fool the model, ``(B,)``."""

    @abstractmethod
    def advance(self) -> None:
        """Go one step further."""

    @abstractmethod
    def end(self) -> dict[str, Tensor]:
        """The inputs at the end of the search."""

    def run(self, steps: int) -> dict[str, Tensor]:
        """For each sample the first inputs that fool the model, else those where the search ends."""
        stops = {name: self.attacked.inputs[name].clone() for name in self.attacked.modalities}
        rows = torch.arange(len(self.attacked.target), device=self.attacked.target.device)
        for _ in range(steps):
            fooled = self.look()
            if bool(fooled.any()):
                on = (~fooled).nonzero().squeeze(1)
                for name, value in stops.items():
                    value[rows[fooled]] = self.tried[name][fooled]
                if len(on) == 0:
                    return stops
                rows = rows[on]
                vars(self).update(select(vars(self), on))
            self.advance()
        last = self.end()
        for name, value in stops.items():
            value[rows] = last[name]
        return stops


class Ascent(Search):
    """A search that follows the gradient; subclasses say how far it goes."""

    loss: Tensor
    gradient: Perturbation

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        inputs = self.attacked.inputs
        self.delta = {name: each.to(at_least_single(inputs[name]).dtype) for name, each in self.delta.items()}
        self.coarse = self.attacked.budget.is_coarse(inputs)

    @override
    def look(self) -> Tensor:
        self.tried = self.place(self.delta)
        logits, self.loss, self.gradient = self.attacked.gradient(self.tried, self.objective)
        return self.attacked.fooled(logits)

    @override
    def end(self) -> dict[str, Tensor]:
        return self.place(self.delta)

    def place(self, delta: Perturbation) -> dict[str, Tensor]:
        """Inputs that are ``delta`` away."""
        budget = self.attacked.budget
        return (budget.apply if self.coarse else budget.near)(delta, self.attacked.inputs)
