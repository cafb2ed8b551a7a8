# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What a search asks of a model: logits and gradients by modality, with the model left as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lightning_crmt.attacks.threat.budget import Budget
from lightning_crmt.attacks.threat.geometry import Perturbation
from lightning_crmt.checks import check_batch, check_logits, check_target, require_finite
from lightning_crmt.frozen_eval import device_of, differentiable, frozen_eval
from lightning_crmt.modality import Inputs, at_least_single, logits_of

#: Anything from inputs by name to logits, in one of the forms that ``logits_of`` knows.
Model: TypeAlias = Callable[[dict[str, Tensor]], Any]


class AttackedModel:
    """A model under attack, with clean inputs in its own precision.

    Attributes:
        inputs: the clean inputs on the model's device, those that are attacked in the precision of its parameters.
        attacked: names of the modalities that are attacked.
        target: classes, ``(B,)``.
        clean_logits: logits of the clean inputs, ``(B, K)``.
    """

    def __init__(self, model: Model, inputs: Inputs, target: Tensor, budget: Budget) -> None:
        self.model = model
        size = check_batch("inputs", inputs)
        require_finite("inputs", inputs)
        self.attacked = budget.attacked(inputs)
        self.inputs = as_taken_by(model, inputs)
        self.clean_logits = self.logits(self.inputs)
        check_logits(self.clean_logits, "the logits of clean inputs")
        check_target(target, self.clean_logits.shape[1], size)
        self.target = target.detach().clone().to(self.clean_logits.device)
        self._unused: set[str] = set()

    def select(self, rows: Tensor) -> AttackedModel:
        """The same model with some of the samples."""
        part = copy.copy(self)
        part.inputs = {name: value[rows] for name, value in self.inputs.items()}
        part.target, part.clean_logits = self.target[rows], self.clean_logits[rows]
        return part

    def rivals(self) -> list[Tensor]:
        """For each sample the wrong classes, those with the largest logits first: ``K - 1`` tensors ``(B,)``."""
        order = self.clean_logits.scatter(1, self.target[:, None], -torch.inf).argsort(dim=1, descending=True)
        return list(order[:, :-1].unbind(dim=1))

    @torch.no_grad()
    def logits(self, inputs: Inputs) -> Tensor:
        """Logits ``(B, K)``."""
        return logits_of(self.model(dict(inputs))).detach()

    def fooled(self, logits: Tensor) -> Tensor:
        """Where the prediction is not the target, ``(B,)``; NaN logits predict nothing, so they do not count."""
        return (logits.argmax(dim=1) != self.target) & logits.isfinite().all(dim=1)

    def gradient(self, moved: Inputs, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Perturbation]:
        """Logits at ``moved``, losses ``(B,)``, and gradients with respect to the attacked modalities.

        A gradient that is not finite says nothing and counts as 0.

        Raises:
            RuntimeError: if a modality changes the logits but gets no gradient, because the model detaches: a search
                would find nothing, and the model would look robust.
        """
        leaves = {name: moved[name].detach().requires_grad_(True) for name in self.attacked}
        logits = logits_of(self.model({name: leaves.get(name, value) for name, value in moved.items()}))
        losses = loss(logits)
        found: Sequence[Tensor | None] = [None] * len(leaves)
        if losses.requires_grad:
            found = torch.autograd.grad(losses.sum(), list(leaves.values()), allow_unused=True)
        gradient = {}
        for (name, leaf), each in zip(leaves.items(), found, strict=True):
            if each is None:
                self._check_unused(name)
            slope = torch.zeros_like(leaf) if each is None else each
            # Its own copy unless it is one: an expanded gradient cannot be written to.
            slope = at_least_single(slope.detach()).contiguous()
            gradient[name] = slope.nan_to_num_(0.0, 0.0, 0.0)
        return logits.detach(), losses.detach().double(), gradient

    def _check_unused(self, name: str) -> None:
        if name in self._unused:
            return
        changed = {**self.inputs, name: 1 - 2 * self.inputs[name]}
        if not self.logits(changed).equal(self.logits(self.inputs)):
            raise RuntimeError(
                f"the model's logits depend on {name!r} but carry no gradient to it: something in it detaches them; "
                "a search by gradients would find nothing and prove nothing"
            )
        self._unused.add(name)


@contextmanager
def under_attack(model: Model, inputs: Inputs, target: Tensor, budget: Budget) -> Iterator[AttackedModel]:
    """Lend ``model`` to a search; a callable that is no module is taken as it is."""
    with frozen_eval(holder_of(model)):
        yield AttackedModel(model, inputs, target, budget)


def as_taken_by(model: Model, inputs: Inputs) -> dict[str, Tensor]:
    """Copies of ``inputs`` on the model's device, those that are floating point in its precision."""
    holder = holder_of(model)
    device = device_of(holder) if isinstance(model, nn.Module) else next(iter(inputs.values())).device
    floating = {name: value for name, value in inputs.items() if value.is_floating_point()}
    copies = {name: leaf.detach().to(device) for name, leaf in differentiable(floating, holder).items()}
    copies |= {name: value.to(device, copy=True) for name, value in inputs.items() if name not in copies}
    return {name: copies[name] for name in inputs}


def holder_of(model: Model) -> nn.Module:
    """What ``frozen_eval`` can take: the module, or an empty one for a callable that is none."""
    return model if isinstance(model, nn.Module) else nn.Module()
