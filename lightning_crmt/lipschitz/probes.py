# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The largest gradient of every score, found without taking them all: the cost hardly grows with the classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_crmt.lipschitz.gradients import gradients
from lightning_crmt.lipschitz.screen import Screen
from lightning_crmt.modality import Inputs, at_least_single

#: Samples screened together: enough to rank candidates and to fill batches with them.
_POOL = 512
#: Samples whose gradients are all known: at most so many are learnt from.
_MOST_PILOTS = 512
#: Random mixtures of the gradients of each pilot, from which the leading directions are read.
_MIXTURES = 4
#: Copies of a batch, moved along different directions, in one forward pass without gradients.
_COPIES = 4
#: Relative gain that is not worth a gradient.
_GAIN = 1e-3


@dataclass(frozen=True, kw_only=True)
class ProbeSearch:
    r"""Search for the largest gradient norms :math:`\max_i \|\nabla s_k^m (x_i)\|` that screens samples by probes.

    1. For a few pilot samples all gradients are taken, and the leading directions :math:`v` of these.
    2. Probes, one forward pass each, give every sample's slopes along them for all classes at once,
       :math:`(s_k(x + h v) - s_k(x)) / h \approx v \cdot \nabla s_k`.
    3. A regression learnt on the pilots predicts the norms from the slopes, and how uncertain that is.
    4. Exact gradients are taken, the most promising first, of the pairs of sample and class that may beat the largest
       norm so far; a backward pass serves one class of every sample in it. When they have cost more than the pilots,
       the pilots are doubled.

    What comes out are exact gradient norms at data points, so it is never above the exhaustive search; where it is
    below, a pair was further above its prediction than ``confidence`` allows. If the slopes predict nothing, as with
    encoders that were never trained, nearly all gradients are taken. It pays with many classes and thousands of
    samples. Samples should come shuffled: otherwise the first pilots are not typical, and the search takes longer.

    Memory, per modality, beside one forward and backward pass: 512 inputs (or a batch, if it is larger), ``probes``
    directions, and ``512 K probes`` slopes twice.

    Args:
        probes: number of directions; more make the screening sharper and dearer.
        pilots: number of samples whose gradients are all taken at first.
        confidence: standard deviations that a norm is expected to stay below its prediction plus them. From 2 to 4;
            what a larger one finds more, it pays for in gradients.
        seed: of the generator of its own; the global random state is neither used nor changed.

    >>> from lightning_crmt import LinearFusion, estimate_lipschitz
    >>> head = LinearFusion({"audio": 3}, num_classes=2)
    >>> batches = [{"audio": torch.randn(50, 3)} for _ in range(4)]
    >>> tau = estimate_lipschitz(head, batches, search=ProbeSearch(pilots=8))
    >>> torch.allclose(tau.values["audio"], estimate_lipschitz(head, batches).values["audio"])
    True
    """

    probes: int = 8
    pilots: int = 64
    confidence: float = 3.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.probes < 1:
            raise ValueError(f"`probes` must be at least 1, got {self.probes}")
        if self.pilots < 4:
            raise ValueError(f"`pilots` must be at least 4, got {self.pilots}: the screening learns from them")
        if not (math.isfinite(self.confidence) and self.confidence >= 0):
            raise ValueError(f"`confidence` must be at least 0, got {self.confidence}")


def probed_speeds(
    scores_of: Callable[[Inputs], Inputs], batches: Iterable[Inputs], search: ProbeSearch
) -> Iterator[dict[str, Tensor]]:
    """Gradient norms of the scores ``(n, K)``, exact or 0 where it was not worth to look, of all samples in turn.

    Args:
        scores_of: uni-modal scores ``(B, K)`` of inputs by name, each of its own input alone.
        batches: inputs by name.
        search: settings.
    """
    finder = _Finder(scores_of, search)
    for pool, batch_size in _pools(batches):
        yield finder.search(pool, batch_size)


def _pools(batches: Iterable[Inputs]) -> Iterator[tuple[dict[str, Tensor], int]]:
    """Batches joined to pools, with the size of the largest batch in each."""
    waiting: list[Inputs] = []
    sizes: list[int] = []
    for batch in batches:
        if waiting and _shapes(batch) != _shapes(waiting[0]):
            yield _join(waiting), max(sizes)
            waiting, sizes = [], []
        waiting.append(batch)
        sizes.append(len(next(iter(batch.values()))))
        if sum(sizes) >= _POOL:
            yield _join(waiting), max(sizes)
            waiting, sizes = [], []
    if waiting:
        yield _join(waiting), max(sizes)


def _shapes(inputs: Inputs) -> dict[str, torch.Size]:
    return {name: value.shape[1:] for name, value in inputs.items()}


def _join(batches: list[Inputs]) -> dict[str, Tensor]:
    return {name: torch.cat([batch[name].detach() for batch in batches]) for name in batches[0]}


class _Finder:
    """What is known so far: the largest norms, the directions, and the pilots with the screens learnt from them."""

    def __init__(self, scores_of: Callable[[Inputs], Inputs], search: ProbeSearch) -> None:
        self.scores_of, self.settings = scores_of, search
        self.generator = torch.Generator().manual_seed(search.seed)
        self.largest: dict[str, Tensor] = {}
        self.directions: dict[str, Tensor] = {}
        self.steps: dict[str, float] = {}
        self.slopes: dict[str, Tensor] = {}
        self.norms: dict[str, Tensor] = {}
        self.screens: dict[str, Screen] = {}
        self.num_pilots = 0
        self.invested = self.spent = 0  # gradients of samples, in pilots and in candidates

    def search(self, pool: Inputs, batch_size: int) -> dict[str, Tensor]:
        self.batch_size = batch_size
        size = len(next(iter(pool.values())))
        everyone = torch.randperm(size, generator=self.generator)
        if self.directions and _shapes(pool) != _shapes(self.directions):
            return self._measure(pool, everyone)  # the directions do not fit: no screening, all gradients
        pilots, others = everyone.split([n := min(size, self._wanted()), size - n])
        found = {}
        if len(pilots):
            found = self._measure(pool, pilots)
            self._learn({name: value[pilots] for name, value in pool.items()}, found, pilots)
        if len(others):
            rest = {name: value[others] for name, value in pool.items()}
        return found
