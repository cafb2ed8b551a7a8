# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What is measured when step 2 begins."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_crmt.frozen_eval import frozen_eval
from lightning_crmt.fusion import LateFusion
from lightning_crmt.lipschitz import LipschitzConstants, encoder_bounds, estimate_lipschitz
from lightning_crmt.losses import true_class_radii
from lightning_crmt.mixin import CRMTMixin
from lightning_crmt.training import TrainingPass

#: Estimated constants of scores, or sound ones of encoders.
Constants: TypeAlias = Literal["estimated", "sound"]


def measure_constants(
    trainer: Trainer, module: CRMTMixin, data: TrainingPass, constants: Constants
) -> LipschitzConstants:
    """The constants that step 2 rests on, the same on every process.

    Raises:
        NoBoundError: for sound ones, naming an encoder's layer that has no bound.
    """
    assert isinstance(module, LightningModule)
    if constants == "sound":
        first = module.split_batch(next(iter(data.batches("Shapes"))))[0]
        return encoder_bounds(module.encoders, {name: tuple(x.shape[1:]) for name, x in first.items()})
    inputs = (module.split_batch(batch)[0] for batch in data.batches("Lipschitz constants"))
    found = estimate_lipschitz(module, inputs)
    values = {name: trainer.strategy.reduce(value, reduce_op="max").to(value) for name, value in found.values.items()}
    return LipschitzConstants(values, of=found.of, soundness=found.soundness)


def mean_absolute_radius(
    trainer: Trainer, module: CRMTMixin, data: TrainingPass, lipschitz: LipschitzConstants
) -> float:
    """Mean :math:`|r|` over the training samples of all processes, r the bound that step 2 optimises."""
    assert isinstance(module, LightningModule)
    assert isinstance(module.head, LateFusion)
    total = torch.zeros(2, device=module.device)
    with frozen_eval(module), torch.no_grad():
        for batch in data.batches("Radii at the switch"):
            inputs, target = module.split_batch(batch)
            radii = true_class_radii(module(inputs), target, module.head, lipschitz)
            total += torch.stack([radii.abs().sum(), torch.tensor(len(radii), device=radii.device)]).to(total)
    absolute, count = trainer.strategy.reduce(total, reduce_op="sum").tolist()
    if not count > 0:
        raise ValueError("the Lipschitz pass must see at least one sample, got none")
    return float(absolute / count)
