# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The base of callbacks that undo their changes when a run ends."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lightning_crmt.mixin import CRMTMixin


class ReleasingCallback(Callback):
    """Undoes its changes when a run ends, whether normally, by an error, or by Ctrl-C."""

    def release(self, pl_module: LightningModule) -> None:
        """Pop what this callback has pushed; to undo more, override this and call ``super().release``.

        Keep the state that checkpoints hold until the next run: checkpoints are also saved after an error.
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
