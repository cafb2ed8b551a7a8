# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Attacks on models with several labels per sample, where distances are known exactly; what is refused."""

import re
from itertools import combinations

import pytest
import torch
from support.linear_model import Linear
from torch import nn

from lightning_crmt import FusionOutput, LinearFusion
from lightning_crmt.attacks import (
    APGD,
    FGM,
    PGD,
    PROBABILITIES_OF_LABELS,
    AutoAttack,
    Budget,
    Ensemble,
    LossAscent,
    MinimumNorm,
    MissingModality,
    RandomNoise,
    RandomSearch,
    distance_by,
    right_answers,
    strongest,
    surviving,
    suspicions,
)
from lightning_crmt.attacks.external.one_vector import handed_over
from lightning_crmt.attacks.search.loss import Objective
from lightning_crmt.metrics import MeanAdversarialDistance, RobustAccuracy, credited_distance, withstood

LABELS = 4


def samples(size=10, seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    return {"audio": draw(size, 5), "image": draw(size, 2, 3)}


def linear(**settings):
    model, x = Linear(num_classes=LABELS, **settings), samples()
    with torch.no_grad():
        return model, x, model(x) > 0


def distances(model, x, modalities=("audio", "image")):
    """Of each label to its own boundary, ``(B, K)``: |h_k| over the length of its row."""
    rows = torch.cat([model.weights[name].detach() for name in modalities], dim=1)
    with torch.no_grad():
        return model(x).abs() / rows.norm(dim=1)


@pytest.mark.parametrize("modalities", [("audio", "image"), ("image",)])
def test_the_nearest_label_is_found_at_its_distance(modalities):
    model, x, y = linear()
    wanted = distances(model, x, modalities).amin(dim=1)
    attack = MinimumNorm(Budget(1.0, modalities=list(modalities)))
    torch.testing.assert_close(distance_by(attack, model, x, y), wanted, rtol=1e-4, atol=0)


@pytest.mark.parametrize("label", range(LABELS))
def test_a_chosen_label_is_flipped_at_its_own_distance(label):
    model, x, y = linear()
    wanted = distances(model, x)[:, label]
    found = distance_by(MinimumNorm(Budget(1.0), towards=label), model, x, y)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=0)
    each = torch.full((10,), label)
    for attack in (PGD(Budget(1.01 * wanted), towards=each), APGD(Budget(1.01 * wanted), loss="ce", towards=each)):
        moved = attack(model, x, y)
        flipped = (model(moved) > 0) != y
        assert flipped[:, label].all()
        assert attack.succeeds(model(moved), y).all()


@pytest.mark.parametrize(
    ("kind", "above"),
    [
        (lambda b: FGM(b, loss="margin", targeted=True), 1.001),
        (PGD, 1.1),
        (lambda b: PGD(b, targeted=True), 1.01),
        (lambda b: PGD(b, loss="ce"), 5.0),  # it raises the loss of all labels, of which any will do
        (APGD, 1.1),
        (lambda b: APGD(b, targeted=True), 1.01),
        (lambda b: RandomSearch(b, steps=400), 3.0),
        (lambda b: Ensemble([FGM(b), PGD(b, targeted=True)]), 1.01),
        (strongest, 1.01),
    ],
)
def test_it_succeeds_above_the_distance_and_never_below(kind, above):
    model, x, y = linear()
    wanted = distances(model, x).amin(dim=1)
    right = torch.ones(10, dtype=torch.bool)
    [left] = surviving(kind(Budget(above * wanted)), model, x, y, [1.0], right)
    assert not left.any()
    [left] = surviving(kind(Budget(0.999 * wanted)), model, x, y, [1.0], right)
    assert left.all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.bool])
def test_labels_may_be_bools_or_integers(dtype):
    model, x, y = linear()
    attack = PGD(Budget(0.5))
    moved, other = attack(model, x, y), attack(model, x, y.to(dtype))
    assert all(torch.equal(moved[name], other[name]) for name in moved)
    logits = attack.logits(model, x, y.to(dtype))
    assert torch.equal(withstood(model(x).detach(), y.to(dtype), logits), right_answers(logits, y))
    assert torch.equal(attack.succeeds(logits, y.to(dtype)), ~right_answers(logits, y))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.uint16])
def test_classes_may_be_any_integers(dtype):
    model, x = Linear(), samples()
    y = model(x).argmax(dim=1)
    for attack in (PGD(Budget(0.5)), MinimumNorm(Budget(1.0)), strongest(Budget(0.3), steps=4), MissingModality()):
        moved, other = attack(model, x, y), attack(model, x, y.to(dtype))
        assert all(torch.equal(moved[name], other[name]) for name in moved)
    clean = model(x).detach()
    assert withstood(clean, y.to(dtype), clean).all()


def test_the_dlr_loss_and_other_libraries_are_refused_with_the_reason():
    model, x, y = linear()
    for attack in (PGD(Budget(0.1), loss="dlr"), APGD(Budget(0.1), loss="dlr", targeted=True)):
        with pytest.raises(ValueError, match="`loss='dlr'` divides by the gap between the largest logits"):
            attack(model, x, y)
    message = "attacks of other libraries, which know no labels, got a bool tensor"
    with pytest.raises(ValueError, match=message), handed_over(model, x, y, Budget(0.1)):
        pass


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda y: y.float(), TypeError, "give `.bool()` of labels and `.argmax(dim=1)` of probabilities"),
        (lambda y: 2 * y.long(), ValueError, "`target` must be 0 or 1 for each label, got values from 0 to 2"),
        (lambda y: y[:5], ValueError, "`target` must have shape (10, 4), 0 or 1 for each label"),
        (lambda y: y[:, :3], TypeError, "integer class indices, got a bool tensor of shape (10, 3)"),
    ],
)
def test_other_targets_are_refused(change, error, message):
    model, x, y = linear()
    for attack in (PGD(Budget(0.1)), MissingModality()):
        with pytest.raises(error, match=re.escape(message)):
            attack(model, x, change(y))


def test_a_label_to_flip_must_exist():
    model, x, y = linear()
    with pytest.raises(ValueError, match="`towards` must hold class indices from 0 to 3, got values from 4 to 4"):
        PGD(Budget(0.1), towards=4)(model, x, y)


def test_wrong_samples_are_left_alone_and_count_as_lost():
    model, x, y = linear()
    y[3, 2] ^= True
    moved = PGD(Budget(0.2))(model, x, y)
    assert all(torch.equal(moved[name][3], x[name][3]) for name in x)
    assert distance_by(MinimumNorm(Budget(1.0)), model, x, y)[3] == 0
    # With a label of its own to flip, the others do not matter.
    assert distance_by(MinimumNorm(Budget(1.0), towards=0), model, x, y)[3] > 0


def test_logits_that_are_not_finite_break_labels():
    logits = torch.tensor([[1.0, -1.0], [torch.nan, -1.0], [1.0, torch.inf]])
    y = torch.tensor([[True, False]] * 3)
    assert PGD(Budget(0.1)).succeeds(logits, y).tolist() == [False, True, True]
    assert PGD(Budget(0.1), towards=1).succeeds(logits, y).tolist() == [False, True, True]


def test_the_objectives_against_slow_loops():
    logits = 3 * torch.randn(6, LABELS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.rand(6, LABELS, generator=torch.Generator().manual_seed(1)) < 0.5
    rival = torch.tensor([0, 1, 2, 3, 0, 1])
    for i in range(6):
        signed = [h if y else -h for h, y in zip(logits[i].tolist(), labels[i].tolist(), strict=True)]
        losses = [torch.tensor(-each).double().exp().log1p().item() for each in signed]
        one = signed[int(rival[i])]
        wanted = {("margin", False): -min(signed), ("margin", True): -one}
        wanted |= {("ce", False): sum(losses), ("ce", True): losses[int(rival[i])]}
        for (loss, given), value in wanted.items():
            objective = Objective(loss, labels, rival if given else None)
            assert objective(logits)[i].item() == pytest.approx(value)


@pytest.mark.parametrize("fill", ["zeroed", "dropped"])
def test_missing_modalities_against_all_subsets(fill):
    torch.manual_seed(0)
    head = LinearFusion({"a": 5, "b": 4, "c": 3}, LABELS)
    model = nn.Module()
    model.head = head
    model.forward = lambda inputs: head(inputs)
    x = {name: torch.randn(20, size) for name, size in head.in_features.items()}
    with torch.no_grad():
        y = head(x).logits > 0
        attack = MissingModality(fill)
        logits = attack.logits(model, x, y)
        lost = torch.zeros(20, dtype=torch.bool)
        for size in (0, 1, 2):
            for gone in combinations("abc", size):
                left = {n: s for n, s in head(x).scores.items() if n not in gone}
                filled = {n: torch.zeros_like(v) if n in gone else v for n, v in x.items()}
                answer = head.fuse(left) if fill == "dropped" else head(filled).logits
                lost |= ((answer > 0) != y).any(dim=1)
    assert 0 < lost.sum() < 20
    assert torch.equal(attack.succeeds(logits, y), lost)


def test_ascent_raises_the_binary_cross_entropy():
    model, x, y = linear()
    moved = LossAscent(Budget(0.3))(model, x, y)
    loss = lambda inputs: nn.functional.binary_cross_entropy_with_logits(model(inputs), y.double())  # noqa: E731
    assert loss(moved) > loss(x)


def test_a_healthy_model_raises_no_suspicion_and_rounded_logits_do():
    model, x, y = linear()
    assert suspicions(PGD(Budget(0.3)), model, x, y) == []
    assert suspicions(MinimumNorm(Budget(1.0)), model, x, y) == []
    rounded = lambda inputs: (3 * model(inputs)).round() + 0.5  # noqa: E731
    with torch.no_grad():
        right = rounded(x) > 0
    assert any("gradients are 0" in each for each in suspicions(PGD(Budget(0.3)), rounded, x, right))


def test_a_sigmoid_at_the_end_is_noticed():
    model, x, y = linear()
    assert suspicions(PGD(Budget(0.3)), lambda inputs: model(inputs).sigmoid(), x, y) == [PROBABILITIES_OF_LABELS]


def test_metrics_of_labels():
    model, x, y = linear()
    y[0, 0] ^= True
    clean = model(x).detach()
    distance = distance_by(MinimumNorm(Budget(1.0)), model, x, y)
    credited = credited_distance(distance, y.int(), clean)
    assert credited[0] == 0
    assert (credited[1:] == distance[1:]).all()
    mean, robust = MeanAdversarialDistance(), RobustAccuracy()
    mean.update(distance, y, clean)
    robust.update(clean, y, PGD(Budget(0.1)).logits(model, x, y))
    assert float(mean.compute()) == pytest.approx(float(credited.mean()))
    assert float(robust.compute()) == pytest.approx(float((distance > 0.1).double().mean()))


def test_noise_within_the_budget_breaks_nothing_that_is_safe():
    model, x, y = linear()
    wanted = distances(model, x).amin(dim=1)
    [left] = surviving(RandomNoise(Budget(0.999 * wanted)), model, x, y, [1.0], torch.ones(10, dtype=torch.bool))
    assert left.all()


def test_a_fusion_output_is_attacked_by_its_joint_logits():
    model, x, y = linear()
    wrapped = lambda inputs: FusionOutput(model(inputs), {})  # noqa: E731
    assert torch.equal(PGD(Budget(0.3))(wrapped, x, y)["audio"], PGD(Budget(0.3))(model, x, y)["audio"])


def test_autoattack_is_refused_before_it_starts():
    pytest.importorskip("pyautoattack")
    model, x, y = linear()
    with pytest.raises(ValueError, match="which know no labels"):
        AutoAttack(Budget(0.1))(model, x, y)
