# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What all observing callbacks share: when to look, at what, and how to log it, without a trace in training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from typing_extensions import override

from lightning_crmt.training import NamedModel

#: Combines a tensor over all processes: ``reduce(tensor, "sum")`` or ``reduce(tensor, "max")``.
Reduce: TypeAlias = Callable[[Tensor, str], Tensor]


class Measurement(ABC):
    """What is gathered over the batches of one evaluation loader."""

    @abstractmethod
    def update(self, inputs: dict[str, Tensor], target: Tensor) -> None:
        """Take in one batch."""

    @abstractmethod
    def compute(self, reduce: Reduce) -> dict[str, float]:
        """The numbers, by what they are called after the split; the same on every process."""


class Observer(Callback, ABC):
    """Measures something in every validation and test epoch, and logs it under ``val/`` or ``test/``.

    The Trainer's sanity check tries the measurement and logs nothing. In epochs that are not measured it logs the last
    numbers again, so that callbacks which monitor them always find them.

    Args:
        inputs: names of the modalities in the order of the batch; not needed for a CRMT module.
        every_n_epochs: in a fit, measure in the first epoch with a validation, then when n epochs have passed, and in
            the last; ``validate`` and ``test`` always measure.
        max_batches: measure the first so many batches of a loader; all by default.
    """

    def __init__(
        self, inputs: Sequence[str] | None = None, every_n_epochs: int = 1, max_batches: int | None = None
    ) -> None:
        if every_n_epochs < 1:
            raise ValueError(f"`every_n_epochs` must be at least 1, got {every_n_epochs}")
        if max_batches is not None and max_batches < 1:
            raise ValueError(f"`max_batches` must be at least 1, got {max_batches}")
        if isinstance(inputs, str):
            raise TypeError(f"`inputs` must be a sequence of names, got the string {inputs!r}")
        self.inputs = inputs
        self.every_n_epochs = every_n_epochs
        self.max_batches = max_batches
        self._model: NamedModel | None = None
        self._running: dict[int, Measurement] = {}
        self._last: dict[str, float] = {}
        self._measured_at: int | None = None

    @abstractmethod
    def measurement(self, model: NamedModel) -> Measurement:
        """A fresh measurement of ``model``."""

    def due(self, trainer: Trainer) -> bool:
        """Whether this validation epoch is measured; override for another rhythm."""
        if trainer.sanity_checking:
            return False
        if trainer.state.fn != TrainerFn.FITTING or self._measured_at is None:
            return True
        epoch, last = trainer.current_epoch, (trainer.max_epochs or 0) - 1
        return epoch in (self._measured_at, last) or epoch >= self._measured_at + self.every_n_epochs

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._model = NamedModel(pl_module, self.inputs)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._model = None
        self._running = {}
        self._last = {}
        self._measured_at = None

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._running = {}

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
        if self.due(trainer):
            self._observe(batch, batch_idx, dataloader_idx)
        elif trainer.sanity_checking and self._model is not None:
            # Tried and thrown away: what cannot be measured should fail before training, not after an epoch of it.
            self.measurement(self._model).update(*self._model.split_batch(batch))

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._log(trainer, pl_module, "val")

    @override
    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._running = {}

    @override
    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._observe(batch, batch_idx, dataloader_idx)

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(trainer, pl_module, "test")

    def _observe(self, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        if self.max_batches is not None and batch_idx >= self.max_batches:
            return
        assert self._model is not None
        if dataloader_idx not in self._running:
            self._running[dataloader_idx] = self.measurement(self._model)
        self._running[dataloader_idx].update(*self._model.split_batch(batch))

    def _log(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        def reduce(value: Tensor, how: str) -> Tensor:
            reduced: Tensor = trainer.strategy.reduce(value, reduce_op=how)
            return reduced

        if self._running:
            self._measured_at = trainer.current_epoch
        for index, measurement in self._running.items():
            suffix = f"/dataloader_idx_{index}" if len(self._running) > 1 else ""
            numbers = measurement.compute(reduce)
            self._last.update({f"{split}/{key}{suffix}": value for key, value in numbers.items()})
        self._running = {}
        # The numbers are equal on all ranks already; sync_dist says so to Lightning.
        found = {key: value for key, value in self._last.items() if key.startswith(f"{split}/")}
        pl_module.log_dict(found, sync_dist=True, add_dataloader_idx=False)
