# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""One step along the gradient."""

# No postponed annotations: on Python 3.10 jsonargparse cannot read KW_ONLY from them.
from dataclasses import KW_ONLY, dataclass

from torch import Tensor
from typing_extensions import override

from lightning_crmt.attacks.attack import FixedBudget
from lightning_crmt.attacks.search.ascent import Start
from lightning_crmt.attacks.search.attacked_model import Classes
from lightning_crmt.attacks.search.loss import Loss
from lightning_crmt.attacks.threat.budget import Budget


@dataclass(eq=False)
class FGM(FixedBudget):
    r"""The fast gradient method (after Goodfellow et al., ICLR 2015) over several inputs.

    One step from the clean input, as far as the budget goes:
    :math:`\delta = \arg\max_\delta \langle \nabla L(x), \delta \rangle`; in l2 along the gradient, in l-infinity along
    its sign. Exact on linear models, the weakest of all attacks on others.

    Args:
        budget: the allowed perturbations.
        loss: the loss to maximise: ``"ce"``, ``"margin"`` or ``"dlr"``.
        targeted: a step towards each wrong class in turn; needs another loss than ``"ce"``.
        classes: with ``targeted``, how many wrong classes to aim at, largest logits first; all by default.
        towards: a class, or one per sample ``(B,)``, to aim for; any wrong class by default.

    Raises:
        ValueError: for settings out of range; on call, if the model has too few classes for ``"dlr"``.

    >>> import torch
    >>> from lightning_crmt import LinearFusion
    >>> head = LinearFusion({"audio": 4}, num_classes=2)
    >>> x = {"audio": torch.randn(5, 4)}
    >>> moved = FGM(Budget(0.1))(head, x, head(x).logits.argmax(1))
    >>> torch.allclose((moved["audio"] - x["audio"]).norm(dim=1), torch.tensor(0.1))
    True
    """

    budget: Budget
    _: KW_ONLY
    loss: Loss = "ce"
    targeted: bool = False
    classes: int | None = None
    towards: Classes | None = None

    @override
    def _search(self, start: Start) -> dict[str, Tensor]:
        attacked, budget, inputs = start.attacked, start.attacked.budget, start.attacked.inputs
        return budget.apply(budget.steepest(attacked.gradient(inputs, start.objective)[2], inputs), inputs)
