# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The attack to train on: it raises the loss of every sample as far as a few steps can."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from torch import Tensor
from typing_extensions import override

from lightning_crmt.attacks.attack import BudgetedAttack
from lightning_crmt.attacks.pgd import Descent
from lightning_crmt.attacks.search.ascent import Start
from lightning_crmt.attacks.search.attacked_model import Classes, Model, under_attack
from lightning_crmt.attacks.search.loss import Loss
from lightning_crmt.attacks.threat.budget import Budget
from lightning_crmt.modality import Inputs


@dataclass(eq=False)
class LossAscent(BudgetedAttack):
    r"""Projected gradient ascent on the loss (Madry et al., ICLR 2018), to train on.

    .. math:: \delta \leftarrow \Pi\big(\delta + \eta \arg\max_u \langle \nabla L(x + \delta), u \rangle\big)

    from :math:`\delta = 0`, with u and the projection in the budget. :class:`PGD`, made to judge a model, leaves a
    sample at the first input that fools it and does not touch those that are wrong already; training on that is
    training on weak examples. Here every sample goes all the way. With ``Budget(0.1)`` it is what MMAT and CRMT-AT
    train on: five steps of a fifth of the radius, the gradient normalised over all modalities together.

    Args:
        budget: the allowed perturbations.
        steps: gradient steps.
        loss: the loss to maximise: ``"ce"``, ``"margin"`` or ``"dlr"``.
        towards: a class, or one per sample ``(B,)``, whose loss is lowered instead.
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

    budget: Budget
    _: KW_ONLY
    steps: int = 5
    loss: Loss = "ce"
    towards: Classes | None = None
    step_size: float | None = None

    @override
    def __call__(self, model: Model, inputs: Inputs, target: Tensor) -> dict[str, Tensor]:
        """Inputs where the loss is large, within the budget, whether they fool the model or not."""
        with under_attack(model, inputs, target, self.budget, self.towards) as attacked:
            clean = {name: attacked.inputs[name].new_zeros(attacked.inputs[name].shape) for name in attacked.modalities}
            sizes = [1 / self.steps if self.step_size is None else self.step_size] * self.steps
            descent = Descent(Start(attacked, attacked.objectives(self.loss)[0], clean), sizes)
            for _ in sizes:
                descent.look()
                descent.advance()
            # Once more in double precision: the descent had no more digits than the model.
            last = {name: each.double() for name, each in descent.delta.items()}
            moved = self.budget.apply(self.budget.project(last, attacked.inputs), attacked.inputs)
            return {**inputs, **{name: moved[name] for name in attacked.modalities}}
