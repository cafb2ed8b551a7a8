# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The largest gradient of every score, found without taking them all: the cost hardly grows with the classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_crmt.lipschitz.gradients import input_gradients
from lightning_crmt.lipschitz.screening.pairs import pair_norms
from lightning_crmt.lipschitz.screening.screen import Screen
from lightning_crmt.modality import Inputs, at_least_single

#: The most samples, all gradients of which are taken, to learn from.
_MOST_PILOTS = 256
#: Random mixtures of the gradients of each pilot, from which the leading directions are read.
_MIXTURES = 4
#: Pairs of each class that are looked at first, as they may raise the bar for the others.
_FIRST = 8
#: Relative gain that is not worth a gradient.
_GAIN = 0.005


@dataclass(frozen=True, kw_only=True)
class ProbeSearch:
    r"""Search for the largest gradient norms :math:`\max_i \|\nabla s_k^m (x_i)\|` that screens samples by probes.

    1. For a few pilot samples all gradients are taken, and the leading directions :math:`v` of these.
    2. Probes, one forward pass each, give every sample's slopes along them for all classes at once,
       :math:`(s_k(x + h v) - s_k(x)) / h \approx v \cdot \nabla s_k`.
    3. A regression learnt on the pilots predicts the rest of each norm from the slopes and scores, and how uncertain
       that is.
    4. Exact gradients are taken of the pairs of sample and class that are not ``caution`` standard deviations below the
       largest norm so far, the most promising first; a backward pass serves one class of every sample in it. When they
       have cost more than the pilots, the pilots are doubled.

    What comes out are exact gradient norms at data points, so it is never above the exhaustive search; where it is
    below, a pair beat its prediction by more than ``caution`` allows for.
    It pays with many classes, thousands of samples, trained encoders, and where a forward pass is cheaper than a
    backward pass, as with convolutions; if the slopes predict little, as with encoders that were never trained, most
    gradients are taken. ``benchmarks/lipschitz_scaling.py`` measures it. Samples should come shuffled: otherwise the
    first pilots are not typical, and the search takes longer. Orthogonal heads are computed in every forward pass: with
    many classes, give the search ``with_fixed_weights(model)``.

    Memory, per modality, beside one forward and backward pass: ``pool`` inputs (or a batch, if it is larger), and
    ``pool K probes`` slopes a few times.

    Args:
        probes: number of directions; more make the screening sharper and more expensive. None takes the square root of
            twice the number of classes, rounded up: the more gradients there are to save, the more it may cost.
        pilots: number of samples whose gradients are all taken at first.
        caution: a pair is not looked at if its predicted norm is more standard deviations than this below what would
            beat the largest one by half a percent. Errors have longer tails than normal ones: over searches of a few
            trained encoders, most of which served to choose the default too, one of 680 classes ended 1.0 % low with
            4, and none of 4,000 with 5.
        pool: number of samples screened together.
        seed: of the generator of its own; the global random state is neither used nor changed.

    Raises:
        ValueError: if a number is not positive, or there are fewer than 8 pilots.

    >>> from lightning_crmt import LinearFusion, estimate_lipschitz
    >>> head = LinearFusion({"audio": 3}, num_classes=2)
    >>> batches = [{"audio": torch.randn(50, 3)} for _ in range(4)]
    >>> tau = estimate_lipschitz(head, batches, search=ProbeSearch(pilots=8))
    >>> torch.allclose(tau.values["audio"], estimate_lipschitz(head, batches).values["audio"])
    True
    """

    probes: int | None = None
    pilots: int = 64
    caution: float = 5.0
    pool: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("probes", "pool", "caution"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"`{name}` must be positive, got {value}")
        if self.pilots < 8:
            raise ValueError(f"`pilots` must be at least 8, got {self.pilots}: the screening learns from them")


def probed_speeds(
    scores_of: Callable[[Inputs], Inputs], batches: Iterable[Inputs], search: ProbeSearch
) -> Iterator[dict[str, Tensor]]:
    """Gradient norms ``(n, K)`` of the scores of all samples in turn: exact, or 0 where that was not worth it.

    Args:
        scores_of: uni-modal scores ``(B, K)`` of inputs by name, each of its own input alone.
        batches: inputs by name.
        search: settings.
    """
    finder = _Finder(scores_of, search)
    for pool, batch_size in _pools(batches, search.pool):
        yield from finder.search(pool, batch_size)


def _pools(batches: Iterable[Inputs], least: int) -> Iterator[tuple[Inputs, int]]:
    """Batches of inputs of the same shape joined to pools, with the size of the largest of them."""
    waiting: list[Inputs] = []
    sizes: list[int] = []
    for batch in batches:
        if waiting and (sum(sizes) >= least or _shapes(batch) != _shapes(waiting[0])):
            yield _join(waiting), max(sizes)
            waiting, sizes = [], []
        waiting.append(batch)
        sizes.append(_size(batch))
    if waiting:
        yield _join(waiting), max(sizes)


class _Finder:
    """What is known so far: the largest norms, the directions, the pilots and the screens learnt from them."""

    def __init__(self, scores_of: Callable[[Inputs], Inputs], search: ProbeSearch) -> None:
        self.scores_of, self.settings = scores_of, search
        self.generator = torch.Generator().manual_seed(search.seed)
        self.largest: dict[str, Tensor] = {}
        self.directions: dict[str, Tensor] = {}
        self.steps: dict[str, Tensor] = {}
        self.known: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}
        self.screens: dict[str, Screen] = {}
        # Gradients taken of pilots, and of others since the last pilots.
        self.pilots = self.invested = self.spent = 0

    def search(self, pool: Inputs, batch_size: int) -> Iterator[dict[str, Tensor]]:
        self.batch_size = batch_size
        size = _size(pool)
        fits = not self.directions or _shapes(pool) == _shapes(self.directions)
        count = min(size, self._pilots_wanted()) if fits else size
        order = torch.randperm(size, generator=self.generator)
        others = pool
        if count > 0:
            pilots, others = _select(pool, order[:count]), _select(pool, order[count:])
            with torch.no_grad():
                one = self.scores_of(_select(pool, torch.arange(1)))
            every = {name: score.new_ones(count, score.shape[1]) for name, score in one.items()}
            norms, taken = pair_norms(self.scores_of, pilots, every, batch_size)
            yield self._note(norms)
            if fits:
                self._learn(pilots, norms)
                self.invested, self.spent = self.invested + taken, 0
        if count < size:
            yield self._screened(others)

    def _pilots_wanted(self) -> int:
        if self.pilots < self.settings.pilots:
            return self.settings.pilots - self.pilots
        # As much for learning as it has cost to search with what was known.
        return min(self.pilots, max(0, _MOST_PILOTS - self.pilots)) if self.spent > self.invested else 0

    def _note(self, norms: dict[str, Tensor]) -> dict[str, Tensor]:
        for name, value in norms.items():
            top = value.amax(dim=0)
            self.largest[name] = torch.maximum(self.largest[name], top) if name in self.largest else top
        return norms

    # --- learning

    def _learn(self, pilots: Inputs, norms: Inputs) -> None:
        if not self.directions:
            self._choose_directions(pilots, norms)
        for name, (slopes, scores) in self._probe(pilots).items():
            known = self.known.setdefault(name, [])
            known.append((slopes, scores, at_least_single(norms[name])))
            self.screens[name] = Screen(*(torch.cat(parts) for parts in zip(*known, strict=True)))
        self.pilots += _size(pilots)

    def _choose_directions(self, pilots: Inputs, norms: Inputs) -> None:
        """Leading principal directions of the gradients of all classes, each of length one."""
        mixed: dict[str, list[Tensor]] = {name: [] for name in pilots}
        for rows in torch.split(torch.arange(_size(pilots)), self.batch_size):
            leaves = {name: value.requires_grad_(True) for name, value in _select(pilots, rows).items()}
            scores = self.scores_of(leaves)
            for turn in range(_MIXTURES):
                parts = []
                for name, score in scores.items():
                    # Mixed with random signs, gradients keep their covariance: a few mixtures do for K gradients.
                    signs = torch.randint(2, score.shape, generator=self.generator).to(score) * 2 - 1
                    size = norms[name][rows.to(score.device)]
                    parts.append((score * torch.where(size > 0, signs / size, 0)).sum())
                for name, gradient in input_gradients(torch.stack(parts).sum(), leaves, turn == _MIXTURES - 1).items():
                    mixed[name].append(gradient)
        for name, gradients in mixed.items():
            stacked = at_least_single(torch.cat(gradients))
            probes = self.settings.probes or math.isqrt(2 * norms[name].shape[1] - 1) + 1
            count = min(probes, *stacked.shape)
            leading = torch.linalg.eigh(stacked @ stacked.mT).eigenvectors[:, -count:]
            directions = torch.nn.functional.normalize(leading.mT @ stacked, dim=1)
            # Every modality has the same number of probes; one of few dimensions is moved along nothing at last.
            missing = directions.new_zeros(probes - count, directions.shape[1])
            value = pilots[name]
            self.directions[name] = torch.cat([directions, missing]).view(-1, *value.shape[1:]).to(value.dtype)
            length = value.flatten(1).norm(dim=1).mean()
            # Between rounding, which small steps magnify, and kinks, which large steps cross.
            self.steps[name] = torch.where(length > 0, length, 1) * torch.finfo(value.dtype).eps ** 0.4

    @torch.no_grad()
    def _probe(self, inputs: Inputs) -> dict[str, tuple[Tensor, Tensor]]:
        """Slopes ``(n, probes, K)`` of all scores along the directions, by differences: any module can do that.

        And the scores. Batches are not enlarged: they were chosen for the memory, or the cache.
        """
        slopes: dict[str, list[Tensor]] = {name: [] for name in inputs}
        scores: dict[str, list[Tensor]] = {name: [] for name in inputs}
        for rows in torch.split(torch.arange(_size(inputs)), self.batch_size):
            here = _select(inputs, rows)
            base = self.scores_of(here)
            parts: dict[str, list[Tensor]] = {name: [] for name in inputs}
            for i in range(len(next(iter(self.directions.values())))):
                moved = {name: self.steps[name] * self.directions[name][i] + value for name, value in here.items()}
                for name, score in self.scores_of(moved).items():
                    change = at_least_single(score) - at_least_single(base[name])
                    parts[name].append(change / self.steps[name])
            for name in inputs:
                slopes[name].append(torch.stack(parts[name], dim=1))
                scores[name].append(at_least_single(base[name]))
        return {name: (torch.cat(slopes[name]), torch.cat(scores[name])) for name in inputs}

    # --- searching

    def _screened(self, inputs: Inputs) -> dict[str, Tensor]:
        """Norms of the pairs that may beat the largest so far: the best of each class, then all that still may."""
        predictions = {name: self.screens[name].predict(*seen) for name, seen in self._probe(inputs).items()}
        norms = {name: torch.zeros_like(p.visible, dtype=inputs[name].dtype) for name, p in predictions.items()}
        known = {name: torch.zeros_like(p.visible, dtype=torch.bool) for name, p in predictions.items()}
        for most in (_FIRST, math.inf):  # no more rounds than these, as the last batch of each is not full
            todo = {}
            for name, prediction in predictions.items():
                lead = prediction.lead(at_least_single(self.largest[name]) * (1 + _GAIN))
                lead = lead.masked_fill_(known[name], -torch.inf)
                todo[name] = lead >= -self.settings.caution
                if most < len(lead):
                    todo[name] &= lead >= lead.topk(_FIRST, dim=0).values[-1]
            exact, taken = pair_norms(self.scores_of, inputs, todo, self.batch_size)
            self.spent += taken
            for name, value in self._note(exact).items():
                norms[name] = torch.maximum(norms[name], value)
                known[name] |= todo[name]
        return norms


def _size(inputs: Inputs) -> int:
    return len(next(iter(inputs.values())))


def _shapes(inputs: Inputs) -> dict[str, torch.Size]:
    return {name: value.shape[1:] for name, value in inputs.items()}


def _join(batches: list[Inputs]) -> dict[str, Tensor]:
    return {name: torch.cat([batch[name].detach() for batch in batches]) for name in batches[0]}


def _select(inputs: Inputs, rows: Tensor) -> dict[str, Tensor]:
    return {name: value[rows.to(value.device)] for name, value in inputs.items()}
