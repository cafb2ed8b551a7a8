# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Metrics over the results of attacks: upper bounds of the robustness, as attacks may miss adversarial inputs."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from typing_extensions import override

from lightning_crmt.checks import describe
from lightning_crmt.metrics.sample_mean import SampleMean
from lightning_crmt.modality import at_least_single
from lightning_crmt.targets import check_answers, right_answers


def withstood(logits: Tensor, target: Tensor, attacked: Tensor) -> Tensor:
    """Which predictions are right and stay so under an attack, ``(B,)`` bool; of labels where all are and do.

    Logits that are not finite count as wrong, attacked or not.

    Args:
        logits: for the clean inputs, ``(B, K)``.
        target: classes, ``(B,)``, or labels, ``(B, K)`` of bools or integers.
        attacked: logits for the attacked inputs, ``(B, K)``.

    Raises:
        ValueError: if the shapes differ, or a class is out of range.

    >>> clean, attacked = torch.tensor([[2.0, 1.0], [2.0, 1.0]]), torch.tensor([[2.0, 1.0], [0.0, 1.0]])
    >>> withstood(clean, torch.tensor([0, 0]), attacked)
    tensor([ True, False])
    """
    target, attacked = _target_first(target, attacked, "logits, target, attacked")
    target = _checked(logits, target)
    if attacked.shape != logits.shape:
        raise ValueError(f"`attacked` must have the shape {tuple(logits.shape)} of `logits`, got {describe(attacked)}")
    return right_answers(logits, target) & right_answers(attacked, target)


def credited_distance(distance: Tensor, target: Tensor, logits: Tensor) -> Tensor:
    """The distance of each adversarial input where the clean prediction is right, 0 where it is wrong, ``(B,)``.

    Args:
        distance: as a search measured it, ``(B,)``, in units of its budget; infinite where the search failed.
        target: classes, ``(B,)``, or labels, ``(B, K)`` of bools or integers.
        logits: for the clean inputs, ``(B, K)``.

    Raises:
        ValueError: if a distance is negative or NaN, the shapes differ, or a class is out of range.

    >>> credited_distance(torch.tensor([0.3, 0.4]), torch.tensor([0, 1]), torch.tensor([[2.0, 1.0], [2.0, 1.0]]))
    tensor([0.3000, 0.0000])
    """
    target, logits = _target_first(target, logits, "distance, target, logits")
    target = _checked(logits, target)
    if distance.shape != (len(target),) or not bool((distance >= 0).all()):
        raise ValueError(f"`distance` must hold one number for each sample, at least 0, got {describe(distance)}")
    distance = at_least_single(distance)
    return torch.where(right_answers(logits, target), distance, torch.zeros_like(distance))


class RobustAccuracy(SampleMean):
    """Share of samples that are right and stay so under an attack; an upper bound, which a better attack may lower.

    Args:
        kwargs: those of ``torchmetrics.Metric``.

    >>> from lightning_crmt import LinearFusion
    >>> from lightning_crmt.attacks import PGD, Budget
    >>> head = LinearFusion({"audio": 4}, num_classes=3)
    >>> x, metric = {"audio": torch.randn(5, 4)}, RobustAccuracy()
    >>> y = head(x).logits.argmax(1)
    >>> metric.update(head(x).logits, y, PGD(Budget(10.0)).logits(head, x, y))
    >>> metric.compute()
    tensor(0.)
    """

    plot_upper_bound = 1.0

    @override
    def update(self, logits: Tensor, target: Tensor, attacked: Tensor) -> None:
        """Add a batch; see :func:`withstood`, also for what it raises.

        Args:
            logits: for the clean inputs, ``(B, K)``.
            target: classes, ``(B,)``, or labels, ``(B, K)`` of bools or integers.
            attacked: logits for the attacked inputs, ``(B, K)``.
        """
        self._add(withstood(logits, target, attacked))


class MeanAdversarialDistance(SampleMean):
    """Mean distance of the nearest adversarial inputs, a wrong prediction counting as 0; an upper bound.

    Infinite if the search failed for some sample. In units of the search's budget, like the distances.

    Args:
        kwargs: those of ``torchmetrics.Metric``.

    >>> from lightning_crmt import LinearFusion
    >>> from lightning_crmt.attacks import Budget, MinimumNorm
    >>> head = LinearFusion({"audio": 4}, num_classes=3)
    >>> x, metric = {"audio": torch.randn(5, 4)}, MeanAdversarialDistance()
    >>> y = head(x).logits.argmax(1)
    >>> metric.update(MinimumNorm(Budget(1.0)).search(head, x, y).factor, y, head(x).logits)
    >>> bool(metric.compute() > 0)
    True
    """

    is_differentiable = True

    @override
    def update(self, distance: Tensor, target: Tensor, logits: Tensor) -> None:
        """Add a batch; see :func:`credited_distance`, also for what it raises.

        Args:
            distance: as a search measured it, ``(B,)``, in units of its budget; infinite where the search failed.
            target: classes, ``(B,)``, or labels, ``(B, K)`` of bools or integers.
            logits: for the clean inputs, ``(B, K)``.
        """
        self._add(credited_distance(distance, target, logits))


def _target_first(target: Tensor, other: Tensor, order: str) -> tuple[Tensor, Tensor]:
    """Both in this order; for one release they may come in the other, which their types tell apart."""
    if target.is_floating_point() and not other.is_floating_point():
        warnings.warn(f"the order of arguments is ({order}) now, as in torchmetrics", DeprecationWarning, stacklevel=3)
        return other, target
    return target, other


def _checked(logits: Tensor, target: Tensor) -> Tensor:
    if logits.dim() != 2:
        raise ValueError(f"`logits` must have shape (B, K), got {describe(logits)}")
    return check_answers(target, logits.shape[1], len(logits))
