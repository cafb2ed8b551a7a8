# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Certificates that count rounding: against loops, against exact arithmetic, and against probes at their edge."""

import copy
import dataclasses
import io
import math
import pickle
import re
from fractions import Fraction

import pytest
import torch
from support import oracles
from torch import nn
from torch.testing import assert_close

from lightning_crmt import (
    CRMTModule,
    FixedFusion,
    ForwardError,
    LinearFusion,
    LipschitzConstants,
    NoBoundError,
    OrthogonalFusion,
    Soundness,
    certify,
    encoder_bounds,
    encoder_errors,
    estimate_lipschitz,
    forward_error,
    with_fixed_weights,
)
from lightning_crmt.certification import certify_late_fusion
from lightning_crmt.certification.from_outputs import certify_with_errors
from lightning_crmt.certification.rounding import rounding
from lightning_crmt.encoders import MLP, LipschitzMLP
from lightning_crmt.fusion import LateFusion
from lightning_crmt.layers import OrthogonalLinear
from lightning_crmt.lipschitz.rigorous.verified import UNIT_ROUNDOFF

LIMIT = 2.0**60


def fixed_head(dtype=torch.float32, kind=OrthogonalFusion, num_modalities=2, num_classes=4):
    head = oracles.random_head(num_modalities, num_classes, kind, dtype)
    return head.fixed() if kind is OrthogonalFusion else head


def random_errors(head, batch_size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    unit = UNIT_ROUNDOFF[head.bias.dtype]
    found = {}
    for name in head.in_features:
        at, size = 50 * unit * torch.rand(2, batch_size, dtype=torch.float64, generator=generator)
        growth, reach = (1 + torch.rand(2, generator=generator)).tolist()
        found[name] = ForwardError(at, 40 * unit * growth, size / unit, reach)
    return found


def problem(dtype=torch.float32, kind=OrthogonalFusion, num_modalities=2, batch_size=8):
    head = fixed_head(dtype, kind, num_modalities)
    constants = oracles.random_constants(head, "encoder", Soundness.RIGOROUS)
    return head, head(oracles.random_features(head, batch_size)), constants, random_errors(head, batch_size)


def model_of(encoders=None, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    encoders = encoders or {"a": MLP(12, 16, hidden=(20,)), "b": LipschitzMLP(6, 16, hidden=(20,), scale=0.7)}
    return CRMTModule(encoders, num_classes=5).to(dtype)


def inputs_of(dtype=torch.float32, size=9):
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(size, d, generator=generator).to(dtype) for name, d in {"a": 12, "b": 6}.items()}


def assert_same(found, expected):
    for name in ("prediction", "margins", "sensitivities"):
        assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=0)
    for name in ("soundness", "missing", "limit"):
        assert getattr(found, name) == getattr(expected, name)


# Against the loops.


def slow(head, constants, errors, p, i, present):
    """Slack and sensitivities of sample i for every class j, from the inequality, without underflow."""
    t = max(head.in_features.values()) + len(head.in_features) + 2
    g = t * UNIT_ROUNDOFF[head.bias.dtype] / (1 - t * UNIT_ROUNDOFF[head.bias.dtype])
    b = head.bias.tolist()
    slack, slopes = [], {name: [] for name in present}
    for j in range(len(b)):
        total = 2 * g * (abs(b[p]) + abs(b[j]))
        for name in present:
            a, d = head.integration_weights[name].tolist(), head.directions[name].tolist()
            w_p, w_j = [a[p] * u for u in d[p]], [a[j] * u for u in d[j]]
            apart, both, error = math.dist(w_p, w_j), math.hypot(*w_p) + math.hypot(*w_j), errors[name]
            total += 2 * (apart * error.at[i].item() + g * both * error.magnitude[i].item())
            slopes[name].append(
                apart * (constants.values[name].item() + error.growth) + g * both * error.magnitude_growth
            )
        slack.append(total)
    return slack, slopes


@pytest.mark.parametrize("missing", [(), ("m1",)])
@pytest.mark.parametrize("kind", [OrthogonalFusion, LinearFusion])
@pytest.mark.parametrize("dtype", oracles.PRECISIONS)
def test_margins_and_sensitivities_are_the_inequality(dtype, kind, missing):
    head, output, constants, errors = problem(dtype, kind, 3)
    certificate = certify_with_errors(output, head, constants, errors, missing=missing)
    assert certificate.soundness is Soundness.RIGOROUS
    assert certificate.missing == missing
    present = [name for name in head.in_features if name not in missing]
    logits = head.fuse({name: output.scores[name] for name in present}).tolist()
    for i, p in enumerate(certificate.prediction.tolist()):
        assert p == logits[i].index(max(logits[i]))
        slack, slopes = slow(head, constants, errors, p, i, present)
        for j in set(range(head.num_classes)) - {p}:
            margin = logits[i][p] - logits[i][j] - slack[j]
            found = certificate.margins[i, j].item()
            assert found < margin
            assert found == pytest.approx(margin, rel=1e-10, abs=1e-11)
            for name in present:
                found = certificate.sensitivities[name][i, j].item()
                assert slopes[name][j] < found < slopes[name][j] * (1 + 1e-11)
    for name in missing:
        assert certificate.sensitivities[name].eq(0).all()
        assert certificate.radius([name]).eq(LIMIT).logical_or(certificate.radius() == 0).all()


@pytest.mark.parametrize("dtype", oracles.PRECISIONS)
def test_computed_logits_are_within_the_slack_of_exact_ones(dtype):
    """Features without an error: then half of the slack bounds what the head itself loses in a margin."""
    torch.manual_seed(0)
    head = FixedFusion(
        {"a": torch.randn(3, 700, dtype=dtype), "b": torch.randn(3, 5, dtype=dtype)},
        {"a": torch.rand(3, dtype=dtype), "b": 100 * torch.rand(3, dtype=dtype)},
        torch.randn(3, dtype=dtype),
    )
    features = {name: 10 * torch.randn(2, size, dtype=dtype) for name, size in head.in_features.items()}
    output = head(features)
    errors = {name: forward_error(nn.Identity(), value.double()) for name, value in features.items()}
    one = {name: torch.tensor(1.0) for name in features}
    slack, _ = rounding(output.logits, head, LipschitzConstants(one, "encoder", Soundness.RIGOROUS), errors)
    for i, p in enumerate(output.logits.argmax(dim=1).tolist()):
        exact = []
        for k in range(3):
            total = Fraction(head.bias[k].item())
            for name, value in features.items():
                dot = sum(Fraction(u) * Fraction(v) for u, v in zip(
                    head.directions[name][k].tolist(), value[i].tolist(), strict=True))  # fmt: skip
                total += Fraction(head.integration_weights[name][k].item()) * dot
            exact.append(total)
        computed = [Fraction(value) for value in output.logits[i].tolist()]
        for j in set(range(3)) - {p}:
            error = abs(computed[p] - computed[j] - (exact[p] - exact[j]))
            assert 0 < 2 * error <= Fraction(slack[i, j].item())


def test_underflow_in_the_head_is_counted():
    """Every product is denormal: all of the logit may be lost."""
    head = FixedFusion({"a": torch.full((2, 8), 1e-25)}, {"a": torch.full((2,), 1e10)}, torch.zeros(2))
    features = {"a": torch.full((1, 8), 1e-17)}
    output = head(features)
    error = abs(8e-32 - output.logits[0, 0].double().item())
    assert error > 1e-37
    constants = LipschitzConstants({"a": torch.tensor(1.0)}, "encoder", Soundness.RIGOROUS)
    errors = {"a": forward_error(nn.Identity(), features["a"])}
    assert rounding(output.logits, head, constants, errors)[0].min() > 2 * error


def test_rows_that_differ_by_less_than_a_rounding_are_apart():
    """Two weighted rows that are the same number in double precision, and not the same in exact arithmetic."""
    a, d = torch.tensor([1.1, 1.3], dtype=torch.float64), torch.tensor([[1.3], [1.1]], dtype=torch.float64)
    d[1, 0] = math.nextafter(1.1, 0)
    a[1] = float(a[0] * d[0, 0]) / d[1, 0]
    apart = abs(Fraction(a[0].item()) * Fraction(d[0].item()) - Fraction(a[1].item()) * Fraction(d[1].item()))
    assert float(a[0] * d[0, 0] - a[1] * d[1, 0]) == 0 < apart
    head = FixedFusion({"a": d}, {"a": a}, torch.zeros(2, dtype=torch.float64))
    none = torch.zeros(1, dtype=torch.float64)
    constants = LipschitzConstants({"a": torch.tensor(1.0)}, "encoder", Soundness.RIGOROUS)
    _, slopes = rounding(none[:, None].expand(1, 2), head, constants, {"a": ForwardError(none, 0.0, none, 0.0)})
    assert apart <= Fraction(slopes["a"][0, 1].item()) < Fraction(1e-13)


# What may be called rigorous.


def test_rigorous_constants_without_errors_give_estimates():
    head, output, constants, errors = problem()
    for chosen in (head, fixed_head(kind=LinearFusion)):
        certificate = certify(output, chosen, constants)
        assert certificate.soundness is Soundness.ESTIMATED
        assert certificate.limit == math.inf
    assert certify_with_errors(output, head, constants, errors).soundness is Soundness.RIGOROUS


@pytest.mark.parametrize("level", list(Soundness))
def test_a_certificate_with_errors_is_as_sound_as_its_constants(level):
    head, output, constants, errors = problem()
    constants = dataclasses.replace(constants, soundness=level)
    assert certify_with_errors(output, head, constants, errors).soundness is level
    assert certify_with_errors(output, head, constants, errors, missing=["m0"]).soundness is level
    without = {"m1": errors["m1"]}  # errors of what is missing are not needed
    assert certify_with_errors(output, head, constants, without, missing=["m0"]).soundness is level


@pytest.mark.parametrize("dtype", oracles.PRECISIONS)
def test_counting_rounding_never_raises_a_radius(dtype):
    head, output, constants, errors = problem(dtype, num_modalities=3, batch_size=200)
    for missing in ((), ("m2",)):
        sound = certify(output, head, constants, missing=missing)
        rigorous = certify_with_errors(output, head, constants, errors, missing=missing)
        assert rigorous.prediction.equal(sound.prediction)
        for chosen in (None, ["m0"], ["m0", "m1"]):
            assert rigorous.radius(chosen).dtype is torch.float64
            assert (rigorous.radius(chosen) <= sound.radius(chosen)).all()
        budgets = {"m0": 0.2, "m1": torch.rand(200)}
        assert (rigorous.tolerates(budgets) <= sound.tolerates(budgets)).all()


def test_larger_errors_never_raise_a_radius():
    head, output, constants, errors = problem(batch_size=50)
    before = certify_with_errors(output, head, constants, errors).radius()
    for field in ("at", "growth", "magnitude", "magnitude_growth"):
        larger = {n: dataclasses.replace(e, **{field: 100 * getattr(e, field)}) for n, e in errors.items()}
        after = certify_with_errors(output, head, constants, larger).radius()
        assert (after <= before).all()
        assert (after < before).any()


def test_ties_and_broken_logits_have_radius_zero():
    head, output, constants, errors = problem(batch_size=3)
    logits = torch.tensor([[1.0, 1.0, 0.0, 0.0], [math.nan, 1.0, 0.0, 0.0], [math.inf, 0.0, 0.0, 0.0]])
    certificate = certify_with_errors(output._replace(logits=logits), head, constants, errors)
    assert certificate.radius().eq(0).all()
    assert not certificate.tolerates({"m0": 0.0}).any()


def test_radii_and_budgets_end_where_overflow_begins():
    head, output, constants, errors = problem()
    silent = FixedFusion(head.directions, {n: torch.zeros(4) for n in head.in_features}, torch.arange(4.0))
    output = silent(oracles.random_features(silent, 8))
    certificate = certify_with_errors(output, silent, constants, errors)
    assert certificate.limit == LIMIT == ForwardError.LARGEST_RADIUS
    assert certificate.radius().eq(LIMIT).all()
    assert certificate.tolerates({"m0": LIMIT}).all()
    assert not certificate.tolerates({"m0": 2 * LIMIT}).any()
    assert certify(output, silent, constants).radius().isinf().all()


def test_what_certify_refuses_with_errors():
    head, output, constants, errors = problem()

    def refused(message, output=output, head=head, constants=constants, errors=errors, kind=ValueError):
        with pytest.raises(kind, match=re.escape(message)):
            certify_with_errors(output, head, constants, errors)

    loose = oracles.random_head(2, 4)
    refused("got a OrthogonalFusion: what is computed anew", head=loose)
    refused("fix them first with lightning_crmt.with_fixed_weights", head=loose)
    refused("missing ['m1']", errors={"m0": errors["m0"]})
    refused("unknown ['m7']", errors=errors | {"m7": errors["m0"]})
    short = {name: dataclasses.replace(error, at=error.at[:3]) for name, error in errors.items()}
    refused("`errors['m0']` must be of the 8 samples of `output`, got 3", errors=short)
    for of in ("scores", "margins"):
        other = oracles.random_constants(head, of, Soundness.RIGOROUS)
        refused(f"`lipschitz` must hold constants of encoders where `errors` are given, got '{of}'", constants=other)
    margins = oracles.random_constants(head, "margins", Soundness.RIGOROUS)
    refused("got a NoneType", head=None, constants=margins)
    refused("`output` must be as `head` computes it", output=output.logits.bfloat16())
    refused("`output` must be as `head` computes it", output=output.logits.double())
    refused("on the CPU", head=copy.deepcopy(head).bfloat16())
    mixed = copy.deepcopy(head)
    mixed.bias.data = mixed.bias.data.double()
    refused("got torch.float32 on cpu, torch.float64 on cpu", head=mixed)
    huge = {name: dataclasses.replace(error, magnitude=1e18 * error.magnitude) for name, error in errors.items()}
    refused("logits must stay below", errors=huge)
    far = {name: dataclasses.replace(error, magnitude_growth=1e19) for name, error in errors.items()}
    refused("logits must stay below", errors=far)
    hooked = copy.deepcopy(head)
    hooked.register_forward_hook(lambda *_: None)
    refused("'head', a FixedFusion, must have no forward hooks", head=hooked)


def test_heads_on_other_devices_are_refused():
    head, output, constants, errors = problem()
    with pytest.raises(ValueError, match=r"float32 or float64 on the CPU .* got torch.float32 on meta"):
        rounding(output.logits, copy.deepcopy(head).to("meta"), constants, errors)


class Other(LinearFusion):
    def forward(self, features):
        return super().forward(features)


def test_subclasses_are_refused():
    head, output, constants, errors = problem()
    other = Other(head.in_features, 4)
    with pytest.raises(ValueError, match="`head` must hold fixed numbers where `errors` are given, got a Other"):
        certify_with_errors(output, other, constants, errors)


# Heads of stored numbers.


@pytest.mark.parametrize("dtype", oracles.PRECISIONS)
def test_a_fixed_head_answers_the_same_and_stays(dtype):
    head = oracles.random_head(3, 4, dtype=dtype).eval()
    features = oracles.random_features(head, 5)
    fixed = head.fixed()
    expected = head(features)
    file = io.BytesIO()
    torch.save(fixed.state_dict(), file)
    file.seek(0)
    loaded = oracles.random_head(3, 4, dtype=dtype, seed=1).fixed()
    loaded.load_state_dict(torch.load(file))
    for twin in (fixed, copy.deepcopy(fixed), pickle.loads(pickle.dumps(fixed)), loaded):
        assert isinstance(twin, LateFusion)
        assert twin(features).logits.equal(expected.logits)
        assert_close(twin.class_weights, head.class_weights, rtol=0, atol=0)
        assert not any(value.requires_grad for value in twin.class_weights.values())
        assert twin.integration_parameters() == []
    with torch.no_grad():
        head.bias.add_(1)
        head.raw_directions["m0"].normal_()
        head.raw_weights["m0"].zero_()
    assert fixed(features).logits.equal(expected.logits)
    assert fixed.double().directions["m1"].dtype is torch.float64


class Averaging(OrthogonalFusion):
    def fuse(self, scores):
        return super().fuse(scores) / len(scores)


def test_heads_that_cannot_be_fixed():
    with pytest.raises(TypeError, match="Averaging must not override `forward` or `fuse` to be fixed"):
        Averaging({"a": 4}, 3).fixed()
    rows, weights = {"a": torch.zeros(3, 4)}, {"a": torch.ones(3)}
    for arguments, message in (
        ((rows, {"b": weights["a"]}, torch.zeros(3)), "`integration_weights` must hold exactly the modalities ['a']"),
        ((rows, {"a": torch.ones(2)}, torch.zeros(3)), "`integration_weights['a']` must have shape (3,)"),
        ((rows, weights, torch.zeros(2)), "`directions['a']` must have shape (2, 4)"),
        ((rows, weights, torch.zeros(1)), "`num_classes` must be at least 2"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            FixedFusion(*arguments)


def test_fixed_weights_of_a_whole_model():
    model = model_of().eval()
    fixed = with_fixed_weights(model)
    assert type(fixed) is CRMTModule
    assert type(fixed.head) is FixedFusion
    assert isinstance(model.head, OrthogonalFusion)
    assert not any(type(part).__name__.startswith("Orthogonal") for part in fixed.modules())
    assert fixed(inputs_of()).logits.equal(model(inputs_of()).logits)
    assert not any(part.training for part in fixed.modules())
    assert with_fixed_weights(model.train().head).training
    linear = CRMTModule({"a": MLP(12, 16)}, num_classes=5, head=LinearFusion)
    assert type(with_fixed_weights(linear).head) is LinearFusion


# From samples.


@pytest.mark.parametrize("dtype", oracles.PRECISIONS)
def test_certify_of_a_model_at_both_levels(dtype):
    model, inputs = with_fixed_weights(model_of(dtype=dtype)).train(), inputs_of(dtype)
    sound, rigorous = model.certify(inputs), model.certify(inputs, level="rigorous")
    assert (sound.soundness, rigorous.soundness) == (Soundness.SOUND, Soundness.RIGOROUS)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.eval()
    with torch.no_grad():
        output = model(inputs)
    bounds = encoder_bounds(model.encoders, level="rigorous")
    expected = certify_with_errors(output, model.head, bounds, encoder_errors(model.encoders, inputs))
    assert_same(rigorous, expected)
    assert_same(model.certify(inputs, bounds, level="rigorous"), rigorous)
    assert model.certify(inputs, bounds).soundness is Soundness.SOUND
    radius = certify(output, model.head, encoder_bounds(model.encoders)).radius()
    assert_close(sound.radius(), radius.double(), rtol=1e-4, atol=1e-6)  # that one knows single precision only
    assert (rigorous.radius() <= sound.radius()).all()
    assert (rigorous.radius() > 0).any()
    cost = 1 - rigorous.radius().median() / sound.radius().double().median()
    assert cost < (0.01 if dtype is torch.float32 else 1e-7)
    alone = certify_late_fusion(model, inputs, level="rigorous", missing=["a"])
    assert alone.missing == ("a",)
    assert alone.soundness is Soundness.RIGOROUS


def test_inputs_in_another_precision_are_cast_first():
    model, inputs = with_fixed_weights(model_of()), inputs_of(torch.float64)
    single = {name: value.float() for name, value in inputs.items()}
    assert_same(model.certify(inputs, level="rigorous"), model.certify(single, level="rigorous"))


def test_estimates_must_be_chosen_and_certify_nothing():
    model = CRMTModule({"a": nn.Sequential(nn.Linear(12, 16), nn.LayerNorm(16))}, num_classes=5, in_features={"a": 16})
    inputs = {"a": inputs_of()["a"]}
    with pytest.raises(NoBoundError, match=r"the encoder of 'a'.*LayerNorm.* lipschitz=estimate_lipschitz"):
        model.certify(inputs)
    with pytest.raises(NoBoundError, match=r"the encoder of 'a'.*LayerNorm.* level 'sound' may know it"):
        model.certify(inputs, level="rigorous")
    estimated = estimate_lipschitz(model, [inputs])
    assert not model.certify(inputs, estimated).soundness.certified
    with pytest.raises(ValueError, match="`lipschitz` must be rigorous at level 'rigorous', it is estimated"):
        model.certify(inputs, estimated, level="rigorous")


def test_what_level_rigorous_refuses():
    model, inputs = model_of(), inputs_of()
    with pytest.raises(NoBoundError, match=r"the encoder of 'b': .* fix them first with .*with_fixed_weights"):
        model.certify(inputs, level="rigorous")
    loose = model_of({"a": MLP(12, 16), "b": MLP(6, 16)})
    with pytest.raises(ValueError, match=r"`head` must hold fixed numbers .* lightning_crmt\.with_fixed_weights"):
        loose.certify(inputs, level="rigorous")
    half = with_fixed_weights(model).bfloat16()
    with pytest.raises(ValueError, match="the encoder of 'a': the network must run in float32 or in float64"):
        half.certify(inputs, level="rigorous")
    with pytest.raises(ValueError, match="`level` must be 'sound' or 'rigorous', got 'exact'"):
        model.certify(inputs, level="exact")
    with pytest.raises(ValueError, match=re.escape("missing ['b']")):
        model.certify({"a": inputs["a"]})
    with pytest.raises(TypeError, match="`model` must have `encoders`"):
        certify_late_fusion(nn.Linear(2, 2), inputs)


class Scaled(CRMTModule):
    def forward(self, inputs):
        return super().forward({name: 100 * value for name, value in inputs.items()})


def test_bounds_of_encoders_do_not_certify_a_forward_that_does_more():
    torch.manual_seed(0)
    model, inputs = Scaled({"a": MLP(12, 16), "b": MLP(6, 16)}, num_classes=5), inputs_of()
    hooked = model_of()
    hooked.register_forward_pre_hook(lambda *_: None)
    for changed in (model, hooked):
        with pytest.raises(ValueError, match="`forward` must be that of CRMTMixin, without hooks, to be certified"):
            changed.certify(inputs)
        with pytest.raises(ValueError, match="`forward` must be that of CRMTMixin, without hooks, to be certified"):
            changed.certify(inputs, encoder_bounds(changed.encoders), level="rigorous")
    assert model.certify(inputs, estimate_lipschitz(model, [inputs])).soundness is Soundness.ESTIMATED


# What it is for.


def flips(model, inputs, certificate):
    """Inputs at the edge of the joint ball that change the prediction: downhill, where the bound is attained."""
    radius, rival = certificate.radius().double(), certificate.nearest_class()
    leaves = {name: value.clone().requires_grad_(True) for name, value in inputs.items()}
    logits = model(leaves).logits
    margin = logits.gather(1, certificate.prediction[:, None]) - logits.gather(1, rival[:, None])
    downhill = -torch.cat(torch.autograd.grad(margin.sum(), list(leaves.values())), dim=1).double()
    downhill = nn.functional.normalize(downhill, dim=1)
    centre = torch.cat(list(inputs.values()), dim=1)
    found = tried = 0
    for trial in range(30):
        length = radius * (1 - 1e-8 * 1.5**trial)
        probe = (centre.double() + length[:, None] * downhill).to(centre.dtype)
        inside = ((probe.double() - centre.double()).norm(dim=1) < radius * (1 - 1e-15)) & (radius > 0)
        parts = dict(zip(inputs, probe.split([x.shape[1] for x in inputs.values()], dim=1), strict=True))
        with torch.no_grad():
            changed = model(parts).logits.argmax(dim=1) != certificate.prediction
        found, tried = found + int((changed & inside).sum()), tried + int(inside.sum())
    return found, tried


def test_float32_inputs_flip_inside_a_sound_ball_and_not_inside_a_rigorous_one():
    """Square orthogonal encoders keep every norm: the bound is attained, up to rounding."""
    torch.manual_seed(0)
    encoders = {"a": OrthogonalLinear(48, 48), "b": OrthogonalLinear(24, 24)}
    model = with_fixed_weights(CRMTModule(encoders, num_classes=10)).eval()
    inputs = {"a": torch.randn(300, 48), "b": torch.randn(300, 24)}
    sound, rigorous = model.certify(inputs), model.certify(inputs, level="rigorous")
    changed, tried = flips(model, inputs, sound)
    assert changed > 50
    assert tried > 1000
    changed, tried = flips(model, inputs, rigorous)
    assert changed == 0
    assert tried > 1000
    assert 0 < 1 - rigorous.radius().median() / sound.radius().double().median() < 0.005
