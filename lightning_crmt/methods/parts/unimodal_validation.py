# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""How well each modality alone does on the validation data."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from lightning_crmt.methods.parts.batch_sums import BatchSums, losses
from lightning_crmt.training import Method, crmt_module


class Unimodal(NamedTuple):
    """Numbers by modality, over all validation samples.

    Attributes:
        losses: mean cross-entropy of the modality's own logits.
        accuracies: share of samples that they get right.
    """

    losses: dict[str, float]
    accuracies: dict[str, float]


class UnimodalValidation:
    """Gathers the numbers batch by batch, over the first validation loader.

    It runs the module once more on each batch, so that a validation step of the user's own need not report anything.

    Args:
        method: the method that wants to know; it is asked whether it is active.
    """

    def __init__(self, method: Method) -> None:
        self.method = method
        self._losses = BatchSums()
        self._right = BatchSums()

    def start(self) -> None:
        """Begin anew."""
        self._losses.clear()
        self._right.clear()

    def update(self, trainer: Trainer, pl_module: LightningModule, batch: Any, dataloader_idx: int) -> None:
        """Take in one batch."""
        if trainer.sanity_checking or dataloader_idx > 0 or not self.method.active(pl_module):
            return
        module = crmt_module(pl_module, self.method)
        inputs, target = module.split_batch(batch)
        with torch.no_grad():
            logits = module.head.unimodal_logits(module(inputs).scores)
        self._losses.add(losses(logits, target), len(target))
        right = {name: (each.argmax(dim=1) == target).float().sum() for name, each in logits.items()}
        self._right.add(right, len(target))

    def compute(self, trainer: Trainer) -> Unimodal | None:
        """The numbers over all processes; None if there was nothing to gather."""
        if not self._losses:
            return None
        sums, size = self._losses.take(trainer)
        right, _ = self._right.take(trainer)
        return Unimodal(
            {name: value / size for name, value in sums.items()},
            {name: value / size for name, value in right.items()},
        )


class ValidatedMethod(Method):
    """A method that learns from every validation of a fit how each modality alone does; it needs validation data."""

    def __init__(self) -> None:
        self._validation = UnimodalValidation(self)

    @abstractmethod
    def learn(self, trainer: Trainer, pl_module: LightningModule, found: Unimodal) -> None:
        """Take in what a validation found."""

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_validation(trainer, self)

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation.start()

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._validation.update(trainer, pl_module, batch, dataloader_idx)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = self._validation.compute(trainer)
        if found is not None:
            self.learn(trainer, pl_module, found)


def check_validation(trainer: Trainer, method: Method) -> None:
    """Refuse a fit without validation.

    Raises:
        ValueError: naming the method.
    """
    if not sum(trainer.num_val_batches):
        raise ValueError(f"{type(method).__name__} needs validation data in the fit, got none")
