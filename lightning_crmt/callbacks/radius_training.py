# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Step 1 on the certified radius itself."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lightning_crmt.checks import check_at_least, check_positive, describe
from lightning_crmt.fusion import LateFusion
from lightning_crmt.lipschitz import LipschitzConstants, bounds_for
from lightning_crmt.losses import RadiusObjective, radius_loss
from lightning_crmt.mixin import CRMTMixin
from lightning_crmt.modality import FusionOutput, Inputs
from lightning_crmt.soundness import Soundness
from lightning_crmt.stage import StageObjective
from lightning_crmt.targets import Target, has_probabilities, mixed_loss, parts_of
from lightning_crmt.training import ReleasingCallback, crmt_module, late_fusion


class RadiusTraining(ReleasingCallback):
    """Step 1 on the certified radius itself, in place of cross-entropy and margins.

    The loss is :func:`~lightning_crmt.losses.radius_loss`. Its objectives trade otherwise: the hinge keeps clean
    accuracy and every class, :class:`~lightning_crmt.losses.EMMA` and :class:`~lightning_crmt.losses.LogitAnnealing`
    guarantee more on some data, and may give up a class that is hard to tell apart.

    It is for encoders that are 1-Lipschitz by construction, such as ``LipschitzMLP``: their bound does not change while
    they learn. The bound is computed anew in every epoch all the same. ``IntegrationReweighting`` may
    follow. Modalities of integers, such as tokens, stay clean: the radius is that of changes of the others.

    Args:
        radius: the wanted radius, in units of the inputs, above 0.
        temperature: how sharply the loss focuses on the nearest rival, in inverse units of the inputs, above 0.
        rho: weight of the modalities' own radii, at least 0; these keep each of them useful when others are missing.
        objective: what is made of margins and their bounds; by default a smooth hinge with this temperature.

    Raises:
        ValueError: if an argument is out of range.
        TypeError: before training, if the module is not a CRMT module, or its head is not a late fusion.
        NoBoundError: a ``ValueError``, at the first batch, naming a layer of an encoder without a bound.

    >>> callback = RadiusTraining(radius=0.2)
    """

    def __init__(
        self,
        radius: float = 0.2,
        *,
        temperature: float = 15.0,
        rho: float = 0.2,
        objective: RadiusObjective | None = None,
    ) -> None:
        check_positive(radius=radius, temperature=temperature)
        check_at_least(0, rho=rho)
        self.radius = radius
        self.temperature = temperature
        self.rho = rho
        self.objective = objective
        self._bounds: LipschitzConstants | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        self._bounds = None
        module = crmt_module(pl_module, self)
        module.check_parts()
        loss = partial(self._loss, late_fusion(module, self))
        module.training_stage.push(self, objective=StageObjective("radius_loss", loss), method=self)

    def transform(self, module: CRMTMixin, inputs: Inputs, target: Target) -> tuple[Inputs, Target]:
        """The batch as it is; the first of an epoch says of which shapes the bounds must be."""
        if self._bounds is None or module.trainer.fit_loop.batch_idx == 0:
            self._bounds = bounds_for(module.encoders, inputs)
        return inputs, target

    def term(self, module: CRMTMixin, output: FusionOutput, target: Target) -> None:
        """Nothing besides the objective."""

    @override
    def state_dict(self) -> dict[str, Tensor]:
        return {} if self._bounds is None else dict(self._bounds.values)

    @override
    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        self._bounds = LipschitzConstants(state_dict, of="encoder", soundness=Soundness.SOUND)

    def _loss(self, head: LateFusion, output: FusionOutput, target: Target) -> Tensor:
        if self._bounds is None:
            raise RuntimeError(
                "RadiusTraining needs to see the batch: a `training_step` of your own must begin with "
                "`inputs, target = self.training_batch(batch)`"
            )
        if has_probabilities(target):
            raise ValueError(
                "RadiusTraining raises the radius of what is right, so targets must be classes (B,) or labels (B, K), "
                f"got probabilities of classes, {describe(parts_of(target)[0])}"
            )
        # Those of a checkpoint do not say it.
        bounds = replace(self._bounds, clean=tuple(n for n in head.in_features if n not in self._bounds.values))
        loss = partial(
            radius_loss,
            output,
            head=head,
            lipschitz=bounds,
            radius=self.radius,
            temperature=self.temperature,
            rho=self.rho,
            objective=self.objective,
        )
        return mixed_loss(loss, target)
