# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
import re

import pytest
import torch
from torchmetrics import MetricCollection

from lightning_crmt.metrics import MeanAdversarialDistance, RobustAccuracy, credited_distance, withstood


def batch(size=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits, attacked = torch.randn(2, size, 4, generator=generator)
    attacked = torch.where(torch.rand(size, 1, generator=generator) < 0.5, logits, attacked)
    return logits, attacked, torch.randint(4, (size,), generator=generator), torch.rand(size, generator=generator)


def by_loops(logits, attacked, target, distance):
    best = lambda row: max(range(4), key=lambda k: row[k])  # noqa: E731
    robust, credited = [], []
    for before, after, y, d in zip(logits.tolist(), attacked.tolist(), target.tolist(), distance.tolist(), strict=True):
        robust.append(best(before) == y and best(after) == y)
        credited.append(d if best(before) == y else 0.0)
    return robust, credited


def test_functions_and_metrics_are_the_formula():
    parts = [batch(size, seed) for seed, size in enumerate((5, 40, 1))]
    accuracy, mean = RobustAccuracy(), MeanAdversarialDistance()
    robust, credited = [], []
    for logits, attacked, target, distance in parts:
        found = by_loops(logits, attacked, target, distance)
        assert withstood(logits, target, attacked).tolist() == found[0]
        assert credited_distance(distance, target, logits).tolist() == found[1]
        accuracy.update(logits, target, attacked)
        mean.update(distance, target, logits)
        robust += found[0]
        credited += found[1]
    assert 0 < sum(robust) < sum(d > 0 for d in credited) < 46
    assert accuracy.compute().item() == pytest.approx(sum(robust) / 46)
    assert mean.compute().item() == pytest.approx(sum(credited) / 46)
    for metric in (accuracy, mean):
        assert metric.higher_is_better
        metric.reset()
        metric.update(*{accuracy: (logits, target, attacked), mean: (distance, target, logits)}[metric])
    assert accuracy.compute() == found[0][0]
    assert mean.compute() == found[1][0]
    assert (accuracy.is_differentiable, mean.is_differentiable) == (False, True), "in the distances, not in a count"


def test_what_diverges_is_not_robust():
    good = torch.tensor([[2.0, 1.0]])
    for bad in (torch.tensor([[torch.nan, 1.0]]), torch.tensor([[torch.inf, 1.0]])):
        assert not withstood(good, torch.tensor([0]), bad)
        assert not withstood(bad, torch.tensor([0]), good)


def test_what_nothing_fools_is_infinitely_far_unless_it_is_wrong():
    logits, far = torch.tensor([[2.0, 1.0], [2.0, 1.0]]), torch.tensor([torch.inf, torch.inf])
    assert credited_distance(far, torch.tensor([0, 1]), logits).tolist() == [torch.inf, 0.0]


def test_in_a_collection():
    logits, attacked, target, _ = batch()
    metrics = MetricCollection({"same": RobustAccuracy()})
    metrics.update(logits, target, attacked)
    assert metrics.compute()["same"] == withstood(logits, target, attacked).float().mean()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda z, a, y, d: withstood(z[0], y, a),
            "`logits` must have shape (B, K), got a float32 tensor of shape (4,)",
        ),
        (lambda z, a, y, d: withstood(z, y, a[:3]), "`attacked` must have the shape (40, 4) of `logits`"),
        (lambda z, a, y, d: withstood(z, y + 4, a), "class indices from 0 to 3"),
        (lambda z, a, y, d: credited_distance(d[:3], y, z), "`distance` must hold one number for each sample"),
        (lambda z, a, y, d: credited_distance(-d, y, z), "`distance` must hold one number for each sample, at least 0"),
        (lambda z, a, y, d: credited_distance(d * torch.nan, y, z), "`distance` must hold one number for each sample"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call(*batch())
