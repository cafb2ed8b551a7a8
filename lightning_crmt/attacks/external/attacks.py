# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Attacks of other libraries on several inputs, to check our own by: the extra ``attacks``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from typing_extensions import override

from lightning_crmt.attacks.attack import Attack
from lightning_crmt.attacks.external.bridge import InOrder, Numbered, handed_over, load, require_ball
from lightning_crmt.attacks.minimum_norm import Adversarial
from lightning_crmt.attacks.search.attacked_model import Model
from lightning_crmt.attacks.threat.budget import Budget
from lightning_crmt.attacks.threat.geometry import choose
from lightning_crmt.modality import Inputs

#: The searches of AutoAttack that follow gradients; its random search needs the shape of an image.
Search: TypeAlias = Literal["apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t"]

#: Fewest classes that a search can handle: the denominators of some losses are differences of so many logits.
_CLASSES = {"apgd-ce": 2, "apgd-dlr": 3, "apgd-t": 4, "fab": 2, "fab-t": 2}

# What the library has to say goes to whoever listens, and nowhere by default.
_log = logging.getLogger(__name__)
_log.addHandler(logging.NullHandler())


class AutoAttack(Attack):
    r"""AutoAttack by its authors (Croce and Hein, ICML 2020; the package pyautoattack) over several inputs.

    The attacked modalities are one vector, and the library is handed :math:`z = 1/2 + \delta / 16 r`: its box [0, 1]
    is then 8 radii away on every side and never binds, one scale for all entries keeps the joint ball a ball, and its
    single precision costs :math:`10^{-6} r` wherever the inputs lie. In l-infinity each modality may have its own
    radius. A box of the budget is kept by clamping what the model sees: every allowed input can be reached, but along
    a border the search is less able than one that knows it. What is found is projected and judged by us.

    Args:
        budget: what a perturbation may be: l2 with one radius, or l-infinity; radii may differ by sample.
        attacks: in this order; the later ones get what the earlier left.
        steps: of each.
        target_classes: of the targeted ones; the wrong classes with the largest logits, all if there are fewer.
        seed: of random starts.

    Raises:
        ModuleNotFoundError: without ``pip install 'lightning_crmt[attacks]'``.
        ValueError: if the budget is a product of l2 balls, or an attack is unknown.

    >>> attack = AutoAttack(Budget(0.2))  # doctest: +SKIP
    >>> attacked = attack(model, inputs, target)  # doctest: +SKIP
    """

    def __init__(
        self,
        budget: Budget,
        attacks: Sequence[Search] = ("apgd-ce", "apgd-t", "fab-t"),
        steps: int = 100,
        target_classes: int = 9,
        seed: int = 0,
    ) -> None:
        if not attacks or any(name not in _CLASSES for name in attacks):
            raise ValueError(f"`attacks` must be some of {list(_CLASSES)}, got {list(attacks)}")
        for name, value in {"steps": steps, "target_classes": target_classes}.items():
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}")
        require_ball(budget, ("l2", "linf"))
        load("pyautoattack")
        self.budget = budget
        self.attacks = list(attacks)
        self.steps = steps
        self.target_classes = target_classes
        self.seed = seed

    @override
    def __call__(self, model: Model, inputs: Inputs, target: Tensor) -> dict[str, Tensor]:
        """Perturbed inputs that fool the model where the library found one within the budget; else the clean ones."""
        with handed_over(model, inputs, target, self.budget) as problem:
            oracle, view = problem.oracle, Numbered(problem)
            num_classes = oracle.clean_logits.shape[1]
            needed = {name: _CLASSES[name] for name in self.attacks if num_classes < _CLASSES[name]}
            if needed:
                raise ValueError(f"`attacks` need at least {needed} classes, the model has {num_classes}")
            library = self._library(view, num_classes)
            found, _ = library.run_standard_evaluation(view.clean, oracle.target, batch_size=len(view.clean))
            delta = self.budget.project(problem.perturbation(view.displacement(found)), oracle.inputs)
            best, _ = problem.confirm(delta)
            return {name: best.get(name, value) for name, value in inputs.items()}

    def _library(self, view: Numbered, num_classes: int) -> Any:
        library = load("pyautoattack").AutoAttack(
            view,
            norm={"l2": "L2", "linf": "Linf"}[self.budget.norm],
            eps=view.radius,
            version="custom",
            attacks=self.attacks,
            device=view.clean.device,
            seed=self.seed,
        )
        # As in its standard version, but never more target classes than there are: there it fails.
        targets = min(self.target_classes, num_classes - 1)
        for search in (library.apgd, library.apgd_targeted, library.fab):
            search.n_restarts, search.n_target_classes, search.logger = 1, targets, _log
            search.n_iter = self.steps
        library.logger = _log
        return library


class FoolboxDDN(Attack):
    """Decoupled direction and norm (Rony et al., CVPR 2019; the package foolbox) over several inputs.

    A minimum-norm attack in l2, run once away from the target and once towards each wrong class; the best counts, for
    the first alone may miss the nearest boundary by far. It begins at the radius of the budget and steps by it, so that
    should be of the order of the distances. A box is kept by clamping what the model sees.

    Args:
        budget: the joint ball, or that of one modality; the unit of the distances.
        steps: gradient steps of each run.
        target_classes: the wrong classes aimed at, those with the largest logits, all if there are fewer; may be 0.
        gamma: by this share the ball shrinks or grows in a step.

    Raises:
        ModuleNotFoundError: without ``pip install 'lightning_crmt[attacks]'``.
        ValueError: if the budget is not one l2 ball.

    >>> FoolboxDDN(Budget(0.2)).search(model, inputs, target).factor  # doctest: +SKIP
    """

    def __init__(self, budget: Budget, steps: int = 300, target_classes: int = 9, gamma: float = 0.05) -> None:
        if steps < 1:
            raise ValueError(f"`steps` must be at least 1, got {steps}")
        if target_classes < 0:
            raise ValueError(f"`target_classes` must be at least 0, got {target_classes}")
        if not 0 < gamma < 1:
            raise ValueError(f"`gamma` must be between 0 and 1, got {gamma}")
        require_ball(budget, ("l2",))
        load("foolbox")
        self.budget = budget
        self.steps = steps
        self.target_classes = target_classes
        self.gamma = gamma

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
        """
        with handed_over(model, inputs, target, self.budget) as problem:
            foolbox, oracle, device = load("foolbox"), problem.oracle, problem.origin.device
            view = foolbox.PyTorchModel(InOrder(problem), bounds=(-torch.inf, torch.inf), device=device)
            library = foolbox.attacks.DDNAttack(init_epsilon=1.0, steps=self.steps, gamma=self.gamma)
            aims = [foolbox.criteria.TargetedMisclassification(rival) for rival in oracle.rivals()]
            best = {name: oracle.inputs[name] for name in oracle.attacked}
            factor = torch.full((len(oracle.target),), torch.inf, dtype=torch.float64, device=device)
            for aim in [foolbox.criteria.Misclassification(oracle.target), *aims[: self.target_classes]]:
                found, fooled = problem.confirm(problem.perturbation(library.run(view, problem.origin, aim)))
                size = self.budget.size(self.budget.difference({**oracle.inputs, **found}, oracle.inputs))
                better = fooled & (size < factor)
                best = {name: choose(better, found[name], old) for name, old in best.items()}
                factor = torch.where(better, size, factor)
            return Adversarial({name: best.get(name, value) for name, value in inputs.items()}, factor)
