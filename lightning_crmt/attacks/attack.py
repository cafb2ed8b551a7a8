# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The base classes of attacks: any attack, one within a budget, and one within a budget of fixed size."""

# No postponed annotations: jsonargparse resolves subclasses' annotations in the modules where those are defined.
import copy
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import Self, override

from lightning_crmt.attacks.search.ascent import Start
from lightning_crmt.attacks.search.attacked_model import Classes, Model, broken, public_logits, under_attack
from lightning_crmt.attacks.search.loss import Loss
from lightning_crmt.attacks.search.worst_case import WorstCase
from lightning_crmt.attacks.threat.budget import Budget, Radius
from lightning_crmt.attacks.threat.per_sample import select
from lightning_crmt.checks import check_at_least, check_positive, describe
from lightning_crmt.modality import Inputs


class Attack(ABC):
    """An attack holds settings only; it keeps nothing of the model or the data it is called with.

    Callbacks take any subclass; one that perturbs within a budget is a :class:`BudgetedAttack`.

    >>> class Backwards(Attack):
    ...     def __call__(self, model, inputs, target):
    ...         return {name: value.flip(1) for name, value in inputs.items()}
    >>> model, y = lambda inputs: inputs["audio"], torch.tensor([0, 1])
    >>> logits = Backwards().logits(model, {"audio": torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 0.0]])}, y)
    >>> Backwards().succeeds(logits, y)
    tensor([ True, False])
    """

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    @abstractmethod
    def __call__(self, model: Model, inputs: Inputs, target: Tensor) -> dict[str, Tensor]:
        """Perturbed inputs, ``(B, ...)`` by modality, that fool the model wherever the attack succeeds.

        Inputs whose logits are not finite count as fooling the model: it has no answer to them. Clean inputs with such
        logits leave nothing to attack, and the call refuses them; callbacks count such samples as wrong and attack the
        others.

        Perturbed inputs have the precision of the model's parameters and are on its device; a modality that is not
        attacked is the same tensor object as before. The model, ``inputs`` and the global random state are left as they
        were.

        Args:
            model: a module, or any function from inputs by name to logits. Modules that a function calls must be in
                evaluation mode already: they cannot be reached from here.
            inputs: one tensor per modality, ``(B, ...)``.
            target: true class of each sample, ``(B,)``, which the attack leads away from; or its labels, ``(B, K)`` of
                bools or integers, of which the attack flips any one.

        Raises:
            ValueError: if the settings do not fit the inputs, or inputs or the logits of clean inputs are not finite.
            TypeError: if a modality that is to be perturbed holds integers.
            RuntimeError: if the model detaches its logits from an attacked modality and the attack needs gradients.
        """

    def logits(self, model: Model, inputs: Inputs, target: Tensor) -> Tensor:
        """Logits of the model under the attack, ``(B, K)``, in evaluation mode and without autocast.

        By default these are its logits for the perturbed inputs. An attack that does not act on inputs overrides this:
        :class:`~lightning_crmt.attacks.MissingModality` may leave a modality out of the fusion.
        """
        return public_logits(model, self(model, inputs, target))

    def succeeds(self, logits: Tensor, target: Tensor) -> Tensor:
        """Where these logits ``(B, K)`` mean success, ``(B,)``: the prediction is wrong, or they are not finite.

        >>> from lightning_crmt.attacks import MissingModality
        >>> MissingModality().succeeds(torch.eye(3), torch.tensor([0, 0, 2]))
        tensor([False,  True, False])
        """
        return broken(logits, target)


class BudgetedAttack(Attack):
    """An attack within a budget, or one that measures distances in units of a budget.

    Subclasses are dataclasses; each declares as fields those of the settings below that it uses.

    Attributes:
        budget: the allowed perturbations.
        steps: number of steps, at least ``least_steps``.
        restarts: number of starts.
        loss: the loss to maximise, see :class:`~lightning_crmt.attacks.search.loss.Objective`.
        targeted: raise the logit of each wrong class in turn, ``K - 1`` times the cost; or flip each label in turn.
        classes: how many wrong classes to aim at, largest logits first; all by default.
        towards: a class, or one per sample ``(B,)``, that the attack leads towards. It succeeds where the model answers
            that class and is wrong; samples of that class are left alone. Where targets are labels, the label to flip.
            None for any wrong class, or any label.
        step_size: in units of the budget's radius.
        seed: of every random draw.

    Raises:
        TypeError: if ``budget`` is not a ``Budget``, or ``towards`` neither a class nor a tensor.
        ValueError: if a setting is out of range, or settings exclude each other.

    >>> from lightning_crmt.attacks import PGD
    >>> attack = PGD(Budget(torch.tensor([0.1, 0.2])), towards=torch.tensor([3, 5]))  # one for each of two samples
    >>> second = attack.scaled(2.0).select(torch.tensor([1]))
    >>> second.budget, second.towards
    (Budget(tensor([0.4000])), tensor([5]))
    """

    budget: Budget
    steps: int = 1
    restarts: int = 1
    loss: Loss = "margin"
    targeted: bool = False
    classes: int | None = None
    towards: Classes | None = None
    step_size: float | None = None
    seed: int = 0
    least_steps: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not isinstance(self.budget, Budget):
            raise TypeError(f"`budget` must be a Budget, as in {type(self).__name__}(Budget(0.1)), got {self.budget!r}")
        check_at_least(self.least_steps, steps=self.steps)
        check_at_least(1, restarts=self.restarts, classes=self.classes)
        if self.loss not in ("margin", "ce", "dlr"):
            raise ValueError(f"`loss` must be 'margin', 'ce' or 'dlr', got {self.loss!r}")
        if self.targeted and self.loss == "ce":
            raise ValueError("`targeted` needs loss='margin' or 'dlr', got 'ce'")
        check_positive(step_size=self.step_size)
        if self.towards is None:
            return
        if isinstance(self.towards, bool) or not isinstance(self.towards, int | Tensor):
            raise TypeError(f"`towards` must be a class or a tensor with one per sample, got {describe(self.towards)}")
        if self.targeted or self.classes is not None:
            raise ValueError(f"`towards` is the class to aim at: leave out `targeted` and `classes`, got {self}")
        check_at_least(0, towards=int(torch.as_tensor(self.towards).min()))

    def scaled(self, factor: Radius) -> Self:
        """The same attack with all radii multiplied by ``factor``, a number or one per sample."""
        other = copy.copy(self)
        other.budget = self.budget.scaled(factor)
        return other

    def select(self, rows: Tensor) -> Self:
        """The same attack on some of the samples: radii and classes given per sample are those of ``rows``."""
        other = copy.copy(self)
        other.budget, other.towards = self.budget.select(rows), select(self.towards, rows)
        return other

    @override
    def succeeds(self, logits: Tensor, target: Tensor) -> Tensor:
        return broken(logits, target, self.towards)


class FixedBudget(BudgetedAttack):
    """A search for any input within the budget that fools the model; subclasses say how.

    Attributes:
        random_start: begin the first start at random within the budget too, rather than at the clean input.
    """

    random_start: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classes is not None and not self.targeted:
            raise ValueError(f"`classes` needs targeted=True, got classes={self.classes} without")

    @override
    def __call__(self, model: Model, inputs: Inputs, target: Tensor) -> dict[str, Tensor]:
        """Perturbed inputs within the budget: the first that fools the model, else the one that came nearest to it."""
        with under_attack(model, inputs, target, self.budget, self.towards) as attacked:
            worst = WorstCase(attacked)
            generator = torch.Generator().manual_seed(self.seed)
            objectives = attacked.objectives(self.loss, self.targeted, self.classes)
            for restart in range(self.restarts):
                clean = restart == 0 and not self.random_start
                begin = self.budget.random(attacked.inputs, generator, factor=0.0 if clean else 1.0)
                for objective in objectives:
                    rows = worst.rows()
                    if len(rows) > 0:
                        start = Start(attacked, objective, begin, generator).select(rows)
                        worst.take(rows, start.attacked, self._search(start))
            return {**inputs, **worst.inputs}

    @abstractmethod
    def _search(self, start: Start) -> dict[str, Tensor]:
        """Perturbed inputs, which fool the model wherever the search succeeds."""
