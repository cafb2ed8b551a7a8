# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The smallest perturbation that fools a model."""

# No postponed annotations: on Python 3.10 jsonargparse cannot read KW_ONLY from them.
import math
from abc import abstractmethod
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from lightning_crmt.attacks.attack import BudgetedAttack
from lightning_crmt.attacks.search.attacked_model import AttackedModel, Classes, Model, under_attack
from lightning_crmt.attacks.search.loss import Objective
from lightning_crmt.attacks.search.worst_case import Nearest
from lightning_crmt.attacks.threat.budget import Budget
from lightning_crmt.attacks.threat.per_sample import Perturbation, dot, smallest, times
from lightning_crmt.modality import Inputs

#: A factor larger than any budget needs, which single precision can hold.
_FAR = 1e15


class Adversarial(NamedTuple):
    """The result of a minimum-norm search.

    Attributes:
        inputs: perturbed inputs by modality; the clean ones where the search failed.
        factor: size of the perturbation in units of the budget, ``(B,)``, float64, measured on ``inputs``: 0 where the
            clean input is misclassified already, infinite where the search failed.

    >>> x, y = {"audio": torch.tensor([[2.0, 0.0], [0.0, 1.0]])}, torch.tensor([0, 0])
    >>> found = MinimumNorm(Budget(0.5)).search(lambda inputs: inputs["audio"], x, y)
    >>> found.factor  # a boundary at 1.4142, in units of 0.5; the second sample is wrong already
    tensor([2.8284, 0.0000], dtype=torch.float64)
    """

    inputs: dict[str, Tensor]
    factor: Tensor


class MinimumNormAttack(BudgetedAttack):
    """An attack that searches for the smallest multiple of its budget that holds an input which fools the model."""

    @abstractmethod
    def search(self, model: Model, inputs: Inputs, target: Tensor) -> Adversarial:
        """Perturbed inputs and the factors of the budget they need; everything else is left as it was.

        Args:
            model: a module, or any function from inputs by name to logits.
            inputs: one tensor per modality, ``(B, ...)``.
            target: class of each sample, ``(B,)``, that the attack leads away from; or its labels ``(B, K)``.

        Raises:
            ValueError: if the budget does not fit the inputs, or inputs or the logits of clean inputs are not finite.
            TypeError: if a modality that is to be perturbed holds integers.
            RuntimeError: if the model detaches its logits from an attacked modality.
        """

    @override
    def __call__(self, model: Model, inputs: Inputs, target: Tensor) -> dict[str, Tensor]:
        """The perturbed inputs of :meth:`search`."""
        return self.search(model, inputs, target).inputs


@dataclass(eq=False)
class MinimumNorm(MinimumNormAttack):
    r"""The smallest multiple of a budget that holds an input which fools the model (after Pintor et al., FMN, 2021).

    :math:`\min t` such that some :math:`\delta` in :math:`t` times the budget changes the prediction. With
    ``Budget(1.0)`` the factor is the joint l2 distance, with ``Budget(1.0, modalities=["audio"])`` that of audio alone,
    with ``Budget({"audio": 0.1, "image": 0.3})`` the common factor of both radii. Every wrong class is aimed at in turn
    by a walk along its boundary; the best is moved to where the boundary, taken as flat, is nearest, and back towards
    the clean input by bisection. An upper bound of the true distance.

    Args:
        budget: the shape of the perturbation.
        steps: gradient steps for each class and start.
        restarts: number of starts; all but the first are random, at the distance of the best input so far.
        classes: how many wrong classes to aim at, largest logits first; all by default.
        towards: a class, or one per sample ``(B,)``, to aim for; any wrong class by default.
        seed: of the random starts.

    Raises:
        ValueError: for settings out of range.

    >>> import torch
    >>> from lightning_crmt import LinearFusion
    >>> head = LinearFusion({"audio": 4}, num_classes=2).double()
    >>> x = {"audio": torch.randn(5, 4, dtype=torch.double)}
    >>> logits, W = head(x).logits, head.class_weights["audio"]
    >>> exact = (logits[:, 0] - logits[:, 1]).abs() / (W[0] - W[1]).norm()
    >>> distance = MinimumNorm(Budget(1.0)).search(head, x, logits.argmax(1)).factor
    >>> torch.allclose(distance, exact, rtol=1e-4)
    True
    """

    budget: Budget
    _: KW_ONLY
    steps: int = 40
    restarts: int = 2
    classes: int | None = None
    towards: Classes | None = None
    seed: int = 0

    @override
    def search(self, model: Model, inputs: Inputs, target: Tensor) -> Adversarial:
        """Perturbed inputs and the factors of the budget that they need."""
        with under_attack(model, inputs, target, self.budget, self.towards) as attacked:
            best = Nearest(attacked)
            generator = torch.Generator().manual_seed(self.seed)
            for start in range(self.restarts):
                # At about the distance of the best input so far, from which the budget's own size may be far.
                around = best.factor.where(best.factor.isfinite(), 1.0)
                begin = self.budget.random(attacked.inputs, generator, factor=0.0 if start == 0 else around)
                for objective in attacked.objectives("margin", targeted=True, classes=self.classes):
                    self._approach(attacked, begin, objective, best)
            for _ in range(2):
                self._bisect(attacked, best, 12)
                self._polish(attacked, best, 20)
            self._bisect(attacked, best, 20)
            return Adversarial({**inputs, **best.inputs}, best.factor)

    def _approach(self, attacked: AttackedModel, delta: Perturbation, objective: Objective, best: Nearest) -> None:
        """Ascent along a boundary: shrink the ball while fooled, grow it while not."""
        radius = torch.full_like(best.factor, _FAR)  # of the ball that is searched now, as a factor of the budget
        reached = torch.zeros_like(radius, dtype=torch.bool)
        for step in range(self.steps):
            moved, size, stored = self.budget.apply_and_measure(delta, attacked.inputs)
            logits, margin, gradient = attacked.gradient(moved, objective)
            fooled = attacked.fooled(logits)
            best.take(moved, fooled, stored)
            share = 0.5 * (1 + math.cos(step / self.steps * math.pi))
            change = 0.005 + 0.05 * share
            ahead = self.budget.steepest(gradient, attacked.inputs)
            # Not there yet: to first order the boundary is this much further.
            missing = ((-margin).clamp(min=0) / dot(ahead, gradient).clamp(min=1e-30)).clamp(max=_FAR)
            # And a little, or rounding decides where the boundary is flat whether it is reached at all.
            grown = torch.where(reached, radius * (1 + change), 1.002 * (size + missing))
            radius = torch.where(fooled, torch.minimum(radius, size) * (1 - change), grown).clamp(max=_FAR)
            reached = reached | fooled
            stride = torch.where(reached, radius * (0.02 + 0.5 * share), torch.maximum(radius, missing))
            delta = {name: d + times(ahead[name], stride) for name, d in delta.items()}
            delta = self.budget.project(delta, attacked.inputs, radius)
        moved, _, stored = self.budget.apply_and_measure(delta, attacked.inputs)
        best.take(moved, attacked.fooled(attacked.logits(moved)), stored)

    def _polish(self, attacked: AttackedModel, best: Nearest, steps: int) -> None:
        """From the best so far, jump to where the boundary, taken as flat, is nearest to the clean input."""
        delta = self.budget.difference(best.moved(), attacked.inputs)
        rival = attacked.rival(attacked.logits(best.moved()))
        objective = attacked.objective("margin", rival)
        for step in range(steps):
            moved, _, stored = self.budget.apply_and_measure(delta, attacked.inputs)
            logits, margin, gradient = attacked.gradient(moved, objective)
            best.take(moved, attacked.fooled(logits), stored)
            # Where logits are not finite there is no boundary to follow: straight back.
            needed = (dot(gradient, delta) - margin).nan_to_num(0.0, 0.0, 0.0)
            nearest = self._nearest(gradient, needed, attacked.inputs)
            share = max(0.1, 0.5 * (1 - step / steps))
            delta = {name: d + share * (1.002 * nearest[name] - d) for name, d in delta.items()}
            delta = self.budget.project(delta, attacked.inputs, 1.5 * best.factor.clamp(max=_FAR))

    def _nearest(self, gradient: Perturbation, needed: Tensor, inputs: Inputs) -> Perturbation:
        """The smallest perturbation along which a loss with this gradient grows by ``needed`` to first order."""
        factor = torch.ones_like(needed)
        for _ in range(8 if self.budget.box else 1):
            gain = dot(self.budget.steepest(gradient, inputs, factor), gradient)
            factor = (factor * needed.clamp(min=0) / gain.clamp(min=smallest(gain))).clamp(max=_FAR)
        return self.budget.steepest(gradient, inputs, factor)

    def _bisect(self, attacked: AttackedModel, best: Nearest, steps: int) -> None:
        """Move the best input towards the clean one until just before the prediction turns right again."""
        best.confirm()  # the logits that led here came with a graph
        whole = self.budget.difference(best.moved(), attacked.inputs)
        low, high = torch.zeros_like(best.factor), torch.ones_like(best.factor)
        for _ in range(steps):
            middle = (low + high) / 2
            part = {name: times(d, middle) for name, d in whole.items()}
            moved, _, stored = self.budget.apply_and_measure(part, attacked.inputs)
            fooled = attacked.fooled(attacked.logits(moved))
            best.take(moved, fooled, stored)
            high, low = torch.where(fooled, middle, high), torch.where(fooled, low, middle)
