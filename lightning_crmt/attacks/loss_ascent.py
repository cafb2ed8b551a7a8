# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The attack to train on: as large a loss as a few steps find, for every sample."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from lightning_crmt.attacks.attack import Attack
from lightning_crmt.attacks.fixed_budget import at_least_one
from lightning_crmt.attacks.pgd import Descent
from lightning_crmt.attacks.search.attacked_model import Model, under_attack
from lightning_crmt.attacks.search.loss import Loss, Objective, check_classes, check_loss
from lightning_crmt.attacks.threat.budget import Budget
from lightning_crmt.modality import Inputs


class LossAscent(Attack):
    r"""Projected gradient ascent on the loss (Madry et al., ICLR 2018), to train on.

    .. math:: \delta \leftarrow \Pi\big(\delta + \eta \arg\max_u \langle \nabla L(x + \delta), u \rangle\big)

    from :math:`\delta = 0`, with u and the projection in the budget. :class:`PGD`, made to judge a model, leaves a
    sample at the first input that fools it and does not touch those that are wrong already; training on that is
    training on weak examples. Here every sample goes all the way. With ``Budget(0.1)`` it is what MMAT and CRMT-AT
    train on: five steps of a fifth of the radius, the gradient normalised over all modalities together.

    Args:
        budget: what a perturbation may be.
        steps: gradient steps.
        loss: what is raised: ``"ce"``, ``"margin"`` or ``"dlr"``.
        step_size: in units of the budget's radius; 1 / steps by default.

    Raises:
        ValueError: for settings out of range; on call, if the model has too few classes for ``"dlr"``.

    >>> import torch
    >>> from lightning_crmt import LinearFusion
    >>> head = LinearFusion({"audio": 4}, num_classes=3)
    >>> x, y = {"audio": torch.randn(5, 4)}, torch.arange(5) % 3
    >>> moved = LossAscent(Budget(0.1))(head, x, y)
    >>> cross_entropy = torch.nn.functional.cross_entropy
    >>> bool(cross_entropy(head(moved).logits, y) > cross_entropy(head(x).logits, y))
    True
    """

    def __init__(self, budget: Budget, steps: int = 5, loss: Loss = "ce", step_size: float | None = None) -> None:
        at_least_one(steps=steps)
        check_loss(loss, targeted=False)
        if step_size is not None and not step_size > 0:
            raise ValueError(f"`step_size` must be above 0, got {step_size}")
        self.budget = budget
        self.steps = steps
        self.loss: Loss = loss
        self.step_size = step_size

    @override
    def __call__(self, model: Model, inputs: Inputs, target: Tensor) -> dict[str, Tensor]:
        """Inputs where the loss is large, within the budget, whether they fool the model or not."""
        with under_attack(model, inputs, target, self.budget) as oracle:
            check_classes(self.loss, False, oracle.clean_logits.shape[1])
            objective = Objective(self.loss, oracle.target)
            clean = {name: oracle.inputs[name].new_zeros(oracle.inputs[name].shape) for name in oracle.attacked}
            sizes = [1 / self.steps if self.step_size is None else self.step_size] * self.steps
            walk = Descent(self.budget, oracle.inputs, clean, sizes, momentum=0.0)
            for _ in sizes:
                _, loss, gradient = oracle.gradient(walk.place(walk.delta), objective)
                walk.advance(loss, gradient)
            # Once more in double precision: the walk had no more digits than the model.
            last = self.budget.project({name: each.double() for name, each in walk.end().items()}, oracle.inputs)
            found = self.budget.apply(last, oracle.inputs)
            return {name: found[name] if name in oracle.attacked else value for name, value in inputs.items()}
