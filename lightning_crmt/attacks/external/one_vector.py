# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""A model of several inputs as other libraries see it: one vector in, logits out."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from lightning_crmt.attacks.search.attacked_model import AttackedModel, Model, under_attack
from lightning_crmt.attacks.threat.budget import Budget
from lightning_crmt.attacks.threat.per_sample import Perturbation, times
from lightning_crmt.checks import describe, require_package
from lightning_crmt.modality import Inputs, at_least_single, logits_of, widened, widest
from lightning_crmt.targets import has_labels


class Flat:
    r"""Some modalities of a batch side by side in one vector per sample, ``(B, D)``, and the way back.

    The vector holds entries as they are, without a scale for each modality, so that the joint l2 norm of the
    modalities is the norm of the vector. :meth:`restore` undoes :meth:`join` bit by bit. The other modalities, such as
    token ids, are kept aside and come back untouched.

    Args:
        inputs: the batch: names, shapes, dtypes, and what is kept aside.
        modalities: those that go into the vector.

    >>> x = {"audio": torch.ones(2, 3), "text": torch.arange(2).reshape(2, 1), "image": torch.zeros(2, 2, 2)}
    >>> flat = Flat(x, ["audio", "image"])
    >>> flat.join(x)
    tensor([[1., 1., 1., 0., 0., 0., 0.],
            [1., 1., 1., 0., 0., 0., 0.]])
    >>> back = flat.restore(flat.join(x))
    >>> list(back), all(back[name].equal(x[name]) for name in x)
    (['audio', 'text', 'image'], True)
    """

    def __init__(self, inputs: Inputs, modalities: Sequence[str]) -> None:
        self.modalities = list(modalities)
        self._inputs = {name: value.detach() for name, value in inputs.items()}

    @property
    def sizes(self) -> dict[str, int]:
        """Number of entries of each modality in the vector, in its order."""
        return {name: self._inputs[name][0].numel() for name in self.modalities}

    def join(self, values: Inputs) -> Tensor:
        """The vectors ``(n, D)`` of values by modality ``(n, ...)``, in the narrowest dtype that holds them all."""
        dtype = reduce(torch.promote_types, [values[name].dtype for name in self.modalities])
        return torch.cat([values[name].flatten(1).to(dtype) for name in self.modalities], dim=1)

    def split(self, vectors: Tensor) -> dict[str, Tensor]:
        """Views of the vectors ``(n, D)`` by modality, each ``(n, ...)``, in the dtype of the vectors."""
        parts = torch.split(vectors, list(self.sizes.values()), dim=1)
        return {
            name: part.reshape(len(part), *self._inputs[name].shape[1:])
            for name, part in zip(self.modalities, parts, strict=True)
        }

    def restore(self, vectors: Tensor, rows: Tensor | None = None) -> dict[str, Tensor]:
        """Inputs of the model: the vectors in shape and dtype of each modality, and what was kept aside.

        Args:
            vectors: ``(n, D)``.
            rows: which samples of the batch these are, ``(n,)``; all in order by default.
        """
        parts = {name: part.to(self._inputs[name].dtype) for name, part in self.split(vectors).items()}
        kept = {n: v if rows is None else v[rows] for n, v in self._inputs.items() if n not in parts}
        return {name: parts[name] if name in parts else kept[name] for name in self._inputs}


class OneVectorModel(nn.Module):
    """A model under attack as a function of displacements ``(n, D)`` in units of the budget's radius.

    Attributes:
        attacked: the model and its clean inputs.
        origin: no displacement, ``(B, D)``, float64.
    """

    def __init__(self, attacked: AttackedModel) -> None:
        super().__init__()
        self.eval()
        self.attacked = attacked
        self._flat = Flat(attacked.inputs, attacked.modalities)
        # In the model's precision: displacements are small numbers, so what they lose here is lost in the sum anyway.
        self._clean = at_least_single(self._flat.join(attacked.inputs))
        self.origin = torch.zeros_like(self._clean, dtype=widest(self._clean.device))
        ones = self._flat.split(torch.ones_like(self._clean))
        parts = attacked.budget.parts(ones)
        units = {name: times(one, radius) for part, radius in parts for name, one in part.items()}
        unit = self._flat.join(attacked.budget.masked(units, attacked.inputs))  # 0 for what may not be perturbed
        self._unit = unit.to(self._clean.dtype)
        room = attacked.budget.room(attacked.inputs, ones)
        free = (self._clean.new_tensor(-torch.inf), self._clean.new_tensor(torch.inf))
        self._room = [
            self._flat.join({name: room.get(name, free)[side].to(one).expand_as(one) for name, one in ones.items()})
            for side in (0, 1)
        ] * bool(room)

    def forward(self, displacement: Tensor, rows: Tensor | None = None) -> Tensor:
        """Logits ``(n, K)`` of the samples ``rows``, the largest shifted to 0, in single precision.

        Losses of attacks are differences of logits: so shifted, they keep their digits where they matter. The graph
        leads to ``displacement`` and nowhere else: libraries call ``backward``, which would fill the ``grad`` of
        whatever else the model depends on.

        Args:
            displacement: ``(n, D)``, in any precision.
            rows: which sample of the batch each is, ``(n,)``; all in order by default.
        """

        def function(leaf: Tensor) -> Tensor:
            clean = self._clean if rows is None else self._clean[rows]
            moved = clean + self._delta(leaf.to(clean.dtype), rows)
            logits = logits_of(self.attacked.model(self._flat.restore(moved, rows)))
            return (logits - logits.detach().amax(dim=1, keepdim=True)).float()

        if displacement.requires_grad and torch.is_grad_enabled():
            return _Isolated.apply(displacement, function)  # type: ignore[no-any-return, no-untyped-call]
        with torch.no_grad():
            return function(displacement)

    def perturbation(self, displacement: Tensor) -> Perturbation:
        """The change of the inputs, by modality, of displacements of the whole batch."""
        return self._flat.split(self._delta(widened(displacement), None))

    def _delta(self, displacement: Tensor, rows: Tensor | None) -> Tensor:
        unit, *room = (value if rows is None else value[rows] for value in (self._unit, *self._room))
        return (displacement * unit).clamp(*room) if room else displacement * unit


class _Isolated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, point: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.enable_grad():
            ctx.leaf = point.detach().requires_grad_(True)
            ctx.logits = function(ctx.leaf)
        return ctx.logits.detach()  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        if not ctx.logits.requires_grad:
            return torch.zeros_like(ctx.leaf), None
        (gradient,) = torch.autograd.grad(ctx.logits, ctx.leaf, slope, retain_graph=True)
        return gradient.nan_to_num(0.0, 0.0, 0.0), None


def load(package: str) -> Any:
    """Import an optional package.

    Raises:
        ModuleNotFoundError: if it is not installed, with the extra that installs it.
    """
    before = os.environ.get("GIT_PYTHON_REFRESH")
    # One of foolbox's own dependencies refuses to load without git unless this variable is set.
    os.environ["GIT_PYTHON_REFRESH"] = "quiet"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # imports of deprecated names there
            return require_package(package, f"{package} cannot be imported", "attacks")
    finally:
        if before is None:
            del os.environ["GIT_PYTHON_REFRESH"]
        else:
            os.environ["GIT_PYTHON_REFRESH"] = before


def require_ball(budget: Budget, norms: Sequence[str]) -> None:
    """Refuse a budget that is not a ball in one of the norms; l-infinity balls of several radii are one, rescaled.

    Raises:
        ValueError: naming the norms.
    """
    if budget.norm not in norms or (budget.norm == "l2" and len(budget.groups([])) > 1):
        raise ValueError(f"`budget` must be one ball of all attacked modalities, in {' or '.join(norms)}, got {budget}")


@contextmanager
def handed_over(model: Model, inputs: Inputs, target: Tensor, budget: Budget) -> Iterator[OneVectorModel]:
    """Lend ``model`` to a library; undo what it may do to torch's global generators and Python's trace function.

    Raises:
        ValueError: for labels, which these libraries do not know.
    """
    if has_labels(target):
        raise ValueError(
            f"`target` must hold one class per sample for attacks of other libraries, which know no labels, got "
            f"{describe(target)}"
        )
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    trace = sys.gettrace()
    try:
        with torch.random.fork_rng(devices=devices), under_attack(model, inputs, target, budget) as attacked:
            attacked.gradient(attacked.inputs, lambda logits: logits.sum(dim=1))  # refuses a model that detaches
            yield OneVectorModel(attacked)
    finally:
        sys.settrace(trace)
