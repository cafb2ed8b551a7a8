# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What an attack of another library gets to see of a model of several inputs: one vector in, logits out."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from lightning_crmt.attacks.external.flattening import Flat
from lightning_crmt.attacks.search.attacked_model import AttackedModel, Model, under_attack
from lightning_crmt.attacks.threat.budget import Budget
from lightning_crmt.attacks.threat.geometry import Perturbation, choose, times
from lightning_crmt.modality import Inputs, at_least_single, logits_of


class Problem:
    """A model under attack as a function of displacements ``(n, D)`` in units of the budget's radius.

    Attributes:
        oracle: the model and its clean inputs.
        budget: a ball, in l2 or l-infinity.
        origin: no displacement, ``(B, D)``, float64.
    """

    def __init__(self, oracle: AttackedModel, budget: Budget) -> None:
        self.oracle = oracle
        self.budget = budget
        self._flat = Flat(oracle.inputs, oracle.attacked)
        # In the model's precision: displacements are small numbers, so what they lose here is lost in the sum anyway.
        self._clean = at_least_single(self._flat.join(oracle.inputs))
        self.origin = torch.zeros_like(self._clean, dtype=torch.float64)
        ones = self._flat.split(torch.ones_like(self._clean))
        unit = self._flat.join({name: times(ones[name], r) for name, r in budget._radii(ones, 1.0).items()})
        self._unit = unit.to(self._clean.dtype)
        room = budget._room(oracle.inputs, ones)
        free = (self._clean.new_tensor(-torch.inf), self._clean.new_tensor(torch.inf))
        self._room = [
            self._flat.join({name: room.get(name, free)[side].to(one).expand_as(one) for name, one in ones.items()})
            for side in (0, 1)
        ] * bool(room)

    def logits(self, displacement: Tensor, rows: Tensor | None = None) -> Tensor:
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
            found = logits_of(self.oracle.model(self._flat.restore(moved, rows)))
            return (found - found.detach().amax(dim=1, keepdim=True)).float()

        if displacement.requires_grad and torch.is_grad_enabled():
            return _Isolated.apply(displacement, function)  # type: ignore[no-any-return, no-untyped-call]
        with torch.no_grad():
            return function(displacement)

    def perturbation(self, displacement: Tensor) -> Perturbation:
        """The change of the inputs, by modality, of displacements of the whole batch."""
        return self._flat.split(self._delta(displacement.double(), None))

    def confirm(self, delta: Perturbation) -> tuple[dict[str, Tensor], Tensor]:
        """Attacked modalities after the perturbation where that fools the public forward, else clean; and where."""
        oracle = self.oracle
        moved = self.budget.apply(delta, oracle.inputs)
        already = oracle.fooled(oracle.clean_logits)
        fooled = oracle.fooled(oracle.logits(moved)) & ~already
        best = {name: choose(fooled, moved[name], oracle.inputs[name]) for name in oracle.attacked}
        return best, fooled | already

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
        (found,) = torch.autograd.grad(ctx.logits, ctx.leaf, slope, retain_graph=True)
        return found.nan_to_num(0.0, 0.0, 0.0), None


class InOrder(nn.Module):
    """For a library that keeps the batch together: displacements to logits."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem
        self.eval()

    def forward(self, displacement: Tensor) -> Tensor:
        """Logits ``(B, K)`` of displacements ``(B, D)``."""
        return self.problem.logits(displacement)


class Numbered(nn.Module):
    """For a library that works in single precision within the box [0, 1], and drops and reorders samples.

    The clean input is the middle of the box, one radius is ``1 / 16``. More entries at the end, each 0 or 1, are the
    binary digits of the number of the sample: too far apart for one radius to change, and without influence else.
    """

    radius = 1 / 16

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem
        self.eval()
        size, device = len(problem.origin), problem.origin.device
        self._weights = 2 ** torch.arange(max(1, (size - 1).bit_length()), device=device)
        digits = (torch.arange(size, device=device)[:, None] & self._weights) > 0
        self.clean = torch.cat([(problem.origin + 0.5).float(), digits.float()], dim=1)

    def displacement(self, points: Tensor) -> Tensor:
        """Back to units of the budget's radius."""
        return (points[:, : -len(self._weights)] - 0.5) / self.radius  # exact: close to 0.5, and a power of 2

    def forward(self, points: Tensor) -> Tensor:
        """Logits ``(n, K)`` of points in the box ``(n, D + digits)``."""
        rows = ((points[:, -len(self._weights) :].detach() > 0.5) * self._weights).sum(dim=1)
        return self.problem.logits(self.displacement(points), rows)


def load(package: str, extra: str = "attacks") -> Any:
    """Import an optional package.

    Raises:
        ModuleNotFoundError: if it is not installed, with the extra that installs it.
    """
    before = os.environ.get("GIT_PYTHON_REFRESH")
    # One of foolbox's own dependencies refuses to load where there is no git, unless told that nobody minds.
    os.environ["GIT_PYTHON_REFRESH"] = "quiet"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # imports of deprecated names there
            return import_module(package)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{package} cannot be imported ({error}): pip install 'lightning_crmt[{extra}]'", name=error.name
        ) from error
    finally:
        if before is None:
            del os.environ["GIT_PYTHON_REFRESH"]
        else:
            os.environ["GIT_PYTHON_REFRESH"] = before


def require_ball(budget: Budget, norms: Sequence[str]) -> None:
    """Refuse a budget that is no ball in one of the norms; l-infinity balls of several radii are one, rescaled."""
    one = budget.joint or (isinstance(budget.radius, dict) and len(budget.radius) == 1)
    if budget.norm not in norms or (budget.norm == "l2" and not one):
        raise ValueError(f"`budget` must be one ball of all attacked modalities, in {' or '.join(norms)}, got {budget}")


@contextmanager
def handed_over(model: Model, inputs: Inputs, target: Tensor, budget: Budget) -> Iterator[Problem]:
    """Lend ``model`` to a library that may seed torch's global generators and set the interpreter's trace function."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    trace = sys.gettrace()
    try:
        with torch.random.fork_rng(devices=devices), under_attack(model, inputs, target, budget) as oracle:
            oracle.gradient(oracle.inputs, lambda logits: logits.sum(dim=1))  # refuses a model that detaches
            yield Problem(oracle, budget)
    finally:
        sys.settrace(trace)
