# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The largest gradient of every score without computing all: the cost hardly grows with the number of classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_crmt.lipschitz.bottleneck import narrow_norms, narrow_width
from lightning_crmt.lipschitz.gradients import input_gradients, keep_largest
from lightning_crmt.lipschitz.prediction import Screen
from lightning_crmt.modality import Inputs, at_least_single, continuous_of, select

#: The most pilots: samples whose gradients are all computed, to learn from.
_MOST_PILOTS = 256
#: Random mixtures of the gradients of each pilot, from which the leading directions are read.
_MIXTURES = 4
#: Pairs of each class that are computed first, as they may raise the bar for the others.
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

    The results are exact gradient norms at data points, so they never exceed those of the exhaustive search; where one
    is lower, a pair beat its prediction by more than ``caution`` allows for.
    Of fewer samples than ``pool`` all gradients are taken where every modality reaches its scores by way of a vector of
    fewer dimensions than there are classes, as behind the last hidden layer of a small network: it costs less then.
    It pays with many classes, thousands of samples, trained encoders, and where a forward pass is cheaper than a
    backward pass, as with convolutions; if the slopes predict little, as with encoders that were never trained, most
    gradients are taken. ``benchmarks/lipschitz_scaling.py`` measures it. Samples should come shuffled: otherwise the
    first pilots are not typical, and the search takes longer.

    Memory, per modality, on top of one forward and backward pass: ``pool`` inputs (or a batch, if it is larger), and
    ``pool K probes`` slopes a few times.

    Args:
        probes: number of directions; more make the screening sharper and more expensive. None takes the square root of
            twice the number of classes, rounded up: the more gradients there are to save, the more it may cost.
        pilots: number of samples whose gradients are all taken at first.
        caution: a pair is skipped if its predicted norm is more standard deviations than this below what would
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


def largest_norms(
    scores_of: Callable[[Inputs], Inputs], batches: Iterable[Inputs], search: ProbeSearch
) -> dict[str, Tensor]:
    """The largest gradient norm of every score over all samples, ``(K,)`` by modality, as far as ``search`` finds it.

    Args:
        scores_of: uni-modal scores ``(B, K)`` of inputs by name, each of its own input alone.
        batches: inputs by name.
        search: settings.

    Raises:
        ValueError: if a gradient is not finite.
    """
    finder = _Finder(scores_of, search)
    for pool, batch_size in _pools(batches, search.pool):
        finder.search(pool, batch_size)
    return finder.largest


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
    """The state of a search: the largest norms so far, the directions, the pilots, and the screens learnt from them."""

    def __init__(self, scores_of: Callable[[Inputs], Inputs], search: ProbeSearch) -> None:
        self.scores_of, self.settings = scores_of, search
        self.generator = torch.Generator().manual_seed(search.seed)
        self.largest: dict[str, Tensor] = {}
        self.directions: dict[str, Tensor] = {}
        self.steps: dict[str, Tensor] = {}
        self.known: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}
        self.screens: dict[str, Screen] = {}
        self.classes: dict[str, int] = {}
        # Whether that pays; not known before the first samples.
        self.searching: bool | None = None
        # Gradients taken of pilots, and of others since the last pilots.
        self.pilots = self.invested = self.spent = 0

    def search(self, pool: Inputs, batch_size: int) -> None:
        self.batch_size = batch_size
        size = _size(pool)
        names = continuous_of(pool)
        if self.searching is None:
            leaves = {n: v.requires_grad_(n in names) for n, v in select(pool, torch.arange(1)).items()}
            one = {name: score for name, score in self.scores_of(leaves).items() if name in names}
            self.classes = {name: score.shape[1] for name, score in one.items()}
            # What is learnt from pilots pays later; of few samples, most would be pilots.
            few = {n: self._probes(k) if size >= self.settings.pool else k for n, k in self.classes.items()}
            widths = {name: narrow_width(score, leaves[name], batch_size) for name, score in one.items()}
            self.searching = any(width is None or width > few[name] for name, width in widths.items())
        fits = self.searching and (not self.directions or _shapes(names) == _shapes(self.directions))
        count = min(size, self._pilots_wanted()) if fits else size
        order = torch.randperm(size, generator=self.generator)
        others = pool
        if count > 0:
            pilots, others = select(pool, order[:count]), select(pool, order[count:])
            every = {name: pool[name].new_ones(count, classes) for name, classes in self.classes.items()}
            norms, taken = pair_norms(self.scores_of, pilots, every, batch_size)
            keep_largest(self.largest, norms)
            if fits:
                self._learn(pilots, norms)
                self.invested, self.spent = self.invested + taken, 0
        if count < size:
            self._screen(others)

    def _pilots_wanted(self) -> int:
        if self.pilots < self.settings.pilots:
            return self.settings.pilots - self.pilots
        # Spend as much on learning as the search with the present screens has cost.
        return min(self.pilots, max(0, _MOST_PILOTS - self.pilots)) if self.spent > self.invested else 0

    def _probes(self, classes: int) -> int:
        return self.settings.probes or math.isqrt(2 * classes - 1) + 1

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
        mixed: dict[str, list[Tensor]] = {name: [] for name in norms}
        for rows in torch.split(torch.arange(_size(pilots)), self.batch_size):
            leaves = {name: value.requires_grad_(name in norms) for name, value in select(pilots, rows).items()}
            scores = {name: score for name, score in self.scores_of(leaves).items() if name in norms}
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
            probes = self._probes(norms[name].shape[1])
            count = min(probes, *stacked.shape)
            leading = torch.linalg.eigh(stacked @ stacked.mT).eigenvectors[:, -count:]
            directions = torch.nn.functional.normalize(leading.mT @ stacked, dim=1)
            # Every modality has the same number of probes; one of few dimensions gets zero directions at the end.
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
        names = list(self.directions)
        slopes: dict[str, list[Tensor]] = {name: [] for name in names}
        scores: dict[str, list[Tensor]] = {name: [] for name in names}
        for rows in torch.split(torch.arange(_size(inputs)), self.batch_size):
            here = select(inputs, rows)
            base = self.scores_of(here)
            parts: dict[str, list[Tensor]] = {name: [] for name in names}
            for i in range(len(next(iter(self.directions.values())))):
                moved = {name: self.steps[name] * self.directions[name][i] + here[name] for name in names}
                changed = self.scores_of({**here, **moved})
                for name in names:
                    change = at_least_single(changed[name]) - at_least_single(base[name])
                    parts[name].append(change / self.steps[name])
            for name in names:
                slopes[name].append(torch.stack(parts[name], dim=1))
                scores[name].append(at_least_single(base[name]))
        return {name: (torch.cat(slopes[name]), torch.cat(scores[name])) for name in names}

    # --- searching

    def _screen(self, inputs: Inputs) -> None:
        """Take the gradients of pairs that may beat the largest so far: the best of each class, then all that may."""
        predictions = {name: self.screens[name].predict(*seen) for name, seen in self._probe(inputs).items()}
        known = {name: torch.zeros_like(p.visible, dtype=torch.bool) for name, p in predictions.items()}
        for most in (_FIRST, math.inf):  # no more rounds than these, as the last batch of each is not full
            todo = {}
            for name, prediction in predictions.items():
                lead = prediction.lead(at_least_single(self.largest[name]) * (1 + _GAIN))
                lead = lead.masked_fill_(known[name], -torch.inf)
                todo[name] = lead >= -self.settings.caution
                if most < len(lead):
                    todo[name] &= lead >= lead.topk(_FIRST, dim=0).values[-1]
                known[name] |= todo[name]
            norms, taken = pair_norms(self.scores_of, inputs, todo, self.batch_size)
            keep_largest(self.largest, norms)
            self.spent += taken


def _size(inputs: Inputs) -> int:
    return len(next(iter(inputs.values())))


def _shapes(inputs: Inputs) -> dict[str, torch.Size]:
    return {name: value.shape[1:] for name, value in inputs.items()}


def _join(batches: list[Inputs]) -> dict[str, Tensor]:
    return {name: torch.cat([batch[name].detach() for batch in batches]) for name in batches[0]}


# --- exact gradient norms of chosen pairs of sample and class, in few passes


def pair_norms(
    scores_of: Callable[[Inputs], Inputs], inputs: Inputs, pairs: Inputs, batch_size: int
) -> tuple[dict[str, Tensor], int]:
    """Norms of the gradients of chosen scores at chosen samples, and how many gradients were taken for them.

    A backward pass serves one class of every sample in it, each its own; of samples of which all are requested,
    :func:`narrow_norms` may need fewer. A batch may combine the image of one sample
    with the sound of another, as no score depends on both.

    Args:
        scores_of: uni-modal scores ``(B, K)`` of inputs by name, each of its own input alone.
        inputs: of n samples, by name.
        pairs: which scores of which samples, ``(n, K)`` of bools by modality; others are carried along.
        batch_size: the most samples in a pass.

    Returns:
        ``(n, K)`` by modality, and a number. Norms of pairs that were not requested are 0, or exact where they cost
        nothing extra.

    >>> leaf = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> pairs = {"audio": torch.tensor([[True, False], [True, True]])}
    >>> norms, taken = pair_norms(lambda inputs: {"audio": inputs["audio"].square()}, {"audio": leaf}, pairs, 2)
    >>> norms["audio"][pairs["audio"]]
    tensor([2., 6., 8.])
    """
    left = {name: mask.to(torch.uint8, copy=True) for name, mask in pairs.items()}
    norms = {name: torch.zeros_like(mask, dtype=inputs[name].dtype) for name, mask in left.items()}
    first, taken = next(iter(left)), 0
    while True:
        counts = {name: mask.sum(dim=1) for name, mask in left.items()}
        size = min(batch_size, max(int((count > 0).sum()) for count in counts.values()))
        if size == 0:
            return norms, taken
        # The samples with most to do, together as long as it pays.
        rows = {name: count.argsort(descending=True, stable=True)[:size] for name, count in counts.items()}
        turns = _best_turns(torch.cat([count[rows[name]] for name, count in counts.items()]))
        classes = {
            name: mask[rows[name]].argsort(dim=1, descending=True, stable=True)[:, :turns]
            for name, mask in left.items()
        }
        # Context goes with its modality.
        batch = {name: value[rows.get(name.partition(".")[0], rows[first])] for name, value in inputs.items()}
        # A modality with nothing left to compute is carried along.
        leaves = {name: batch[name].requires_grad_(True) for name, count in counts.items() if count.any()}
        scores = scores_of(batch)
        for name, mask in left.items():
            if name in leaves and turns == mask.shape[1]:
                exact = narrow_norms(scores[name], leaves[name])
                if exact is not None:
                    norms[name][rows[name]] = exact
                    del leaves[name]
        for turn in range(turns if leaves else 0):
            at = {name: classes[name][:, turn] for name in leaves}
            total = torch.stack([scores[name].gather(1, k[:, None]).sum() for name, k in at.items()]).sum()
            for name, gradient in input_gradients(total, leaves, last=turn == turns - 1).items():
                norms[name][rows[name], at[name]] = gradient.norm(dim=1)
        for name, mask in left.items():
            mask[rows[name][:, None], classes[name]] = 0
        taken += turns * size


def _best_turns(counts: Tensor) -> int:
    """How often to go backward for the most gradients wanted per pass; the forward pass costs about as much as one."""
    turns = torch.arange(1, int(counts.max()) + 1, device=counts.device)
    useful = torch.minimum(counts[:, None], turns).sum(dim=0)
    return 1 + int((useful / (1 + turns)).argmax())
