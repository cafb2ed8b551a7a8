# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What may be smoothed, and in which precision and where it is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_crmt.attacks import Model, like
from lightning_crmt.modality import PRESENT, Inputs, at_least_single, logits_of, present_of


def refuse_unfit(
    answers: Callable[[dict[str, Tensor]], Any], inputs: dict[str, Tensor], missing: tuple[str, ...]
) -> None:
    """Refuse what is no function of the inputs, or reads a modality that it is told a sample does not have."""
    before = answers(copies(inputs))
    if not alike(before, answers(copies(inputs))):
        raise ValueError(
            "`model` must be a function: it answered differently when it was asked again, and draws of noise beside "
            "randomness of its own are not independent; leave that out, as by eval()"
        )
    first = {name: value[:1] for name, value in inputs.items()}
    beside = {f: value if f.endswith(f".{PRESENT}") else _another(value) for f, value in first.items()}
    pair = {name: torch.cat([value, beside[name]]) for name, value in first.items()}
    if not alike(logits_of(before)[:1], logits_of(answers(pair))[:1]):
        raise ValueError(
            "`model` must answer each sample by itself, and another sample beside it changed the answer, as batch "
            "normalisation in training mode does: call eval() on what a function calls"
        )
    for owner, here in present_of(inputs).items():
        if bool(here.all()):
            continue
        gone = {f: value for f, value in inputs.items() if f.partition(".")[0] == owner and f != f"{owner}.{PRESENT}"}
        others = {
            f: torch.where(like(here.to(value.device), value), value, _another(value)) for f, value in gone.items()
        }
        if not alike(before, answers(copies({**inputs, **others}))):
            argument = "missing" if owner in missing else "inputs"
            raise ValueError(
                f"`{argument}` must lack only what the model can go without: it is told by '{owner}.{PRESENT}' which "
                f"samples have no {owner!r}, and reads it nevertheless"
            )


def _another(value: Tensor) -> Tensor:
    """Other values of the same kind."""
    if value.dtype is torch.bool:
        return ~value
    return 1 - 2 * value if value.is_floating_point() else torch.where(value == 0, 1, 0).to(value.dtype)


def copies(inputs: Inputs) -> dict[str, Tensor]:
    """For models that work in place."""
    return {name: value.clone() for name, value in inputs.items()}


def alike(first: Any, second: Any) -> bool:
    """Whether answers are the same up to rounding, which may differ from one call to the next."""
    coarse = torch.finfo(logits_of(first).dtype).eps > 1e-4
    one, other = (logits_of(each).double() for each in (first, second))
    share = 0.1 if coarse else 1e-3
    scale = share * float(one.nan_to_num(0.0, 0.0, 0.0).abs().max()) + 1e-12
    return one.shape == other.shape and torch.allclose(one, other, rtol=share, atol=scale, equal_nan=True)


def device_of_model(model: Model, inputs: Inputs) -> torch.device:
    """Where a module has its tensors; that of the inputs, if it has none."""
    tensors = [*model.parameters(), *model.buffers()] if isinstance(model, torch.nn.Module) else []
    return (tensors or list(inputs.values()))[0].device


def refuse_lost(name: str, value: Tensor, sigma: float) -> None:
    """Refuse noise that rounding would swallow: then draws say nothing about what a small change does."""
    largest = value.double().flatten(1).abs().amax(dim=1) if value.numel() else torch.zeros(1)
    if float(largest.max()) * torch.finfo(value.dtype).eps > 1e-3 * sigma:
        raise ValueError(
            f"`sigma` of {name!r} must not be lost in rounding: {sigma:g} beside values of up to "
            f"{float(largest.max()):g}, in sample {int(largest.argmax())}, in "
            f"{str(value.dtype).removeprefix('torch.')}; give inputs in double precision, or centre them"
        )


def as_drawn(value: Tensor) -> Tensor:
    """``value`` in the precision that noise is drawn and added in, at least single."""
    return at_least_single(value.detach()) if value.is_floating_point() else value.detach()


def as_computed(inputs: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """``inputs`` in the precision of the model's parameters."""
    parameters = model.parameters() if isinstance(model, torch.nn.Module) else ()
    precision = next((each.dtype for each in parameters if each.is_floating_point()), None)
    if precision is None:
        return inputs
    return {name: value.to(precision) if value.is_floating_point() else value for name, value in inputs.items()}
