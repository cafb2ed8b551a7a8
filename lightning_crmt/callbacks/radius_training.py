# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Step 1 on the certified radius itself."""

from __future__ import annotations

from functools import partial
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lightning_crmt.lipschitz import encoder_bounds
from lightning_crmt.losses import radius_loss
from lightning_crmt.mixin import CRMTMixin, StageObjective
from lightning_crmt.modality import FusionOutput
from lightning_crmt.targets import Target, mixed_loss
from lightning_crmt.training import crmt_module, late_fusion


class RadiusTraining(Callback):
    """Step 1 on the certified radius itself: a hinge on sound radii in place of cross-entropy and margins.

    The loss is :func:`~lightning_crmt.losses.radius_loss`.

    For encoders that are 1-Lipschitz by construction, such as ``LipschitzMLP``, whose bound does not change while they
    learn; the bound is computed anew in every epoch all the same. ``IntegrationReweighting`` takes over at its switch.

    Args:
        radius: the wanted radius, in units of the inputs, above 0.
        temperature: how sharply the loss looks at the nearest rival, in 1 over units of the inputs, above 0.
        rho: weight of the modalities' own radii, at least 0; what keeps each of them useful when others are missing.

    Raises:
        TypeError: before training, if the module is no CRMT module.
        NoBoundError: a ``ValueError``, at the first batch, naming a layer of an encoder without a bound.

    >>> callback = RadiusTraining(radius=0.2)
    """

    def __init__(self, radius: float = 0.2, temperature: float = 15.0, rho: float = 0.2) -> None:
        for name, value in {"radius": radius, "temperature": temperature}.items():
            if not value > 0:
                raise ValueError(f"`{name}` must be above 0, got {value}")
        if not rho >= 0:
            raise ValueError(f"`rho` must be at least 0, got {rho}")
        self.radius = radius
        self.temperature = temperature
        self.rho = rho
        self._own: StageObjective | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            module = crmt_module(pl_module, self)
            module.check_parts()
            late_fusion(module, self)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        module = crmt_module(pl_module, self)
        if module.stage_objective is not self._own:  # step 2 has begun
            return
        if batch_idx == 0 or self._own is None:
            inputs, _ = module.split_batch(batch)
            bounds = encoder_bounds(module.encoders, {name: tuple(value.shape[1:]) for name, value in inputs.items()})
            loss = partial(
                _loss_of_mixture,
                head=late_fusion(module, self),
                lipschitz=bounds,
                radius=self.radius,
                temperature=self.temperature,
                rho=self.rho,
            )
            self._own = module.stage_objective = StageObjective("radius_loss", loss, with_methods=True)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if isinstance(pl_module, CRMTMixin) and pl_module.stage_objective is self._own:
            pl_module.stage_objective = None
        self._own = None


def _loss_of_mixture(output: FusionOutput, target: Target, **settings: Any) -> Tensor:
    return mixed_loss(lambda classes: radius_loss(output, classes, **settings), target)
