# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Train on adversarial examples."""

from __future__ import annotations

from typing import cast

from torch import Tensor
from typing_extensions import override

from lightning_crmt.attacks import Attack, BudgetedAttack, Model, public_logits
from lightning_crmt.checks import describe
from lightning_crmt.methods.mixup import Mixup
from lightning_crmt.mixin import CRMTMixin
from lightning_crmt.modality import Inputs, select
from lightning_crmt.targets import Target, parts_of
from lightning_crmt.training import Method

_ORDER = "AdversarialTraining must come before Mixup: an attack leads away from one class"


class AdversarialTraining(Method):
    r"""Adversarial training (Madry et al., ICLR 2018): every batch is replaced by adversarial examples.

    .. math:: \min_\theta \frac 1 N \sum_i L(x_i + \delta_i, y_i), \qquad
        \delta_i \approx \arg\max_{\delta \in \text{budget}} \mathrm{CE}(h(x_i + \delta), y_i)

    With ``LossAscent(Budget(0.1))``, all modalities in one ball, it is the paper's MMAT under joint training, and
    CRMT-AT under ``CRMTModule(rho=...)``. An attack leads away from the most probable class where targets are
    probabilities, and flips any label where they are labels. It sees the model in evaluation mode and full precision.
    For each batch one more forward pass, in the same mode, looks for samples whose logits are not finite.

    Args:
        attack: any attack; one made for evaluation stops at the first input that fools the model, so its examples are
            weaker.

    Raises:
        TypeError: if ``attack`` is not an attack.
        ValueError: before training, if ``Mixup`` comes before this method; in training, if an adversarial batch has
            logits that are not finite: there is nothing to learn from it.

    >>> import torch
    >>> from lightning_crmt import CRMTModule
    >>> from lightning_crmt.attacks import Budget, LossAscent
    >>> from lightning_crmt.encoders import MLP
    >>> method = AdversarialTraining(LossAscent(Budget(0.1)))  # Trainer(callbacks=[method]) trains with it
    >>> model = CRMTModule({"audio": MLP(8, 4), "image": MLP(6, 4)}, num_classes=3)
    >>> batch = {"audio": torch.zeros(2, 8), "image": torch.zeros(2, 6)}
    >>> moved, target = method.transform(model, batch, torch.tensor([0, 1]))
    >>> bool((torch.cat(list(moved.values()), dim=1).norm(dim=1) < 0.1 + 1e-6).all())
    True
    """

    source = "paper"

    def __init__(self, attack: Attack) -> None:
        if isinstance(attack, type):
            raise TypeError(f"`attack` must be an Attack, got the class: make one, {attack.__name__}(Budget(0.1))")
        if not isinstance(attack, Attack):
            raise TypeError(f"`attack` must be an Attack such as LossAscent, got {describe(attack)}")
        self.attack = attack

    @override
    def begin(self, module: CRMTMixin) -> None:
        if any(isinstance(method, Mixup) for method in module.training_stage.methods):  # those before this one
            raise ValueError(_ORDER)

    @override
    def transform(self, module: CRMTMixin, inputs: Inputs, target: Target) -> tuple[Inputs, Target]:
        if not isinstance(target, Tensor):
            raise ValueError(_ORDER)
        model, criterion = cast(Model, module), module.crmt_criterion
        right = criterion.answers(parts_of(criterion.check(target, module.head.num_classes, len(target)))[0])
        moved = self._moved(model, inputs, right, criterion.counted(target))
        broken = _without_answer(model, moved)
        if broken:
            changed = [name for name in moved if not moved[name].equal(inputs[name])]
            alone = [name for name in changed if _without_answer(model, {**inputs, name: moved[name]})]
            raise ValueError(
                f"logits of adversarial batches must be finite to train on: {type(self.attack).__name__} made those of "
                f"{broken} of {len(target)} samples NaN or infinite by its changes of {alone or changed}; make the "
                "model defined there, or give the budget a smaller radius or a box"
            )
        return moved, target

    def _moved(self, model: Model, inputs: Inputs, right: Tensor, counted: Tensor | None) -> Inputs:
        """Adversarial inputs; samples that do not count, of which nothing is right, are as they were."""
        if counted is None or bool(counted.all()):
            return self.attack(model, inputs, right)
        rows = counted.nonzero().squeeze(1)
        if len(rows) == 0:
            return inputs
        attack = self.attack.select(rows) if isinstance(self.attack, BudgetedAttack) else self.attack
        moved, whole = attack(model, select(inputs, rows), right[rows]), dict(inputs)
        for name, value in moved.items():
            if not value.equal(inputs[name][rows.to(inputs[name].device)]):
                whole[name] = inputs[name].detach().to(value, copy=True)
                whole[name][rows.to(value.device)] = value
        return whole


def _without_answer(model: Model, inputs: Inputs) -> int:
    """How many samples have logits that are not finite."""
    return int((~public_logits(model, inputs).isfinite().all(dim=1)).sum())
