# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
import re

import pytest
import torch

from lightning_crmt import FusionOutput
from lightning_crmt.checks import (
    check_at_least,
    check_batch,
    check_inputs,
    check_logits,
    check_modality_names,
    check_positive,
    check_same_modalities,
    check_target,
    describe,
    require_finite,
)
from lightning_crmt.modality import logits_of, select
from lightning_crmt.targets import MixedTarget, check_classes

NAMES = ["audio", "image"]


def batch(audio=(2, 5), image=(2, 3, 4)):
    return {"audio": torch.zeros(audio), "image": torch.zeros(image)}


def with_values(*values):
    inputs = batch()
    inputs["audio"].view(-1)[: len(values)] = torch.tensor(values)
    return inputs


@pytest.mark.parametrize(
    "inputs", [batch(), dict(reversed(batch().items())), {**batch(), "image": torch.zeros(2, 7, dtype=torch.long)}]
)
def test_check_inputs_takes_any_order_and_integers(inputs):
    check_inputs(inputs, NAMES)


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        (torch.zeros(2, 5), TypeError, "`inputs` must map the name of each modality to a tensor, got a float32 tensor"),
        ([torch.zeros(2, 5)], TypeError, "`inputs` must map the name of each modality to a tensor, got a list"),
        ({"audio": torch.zeros(2, 5)}, ValueError, "['audio', 'image']; got ['audio']: missing ['image']"),
        ({**batch(), "text": torch.zeros(2, 5)}, ValueError, "unknown ['text']"),
        ({"audio": torch.zeros(2, 5), "imgae": torch.zeros(2, 5)}, ValueError, "missing ['image'], unknown ['imgae']"),
        ({**batch(), "image": [[0.0], [0.0]]}, TypeError, "`inputs['image']` must be a tensor, got a list"),
        (batch(audio=(2,)), ValueError, "`inputs['audio']` must have a batch dimension and at least one more"),
        (batch(audio=()), ValueError, "`inputs['audio']` must have a batch dimension and at least one more"),
        (batch(audio=(3, 5)), ValueError, "`inputs` must have one batch size, got {'audio': 3, 'image': 2}"),
        (batch(audio=(0, 5), image=(0, 4)), ValueError, "`inputs` must hold at least one sample, got an empty batch"),
        (
            with_values(float("nan"), float("inf"), 1.0, float("-inf")),
            ValueError,
            "`inputs` must be finite: `inputs['audio']` has 1 NaN and 2 Inf among 10 values",
        ),
    ],
)
def test_check_inputs_refuses(inputs, error, message):
    with pytest.raises(error, match=re.escape(message)):
        check_inputs(inputs, NAMES)


def test_require_finite_counts_each_bad_modality_and_no_good_one():
    tensors = {"a": torch.tensor([0.0, torch.nan]), "b": torch.zeros(3), "c": torch.tensor([torch.inf, -torch.inf])}
    with pytest.raises(ValueError, match="`x` must be finite") as caught:
        require_finite("x", tensors)
    message = str(caught.value)
    assert "`x['a']` has 1 NaN and 0 Inf among 2 values" in message
    assert "`x['c']` has 0 NaN and 2 Inf among 2 values" in message
    assert "`x['b']`" not in message


def test_require_finite_leaves_integers_alone():
    require_finite("x", {"tokens": torch.tensor([1, 2])})
    require_finite("x", {})


@pytest.mark.parametrize("names", [["a"], ["left_ear", "right ear", "3"]])
def test_check_modality_names_takes(names):
    check_modality_names("encoders", names)


@pytest.mark.parametrize("name", ["", "a.b", "val/a", 3, None])
def test_check_modality_names_refuses(name):
    with pytest.raises(ValueError, match=re.escape("`encoders` must have names that are non-empty strings")) as caught:
        check_modality_names("encoders", ["good", name])
    assert str(caught.value).endswith(repr(name))


def test_check_modality_names_refuses_none_at_all():
    with pytest.raises(ValueError, match="`encoders` must name at least one modality, got none"):
        check_modality_names("encoders", [])


def test_check_same_modalities_ignores_order_and_takes_iterators():
    check_same_modalities("x", iter(["b", "a"]), iter(["a", "b"]))


def test_check_batch_returns_the_size():
    assert check_batch("x", batch()) == 2


@pytest.mark.parametrize("output", [[torch.ones(2, 3), None], (torch.ones(2, 3),), {"logits": torch.ones(2, 3)}])
def test_logits_of_finds_them(output):
    assert logits_of(output).equal(torch.ones(2, 3))
    assert logits_of(FusionOutput(torch.ones(2, 3), {})).equal(torch.ones(2, 3))
    assert logits_of(torch.ones(2, 3)).equal(torch.ones(2, 3))


@pytest.mark.parametrize(
    ("output", "got"),
    [
        (torch.ones(3), "a float32 tensor of shape (3,)"),
        (torch.ones(3, 1), "a float32 tensor of shape (3, 1)"),
        ({"scores": torch.ones(2, 3)}, "a dict with keys ['scores']"),
        ((), "a tuple"),
        (None, "a NoneType"),
        ("logits", "a str"),
    ],
)
def test_logits_of_refuses(output, got):
    with pytest.raises(TypeError, match=re.escape("shape (B, K)") + ".*got " + re.escape(got) + "$"):
        logits_of(output)


def test_describe():
    assert describe(torch.zeros(2, 3, dtype=torch.bfloat16)) == "a bfloat16 tensor of shape (2, 3)"
    assert describe({"a": 1}) == "a dict with keys ['a']"
    assert describe(None) == "a NoneType"


@pytest.mark.parametrize(
    "logits",
    [torch.zeros(2), torch.zeros(2, 1), torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.long), [[0.0, 1.0]]],
)
def test_check_logits_refuses_other_shapes_and_types(logits):
    message = f"`scores` must be a floating point tensor of shape (B, K), K >= 2, got {describe(logits)}"
    with pytest.raises(ValueError, match=re.escape(message)):
        check_logits(logits, "scores")


def test_check_logits_counts_what_is_not_finite():
    check_logits(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="`logits` must be finite: 1 NaN and 2 Inf among 6 values"):
        check_logits(torch.tensor([[torch.nan, 0.0, torch.inf], [-torch.inf, 0.0, 0.0]]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_check_target_takes_every_class(dtype):
    check_target(torch.tensor([0, 1, 2], dtype=dtype), num_classes=3, batch_size=3)


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ([0, 1], TypeError, "`target` must be a tensor of integer class indices, got a list"),
        (torch.tensor([0.0, 1.0]), TypeError, "integer class indices, got a float32 tensor of shape (2,)"),
        (torch.tensor([True, False]), TypeError, "integer class indices, got a bool tensor of shape (2,)"),
        (torch.tensor([0, 1, 2]), ValueError, "`target` must have shape (2,), one class per sample, got "),
        (torch.tensor([[0], [1]]), ValueError, "int64 tensor of shape (2, 1)"),
        (torch.tensor([0, 3]), ValueError, "class indices from 0 to 2, got values from 0 to 3"),
        (torch.tensor([-1, 2]), ValueError, "class indices from 0 to 2, got values from -1 to 2"),
    ],
)
def test_check_target_refuses(target, error, message):
    with pytest.raises(error, match=re.escape(message)):
        check_target(target, num_classes=3, batch_size=2)


def test_check_at_least_names_the_first_setting_below():
    check_at_least(1, steps=1, restarts=2.5, kernel_size=None)
    for value in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"`restarts` must be at least 1, got {value}"):
            check_at_least(1, steps=3, restarts=value, seed=-5)


def test_check_positive_names_the_first_setting_that_is_not():
    check_positive(scale=1e-9, clip=None)
    for value in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"`scale` must be above 0, got {value}"):
            check_positive(radius=0.1, scale=value)


def test_check_classes_looks_at_both_classes_of_mixed_samples():
    good, bad = torch.tensor([0, 2]), torch.tensor([0, 3])
    check_classes(good, 3, 2)
    check_classes(MixedTarget(good, good, 0.5), 3, 2)
    for target in (bad, MixedTarget(good, bad, 0.5), MixedTarget(bad, good, 0.5)):
        with pytest.raises(ValueError, match="class indices from 0 to 2, got values from 0 to 3"):
            check_classes(target, 3, 2)


def test_select_takes_the_same_samples_of_every_modality():
    inputs = {"a": torch.arange(8.0).reshape(4, 2), "b": torch.arange(4)}
    chosen = select(inputs, torch.tensor([3, 1]))
    assert chosen["a"].tolist() == [[6.0, 7.0], [2.0, 3.0]]
    assert chosen["b"].tolist() == [3, 1]
