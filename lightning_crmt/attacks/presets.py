# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Ready-made settings: the attacks of the paper, and the strongest of this package."""

from __future__ import annotations

from functools import partial

from lightning_crmt.attacks.apgd import APGD
from lightning_crmt.attacks.ensemble import Ensemble
from lightning_crmt.attacks.fgm import FGM
from lightning_crmt.attacks.minimum_norm import MinimumNorm
from lightning_crmt.attacks.pgd import PGD
from lightning_crmt.attacks.random_search import RandomSearch
from lightning_crmt.attacks.search.attacked_model import Classes
from lightning_crmt.attacks.threat.budget import Budget


def paper_fgm(budget: Budget) -> FGM:
    """The one-step attack that CRMT was evaluated with (Yang et al., ICLR 2024): cross-entropy, full radius.

    The paper's l2 radii are in units of normalised inputs, and joint where it attacks all modalities.

    >>> paper_fgm(Budget(0.5)).loss
    'ce'
    """
    return FGM(budget, loss="ce")


def paper_pgd(budget: Budget) -> PGD:
    r"""The iterated attack that CRMT was evaluated with (Yang et al., ICLR 2024): four steps of :math:`\epsilon / 3`.

    Cross-entropy, the gradient normalised over all attacked modalities together, from the clean input, no restart: a
    weak attack, to compare with the paper's numbers and not to judge a model by.

    >>> paper_pgd(Budget(0.5)).steps
    4
    """
    return PGD(budget, steps=4, step_size=1 / 3, decay=1.0, loss="ce")


def strongest(
    budget: Budget,
    *,
    steps: int = 40,
    restarts: int = 1,
    classes: int | None = 9,
    towards: Classes | None = None,
    seed: int = 0,
) -> Ensemble:
    """What to judge a model by: cheap attacks first, each on the samples that the ones before left.

    :class:`PGD` in ten steps; :class:`APGD` on the margin; on cross-entropy, whose gradient sees all classes; aimed at
    each wrong class; from random starts at the four strongest; :class:`MinimumNorm`, which goes along the boundary
    instead of up the loss, towards these four; and :class:`RandomSearch`, which asks for no gradient, so that none can
    mislead it. A sample that is left to the end costs up to 17 gradients for each of ``steps``, with as many queries,
    and 20 queries without a gradient for the last: 680 and 800 by default.

    Args:
        budget: the allowed perturbations.
        steps: of each :class:`APGD`, twice those of :class:`MinimumNorm`, and a tenth of those of
            :class:`RandomSearch`; at least 2.
        restarts: number of the random starts.
        classes: how many wrong classes to aim at, largest logits first; None for all.
        towards: a class, or one per sample ``(B,)``, that all lead towards, instead of each wrong one.
        seed: of the random starts.

    Raises:
        ValueError: for settings out of range.

    >>> strongest(Budget(0.5)).budget
    Budget(0.5)
    """
    each = towards is None  # aim at each wrong class in turn
    few = (4 if classes is None else min(4, classes)) if each else None
    apgd = partial(APGD, budget, steps=steps, towards=towards)
    return Ensemble(
        [
            PGD(budget, steps=10, towards=towards),
            apgd(),
            apgd(loss="ce"),
            *([apgd(targeted=True, classes=classes)] if each else []),
            apgd(restarts=restarts, targeted=each, classes=few, random_start=True, seed=seed),
            MinimumNorm(budget, steps=max(1, steps // 2), restarts=1, classes=few, towards=towards, seed=seed),
            RandomSearch(budget, steps=10 * steps, towards=towards, seed=seed),
        ]
    )
