# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Targets: what is right for each sample, of one of three kinds, which their form tells apart.

- **Classes**: one of K for each sample, integers ``(B,)``.
- **Labels**: any number of K for each sample, bools ``(B, K)``. The model says yes to label k where its logit is above
  0. A label is decided like a class against a rival whose logit is always 0; most of what holds for pairs of classes
  holds for labels with that rival.
- **Probabilities** of classes, also called soft labels: floating point ``(B, K)``, of rows that sum to 1. What is right
  is the most probable class, the first among equals.

A loader may give other integers, or 0 and 1 in place of bools: the checks return one of these forms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from lightning_crmt.checks import check_target, describe, is_integer

#: Sums of probabilities may be this far from 1: those in half precision are.
SUM_TOLERANCE = 0.01


class MixedTarget(NamedTuple):
    r"""Targets of samples that were mixed: :math:`\lambda` parts of the first, :math:`1 - \lambda` of the second.

    Attributes:
        first: target :math:`y_a` of any kind.
        second: target :math:`y_b` of the same kind.
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


#: A target of one of the three kinds, or two of mixed samples.
Target: TypeAlias = Tensor | MixedTarget


def mixed_loss(loss: Callable[[Tensor], Tensor], target: Target) -> Tensor:
    r"""``loss(target)``; for mixed samples :math:`\lambda L(y_a) + (1 - \lambda) L(y_b)`.

    Args:
        loss: from a target to a loss, one number or one per sample ``(B,)``.
        target: of any kind, or that of mixed samples.

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


def each_target(change: Callable[[Tensor], Tensor], target: Target) -> Target:
    """``change(target)``, or the same of both targets of mixed samples."""
    if isinstance(target, MixedTarget):
        return target._replace(first=change(target.first), second=change(target.second))
    return change(target)


def rows_of(target: Target, rows: Tensor) -> Target:
    """The targets of some samples, given by their indices or by a mask ``(B,)``.

    >>> import torch
    >>> rows_of(torch.tensor([5, 6, 7]), torch.tensor([True, False, True]))
    tensor([5, 7])
    """
    return each_target(lambda part: part[rows.to(part.device)], target)


def parts_of(target: Target) -> tuple[Tensor, ...]:
    """The target, or both of mixed samples."""
    return tuple(target[:2]) if isinstance(target, MixedTarget) else (target,)


def size_of(target: Target) -> int:
    """Number of samples."""
    return len(parts_of(target)[0])


def has_labels(target: Target) -> bool:
    """Whether a target is of labels ``(B, K)``."""
    return parts_of(target)[0].dim() == 2 and not has_probabilities(target)


def has_probabilities(target: Target) -> bool:
    """Whether a target is of probabilities ``(B, K)``."""
    return parts_of(target)[0].is_floating_point()


def most_probable(target: Tensor) -> Tensor:
    """Classes ``(B,)`` in place of probabilities; a target of another kind as it is.

    >>> most_probable(torch.tensor([[0.2, 0.8], [0.5, 0.5]]))
    tensor([1, 0])
    """
    return target.argmax(dim=1) if target.is_floating_point() else target


def check_classes(target: Target, num_classes: int, batch_size: int) -> None:
    """:func:`~lightning_crmt.checks.check_target`, for both classes of samples that are mixed.

    Raises:
        TypeError: if classes are not integers.
        ValueError: if there is not one class per sample, or one is out of range.
    """
    for classes in parts_of(target):
        check_target(classes, num_classes, batch_size)


def check_labels(target: Any, num_classes: int, batch_size: int, argument: str = "target") -> Tensor:
    """Check that ``target``, called ``argument`` in errors, says yes or no to each of K labels.

    Returns:
        The labels, ``(B, K)`` bool, whatever numbers 0 and 1 they came as.

    Raises:
        TypeError: if it is not a tensor.
        ValueError: if it does not have shape ``(batch_size, num_classes)``, is empty, or holds another number.

    >>> check_labels(torch.tensor([[0.0, 1.0]]), num_classes=2, batch_size=1)
    tensor([[False,  True]])
    """
    check_form_of_rows(target, num_classes, batch_size, argument, "0 or 1 for each label")
    if target.dtype is not torch.bool and not bool(((target == 0) | (target == 1)).all()):
        low, high = target.double().aminmax()
        raise ValueError(
            f"`{argument}` must be 0 or 1 for each label, got values from {low:.6g} to {high:.6g}, others among them"
        )
    labels: Tensor = target.bool()
    return labels


def check_probabilities(target: Any, num_classes: int, batch_size: int, argument: str = "target") -> Tensor:
    """Check that ``target``, called ``argument`` in errors, holds a probability of each class, and return it.

    Raises:
        TypeError: if it is not a floating point tensor.
        ValueError: if it does not have shape ``(batch_size, num_classes)``, is empty, a number is not in [0, 1], or a
            row does not sum to 1.

    >>> check_probabilities(torch.tensor([[1.0, 1.0]]), num_classes=2, batch_size=1)
    Traceback (most recent call last):
        ...
    ValueError: `target` must have rows of probabilities that sum to 1, got values from 1 to 1 and sums from 2 to 2; for
    several labels per sample, say so: multi_label=True, or give bools
    """
    check_form_of_rows(target, num_classes, batch_size, argument, "a probability of each class")
    if not target.is_floating_point():
        raise TypeError(f"`{argument}` must hold floating point probabilities, got {describe(target)}")
    values, sums = target.double().aminmax(), target.double().sum(dim=1).aminmax()
    inside = values[0] >= 0 and values[1] <= 1 and sums[0] >= 1 - SUM_TOLERANCE and sums[1] <= 1 + SUM_TOLERANCE
    if not bool(inside):
        raise ValueError(
            f"`{argument}` must have rows of probabilities that sum to 1, got values from {values[0]:.6g} to "
            f"{values[1]:.6g} and sums from {sums[0]:.6g} to {sums[1]:.6g}; for several labels per sample, say so: "
            "multi_label=True, or give bools"
        )
    probabilities: Tensor = target
    return probabilities


def check_form_of_rows(target: Any, num_classes: int, batch_size: int, argument: str, what: str) -> None:
    """Check that ``target`` has a row per sample, without looking at its numbers.

    Raises:
        TypeError: if it is not a tensor of numbers.
        ValueError: if it does not have shape ``(batch_size, num_classes)``, or is empty.
    """
    if not isinstance(target, Tensor) or target.dtype.is_complex:
        raise TypeError(f"`{argument}` must be a tensor, {what}, got {describe(target)}")
    if target.shape != (batch_size, num_classes):
        raise ValueError(f"`{argument}` must have shape ({batch_size}, {num_classes}), {what}, got {describe(target)}")
    if batch_size == 0:
        raise ValueError(f"`{argument}` must hold at least one sample, got an empty batch")


def check_answers(target: Any, num_classes: int, batch_size: int, argument: str = "target") -> Tensor:
    """Check what answers are to be compared with: classes, or labels.

    Returns:
        Classes ``(B,)`` int64, or labels ``(B, K)`` bool, which may come as integers 0 and 1.

    Raises:
        TypeError: if it is neither; probabilities could be meant as labels.
        ValueError: as :func:`~lightning_crmt.checks.check_target` and :func:`check_labels` do.

    >>> check_answers(torch.tensor([[0, 1, 1]]), num_classes=3, batch_size=1)
    tensor([[False,  True,  True]])
    """
    if isinstance(target, Tensor) and target.dim() == 2 and (target.shape[1] == num_classes or batch_size == 0):
        if target.dtype is torch.bool or is_integer(target):
            return check_labels(target, num_classes, batch_size, argument)
        raise TypeError(
            f"`{argument}` must be a tensor of integer class indices (B,), or of labels (B, K) that are bools or "
            f"integers, got {describe(target)}: give `.bool()` of labels and `.argmax(dim=1)` of probabilities"
        )
    return check_target(target, num_classes, batch_size, argument)


def signed_scores(scores: Tensor, labels: Tensor) -> Tensor:
    """Scores ``(..., K)``, negated where the label is a no: above 0 where the answer is right.

    >>> signed_scores(torch.tensor([[2.0, 3.0]]), torch.tensor([[True, False]]))
    tensor([[ 2., -3.]])
    """
    return torch.where(labels, scores, -scores)


def least_margin(logits: Tensor, target: Tensor) -> Tensor:
    r"""How far each sample is from a wrong answer, ``(B,)``: above 0 only where it is right.

    Of classes :math:`h_y - \max_{j \ne y} h_j`, of labels :math:`\min_k \pm h_k` with the sign of the label.

    Args:
        logits: ``(B, K)``.
        target: classes ``(B,)`` int64, or labels ``(B, K)`` bool.

    >>> logits = torch.tensor([[3.0, 1.0]])
    >>> least_margin(logits, torch.tensor([0])), least_margin(logits, torch.tensor([[True, False]]))
    (tensor([2.]), tensor([-1.]))
    """
    if has_labels(target):
        return signed_scores(logits, target).amin(dim=1)
    own = logits.gather(1, target[:, None])
    return own.squeeze(1) - logits.scatter(1, target[:, None], -torch.inf).amax(dim=1)


def answers(logits: Tensor, multi_label: bool) -> Tensor:
    """What a model answers: the class of the largest logit ``(B,)``, or the labels with a logit above 0 ``(B, K)``.

    >>> answers(torch.tensor([[3.0, 1.0, -1.0]]), multi_label=True)
    tensor([[ True,  True, False]])
    """
    return logits > 0 if multi_label else logits.argmax(dim=1)


def right_answers(logits: Tensor, target: Tensor) -> Tensor:
    """Where the answer is the target, all labels of it, ``(B,)`` bool; never where the logits are not finite.

    Args:
        logits: ``(B, K)``.
        target: classes ``(B,)``, or labels ``(B, K)`` bool.

    >>> right_answers(torch.tensor([[2.0, 1.0], [2.0, 1.0], [torch.inf, 1.0]]), torch.tensor([0, 1, 0]))
    tensor([ True, False, False])
    """
    target = target.to(logits.device)
    right = answers(logits, has_labels(target)) == target
    return (right.all(dim=1) if right.dim() == 2 else right) & logits.isfinite().all(dim=1)
