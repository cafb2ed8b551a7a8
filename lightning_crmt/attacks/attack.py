# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What every attack is: settings, and a pure function of model, inputs and target."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from typing_extensions import Self

from lightning_crmt.attacks.search.attacked_model import Model, as_taken_by, holder_of
from lightning_crmt.attacks.threat.budget import Budget
from lightning_crmt.attacks.threat.radius import Radius
from lightning_crmt.frozen_eval import frozen_eval
from lightning_crmt.modality import Inputs, logits_of


class Attack(ABC):
    """Settings only; nothing of a model or of data stays in it.

    Attributes:
        budget: what a perturbation may be; for a minimum-norm attack the unit it is measured in.
    """

    _budget: Budget

    @property
    def budget(self) -> Budget:
        """What a perturbation may be."""
        return self._budget

    @budget.setter
    def budget(self, budget: Budget) -> None:
        if not isinstance(budget, Budget):
            raise TypeError(f"`budget` must be a Budget, as in {type(self).__name__}(Budget(0.1)), got {budget!r}")
        self._budget = budget

    def __repr__(self) -> str:
        settings = {name.removeprefix("_"): value for name, value in vars(self).items()}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in settings.items())})"

    @abstractmethod
    def __call__(self, model: Model, inputs: Inputs, target: Tensor) -> dict[str, Tensor]:
        """Perturbed inputs that fool the model where such were found, within the budget.

        In the precision of the model's parameters, and on its device; a modality that is not attacked is the very
        tensor that was given. The model, ``inputs`` and the global random state are left as they were.

        Args:
            model: a module, or anything from inputs by name to logits; what a function calls cannot be put in
                evaluation mode from here, so put it there before.
            inputs: one tensor per modality.
            target: class of each sample, ``(B,)``, that the attack leads away from.

        Raises:
            ValueError: if the budget does not fit the inputs, or inputs or logits are not finite.
            TypeError: if a modality that is to be perturbed holds integers.
            RuntimeError: if the model detaches its logits from an attacked modality and the attack needs gradients.
        """

    def logits(self, model: Model, inputs: Inputs, target: Tensor) -> Tensor:
        """What the model answers under the attack, ``(B, K)``, in evaluation mode and without autocast.

        By default its logits for the perturbed inputs. An attack on something else than inputs says here what it does:
        :class:`~lightning_crmt.attacks.MissingModality` may leave a modality out of the fusion.
        """
        perturbed = self(model, inputs, target)
        with frozen_eval(holder_of(model)), torch.no_grad():
            return logits_of(model(as_taken_by(model, perturbed)))

    def scaled(self, factor: Radius) -> Self:
        """The same attack with all radii multiplied by ``factor``, a number or one per sample."""
        other = copy.copy(self)
        other.budget = self.budget.scaled(factor)
        return other

    def select(self, rows: Tensor) -> Self:
        """The same attack on some of the samples: radii given per sample are those of ``rows``."""
        other = copy.copy(self)
        other.budget = self.budget.select(rows)
        return other
