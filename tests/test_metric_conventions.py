# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What torchmetrics' own ``MetricTester`` asks of a metric, asked of ours: positional predictions and targets, then
whatever else by keyword."""

import copy
import itertools
import pickle
from functools import partial

import pytest
import torch
from torchmetrics import MetricCollection

from lightning_crmt import Certificate, Soundness
from lightning_crmt.metrics import (
    CertifiedAccuracy,
    EstimatedAccuracy,
    MeanAdversarialDistance,
    MeanCertifiedRadius,
    MeanEstimatedRadius,
    RobustAccuracy,
    credited_distance,
    credited_radius,
    robust_at,
    withstood,
)

BATCHES, SIZE, CLASSES = 4, 16, 5


def logits(seed, dtype=torch.float32):
    return torch.randn(BATCHES, SIZE, CLASSES, generator=torch.Generator().manual_seed(seed)).to(dtype)


def targets():
    """The likeliest class or another."""
    other = torch.randint(CLASSES, (BATCHES, SIZE), generator=torch.Generator().manual_seed(9))
    return torch.where(torch.arange(SIZE) % 3 > 0, logits(0).argmax(-1), other)


def certificates(soundness, dtype=torch.float32, grad=False):
    found = []
    for batch in logits(0):
        prediction = batch.argmax(1)
        margins = (batch.gather(1, prediction[:, None]) - batch).to(dtype).requires_grad_(grad)
        slopes = {name: (logits(seed)[0].abs() + 0.5).to(dtype) for seed, name in ((3, "audio"), (4, "image"))}
        found.append(Certificate(prediction, margins, slopes, soundness))
    return found


def radii(certificate, target, modalities=("audio", "image")):
    """Slow, from the formula."""
    found = []
    for i, y in enumerate(target.tolist()):
        p = int(certificate.prediction[i])
        steep = [sum(float(certificate.sensitivities[m][i, j]) ** 2 for m in modalities) ** 0.5 for j in range(CLASSES)]
        reached = [float(certificate.margins[i, j]) / steep[j] for j in range(CLASSES) if j != p]
        found.append(min(reached) if p == y else 0.0)
    return torch.tensor(found, dtype=torch.double)


def share_at(radius, certificate, target, **settings):
    return (radii(certificate, target, **settings) > radius).double()


def both_right(preds, target, attacked):
    return ((preds.argmax(-1) == target) & (attacked.argmax(-1) == target)).double()


def distance_if_right(preds, target, logits):
    return torch.where(logits.argmax(-1) == target, preds.double(), 0.0)


SOUND, ESTIMATED = certificates(Soundness.SOUND), certificates(Soundness.ESTIMATED)
DISTANCES = logits(5)[..., 0].abs()

#: Class and its settings; function and its settings; predictions and what else comes by keyword; the oracle by sample.
CASES = {
    "certified accuracy": (
        partial(CertifiedAccuracy, radius=0.4), partial(robust_at, radius=0.4), SOUND, {}, partial(share_at, 0.4),
    ),
    "certified accuracy of one": (
        partial(CertifiedAccuracy, 0.4, ["audio"]), partial(robust_at, radius=0.4, modalities=["audio"]), SOUND, {},
        partial(share_at, 0.4, modalities=["audio"]),
    ),
    "certified radius": (MeanCertifiedRadius, credited_radius, SOUND, {}, radii),
    "estimated accuracy": (
        partial(EstimatedAccuracy, radius=0.4), partial(robust_at, radius=0.4), ESTIMATED, {}, partial(share_at, 0.4),
    ),
    "estimated radius": (MeanEstimatedRadius, credited_radius, ESTIMATED, {}, radii),
    "robust accuracy": (RobustAccuracy, withstood, logits(0), {"attacked": (logits(0) + logits(1)) / 2}, both_right),
    "adversarial distance": (MeanAdversarialDistance, credited_distance, DISTANCES, {"logits": logits(0)},
                             distance_if_right),
}  # fmt: skip
each_case = pytest.mark.parametrize(("make", "function", "preds", "others", "oracle"), CASES.values(), ids=CASES)


def of_batch(others, i):
    return {name: value[i] for name, value in others.items()}


@each_case
def test_functions(make, function, preds, others, oracle):
    target = targets()
    for i in range(BATCHES):
        found = function(preds[i], target[i], **of_batch(others, i))
        torch.testing.assert_close(found.double(), oracle(preds[i], target[i], **of_batch(others, i)))


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("dist_sync_on_step", [False, True])
@each_case
def test_classes(make, function, preds, others, oracle, dist_sync_on_step, world_size):
    """Batches dealt to ranks; what the ranks exchange is handed to each by a stand-in for the process group."""
    target, ranks, exchanging = targets(), [], False
    expected = [oracle(preds[i], target[i], **of_batch(others, i)) for i in range(BATCHES)]

    def gather(value, group=None):
        (name,) = [name for name in ranks[0]._defaults if any(getattr(each, name) is value for each in ranks)]
        return [getattr(each, name) for each in ranks]

    for rank in range(world_size):
        metric = make(
            dist_sync_on_step=dist_sync_on_step and world_size == 1,
            dist_sync_fn=gather,
            distributed_available_fn=lambda: exchanging,
        )
        with pytest.raises(RuntimeError):
            metric.is_differentiable = not metric.is_differentiable
        with pytest.raises(RuntimeError):
            metric.higher_is_better = not metric.higher_is_better
        clone = metric.clone()
        assert clone is not metric
        assert type(clone) is type(metric)
        metric = metric.to("cpu")
        assert pickle.loads(pickle.dumps(make()))._defaults.keys() == metric._defaults.keys()
        twin = copy.deepcopy(metric)
        for i in range(rank, BATCHES, world_size):
            result = metric(preds[i], target[i], **of_batch(others, i))
            torch.testing.assert_close(result.double(), expected[i].mean())
            twin.update(preds[i], target[i], **of_batch(others, i))
        assert hash(metric)
        assert metric.state_dict() == {}
        torch.testing.assert_close(metric.compute(), twin.compute(), rtol=0, atol=0)
        torch.testing.assert_close(
            metric.compute().double(), torch.cat(expected[rank::world_size]).mean(), rtol=1e-6, atol=1e-7
        )
        ranks.append(metric)
    exchanging = True
    for metric in ranks:
        metric._computed = None  # what each computed alone
        result = metric.compute()
        assert isinstance(result, torch.Tensor)
        torch.testing.assert_close(result.double(), torch.cat(expected).mean(), rtol=1e-6, atol=1e-7)
    exchanging = False
    for metric in ranks:
        metric.reset()
        metric.update(preds[0], target[0], **of_batch(others, 0))
        torch.testing.assert_close(metric.compute().double(), expected[0].mean())


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # of torch, of itself
@pytest.mark.filterwarnings("ignore:This property will be removed:DeprecationWarning")  # of torchmetrics, of itself
@each_case
def test_classes_can_be_scripted(make, function, preds, others, oracle):
    torch.jit.script(make())


@each_case
def test_a_pickled_metric_goes_on(make, function, preds, others, oracle):
    target, metric = targets(), make()
    metric.update(preds[0], target[0], **of_batch(others, 0))
    again = pickle.loads(pickle.dumps(metric))
    for each in (metric, again):
        each.update(preds[1], target[1], **of_batch(others, 1))
    assert metric.compute() == again.compute()


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16, torch.double])
@each_case
def test_other_precisions(make, function, preds, others, oracle, dtype):
    if isinstance(preds, list):
        preds = certificates(preds[0].soundness, dtype)
    else:
        preds, others = preds.to(dtype), {name: value.to(dtype) for name, value in others.items()}
    target, metric = targets(), make()
    metric.set_dtype(dtype)
    for i in range(BATCHES):
        assert isinstance(metric(preds[i], target[i], **of_batch(others, i)), torch.Tensor)
        assert isinstance(function(preds[i], target[i], **of_batch(others, i)), torch.Tensor)
    expected = torch.cat([oracle(preds[i], target[i], **of_batch(others, i)) for i in range(BATCHES)]).mean()
    torch.testing.assert_close(metric.compute().double(), expected, rtol=2e-2, atol=2e-2)


@each_case
def test_differentiable_is_what_says_so(make, function, preds, others, oracle):
    target, metric = targets(), make()
    if isinstance(preds, list):
        given = certificates(preds[0].soundness, torch.double, grad=True)[0]
        leaf = given.margins
        call = lambda margins: function(  # noqa: E731
            Certificate(given.prediction, margins, given.sensitivities, given.soundness), target[0]
        )
    else:
        given = leaf = preds[0].double().requires_grad_()
        call = lambda values: function(values, target[0], **of_batch(others, 0))  # noqa: E731
    assert metric(given, target[0], **of_batch(others, 0)).requires_grad == metric.is_differentiable
    if metric.is_differentiable:
        assert torch.autograd.gradcheck(call, leaf)


@each_case
def test_plots(make, function, preds, others, oracle):
    pytest.importorskip("matplotlib").use("agg")
    from matplotlib import pyplot

    target, metric = targets(), make()
    results = [metric(preds[i], target[i], **of_batch(others, i)) for i in range(BATCHES)]
    for value in (None, results[0], results):
        figure, axes = metric.plot(value)
        assert figure is axes.figure
        pyplot.close(figure)
    figure, axes = pyplot.subplots()
    assert metric.plot(ax=axes)[1] is axes
    pyplot.close(figure)


def certified(*radii):
    margins, target = torch.tensor(radii), torch.zeros(len(radii), dtype=torch.long)
    slopes = {name: torch.ones(len(radii), 2) for name in ("a", "b")}
    return Certificate(target, torch.stack([0 * margins, margins], 1), slopes, Soundness.SOUND), target


FIRST = {"nothing": (0.0, 0.0), "everything": (9.0, 9.0), "one of two": (0.0, 9.0), "ones": (2**0.5, 2**0.5)}


@pytest.mark.parametrize("first", FIRST.values(), ids=FIRST)
@pytest.mark.parametrize("order", list(itertools.permutations(["r1", "r5", "of a", "mean"])))
def test_a_collection_keeps_apart_what_agrees_on_the_first_batch(first, order):
    kinds = {
        "r1": partial(CertifiedAccuracy, 0.1),
        "r5": partial(CertifiedAccuracy, 0.5),
        "of a": partial(CertifiedAccuracy, 0.5, ["a"]),
        "mean": MeanCertifiedRadius,
    }
    metrics = MetricCollection({name: kinds[name]() for name in order})
    metrics.update(*certified(*first))
    metrics.compute()
    metrics.reset()
    batch = certified(0.2, 0.6)
    metrics.update(*batch)
    found = metrics.compute()
    for name, kind in kinds.items():
        alone = kind()
        alone.update(*batch)
        assert found[name] == alone.compute(), name


def test_a_collection_still_computes_the_same_metric_once():
    metrics = MetricCollection({"one": CertifiedAccuracy(0.1), "same": CertifiedAccuracy(0.1)})
    metrics.update(*certified(0.2, 0.3))
    assert metrics.compute_groups == {0: ["one", "same"]}


def test_a_collection_of_attacks_is_kept_apart():
    target, others = torch.zeros(2, dtype=torch.long), {"logits": torch.tensor([[1.0, 2.0], [1.0, 2.0]])}
    metrics = MetricCollection([RobustAccuracy(), MeanAdversarialDistance()])
    wrong = others["logits"]
    metrics.update(logits=wrong, target=target, attacked=wrong, distance=torch.ones(2))
    metrics.update(logits=-wrong, target=target, attacked=-wrong, distance=torch.full((2,), 3.0))
    assert metrics.compute() == {"RobustAccuracy": 0.5, "MeanAdversarialDistance": 1.5}


@pytest.mark.parametrize("kind", [CertifiedAccuracy, MeanCertifiedRadius, RobustAccuracy, MeanAdversarialDistance])
def test_settings_of_every_metric_are_taken_and_others_refused(kind):
    assert kind(compute_on_cpu=True, sync_on_compute=False).compute_on_cpu
    with pytest.raises(ValueError, match="Unexpected keyword arguments: `radios`"):
        kind(radios=0.1)


def test_the_order_of_arguments_that_was_works_for_one_release():
    target = targets()[0]
    clean, attacked, distance = logits(0)[0], logits(1)[0], DISTANCES[0]
    with pytest.warns(DeprecationWarning, match=r"is \(logits, target, attacked\) now, as in torchmetrics"):
        found = withstood(clean, attacked, target)
    assert found.equal(withstood(clean, target, attacked))
    with pytest.warns(DeprecationWarning, match=r"is \(distance, target, logits\) now, as in torchmetrics"):
        found = credited_distance(distance, clean, target)
    assert found.equal(credited_distance(distance, target, clean))
    metric = RobustAccuracy()
    with pytest.warns(DeprecationWarning, match="order of arguments"):
        metric.update(clean, attacked, target)
