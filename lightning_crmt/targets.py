# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Targets of training: classes, or for mixed samples two classes and their shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from torch import Tensor, nn

from lightning_crmt.checks import check_target
from lightning_crmt.modality import where_present


class MixedTarget(NamedTuple):
    r"""Classes of samples that were mixed: :math:`\lambda` parts of the first, :math:`1 - \lambda` of the second.

    Attributes:
        first: classes :math:`y_a`, ``(B,)``.
        second: classes :math:`y_b`, ``(B,)``.
        share: :math:`\lambda` in [0, 1], the same for the whole batch.

    >>> import torch
    >>> x, y, order = torch.tensor([[0.0], [4.0]]), torch.tensor([0, 1]), torch.tensor([1, 0])
    >>> 0.75 * x + 0.25 * x[order], MixedTarget(y, y[order], share=0.75)
    (tensor([[1.],
             [3.]]), MixedTarget(first=tensor([0, 1]), second=tensor([1, 0]), share=0.75))
    """

    first: Tensor
    second: Tensor
    share: float


#: Classes ``(B,)``, or those of mixed samples.
Target: TypeAlias = Tensor | MixedTarget


def mixed_loss(loss: Callable[[Tensor], Tensor], target: Target) -> Tensor:
    r"""``loss(target)``; for mixed samples :math:`\lambda L(y_a) + (1 - \lambda) L(y_b)`.

    Args:
        loss: from classes ``(B,)`` to a loss, one number or one per sample ``(B,)``.
        target: classes ``(B,)``, or those of mixed samples.

    Returns:
        The loss, in the shape that ``loss`` returns.

    >>> import torch
    >>> target = MixedTarget(torch.tensor([0]), torch.tensor([1]), share=0.75)
    >>> mixed_loss(lambda y: y.float().mean(), target)
    tensor(0.2500)
    """
    if isinstance(target, MixedTarget):
        return target.share * loss(target.first) + (1 - target.share) * loss(target.second)
    return loss(target)


def mixed_cross_entropy(
    logits: Tensor, target: Target, reduction: str = "mean", present: Tensor | None = None
) -> Tensor:
    """Cross-entropy of logits ``(B, K)``; for mixed samples that of both classes, weighted by their shares.

    Args:
        logits: ``(B, K)``.
        target: classes ``(B,)``, or those of mixed samples.
        reduction: as in torch: one number for ``"mean"`` and ``"sum"``, ``(B,)`` for ``"none"``.
        present: which samples have the modality whose logits they are, ``(B,)`` bool; the others do not count.

    >>> import torch
    >>> target = MixedTarget(torch.tensor([0]), torch.tensor([1]), share=0.75)
    >>> mixed_cross_entropy(torch.tensor([[0.75, 0.25]]).log(), target)  # least where probabilities are the shares
    tensor(0.5623)
    """
    if present is None:
        return mixed_loss(lambda y: nn.functional.cross_entropy(logits, y, reduction=reduction), target)
    each = where_present(mixed_cross_entropy(logits, target, "none"), present)
    if reduction == "none":
        return each
    return each.sum() if reduction == "sum" else each.sum() / present.sum().clamp(min=1)


def rows_of(target: Target, rows: Tensor) -> Target:
    """The targets of some samples, given by their indices or by a mask ``(B,)``.

    >>> import torch
    >>> rows_of(torch.tensor([5, 6, 7]), torch.tensor([True, False, True]))
    tensor([5, 7])
    """
    if isinstance(target, MixedTarget):
        return MixedTarget(target.first[rows], target.second[rows], target.share)
    return target[rows]


def classes_of(target: Target) -> tuple[Tensor, ...]:
    """The classes ``(B,)``, or both of mixed samples."""
    return tuple(target[:2]) if isinstance(target, MixedTarget) else (target,)


def check_classes(target: Target, num_classes: int, batch_size: int) -> None:
    """:func:`~lightning_crmt.checks.check_target`, for both classes of samples that are mixed.

    Raises:
        TypeError: if classes are not integers.
        ValueError: if there is not one class per sample, or one is out of range.
    """
    for classes in classes_of(target):
        check_target(classes, num_classes, batch_size)


def size_of(target: Target) -> int:
    """Number of samples."""
    return len(target.first if isinstance(target, MixedTarget) else target)
