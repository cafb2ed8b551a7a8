# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Attacks that need predictions only, so that misleading gradients cannot fool them: noise, and a random search."""

# No postponed annotations: on Python 3.10 jsonargparse cannot read KW_ONLY from them.
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor
from typing_extensions import override

from lightning_crmt.attacks.attack import FixedBudget
from lightning_crmt.attacks.search.ascent import Search, Start
from lightning_crmt.attacks.search.attacked_model import Classes
from lightning_crmt.attacks.search.loss import lead
from lightning_crmt.attacks.threat.budget import Budget
from lightning_crmt.attacks.threat.per_sample import Perturbation, choose, times
from lightning_crmt.checks import check_at_least
from lightning_crmt.modality import widened, widest


@dataclass(eq=False)
class RandomNoise(FixedBudget):
    """Random perturbations within the budget, one after the other; a sample keeps the first that fools the model.

    The least that any other attack must achieve: one that fools fewer samples is broken.

    Args:
        budget: the allowed perturbations.
        samples: number of draws, the same for all samples of a batch.
        towards: a class, or one per sample ``(B,)``, that counts as fooled; any wrong one by default.
        seed: of the draws.

    Raises:
        ValueError: if ``samples`` is below 1.

    >>> from lightning_crmt import LinearFusion
    >>> head, x = LinearFusion({"audio": 4}, num_classes=3), {"audio": torch.randn(5, 4)}
    >>> y = head(x).logits.argmax(1)
    >>> bool((RandomNoise(Budget(0.0)).logits(head, x, y).argmax(1) == y).all())
    True
    """

    budget: Budget
    _: KW_ONLY
    samples: int = 20
    towards: Classes | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_at_least(1, samples=self.samples)
        self.restarts, self.random_start = self.samples, True
        super().__post_init__()

    @override
    def _search(self, start: Start) -> dict[str, Tensor]:
        return start.attacked.budget.apply(start.delta, start.attacked.inputs)


@dataclass(eq=False)
class RandomSearch(FixedBudget):
    r"""Random search by logits alone, in any budget: a check that gradients are not masked.

    Each step tries a random direction u forwards and backwards, :math:`\Pi(\delta \pm \eta u)`, and keeps what raises
    the margin of the strongest wrong class. Differences of the two margins, times u, add up to an estimate of the
    gradient (as in Ilyas et al., ICML 2018), along which every fourth step goes instead. If it fools more samples than
    a gradient attack, the gradients mislead that attack. Large inputs need many queries: do not report it alone.

    Args:
        budget: the allowed perturbations.
        steps: random directions, two queries each.
        restarts: number of starts, the first at the clean input.
        towards: a class, or one per sample ``(B,)``, to aim for; any wrong class by default.
        seed: of every random draw.

    Raises:
        ValueError: for settings out of range.

    >>> from lightning_crmt import LinearFusion
    >>> head, x = LinearFusion({"audio": 4}, num_classes=3), {"audio": torch.randn(5, 4)}
    >>> y = head(x).logits.argmax(1)
    >>> bool((RandomSearch(Budget(10.0)).logits(head, x, y).argmax(1) != y).all())
    True
    """

    budget: Budget
    _: KW_ONLY
    steps: int = 200
    restarts: int = 1
    towards: Classes | None = None
    seed: int = 0

    @override
    def _search(self, start: Start) -> dict[str, Tensor]:
        return _Guesses(start).run(self.steps)


def coarse_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian noise ``(1, ...)`` for ``like``, ``(B, ...)``, in random blocks along its last dimensions.

    Networks for images and sounds see blocks better than single pixels. Vectors have none.
    """
    sizes = list(like.shape[1:])
    block = 2 ** int(torch.randint(4, (), generator=generator))
    spatial = range(max(1, len(sizes) - 2), len(sizes))
    for i in spatial:
        sizes[i] = -(-sizes[i] // block)
    noise = widened(torch.randn((1, *sizes), generator=generator, dtype=torch.float64), like.device)
    for i in spatial:
        noise = noise.repeat_interleave(block, dim=i + 1).narrow(i + 1, 0, like.shape[i + 1])
    return noise


class _Guesses(Search):
    """The best perturbation so far, its lead, and the estimate of the slope."""

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        self.generator, self.steps = start.generator, 0
        self.slope = {name: torch.zeros_like(each, dtype=widest(each.device)) for name, each in self.delta.items()}
        self.tried = self.attacked.budget.apply(self.delta, self.attacked.inputs)
        self.lead, self.fooled = self._judge(self.tried)
        self.size = torch.ones_like(self.lead)

    @override
    def look(self) -> Tensor:
        return self.fooled

    @override
    def end(self) -> dict[str, Tensor]:
        return self.tried

    @override
    def advance(self) -> None:
        noise = {name: coarse_noise(each, self.generator).expand_as(each) for name, each in self.delta.items()}
        self.steps += 1
        self._along_slope() if self.steps % 4 == 0 else self._along(noise)

    def _along(self, noise: Perturbation) -> None:
        """Try a direction and its opposite, and learn the slope along it."""
        ahead = self.attacked.budget.steepest(noise, self.attacked.inputs)
        before = self.lead
        forth, back = (
            self._try({name: d + times(ahead[name], sign * self.size) for name, d in self.delta.items()})
            for sign in (1, -1)
        )
        gained = ((forth - back) / self.size).nan_to_num(0.0, 0.0, 0.0)
        self.slope = {name: 0.99 * each + times(noise[name], gained) for name, each in self.slope.items()}
        self.size = (self.size * torch.where(self.lead > before, 1.3, 0.8)).clamp(0.01, 2)

    def _along_slope(self) -> None:
        """Try a step, and all the way, along the slope as it seems."""
        ahead = self.attacked.budget.steepest(self.slope, self.attacked.inputs)
        self._try({name: d + times(ahead[name], self.size) for name, d in self.delta.items()})
        self._try(ahead)

    def _try(self, delta: Perturbation) -> Tensor:
        budget, inputs = self.attacked.budget, self.attacked.inputs
        delta = budget.project(delta, inputs)
        tried = budget.apply(delta, inputs)
        ahead, fooled = self._judge(tried)
        better = (fooled & ~self.fooled) | ((ahead > self.lead) & (fooled | ~self.fooled))
        self.delta, self.tried = choose(better, delta, self.delta), choose(better, tried, self.tried)
        self.lead, self.fooled = torch.where(better, ahead, self.lead), torch.where(better, fooled, self.fooled)
        return ahead

    def _judge(self, tried: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        logits = self.attacked.logits(tried)
        return widened(lead(self.objective, logits)), self.attacked.fooled(logits)
