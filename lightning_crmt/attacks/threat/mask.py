# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Which entries of an input may be perturbed: padding, and modalities that a sample lacks, stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_crmt.checks import describe
from lightning_crmt.modality import Inputs, context_of, modalities_of, present_of

#: Where a mask comes from: a tensor with a row for each sample, the name of a context entry, or None for no mask.
MaskSource: TypeAlias = Tensor | str | None

#: Context that is a mask without being asked for: 1 for what is real, 0 for padding.
_DEFAULT = "attention_mask"


def free_entries(name: str, inputs: Inputs, given: Mapping[str, MaskSource]) -> Tensor | None:
    """Which entries of a modality may be perturbed, bool, in a shape that broadcasts with it; None for all.

    Args:
        name: the modality.
        inputs: the batch, with its context.
        given: masks by modality; one that is not named has the attention mask in the context, if there is one.

    Raises:
        ValueError: if the mask is not in the context, does not fit the modality, or may belong to several.

    >>> inputs = {"audio": torch.zeros(1, 3, 2), "audio.attention_mask": torch.tensor([[1, 1, 0]])}
    >>> free_entries("audio", inputs, {}).flatten()
    tensor([ True,  True, False])
    >>> free_entries("audio", inputs, {"audio": None}) is None
    True
    """
    if name not in given and not any("." in each for each in inputs):
        return None  # no context: this is asked for in every step of a search
    value, mask = inputs[name], mask_of(name, inputs, given)
    free = None if mask is None else _fitted(mask, value)
    if mask is not None and free is None:
        raise ValueError(
            f"the mask of {name!r} must have the first dimensions of {describe(value)}, or all but the channels', got "
            f"{describe(mask)}; mask={{{name!r}: None}} perturbs padding too"
        )
    here = present_of(inputs).get(name)
    if here is not None:
        here = here.to(value.device).reshape(-1, *[1] * (value.dim() - 1))
        free = here if free is None else free & here
    return free


def mask_of(name: str, inputs: Inputs, given: Mapping[str, MaskSource]) -> Tensor | None:
    """The mask of a modality as it was given, or as the context has it; None if there is none.

    Raises:
        ValueError: if it is not in the context, or may belong to several modalities.
    """
    if name in given:
        source = given[name]
        if isinstance(source, str) and source not in context_of(inputs):
            raise ValueError(
                f"`mask[{name!r}]` must be a tensor or the name of context in the batch, among "
                f"{list(context_of(inputs))}, got {source!r}"
            )
        return inputs[source] if isinstance(source, str) else source
    if f"{name}.{_DEFAULT}" in inputs:
        return inputs[f"{name}.{_DEFAULT}"]
    mask = inputs.get(f".{_DEFAULT}")
    if mask is None or _fitted(mask, inputs[name]) is None:
        return None
    owners = [other for other, value in modalities_of(inputs).items() if _fitted(mask, value) is not None]
    tokens = inputs.get(".input_ids")
    if any(not inputs[each].is_floating_point() for each in owners) or (
        tokens is not None and tokens.shape == mask.shape
    ):
        return None  # the mask of token ids, which are not perturbed
    if len(owners) > 1:
        raise ValueError(
            f"{'.' + _DEFAULT!r} may be the mask of any of {owners}: say whose it is, and None for the others, as in "
            f"mask={{{owners[0]!r}: {'.' + _DEFAULT!r}, {owners[1]!r}: None}}"
        )
    return mask


def check_mask(name: str, inputs: Inputs, given: Mapping[str, MaskSource]) -> None:
    """Check that the mask of a modality fits it and is a mask, of 0 and 1 only.

    Raises:
        ValueError: see :func:`free_entries`, or for other values.

    >>> inputs = {"audio": torch.zeros(1, 2), "audio.attention_mask": torch.tensor([[0.0, -2.0]])}
    >>> check_mask("audio", inputs, {})
    Traceback (most recent call last):
        ...
    ValueError: the mask of 'audio' must be bool, or 1 for what may be perturbed and 0 for the rest, got (-2.0, 0.0)
    """
    free_entries(name, inputs, given)
    mask = mask_of(name, inputs, given)
    if mask is not None and mask.dtype is not torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(
            f"the mask of {name!r} must be bool, or 1 for what may be perturbed and 0 for the rest, got "
            f"{tuple(bound.item() for bound in mask.aminmax())}"
        )


def _fitted(mask: Tensor, value: Tensor) -> Tensor | None:
    """The mask as bool, in a shape that broadcasts with ``value``; None if it does not fit."""
    free, shape = (mask != 0).to(value.device), value.shape
    if mask.dim() == 0 or len(mask) != len(value):
        return None
    if mask.shape == shape[: mask.dim()]:
        return free.reshape(*mask.shape, *[1] * (value.dim() - mask.dim()))
    if mask.dim() == value.dim() - 1 and mask.shape[1:] == shape[2:]:
        return free.unsqueeze(1)
    if mask.dim() == value.dim() and all(own in (1, size) for own, size in zip(mask.shape, shape, strict=True)):
        return free
    return None
