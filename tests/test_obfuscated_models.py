# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What attacks and sanity checks say of models whose gradients mislead, and of healthy ones.

The whole table, over seeds, is that of ``benchmarks/obfuscated.py``.
"""

import pytest
import torch
from support.obfuscated import HEALTHY, OBFUSCATED, RADIUS, WRAPPED, accuracy_after, build, surrogate

from lightning_crmt.attacks import APGD, PGD, Budget, suspicions


@pytest.mark.parametrize("name", WRAPPED)
def test_an_obfuscated_model_answers_as_the_healthy_one(name):
    (plain, inputs, target), (model, same, _) = build("MLP", 0), build(name, 0)
    assert all(torch.equal(inputs[m], same[m]) for m in inputs)
    with torch.no_grad():
        before, after = plain(inputs), model(inputs)
    assert torch.allclose(before, after, atol=0.1)
    assert (after.argmax(1) == target).all()


@pytest.mark.parametrize("name", [*HEALTHY, *OBFUSCATED])
def test_all_have_an_accuracy_to_lose(name):
    model, inputs, target = build(name, 1, count=16)
    assert len(target) == 16
    assert len(set(target.tolist())) > 1
    assert accuracy_after(PGD(Budget(0.0)), model, inputs, target) == 1.0


def test_a_surrogate_is_met_by_gradients_that_are_true():
    """What it learns of the leaking model's answers is enough to break it."""
    model, inputs, target = build("leak", 0)
    attack = APGD(Budget(RADIUS), steps=10)
    moved = accuracy_after(attack, model, inputs, target, on=surrogate(model, inputs, seed=0))
    assert moved < accuracy_after(attack, model, inputs, target) - 0.3


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_models_meet_no_doubt(name):
    model, inputs, target = build(name, 0, count=16)
    assert suspicions(APGD(Budget(RADIUS), steps=10), model, inputs, target) == []


def test_gradients_of_the_wrong_sign_are_doubted():
    model, inputs, target = build("wrong sign", 0, count=16)
    assert suspicions(APGD(Budget(RADIUS), steps=10), model, inputs, target)
