# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What a search raises: functions of the logits that grow towards a wrong prediction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

#: Names of the losses that a search can raise.
Loss: TypeAlias = Literal["margin", "ce", "dlr"]


@dataclass(frozen=True)
class Objective:
    r"""A loss ``(B,)`` of logits ``(B, K)`` to be raised, towards any wrong class or towards given ones.

    With the target y, the rival r (the strongest wrong class, or the given one) and logits sorted as
    :math:`h_{(1)} \ge h_{(2)} \ge \dots`:

    - ``"margin"``: :math:`h_r - h_y`, above 0 where the prediction is wrong;
    - ``"ce"``: the cross-entropy of y; only without given rivals;
    - ``"dlr"``: :math:`(h_r - h_y) / (h_{(1)} - h_{(3)})`, with given rivals
      :math:`(h_r - h_y) / (h_{(1)} - (h_{(3)} + h_{(4)}) / 2)`, which does not change when the logits are scaled
      (Croce & Hein, ICML 2020).

    Args:
        loss: one of these names.
        target: right classes ``(B,)``.
        rival: wrong classes ``(B,)`` to be raised.

    >>> logits, target = torch.tensor([[3.0, 1.0, 2.0, 0.0]]), torch.tensor([0])
    >>> Objective("margin", target)(logits), Objective("dlr", target)(logits)
    (tensor([-1.]), tensor([-0.5000]))
    >>> Objective("dlr", target, rival=torch.tensor([1]))(logits)
    tensor([-0.8000])
    """

    loss: Loss
    target: Tensor
    rival: Tensor | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Losses ``(B,)``."""
        if self.loss == "ce":
            return nn.functional.cross_entropy(logits, self.target, reduction="none")
        margin = rival_margin(self.target, self.rival)(logits)
        if self.loss == "margin":
            return margin
        ordered = logits.sort(dim=1, descending=True).values
        third = ordered[:, 2] if self.rival is None else ordered[:, 2:4].mean(dim=1)
        return margin / (ordered[:, 0] - third).clamp(min=1e-12)

    def select(self, rows: Tensor) -> Objective:
        """The loss of some of the samples."""
        return Objective(self.loss, self.target[rows], None if self.rival is None else self.rival[rows])


def rival_margin(target: Tensor, rival: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """To be raised above 0: the logit of ``rival``, by default of the strongest, minus that of the target."""

    def loss(logits: Tensor) -> Tensor:
        own = logits.gather(1, target[:, None]).squeeze(1)
        if rival is not None:
            return logits.gather(1, rival[:, None]).squeeze(1) - own
        return logits.scatter(1, target[:, None], -torch.inf).amax(dim=1) - own

    return loss


def check_loss(loss: str, targeted: bool) -> None:
    """Refuse unknown losses, and cross-entropy towards given classes, where it has no business.

    >>> check_loss("hinge", False)
    Traceback (most recent call last):
        ...
    ValueError: `loss` must be 'margin', 'ce' or 'dlr', got 'hinge'
    """
    if loss not in ("margin", "ce", "dlr"):
        raise ValueError(f"`loss` must be 'margin', 'ce' or 'dlr', got {loss!r}")
    if targeted and loss == "ce":
        raise ValueError("`targeted` needs loss='margin' or 'dlr', got 'ce'")


def check_classes(loss: str, targeted: bool, num_classes: int) -> None:
    """Refuse the DLR loss for models with too few classes for its denominator.

    >>> check_classes("dlr", False, 2)
    Traceback (most recent call last):
        ...
    ValueError: `loss='dlr'` needs a model of at least 3 classes, got 2; use 'margin'
    """
    least = 4 if targeted else 3
    if loss == "dlr" and num_classes < least:
        how = " with `targeted`" if targeted else ""
        raise ValueError(
            f"`loss='dlr'`{how} needs a model of at least {least} classes, got {num_classes}; use 'margin'"
        )
