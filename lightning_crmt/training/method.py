# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What every method of training is: a callback that takes part in the steps of a CRMT module."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lightning_crmt.mixin import CRMTMixin
from lightning_crmt.modality import FusionOutput, Inputs
from lightning_crmt.targets import Target
from lightning_crmt.training.named_model import crmt_module


class Method(Callback):
    """A way of training, put under a CRMT module by adding the callback; several compose, in their order.

    A method changes the batch (:meth:`transform`), adds to the loss (:meth:`term`), or changes gradients or learning
    rates in the hooks of a callback. It rests in step 2 of CRMT.

    Raises:
        TypeError: on ``setup``, if the module is no CRMT module.
    """

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        module = crmt_module(pl_module, self)
        if stage == "fit" and self not in module.methods:
            module.check_parts()
            module.methods = [*module.methods, self]

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if isinstance(pl_module, CRMTMixin):
            pl_module.methods = [method for method in pl_module.methods if method is not self]

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # The Trainer does not tear down what failed, and the module may be trained again.
        self.teardown(trainer, pl_module, "fit")

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # A run that looks like the method and is not would end up in a table.
        module, kind, name = crmt_module(pl_module, self), type(self), type(self).__name__
        if self.active(pl_module) and kind.transform is not Method.transform and not module.training_batch_called:
            raise RuntimeError(
                f"{name} has no effect: `training_step` of {type(pl_module).__name__} must begin with "
                "`inputs, target = self.training_batch(batch)`"
            )
        if self.active(pl_module) and kind.term is not Method.term and not module.crmt_loss_called:
            raise RuntimeError(
                f"{name} has no effect: `training_step` of {type(pl_module).__name__} must return "
                "`self.crmt_loss(self(inputs), target)`, alone or among other terms"
            )

    def active(self, pl_module: LightningModule) -> bool:
        """Whether the method takes part in the current stage."""
        return self in crmt_module(pl_module, self).active_methods()

    def transform(self, module: CRMTMixin, inputs: Inputs, target: Target) -> tuple[Inputs, Target]:
        """Inputs and targets to train on, by default those given."""
        return inputs, target

    def term(self, module: CRMTMixin, output: FusionOutput, target: Target) -> Tensor | None:
        """What is added to the loss of a batch, by default nothing."""
        return None
