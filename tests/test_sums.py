# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch

from lightning_crmt.evaluation import Means, lower_median, total_and_count


def alone(value, how):
    return value


def side_by_side(*computes):
    """What each of several processes computes, each in a thread that waits for the others where they add up."""
    barrier, sent = threading.Barrier(len(computes)), {}

    def run(rank):
        def reduce(value, how):
            sent[rank] = value
            barrier.wait(timeout=30)
            total = sum(sent[each] for each in range(len(computes)))
            barrier.wait(timeout=30)
            return total

        return computes[rank](reduce)

    with ThreadPoolExecutor(len(computes)) as pool:
        return list(pool.map(run, range(len(computes))))


def batches(*sizes):
    generator = torch.Generator().manual_seed(0)
    for size in sizes:
        values = torch.rand(size, generator=generator)
        yield values, torch.randint(6, (size,), generator=generator)


def test_means_are_those_of_all_samples_and_of_each_group():
    means, found = Means[str](), []
    for values, target in batches(5, 1, 30):
        found += zip(values.tolist(), target.tolist(), strict=True)
        means.add({"value": values, "large": values > 0.5})
        means.add({"by class": values > 0.5}, target[:, None] == torch.arange(7))
    computed = means.compute(alone)
    assert computed["value"] == pytest.approx([sum(value for value, _ in found) / 36])
    assert computed["large"] == [sum(value > 0.5 for value, _ in found) / 36]
    for k, share in enumerate(computed["by class"]):
        of_class = [value > 0.5 for value, y in found if y == k]
        assert share == sum(of_class) / len(of_class) if of_class else math.isnan(share)
    assert math.isnan(computed["by class"][6])


@pytest.mark.parametrize("groups", [None, torch.rand(40, 3, generator=torch.Generator().manual_seed(0)) > 0.5])
def test_shares_added_together_are_those_added_one_by_one(groups):
    values = {str(r): torch.rand(40, generator=torch.Generator().manual_seed(1)) > r for r in (0.1, 0.5, 0.9)}
    together, one_by_one = Means[str](), Means[str]()
    for _ in range(2):
        together.add(values, groups)
        for name, each in values.items():
            one_by_one.add({name: each.float()}, groups)
    assert together.compute(alone) == one_by_one.compute(alone)
    assert together.counts == one_by_one.counts


def test_two_processes_have_the_means_of_one():
    parts = []
    for batch in batches(5, 30):
        means = Means[str]()
        means.add({"value": batch[0]})
        means.add({"by class": batch[0] > 0.5}, batch[1][:, None] == torch.arange(6))
        parts.append(means)
    whole = Means[str]()
    for values, target in batches(5, 30):
        whole.add({"value": values})
        whole.add({"by class": values > 0.5}, target[:, None] == torch.arange(6))
    one, other = side_by_side(*(part.compute for part in parts))
    assert one == other == whole.compute(alone)


def test_what_is_infinite_in_one_group_leaves_the_others():
    values, groups = torch.tensor([1.0, torch.inf]), torch.eye(2, dtype=torch.bool)
    assert total_and_count(values, groups).tolist() == [[1.0, torch.inf], [1.0, 1.0]]
    assert total_and_count(values.double()).dtype is torch.float64


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_the_median_is_torchs(size):
    values = torch.rand(size, generator=torch.Generator().manual_seed(size)).square() * 100
    values[::3] = torch.tensor([0.0, torch.inf])[torch.arange(len(values[::3])) % 2]
    assert lower_median(values, alone) == values.median()


def test_the_median_of_two_processes_is_that_of_all_their_values():
    values = torch.rand(41, generator=torch.Generator().manual_seed(0))
    one, other = side_by_side(partial(lower_median, values[:9]), partial(lower_median, values[9:]))
    assert one == other == values.median()


def test_a_device_without_double_precision():
    """As MPS is; the sums leave it before they are divided."""

    class Single(torch.Tensor):
        def double(self):
            raise TypeError("no float64 here")

        def cpu(self):
            return self.as_subclass(torch.Tensor)

    means = Means[str]()
    means.add({"a": torch.tensor([1.0, 2.0]).as_subclass(Single)})
    assert means.compute(alone) == {"a": [1.5]}
