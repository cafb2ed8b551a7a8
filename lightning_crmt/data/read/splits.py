# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Splits by class and by person, and pairs of samples of the same class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_crmt.data.settings import T


def stratified_split(target: Tensor, shares: Sequence[float], generator: torch.Generator) -> list[Tensor]:
    """Rows of each part, sorted; each part has its share of every class, drawn at random.

    Args:
        target: class of each row, ``(N,)``.
        shares: share of each part; they add up to 1.
        generator: decides which row goes where.

    >>> parts = stratified_split(torch.tensor([0, 1] * 10), (0.6, 0.2, 0.2), torch.Generator().manual_seed(0))
    >>> [len(part) for part in parts]
    [12, 4, 4]
    """
    parts: list[list[Tensor]] = [[] for _ in shares]
    for label in sorted(set(target.tolist())):
        rows = (target == label).nonzero().squeeze(1)
        rows = rows[torch.randperm(len(rows), generator=generator)]
        ends = [round(sum(shares[: i + 1]) * len(rows)) for i in range(len(shares))]
        for part, start, end in zip(parts, [0, *ends[:-1]], ends, strict=True):
            part.append(rows[start:end])
    return [torch.cat(part).sort().values for part in parts]


def people_by_part(
    person: str, test: Sequence[T], validation: Sequence[T], everyone: Sequence[T] = ()
) -> dict[str, list[T]]:
    """The people of ``train``, ``val`` and ``test``, where some are held out: no one is in two parts.

    Args:
        person: what a person is called in the settings ``held_out_{person}s`` and ``validation_{person}s``.
        test: people whose samples are the test part.
        validation: people whose samples are the validation part.
        everyone: all people; empty if the data are not read yet.

    Raises:
        ValueError: if somebody is named twice or not known, or nobody is left to train on.

    >>> people_by_part("speaker", ["theo"], ["lucas"], ["theo", "george", "lucas", "george"])
    {'train': ['george'], 'val': ['lucas'], 'test': ['theo']}
    """
    named, people = [*test, *validation], sorted(set(everyone))
    train = [each for each in people if each not in named]
    if len(set(named)) < len(named) or (people and not (train and set(named) <= set(people))):
        among = f", among {people}," if people else ""
        raise ValueError(
            f"`held_out_{person}s` and `validation_{person}s` must name each {person} once{among} and leave one to "
            f"train on, got {list(test)} and {list(validation)}"
        )
    return {"train": train, "val": list(validation), "test": list(test)}


def pair_by_class(target: Tensor, other: Tensor, generator: torch.Generator) -> Tensor:
    """For each sample of one data set, a random row of the same class of another.

    Rows of the other are used as evenly as their number allows: none is used twice while one of its class is unused.

    Args:
        target: class of each sample, ``(N,)``.
        other: class of each row of the other data set, ``(M,)``.
        generator: decides which samples are paired.

    Returns:
        Rows of the other data set, ``(N,)``.

    Raises:
        ValueError: if the other data set lacks a class.

    >>> pair_by_class(torch.tensor([1, 0, 1]), torch.tensor([0, 1]), torch.Generator())
    tensor([1, 0, 1])
    """
    rows = torch.empty_like(target, dtype=torch.int64)
    for label in sorted(set(target.tolist())):
        places = (target == label).nonzero().squeeze(1)
        candidates = (other == label).nonzero().squeeze(1)
        if not len(candidates):
            raise ValueError(f"`other` must hold every class of `target`, has none of class {label}")
        rounds = -(-len(places) // len(candidates))
        drawn = [candidates[torch.randperm(len(candidates), generator=generator)] for _ in range(rounds)]
        rows[places] = torch.cat(drawn)[: len(places)]
    return rows
