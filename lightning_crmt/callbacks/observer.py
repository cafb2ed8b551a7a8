# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The base of observing callbacks: when to measure, on which batches, and how to log it without affecting training."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from typing_extensions import override

from lightning_crmt.checks import check_at_least
from lightning_crmt.evaluation import Key, Means, Reduce, check_key_name
from lightning_crmt.modality import select
from lightning_crmt.training import (
    DealtSamples,
    NamedModel,
    ProgressBar,
    ReleasingCallback,
    SplitBatch,
    as_split_batch,
    callbacks_of,
    check_all_measured,
    evaluation_loaders,
)

#: Seconds that an evaluation may take before it shows how long it will.
_PATIENCE = 3.0


@dataclass(frozen=True)
class Samples:
    """Which samples a batch holds.

    Attributes:
        loader: the number of the loader.
        places: of each sample in the data set of the loader, ``(B,)``, also where processes share it out.
    """

    loader: int
    places: Tensor


class Measurement(ABC):
    """What is gathered over the batches of one evaluation loader, by keys without a split."""

    def __init__(self) -> None:
        self.means = Means[Key]()
        #: Those of the batch that is being added.
        self.samples = Samples(0, torch.arange(0))
        #: Whether this is the Trainer's sanity check, which throws the result away: a sample or two will do.
        self.trial = False
        #: To be called between the parts of an update, of which :attr:`Observer.parts` are one after the other.
        self.part_done: Callable[[], None] = lambda: None

    @abstractmethod
    def update(self, inputs: dict[str, Tensor], target: Tensor) -> None:
        """Add one batch."""

    def compute(self, reduce: Reduce) -> dict[Key, float]:
        """The numbers, the same on every process; by default the means."""
        return {key: mean for key, (mean,) in self.means.compute(reduce).items()}


class Observer(ReleasingCallback, ABC):
    """Measures something in every validation and test epoch, and logs it under ``val/`` or ``test/``.

    The Trainer's sanity check tries the measurement and logs nothing. Epochs that are not measured log the last numbers
    again, so that they are there for callbacks that monitor them. Every run of the Trainer starts without numbers, but
    for a fit that is resumed, which keeps its rhythm.

    Args:
        inputs: names of the modalities in the order of the batch; not needed for a CRMT module.
        split_batch: a function from a batch to ``(inputs, target)``, or its import path, for batches whose form is not
            understood, see :class:`~lightning_crmt.training.NamedModel`.
        every_n_epochs: during a fit, measure at the first validation, then once every n epochs, and in the last epoch;
            ``validate`` and ``test`` always measure.
        max_batches: how many batches of each loader to measure, from the first on; all by default.
        max_samples: how many samples of each loader to measure, evenly spread over it and all processes, each once;
            all by default.
    """

    _running: dict[int, Measurement]
    _dealt: dict[int, DealtSamples]
    _last: dict[str, float]
    _samples: dict[str, int]
    _measured_at: int | None
    #: Held by the first of the Trainer's observers, for all of them.
    _bar: ProgressBar | None = None

    def __init__(
        self,
        *,
        inputs: Sequence[str] | None = None,
        split_batch: SplitBatch | str | None = None,
        every_n_epochs: int = 1,
        max_batches: int | None = None,
        max_samples: int | None = None,
    ) -> None:
        check_at_least(1, every_n_epochs=every_n_epochs, max_batches=max_batches, max_samples=max_samples)
        if isinstance(inputs, str):
            raise TypeError(f"`inputs` must be a sequence of names, got the string {inputs!r}")
        self.inputs = inputs
        self.split_batch = as_split_batch(split_batch)
        self.every_n_epochs = every_n_epochs
        self.max_batches = max_batches
        self.max_samples = max_samples
        self._forget()

    @abstractmethod
    def measurement(self, model: NamedModel) -> Measurement:
        """A fresh measurement of ``model``."""

    def on_measured(self, model: NamedModel, inputs: dict[str, Tensor], target: Tensor) -> None:
        """Called after each measured batch, not in the sanity check; does nothing by default."""

    @property
    def numbers(self) -> dict[str, float]:
        """What was logged last, in full precision, by the same text."""
        return dict(self._last)

    @property
    def samples(self) -> dict[str, int]:
        """Of how many samples each number is that was logged last, by the same text, over all processes.

        Numbers of a class are of its samples. Medians are left out: no mean over samples has their key.
        """
        return dict(self._samples)

    @property
    def parts(self) -> int:
        """How many parts it takes to measure a batch, for the progress bar."""
        return 1

    def due(self, trainer: Trainer) -> bool:
        """Whether this validation epoch is measured; override for another rhythm. A test always is."""
        if trainer.sanity_checking:
            return False
        if trainer.state.fn != TrainerFn.FITTING or self._measured_at is None:
            return True
        epoch, last = trainer.current_epoch, (trainer.max_epochs or 0) - 1
        return epoch in (self._measured_at, last) or epoch >= self._measured_at + self.every_n_epochs

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        for name in NamedModel(pl_module, self.inputs, self.split_batch).names:
            check_key_name("inputs", name, modality=True)
        self._forget()

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # An error before training if it cannot be measured.
        self.measurement(NamedModel(pl_module, self.inputs, self.split_batch))

    @override
    def release(self, pl_module: LightningModule) -> None:
        super().release(pl_module)
        self._running, self._dealt = {}, {}
        self._close_bar()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        self._samples = {}

    # Not ``state_dict``: of callbacks with a state, Lightning refuses two with the same key.

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[self._place(trainer)] = {"last": dict(self._last), "measured_at": self._measured_at}

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        state = checkpoint.get(self._place(trainer))
        if state and trainer.state.fn == TrainerFn.FITTING:
            self._last, self._measured_at = dict(state["last"]), state["measured_at"]

    def _place(self, trainer: Trainer) -> str:
        """Where a checkpoint holds the rhythm and the last numbers."""
        alike = [each for each in callbacks_of(trainer, type(self)) if each.state_key == self.state_key]
        return f"{self.state_key}, {alike.index(self)}"

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
        wanted = self.max_batches is None or batch_idx < self.max_batches
        if trainer.sanity_checking or (wanted and (trainer.testing or self.due(trainer))):
            model = NamedModel(pl_module, self.inputs, self.split_batch)
            inputs, target, judged = model.judged_part(batch)
            samples = Samples(dataloader_idx, self._places(trainer, dataloader_idx, judged))
            rows = self._chosen(samples)
            if len(rows) < len(target):
                samples = replace(samples, places=samples.places[rows])
                inputs, target = select(inputs, rows), target[rows.to(target.device)]
            if len(target) == 0:
                return
            # The sanity check throws its result away: it makes batches that cannot be measured fail before training.
            running = {} if trainer.sanity_checking else self._running
            if dataloader_idx not in running:
                running[dataloader_idx] = self.measurement(model)
            if not trainer.sanity_checking:
                running[dataloader_idx].part_done = self._shown_bar(trainer).update
            running[dataloader_idx].trial = trainer.sanity_checking
            running[dataloader_idx].samples = samples
            running[dataloader_idx].update(inputs, target)
            if not trainer.sanity_checking:
                self.on_measured(model, inputs, target)
            running[dataloader_idx].part_done()

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        check_all_measured(trainer, len(self._running))
        if self._running:
            self._measured_at = trainer.current_epoch
        split = "test" if trainer.testing else "val"
        for index, measurement in self._running.items():
            loader = index if len(self._running) > 1 else None
            numbers = measurement.compute(lambda value, how: trainer.strategy.reduce(value, reduce_op=how))
            self._last |= {str(replace(key, split=split, loader=loader)): value for key, value in numbers.items()}
            self._samples |= {
                str(replace(key, split=split, loader=loader)): counts[0]
                for key, counts in measurement.means.counts.items()
                if key in numbers
            }
        self._running, self._dealt = {}, {}
        self._close_bar()
        # The numbers are equal on all ranks already; sync_dist says so to Lightning.
        pl_module.log_dict(self._last, sync_dist=True, add_dataloader_idx=False)

    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end

    def _places(self, trainer: Trainer, loader: int, judged: Tensor) -> Tensor:
        """Where those of the next batch that are judged stand in the data set."""
        if trainer.sanity_checking:  # which reads the first batches of a loader that is read again
            return torch.arange(len(judged))[judged.cpu()]
        if loader not in self._dealt:
            self._dealt[loader] = _dealt(trainer)[loader]
        return self._dealt[loader].places(len(judged))[judged.cpu()]

    def _chosen(self, samples: Samples) -> Tensor:
        """Those rows that are among the ``max_samples`` samples."""
        if self.max_samples is None:
            return torch.arange(len(samples.places))
        dealt = self._dealt.get(samples.loader)  # none in the sanity check
        chosen = samples.places < self.max_samples if dealt is None else dealt.chosen(samples.places, self.max_samples)
        return chosen.nonzero().squeeze(1)

    def _shown_bar(self, trainer: Trainer) -> ProgressBar:
        """One for all observers, over the batches of all loaders."""
        observers = [each for each in callbacks_of(trainer, ReleasingCallback) if isinstance(each, Observer)]
        first = observers[0]
        if first._bar is None:
            totals = [observer._parts_to_come(trainer) for observer in observers]
            total = int(sum(totals)) if math.isfinite(sum(totals)) else None
            first._bar = ProgressBar(trainer, "Measuring robustness", total, after=_PATIENCE)
        return first._bar

    def _parts_to_come(self, trainer: Trainer) -> float:
        if not (trainer.testing or self.due(trainer)):
            return 0
        totals = trainer.num_test_batches if trainer.testing else trainer.num_val_batches
        most = [math.inf if self.max_batches is None else self.max_batches] * len(totals)
        if self.max_samples is not None:
            hold = [dealt.batches(self.max_samples) for dealt in _dealt(trainer)]
            most = [min(limit, each or math.inf) for limit, each in zip(most, hold, strict=False)]
        return self.parts * sum(min(total, limit) for total, limit in zip(totals, most, strict=False))

    def _close_bar(self) -> None:
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.close()

    def _forget(self) -> None:
        self._running, self._dealt = {}, {}
        self._last = {}
        self._samples = {}
        self._measured_at = None


def counts_of(trainer: Trainer) -> dict[str, int]:
    """Of how many samples each number is that observers logged last, by the same text; see ``Observer.samples``.

    Args:
        trainer: whose callbacks may be observers, such as :class:`~lightning_crmt.callbacks.MissingModalities`.

    >>> counts_of(Trainer(logger=False))
    {}
    """
    observers = [each for each in getattr(trainer, "callbacks", []) if isinstance(each, Observer)]
    return {name: count for each in observers for name, count in each.samples.items()}


def _dealt(trainer: Trainer) -> list[DealtSamples]:
    batches = trainer.num_test_batches if trainer.testing else trainer.num_val_batches
    loaders = evaluation_loaders(trainer)
    return [DealtSamples(loader, batches[index]) for index, loader in enumerate(loaders)]


def check_radii(radii: Sequence[float]) -> list[float]:
    """``radii`` as a list, checked to be valid in keys.

    Raises:
        TypeError: if they are not a sequence of numbers.
        ValueError: if one is negative or infinite, or two are equal.
    """
    if not isinstance(radii, Sequence) or not all(isinstance(radius, int | float) for radius in radii):
        raise TypeError(f"`radii` must be numbers, got {radii!r}")
    if not all(0 <= radius < math.inf for radius in radii) or len(set(radii)) != len(radii):
        raise ValueError(f"`radii` must be at least 0, finite and different, got {radii}")
    return list(radii)
