# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Gradients of parts of the loss, kept apart from the sum that training accumulates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from lightning_crmt.modality import at_least_single

#: Parameters, and a gradient for each.
Gradients = tuple[Sequence[nn.Parameter], list[Tensor]]


class SeparateGradients:
    """The gradients of named losses, comparable with ``parameter.grad`` right before a step.

    That is: divided by the number of accumulated batches and added up over them, averaged over processes, and without
    the factor of a gradient scaler. Each loss costs a backward pass of its own, which DDP does not see.
    """

    def __init__(self) -> None:
        self._gathered: dict[str, Gradients] = {}

    def add(self, name: str, loss: Tensor, parameters: Sequence[nn.Parameter], trainer: Trainer) -> None:
        """Differentiate the loss of one micro-batch; its graph stays.

        Raises:
            ValueError: under a gradient scaler, for a fused optimizer: it removes the factor only within its step.
        """
        # In half precision small gradients vanish unless the loss is scaled up, as it is in training's own pass.
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and any(
            getattr(each, "_step_supports_amp_scaling", False) for each in trainer.optimizers
        ):
            raise ValueError(
                "a method that compares gradients needs them without the factor of the gradient scaler before the "
                "step, and a fused optimizer keeps it: make the optimizer with fused=False, or train in bf16-mixed"
            )
        scaled = loss if scaler is None else scaler.scale(loss)
        with torch.autocast(loss.device.type, enabled=False):
            gradients = torch.autograd.grad(scaled, parameters, retain_graph=True, allow_unused=True)
        factor = 1 / (trainer.accumulate_grad_batches * (1.0 if scaler is None else scaler.get_scale()))
        new = [
            torch.zeros_like(at_least_single(parameter.detach())) if each is None else at_least_single(each) * factor
            for parameter, each in zip(parameters, gradients, strict=True)
        ]
        if name in self._gathered:
            new = [before + each for before, each in zip(self._gathered[name][1], new, strict=True)]
        self._gathered[name] = parameters, new

    def take(self, trainer: Trainer) -> dict[str, Gradients]:
        """The gradients so far by name, averaged over all processes, which must call this together; then start anew."""
        gathered, self._gathered = self._gathered, {}
        for name, (parameters, gradients) in gathered.items():
            if gradients and trainer.world_size > 1:
                flat = torch.cat([each.flatten() for each in gradients])
                parts = trainer.strategy.reduce(flat, reduce_op="mean").split([each.numel() for each in gradients])
                gradients = [part.view_as(each) for part, each in zip(parts, gradients, strict=True)]
            gathered[name] = parameters, gradients
        return gathered

    def __bool__(self) -> bool:
        return bool(self._gathered)
