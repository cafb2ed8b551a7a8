# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""A floor under every class, for whatever loss the module is trained on."""

from __future__ import annotations

from functools import partial

from torch import Tensor
from typing_extensions import override

from lightning_crmt.checks import check_positive
from lightning_crmt.mixin import CRMTMixin
from lightning_crmt.modality import FusionOutput, samples_of
from lightning_crmt.targets import Target, least_margin, mixed_loss, most_probable, rows_of
from lightning_crmt.training import Method, Needs


class ClassFloor(Method):
    r"""Keeps training from giving up a class: the samples that are most clearly right in each class weigh more.

    Of two classes that look alike, the samples of one alone can be guaranteed further than those of both, and a mean
    over samples takes that bargain. Here each class has a share of its samples that is worth more than a bargain:

    .. math:: L = \frac 1 N \sum_i \big( 1 + w \, [\, i \in T_{y_i} ] \big) \, \ell_i

    where :math:`T_k` are those :math:`\lceil s \, n_k \rceil` of the :math:`n_k` samples of class k in the batch with
    the largest margins :math:`h_k - \max_{j \ne k} h_j`, and :math:`\ell` is the loss that the module is trained on,
    any objective of ``RadiusTraining`` or cross-entropy. Weights of whole classes would not do: they raise what is
    hopeless too, and where one of two classes is given up they swap which. The best of both can be right at once, and
    nothing more is asked of the rest.

    It is a weight and no constraint: a radius far beyond what tells two classes apart outweighs it. Watch
    ``certified_accuracy_worst_class`` on validation data. Batches should hold several samples of each class: of one
    alone that one is the best. Under distributed training, and where gradients are accumulated, a batch is that of one
    process and one backward pass. The formula is ours.

    Args:
        share: s, above 0 and at most 1.
        weight: w, above 0.

    Raises:
        ValueError: if an argument is out of range; before training, if the module learns labels, not classes.

    >>> from lightning_crmt.callbacks import RadiusTraining
    >>> from lightning_crmt.losses import EMMA
    >>> callbacks = [RadiusTraining(radius=0.2, objective=EMMA()), ClassFloor(share=0.3)]
    """

    source = "ours"
    needs = Needs.CLASSES

    def __init__(self, share: float = 0.3, *, weight: float = 1.0) -> None:
        check_positive(share=share, weight=weight)
        if share > 1:
            raise ValueError(f"`share` must be at most 1, got {share}")
        self.share = share
        self.weight = weight

    @override
    def term(self, module: CRMTMixin, output: FusionOutput, target: Target) -> Tensor:
        return self.weight * mixed_loss(partial(self._loss_of_best, module, output), target)

    def _loss_of_best(self, module: CRMTMixin, output: FusionOutput, target: Tensor) -> Tensor:
        """The sum of the losses of the best samples, over the size of the batch."""
        rows = best_of_each_class(output.logits, most_probable(target), self.share).nonzero().squeeze(1)
        loss = module.stage_objective.loss(samples_of(output, rows), rows_of(target, rows))
        return loss * (len(rows) / len(target))


def best_of_each_class(logits: Tensor, target: Tensor, share: float) -> Tensor:
    """Which samples are among those with the largest margins of their class, at least one of each, ``(B,)`` bool.

    Args:
        logits: ``(B, K)``.
        target: classes ``(B,)``.
        share: how many of a class, rounded up; those that tie with the last one are in too.

    >>> import torch
    >>> best_of_each_class(torch.tensor([[2.0, 0.0], [1.0, 0.0], [5.0, 0.0]]), torch.tensor([0, 0, 1]), share=0.5)
    tensor([ True, False,  True])
    """
    margins = least_margin(logits.detach(), target)
    alike = target[:, None] == target
    better = (alike & (margins > margins[:, None])).sum(dim=1)
    return better < share * alike.sum(dim=1)
