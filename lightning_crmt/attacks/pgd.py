# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Projected gradient descent within a fixed budget."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lightning_crmt.attacks.budget import Budget, Perturbation
from lightning_crmt.attacks.oracle import Model, Oracle, cross_entropy, rival_margin, under_attack
from lightning_crmt.modality import Inputs


class PGD:
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

    def __call__(self, model: Model, inputs: Inputs, target: Tensor) -> dict[str, Tensor]:
        """Perturbed inputs that fool the model where one was found; else the last try within the budget.

        The model, ``inputs`` and the global random state are left as they were.
        """
        with under_attack(model, inputs, target) as oracle:
            clean = {name: torch.zeros_like(oracle.inputs[name]) for name in self.budget.attacked(oracle.inputs)}
            done = oracle.fooled(oracle.clean_logits)
            best = self.budget.apply(clean, oracle.inputs)
            generator = torch.Generator().manual_seed(self.seed)
            for start in range(self.restarts):
                begin = clean if start == 0 else self.budget.random(oracle.inputs, generator)
                for rival in self._rivals(oracle):
                    best, done = self._descend(oracle, begin, rival, best, done)
                    if bool(done.all()):
                        return best
            return best

    def _rivals(self, oracle: Oracle) -> list[Tensor | None]:
        if not self.targeted:
            return [None]
        order = oracle.clean_logits.scatter(1, oracle.target[:, None], -torch.inf).argsort(dim=1, descending=True)
        return list(order[:, :-1].unbind(dim=1))

    def _descend(
        self, oracle: Oracle, delta: Perturbation, rival: Tensor | None, best: dict[str, Tensor], done: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        loss = cross_entropy(oracle.target) if self.loss == "ce" else rival_margin(oracle.target, rival)
        first = 2.5 / self.steps if self.step_size is None else self.step_size
        for step in range(self.steps):
            _, _, gradient = oracle.gradient(delta, loss)
            ahead, _ = self.budget.steepest(gradient)
            size = first * (1 - 0.9 * step / self.steps)
            delta = self.budget.project({name: d + size * ahead[name] for name, d in delta.items()}, oracle.inputs)
            # What counts is what is stored, under the public forward.
            tried = self.budget.apply(delta, oracle.inputs)
            found = oracle.fooled(oracle.logits(tried)) & ~done
            last = step == self.steps - 1
            take = found | ~done if last else found
            best = {name: _choose(take, tried[name], kept) for name, kept in best.items()}
            done = done | found
            if bool(done.all()):
                break
        return best, done


def _choose(take: Tensor, new: Tensor, old: Tensor) -> Tensor:
    if new is old:  # a modality that is not attacked: the very same tensor
        return old
    return torch.where(take.reshape(-1, *[1] * (new.dim() - 1)), new, old)
