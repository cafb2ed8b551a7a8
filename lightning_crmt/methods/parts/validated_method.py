# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The base of methods that follow how well each modality alone does in validation."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lightning_crmt.mixin import CRMTMixin
from lightning_crmt.modality import Inputs
from lightning_crmt.training import BatchSums, Method, Needs, check_all_measured, crmt_module


class ValidatedMethod(Method):
    """A method that measures, on the first loader of every validation, how well each modality alone does.

    It runs the module once more on each batch, so that a validation step of the user's own need not report anything.
    """

    needs = Needs.STEPS | Needs.VALIDATION

    def __init__(self) -> None:
        self.validation = BatchSums()
        self.reset()

    @abstractmethod
    def measure(self, logits: Inputs, target: Tensor) -> dict[str, Tensor]:
        """A number by modality, summed over a batch, from the modality's own logits ``(B, K)``."""

    @abstractmethod
    def learn(self, module: CRMTMixin, means: dict[str, float]) -> None:
        """Act on these numbers, as means over all validation samples."""

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validation = BatchSums()

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
        if trainer.sanity_checking or dataloader_idx > 0 or not self.active(pl_module):
            return
        module = crmt_module(pl_module, self)
        inputs, target = module.counted_batch(batch)
        if len(target) == 0:
            return
        with torch.no_grad():
            output = module(inputs)
            for name, logits in module.head.unimodal_logits(output.scores).items():
                here = output.present.get(name, torch.ones(len(target), dtype=torch.bool, device=target.device))
                sums = self.measure({name: logits[here]}, target[here])
                self.validation.add(sums, len(target), output.present)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_all_measured(trainer, int(bool(self.validation)))
        if self.validation:
            self.learn(crmt_module(pl_module, self), self.validation.means(trainer))
