# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What a search asks of a model: logits and gradients by modality, with the model left as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lightning_crmt.attacks.budget import Perturbation
from lightning_crmt.borrowing import borrow, differentiable
from lightning_crmt.modality import Inputs, check_batch, check_target, logits_of, require_finite

#: Anything from inputs by name to logits, in one of the forms that ``logits_of`` knows.
Model: TypeAlias = Callable[[dict[str, Tensor]], Any]


class Oracle:
    """A model under attack, with clean inputs in its own precision.

    Attributes:
        inputs: copies of the clean inputs, on the model's device and in the precision of its parameters.
        target: classes, ``(B,)``.
    """

    def __init__(self, model: Model, inputs: Inputs, target: Tensor) -> None:
        self.model = model
        size = check_batch("inputs", inputs)
        require_finite("inputs", inputs)
        holder = model if isinstance(model, nn.Module) else nn.Module()
        self.inputs = {name: leaf.detach() for name, leaf in differentiable(inputs, holder).items()}
        self.target = target.detach().clone().to(next(iter(self.inputs.values())).device)
        logits = self.logits(self.inputs)
        check_target(self.target, logits.shape[1], size)
        self.clean_logits = logits

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.clean_logits.shape[1]

    @torch.no_grad()
    def logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits ``(B, K)``."""
        return logits_of(self.model(dict(inputs))).detach()

    def fooled(self, logits: Tensor) -> Tensor:
        """Where the prediction is not the target, ``(B,)``; NaN logits predict nothing, so they do not count."""
        return (logits.argmax(dim=1) != self.target) & logits.isfinite().all(dim=1)

    def gradient(self, delta: Perturbation, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Perturbation]:
        """Logits, losses ``(B,)`` and gradients with respect to ``delta``.

        Raises:
            RuntimeError: if the logits carry no gradient, because the model detaches.
        """
        leaves = {name: d.detach().requires_grad_(True) for name, d in delta.items()}
        moved = {name: x + leaves[name] if name in leaves else x for name, x in self.inputs.items()}
        logits = logits_of(self.model(moved))
        if not logits.requires_grad:
            raise RuntimeError(
                "the model's logits carry no gradient to its inputs: something in it detaches them; "
                "use a search without gradients"
            )
        losses = loss(logits)
        found = torch.autograd.grad(losses.sum(), list(leaves.values()), allow_unused=True)
        gradient = {
            name: torch.zeros_like(leaf) if each is None else each
            for (name, leaf), each in zip(leaves.items(), found, strict=True)
        }
        return logits.detach(), losses.detach(), gradient


@contextmanager
def under_attack(model: Model, inputs: Inputs, target: Tensor) -> Iterator[Oracle]:
    """Lend ``model`` to a search; a callable that is no module is taken as it is."""
    holder = model if isinstance(model, nn.Module) else nn.Module()
    with borrow(holder):
        yield Oracle(model, inputs, target)


def rival_margin(target: Tensor, rival: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """To be raised above 0: the logit of ``rival``, by default of the strongest, minus that of the target."""

    def loss(logits: Tensor) -> Tensor:
        own = logits.gather(1, target[:, None]).squeeze(1)
        if rival is not None:
            return logits.gather(1, rival[:, None]).squeeze(1) - own
        return logits.scatter(1, target[:, None], -torch.inf).amax(dim=1) - own

    return loss


def cross_entropy(target: Tensor) -> Callable[[Tensor], Tensor]:
    """Cross-entropy of the target, to be raised."""
    return lambda logits: nn.functional.cross_entropy(logits, target, reduction="none")
