# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Step 2 of CRMT within the same fit."""

# No postponed annotations: jsonargparse checks the fields of a dataclass by them.
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_warn
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn
from torch.nn.utils import parameters_to_vector
from typing_extensions import override

from lightning_crmt.checks import check_at_least, check_positive, describe
from lightning_crmt.lipschitz import LipschitzConstants, ProbeSearch, encoder_bounds, estimate_lipschitz
from lightning_crmt.losses import Objective, integration_objective, true_class_radii
from lightning_crmt.mixin import CRMTMixin
from lightning_crmt.soundness import Soundness
from lightning_crmt.stage import StageObjective
from lightning_crmt.training import BatchSums, ReleasingCallback, TrainingPass, crmt_module, late_fusion


@dataclass(eq=False, repr=False)
class IntegrationReweighting(ReleasingCallback):
    r"""Step 2 of CRMT (Yang et al., ICLR 2024): train the integration weights alone on the robustness bound.

    From the switch on, encoders and directions are frozen and in evaluation mode, and the module's ``crmt_loss``
    returns :func:`~lightning_crmt.integration_objective` instead of step 1's loss. Right before, the Lipschitz
    constants are measured, by default those of all scores on the training data, through a separate loader. The joint
    norm of all weights is kept: apart from the bias, the bound does not depend on it, but the scale of the logits
    does. When the fit ends, every parameter is as trainable, and every submodule in the mode, as before.

    A resumed run keeps the constants of the interrupted one. Under DDP choose
    ``strategy="ddp_find_unused_parameters_true"``: frozen parameters are unused ones.

    Args:
        last_epochs: length of step 2; give this or ``start_epoch``.
        start_epoch: first epoch of step 2, counted from 0.
        lr: learning rate of the integration weights in step 2, which overrides the optimizer and its scheduler.
        objective: ``"clipped"``, or ``"mean"`` as in the paper.
        clip: bound c of the clipped objective, in units of the inputs; by default the mean :math:`|r|` at the switch.
        constants: ``"estimated"``, of the scores on the training data, as in the paper; or ``"sound"``, upper bounds
            for encoders all of whose layers have one, such as ``LipschitzMLP``. A
            :class:`~lightning_crmt.ProbeSearch` estimates them too, without taking all gradients: for many classes.
        dataloader: batches for the Lipschitz pass; by default the training data set in order, each sample once.

    Raises:
        ValueError: before training, if the switch lies past the end, or an argument is out of range.
        TypeError: before training, if the module is not a CRMT module or its head has no integration weights.
        RuntimeError: before training, under a strategy that cannot freeze parameters midway.

    >>> IntegrationReweighting(last_epochs=10).state_key
    'IntegrationReweighting'
    """

    last_epochs: int | None = None
    _: KW_ONLY
    start_epoch: int | None = None
    lr: float = 0.01
    objective: Objective = "clipped"
    clip: float | None = None
    constants: Soundness | str | ProbeSearch = "estimated"
    dataloader: Iterable[Any] | None = None

    def __post_init__(self) -> None:
        if (self.last_epochs is None) == (self.start_epoch is None):
            given = f"{self.last_epochs} and {self.start_epoch}"
            raise ValueError(f"give one of `last_epochs` and `start_epoch`, got {given}")
        check_at_least(1, last_epochs=self.last_epochs)
        check_at_least(0, start_epoch=self.start_epoch)
        check_positive(lr=self.lr, clip=self.clip)
        if self.objective not in ("mean", "clipped"):
            raise ValueError(f"`objective` must be 'mean' or 'clipped', got {self.objective!r}")
        if isinstance(self.dataloader, Iterator):
            given = describe(self.dataloader)
            raise TypeError(f"`dataloader` is read twice, so it must not be an iterator, got {given}")
        self.search = self.constants if isinstance(self.constants, ProbeSearch) else None
        level = "estimated" if isinstance(self.constants, ProbeSearch) else self.constants
        self.constants = Soundness.among([Soundness.ESTIMATED, Soundness.SOUND], "constants", level)
        self._forget()

    def _forget(self) -> None:
        #: The constants of step 2; None before the switch.
        self.lipschitz: LipschitzConstants | None = None
        self._clip: float | None = None
        self._norm: float | None = None
        self._rates: list[float] = []  # of the groups that hold the weights, before step 2
        self._freeze: Callable[[], None] | None = None  # in step 2 only

    def switch_epoch(self, trainer: Trainer) -> int:
        """First epoch of step 2, counted from 0; the only one of a fast development run."""
        if getattr(trainer, "fast_dev_run", False):
            return 0
        if self.start_epoch is not None:
            return self.start_epoch
        if self.last_epochs is None or trainer.max_epochs is None or trainer.max_epochs < 0:
            raise ValueError("`last_epochs` needs a Trainer with `max_epochs`, got none; give `start_epoch` instead")
        return trainer.max_epochs - self.last_epochs

    # --- before training: every failure that can be foreseen happens here

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        # A resumed run gets its constants back after this; a callback that is used again must not keep them.
        self._forget()
        module = crmt_module(pl_module, self)
        module.check_parts()
        if not late_fusion(module, self).integration_parameters():
            raise TypeError(
                "IntegrationReweighting needs a head with integration weights, such as OrthogonalFusion, "
                f"got {type(module.head).__name__}"
            )
        _check_strategy(trainer)
        switch, end = self.switch_epoch(trainer), trainer.max_epochs
        if switch < 0 or (end is not None and 0 <= end <= switch):
            given = f"last_epochs={self.last_epochs}" if self.start_epoch is None else f"start_epoch={self.start_epoch}"
            raise ValueError(
                f"`{given}` puts the switch at epoch {switch}, outside the {end} epochs of this fit (`max_epochs`)"
            )
        if trainer.early_stopping_callbacks and (trainer.min_epochs or 0) <= switch:
            rank_zero_warn(
                f"EarlyStopping may end this fit before step 2 begins at epoch {switch}; "
                f"Trainer(min_epochs={switch + 1}) keeps it from doing so"
            )

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        switch = self.switch_epoch(trainer)
        steps = switch * max(1, math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches))
        if trainer.max_steps != -1 and trainer.max_steps <= steps:
            raise ValueError(
                f"`max_steps={trainer.max_steps}` ends this fit before step 2, which begins at epoch {switch}, "
                f"after {steps} steps"
            )
        held = {id(parameter) for group in self._groups(trainer, pl_module) for parameter in group["params"]}
        if any(id(parameter) not in held for parameter in crmt_module(pl_module, self).head.integration_parameters()):
            raise ValueError("the optimizer must hold the integration weights, `head.integration_parameters()`")
        TrainingPass(trainer, self.dataloader)  # so that unreadable data is an error now and not at the switch
        if self.lipschitz is not None and trainer.current_epoch < switch:
            # Resumed from step 2 to train longer: step 1 continues first, which makes the constants stale.
            for group, rate in zip(self._groups(trainer, pl_module), self._rates, strict=True):
                group["lr"] = rate
            self.lipschitz = None

    # --- the switch

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch < self.switch_epoch(trainer):
            return
        module = crmt_module(pl_module, self)
        if self.lipschitz is None:
            self.lipschitz = self._measure(module)
            self._rates = [float(group["lr"]) for group in self._groups(trainer, pl_module)]
            for optimizer in trainer.optimizers:
                for parameter in module.head.integration_parameters():
                    # Moments gathered under step 1's loss would scale the first steps on the new one.
                    optimizer.state.pop(parameter, None)
        self._enter(module, self.lipschitz)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.lipschitz is None or trainer.current_epoch < self.switch_epoch(trainer):
            return
        if self._freeze is None:  # resumed in the middle of an epoch: Lightning skips the start of it
            self._enter(crmt_module(pl_module, self), self.lipschitz)
        for group in self._groups(trainer, pl_module):
            group["lr"] = self.lr

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._freeze is None or self._norm is None:
            return
        module = crmt_module(pl_module, self)
        if "crmt_loss" not in module.training_stage.calls:
            raise RuntimeError(
                "step 2 trains on what `crmt_loss` returns, but the training step did not call it: return "
                "`self.crmt_loss(self(inputs), target)`, alone or among other terms"
            )
        with torch.no_grad():
            weights = module.head.integration_parameters()
            norm = parameters_to_vector(weights).norm()
            for weight in weights:
                weight.mul_(self._norm / norm)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.lipschitz is None:
            rank_zero_warn(
                f"the fit ended after {trainer.current_epoch} epochs, before step 2 began at epoch "
                f"{self.switch_epoch(trainer)}"
            )

    @override
    def release(self, pl_module: LightningModule) -> None:
        super().release(pl_module)
        self._freeze = None

    # --- state: tensors and plain numbers, as resuming loads with weights_only

    @override
    def state_dict(self) -> dict[str, Any]:
        if self.lipschitz is None:
            return {}
        values = {name: value.cpu() for name, value in self.lipschitz.values.items()}
        kind = {"of": self.lipschitz.of, "soundness": int(self.lipschitz.soundness)}
        return {"lipschitz": values, **kind, "clip": self._clip, "norm": self._norm, "rates": self._rates}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict:
            soundness = Soundness(state_dict["soundness"])
            self.lipschitz = LipschitzConstants(state_dict["lipschitz"], of=state_dict["of"], soundness=soundness)
            self._clip, self._norm, self._rates = state_dict["clip"], state_dict["norm"], state_dict["rates"]

    # --- parts

    def _measure(self, module: CRMTMixin) -> LipschitzConstants:
        """The constants that step 2 uses, the same on every process; keeps the clip and the norm."""
        data = TrainingPass(module.trainer, self.dataloader)
        with isolate_rng():
            if self.constants is Soundness.SOUND:
                first = module.split_batch(next(iter(data.batches("Shapes"))))[0]
                lipschitz = encoder_bounds(module.encoders, {name: tuple(x.shape[1:]) for name, x in first.items()})
            else:
                inputs = (module.split_batch(batch)[0] for batch in data.batches("Lipschitz constants"))
                own = estimate_lipschitz(module, inputs, search=self.search)
                reduce = module.trainer.strategy.reduce
                values = {name: reduce(value, reduce_op="max").to(value) for name, value in own.values.items()}
                lipschitz = LipschitzConstants(values, of=own.of, soundness=own.soundness)
        self._clip = self.clip
        if self._clip is None and self.objective == "clipped":
            sums, head = BatchSums(), late_fusion(module, self)
            with data.samples(module, "Radii at the switch") as samples:
                for each, target in samples:
                    radii = true_class_radii(module(each), target, head, lipschitz)
                    sums.add({"radius": radii.abs().sum()}, len(target))
            if not sums:
                raise ValueError("the Lipschitz pass must see at least one sample, got none")
            self._clip = sums.means(module.trainer)["radius"]
        self._norm = float(parameters_to_vector(module.head.integration_parameters()).detach().norm())
        return lipschitz

    def _enter(self, module: CRMTMixin, lipschitz: LipschitzConstants) -> None:
        if self._freeze is None:
            head = late_fusion(module, self)
            loss = partial(
                integration_objective, head=head, lipschitz=lipschitz, objective=self.objective, clip=self._clip
            )
            self._freeze, restore = _freezing(module, but=module.head.integration_parameters())
            objective = StageObjective("integration_objective", loss)
            module.training_stage.push(self, objective=objective, undo=restore)
        self._freeze()

    def _groups(self, trainer: Trainer, pl_module: LightningModule) -> list[dict[str, Any]]:
        """The groups of optimizers that hold integration weights."""
        integration = {id(parameter) for parameter in crmt_module(pl_module, self).head.integration_parameters()}
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        return [group for group in groups if any(id(parameter) in integration for parameter in group["params"])]


def _freezing(module: nn.Module, but: list[nn.Parameter]) -> tuple[Callable[[], None], Callable[[], None]]:
    """Two functions: one freezes all of a module but some parameters, the other restores its present state."""
    kept = {id(parameter) for parameter in but}
    parameters = [p for p in module.parameters() if p.requires_grad and id(p) not in kept]
    modes = [(part, part.training) for part in module.modules() if part is not module]

    def freeze() -> None:
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None  # a stale one would still move it
        for part, _ in modes:
            part.training = False  # BatchNorm keeps its statistics

    def restore() -> None:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for part, mode in modes:
            part.training = mode

    return freeze, restore


def _check_strategy(trainer: Trainer) -> None:
    """Refuse strategies that cannot freeze parameters in the middle of a fit."""
    strategy, freezes = trainer.strategy, "IntegrationReweighting freezes most parameters in the middle of the fit, "
    if isinstance(strategy, DDPStrategy) and not strategy._ddp_kwargs.get("find_unused_parameters", False):
        raise RuntimeError(
            f"{freezes}and DDP waits for the gradients of every parameter: choose "
            "Trainer(strategy='ddp_find_unused_parameters_true')"
        )
    if not isinstance(strategy, DDPStrategy | SingleDeviceStrategy):
        raise RuntimeError(
            f"{freezes}which is known to work on a single device and under DDP, got {describe(strategy)}"
        )
