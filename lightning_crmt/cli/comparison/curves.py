# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What a fit logs, kept in memory as curves over epochs, and how far it is."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from typing_extensions import override

from lightning_crmt.report import History


class Curves(Logger):
    """Keeps what is logged, as :class:`~lightning_crmt.report.History` does: of each name and epoch the last number.

    Args:
        folder: where a Trainer puts what it keeps beside its logs.

    >>> curves = Curves(".")
    >>> curves.log_metrics({"epoch": 0, "val/loss": 1.5})
    >>> curves.log_metrics({"epoch": 1, "val/loss": 0.5})
    >>> curves.history
    {'val/loss': [(0, 1.5), (1, 0.5)]}
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder
        self._history = History()

    @property
    def history(self) -> dict[str, list[tuple[int, float]]]:
        """Pairs of an epoch and a number, by name."""
        return self._history.curves

    @property
    @override
    def save_dir(self) -> str:
        return self.folder

    @property
    @override
    def name(self) -> str:
        return ""

    @property
    @override
    def version(self) -> str:
        return ""

    @override
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: they are in the resolved settings."""

    @override
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Keep an entry."""
        self._history.add(metrics)


class EpochsDone(Callback):
    """Tells after each epoch which share of them is done.

    Args:
        tell: is called with the share.
    """

    def __init__(self, tell: Callable[[float], None]) -> None:
        self.tell = tell

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.max_epochs and trainer.max_epochs > 0:
            self.tell(min(1.0, (trainer.current_epoch + 1) / trainer.max_epochs))
