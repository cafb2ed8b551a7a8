# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Objectives: functions of the logits that grow towards a wrong prediction, or towards a given class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from lightning_crmt.attacks.threat.per_sample import PerSample
from lightning_crmt.targets import has_labels, signed_scores

#: Names of the losses that a search can raise.
Loss: TypeAlias = Literal["margin", "ce", "dlr"]


@dataclass(frozen=True)
class Objective(PerSample):
    r"""A loss ``(B,)`` of logits ``(B, K)`` to be raised: away from a class y, or towards it.

    With the rival r (the strongest other class, or the given one) and logits sorted as
    :math:`h_{(1)} \ge h_{(2)} \ge \dots`, away from y:

    - ``"margin"``: :math:`h_r - h_y`, above 0 where the prediction is not y;
    - ``"ce"``: the cross-entropy of y; only without given rivals;
    - ``"dlr"``: :math:`(h_r - h_y) / (h_{(1)} - h_{(3)})`, with given rivals
      :math:`(h_r - h_y) / (h_{(1)} - (h_{(3)} + h_{(4)}) / 2)`, which does not change when the logits are scaled
      (Croce & Hein, ICML 2020).

    Towards y: the same with the opposite sign, so that the margin is above 0 where the prediction is y.

    Away from labels, whose signed logits are :math:`\pm h_k`, the rival being the label to flip, of the smallest of
    these or given:

    - ``"margin"``: :math:`\mp h_r`, above 0 where the label r is wrong;
    - ``"ce"``: the binary cross-entropy, summed over all labels, or of the given one.

    Args:
        loss: one of these names.
        classes: y, ``(B,)``: the right classes, or those to lead towards; or labels ``(B, K)`` bool.
        rival: classes ``(B,)`` to be raised above y, or labels to flip.
        towards: lead towards y instead of away from it.

    >>> logits, target = torch.tensor([[3.0, 1.0, 2.0, 0.0]]), torch.tensor([0])
    >>> Objective("margin", target)(logits), Objective("dlr", target)(logits)
    (tensor([-1.]), tensor([-0.5000]))
    >>> Objective("dlr", target, rival=torch.tensor([1]))(logits)
    tensor([-0.8000])
    >>> Objective("margin", torch.tensor([1]), towards=True)(logits)
    tensor([-2.])
    >>> Objective("margin", torch.tensor([[True, True, False, False]]))(logits)  # the third is wrong by 2
    tensor([2.])
    """

    loss: Loss
    classes: Tensor
    rival: Tensor | None = None
    towards: bool = False

    def __call__(self, logits: Tensor) -> Tensor:
        """Losses ``(B,)``."""
        away = self._away(logits)
        return -away if self.towards else away

    def _away(self, logits: Tensor) -> Tensor:
        if has_labels(self.classes):
            return self._away_from_labels(logits)
        if self.loss == "ce":
            return nn.functional.cross_entropy(logits, self.classes, reduction="none")
        own = logits.gather(1, self.classes[:, None]).squeeze(1)
        if self.rival is None:
            margin = logits.scatter(1, self.classes[:, None], -torch.inf).amax(dim=1) - own
        else:
            margin = logits.gather(1, self.rival[:, None]).squeeze(1) - own
        if self.loss == "margin":
            return margin
        ordered = logits.sort(dim=1, descending=True).values
        third = ordered[:, 2] if self.rival is None else ordered[:, 2:4].mean(dim=1)
        return margin / (ordered[:, 0] - third).clamp(min=1e-12)

    def _away_from_labels(self, logits: Tensor) -> Tensor:
        signed = signed_scores(logits, self.classes)
        if self.rival is not None:
            signed = signed.gather(1, self.rival[:, None])
        if self.loss == "ce":
            return nn.functional.softplus(-signed).sum(dim=1)
        return -signed.amin(dim=1)


def lead(objective: Objective, logits: Tensor) -> Tensor:
    """How far the search has come with these logits, ``(B,)``: infinitely far where they are not finite."""
    return torch.where(logits.isfinite().all(dim=1), objective(logits), torch.inf)
