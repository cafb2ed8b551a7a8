# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The loss of every kind of target, against torch and slow loops; which samples count; what is refused."""

import math
import pickle
import re

import pytest
import torch
from torch import nn

from lightning_crmt import margin_regularization
from lightning_crmt.checks import check_target
from lightning_crmt.criterion import Criterion
from lightning_crmt.targets import (
    MixedTarget,
    check_answers,
    check_labels,
    check_probabilities,
    least_margin,
    right_answers,
)

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64)
WEIGHTS = [0.5, 2.0, 1.0, 0.25]
SETTINGS = [
    {},
    {"class_weights": WEIGHTS},
    {"label_smoothing": 0.1},
    {"class_weights": WEIGHTS, "label_smoothing": 0.3},
]


def logits_of(size=7, seed=0, dtype=torch.float64):
    return torch.randn(size, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(3).to(dtype)


def classes_of(size=7, seed=0):
    return torch.randint(4, (size,), generator=torch.Generator().manual_seed(seed))


def labels_of(size=7, seed=0):
    return torch.rand(size, 4, generator=torch.Generator().manual_seed(seed)) < 0.4


def probabilities_of(size=7, seed=0):
    return logits_of(size, seed + 50).softmax(dim=1)


def binary(logits, labels, class_weights=(1.0,) * 4, label_smoothing=0.0):
    """The mean binary cross-entropy, number by number."""
    total = 0.0
    for row, wanted in zip(logits.tolist(), labels.tolist(), strict=True):
        for k, (h, y) in enumerate(zip(row, wanted, strict=True)):
            t = y * (1 - label_smoothing) + label_smoothing / 2
            total -= class_weights[k] * (
                t * math.log(1 / (1 + math.exp(-h))) + (1 - t) * math.log(1 / (1 + math.exp(h)))
            )
    return total / logits.numel()


# --- the loss


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("dtype", INTEGERS)
def test_classes_of_any_integers_cost_what_torch_says(settings, dtype):
    logits, target = logits_of(), classes_of()
    weight = torch.tensor(WEIGHTS, dtype=torch.float64) if "class_weights" in settings else None
    smoothing = settings.get("label_smoothing", 0.0)
    wanted = nn.functional.cross_entropy(logits, target, weight, label_smoothing=smoothing)
    torch.testing.assert_close(Criterion(**settings).loss(logits, target.to(dtype)), wanted)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("ignored", [-100, 255, 2])
def test_ignored_classes_do_not_count(settings, ignored):
    logits, target = logits_of(20), classes_of(20)
    target[::3] = ignored
    weight = torch.tensor(WEIGHTS, dtype=torch.float64) if "class_weights" in settings else None
    smoothing = settings.get("label_smoothing", 0.0)
    wanted = nn.functional.cross_entropy(logits, target, weight, ignore_index=ignored, label_smoothing=smoothing)
    criterion = Criterion(ignore_index=ignored, **settings)
    torch.testing.assert_close(criterion.loss(logits, target), wanted)
    assert torch.equal(criterion.counted(target), target != ignored)
    counted = target != ignored
    torch.testing.assert_close(criterion.loss(logits[counted], target[counted]), wanted)
    assert (criterion.losses(logits, target)[~counted] == 0).all()


@pytest.mark.parametrize("settings", SETTINGS)
def test_probabilities_cost_what_torch_says(settings):
    logits, target = logits_of(), probabilities_of()
    weight = torch.tensor(WEIGHTS, dtype=torch.float64) if "class_weights" in settings else None
    wanted = nn.functional.cross_entropy(logits, target, weight, label_smoothing=settings.get("label_smoothing", 0.0))
    torch.testing.assert_close(Criterion(**settings).loss(logits, target), wanted)
    torch.testing.assert_close(Criterion(**settings).loss(logits, target.float()), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.float16])
def test_labels_cost_the_binary_cross_entropy(settings, dtype):
    logits, labels = logits_of(), labels_of()
    loss = Criterion(multi_label=True, **settings).loss(logits, labels.to(dtype))
    assert float(loss) == pytest.approx(binary(logits, labels, **settings), rel=1e-12)


@pytest.mark.parametrize("kind", [classes_of, probabilities_of, labels_of])
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_mixtures_cost_both_by_their_shares(kind, settings, share):
    criterion = Criterion(multi_label=kind is labels_of, **settings)
    logits, first, second = logits_of(), kind(seed=1), kind(seed=2)
    wanted = share * criterion.loss(logits, first) + (1 - share) * criterion.loss(logits, second)
    torch.testing.assert_close(criterion.loss(logits, MixedTarget(first, second, share)), wanted)


def test_a_mixture_with_an_ignored_sample_is_ignored():
    criterion = Criterion(class_weights=WEIGHTS, label_smoothing=0.1, ignore_index=-1)
    logits, first, second = logits_of(), classes_of(seed=1), classes_of(seed=2)
    first[0], second[3] = -1, -1
    mixed = MixedTarget(first, second, 0.3)
    counted = [1, 2, 4, 5, 6]
    assert criterion.counted(mixed).nonzero().flatten().tolist() == counted
    wanted = criterion.loss(logits[counted], MixedTarget(first[counted], second[counted], 0.3))
    torch.testing.assert_close(criterion.loss(logits, mixed), wanted)


@pytest.mark.parametrize("settings", SETTINGS)
def test_of_nothing_the_loss_is_zero_with_a_graph(settings):
    logits = logits_of().requires_grad_(True)
    loss = Criterion(ignore_index=9, **settings).loss(logits, torch.full((7,), 9))
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("kind", [classes_of, probabilities_of, labels_of])
@pytest.mark.parametrize("settings", SETTINGS)
def test_absent_modalities_do_not_count(kind, settings):
    criterion = Criterion(multi_label=kind is labels_of, **settings)
    logits, target, here = logits_of(), kind(), torch.tensor([True, False, True, True, False, True, False])
    torch.testing.assert_close(criterion.loss(logits, target, here), criterion.loss(logits[here], target[here]))


def test_weights_made_for_inference_serve_training():
    criterion = Criterion(class_weights=[1.0, 2.5, 3.25])
    logits, target = torch.randn(2, 3, requires_grad=True), torch.tensor([0, 2])
    with torch.inference_mode():
        criterion.loss(torch.randn(2, 3), target)
    criterion.loss(logits, target).backward()
    assert logits.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_in_half_precision_are_widened(dtype):
    logits, target = logits_of(dtype=dtype), classes_of()
    for criterion in (Criterion(), Criterion(class_weights=WEIGHTS)):
        assert torch.equal(criterion.loss(logits, target), criterion.loss(logits.float(), target))


def test_it_is_a_value():
    criterion = Criterion(class_weights=torch.tensor([1.0, 2.0]))
    assert criterion == Criterion(class_weights=[1, 2]) == pickle.loads(pickle.dumps(criterion))
    assert hash(criterion) == hash(Criterion(class_weights=[1, 2]))
    assert Criterion(multi_label=True).probabilities(torch.zeros(1, 3)).tolist() == [[0.5, 0.5, 0.5]]


# --- what is right


def test_answers_are_classes_or_labels():
    assert Criterion().answers(classes_of().to(torch.uint8)).dtype is torch.int64
    assert torch.equal(Criterion().answers(probabilities_of()), probabilities_of().argmax(dim=1))
    assert torch.equal(Criterion(multi_label=True).answers(labels_of().half()), labels_of())


@pytest.mark.parametrize("several", [False, True])
def test_right_is_what_the_slow_loop_says(several):
    logits = logits_of(200)
    logits[0, 1], logits[1, 2], logits[2] = math.nan, math.inf, 0.0
    target = labels_of(200) if several else classes_of(200)
    target[:20] = (logits[:20] > 0) if several else logits[:20].argmax(dim=1)
    for i in range(200):
        row = logits[i].tolist()
        if several:
            right = all((h > 0) == y for h, y in zip(row, target[i].tolist(), strict=True))
            least = min(h if y else -h for h, y in zip(row, target[i].tolist(), strict=True))
        else:
            right = row.index(max(row)) == int(target[i])
            least = row[int(target[i])] - max(h for k, h in enumerate(row) if k != int(target[i]))
        right = right and all(map(math.isfinite, row))
        assert bool(right_answers(logits, target)[i]) == right
        if all(map(math.isfinite, row)):
            assert float(least_margin(logits, target)[i]) == pytest.approx(least)


# --- checks


@pytest.mark.parametrize("dtype", INTEGERS)
def test_check_target_gives_int64(dtype):
    classes = check_target(torch.tensor([0, 2], dtype=dtype), 3, 2)
    assert classes.dtype is torch.int64
    assert classes.tolist() == [0, 2]


def test_bools_are_two_classes():
    assert check_target(torch.tensor([True, False]), 2, 2).tolist() == [1, 0]
    with pytest.raises(TypeError, match="got a bool tensor"):
        check_target(torch.tensor([True, False]), 3, 2)


@pytest.mark.parametrize(
    ("criterion", "target", "error", "message"),
    [
        ({}, torch.tensor([0, 4]), ValueError, "class indices from 0 to 3, got values from 0 to 4"),
        ({}, torch.tensor([0, -100]), ValueError, "class indices from 0 to 3, got values from -100 to 0"),
        ({"ignore_index": -1}, torch.tensor([-1, -100]), ValueError, "got values from -100 to 0"),
        ({}, torch.tensor([0.0, 1.0]), TypeError, "integer class indices, got a float32 tensor of shape (2,)"),
        ({}, torch.ones(2, 4, dtype=torch.long), ValueError, "for several labels per sample, say so: multi_label=True"),
        (
            {},
            torch.ones(2, 4),
            ValueError,
            "rows of probabilities that sum to 1, got values from 1 to 1 and sums from 4",
        ),
        ({}, torch.tensor([[1.5, -0.5, 0, 0]] * 2), ValueError, "got values from -0.5 to 1.5"),
        ({}, torch.full((2, 4), math.nan), ValueError, "rows of probabilities"),
        ({}, torch.ones(2, 3) / 3, ValueError, "shape (2, 4), a probability of each class"),
        ({"multi_label": True}, torch.tensor([0, 1]), ValueError, "shape (2, 4), 0 or 1 for each label"),
        ({"multi_label": True}, torch.full((2, 4), 0.5), ValueError, "0 or 1 for each label, got values from 0.5"),
        ({"multi_label": True}, torch.full((2, 4), 255, dtype=torch.uint8), ValueError, "got values from 255 to 255"),
        ({"multi_label": True}, torch.full((2, 4), math.nan), ValueError, "0 or 1 for each label"),
        ({"multi_label": True}, [[0, 1]], TypeError, "`target` must be a tensor, 0 or 1 for each label, got a list"),
    ],
)
def test_a_target_that_is_not_of_the_kind_is_refused(criterion, target, error, message):
    with pytest.raises(error, match=re.escape(message)):
        Criterion(**criterion).check(target, 4, 2)
    if isinstance(target, torch.Tensor):
        with pytest.raises(error, match=re.escape(message)):
            Criterion(**criterion).check(MixedTarget(target, target, 0.5), 4, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_weights": [1.0, -1.0]}, "`class_weights` must be finite, at least 0 and not all 0, got [1.0, -1.0]"),
        ({"class_weights": [0.0, 0.0]}, "not all 0"),
        ({"class_weights": [math.nan, 1.0]}, "`class_weights` must be finite"),
        ({"label_smoothing": 1.0}, "`label_smoothing` must be below 1, got 1.0"),
        ({"label_smoothing": -0.1}, "`label_smoothing` must be at least 0, got -0.1"),
        ({"multi_label": True, "ignore_index": 3}, "`ignore_index` is a class that does not count"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Criterion(**settings)


def test_weights_must_be_one_for_each_class():
    Criterion(class_weights=[1.0, 2.0]).check_settings(2)
    with pytest.raises(ValueError, match="`class_weights` must be one for each of 3 classes, got 2"):
        Criterion(class_weights=[1.0, 2.0]).check_settings(3)


def test_check_answers_takes_classes_and_labels_and_says_what_else_could_be_meant():
    assert check_answers(torch.tensor([1, 2]), 3, 2).dtype is torch.int64
    assert check_answers(torch.tensor([[1, 0, 1]]), 3, 1).tolist() == [[True, False, True]]
    with pytest.raises(TypeError, match=r"give `.bool\(\)` of labels and `.argmax\(dim=1\)` of probabilities"):
        check_answers(torch.tensor([[1.0, 0.0, 1.0]]), 3, 1)
    for check in (check_labels, check_probabilities):
        with pytest.raises(ValueError, match="at least one sample"):
            check(torch.zeros(0, 3), 3, 0)


# --- margin regularisation


def slow_labels(scores, signs, temperature, present):
    """log sum_m sum_k exp(-T sign_k s_k^m) over the modalities and labels that count; None without any."""
    total = 0.0
    for name, score in scores.items():
        for k, sign in enumerate(signs):
            if sign and present.get(name, True):
                total += math.exp(-temperature * sign * score[k])
    return math.log(total) if total else None


def slow_class(scores, own, temperature, present):
    total = 0.0
    for name, score in scores.items():
        for k, value in enumerate(score):
            if k != own and present.get(name, True):
                total += math.exp(temperature * (value - score[own]))
    return math.log(total) if total else None


def mean(values):
    counted = [value for value in values if value is not None]
    return sum(counted) / len(counted) if counted else 0.0


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("lacking", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
def test_margins_of_labels_against_slow_loops(temperature, lacking, mixed):
    scores = {"a": logits_of(seed=1), "b": logits_of(seed=2)}
    present = {"a": torch.tensor([True, False, True, False, True, True, True])} if lacking else {}
    if lacking:
        present["b"] = torch.tensor([True, False, False, True, True, True, True])
    first, second = labels_of(seed=3), labels_of(seed=4)
    second[5] = ~first[5]  # nothing is decided
    wanted = []
    for i in range(7):
        signs = [2 * y - 1 for y in first[i].tolist()]
        if mixed:
            signs = [s if y == z else 0 for s, y, z in zip(signs, first[i].tolist(), second[i].tolist(), strict=True)]
        row = {name: score[i].tolist() for name, score in scores.items()}
        wanted.append(slow_labels(row, signs, temperature, {name: bool(each[i]) for name, each in present.items()}))
    target = MixedTarget(first, second, 0.3) if mixed else first
    loss = margin_regularization(scores, target, temperature, present or None)
    assert float(loss) == pytest.approx(mean(wanted), rel=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("lacking", [False, True])
def test_margins_of_probabilities_against_slow_loops(temperature, lacking):
    scores = {"a": logits_of(seed=1), "b": logits_of(seed=2)}
    present = {"a": torch.tensor([True, False, True, False, True, True, True])} if lacking else {}
    if lacking:
        present["b"] = torch.tensor([True, False, False, True, True, True, True])
    target = probabilities_of()
    wanted = []
    for i in range(7):
        row = {name: score[i].tolist() for name, score in scores.items()}
        here = {name: bool(each[i]) for name, each in present.items()}
        terms = [slow_class(row, own, temperature, here) for own in range(4)]
        counted = None not in terms
        wanted.append(sum(p * t for p, t in zip(target[i].tolist(), terms, strict=True)) if counted else None)
    loss = margin_regularization(scores, target, temperature, present or None)
    assert float(loss) == pytest.approx(mean(wanted), rel=1e-9)


def test_certain_probabilities_are_classes_in_value_and_gradient():
    target = classes_of()
    one_hot = nn.functional.one_hot(target, 4).double()
    results = []
    for each in (target, one_hot):
        leaves = {"a": (100 * logits_of(seed=1)).requires_grad_(True), "b": logits_of(seed=2).requires_grad_(True)}
        loss = margin_regularization(leaves, each)
        loss.backward()
        results.append([loss.detach(), leaves["a"].grad, leaves["b"].grad])
    for one, other in zip(*results, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", [labels_of, probabilities_of])
@pytest.mark.parametrize("lacking", [False, True])
def test_gradients_of_margins(kind, lacking):
    present = {"a": torch.tensor([True, False, True])} if lacking else None
    if lacking:
        present["b"] = torch.tensor([True, False, False])
    first, second = kind(3, seed=1), kind(3, seed=2)
    for target in (first, MixedTarget(first, second, 0.25)):

        def loss(a, b, target=target):
            return margin_regularization({"a": a, "b": b}, target, 1.5, present)

        leaves = [logits_of(3, seed).requires_grad_(True) for seed in (3, 4)]
        assert torch.autograd.gradcheck(loss, leaves)
