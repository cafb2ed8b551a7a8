# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What is asked of a classifier: which targets it learns, by which loss, and which samples count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from lightning_crmt.checks import as_classes, check_at_least, check_target, describe, is_integer
from lightning_crmt.modality import at_least_single
from lightning_crmt.targets import (
    SUM_TOLERANCE,
    Target,
    check_form_of_rows,
    check_labels,
    check_probabilities,
    each_target,
    has_probabilities,
    mixed_loss,
    most_probable,
    parts_of,
)


@dataclass(frozen=True)
class Criterion:
    r"""The targets that a classifier learns and the loss of its logits, cross-entropy in one of its forms.

    With one class per sample, given as integers ``(B,)`` or as probabilities ``(B, K)``, it is
    ``torch.nn.functional.cross_entropy`` with the same settings. With ``multi_label`` it is the binary cross-entropy of
    each label, averaged over labels and samples, with weights :math:`w_k` and smoothing :math:`\epsilon`:

    .. math:: -\frac{1}{N K} \sum_{i, k} w_k \big( t_{ik} \log \sigma(h_k) + (1 - t_{ik}) \log \sigma(-h_k) \big),
        \qquad t_{ik} = (1 - \epsilon) \, y_{ik} + \epsilon / 2 .

    The loss of mixed samples is :math:`\lambda L(y_a) + (1 - \lambda) L(y_b)`; a mixture with a sample that is ignored
    is ignored too.

    It is a value: a module holds one as ``crmt_criterion``, and whatever has to do with targets asks it.

    Args:
        multi_label: any number of labels per sample, targets ``(B, K)`` of 0 and 1, in place of one class.
        class_weights: :math:`w_k`, K numbers of at least 0, not all 0; all 1 by default.
        label_smoothing: :math:`\epsilon`, at least 0 and below 1.
        ignore_index: the class of samples that do not count, such as -100 or 255; none by default.

    Raises:
        ValueError: if a setting is out of range, or ``ignore_index`` is given with ``multi_label``.

    >>> criterion = Criterion(class_weights=[1.0, 3.0], ignore_index=255)
    >>> criterion.loss(torch.zeros(3, 2), torch.tensor([0, 1, 255], dtype=torch.uint8))
    tensor(0.6931)
    >>> Criterion(multi_label=True).loss(torch.zeros(1, 2), torch.tensor([[1, 1]]))
    tensor(0.6931)
    """

    multi_label: bool = False
    class_weights: Sequence[float] | None = None
    label_smoothing: float = 0.0
    ignore_index: int | None = None

    def __post_init__(self) -> None:
        check_at_least(0, label_smoothing=self.label_smoothing)
        if not self.label_smoothing < 1:
            raise ValueError(f"`label_smoothing` must be below 1, got {self.label_smoothing}")
        if self.class_weights is not None:
            weights = tuple(float(weight) for weight in self.class_weights)
            if not all(0 <= weight < torch.inf for weight in weights) or not sum(weights) > 0:
                raise ValueError(f"`class_weights` must be finite, at least 0 and not all 0, got {list(weights)}")
            object.__setattr__(self, "class_weights", weights)
        if self.multi_label and self.ignore_index is not None:
            raise ValueError(
                f"`ignore_index` is a class that does not count, and with multi_label=True there are labels 0 and 1, "
                f"got {self.ignore_index}"
            )

    def check_settings(self, num_classes: int) -> None:
        """Refuse weights that are not one per class.

        Raises:
            ValueError: naming ``class_weights``.
        """
        if self.class_weights is not None and len(self.class_weights) != num_classes:
            raise ValueError(
                f"`class_weights` must be one for each of {num_classes} classes, got {len(self.class_weights)}"
            )

    # --- targets

    def ranges(self, target: Target, num_classes: int, batch_size: int) -> list[tuple[Tensor, float, float]]:
        """The part of :meth:`check` that does not wait for the device: what must lie between which numbers.

        Raises:
            TypeError, ValueError: if the target does not have the form of one.
        """
        ranges: list[tuple[Tensor, float, float]] = []
        for part in parts_of(target):
            if self.multi_label:
                check_form_of_rows(part, num_classes, batch_size, "target", "0 or 1 for each label")
                if part.dtype is not torch.bool:
                    wide = part.double() if part.dtype is torch.float64 else part.float()
                    ranges.append((wide * (1 - wide), 0, 0))
            elif _holds_probabilities(part):
                check_form_of_rows(part, num_classes, batch_size, "target", "a probability of each class")
                ranges += [(part, 0, 1), (part.float().sum(dim=1), 1 - SUM_TOLERANCE, 1 + SUM_TOLERANCE)]
            else:
                classes = self._classes(part, num_classes, batch_size)
                ranges.append((self._countable(classes), 0, num_classes - 1))
        return ranges

    def check(self, target: Target, num_classes: int, batch_size: int) -> Target:
        """Check a target as a loader gives it.

        Returns:
            The target in the form of its kind, see :mod:`lightning_crmt.targets`. Of samples that are ignored the class
            is still ``ignore_index``.

        Raises:
            TypeError: if it is not of numbers as expected.
            ValueError: if it has another shape, or a number is out of range.
        """

        def checked(part: Tensor) -> Tensor:
            if self.multi_label:
                return check_labels(part, num_classes, batch_size)
            if _holds_probabilities(part):
                return check_probabilities(part, num_classes, batch_size)
            classes = self._classes(part, num_classes, batch_size)
            check_target(self._countable(classes), num_classes, batch_size)
            return classes

        return each_target(checked, target)

    def formed(self, target: Target) -> Target:
        """What :meth:`check` returns, of a target that is known to be sound: without waiting for the device."""
        return each_target(self._formed, target)

    def counted(self, target: Target) -> Tensor | None:
        """Which samples count, ``(B,)`` bool; None where all do."""
        if self.ignore_index is None or has_probabilities(target):
            return None
        return torch.stack([part.long() != self.ignore_index for part in parts_of(target)]).all(dim=0)

    def answers(self, target: Tensor) -> Tensor:
        """What is right: classes ``(B,)``, also in place of probabilities, or labels ``(B, K)`` bool."""
        return most_probable(self._formed(target))

    # --- numbers

    def loss(self, logits: Tensor, target: Target, present: Tensor | None = None) -> Tensor:
        """The mean loss of a batch; 0, with a graph, if no sample of it counts.

        Args:
            logits: ``(B, K)``.
            target: in any form that :meth:`check` takes.
            present: which samples have the modality whose logits they are, ``(B,)`` bool; the others do not count.
        """
        return self.losses(logits, target, present).mean()

    def losses(self, logits: Tensor, target: Target, present: Tensor | None = None) -> Tensor:
        """Losses of the samples, ``(B,)``, in a scale in which their mean is :meth:`loss`; 0 for those left out.

        Args:
            logits: ``(B, K)``.
            target: in any form that :meth:`check` takes.
            present: which samples have the modality whose logits they are, ``(B,)`` bool; the others do not count.
        """
        counted, logits = self.counted(target), at_least_single(logits)
        if present is not None:
            counted = present if counted is None else counted & present
        return mixed_loss(lambda part: self._losses(logits, part, counted), self.formed(target))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of the classes, which sum to 1, or of each label by itself: ``(B, K)``, of logits ``(B, K)``."""
        return logits.sigmoid() if self.multi_label else logits.softmax(dim=1)

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """Logarithms of probabilities that sum to 1 over the last dimension, in single precision or better.

        Args:
            logits: ``(..., K)``.

        Returns:
            Of the classes, ``(..., 1, K)``; of no and yes to each label, ``(..., K, 2)``.

        >>> Criterion().log_probabilities(torch.zeros(3, 2)).shape
        torch.Size([3, 1, 2])
        """
        logits = at_least_single(logits)
        if self.multi_label:
            return nn.functional.logsigmoid(torch.stack([-logits, logits], dim=-1))
        return logits.log_softmax(dim=-1)[..., None, :]

    def _losses(self, logits: Tensor, target: Tensor, counted: Tensor | None) -> Tensor:
        weights = (
            None if self.class_weights is None else _tensor(tuple(self.class_weights), logits.dtype, logits.device)
        )
        soft = target.is_floating_point()
        if self.multi_label:
            wanted = target.to(logits.dtype)
            if self.label_smoothing > 0:
                wanted = wanted * (1 - self.label_smoothing) + self.label_smoothing / 2
            each = nn.functional.binary_cross_entropy_with_logits(logits, wanted, weights, reduction="none")
            losses = each.mean(dim=1)
        else:
            target = target.to(logits.dtype) if soft else self._countable(target)
            losses = nn.functional.cross_entropy(
                logits, target, weights, reduction="none", label_smoothing=self.label_smoothing
            )
        by_class = weights is not None and not self.multi_label and not soft
        if counted is None and not by_class:
            return losses
        # As torch does, which divides by the weights of the classes, and otherwise by the number of samples.
        shares = weights[target] if weights is not None and by_class else torch.ones_like(losses)
        if counted is not None:
            losses, shares = torch.where(counted, losses, 0), torch.where(counted, shares, 0)
        total = shares.sum()
        return losses * (len(losses) / torch.where(total > 0, total, 1))

    def _formed(self, target: Tensor) -> Tensor:
        if self.multi_label:
            return target.bool()
        return target if target.is_floating_point() else target.long()

    def _classes(self, target: Tensor, num_classes: int, batch_size: int) -> Tensor:
        if isinstance(target, Tensor) and target.dim() == 2 and (target.dtype is torch.bool or is_integer(target)):
            raise ValueError(
                f"`target` must have shape ({batch_size},), one class per sample, got {describe(target)}; for several "
                "labels per sample, say so: multi_label=True"
            )
        return as_classes(target, num_classes, batch_size)

    def _countable(self, classes: Tensor) -> Tensor:
        """The classes, with 0 in place of what is ignored."""
        return classes if self.ignore_index is None else torch.where(classes == self.ignore_index, 0, classes)


def _holds_probabilities(target: Tensor) -> bool:
    return isinstance(target, Tensor) and target.dim() == 2 and target.is_floating_point()


@lru_cache(maxsize=32)
def _tensor(weights: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Kept, so that they go to a device once: sending them in every step would wait for it."""
    with torch.inference_mode(False):  # or else no later step could train with them
        return torch.tensor(weights, dtype=dtype, device=device)
