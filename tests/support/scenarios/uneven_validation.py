# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Validation data that only the first process has any of."""

import os

from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, IterableDataset

from lightning_crmt import CRMTModule
from lightning_crmt.callbacks import MissingModalities
from lightning_crmt.encoders import MLP
from lightning_crmt.methods import ModalityEarlyStopping
from support.small_model import CLASSES, SIZES, samples, whole

CALLBACKS = (MissingModalities, ModalityEarlyStopping)


class FirstAlone(IterableDataset):
    def __iter__(self):
        if os.environ.get("LOCAL_RANK", "0") == "0":
            inputs, target = whole(samples(size=20))
            yield from (({name: value[i] for name, value in inputs.items()}, target[i]) for i in range(20))


class Silent(CRMTModule):
    """Logs nothing: Lightning waits for the numbers of all processes too."""

    def validation_step(self, batch, batch_idx): ...


def train(strategy, processes, batch_size, folder):
    """What each callback says; Lightning would not end well if all said it to the Trainer."""
    said = {}

    def asking(kind):
        class Asked(kind):
            def on_validation_epoch_end(self, trainer, pl_module):
                try:
                    super().on_validation_epoch_end(trainer, pl_module)
                except RuntimeError as error:
                    said[kind.__name__] = str(error)

        return Asked()

    Trainer(
        accelerator="cpu", strategy=strategy, devices=processes, max_epochs=1, precision="64-true", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        callbacks=[asking(kind) for kind in CALLBACKS],
    ).fit(
        Silent({name: MLP(SIZES[name], 8) for name in "ab"}, CLASSES), samples(),
        DataLoader(FirstAlone(), batch_size=batch_size),
    )  # fmt: skip
    return said
