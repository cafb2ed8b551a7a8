# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""AutoAttack as its authors wrote it, to check our own attacks against; it needs the extra ``attacks``."""

# No postponed annotations: on Python 3.10 jsonargparse cannot read KW_ONLY from them.
import logging
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_crmt.attacks.attack import BudgetedAttack
from lightning_crmt.attacks.external.one_vector import OneVectorModel, handed_over, load, require_ball
from lightning_crmt.attacks.search.attacked_model import Model
from lightning_crmt.attacks.search.worst_case import Nearest
from lightning_crmt.attacks.threat.budget import Budget
from lightning_crmt.checks import check_at_least
from lightning_crmt.modality import Inputs

#: The searches of AutoAttack that follow gradients; its random search needs the shape of an image.
Search: TypeAlias = Literal["apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t"]

#: Fewest classes that a search can handle: the denominators of some losses are differences of that many logits.
_CLASSES = {"apgd-ce": 2, "apgd-dlr": 3, "apgd-t": 4, "fab": 2, "fab-t": 2}

# The library's messages go to this logger, which is silent by default.
_log = logging.getLogger(__name__)
_log.addHandler(logging.NullHandler())


@dataclass(eq=False)
class AutoAttack(BudgetedAttack):
    r"""AutoAttack by its authors (Croce and Hein, ICML 2020; the package pyautoattack) over several inputs.

    The attacked modalities are one vector, and the library is handed :math:`z = 1/2 + \delta / 16 r`: its box [0, 1]
    is then 8 radii away on every side and never binds, one scale for all entries keeps the joint ball a ball, and its
    single precision costs :math:`10^{-6} r` wherever the inputs lie. In l-infinity each modality may have its own
    radius. A box of the budget is kept by clamping what the model sees: every allowed input can be reached, but along
    a border the search is weaker than one that knows of it. We project and judge its results ourselves.

    Args:
        budget: what a perturbation may be: l2 with one radius, or l-infinity; radii may differ by sample.
        attacks: run in this order, each on the samples that the earlier ones did not fool.
        steps: number of steps of each attack.
        target_classes: how many wrong classes the targeted attacks aim at, largest logits first.
        seed: of random starts.

    Raises:
        ModuleNotFoundError: without ``pip install "lightning_crmt[attacks]"``.
        ValueError: if the budget is a product of l2 balls, or an attack is unknown.

    >>> attack = AutoAttack(Budget(0.2))  # doctest: +SKIP
    >>> attacked = attack(model, inputs, target)  # doctest: +SKIP
    """

    budget: Budget
    _: KW_ONLY
    attacks: Sequence[Search] = ("apgd-ce", "apgd-t", "fab-t")
    steps: int = 100
    target_classes: int = 9
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.attacks or any(name not in _CLASSES for name in self.attacks):
            raise ValueError(f"`attacks` must be some of {list(_CLASSES)}, got {list(self.attacks)}")
        check_at_least(1, target_classes=self.target_classes)
        require_ball(self.budget, ("l2", "linf"))
        load("pyautoattack")

    @override
    def __call__(self, model: Model, inputs: Inputs, target: Tensor) -> dict[str, Tensor]:
        """Perturbed inputs where the library fooled the model within the budget; elsewhere the clean inputs."""
        with handed_over(model, inputs, target, self.budget) as view:
            attacked, numbered = view.attacked, Numbered(view)
            num_classes = attacked.clean_logits.shape[1]
            needed = {name: _CLASSES[name] for name in self.attacks if num_classes < _CLASSES[name]}
            if needed:
                raise ValueError(f"`attacks` need at least {needed} classes, the model has {num_classes}")
            library = self._library(numbered, num_classes)
            points, _ = library.run_standard_evaluation(numbered.clean, attacked.target, batch_size=len(numbered.clean))
            delta = self.budget.project(view.perturbation(numbered.displacement(points)), attacked.inputs)
            moved = self.budget.apply(delta, attacked.inputs)
            best = Nearest(attacked)
            best.take(moved, attacked.fooled(attacked.logits(moved)))
            return {**inputs, **best.inputs}

    def _library(self, numbered: "Numbered", num_classes: int) -> Any:
        library = load("pyautoattack").AutoAttack(
            numbered,
            norm="L2" if self.budget.norm == "l2" else "Linf",
            eps=numbered.radius,
            version="custom",
            attacks=list(self.attacks),
            device=numbered.clean.device,
            seed=self.seed,
        )
        # As in its standard version, but never more target classes than there are: there it fails.
        targets = min(self.target_classes, num_classes - 1)
        for search in (library.apgd, library.apgd_targeted, library.fab):
            search.n_restarts, search.n_target_classes, search.logger = 1, targets, _log
            search.n_iter = self.steps
        library.logger = _log
        return library


class Numbered(nn.Module):
    """For a library that works in single precision within the box [0, 1], and drops and reorders samples.

    The clean input is the middle of the box, one radius is ``1 / 16``. More entries at the end, each 0 or 1, are the
    binary digits of the sample number: one radius is too small to change them, and they influence nothing else.
    """

    radius = 1 / 16

    def __init__(self, view: OneVectorModel) -> None:
        super().__init__()
        self.view = view
        self.eval()
        size, device = len(view.origin), view.origin.device
        self._weights = 2 ** torch.arange(max(1, (size - 1).bit_length()), device=device)
        digits = (torch.arange(size, device=device)[:, None] & self._weights) > 0
        self.clean = torch.cat([(view.origin + 0.5).float(), digits.float()], dim=1)

    def displacement(self, points: Tensor) -> Tensor:
        """Back to units of the budget's radius."""
        return (points[:, : -len(self._weights)] - 0.5) / self.radius  # exact: close to 0.5, and a power of 2

    def forward(self, points: Tensor) -> Tensor:
        """Logits ``(n, K)`` of points in the box ``(n, D + digits)``."""
        rows = ((points[:, -len(self._weights) :].detach() > 0.5) * self._weights).sum(dim=1)
        logits: Tensor = self.view(self.displacement(points), rows)
        return logits
