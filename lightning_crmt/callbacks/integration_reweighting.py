# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Step 2 of CRMT at the end of a fit."""

# No postponed annotations: jsonargparse checks the fields of a dataclass by them.
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_warn
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_crmt.checks import check_at_least, check_positive, describe
from lightning_crmt.evaluation import Key
from lightning_crmt.fusion import LateFusion
from lightning_crmt.lipschitz import LipschitzConstants, ProbeSearch
from lightning_crmt.losses import OBJECTIVES, Objective
from lightning_crmt.mixin import CRMTMixin
from lightning_crmt.modality import Inputs
from lightning_crmt.reweighting import (
    CONSTANTS_LEVELS,
    KeptScores,
    Reweighted,
    check_reweightable,
    keep_scores,
    of_samples,
    reweight,
)
from lightning_crmt.soundness import Soundness
from lightning_crmt.training import ProgressBar, TrainingPass, callbacks_of, crmt_module

#: Callbacks of Lightning that put averaged weights into the module when a fit ends, after step 2.
_AVERAGING = {"StochasticWeightAveraging", "WeightAveraging"}


@dataclass(eq=False, repr=False)
class IntegrationReweighting(Callback):
    """Step 2 of CRMT (Yang et al., ICLR 2024): train the integration weights alone on the robustness bound.

    After the last training step of a fit, and before the validation that follows it, so that validation, checkpoints
    and loggers see the result: one pass over the training data measures the Lipschitz constants and keeps the scores of
    all samples, then :func:`~lightning_crmt.reweight` optimises on these alone. Everything but the integration weights
    stays as it is. Loggers get ``train/integration_objective`` and ``train/integration_weight/<modality>`` after each
    epoch of it, at the steps after the last, without ``epoch``, which counts those of step 1.

    A fit that ends before its last step, by ``EarlyStopping`` or ``max_time``, is reweighted at its end, after its last
    validation, with a warning. A checkpoint that was saved before step 2, such as the best of all epochs, is a model
    after step 1: ``lightning-crmt reweight`` does step 2 on it.

    Works on a single device and under DDP, where each process passes over its share and all end with the same weights.

    Args:
        epochs: passes over the kept scores.
        lr: learning rate, whatever the optimizer.
        batch_size: samples in a step.
        optimizer: makes the optimizer of the integration weights, ``Adam`` by default.
        objective: ``"clipped"``, or ``"mean"`` as in the paper.
        clip: bound c of the clipped objective, in units of the inputs; by default the mean :math:`|r|` at the start.
        constants: ``"estimated"``, of the scores on the training data, as in the paper; or ``"sound"``, upper bounds
            for encoders all of whose layers have one, such as ``LipschitzMLP``. A
            :class:`~lightning_crmt.ProbeSearch` estimates them too, without taking all gradients: for many classes.
        passes: over the training data; more than one for data that are augmented at random.
        dataloader: batches for the pass; by default the training data set in order, each sample once.
        seed: of the order of the kept scores.

    Attributes:
        kept: scores, target and constants that step 2 worked on; None before it.
        reweighted: its result; None before it.

    Raises:
        ValueError: before training, if an argument is out of range, the fit makes no step, or the scores do not fit
            into memory.
        TypeError: before training, if the module is not a CRMT module or its head has no integration weights.
        RuntimeError: before training, under a strategy that keeps parameters in pieces.

    >>> IntegrationReweighting(epochs=10).state_key
    'IntegrationReweighting'
    """

    epochs: int = 10
    _: KW_ONLY
    lr: float = 0.01
    batch_size: int = 64
    optimizer: Callable[[Iterable[Any]], Optimizer] = torch.optim.Adam
    objective: Objective = "clipped"
    clip: float | None = None
    constants: Soundness | str | ProbeSearch = "estimated"
    passes: int = 1
    dataloader: Iterable[Any] | None = None
    seed: int = 0
    last_epochs: int | None = None  # the name of ``epochs`` when they were the last of the fit
    start_epoch: int | None = None

    def __post_init__(self) -> None:
        if self.last_epochs is not None or self.start_epoch is not None:
            warnings.warn(
                "`last_epochs` and `start_epoch` of IntegrationReweighting are gone: step 2 follows the last epoch of "
                "training, for `epochs` on kept scores; lower `max_epochs` to train as long as before",
                DeprecationWarning,
                stacklevel=3,
            )
            check_at_least(1, last_epochs=self.last_epochs)
            check_at_least(0, start_epoch=self.start_epoch)
            self.epochs = self.last_epochs or self.epochs
        check_at_least(1, epochs=self.epochs, batch_size=self.batch_size, passes=self.passes)
        check_positive(lr=self.lr, clip=self.clip)
        if self.objective not in OBJECTIVES:
            raise ValueError(f"`objective` must be one of {OBJECTIVES}, got {self.objective!r}")
        if isinstance(self.dataloader, Iterator):
            given = describe(self.dataloader)
            raise TypeError(f"`dataloader` is read again in every fit, so it must not be an iterator, got {given}")
        if not isinstance(self.constants, ProbeSearch):
            self.constants = Soundness.among(CONSTANTS_LEVELS, "constants", self.constants)
        self._forget()

    def _forget(self) -> None:
        self.kept: KeptScores | None = None
        self.reweighted: Reweighted | None = None
        self._done_at: int | None = None  # steps of training when step 2 was done, in a checkpoint too

    @override
    def state_dict(self) -> dict[str, Any]:
        return {} if self._done_at is None else {"done_at": self._done_at}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._done_at = state_dict.get("done_at")

    # --- before training: every failure that can be foreseen happens here

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._forget()
        crmt_module(pl_module, self)
        if not isinstance(trainer.strategy, DDPStrategy | SingleDeviceStrategy):
            raise RuntimeError(
                "IntegrationReweighting runs encoders and head outside of the training step, where only a single "
                f"device and DDP hold whole parameters, got {describe(trainer.strategy)}; train without it, and do "
                "step 2 on the checkpoint: lightning-crmt reweight"
            )
        if trainer.limit_train_batches == 0:
            raise ValueError("`limit_train_batches` must be above 0 for step 2 to see samples, got 0")
        averaging = [name for each in callbacks_of(trainer, Callback) for name in _kinds_of(each) & _AVERAGING]
        if averaging:
            rank_zero_warn(
                f"{averaging[0]} replaces the weights of step 2 by averages when the fit ends; train without "
                "IntegrationReweighting, and do step 2 on the checkpoint: lightning-crmt reweight"
            )

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = crmt_module(pl_module, self)
        module.check_parts()
        check_reweightable(module.head)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data, head = TrainingPass(trainer, self.dataloader), check_reweightable(crmt_module(pl_module, self).head)
        numbers = self.passes * (data.size or 0) * len(head.in_features) * head.num_classes
        if 4 * numbers > (memory := _memory()):
            raise ValueError(
                f"step 2 keeps {numbers:,} scores in memory, {numbers / 2**28:.1f} GiB where there are "
                f"{memory / 2**30:.1f}: give a `dataloader` with fewer samples, or fewer `passes` than {self.passes}"
            )

    # --- the moment

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        last_epoch = trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch + 1
        last = last_epoch and trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if last or 0 <= trainer.max_steps <= trainer.global_step:
            curves = self._reweight(trainer, crmt_module(pl_module, self))
            pl_module.log_dict(curves, on_step=False, on_epoch=True, batch_size=1)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A fit that goes on between step 2 and the validation after it has nothing more to do.
        if self.reweighted is None and trainer.global_step not in (0, self._done_at):
            rank_zero_warn(
                f"the fit ended early, after {trainer.current_epoch} epochs: step 2 follows its last validation, which "
                "did not see it, nor did checkpoints so far"
            )
            self._reweight(trainer, crmt_module(pl_module, self))

    def _reweight(self, trainer: Trainer, module: CRMTMixin) -> dict[str, float]:
        """Do step 2; the curves' last values, the same on every process."""
        data = TrainingPass(trainer, self.dataloader)
        with isolate_rng():
            kept = keep_scores(module, self._batches(data, module), self.constants)
        self.kept = self._of_all_processes(kept, data)
        if kept.target.dim() == 1:
            self.kept = of_samples(self.kept, self.kept.target >= 0)
        with ProgressBar(trainer, "Integration reweighting", self.epochs) as bar:
            self.reweighted = self.reweight(check_reweightable(module.head), self.kept, lambda *_: bar.update())
        state = trainer.strategy.broadcast(self.reweighted.head.state_dict())
        module.head.load_state_dict(state)
        self._done_at = trainer.global_step
        curves: dict[str, float] = {}
        for epoch, (loss, weights) in enumerate(
            zip(self.reweighted.objective, self.reweighted.weights, strict=True), 1
        ):
            curves = {str(Key("train", "integration_weight", name)): weight for name, weight in weights.items()}
            curves[str(Key("train", "integration_objective"))] = loss
            for logger in trainer.loggers:
                logger.log_metrics(curves, step=trainer.global_step + epoch)
        return curves

    def _of_all_processes(self, kept: KeptScores, data: TrainingPass) -> KeptScores:
        constants = {name: data.largest(value) for name, value in kept.constants.values.items()}
        # In one process all samples may have a modality that some in another lack.
        lacked = torch.tensor([name in kept.present for name in kept.scores], device=data.trainer.strategy.root_device)
        lacked = data.largest(lacked.int())
        everywhere = torch.ones(len(kept.target), dtype=torch.bool)
        return KeptScores(
            {name: data.gathered(value, self.passes) for name, value in kept.scores.items()},
            data.gathered(kept.target, self.passes),
            replace(kept.constants, values=constants),
            {
                name: data.gathered(kept.present.get(name, everywhere).int(), self.passes).bool()
                for name, some in zip(kept.scores, lacked.tolist(), strict=True)
                if some
            },
        )

    def reweight(self, head: LateFusion, kept: KeptScores, on_epoch: Callable[..., object] | None = None) -> Reweighted:
        """:func:`~lightning_crmt.reweight` with the settings of this callback."""
        return reweight(
            head,
            *kept,
            objective=self.objective,
            clip=self.clip,
            epochs=self.epochs,
            lr=self.lr,
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            seed=self.seed,
            on_epoch=on_epoch,
        )

    def _batches(self, data: TrainingPass, module: CRMTMixin) -> Iterator[tuple[Inputs, Tensor]]:
        for _ in range(self.passes):
            for batch in data.batches("Scores and Lipschitz constants"):
                inputs, target = module.split_batch(batch)
                criterion = module.crmt_criterion
                criterion.check(target, module.head.num_classes, len(next(iter(inputs.values()))))
                right, counted = criterion.answers(target).long(), criterion.counted(target)
                # All samples, as processes put theirs together by their number; those that do not count are -1.
                yield inputs, right if counted is None else torch.where(counted, right, -1)

    @property
    def lipschitz(self) -> LipschitzConstants | None:
        """The constants of step 2; None before it."""
        return None if self.kept is None else self.kept.constants


def _kinds_of(callback: Callback) -> set[str]:
    return {kind.__name__ for kind in type(callback).__mro__}


def _memory() -> int:
    """Bytes of the machine's memory; more than any machine has where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 2**60
