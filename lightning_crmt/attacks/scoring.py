# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Count what an attack stored, not what it believed: sizes in float64, the prediction by the public forward."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from lightning_crmt.attacks.attack import Attack
from lightning_crmt.attacks.minimum_norm import Adversarial
from lightning_crmt.attacks.missing import MissingModality
from lightning_crmt.attacks.search.attacked_model import Model, as_taken_by, holder_of
from lightning_crmt.frozen_eval import frozen_eval
from lightning_crmt.modality import Inputs, logits_of

#: Float64 sums of squares may end this much above a radius that was kept exactly.
_SLACK = 1e-6


@runtime_checkable
class SearchesDistance(Protocol):
    """An attack that measures how far the nearest adversarial input is, as ``MinimumNorm`` does."""

    def search(self, model: Model, inputs: Inputs, target: Tensor) -> Adversarial:
        """Perturbed inputs, and the factors of the budget that they need."""


def has_budget(attack: Attack) -> bool:
    """Whether the attack is bounded by a budget; one that takes modalities away is not."""
    return getattr(attack, "budget", None) is not None


def check_fits(attacks: Iterable[Attack], model: Model, inputs: Inputs) -> None:
    """Raise what the attacks would, if their budgets or the modalities they name do not fit ``inputs``.

    Raises:
        ValueError: if a modality is unknown, or an input lies outside its box.
        TypeError: if a modality that is to be perturbed holds integers.
    """
    with frozen_eval(holder_of(model)):
        known = as_taken_by(model, inputs)
        for attack in attacks:
            if isinstance(attack, MissingModality):
                attack.subsets(known)
            elif has_budget(attack):
                attack.budget.attacked(known)


def right_answers(logits: Tensor, target: Tensor) -> Tensor:
    """Where the prediction is the target, ``(B,)``; logits that are not finite answer nothing."""
    return (logits.argmax(dim=1) == target.to(logits.device)) & logits.isfinite().all(dim=1)


def public_logits(model: Model, inputs: Inputs) -> Tensor:
    """Logits ``(B, K)`` of a plain forward in evaluation mode, in the precision of the parameters."""
    with frozen_eval(holder_of(model)), torch.no_grad():
        return logits_of(model(as_taken_by(model, inputs))).detach()


def fooled_by(attack: Attack, model: Model, inputs: Inputs, target: Tensor, name: str | None = None) -> Tensor:
    """Which samples are predicted wrongly after the attack, ``(B,)`` bool, clean errors among them.

    Nothing is taken from the attack but the inputs that it stored: their distance from the clean ones is measured again
    in float64, and the prediction is that of a plain forward on all of them. An attack that has no budget, such as a
    missing modality, answers for itself by its ``logits``.

    Args:
        attack: settings of the attack.
        model: a module, or anything from inputs by name to logits.
        inputs: one tensor per modality.
        target: classes, ``(B,)``.
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
    with frozen_eval(holder_of(model)):
        clean, target = as_taken_by(model, inputs), target.clone()
        if not has_budget(attack):
            return ~right_answers(attack.logits(model, clean, target), target)
        moved = attack(model, clean, target)
        check_budget(attack, moved, clean, name)
        return ~right_answers(public_logits(model, moved), target)


def distance_by(attack: Attack, model: Model, inputs: Inputs, target: Tensor, name: str | None = None) -> Tensor:
    """Factor of the budget at which the search fools each sample, ``(B,)``, float64.

    0 for what is predicted wrongly already; infinite where nothing was found, or what was found does not fool a plain
    forward. The arguments are those of :func:`fooled_by`; the attack must be one that :class:`SearchesDistance`.

    Raises:
        RuntimeError: if what was stored is further away than the search said, or a modality was touched that may not.
    """
    assert isinstance(attack, SearchesDistance)
    with frozen_eval(holder_of(model)):
        clean, target = as_taken_by(model, inputs), target.clone()
        moved, claimed = attack.search(model, clean, target)
        size = check_budget(attack, moved, clean, name, limit=claimed)
        fooled = ~right_answers(public_logits(model, moved), target)
        return torch.where(fooled, size, torch.inf)


def surviving(
    attack: Attack,
    model: Model,
    inputs: Inputs,
    target: Tensor,
    factors: Sequence[float],
    among: Tensor,
    name: str | None = None,
) -> list[Tensor]:
    """Which samples withstand the attack at each factor of its budget, one mask ``(B,)`` for each.

    From the smallest factor on, only those left are attacked: what a smaller set holds, the larger sets hold too, so
    the masks shrink with the factor whatever a single search misses.

    Args:
        attack: settings of the attack.
        model: a module, or anything from inputs by name to logits.
        inputs: one tensor per modality.
        target: classes, ``(B,)``.
        factors: at least 0, in any order; of no meaning where the attack has no budget.
        among: the samples to attack, ``(B,)`` bool, those rightly predicted; all others count as fallen.
        name: what an error calls the attack.
    """
    left = among.clone()
    found = {}
    for factor in sorted(factors):
        rows = left.nonzero().squeeze(1)
        if len(rows) and factor > 0:  # no change at 0, and foreign attacks need not take it
            part = {key: value[rows.to(value.device)] for key, value in inputs.items()}
            sized = attack.scaled(factor).select(rows) if has_budget(attack) else attack
            left[rows] = ~fooled_by(sized, model, part, target[rows.to(target.device)], name)
        found[factor] = left.clone()
    return [found[factor] for factor in factors]


def check_budget(
    attack: Attack, moved: Inputs, clean: Inputs, name: str | None = None, limit: Tensor | float = 1.0
) -> Tensor:
    """Size of what was changed in units of the attack's budget, ``(B,)``, float64, known to be within ``limit``.

    Raises:
        RuntimeError: naming the attack, and what it did that it may not.
    """
    title = f"the attack {type(attack).__name__ if name is None else repr(name)}"
    if set(moved) != set(clean) or any(moved[key].shape != value.shape for key, value in clean.items()):
        raise RuntimeError(
            f"{title} must return inputs like those it was given, got "
            f"{ {key: tuple(value.shape) for key, value in moved.items()} }"
        )
    delta = attack.budget.difference(moved, clean)
    for key, value in clean.items():
        if key not in delta and not torch.equal(moved[key], value):
            raise RuntimeError(f"{title} changed {key!r}, which {attack.budget} does not let it touch")
    for key, box in attack.budget.box.items():
        if not box.contains(moved[key]):
            raise RuntimeError(f"{title} left the box of {key!r}, {box}")
    size = attack.budget.size(delta)
    allowed = torch.as_tensor(limit, dtype=size.dtype, device=size.device)
    inside = size <= allowed * (1 + _SLACK)  # false for NaN
    if not bool(inside.all()):
        worst = int((size - allowed).nan_to_num(torch.inf).argmax())
        raise RuntimeError(
            f"{title} changed sample {worst} by {size[worst]:.9g} times {attack.budget}, "
            f"where at most {allowed.expand(len(size))[worst]:.9g} is allowed"
        )
    return size
