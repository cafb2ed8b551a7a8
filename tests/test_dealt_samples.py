# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Some samples of a data set: the same ones in any number of processes, and from all over it."""

import itertools

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from lightning_crmt.training import DealtSamples


def chosen(size, samples, processes=1, batch_size=4):
    """The places that each process chooses, and how many of its batches hold them."""
    parts, batches = [], []
    for rank in range(processes):
        sampler = DistributedSampler(range(size), processes, rank, shuffle=False) if processes > 1 else None
        dealt = DealtSamples(DataLoader(range(size), batch_size, sampler=sampler))
        batches.append(dealt.batches(samples))
        part, held = [], 0
        for count in [batch_size] * (-(-size // (processes * batch_size))):
            places = dealt.places(count)
            mine = places[dealt.chosen(places, samples)].tolist()
            part += mine
            held += bool(mine)
        parts.append(part)
        assert held == batches[-1]
    return parts


@pytest.mark.parametrize("size", [1, 10, 43, 400])
@pytest.mark.parametrize("samples", [1, 7, 40, 1000])
def test_they_are_evenly_spread_and_each_once(size, samples):
    (places,) = chosen(size, samples)
    number = min(size, samples)
    assert len(set(places)) == len(places) == number
    edges = [index * size // number for index in range(number + 1)]
    assert all(low <= place < high for place, (low, high) in zip(places, itertools.pairwise(edges), strict=True))


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize(("size", "samples"), [(40, 20), (43, 7), (43, 43), (400, 100)])
def test_processes_share_the_same_ones(size, samples, processes):
    (alone,) = chosen(size, samples)
    parts = chosen(size, samples, processes)
    assert sorted(itertools.chain(*parts)) == alone
    assert all(parts), "none waits for the others"


def test_of_limited_batches_they_are_spread_over_those():
    dealt = DealtSamples(DataLoader(range(400), 10), batches=3)
    assert dealt.chosen(torch.arange(400), 15).nonzero().flatten().tolist()[-1] in (28, 29)


def test_where_the_order_is_not_known_they_are_the_first():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(range(10))

    for loader in (DataLoader(Stream(), 4), DataLoader(range(10), 4, shuffle=True), [[1, 2]]):
        dealt = DealtSamples(loader)
        assert dealt.chosen(torch.arange(10), 3).nonzero().flatten().tolist() == [0, 1, 2]
