# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The base of training methods: a callback that takes part in the steps of a CRMT module."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from enum import Flag, auto
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_crmt.checks import describe
from lightning_crmt.mixin import CRMTMixin
from lightning_crmt.modality import FusionOutput, Inputs
from lightning_crmt.targets import Target
from lightning_crmt.training.data_pass import TrainingPass
from lightning_crmt.training.named_model import crmt_module

C = TypeVar("C", bound=Callback)

#: The source of a method's formula: read in its paper, read in code of its authors or of a published comparison,
#: recalled from memory, or our own.
Source: TypeAlias = Literal["paper", "authors' code", "others' code", "recalled", "ours"]


class Needs(Flag):
    """What a method needs of a fit, checked before training."""

    NOTHING = 0
    #: Two modalities or more, to compare them with each other.
    MODALITIES = auto()
    #: Whole gradients before every optimizer step, and whole parameters after it.
    STEPS = auto()
    #: Validation data.
    VALIDATION = auto()
    #: A pass over the training data, or over the method's ``dataloader``.
    TRAINING_PASS = auto()
    #: One class per sample.
    CLASSES = auto()


def callbacks_of(trainer: Trainer, kind: type[C]) -> list[C]:
    """The callbacks of a kind that take part in the run, in their order."""
    return [callback for callback in trainer.callbacks if isinstance(callback, kind)]  # type: ignore[attr-defined]


class ReleasingCallback(Callback):
    """Finds the parts of a module in ``setup``, and undoes its changes when a run ends, also by an error or Ctrl-C."""

    def release(self, pl_module: LightningModule) -> None:
        """Pop what this callback has pushed; to undo more, override this and call ``super().release``.

        Keep the state that checkpoints hold until the next run: checkpoints are also saved after an error.
        """
        if isinstance(pl_module, CRMTMixin):
            pl_module.training_stage.pop(self)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Builds the parts that the module builds in ``configure_model``, which Lightning calls again after this.

        Raises:
            RuntimeError: if the module would then build other ones.
        """
        if isinstance(pl_module, CRMTMixin) and None in _parts(pl_module):
            with trainer.init_module():
                pl_module.configure_model()
                built = _parts(pl_module)
                pl_module.configure_model()
            if any(part is not again for part, again in zip(built, _parts(pl_module), strict=True)):
                raise RuntimeError(
                    f"`configure_model` of {type(pl_module).__name__} must leave alone what it has built, as Lightning "
                    "may call it several times: begin with `if self.head is not None: return`"
                )

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.release(pl_module)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # The Trainer does not tear down what failed, and the module may be trained again.
        self.release(pl_module)


def _parts(module: CRMTMixin) -> list[object]:
    return [getattr(module, "encoders", None), getattr(module, "head", None)]


class Method(ReleasingCallback):
    """A training method: add the callback to train a CRMT module with it. Several compose, in the order of the list.

    A method changes the batch (:meth:`transform`), adds to the loss (:meth:`term`), or changes gradients or learning
    rates (:meth:`before_step`, :meth:`on_epoch`, or any hook of a callback).

    Raises:
        TypeError: on ``setup``, if the module is not a CRMT module.
        ValueError: before training, if the fit lacks what the method needs.

    >>> import torch
    >>> class SmallLogits(Method):
    ...     source = "recalled"
    ...     def __init__(self, weight):
    ...         self.weight = weight
    ...     def term(self, module, output, target):
    ...         return self.weight * output.logits.square().mean()
    >>> method = SmallLogits(weight=0.1)  # Trainer(callbacks=[method]) trains with it
    >>> method.term(None, FusionOutput(logits=torch.full((4, 3), 2.0), scores={}), target=torch.zeros(4))
    tensor(0.4000)
    """

    #: How its formula was obtained.
    source: ClassVar[Source]
    #: What it needs of a fit.
    needs: Needs = Needs.NOTHING
    #: The names of the attributes that checkpoints hold, so that a resumed run goes on with them: tensors and plain
    #: Python, as resuming loads with ``weights_only``.
    saved: ClassVar[tuple[str, ...]] = ()
    #: Batches for passes of its own; None for the training data set in order.
    dataloader: Iterable[Any] | None = None

    def reset(self) -> None:
        """Forget the fits so far; called at the start of each."""

    def forget_batches(self) -> None:
        """Forget the batches since the last step; called where training goes back to a checkpoint."""

    def begin(self, module: CRMTMixin) -> None:
        """Get ready to train ``module``, or refuse it; called before training."""

    def on_epoch(self, module: CRMTMixin) -> None:
        """Act at the start of a training epoch."""

    def before_step(self, module: CRMTMixin) -> None:
        """Act right before a step of the optimizer, on gradients that are accumulated and unscaled."""

    def transform(self, module: CRMTMixin, inputs: Inputs, target: Target) -> tuple[Inputs, Target]:
        """Inputs and targets to train on, by default those given."""
        return inputs, target

    def term(self, module: CRMTMixin, output: FusionOutput, target: Target) -> Tensor | None:
        """A term to add to the loss of a batch, by default none."""
        return None

    def features_of(self, output: FusionOutput) -> dict[str, Tensor]:
        """What the head was given, by modality.

        Raises:
            ValueError: naming the method, if the output does not say.
        """
        if not output.features:
            raise ValueError(
                f"{type(self).__name__} reads the features of each modality: the head must put what it was given into "
                "`FusionOutput.features`, which is empty"
            )
        return output.features

    def active(self, pl_module: LightningModule) -> bool:
        """Whether the method takes part in the current run, which is so in a fit."""
        return any(method is self for method in crmt_module(pl_module, self).training_stage.methods)

    # --- the hooks of a callback

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        module, name = crmt_module(pl_module, self), type(self).__name__
        if stage != "fit":
            return
        module.check_parts()
        if Needs.MODALITIES in self.needs and len(module.encoders) < 2:
            raise ValueError(
                f"{name} compares modalities with each other and needs at least 2, got {list(module.encoders)}"
            )
        if Needs.CLASSES in self.needs and module.crmt_criterion.multi_label:
            raise ValueError(
                f"{name} goes by the class of a sample, and with multi_label=True it has any number of labels"
            )
        if Needs.STEPS in self.needs and not module.automatic_optimization:
            raise ValueError(
                f"{name} acts on the optimizer steps that Lightning makes: `automatic_optimization` must be True, got "
                "False"
            )
        if Needs.STEPS in self.needs and not isinstance(trainer.strategy, DDPStrategy | SingleDeviceStrategy):
            raise RuntimeError(
                f"{name} reads whole parameters and gradients, which every process has on a single device and under "
                f"DDP, got {describe(trainer.strategy)}"
            )
        self.reset()
        self.begin(module)
        module.training_stage.push(self, method=self)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if Needs.VALIDATION in self.needs:
            if trainer.enable_validation:
                # Lightning sets the loaders up before the first validation, which may be epochs away.
                trainer.fit_loop.epoch_loop.val_loop.setup_data()
            if not trainer.enable_validation or not sum(trainer.num_val_batches):
                raise ValueError(f"{type(self).__name__} needs validation data in the fit, got none")
        if Needs.TRAINING_PASS in self.needs:
            TrainingPass(trainer, self.dataloader)  # so that unreadable data is an error now and not epochs later

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_epoch(crmt_module(pl_module, self))

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self.before_step(crmt_module(pl_module, self))

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Otherwise a run without the method would be reported as one with it.
        calls, kind = crmt_module(pl_module, self).training_stage.calls, type(self)
        must = None
        if kind.transform is not Method.transform and "training_batch" not in calls:
            must = "begin with `inputs, target = self.training_batch(batch)`"
        elif kind.term is not Method.term and "crmt_loss" not in calls:
            must = "return `self.crmt_loss(self(inputs), target)`, alone or among other terms"
        if must is not None:
            raise RuntimeError(
                f"{kind.__name__} has no effect: `training_step` of {type(pl_module).__name__} must {must}"
            )

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # Also after the trial of a learning rate or a batch size, which calls no hooks of callbacks, such as those that
        # end a step.
        self.forget_batches()

    @property
    @override
    def state_key(self) -> str:
        # Lightning refuses two stateful callbacks of one key; where there is no state, several may compose.
        stateful = self.saved or type(self).state_dict is not Method.state_dict
        return super().state_key if stateful else f"{super().state_key}[{id(self)}]"

    @override
    def state_dict(self) -> dict[str, Any]:
        """Copies of the attributes in ``saved``."""
        return {name: deepcopy(getattr(self, name)) for name in self.saved}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the attributes from an interrupted run."""
        for name in self.saved:
            setattr(self, name, state_dict[name])
