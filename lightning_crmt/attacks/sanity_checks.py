# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Can the result of an attack be believed? The checks that a critical reader would run first."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from lightning_crmt.attacks.attack import Attack, BudgetedAttack
from lightning_crmt.attacks.minimum_norm import MinimumNormAttack
from lightning_crmt.attacks.random_search import RandomSearch
from lightning_crmt.attacks.search.attacked_model import Model, lent, public_logits, under_attack
from lightning_crmt.attacks.survival import check_fits, distance_by, fooled_by
from lightning_crmt.attacks.threat.mask import free_entries
from lightning_crmt.attacks.threat.per_sample import dot, like
from lightning_crmt.modality import Inputs, continuous_of, logits_of, select, widened
from lightning_crmt.targets import check_answers, has_labels, right_answers

#: Draws of noise that a search by gradients should not lose to.
_DRAWS = 20
#: Directions of a search without gradients, and what share of the samples it may win.
_DIRECTIONS, _BEATEN = 100, 0.1
#: Samples at which the gradient is compared with differences, in so many directions and steps of these sizes.
_FEW, _WAYS, _STEPS = 8, 4, (1e-3, 1e-2, 1e-1)
#: Differences of logits below this, relative to the largest, say nothing about a gradient.
_FLAT = 1e-5
#: The share of samples without a gradient from which on we warn; a ReLU network may have a few.
_BLIND = 0.1
#: Differences of logits below this, relative to the largest, may be rounding, of TF32 at worst.
_ROUNDING = 5e-3
#: Sums of probabilities may be this far from 1.
_SUM = 1e-4
#: A warning about the model, the same for every attack.
PROBABILITIES = (
    "the model returns probabilities, outputs that are at least 0 and sum to 1, which attacks take for logits; return "
    "logits, the values before softmax"
)
#: The same of labels, all of which a model that returns probabilities would say yes to.
PROBABILITIES_OF_LABELS = (
    "the model returns probabilities of labels, outputs that are all between 0 and 1, which attacks take for logits, a "
    "yes above 0; return logits, the values before sigmoid"
)


def suspicions(attack: Attack, model: Model, inputs: Inputs, target: Tensor) -> list[str]:
    """Reasons not to believe what this attack says about this model, a sentence each; none if all is well.

    After Carlini et al., *On Evaluating Adversarial Robustness* (2019), and Athalye et al. (ICML 2018), on samples that
    are predicted correctly:

    - the outputs are probabilities, of classes or of labels;
    - two forwards of the same inputs differ; predictions change with the batch that a sample is in; or the attack fools
      samples with a radius of 0: then nothing else is tried;
    - the first gradient that the attack takes is 0, or not finite, in every attacked modality, for a tenth of the
      samples or more;
    - the gradient does not foretell what the margin does in small steps, at more than half of 8 samples: central
      differences along it and in 3 random directions, over 0.1 %, 1 % and 10 % of the budget (of a tenth of the spread
      of the inputs where that is less), are off by more than half whatever the step;
    - random noise of the same size fools samples that the attack does not, or a :class:`RandomSearch` does, 2 of them
      or more and over a tenth;
    - some are not fooled where the budget is large enough to turn any of these inputs into any other, ten times over.

    The last four are for attacks that take gradients, the others for all. The last may be no fault of the attack, if
    its modalities cannot decide alone: the sentence says so.

    Cost: three calls of the attack (one if it searches for the distance); 25 forward passes; 24 more and a gradient at
    8 samples; and 200 for the samples that the attack left. Give it about 32 samples, not a data set.

    Args:
        attack: settings of the attack.
        model: a module, or any function from inputs by name to logits.
        inputs: one tensor per modality, ``(B, ...)``.
        target: classes, ``(B,)``, or labels, ``(B, K)`` of bools or integers.

    Raises:
        ValueError, TypeError: if the budget does not fit the inputs.
        RuntimeError: if the attack breaks its budget, or the model detaches its logits from an attacked modality.

    >>> from lightning_crmt import LinearFusion
    >>> from lightning_crmt.attacks import PGD, Budget
    >>> head = LinearFusion({"audio": 4}, num_classes=3)
    >>> x = {"audio": torch.randn(8, 4)}
    >>> suspicions(PGD(Budget(0.1)), head, x, head(x).logits.argmax(1))
    []
    >>> rounded = lambda inputs: (100 * head(inputs).logits).round()
    >>> suspicions(PGD(Budget(0.1)), rounded, x, rounded(x).argmax(1))[0].split(",")[0]
    '8 of 8 gradients are 0 or not finite in every attacked modality'
    """
    watched = _Watched(model, inputs)
    with lent(watched, inputs) as clean:
        check_fits([attack], watched, clean)
        with torch.no_grad():  # in one go: each `public_logits` begins with the same random state
            logits, again = logits_of(watched(clean)), logits_of(watched(clean))
        gap = _gap(logits, again)
        if gap > _ROUNDING:
            return [
                f"two forwards of the same inputs differ, by {gap:.2g} of the largest logit: is a dropout or another "
                "draw of random numbers left on in evaluation mode? Of a model that is random on purpose attack the "
                "mean of many draws, AveragedModel(model)"
            ]
        target = check_answers(target, logits.shape[1], len(logits)).to(logits.device)
        if has_labels(target) and bool(((logits >= 0) & (logits <= 1)).all()):
            return [PROBABILITIES_OF_LABELS]
        right = right_answers(logits, target)
        if isinstance(attack, BudgetedAttack) and attack.towards is not None and not has_labels(target):
            right &= target != torch.as_tensor(attack.towards, device=target.device)  # those are left alone
        if not bool(right.any()):
            return []
        doubts = [PROBABILITIES] if _sum_to_one(logits) else []
        troubles = list(_without_a_change(attack, watched, clean, target, right, logits))
        if troubles or not isinstance(attack, BudgetedAttack):
            return doubts + troubles
        return doubts + list(_of_the_search(attack, watched, clean, target, right))


class _Watched(nn.Module):
    """The model, and the first gradients that an attack takes of it."""

    def __init__(self, model: Model, inputs: Inputs) -> None:
        super().__init__()
        self.model = model
        #: Tells where a model without parameters runs.
        self.register_buffer("device_holder", next(iter(inputs.values())).new_zeros(()))
        self.first: dict[str, Tensor] = {}
        self.slopes: dict[str, Tensor] = {}

    def forward(self, inputs: dict[str, Tensor]) -> object:
        leaves = {name: value for name, value in inputs.items() if value.requires_grad}
        if leaves and not self.first:
            self.first = leaves
            for name, leaf in leaves.items():
                leaf.register_hook(partial(self._keep, name))  # type: ignore[no-untyped-call]
        return self.model(inputs)

    def _keep(self, name: str, slope: Tensor) -> None:
        self.slopes.setdefault(name, slope.detach())

    def blind(self, right: Tensor) -> int:
        """How many of the samples that are right have no gradient at all."""
        size = len(next(iter(self.first.values())))
        dead = torch.ones(size, dtype=torch.bool, device=right.device)
        for slope in self.slopes.values():
            dead &= (slope.nan_to_num(0.0, 0.0, 0.0) == 0).flatten(1).all(dim=1)
        # An attack starts with all samples, or with those that are right.
        return int((dead & right if size == len(right) else dead).sum())


def _without_a_change(
    attack: Attack, model: Model, inputs: Inputs, target: Tensor, right: Tensor, logits: Tensor
) -> Iterator[str]:
    others = torch.empty_like(logits)
    places = torch.arange(len(target), device=logits.device)
    for half in range(min(2, len(target))):
        # Among other neighbours, but as many and in the same place: what a model draws for a place stays the same.
        kept = places % 2 == half
        others[kept] = public_logits(model, _beside_others(inputs, kept))[kept]
    gap = _gap(logits, others)
    if gap > _ROUNDING:
        yield (
            f"logits change by {gap:.2g} of the largest with the batch that a sample is in, so an adversary may be no "
            "more than other neighbours: does evaluation mode still use statistics of the batch?"
        )
    elif isinstance(attack, BudgetedAttack) and not isinstance(attack, MinimumNormAttack):
        fallen = right & fooled_by(attack.scaled(0.0), model, inputs, target)
        if bool(fallen.any()):
            yield (
                f"{_count(fallen, right)} samples are fooled at radius 0, without any change: what is attacked is not "
                "what is evaluated"
            )


def _beside_others(inputs: Inputs, kept: Tensor) -> dict[str, Tensor]:
    """The batch with other values in the samples that are not kept; padding stays, and so do tokens."""
    changed = dict(inputs)
    for name, value in continuous_of(inputs).items():
        free = free_entries(name, inputs, {})
        fixed = like(kept.to(value.device), value) | (
            torch.zeros_like(value, dtype=torch.bool) if free is None else ~free
        )
        changed[name] = torch.where(fixed, value, 1 - 2 * value)
    return changed


def _of_the_search(
    attack: BudgetedAttack, model: _Watched, inputs: Inputs, target: Tensor, right: Tensor
) -> Iterator[str]:
    budget = attack.budget
    # The factor of the budget at which each sample is fooled, as far as the attack tells; infinite where it is not.
    if isinstance(attack, MinimumNormAttack):
        factor = distance_by(attack, model, inputs, target)
    else:
        factor = widened(torch.where(fooled_by(attack, model, inputs, target), 0.0, torch.inf))
    if not model.first:
        return
    blind = model.blind(right)
    if blind >= max(1.0, _BLIND * int(right.sum())):
        yield (
            f"{blind} of {int(right.sum())} gradients are 0 or not finite in every attacked modality, so the search is "
            "blind there: are outputs saturated or rounded, or the loss, as cross-entropy is for large margins, or "
            "does the model ignore these modalities?"
        )
    values = {name: widened(inputs[name]) for name in budget.names(inputs)}
    span = {n: torch.maximum(v.amax(0) - v.amin(0), v.abs().amax(0))[None] for n, v in values.items()}
    widest = budget.size(span).max().item()
    yield from _of_the_gradient(attack, model, inputs, target, right.nonzero().squeeze(1)[:_FEW], min(1, widest / 10))
    # Noise within the budget, or nearer than the result of the search.
    generator, lost = torch.Generator().manual_seed(0), torch.zeros_like(right)
    for _ in range(_DRAWS):
        noise = budget.random(inputs, generator, factor.nan_to_num(posinf=1.0))
        lost |= right & attack.succeeds(public_logits(model, budget.apply(noise, inputs)), target)
    if bool(lost.any()):
        yield (
            f"random noise of the same size fools {_count(lost, right)} samples that the attack did not: its gradients "
            "mislead it, or its steps are too few"
        )
    else:
        rows = (right & (factor > 0)).nonzero().squeeze(1)
        won = _won_without_gradients(attack.select(rows), model, select(inputs, rows), target[rows], factor[rows])
        if won > max(1.0, _BEATEN * int(right.sum())):
            yield (
                f"a search that asks for no gradients fools {won} of {int(right.sum())} samples that the attack did "
                "not, or nearer by a tenth: its gradients mislead it, or its steps are too few"
            )
    left, where = right & factor.isinf(), "at any distance"
    if not isinstance(attack, MinimumNormAttack):
        huge = 10 * widest
        if not 0 < huge < torch.inf:  # a radius of 0 stays 0
            return
        left &= ~fooled_by(attack.scaled(huge), model, inputs, target)
        where = f"at {huge:.3g} times the budget, where any of these inputs could become any other"
    if bool(left.any()):
        yield (
            f"{where}, {_count(left, right)} samples are not fooled: either the attacked modalities cannot decide "
            "alone, or the search fails"
        )


def _of_the_gradient(
    attack: BudgetedAttack, model: Model, inputs: Inputs, target: Tensor, rows: Tensor, share: float
) -> Iterator[str]:
    """Whether the gradient at some samples foretells what steps of several sizes, shares of the budget, come to."""
    one = attack.select(rows)
    with under_attack(model, select(inputs, rows), target[rows], one.budget, one.towards) as attacked:
        budget, clean = one.budget, attacked.inputs
        objective = attacked.objective("margin", attacked.rivals()[0])
        gradient = attacked.gradient(clean, objective)[2]
        generator = torch.Generator().manual_seed(0)
        ways = [gradient, *(budget.random(clean, generator) for _ in range(_WAYS - 1))]
        ways = [budget.steepest(way, clean) for way in ways]
        judged = right = torch.zeros(len(attacked.target), dtype=torch.bool, device=attacked.target.device)
        for size in _STEPS:
            foretold, came = [], []
            for way in ways:
                forth, back = (
                    budget.near({name: sign * share * size * each for name, each in way.items()}, clean)
                    for sign in (1, -1)
                )
                foretold.append(dot(gradient, budget.difference(forth, back)))
                came.append(widened(objective(attacked.logits(forth))) - widened(objective(attacked.logits(back))))
            told, seen = torch.stack(foretold), torch.stack(came)
            scale = torch.maximum(told.norm(dim=0), seen.norm(dim=0))
            visible = scale > _FLAT * attacked.clean_logits.abs().amax(dim=1)
            judged = judged | visible
            right = right | visible & ((told - seen).norm(dim=0) <= scale / 2)
    if int((judged & ~right).sum()) > len(rows) / 2:
        yield (
            f"at {_count(judged & ~right, judged)} samples the gradient does not foretell what small steps do, of "
            f"{_STEPS[0]:g} to {_STEPS[-1]:g} times the budget: it misleads, so trust no more than what was found "
            "without it, which may be little of what is there"
        )


def _won_without_gradients(attack: BudgetedAttack, model: Model, inputs: Inputs, target: Tensor, factor: Tensor) -> int:
    """How many of these samples a random search fools within the budget, or nearer than at these factors of it."""
    nearer = (
        attack.budget.scaled(0.9 * factor.nan_to_num(posinf=1.0))
        if isinstance(attack, MinimumNormAttack)
        else attack.budget
    )
    search = RandomSearch(nearer, steps=_DIRECTIONS, towards=attack.towards)
    return int(fooled_by(search, model, inputs, target).sum()) if len(target) else 0


def _sum_to_one(logits: Tensor) -> bool:
    return bool((logits >= 0).all()) and bool(((widened(logits).sum(dim=1) - 1).abs() < _SUM).all())


def _gap(one: Tensor, other: Tensor) -> float:
    largest = torch.maximum(one.abs(), other.abs()).nan_to_num(0.0, 0.0, 0.0).max().clamp(min=1e-30)
    return ((one - other).abs().nan_to_num(0.0).max() / largest).item()


def _count(some: Tensor, among: Tensor) -> str:
    return f"{int(some.sum())} of {int(among.sum())}"
