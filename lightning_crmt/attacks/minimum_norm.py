# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The smallest perturbation that fools a model."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from lightning_crmt.attacks.attack import Attack
from lightning_crmt.attacks.fixed_budget import at_least_one
from lightning_crmt.attacks.search.attacked_model import AttackedModel, Model, under_attack
from lightning_crmt.attacks.search.loss import rival_margin
from lightning_crmt.attacks.threat.budget import Budget
from lightning_crmt.attacks.threat.geometry import Perturbation, choose, dot, times
from lightning_crmt.modality import Inputs

#: A factor of any budget that nothing needs, and that single precision holds.
_FAR = 1e15


class Adversarial(NamedTuple):
    """What a minimum-norm search found.

    Attributes:
        inputs: perturbed inputs by modality; the clean ones where nothing was found.
        factor: size of the perturbation in units of the budget, ``(B,)``, float64, measured on ``inputs``: 0 where the
            clean input is misclassified already, infinite where nothing was found.
    """

    inputs: dict[str, Tensor]
    factor: Tensor


class MinimumNorm(Attack):
    r"""The smallest multiple of a budget that holds an input which fools the model (after Pintor et al., FMN, 2021).

    :math:`\min t` such that some :math:`\delta` in :math:`t` times the budget changes the prediction. With
    ``Budget(1.0)`` the factor is the joint l2 distance, with ``Budget(1.0, modalities=["audio"])`` that of audio alone,
    with ``Budget({"audio": 0.1, "image": 0.3})`` the common factor of both radii. Every wrong class is aimed at in turn
    by a walk along its boundary; the best is moved to where the boundary, taken as flat, is nearest, and back towards
    the clean input by bisection. An upper bound of the true distance.

    Args:
        budget: the shape of the perturbation.
        steps: gradient steps for each class and start.
        restarts: number of starts; all but the first are random, as far away as what was found before.
        classes: aim at so many classes with the largest logits; all by default.
        seed: of the random starts.

    >>> import torch
    >>> from lightning_crmt import LinearFusion
    >>> head = LinearFusion({"audio": 4}, num_classes=2).double()
    >>> x = {"audio": torch.randn(5, 4, dtype=torch.double)}
    >>> logits, W = head(x).logits, head.class_weights["audio"]
    >>> exact = (logits[:, 0] - logits[:, 1]).abs() / (W[0] - W[1]).norm()
    >>> found = MinimumNorm(Budget(1.0)).search(head, x, logits.argmax(1)).factor
    >>> torch.allclose(found, exact, rtol=1e-4)
    True
    """

    def __init__(
        self, budget: Budget, steps: int = 40, restarts: int = 2, classes: int | None = None, seed: int = 0
    ) -> None:
        at_least_one(steps=steps, restarts=restarts, classes=classes)
        self.budget = budget
        self.steps = steps
        self.restarts = restarts
        self.classes = classes
        self.seed = seed

    @override
    def __call__(self, model: Model, inputs: Inputs, target: Tensor) -> dict[str, Tensor]:
        """The perturbed inputs of :meth:`search`."""
        return self.search(model, inputs, target).inputs

    def search(self, model: Model, inputs: Inputs, target: Tensor) -> Adversarial:
        """Perturbed inputs and the factors of the budget they need; everything else is left as it was.

        Args:
            model: a module, or anything from inputs by name to logits.
            inputs: one tensor per modality.
            target: class of each sample, ``(B,)``, that the attack leads away from.

        Raises:
            ValueError: if the budget does not fit the inputs, or inputs or logits are not finite.
            TypeError: if a modality that is to be perturbed holds integers.
            RuntimeError: if the model detaches its logits from an attacked modality.
        """
        with under_attack(model, inputs, target, self.budget) as oracle:
            best = _Best(oracle, self.budget)
            generator = torch.Generator().manual_seed(self.seed)
            for start in range(self.restarts):
                # Around as far away as what was found: the budget's own size may be far from it.
                around = best.factor.where(best.factor.isfinite(), 1.0)
                begin = self.budget.random(oracle.inputs, generator, factor=0.0 if start == 0 else around)
                for rival in oracle.rivals()[: self.classes]:
                    self._approach(oracle, begin, rival, best)
            for _ in range(2):
                self._bisect(oracle, best, 12)
                self._polish(oracle, best, 20)
            self._bisect(oracle, best, 20)
            return Adversarial({name: best.inputs.get(name, value) for name, value in inputs.items()}, best.factor)

    def _approach(self, oracle: AttackedModel, delta: Perturbation, rival: Tensor, best: _Best) -> None:
        """Ascent along the boundary to ``rival``: shrink the ball while fooled, grow it while not."""
        loss = rival_margin(oracle.target, rival)
        radius = torch.full_like(best.factor, _FAR)  # of the ball that is searched now, as a factor of the budget
        reached = torch.zeros_like(radius, dtype=torch.bool)
        for step in range(self.steps):
            moved = self.budget.apply(delta, oracle.inputs)
            logits, margin, gradient = oracle.gradient(moved, loss)
            fooled, size = oracle.fooled(logits), self.budget.size(delta)
            best.take(moved, fooled)
            share = 0.5 * (1 + math.cos(step / self.steps * math.pi))
            change = 0.005 + 0.05 * share
            ahead, slope = self.budget.steepest(gradient, oracle.inputs)
            # Not there yet: to first order the boundary is this much further.
            missing = (-margin).clamp(min=0) / slope.clamp(min=1e-30)
            grown = torch.where(reached, radius * (1 + change), size + missing)
            radius = torch.where(fooled, torch.minimum(radius, size) * (1 - change), grown).clamp(max=_FAR)
            reached = reached | fooled
            stride = torch.where(reached, radius * (0.02 + 0.5 * share), torch.maximum(radius, missing))
            delta = {name: d + times(ahead[name], stride) for name, d in delta.items()}
            delta = self.budget.project(delta, oracle.inputs, radius)
        moved = self.budget.apply(delta, oracle.inputs)
        best.take(moved, oracle.fooled(oracle.logits(moved)))

    def _polish(self, oracle: AttackedModel, best: _Best, steps: int) -> None:
        """From the best so far, jump to where the boundary, taken as flat, is nearest to the clean input."""
        delta = self.budget.difference(best.moved(), oracle.inputs)
        rival = oracle.logits(best.moved()).scatter(1, oracle.target[:, None], -torch.inf).argmax(dim=1)
        loss = rival_margin(oracle.target, rival)
        for step in range(steps):
            moved = self.budget.apply(delta, oracle.inputs)
            logits, margin, gradient = oracle.gradient(moved, loss)
            best.take(moved, oracle.fooled(logits))
            nearest = self._nearest(gradient, dot(gradient, delta) - margin, oracle.inputs)
            share = max(0.1, 0.5 * (1 - step / steps))
            delta = {name: d + share * (1.002 * nearest[name] - d) for name, d in delta.items()}
            delta = self.budget.project(delta, oracle.inputs, 1.5 * best.factor.clamp(max=_FAR))

    def _nearest(self, gradient: Perturbation, needed: Tensor, inputs: Inputs) -> Perturbation:
        """The smallest perturbation along which a loss with this gradient grows by ``needed`` to first order."""
        factor = torch.ones_like(needed)
        for _ in range(8 if self.budget.box else 1):
            _, gain = self.budget.steepest(gradient, inputs, factor)
            factor = (factor * needed.clamp(min=0) / gain.clamp(min=1e-300)).clamp(max=_FAR)
        return self.budget.steepest(gradient, inputs, factor)[0]

    def _bisect(self, oracle: AttackedModel, best: _Best, steps: int) -> None:
        """Move what was found towards the clean input until just before the prediction returns."""
        # What counts is what is stored, under the public forward: the logits that led here came with a graph.
        best.confirm(oracle.fooled(oracle.logits(best.moved())))
        whole = self.budget.difference(best.moved(), oracle.inputs)
        low, high = torch.zeros_like(best.factor), torch.ones_like(best.factor)
        for _ in range(steps):
            middle = (low + high) / 2
            moved = self.budget.apply({name: times(d, middle) for name, d in whole.items()}, oracle.inputs)
            fooled = oracle.fooled(oracle.logits(moved))
            best.take(moved, fooled)
            high, low = torch.where(fooled, middle, high), torch.where(fooled, low, middle)


class _Best:
    """The smallest perturbations found so far, as stored, and their sizes, measured on what is stored."""

    def __init__(self, oracle: AttackedModel, budget: Budget) -> None:
        self.budget = budget
        self.clean = oracle.inputs
        self.inputs = {name: oracle.inputs[name] for name in oracle.attacked}
        self.factor = torch.where(oracle.fooled(oracle.clean_logits), 0.0, torch.inf).double()

    def moved(self) -> dict[str, Tensor]:
        return {**self.clean, **self.inputs}

    def take(self, moved: Inputs, fooled: Tensor) -> None:
        size = self.budget.size(self.budget.difference(moved, self.clean))
        better = fooled & (size < self.factor)
        self.inputs = {name: choose(better, moved[name], old) for name, old in self.inputs.items()}
        self.factor = torch.where(better, size, self.factor)

    def confirm(self, fooled: Tensor) -> None:
        self.inputs = {name: choose(fooled, value, self.clean[name]) for name, value in self.inputs.items()}
        self.factor = torch.where(fooled, self.factor, torch.inf)
