# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
import copy
import math
import re
from itertools import pairwise

import pytest
import torch
from support import oracles
from torch import nn
from torch.testing import assert_close

from lightning_crmt import (
    Certificate,
    FusionOutput,
    LinearFusion,
    LipschitzConstants,
    OrthogonalFusion,
    Soundness,
    certify,
)
from lightning_crmt.certification import own_class
from lightning_crmt.fusion import CosineFusion

HEADS = (OrthogonalFusion, LinearFusion)
SIZES = [(1, 2), (2, 3), (3, 7)]


def problem(of, num_modalities=2, num_classes=4, kind=OrthogonalFusion, dtype=torch.float64, batch_size=8, seed=0):
    head = oracles.random_head(num_modalities, num_classes, kind, dtype, seed)
    constants = oracles.random_constants(head, of, seed=seed)
    return head, head(oracles.random_features(head, batch_size, seed)), constants


def assert_is(found, expected):
    assert_close(found, torch.tensor(expected, dtype=found.dtype), rtol=1e-6, atol=1e-6)


# Against the loops.


@pytest.mark.parametrize(("num_modalities", "num_classes"), SIZES)
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("dtype", oracles.PRECISIONS)
@pytest.mark.parametrize("of", oracles.KINDS)
def test_radii_are_the_formula(of, dtype, kind, num_modalities, num_classes):
    head, output, constants = problem(of, num_modalities, num_classes, kind, dtype)
    certificate = certify(output, head, constants)
    assert certificate.margins.dtype is dtype
    assert certificate.prediction.equal(output.logits.argmax(dim=1))
    logits, slopes = output.logits.tolist(), oracles.slopes_of(head, constants)
    names = list(head.in_features)
    for chosen in (names, *([name] for name in names), names[1:] or names):
        radii, nearest = oracles.radii(logits, slopes, chosen)
        assert_is(certificate.radius(chosen), radii)
        if chosen == names:
            assert_is(certificate.radius(), radii)
            assert certificate.nearest_class().tolist() == nearest
    assert certificate.radius("m0").equal(certificate.radius(["m0"]))


@pytest.mark.parametrize(("num_modalities", "num_classes"), SIZES)
@pytest.mark.parametrize("dtype", oracles.PRECISIONS)
@pytest.mark.parametrize("of", oracles.KINDS)
def test_tolerated_budgets_are_the_formula(of, dtype, num_modalities, num_classes):
    head, output, constants = problem(of, num_modalities, num_classes, dtype=dtype, batch_size=32)
    certificate, slopes = certify(output, head, constants), oracles.slopes_of(head, constants)
    answers = []
    for scale in (0.0, 0.5, 2.0, 5.0, 10.0):
        budgets = {name: scale * torch.rand(32, dtype=dtype) for name in head.in_features}
        found = certificate.tolerates(budgets)
        as_lists = {name: budget.tolist() for name, budget in budgets.items()}
        assert found.tolist() == oracles.tolerated(output.logits.tolist(), slopes, as_lists)
        answers += found.tolist()
        alone = {"m0": scale}  # one number for all, all other modalities clean
        expected = oracles.tolerated(output.logits.tolist(), slopes, {"m0": [scale] * 32})
        assert certificate.tolerates(alone).tolist() == expected
    assert 0.05 < sum(answers) / len(answers) < 0.95


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("dtype", oracles.PRECISIONS)
@pytest.mark.parametrize("of", oracles.KINDS)
def test_certificates_without_a_modality_are_the_formula(of, dtype, kind):
    head, output, constants = problem(of, 3, 4, kind, dtype)
    certificate = certify(output, head, constants, missing=["m1"])
    logits = oracles.fused_logits(output.scores, head, ["m0", "m2"])
    slopes = oracles.slopes_of(head, constants, missing=["m1"])
    assert certificate.missing == ("m1",)
    assert certificate.prediction.tolist() == [row.index(max(row)) for row in logits]
    assert not certificate.prediction.equal(output.logits.argmax(dim=1))
    radii, nearest = oracles.radii(logits, slopes, list(slopes))
    # The loops sum the logits in double precision.
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 1e-10, "atol": 1e-10}
    assert_close(certificate.radius(), torch.tensor(radii, dtype=dtype), **tolerance)
    assert certificate.nearest_class().tolist() == nearest
    assert_close(
        certificate.radius(["m0"]), torch.tensor(oracles.radii(logits, slopes, ["m0"])[0], dtype=dtype), **tolerance
    )
    assert certificate.radius(["m1"]).isinf().all()
    assert certificate.tolerates({"m1": 1e9}).all()
    assert certificate.radius(["m0", "m2"]).equal(certificate.radius())


# Properties.


@pytest.mark.parametrize("of", oracles.KINDS)
def test_attacking_more_modalities_never_raises_the_radius(of):
    head, output, constants = problem(of, 3)
    certificate = certify(output, head, constants)
    chain = [certificate.radius(), certificate.radius(["m0", "m2"]), certificate.radius(["m2"])]
    for smaller, larger in pairwise(chain):
        assert (smaller < larger).all()


@pytest.mark.parametrize("of", oracles.KINDS)
def test_single_budgets_agree_with_single_radii(of):
    head, output, constants = problem(of, 3)
    certificate = certify(output, head, constants)
    for name in head.in_features:
        radius = certificate.radius([name])
        assert certificate.tolerates({name: radius * (1 - 1e-9)}).all()
        assert not certificate.tolerates({name: radius * (1 + 1e-9)}).any()


@pytest.mark.parametrize("of", oracles.KINDS)
def test_budgets_inside_the_joint_ball_are_tolerated(of):
    head, output, constants = problem(of, 3)
    certificate = certify(output, head, constants)
    for _ in range(20):
        budget = nn.functional.normalize(torch.rand(8, 3, dtype=torch.float64), dim=1) * certificate.radius()[:, None]
        assert certificate.tolerates({f"m{i}": (1 - 1e-9) * budget[:, i] for i in range(3)}).all()


@pytest.mark.parametrize("of", ["scores", "encoder"])
@pytest.mark.parametrize("scale", [1e-3, 5.0, 1e4])
def test_scaling_weights_and_bias_together_does_not_change_the_radius(of, scale):
    head, _, constants = problem(of, 3)
    features = oracles.random_features(head, 8)
    scaled = copy.deepcopy(head)
    with torch.no_grad():
        for parameter in [scaled.bias, *scaled.integration_parameters()]:
            parameter.mul_(scale)
    before, after = certify(head(features), head, constants), certify(scaled(features), scaled, constants)
    assert_close(after.margins, scale * before.margins)
    for chosen in (None, ["m0"], ["m1", "m2"]):
        assert_close(after.radius(chosen), before.radius(chosen))


@pytest.mark.parametrize("of", oracles.KINDS)
def test_radii_scale_with_the_units_of_the_inputs(of):
    head, output, constants = problem(of)
    doubled = LipschitzConstants({n: 2 * v for n, v in constants.values.items()}, of=of, soundness=constants.soundness)
    assert_close(certify(output, head, doubled).radius(), certify(output, head, constants).radius() / 2)


def test_pairwise_constants_are_at_most_sqrt_2_tighter_than_those_of_the_paper():
    head, output, _ = problem("encoder", 3)
    one = LipschitzConstants(
        {name: torch.tensor(1.0) for name in head.in_features}, of="encoder", soundness=Soundness.SOUND
    )
    ones = LipschitzConstants(
        {name: torch.ones(4) for name in head.in_features}, of="scores", soundness=Soundness.SOUND
    )
    tight, loose = certify(output, head, one), certify(output, head, ones)
    for name in head.in_features:
        ratio = loose.sensitivities[name] / tight.sensitivities[name]
        ratio = ratio[~own_class(tight.prediction, tight.margins.shape[1])]
        assert (ratio > 1).all()
        assert (ratio <= math.sqrt(2) + 1e-9).all()
    weights = head.integration_weights["m0"]
    expected = (weights[tight.prediction][:, None] ** 2 + weights**2).sqrt()  # for orthonormal rows
    others = ~own_class(tight.prediction, tight.margins.shape[1])
    assert_close(tight.sensitivities["m0"][others], expected[others])


@pytest.mark.parametrize("of", oracles.KINDS)
def test_order_of_modalities_does_not_matter(of):
    head, output, constants = problem(of, 3)
    turned_head = OrthogonalFusion(dict(reversed(head.in_features.items())), 4).double()
    turned_head.load_state_dict(head.state_dict())
    turned = certify(
        FusionOutput(output.logits, dict(reversed(output.scores.items()))),
        turned_head,
        LipschitzConstants(dict(reversed(constants.values.items())), of=of, soundness=constants.soundness),
        missing=["m1"],
    )
    certificate = certify(output, head, constants, missing=["m1"])
    for chosen in (None, ["m0"], ["m2", "m0"]):
        assert_close(turned.radius(chosen), certificate.radius(chosen))


@pytest.mark.parametrize("of", oracles.KINDS)
def test_permuted_classes_permute_the_certificate(of):
    order = torch.tensor([2, 0, 3, 1])
    head, output, constants = problem(of, 2)
    values = {"encoder": lambda v: v, "scores": lambda v: v[order], "margins": lambda v: v[order][:, order]}[of]
    permuted_head = copy.deepcopy(head)
    with torch.no_grad():
        for name, rows in head.directions.items():
            permuted_head.raw_directions[name].copy_(rows[order])
            permuted_head.raw_weights[name].copy_(head.raw_weights[name][order])
    certificate = certify(output, head, constants)
    permuted = certify(
        output.logits[:, order],
        permuted_head,
        LipschitzConstants({n: values(v) for n, v in constants.values.items()}, of=of, soundness=constants.soundness),
    )
    assert order[permuted.prediction].equal(certificate.prediction)
    assert_close(permuted.margins, certificate.margins[:, order])
    assert_close(permuted.radius(), certificate.radius())
    budgets = {"m0": 0.2, "m1": 0.3}
    assert permuted.tolerates(budgets).equal(certificate.tolerates(budgets))
    assert order[permuted.nearest_class()].equal(certificate.nearest_class())


@pytest.mark.parametrize("of", ["scores", "encoder"])
def test_a_modality_without_weight_cannot_be_attacked(of):
    head, _, constants = problem(of, 3)
    with torch.no_grad():
        head.raw_weights["m1"].zero_()
    certificate = certify(head(oracles.random_features(head, 8)), head, constants)
    assert certificate.sensitivities["m1"].eq(0).all()
    assert certificate.radius(["m1"]).isinf().all()
    assert certificate.tolerates({"m1": 1e9}).all()
    assert certificate.radius().equal(certificate.radius(["m0", "m2"]))
    assert certificate.radius().isfinite().all()


def test_the_minimum_runs_over_all_classes():
    margins = torch.zeros(3, 3)
    margins[0] = torch.tensor([0.0, 0.1, 4.0])  # how fast h_0 - h_j can fall
    constants = LipschitzConstants({"a": margins}, of="margins", soundness=Soundness.SOUND)
    certificate = certify(torch.tensor([[3.0, 2.0, 1.0]]), None, constants)
    assert_is(certificate.radius(), [0.5])  # class 2; the runner-up, class 1, is 10 away
    assert certificate.nearest_class().item() == 2
    assert certificate.tolerates({"a": 0.49}).item()
    assert not certificate.tolerates({"a": 0.51}).item()


@pytest.mark.parametrize("of", oracles.KINDS)
def test_the_runner_up_often_does_not_attain_the_minimum(of):
    head, output, constants = problem(of, 2, 7, LinearFusion, batch_size=200)
    certificate = certify(output, head, constants)
    runner_up = output.logits.topk(2).indices[:, 1]
    assert (certificate.nearest_class() != runner_up).float().mean() > 0.05


# Degenerate logits.


@pytest.mark.parametrize("of", oracles.KINDS)
@pytest.mark.parametrize(
    "row",
    [
        [2.0, 2.0, 0.0, 1.0],
        [0.0, 0.0, 0.0, 0.0],
        [math.nan, 1.0, 0.0, 0.0],
        [5.0, 1.0, 0.0, math.nan],
        [math.nan] * 4,
        [math.inf, 1.0, 0.0, 0.0],
        [1.0, -math.inf, 0.0, 0.0],
        [-math.inf] * 4,
    ],
)
def test_ties_and_non_finite_logits_have_radius_zero_and_tolerate_nothing(of, row):
    head, output, constants = problem(of)
    with torch.no_grad():
        head.raw_weights["m1"].zero_()
    logits = torch.cat([torch.tensor([row], dtype=torch.float64), output.logits])
    certificate = certify(logits, head, constants)
    for chosen in (None, ["m0"], ["m1"]):
        assert certificate.radius(chosen)[0] == 0
        assert (certificate.radius(chosen)[1:] > 0).all()
    for budget in (0.0, 1e-9, math.inf):
        assert not certificate.tolerates({"m0": budget})[0]
    assert certificate.tolerates({"m0": 0.0})[1:].all()
    assert certificate.nearest_class()[0] != certificate.prediction[0]


def test_an_infinite_constant_gives_radius_zero():
    head, output, constants = problem("encoder")
    values = {"m0": torch.tensor(math.inf), "m1": constants.values["m1"]}
    certificate = certify(output, head, LipschitzConstants(values, of="encoder", soundness=Soundness.SOUND))
    assert certificate.radius().eq(0).all()
    assert (certificate.radius(["m1"]) > 0).all()
    assert not certificate.tolerates({"m0": 1e-9}).any()
    with torch.no_grad():
        head.raw_weights["m0"].zero_()  # 0 times infinity is unknown, not safe
    unknown = certify(output, head, LipschitzConstants(values, of="encoder", soundness=Soundness.SOUND))
    assert unknown.radius().eq(0).all()
    assert not unknown.tolerates({"m0": 1e-9}).any()


@pytest.mark.parametrize("of", oracles.KINDS)
def test_half_precision_logits_are_certified_in_single_precision(of):
    head, output, constants = problem(of, dtype=torch.float32)
    half = output.logits.bfloat16()
    certificate = certify(half, head, constants)
    exact = certify(half.float(), head, constants)
    assert certificate.radius().dtype is torch.float32
    assert certificate.margins.equal(exact.margins)
    assert_close(certificate.radius(), exact.radius())


def test_integer_logits_do_not_round_the_constants():
    constants = LipschitzConstants({"a": torch.full((2, 2), 0.9)}, of="margins", soundness=Soundness.SOUND)
    assert_is(certify(torch.tensor([[3, 0]]), None, constants).radius(), [3 / 0.9])


def test_a_head_in_half_precision_is_certified():
    for kind in HEADS:
        for of in oracles.KINDS:
            head, _, constants = problem(of, kind=kind, dtype=torch.float32)
            features = oracles.random_features(head, 8)
            before = certify(head(features), head, constants).radius()
            head.bfloat16()
            assert_close(certify(head(features), head, constants).radius(), before, atol=0.1, rtol=0.1)


def test_a_certificate_has_no_graph():
    head, output, constants = problem("encoder")
    for missing in ((), ("m0",)):
        certificate = certify(output, head, constants, missing=missing)
        tensors = [certificate.margins, certificate.radius(), *certificate.sensitivities.values()]
        assert not any(tensor.requires_grad for tensor in tensors)


# Linear models, where the exact distance to the boundary is known. Inputs are features: encoders are the identity.


def linear_problem(num_modalities, num_classes, kind=LinearFusion, batch_size=16):
    head = oracles.random_head(num_modalities, num_classes, kind, torch.float64)
    inputs = oracles.random_features(head, batch_size)
    one = {name: torch.tensor(1.0) for name in inputs}
    certificate = certify(head(inputs), head, LipschitzConstants(one, of="encoder", soundness=Soundness.SOUND))
    weights = {name: rows.detach() for name, rows in head.class_weights.items()}
    return head, inputs, certificate, weights


def flipped(head, inputs, delta, certificate):
    moved = {name: value + delta.get(name, 0.0) for name, value in inputs.items()}
    return head(moved).logits.argmax(dim=1) != certificate.prediction


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("num_modalities", [1, 2, 3])
def test_two_class_linear_model_flips_exactly_at_the_radius(num_modalities, kind):
    head, inputs, certificate, weights = linear_problem(num_modalities, 2, kind)
    sign = (1 - 2 * certificate.prediction)[:, None]  # towards the other class
    away = {name: sign * (w[1] - w[0]) for name, w in weights.items()}
    names = list(inputs)
    for chosen in (names, names[:1], names[-2:]):
        norm = math.sqrt(sum(float((weights[name][1] - weights[name][0]).square().sum()) for name in chosen))
        for factor, flips in ((1 - 1e-9, False), (1 + 1e-9, True)):
            length = factor * certificate.radius(chosen)[:, None]
            delta = {name: length * away[name] / norm for name in chosen}
            assert_close(torch.cat(list(delta.values()), dim=1).norm(dim=1, keepdim=True), length)
            assert flipped(head, inputs, delta, certificate).eq(flips).all()


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("num_modalities", [2, 3])
def test_two_class_linear_model_flips_exactly_at_the_product_of_budgets(num_modalities, kind):
    head, inputs, certificate, weights = linear_problem(num_modalities, 2, kind)
    sign = (1 - 2 * certificate.prediction)[:, None]
    away = {name: sign * nn.functional.normalize(w[1] - w[0], dim=0) for name, w in weights.items()}
    speed = {name: (w[1] - w[0]).norm() for name, w in weights.items()}
    shares = {name: torch.rand(16, dtype=torch.float64) for name in inputs}
    margin = certificate.margins.amax(dim=1)
    edge = margin / sum(speed[name] * share for name, share in shares.items())
    for factor, flips in ((1 - 1e-9, False), (1 + 1e-9, True)):
        budgets = {name: factor * edge * share for name, share in shares.items()}
        assert certificate.tolerates(budgets).eq(not flips).all()
        delta = {name: budgets[name][:, None] * away[name] for name in inputs}
        assert flipped(head, inputs, delta, certificate).eq(flips).all()


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize(("num_modalities", "num_classes"), [(1, 3), (2, 5), (3, 7)])
def test_multi_class_linear_radius_is_the_distance_to_the_nearest_boundary(num_modalities, num_classes, kind):
    head, inputs, certificate, weights = linear_problem(num_modalities, num_classes, kind)
    joint = torch.cat(list(weights.values()), dim=1)
    logits = head(inputs).logits.detach()
    distances, steps = [], []
    for row, p in zip(logits, certificate.prediction.tolist(), strict=True):
        # For each other class the shortest step onto h_j = h_p; the nearest of them all.
        found = [
            torch.linalg.pinv((joint[p] - joint[j])[None]) @ (row[j] - row[p])[None]
            for j in range(num_classes)
            if j != p
        ]
        steps.append(min(found, key=torch.linalg.vector_norm))
        distances.append(steps[-1].norm())
    assert_close(certificate.radius(), torch.stack(distances))
    sizes = [value.shape[1] for value in inputs.values()]
    for factor, flips in ((1 - 1e-9, False), (1 + 1e-9, True)):
        delta = dict(zip(inputs, (factor * torch.stack(steps)).split(sizes, dim=1), strict=True))
        assert flipped(head, inputs, delta, certificate).eq(flips).all()


@pytest.mark.parametrize("num_modalities", [1, 3])
def test_nothing_inside_the_radius_flips_a_linear_model(num_modalities):
    head, inputs, certificate, _ = linear_problem(num_modalities, 5)
    sizes = [value.shape[1] for value in inputs.values()]
    for _ in range(300):
        step = nn.functional.normalize(torch.randn(16, sum(sizes), dtype=torch.float64), dim=1)
        delta = dict(zip(inputs, (0.999 * certificate.radius()[:, None] * step).split(sizes, dim=1), strict=True))
        assert not flipped(head, inputs, delta, certificate).any()
        alone = nn.functional.normalize(delta["m0"], dim=1) * 0.999 * certificate.radius(["m0"])[:, None]
        assert not flipped(head, inputs, {"m0": alone}, certificate).any()


# Soundness.


def test_soundness_is_ordered_and_the_weakest_wins():
    order = [Soundness.ESTIMATED, Soundness.PROBABILISTIC, Soundness.SOUND, Soundness.RIGOROUS]
    assert list(Soundness) == sorted(Soundness) == order
    for weaker, stronger in pairwise(order):
        assert weaker < stronger
        assert min(stronger, weaker) is weaker
    assert [level.label for level in order] == ["estimated", "probably_certified", "certified", "certified"]
    assert [level.certified for level in order] == [False, True, True, True]


@pytest.mark.parametrize("level", list(Soundness))
def test_outputs_alone_certify_nothing(level):
    head, output, _ = problem("scores")
    constants = oracles.random_constants(head, "scores", level)
    assert certify(output, head, constants).soundness is Soundness.ESTIMATED
    assert certify(output, head, constants, missing=["m0"]).soundness is Soundness.ESTIMATED


# Bad arguments.


@pytest.mark.parametrize(
    ("values", "of", "error", "message"),
    [
        ({}, "scores", ValueError, "`values` must name at least one modality"),
        (
            {"a": torch.ones(3)},
            "logits",
            ValueError,
            "`of` must be one of ['encoder', 'scores', 'margins'], got 'logits'",
        ),
        (
            {"a": torch.ones(3)},
            "encoder",
            ValueError,
            "`values['a']` must be a tensor with 0 dimensions for of='encoder'",
        ),
        ({"a": torch.ones(())}, "scores", ValueError, "must be a tensor with 1 dimensions for of='scores'"),
        ({"a": torch.ones(3)}, "margins", ValueError, "must be a tensor with 2 dimensions for of='margins'"),
        ({"a": 1.0}, "encoder", ValueError, "`values['a']` must be a tensor with 0 dimensions"),
        ({"a": torch.tensor(-1.0)}, "encoder", ValueError, "`values['a']` must be >= 0 and not NaN, got -1.0"),
        ({"a": torch.tensor(torch.nan)}, "encoder", ValueError, "`values['a']` must be >= 0 and not NaN, got nan"),
    ],
)
def test_constants_that_cannot_be(values, of, error, message):
    with pytest.raises(error, match=re.escape(message)):
        LipschitzConstants(values, of=of, soundness=Soundness.SOUND)


def test_constants_need_a_soundness():
    with pytest.raises(TypeError, match="`soundness` must be a Soundness, got a str"):
        LipschitzConstants({"a": torch.tensor(1.0)}, of="encoder", soundness="sound")


@pytest.mark.parametrize(
    ("missing", "error", "message"),
    [
        ("m0", TypeError, "`missing` must be a collection of names, got the string 'm0'"),
        (["m9"], ValueError, "`missing` must leave at least one of the modalities ['m0', 'm1'], got ['m9']"),
        (["m0", "m1"], ValueError, "`missing` must leave at least one of the modalities ['m0', 'm1']"),
    ],
)
def test_missing_modalities_that_cannot_be(missing, error, message):
    head, output, constants = problem("encoder")
    with pytest.raises(error, match=re.escape(message)):
        certify(output, head, constants, missing=missing)


def test_dropping_a_modality_needs_scores_and_a_head():
    head, output, constants = problem("margins")
    for without, what in ((certify, (output.logits, head)), (certify, (output, None))):
        with pytest.raises(ValueError, match="`missing` needs a fusion head and a FusionOutput"):
            without(*what, constants, missing=["m0"])
    cosine = CosineFusion(head.in_features, head.num_classes)
    features = {name: torch.ones(2, size) for name, size in head.in_features.items()}
    with pytest.raises(ValueError, match=r"`missing` needs a fusion head .* got a CosineFusion"):
        certify(cosine(features), cosine, constants, missing=["m0"])


@pytest.mark.parametrize("of", ["scores", "encoder"])
def test_constants_without_weights_need_a_head(of):
    _, output, constants = problem(of)
    with pytest.raises(ValueError, match=f"`head` must be late fusion with Lipschitz constants of {of}, got a None"):
        certify(output, None, constants)


def test_constants_of_another_model_are_refused():
    head, output, _ = problem("scores")
    other = oracles.random_constants(oracles.random_head(3, 4), "encoder")
    with pytest.raises(ValueError, match=re.escape("`lipschitz` must hold exactly the modalities ['m0', 'm1']")):
        certify(output, head, other)
    with pytest.raises(ValueError, match="`lipschitz` must fit the 4 classes of `output`, got \\(5, 5\\) for 'm0'"):
        certify(output, head, oracles.random_constants(oracles.random_head(2, 5), "margins"))


@pytest.mark.parametrize("length", [1, 5])
def test_constants_of_scores_need_one_value_per_class(length):
    head, output, _ = problem("scores")
    values = {name: torch.ones(length) for name in head.in_features}
    constants = LipschitzConstants(values, of="scores", soundness=Soundness.SOUND)
    message = f"`lipschitz.values['m0']` must have shape (4,), one constant per class, got ({length},)"
    with pytest.raises(ValueError, match=re.escape(message)):
        certify(output, head, constants)


@pytest.mark.parametrize("output", [torch.zeros(4), {"scores": torch.zeros(2, 4)}, None])
def test_outputs_without_logits_are_refused(output):
    head, _, constants = problem("scores")
    with pytest.raises(TypeError, match=re.escape("a model must return logits of shape (B, K)")):
        certify(output, head, constants)


@pytest.mark.parametrize("chosen", [[], ["m0", "audio"], "audio"])
def test_radius_needs_known_modalities(chosen):
    certificate = certify(*_certifiable())
    with pytest.raises(ValueError, match=re.escape("`modalities` must name modalities among ['m0', 'm1'], got")):
        certificate.radius(chosen)


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        ({}, "`budgets` must name modalities among ['m0', 'm1'], got []"),
        ({"audio": 0.1}, "`budgets` must name modalities among ['m0', 'm1'], got ['audio']"),
        ({"m0": -0.1}, "`budgets['m0']` must be >= 0, a number or shape (B,), got -0.1"),
        ({"m0": math.nan}, "`budgets['m0']` must be >= 0, a number or shape (B,), got nan"),
        ({"m0": torch.ones(8, 1)}, "`budgets['m0']` must be >= 0, a number or shape (B,)"),
    ],
)
def test_budgets_that_cannot_be(budgets, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        certify(*_certifiable()).tolerates(budgets)


def test_budgets_need_one_number_per_sample():
    with pytest.raises(ValueError, match=re.escape("`budgets['m0']` must be >= 0, a number or shape (B,)")):
        certify(*_certifiable()).tolerates({"m0": torch.ones(7)})


def test_an_infinite_budget_on_what_cannot_be_attacked_is_tolerated():
    certificate = Certificate(
        prediction=torch.tensor([0]),
        margins=torch.tensor([[0.0, 1.0]]),
        sensitivities={"a": torch.zeros(1, 2)},
        soundness=Soundness.SOUND,
    )
    assert certificate.radius().item() == math.inf
    assert certificate.tolerates({"a": math.inf}).item()


def _certifiable():
    head, output, constants = problem("scores")
    return output, head, constants
