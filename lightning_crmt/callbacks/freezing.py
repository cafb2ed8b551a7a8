# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""A stage is a mask: what is frozen, and how to give it back."""

from __future__ import annotations

from torch import nn


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
