# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Splits by class, by group and by person, or as given, and pairs of samples of the same class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_crmt.data.settings import T

#: The parts, and other names that data have for them.
PARTS = {"train": ("training",), "val": ("valid", "validation", "dev"), "test": ("testing",)}


def split_rows(
    target: Tensor,
    shares: Sequence[float],
    generator: torch.Generator,
    *,
    split: Sequence[Any] | None = None,
    groups: Sequence[Any] | None = None,
) -> dict[str, Tensor]:
    """Rows of ``train``, ``val`` and ``test``, those of them that there are.

    Args:
        target: class of each row, ``(N,)``.
        shares: share of each of the three parts, where ``split`` does not say it.
        generator: decides which row goes where.
        split: the part of each row, by its name.
        groups: the group of each row, such as a person; none is in two parts.

    Raises:
        ValueError: if a part is unknown, a group is in two, nothing is left to train on, there are fewer groups than
            parts, or a part gets no row.

    >>> rows = split_rows(torch.tensor([0, 1, 0]), (), torch.Generator(), split=["train", "train", "test"])
    >>> {part: each.tolist() for part, each in rows.items()}
    {'train': [0, 1], 'test': [2]}
    """
    for argument, given in (("split", split), ("groups", groups)):
        if given is not None and len(given) != len(target):
            raise ValueError(f"`{argument}` must have one entry per sample, {len(target)}, got {len(given)}")
    if split is None:
        check_shares(shares)
        if groups is None:
            rows = stratified_split(target, shares, generator)
        else:
            rows = grouped_split(target, groups, shares, generator)
        parts = {part: each for part, share, each in zip(PARTS, shares, rows, strict=True) if share > 0}
        if empty := [part for part, each in parts.items() if not len(each)]:
            raise ValueError(f"`shares` must leave samples for every part, got none of {len(target)} for {empty}")
        return parts
    spelt = {name: part for part, others in PARTS.items() for name in (part, *others)}
    named = [spelt.get(str(name).strip().lower(), "") for name in split]
    if "" in named:
        row = named.index("")
        raise ValueError(f"`split` must name parts among {list(PARTS)}, got {split[row]!r} at {row}")
    if "train" not in named:
        raise ValueError(f"`split` must name samples of the part 'train', got {sorted(set(named))} alone")
    owner: dict[Any, str] = {}
    for group, part in zip([] if groups is None else groups, named, strict=groups is not None):
        if owner.setdefault(group, part) != part:
            raise ValueError(f"a group must be in one part, got {group!r} in {owner[group]!r} and {part!r}")
    return {
        part: torch.tensor([row for row, each in enumerate(named) if each == part]) for part in PARTS if part in named
    }


def check_shares(shares: Sequence[float]) -> None:
    """Refuse shares that are not those of training, validation and test.

    Raises:
        ValueError: if they are not three, one is negative, they do not add up to 1, or nothing is left to train on.
    """
    if len(shares) != len(PARTS) or not all(share >= 0 for share in shares) or not shares[0] > 0:
        raise ValueError(f"`shares` must be those of {list(PARTS)}, at least 0, and that of 'train' more, got {shares}")
    if abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"`shares` must add up to 1, got {tuple(shares)}")


def grouped_split(
    target: Tensor, groups: Sequence[Any], shares: Sequence[float], generator: torch.Generator
) -> list[Tensor]:
    """Rows of each part, sorted; no group is in two, and parts come near their share of every class.

    Large groups are taken before small ones, those of about one size in random order. Each goes to the part that lacks
    most of what the group has, class by class; the last ones to parts that have none yet.

    Args:
        target: class of each row, ``(N,)``.
        groups: the group of each row, numbers or names.
        shares: share of each part; they add up to 1.
        generator: decides which group goes where.

    Raises:
        ValueError: if there are fewer groups than parts.

    >>> parts = grouped_split(torch.tensor([0, 1] * 5), list("aabbccddee"), (0.6, 0.2, 0.2), torch.Generator())
    >>> [len(part) for part in parts]
    [6, 2, 2]
    """
    rows: dict[Any, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    wanted = [part for part, share in enumerate(shares) if share > 0]
    if len(rows) < len(wanted):
        raise ValueError(f"`groups` must be at least as many as parts, {len(wanted)}, got {len(rows)}")
    counts = torch.nn.functional.one_hot(target).double()
    lacking = torch.tensor(shares, dtype=torch.float64)[:, None] * counts.sum(0)
    # By their first row, so that names and their order in memory have no influence.
    order = [list(rows.values())[place] for place in torch.randperm(len(rows), generator=generator).tolist()]
    order.sort(key=lambda members: len(members).bit_length(), reverse=True)
    parts: list[list[int]] = [[] for _ in shares]
    for done, members in enumerate(order):
        empty = [part for part in wanted if not parts[part]]
        open_to = empty if len(order) - done == len(empty) else wanted
        has = counts[members].sum(0)
        best = max(open_to, key=lambda part: float(lacking[part] @ has))
        parts[best] += members
        lacking[best] -= has
    return [torch.tensor(sorted(part), dtype=torch.int64) for part in parts]


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
