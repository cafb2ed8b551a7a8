# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Mismatched pairs: one modality of a sample, and the rest of another sample of another class."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_crmt.checks import check_batch, describe, is_integer
from lightning_crmt.modality import Inputs, modalities_of, present_of


def mismatched_pairs(inputs: Inputs, target: Tensor, modality: str) -> tuple[Tensor, Tensor]:
    """For each sample that has a modality, another one of another class that has any other modality.

    Sample i of the batch gets number i, counted around, among those that there are: the same in every run, whatever is
    random, and different ones for different samples.

    Args:
        inputs: by modality, ``(B, ...)`` each, at least two.
        target: classes ``(B,)``.
        modality: the one that is taken from the sample itself.

    Returns:
        Which samples have a partner ``(P,)``, and the partner of each ``(P,)``, both on the CPU.

    Raises:
        TypeError: if ``target`` is not of classes.
        ValueError: if there are not as many as samples, or ``modality`` is unknown or the only one.

    >>> x = torch.zeros(4, 2)
    >>> mismatched_pairs({"audio": x, "image": x}, torch.tensor([0, 0, 1, 1]), "audio")
    (tensor([0, 1, 2, 3]), tensor([2, 3, 0, 1]))
    """
    names = list(modalities_of(inputs))
    size = check_batch("inputs", modalities_of(inputs))
    if modality not in names or len(names) < 2:
        raise ValueError(f"`modality` must be one of at least two in `inputs`, {names}, got {modality!r}")
    if not isinstance(target, Tensor) or not is_integer(target) or target.dim() != 1:
        raise TypeError(f"`target` must be a tensor of integer class indices (B,), got {describe(target)}")
    if len(target) != size:
        raise ValueError(f"`target` must have a class for each of {size} samples, got {len(target)}")
    present = {name: here.cpu() for name, here in present_of(inputs).items()}
    everywhere = torch.ones(size, dtype=torch.bool)
    has = present.get(modality, everywhere)
    has_rest = torch.stack([present.get(name, everywhere) for name in names if name != modality]).any(dim=0)
    classes = target.cpu()
    allowed = (classes[:, None] != classes) & has_rest
    count = allowed.sum(dim=1)
    rows = (has & (count > 0)).nonzero().squeeze(1)
    number = allowed[rows].cumsum(dim=1, dtype=torch.int32)
    wanted = (rows % count[rows])[:, None] + 1
    return rows, ((number == wanted) & allowed[rows]).int().argmax(dim=1)


def mismatched_inputs(
    inputs: Inputs, modality: str, rows: Tensor, partners: Tensor, context: Mapping[str, str] | None = None
) -> dict[str, Tensor]:
    """One modality of some samples with all the others of their partners; presence and context come along.

    Args:
        inputs: by modality, ``(B, ...)`` each.
        modality: the one that is taken from ``rows``.
        rows: samples ``(P,)``.
        partners: those whose other modalities they get, ``(P,)``.
        context: the modality that an entry belongs to whose name tells none, such as ``".mask"``, by the name after the
            dot; needed where the two samples differ in it.

    Raises:
        ValueError: if it cannot be told with which modality an entry goes.

    >>> inputs = {"audio": torch.tensor([1.0, 2.0]), "text": torch.tensor([[3, 4], [5, 0]]),
    ...     "text.mask": torch.tensor([[1, 1], [1, 0]])}
    >>> mixed = mismatched_inputs(inputs, "audio", torch.tensor([0]), torch.tensor([1]))
    >>> mixed["audio"], mixed["text"], mixed["text.mask"]
    (tensor([1.]), tensor([[5, 0]]), tensor([[1, 0]]))
    """
    context = context or {}
    mixed = {}
    for name, value in inputs.items():
        owner, _, key = name.partition(".")
        own, other = value[rows.to(value.device)], value[partners.to(value.device)]
        owner = owner or context.get(key, "")
        if not owner and not torch.equal(own, other):
            raise ValueError(
                f"`context` must say which modality {name!r} of the batch belongs to, because it differs between "
                f"samples: context={{{key!r}: ...}}, one of {list(modalities_of(inputs))}"
            )
        mixed[name] = own if owner == modality else other
    return mixed
