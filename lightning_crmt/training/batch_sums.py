# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Statistics over the effective batch: all micro-batches of gradient accumulation, on all processes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from lightning_crmt.modality import Inputs, at_least_single, where_present
from lightning_crmt.targets import Target, has_labels, mixed_loss, signed_scores


class BatchSums:
    """Sums over samples by name. Their means are right for batches of unequal size too, where a mean of means is not.

    >>> sums = BatchSums()
    >>> sums.add({"audio": torch.tensor(2.0)}, size=4)
    >>> sums.add({"audio": torch.tensor(1.0)}, size=2)
    >>> bool(sums)
    True
    """

    def __init__(self) -> None:
        self._values: dict[str, Tensor] = {}
        self._sizes: dict[str, Tensor] = {}

    def add(self, values: Inputs, size: int, present: Inputs | None = None) -> None:
        """Add the sums over ``size`` samples, or over those that have the modality of that name.

        Args:
            values: by name, one number each.
            size: of the batch.
            present: which samples have a modality, ``(B,)`` bool, for those that may be absent.
        """
        present = present or {}
        for name, value in values.items():
            value = at_least_single(value.detach())
            counted = present[name].sum().to(value) if name in present else value.new_tensor(size)
            self._values[name] = self._values[name] + value if name in self._values else value
            self._sizes[name] = self._sizes[name] + counted if name in self._sizes else counted

    def means(self, trainer: Trainer) -> dict[str, float]:
        """The means over the samples of all processes, which must call this together; then the sums restart at 0.

        0 where no sample has the modality.
        """
        vector = torch.stack([*self._values.values(), *self._sizes.values()])
        numbers = trainer.strategy.reduce(vector, reduce_op="sum").tolist()
        pairs = zip(numbers[: len(self._values)], numbers[len(self._values) :], strict=True)
        means = {name: total / size if size else 0.0 for name, (total, size) in zip(self._values, pairs, strict=True)}
        self._values, self._sizes = {}, {}
        return means

    def __bool__(self) -> bool:
        return bool(self._values)


def check_all_measured(trainer: Trainer, loaders: int) -> None:
    """Refuse to add up where one process had batches of fewer loaders than another, which would wait for it for ever.

    Args:
        trainer: whose processes must call this together.
        loaders: how many loaders this process has had batches of.

    Raises:
        RuntimeError: in every process.
    """
    if trainer.world_size == 1:
        return
    own = torch.tensor([loaders], device=trainer.strategy.root_device)
    counts = trainer.strategy.all_gather(own).flatten().tolist()
    if min(counts) < max(counts):
        short = [rank for rank, count in enumerate(counts) if count < max(counts)]
        raise RuntimeError(
            "every process must have evaluation batches, or the others wait for its numbers for ever: "
            f"{short} had none of a loader; share the samples out evenly, as DistributedSampler does"
        )


def confidences(logits: Inputs, target: Target, present: Inputs | None = None) -> dict[str, Tensor]:
    r"""Confidence of each modality in the true classes, summed over the batch: :math:`\sum_i \mathrm{softmax}(h_m)_y`.

    For mixed samples :math:`\lambda p_{y_a} + (1 - \lambda) p_{y_b}`; where targets are probabilities the mean over
    them; where they are labels the mean over labels of the probability of each. Samples that lack the modality do not
    count.

    >>> confidences({"audio": torch.tensor([[0.0, 0.0], [0.0, 100.0]])}, torch.tensor([0, 1]))
    {'audio': tensor(1.5000)}
    """
    here = present or {}
    return {name: _right(each, target, here.get(name), torch.exp).sum() for name, each in logits.items()}


def losses(logits: Inputs, target: Target, least: float = 0.0, present: Inputs | None = None) -> dict[str, Tensor]:
    r"""Cross-entropy of each modality, summed over the batch; probabilities count as at least ``least``.

    It is plain, without class weights and smoothing; of labels the mean over labels of the binary one. Samples that
    lack the modality do not count.

    >>> losses({"audio": torch.tensor([[0.0, 0.0], [0.0, 100.0]])}, torch.tensor([0, 1]))
    {'audio': tensor(0.6931)}
    """
    most, here = -math.log(least) if least > 0 else math.inf, present or {}
    return {
        name: _right(each, target, here.get(name), lambda log: -log.clamp(min=-most)).sum()
        for name, each in logits.items()
    }


def _right(logits: Tensor, target: Target, present: Tensor | None, of: Callable[[Tensor], Tensor]) -> Tensor:
    """A function of the log-probability of what is right, ``(B,)``; 0 for samples that lack the modality."""

    def values(part: Tensor) -> Tensor:
        if has_labels(part):
            return of(nn.functional.logsigmoid(signed_scores(logits, part))).mean(dim=1)
        each = of(logits.log_softmax(dim=1))
        if part.is_floating_point():
            return (part.to(each.dtype) * each).sum(dim=1)
        return each.gather(1, part[:, None]).squeeze(1)

    return where_present(mixed_loss(values, target), present)
