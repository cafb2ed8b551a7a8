# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""An attack from foolbox, to check our own attacks against; it needs the extra ``attacks``."""

# No postponed annotations: on Python 3.10 jsonargparse cannot read KW_ONLY from them.
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor
from typing_extensions import override

from lightning_crmt.attacks.external.one_vector import handed_over, load, require_ball
from lightning_crmt.attacks.minimum_norm import Adversarial, MinimumNormAttack
from lightning_crmt.attacks.search.attacked_model import Model
from lightning_crmt.attacks.search.worst_case import Nearest
from lightning_crmt.attacks.threat.budget import Budget
from lightning_crmt.checks import check_at_least
from lightning_crmt.modality import Inputs


@dataclass(eq=False)
class FoolboxDDN(MinimumNormAttack):
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
        ModuleNotFoundError: without ``pip install "lightning_crmt[attacks]"``.
        ValueError: if the budget is not one l2 ball.

    >>> FoolboxDDN(Budget(0.2)).search(model, inputs, target).factor  # doctest: +SKIP
    """

    budget: Budget
    _: KW_ONLY
    steps: int = 300
    target_classes: int = 9
    gamma: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(0, target_classes=self.target_classes)
        if not 0 < self.gamma < 1:
            raise ValueError(f"`gamma` must be between 0 and 1, got {self.gamma}")
        require_ball(self.budget, ("l2",))
        load("foolbox")

    @override
    def search(self, model: Model, inputs: Inputs, target: Tensor) -> Adversarial:
        """Perturbed inputs and the factors of the budget they need; everything else is left as it was."""
        with handed_over(model, inputs, target, self.budget) as view:
            foolbox, attacked, device = load("foolbox"), view.attacked, view.origin.device
            shown = foolbox.PyTorchModel(view, bounds=(-torch.inf, torch.inf), device=device)
            library = foolbox.attacks.DDNAttack(init_epsilon=1.0, steps=self.steps, gamma=self.gamma)
            aims = [foolbox.criteria.TargetedMisclassification(rival) for rival in attacked.rivals()]
            best = Nearest(attacked)
            for aim in [foolbox.criteria.Misclassification(attacked.target), *aims[: self.target_classes]]:
                delta = view.perturbation(library.run(shown, view.origin, aim))
                moved = self.budget.apply(delta, attacked.inputs)
                best.take(moved, attacked.fooled(attacked.logits(moved)))
            return Adversarial({**inputs, **best.inputs}, best.factor)
