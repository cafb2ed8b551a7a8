# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Projected gradient descent within a fixed budget: to judge a model by, and to train it on."""

# No postponed annotations: on Python 3.10 jsonargparse cannot read KW_ONLY from them.
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor
from typing_extensions import override

from lightning_crmt.attacks.attack import BudgetedAttack, FixedBudget
from lightning_crmt.attacks.search.ascent import Ascent, Start
from lightning_crmt.attacks.search.attacked_model import Classes, Model, under_attack
from lightning_crmt.attacks.search.loss import Loss
from lightning_crmt.attacks.threat.budget import Budget
from lightning_crmt.attacks.threat.norms import L2
from lightning_crmt.attacks.threat.per_sample import Perturbation, smallest, times
from lightning_crmt.modality import Inputs, widened


@dataclass(eq=False)
class PGD(FixedBudget):
    r"""Projected gradient descent (after Madry et al., ICLR 2018) over several inputs.

    .. math:: \delta \leftarrow \Pi\big(\delta + \eta \arg\max_{u} \langle g, u \rangle\big), \qquad
        g \leftarrow \mu g + \nabla L / \|\nabla L\|

    with u and the projection in the budget, so that a joint l2 ball takes the gradient normalised over all modalities
    together, a product of balls each by itself, l-infinity its sign. Each sample keeps the first input that fools the
    model. The first restart begins at the clean input, the others at random within the budget.

    Args:
        budget: the allowed perturbations.
        steps: gradient steps per restart.
        restarts: number of starts.
        loss: the loss to maximise: ``"margin"``, the strongest rival's logit minus the target's, ``"ce"`` or ``"dlr"``.
        targeted: raise the logit of each wrong class in turn, ``K - 1`` times the cost; not with ``"ce"``.
        classes: with ``targeted``, how many wrong classes to aim at, largest logits first; all by default.
        towards: a class, or one per sample ``(B,)``, to aim for; any wrong class by default.
        step_size: of the first step, in units of the budget's radius; 2.5 / steps by default.
        decay: step sizes fall linearly towards this share of the first; 1 keeps them constant.
        momentum: :math:`\mu`, below 1 (Dong et al., CVPR 2018).
        seed: of the random starts.

    Raises:
        ValueError: for settings out of range; on call, if the model has too few classes for ``"dlr"``.

    >>> from lightning_crmt import LinearFusion
    >>> head = LinearFusion({"audio": 4}, num_classes=3)
    >>> x = {"audio": torch.randn(5, 4)}
    >>> y = head(x).logits.argmax(1)
    >>> bool((head(PGD(Budget(10.0))(head, x, y)).logits.argmax(1) != y).all())
    True
    """

    budget: Budget
    _: KW_ONLY
    steps: int = 40
    restarts: int = 1
    loss: Loss = "margin"
    targeted: bool = False
    classes: int | None = None
    towards: Classes | None = None
    step_size: float | None = None
    decay: float = 0.1
    momentum: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.decay <= 1:
            raise ValueError(f"`decay` must be above 0 and at most 1, got {self.decay}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"`momentum` must be at least 0 and below 1, got {self.momentum}")

    @override
    def _search(self, start: Start) -> dict[str, Tensor]:
        first = 2.5 / self.steps if self.step_size is None else self.step_size
        sizes = [first * (1 - (1 - self.decay) * step / self.steps) for step in range(self.steps)]
        return Descent(start, sizes, self.momentum).run(self.steps)


class Descent(Ascent):
    """Steps of given sizes, in units of the budget's radius, along the steepest direction, with momentum."""

    def __init__(self, start: Start, sizes: list[float], momentum: float = 0.0) -> None:
        super().__init__(start)
        self.sizes, self.momentum = iter(sizes), momentum
        self.velocity: Perturbation = {}

    @override
    def advance(self) -> None:
        gradient, budget, inputs = self.gradient, self.attacked.budget, self.attacked.inputs
        if self.momentum > 0:
            norm = L2().length(gradient)
            norm = norm.clamp(min=smallest(norm))
            fresh = {name: times(widened(each), 1 / norm).to(each.dtype) for name, each in gradient.items()}
            old = self.velocity or {name: torch.zeros_like(each) for name, each in fresh.items()}
            gradient = self.velocity = {name: self.momentum * old[name] + each for name, each in fresh.items()}
        ahead = budget.steepest(gradient, inputs)
        size = next(self.sizes)
        # In place: fresh memory costs more than these sums.
        moved = {n: torch.add(self.delta[n], each, alpha=size, out=each) for n, each in ahead.items()}
        self.delta = budget.project(moved, inputs, in_place=True)


@dataclass(eq=False)
class LossAscent(BudgetedAttack):
    r"""Projected gradient ascent on the loss (Madry et al., ICLR 2018), to train on.

    .. math:: \delta \leftarrow \Pi\big(\delta + \eta \arg\max_u \langle \nabla L(x + \delta), u \rangle\big)

    from :math:`\delta = 0`, with u and the projection in the budget. :class:`PGD`, made to judge a model, leaves a
    sample at the first input that fools it and does not touch those that are wrong already; training on that is
    training on weak examples. Here every sample goes all the way, or to where its logits are no longer finite, which
    :class:`~lightning_crmt.methods.AdversarialTraining` refuses. With ``Budget(0.1)`` it is what MMAT and CRMT-AT train
    on: five steps of a fifth of the radius, the gradient normalised over all modalities together.

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
            last = {name: widened(each) for name, each in descent.delta.items()}
            moved = self.budget.apply(self.budget.project(last, attacked.inputs), attacked.inputs)
            return {**inputs, **{name: moved[name] for name in attacked.modalities}}
