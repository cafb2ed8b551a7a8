# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Temporary changes of a module by callbacks, kept in one place, each with its owner."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol
from weakref import ref

from torch import Tensor, nn

from lightning_crmt.modality import FusionOutput, Inputs
from lightning_crmt.targets import Target


class TrainingMethod(Protocol):
    """The part that a training method may take in a step; see :class:`~lightning_crmt.methods.Method`."""

    def transform(self, module: Any, inputs: Inputs, target: Target) -> tuple[Inputs, Target]:
        """Other inputs and targets to train on."""

    def term(self, module: Any, output: FusionOutput, target: Target) -> Tensor | None:
        """A term to add to the loss, if any."""


class StageObjective(NamedTuple):
    """A loss that a module is trained on.

    Attributes:
        name: what it is logged under.
        loss: the loss of an output and a target, which may be of mixed samples.
    """

    name: str
    loss: Callable[[FusionOutput, Any], Tensor]


class _Push(NamedTuple):
    owner: object
    objective: StageObjective | None
    method: TrainingMethod | None
    undo: list[Callable[[], None]]


class Stage:
    """The stage that a module is in: the changes that callbacks have pushed, which only their owners pop.

    A copy of the module, as weight averaging makes one within a fit, begins with an empty stage of its own.

    Args:
        module: the module whose stage it is.

    >>> module = nn.Linear(2, 2)
    >>> stage = Stage(module)
    >>> stage.push("me", objective=StageObjective("mine", lambda output, target: output.logits.sum()))
    >>> stage.objective.name
    'mine'
    >>> stage.pop("me")
    >>> stage.objective is None
    True
    """

    def __init__(self, module: nn.Module) -> None:
        # Weak, as the module holds its stage: without a cycle, an unused model frees its memory at once.
        self._module: Callable[[], Any] = ref(module)
        self._pushed: list[_Push] = []
        #: Which of ``training_batch`` and ``crmt_loss`` the training steps have called under this objective.
        self.calls: set[str] = set()
        #: Inputs of ``training_batch`` that ``forward`` need not wait for: ``crmt_loss`` checks all at once.
        self.unchecked: Inputs | None = None
        #: Indices ``(n,)`` of the samples that terms of the loss are of; None where they are of the whole batch.
        self.counted: Tensor | None = None
        #: Goes on from the random states of a checkpoint, from its loading to the start of training.
        self.resume: Callable[[], None] | None = None
        #: Steps that were made before the present fit began or was resumed; -1 before the first.
        self.steps_before = -1

    def push(
        self,
        owner: object,
        *,
        objective: StageObjective | None = None,
        method: TrainingMethod | None = None,
        heads: nn.Module | None = None,
        undo: Callable[[], None] | None = None,
    ) -> None:
        """Change something until ``pop(owner)``; an owner may push several times.

        Args:
            owner: the callback that pushes.
            objective: replaces the one before.
            method: is added to those before.
            heads: becomes a submodule, so that optimizer, DDP and mixed precision find its parameters.
            undo: takes back what the owner did itself, such as freezing parameters.
        """
        undoing = [] if undo is None else [undo]
        if heads is not None:
            name = f"auxiliary_heads_of_{type(owner).__name__}"
            self._module().add_module(name, heads)
            undoing.append(partial(delattr, self._module(), name))
        self._pushed.append(_Push(owner, objective, method, undoing))
        if objective is not None:
            self.calls.clear()

    def pop(self, owner: object) -> None:
        """Take back all that ``owner`` has pushed, the last first; without effect if that is nothing."""
        own = [push for push in self._pushed if push.owner is owner]
        self._pushed = [push for push in self._pushed if push.owner is not owner]
        for push in reversed(own):
            for undo in push.undo:
                undo()

    @property
    def objective(self) -> StageObjective | None:
        """The objective that was pushed last; None if the module is trained on its own."""
        return next((push.objective for push in reversed(self._pushed) if push.objective is not None), None)

    @property
    def methods(self) -> list[TrainingMethod]:
        """The methods that take part, in their order."""
        return [push.method for push in self._pushed if push.method is not None]

    def __reduce__(self) -> tuple[type[Stage], tuple[nn.Module]]:
        # For copy and pickle: pushed changes do not belong to the copy, and would drag callbacks and Trainer along.
        return Stage, (self._module(),)
