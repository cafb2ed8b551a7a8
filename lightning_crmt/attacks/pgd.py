# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Projected gradient descent within a fixed budget."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from lightning_crmt.attacks.attack import Attack
from lightning_crmt.attacks.budget import Budget
from lightning_crmt.attacks.geometry import Perturbation, choose
from lightning_crmt.attacks.oracle import Model, Oracle, cross_entropy, rival_margin, under_attack
from lightning_crmt.modality import Inputs


class PGD(Attack):
    r"""Projected gradient descent (after Madry et al., ICLR 2018) over several inputs.

    Steps along the steepest direction of the budget, projected back into it; each sample keeps the first input found
    that fools the model. The first restart begins at the clean input, the others at random within the budget.

    Args:
        budget: what a perturbation may be.
        steps: gradient steps per restart.
        restarts: number of starts.
        loss: what is raised: ``"margin"``, the strongest rival's logit minus the target's, or ``"ce"``.
        targeted: raise the logit of each wrong class in turn, ``K - 1`` times the cost; needs ``loss="margin"``.
        step_size: in units of the budget's radius; 2.5 / steps by default, decaying to a tenth.
        seed: of the random starts.

    >>> import torch
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
        loss: Literal["margin", "ce"] = "margin",
        targeted: bool = False,
        step_size: float | None = None,
        seed: int = 0,
    ) -> None:
        for name, value in {"steps": steps, "restarts": restarts}.items():
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}")
        if loss not in ("margin", "ce"):
            raise ValueError(f"`loss` must be 'margin' or 'ce', got {loss!r}")
        if targeted and loss != "margin":
            raise ValueError(f"`targeted` needs loss='margin', got {loss!r}")
        if step_size is not None and not step_size > 0:
            raise ValueError(f"`step_size` must be above 0, got {step_size}")
        self.budget = budget
        self.steps = steps
        self.restarts = restarts
        self.loss = loss
        self.targeted = targeted
        self.step_size = step_size
        self.seed = seed

    @override
    def __call__(self, model: Model, inputs: Inputs, target: Tensor) -> dict[str, Tensor]:
        """Perturbed inputs that fool the model where one was found; else the last try within the budget."""
        with under_attack(model, inputs, target, self.budget) as oracle:
            found = {name: oracle.inputs[name].clone() for name in oracle.attacked}
            robust = ~oracle.fooled(oracle.clean_logits)
            generator = torch.Generator().manual_seed(self.seed)
            for start in range(self.restarts):
                begin = self.budget.random(oracle.inputs, generator, factor=0.0 if start == 0 else 1.0)
                for rival in oracle.rivals() if self.targeted else [None]:
                    rows = robust.nonzero().squeeze(1)  # what fell already costs nothing more
                    if len(rows):
                        delta = {name: d[rows] for name, d in begin.items()}
                        tried, fooled = self._descend(oracle.select(rows), delta, rows, rival)
                        for name, value in found.items():
                            value[rows] = tried[name]
                        robust[rows] = ~fooled
            return {name: found.get(name, value) for name, value in inputs.items()}

    def _descend(
        self, oracle: Oracle, delta: Perturbation, rows: Tensor, rival: Tensor | None
    ) -> tuple[dict[str, Tensor], Tensor]:
        budget = self.budget.select(rows)
        margin = rival_margin(oracle.target, None if rival is None else rival[rows])
        loss = cross_entropy(oracle.target) if self.loss == "ce" else margin
        first = 2.5 / self.steps if self.step_size is None else self.step_size
        kept, done = oracle.inputs, torch.zeros_like(oracle.target, dtype=torch.bool)
        for step in range(self.steps):
            tried = budget.apply(delta, oracle.inputs)
            logits, _, gradient = oracle.gradient(tried, loss)
            kept = {name: choose(done, kept[name], tried[name]) for name in tried}
            done = done | oracle.fooled(logits)
            if bool(done.all()):
                break
            ahead, _ = budget.steepest(gradient, oracle.inputs)
            size = first * (1 - 0.9 * step / self.steps)
            delta = budget.project({name: d + size * ahead[name] for name, d in delta.items()}, oracle.inputs)
        else:
            tried = budget.apply(delta, oracle.inputs)
            kept = {name: choose(done, kept[name], tried[name]) for name in tried}
        # What counts is what is stored, under the public forward. The logits above came with a graph, for which some
        # layers take another path: they only say where to stop.
        return kept, oracle.fooled(oracle.logits(kept))
