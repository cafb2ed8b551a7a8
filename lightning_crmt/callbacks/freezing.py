# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""A stage is a mask: what is frozen, and how to give it back."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import nn

from lightning_crmt.checks import describe


class Freeze:
    """Freezes all of a module but some parameters, and remembers what it was like."""

    def __init__(self, module: nn.Module, but: list[nn.Parameter]) -> None:
        kept = {id(parameter) for parameter in but}
        self.parameters = [p for p in module.parameters() if p.requires_grad and id(p) not in kept]
        self.modes = [(part, part.training) for part in module.modules() if part is not module]

    def freeze(self) -> None:
        """No gradients, not even stale ones, which would still move a parameter; BatchNorm keeps its statistics."""
        for parameter in self.parameters:
            parameter.requires_grad_(False)
            parameter.grad = None
        for part, _ in self.modes:
            part.training = False

    def restore(self) -> None:
        """As it was."""
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        for part, mode in self.modes:
            part.training = mode


def check_strategy(trainer: Trainer) -> None:
    """Refuse strategies that cannot freeze parameters in the middle of a fit.

    Raises:
        RuntimeError: saying what to choose instead.
    """
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy):
        if strategy._ddp_kwargs.get("find_unused_parameters", False):
            return
        raise RuntimeError(
            "IntegrationReweighting freezes most parameters in the middle of the fit, and DDP waits for the gradients "
            "of every parameter: choose Trainer(strategy='ddp_find_unused_parameters_true')"
        )
    if not isinstance(strategy, SingleDeviceStrategy):
        raise RuntimeError(
            "IntegrationReweighting freezes most parameters in the middle of the fit, which is known to work on a "
            f"single device and under DDP, got {describe(strategy)}"
        )
