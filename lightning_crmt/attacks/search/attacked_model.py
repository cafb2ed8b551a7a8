# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What a search asks of a model: logits and gradients by modality, with the model left as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lightning_crmt.attacks.search.loss import Loss, Objective
from lightning_crmt.attacks.threat.budget import Budget
from lightning_crmt.attacks.threat.per_sample import PerSample, Perturbation
from lightning_crmt.checks import check_batch, check_logits, check_target, require_finite
from lightning_crmt.frozen_eval import as_taken_by, frozen_eval
from lightning_crmt.modality import Inputs, at_least_single, logits_of, widened
from lightning_crmt.targets import answers, check_answers, has_labels, right_answers, signed_scores

#: Anything from inputs by name to logits, in one of the forms that ``logits_of`` knows.
Model: TypeAlias = Callable[[dict[str, Tensor]], Any]
#: Classes that an attack leads towards: one for all samples, or one per sample ``(B,)``.
Classes: TypeAlias = int | Tensor


class AttackedModel(PerSample):
    """A model under attack, with clean inputs in its own precision. The arguments of attacks are checked here, once.

    Made by :func:`under_attack`, which has an example.

    Args:
        model: a module, or any function from inputs by name to logits.
        inputs: one tensor per modality, ``(B, ...)``.
        target: right classes, ``(B,)``, or labels, ``(B, K)`` of bools or integers.
        budget: the allowed perturbations.
        towards: a class, or one per sample ``(B,)``, to lead towards, or a label to flip; by default any wrong class,
            or any label.

    Attributes:
        inputs: the clean inputs on the model's device, those that are attacked in the precision of its parameters.
        budget: the allowed perturbations.
        modalities: names of those that are attacked.
        target: right classes, ``(B,)`` int64, or labels, ``(B, K)`` bool.
        towards: classes to lead towards, or labels to flip, ``(B,)``; None for any.
        clean_logits: logits of the clean inputs, ``(B, K)``.

    Raises:
        ValueError: if the budget does not fit the inputs, a class is out of range, or inputs or their logits are not
            finite.
        TypeError: if a modality that is to be perturbed holds integers, or classes are not integers.
    """

    def __init__(
        self, model: Model, inputs: Inputs, target: Tensor, budget: Budget, towards: Classes | None = None
    ) -> None:
        self.model = model
        self.budget = budget
        size = check_batch("inputs", inputs)
        require_finite("inputs", inputs)
        self.modalities = budget.attacked(inputs)
        self.inputs = _as_taken(model, inputs)
        self.clean_logits = self.logits(self.inputs)
        check_logits(self.clean_logits, "the logits of clean inputs")
        num_classes, device = self.clean_logits.shape[1], self.clean_logits.device
        self.target = check_answers(target, num_classes, size).detach().clone().to(device)
        if isinstance(towards, int):
            towards = torch.full((size,), towards)
        if towards is not None:
            towards = check_target(towards, num_classes, size, "towards").to(device)
        self.towards = towards
        self._unused: set[str] = set()

    @torch.no_grad()
    def logits(self, inputs: Inputs) -> Tensor:
        """Logits ``(B, K)``."""
        return logits_of(self.model(dict(inputs))).detach()

    def fooled(self, logits: Tensor) -> Tensor:
        """Where the attack has succeeded, ``(B,)``, see :func:`broken`."""
        return broken(logits, self.target, self.towards)

    def objective(self, loss: Loss, rival: Tensor | None = None) -> Objective:
        """The objective to raise: towards the given classes if any, else ``rival``, else any wrong class or label."""
        if self.towards is not None and has_labels(self.target):
            return Objective(loss, self.target, self.towards)
        if self.towards is not None:
            return Objective(loss, self.towards, towards=True)
        return Objective(loss, self.target, rival)

    def objectives(self, loss: Loss, targeted: bool = False, classes: int | None = None) -> list[Objective]:
        """The objectives to raise in turn: with ``targeted`` one for each of the ``classes`` strongest wrong classes.

        Raises:
            ValueError: if the model has too few classes for the denominator of the DLR loss, or there are labels, among
                which no logit competes with another.
        """
        if loss == "dlr" and has_labels(self.target):
            raise ValueError(
                "`loss='dlr'` divides by the gap between the largest logits, which compete where there is one class "
                "per sample; labels do not: use 'margin' or 'ce'"
            )
        each = targeted and self.towards is None
        least, num_classes = 4 if each else 3, self.clean_logits.shape[1]
        if loss == "dlr" and num_classes < least:
            how = " with `targeted`" if each else ""
            raise ValueError(
                f"`loss='dlr'`{how} needs a model of at least {least} classes, got {num_classes}; use 'margin'"
            )
        return [self.objective(loss, rival) for rival in (self.rivals()[:classes] if each else [None])]

    def rivals(self) -> list[Tensor]:
        """For each sample the wrong classes, those with the largest logits first: ``K - 1`` tensors ``(B,)``.

        Of labels all K, those that are nearest to flip first.
        """
        if has_labels(self.target):
            return list(signed_scores(self.clean_logits, self.target).argsort(dim=1).unbind(dim=1))
        order = self.clean_logits.scatter(1, self.target[:, None], -torch.inf).argsort(dim=1, descending=True)
        return list(order[:, :-1].unbind(dim=1))

    def rival(self, logits: Tensor) -> Tensor:
        """For each sample the wrong class with the largest logit ``(B,)``, or the label that is nearest to flip."""
        if has_labels(self.target):
            return signed_scores(logits, self.target).argmin(dim=1)
        return logits.scatter(1, self.target[:, None], -torch.inf).argmax(dim=1)

    def left_alone(self) -> Tensor:
        """Samples that cannot be led towards what they are, ``(B,)``: those of the class that is aimed for."""
        if self.towards is None or has_labels(self.target):
            return torch.zeros(len(self.target), dtype=torch.bool, device=self.target.device)
        return self.towards == self.target

    def gradient(self, moved: Inputs, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Perturbation]:
        """Logits at ``moved``, losses ``(B,)``, and gradients with respect to the attacked modalities.

        Entries of a gradient that are not finite say nothing and count as 0, as do those that may not be perturbed.

        Raises:
            RuntimeError: if a modality changes the logits but gets no gradient, because the model detaches it: a
                search would find nothing, and the model would look robust.
        """
        leaves = {name: moved[name].detach().requires_grad_(True) for name in self.modalities}
        logits = logits_of(self.model({name: leaves.get(name, value) for name, value in moved.items()}))
        losses = loss(logits)
        slopes: Sequence[Tensor | None] = [None] * len(leaves)
        if losses.requires_grad:
            slopes = torch.autograd.grad(losses.sum(), list(leaves.values()), allow_unused=True)
        gradient = {}
        for (name, leaf), each in zip(leaves.items(), slopes, strict=True):
            if each is None:
                self._check_unused(name)
            slope = torch.zeros_like(leaf) if each is None else each
            # Its own copy unless it is one: an expanded gradient cannot be written to.
            slope = at_least_single(slope.detach()).contiguous()
            gradient[name] = slope.nan_to_num_(0.0, 0.0, 0.0)
        return logits.detach(), widened(losses.detach()), self.budget.masked(gradient, moved, in_place=True)

    def _check_unused(self, name: str) -> None:
        if name in self._unused:
            return
        changed = {**self.inputs, name: 1 - 2 * self.inputs[name]}
        if not self.logits(changed).equal(self.logits(self.inputs)):
            raise RuntimeError(
                f"the model's logits depend on {name!r} but carry no gradient to it: something in it detaches them; "
                "a gradient search would fail and prove nothing"
            )
        self._unused.add(name)


@contextmanager
def under_attack(
    model: Model, inputs: Inputs, target: Tensor, budget: Budget, towards: Classes | None = None
) -> Iterator[AttackedModel]:
    """Lend ``model`` to a search: inside, it is in evaluation mode and frozen; afterwards it is as it was.

    A callable that is not a module is taken as it is: put what it calls into evaluation mode first.

    Args:
        model: a module, or any function from inputs by name to logits ``(B, K)``.
        inputs: one tensor per modality, ``(B, ...)``.
        target: right classes, ``(B,)``, or labels, ``(B, K)`` of bools or integers.
        budget: the allowed perturbations.
        towards: a class, or one per sample ``(B,)``, to lead towards, or a label to flip; by default any wrong class,
            or any label.

    Raises:
        ValueError, TypeError: see :class:`AttackedModel`.

    >>> x, y = {"audio": torch.tensor([[2.0, 1.0, 0.0]])}, torch.tensor([0])
    >>> with under_attack(lambda inputs: inputs["audio"] ** 2, x, y, Budget(0.1)) as attacked:
    ...     logits, losses, gradient = attacked.gradient(attacked.inputs, attacked.objective("margin"))
    >>> losses, gradient  # the lead of class 1 over class 0, and its gradient
    (tensor([-3.], dtype=torch.float64), {'audio': tensor([[-4.,  2.,  0.]])})
    """
    with frozen_eval(holder_of(model)):
        yield AttackedModel(model, inputs, target, budget, towards)


@contextmanager
def lent(model: Model, inputs: Inputs) -> Iterator[dict[str, Tensor]]:
    """Inside, ``model`` is in evaluation mode and frozen; gives copies of ``inputs`` as the model takes them."""
    with frozen_eval(holder_of(model)):
        yield _as_taken(model, inputs)


def public_logits(model: Model, inputs: Inputs) -> Tensor:
    """Logits ``(B, K)`` of a plain forward pass in evaluation mode, in the precision of the parameters.

    What an attack achieved is judged by these. The model is left as it was; the logits carry no graph.

    Args:
        model: a module, or any function from inputs by name to logits.
        inputs: one tensor per modality, ``(B, ...)``.

    Raises:
        TypeError: if the model returns no logits, see :func:`~lightning_crmt.modality.logits_of`.

    >>> class Dropping(nn.Module):
    ...     def forward(self, inputs):
    ...         return nn.functional.dropout(inputs["audio"], 0.5, self.training)
    >>> public_logits(Dropping(), {"audio": torch.ones(1, 4)})  # the module itself is in training mode
    tensor([[1., 1., 1., 1.]])
    """
    with lent(model, inputs) as taken, torch.no_grad():
        return logits_of(model(taken)).detach()


def broken(logits: Tensor, target: Tensor, towards: Classes | None = None) -> Tensor:
    """Where a prediction is lost, ``(B,)``: a wrong answer, that of ``towards`` if it is given, or none.

    Logits that are not finite are no answer, so the model is broken there whatever other class an attack leads
    towards; samples that are of that class are left alone. Of labels one that is wrong is enough, or the one that
    ``towards`` says.

    >>> logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [2.0, torch.nan, 0.0]])
    >>> broken(logits, torch.tensor([0, 0, 0])), broken(logits, torch.tensor([0, 0, 0]), towards=1)
    (tensor([False,  True,  True]), tensor([False, False,  True]))
    >>> labels = torch.tensor([[True, True, True]])
    >>> broken(logits[:1], labels), broken(logits[:1], labels, towards=1)
    (tensor([True]), tensor([False]))
    """
    target = target.to(logits.device)
    lost = ~right_answers(logits, target)
    if towards is None:
        return lost
    aim, unanswered = torch.as_tensor(towards, device=logits.device), ~logits.isfinite().all(dim=1)
    if has_labels(target):
        flipped = answers(logits, multi_label=True) != target
        return flipped.gather(1, aim.long().expand(len(logits))[:, None]).squeeze(1) | unanswered
    return lost & ((logits.argmax(dim=1) == aim) | unanswered) & (target != aim)


def _as_taken(model: Model, inputs: Inputs) -> dict[str, Tensor]:
    """Copies of ``inputs`` as a module takes them; for a plain function, on the device of the first."""
    if isinstance(model, nn.Module):
        return as_taken_by(model, inputs)
    device = next(iter(inputs.values())).device
    return {name: value.detach().to(device, copy=True) for name, value in inputs.items()}


def holder_of(model: Model) -> nn.Module:
    """A module for ``frozen_eval``: the model itself, or an empty module in place of a plain function."""
    return model if isinstance(model, nn.Module) else nn.Module()
