# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Which samples survive an attack, and each radius: judged by the inputs it returned, not by what it reports.

Sizes are measured in float64, on the CPU where the model's device has none, and predictions are those of the public
forward pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_crmt.attacks.attack import Attack, BudgetedAttack
from lightning_crmt.attacks.minimum_norm import MinimumNormAttack
from lightning_crmt.attacks.missing import MissingModality
from lightning_crmt.attacks.search.attacked_model import Model, lent, public_logits
from lightning_crmt.modality import Inputs, in_double, select, widened, widest

#: Rounding of sums of squares may exceed a radius that was kept exactly by this share, by the precision of the search.
_SLACK = {torch.float64: 1e-6, torch.float32: 1e-4}


def check_fits(attacks: Iterable[Attack], model: Model, inputs: Inputs) -> None:
    """Raise what the attacks would, if their budgets or the modalities they name do not fit ``inputs``.

    Args:
        attacks: settings of the attacks.
        model: a module, or any function from inputs by name to logits; it is not called.
        inputs: one tensor per modality, ``(B, ...)``.

    Raises:
        ValueError: if a modality is unknown, or an input lies outside its box.
        TypeError: if a modality that is to be perturbed holds integers.

    >>> from lightning_crmt.attacks import PGD, Budget
    >>> check_fits([PGD(Budget({"sound": 0.1}))], lambda inputs: inputs["audio"], {"audio": torch.zeros(1, 3)})
    Traceback (most recent call last):
        ...
    ValueError: Budget({'sound': 0.1}) must name modalities among ['audio'], got ['sound']
    """
    with lent(model, inputs) as taken:
        for attack in attacks:
            if isinstance(attack, MissingModality):
                attack.subsets(taken)
            elif isinstance(attack, BudgetedAttack):
                attack.budget.attacked(taken)


def fooled_by(attack: Attack, model: Model, inputs: Inputs, target: Tensor, name: str | None = None) -> Tensor:
    """For which samples the attack succeeds, ``(B,)`` bool; samples that are misclassified when clean count too.

    Only the inputs that the attack returns are trusted: their distance from the clean ones is measured again in
    float64, and the prediction is that of a plain forward pass on all of them. An attack without a budget, such as a
    missing modality, is judged by its own ``logits``. An attack towards a class succeeds only where the prediction
    is that class.

    Args:
        attack: settings of the attack.
        model: a module, or any function from inputs by name to logits.
        inputs: one tensor per modality.
        target: classes, ``(B,)``, or labels, ``(B, K)`` of bools or integers.
        name: what an error calls the attack; its class by default.

    Raises:
        RuntimeError: if the attack left its budget or its box, or touched a modality that it may not.

    >>> from lightning_crmt import LinearFusion
    >>> from lightning_crmt.attacks import PGD, Budget
    >>> head = LinearFusion({"audio": 4}, num_classes=3)
    >>> x = {"audio": torch.randn(5, 4)}
    >>> fooled_by(PGD(Budget(10.0)), head, x, head(x).logits.argmax(1))
    tensor([True, True, True, True, True])
    """
    return _attempt(attack, model, inputs, target, name)[0]


def _attempt(
    attack: Attack, model: Model, inputs: Inputs, target: Tensor, name: str | None
) -> tuple[Tensor, Tensor | None]:
    """Where the attack succeeds, and the size of what it did in units of its budget, if it has one; ``(B,)`` each."""
    with lent(model, inputs) as clean:
        target = target.clone()
        if not isinstance(attack, BudgetedAttack):
            return attack.succeeds(attack.logits(model, clean, target), target), None
        moved = attack(model, clean, target)
        size = check_budget(attack, moved, clean, name)
        return attack.succeeds(public_logits(model, moved), target), size


def distance_by(
    attack: MinimumNormAttack, model: Model, inputs: Inputs, target: Tensor, name: str | None = None
) -> Tensor:
    """Factor of the budget at which the search fools each sample, ``(B,)``, float64.

    0 where the clean input is misclassified; infinite where the search failed, or its result does not fool a plain
    forward pass.

    Args:
        attack: settings of the attack.
        model: a module, or any function from inputs by name to logits.
        inputs: one tensor per modality, ``(B, ...)``.
        target: classes, ``(B,)``, or labels, ``(B, K)`` of bools or integers.
        name: what an error calls the attack; its class by default.

    Raises:
        RuntimeError: if the result is further away than the search said, or it changed a modality that it may not.

    >>> from lightning_crmt.attacks import Budget, MinimumNorm
    >>> model = lambda inputs: inputs["audio"]  # its logits are its inputs
    >>> x, y = {"audio": torch.tensor([[2.0, 0.0], [4.0, 0.0], [0.0, 1.0]])}, torch.tensor([0, 0, 0])
    >>> distance_by(MinimumNorm(Budget(1.0)), model, x, y)  # to the boundary; the last sample is wrong already
    tensor([1.4142, 2.8284, 0.0000], dtype=torch.float64)
    """
    with lent(model, inputs) as clean:
        target = target.clone()
        moved, claimed = attack.search(model, clean, target)
        size = check_budget(attack, moved, clean, name, limit=claimed)
        return torch.where(attack.succeeds(public_logits(model, moved), target), size, torch.inf)


def surviving(
    attack: Attack,
    model: Model,
    inputs: Inputs,
    target: Tensor,
    factors: Sequence[float],
    among: Tensor,
    name: str | None = None,
) -> list[Tensor]:
    """Which samples withstand the attack at each factor of its budget, as :func:`survival` tells, ``(B,)`` each.

    >>> from lightning_crmt.attacks import PGD, Budget
    >>> model = lambda inputs: inputs["audio"]  # its logits are its inputs: these are 1.41, 2.83 and 0 from a boundary
    >>> x, y = {"audio": torch.tensor([[2.0, 0.0], [4.0, 0.0], [0.0, 1.0]])}, torch.tensor([0, 0, 0])
    >>> surviving(PGD(Budget(1.0)), model, x, y, factors=[1.0, 2.0], among=model(x).argmax(dim=1) == y)
    [tensor([ True,  True, False]), tensor([False,  True, False])]
    """
    return survival(attack, model, inputs, target, factors, among, name).masks


class Survival(NamedTuple):
    """Which samples withstood an attack, and what brought the others down.

    Attributes:
        masks: those that withstood each factor of the budget, ``(B,)`` each.
        size: of the perturbation that brought a sample down, in units of the attack's own budget, ``(B,)``, double
            precision where the device has it; 0 for those that were not attacked, infinite for those that none brought
            down, NaN for those that an attack without a budget did.
    """

    masks: list[Tensor]
    size: Tensor


def survival(
    attack: Attack,
    model: Model,
    inputs: Inputs,
    target: Tensor,
    factors: Sequence[float],
    among: Tensor,
    name: str | None = None,
) -> Survival:
    """Which samples withstand the attack at each factor of its budget, and the size of what brought the others down.

    Factors are taken from the smallest on, and only samples still left are attacked: what fools a model in a small set
    is in the larger sets too. So the masks shrink as the factor grows, whatever a single search misses.

    Args:
        attack: settings of the attack.
        model: a module, or any function from inputs by name to logits.
        inputs: one tensor per modality.
        target: classes, ``(B,)``, or labels, ``(B, K)`` of bools or integers.
        factors: at least 0, in any order; without effect where the attack has no budget.
        among: the samples to attack, ``(B,)`` bool, those predicted correctly; all others count as fooled.
        name: what an error calls the attack; its class by default.

    Raises:
        RuntimeError: if the attack left its budget or its box, or touched a modality that it may not.

    >>> from lightning_crmt.attacks import PGD, Budget
    >>> model = lambda inputs: inputs["audio"]  # its logits are its inputs: these are 1.41, 2.83 and 0 from a boundary
    >>> x, y = {"audio": torch.tensor([[2.0, 0.0], [4.0, 0.0], [0.0, 1.0]])}, torch.tensor([0, 0, 0])
    >>> found = survival(PGD(Budget(1.0)), model, x, y, factors=[1.0, 2.0], among=model(x).argmax(dim=1) == y)
    >>> found.masks
    [tensor([ True,  True, False]), tensor([False,  True, False])]
    >>> 1.41 < float(found.size[0]) <= 2, found.size[1:]
    (True, tensor([inf, 0.], dtype=torch.float64))
    """
    left = among.clone()
    size = torch.where(among, torch.inf, 0.0).to(widest(among.device))
    masks = {}
    for factor in sorted(factors):
        rows = left.nonzero().squeeze(1)
        if len(rows) and factor > 0:  # no change at 0, and other libraries need not take it
            part = select(inputs, rows)
            sized = attack.scaled(factor).select(rows) if isinstance(attack, BudgetedAttack) else attack
            fooled, own = _attempt(sized, model, part, target[rows.to(target.device)], name)
            left[rows] = ~fooled
            # Its size is in units of the scaled budget.
            taken = torch.full_like(size[rows], torch.nan) if own is None else own.to(size) * factor
            size[rows] = torch.where(fooled, taken, torch.inf)
        masks[factor] = left.clone()
    return Survival([masks[factor] for factor in factors], size)


def check_budget(
    attack: BudgetedAttack, moved: Inputs, clean: Inputs, name: str | None = None, limit: Tensor | float = 1.0
) -> Tensor:
    """Size of the perturbation in units of the attack's budget, ``(B,)``, checked to be within ``limit``.

    Raises:
        RuntimeError: naming the attack, and the rule that it broke.
    """
    title = f"the attack {type(attack).__name__ if name is None else repr(name)}"
    if set(moved) != set(clean) or any(moved[key].shape != value.shape for key, value in clean.items()):
        raise RuntimeError(
            f"{title} must return inputs like those it was given, got "
            f"{ {key: tuple(value.shape) for key, value in moved.items()} }"
        )
    budget = attack.budget
    names = budget.names(clean)
    for key in names:
        free = budget.free(key, clean)
        if free is not None and not bool((free | (moved[key] == clean[key])).all()):
            raise RuntimeError(f"{title} changed entries of {key!r} that its mask, or its absence, forbids to change")
    wide = [{**each, **{key: in_double(each[key]) for key in names}} for each in (moved, clean)]
    delta = budget.difference(*wide)
    for key, value in clean.items():
        if key not in delta and not torch.equal(moved[key], value):
            raise RuntimeError(f"{title} changed {key!r}, which {budget} does not let it touch")
    for key, box in budget.box.items():
        if not box.contains(moved[key], budget.free(key, clean)):
            raise RuntimeError(f"{title} left the box of {key!r}, {box}")
    size = budget.size(delta)
    allowed = in_double(limit) if isinstance(limit, Tensor) else torch.tensor(limit, dtype=torch.float64)
    allowed = allowed.to(size.device)
    device = next(clean[key].device for key in delta)
    inside = size <= allowed * (1 + _SLACK[widest(device)])  # false for NaN
    if not bool(inside.all()):
        worst = int((size - allowed).nan_to_num(torch.inf).argmax())
        raise RuntimeError(
            f"{title} changed sample {worst} by {size[worst]:.9g} times {budget}, "
            f"where at most {allowed.expand(len(size))[worst]:.9g} is allowed"
        )
    return widened(size, device)
