# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Callbacks that leave nothing behind."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lightning_crmt.mixin import CRMTMixin


class ReleasingCallback(Callback):
    """Gives back what it took for a run, however the run ends: by itself, by an error, or by Ctrl-C."""

    def release(self, pl_module: LightningModule) -> None:
        """Take back what this callback has pushed; override it, and call it, to let go of more.

        What a checkpoint holds must stay until the next run: checkpoints are also saved after an error.
        """
        if isinstance(pl_module, CRMTMixin):
            pl_module.training_stage.pop(self)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.release(pl_module)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # The Trainer does not tear down what failed, and the module may be trained again.
        self.release(pl_module)
