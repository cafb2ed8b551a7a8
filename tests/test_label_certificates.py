# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Certificates of labels: the formula in slow loops, exact distances, and attempts to break them."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from support.oracles import random_features, random_head
from torch import nn

from lightning_crmt import (
    CRMTModule,
    FixedFusion,
    FusionOutput,
    LinearFusion,
    LipschitzConstants,
    OrthogonalFusion,
    Soundness,
    certify,
    estimate_lipschitz,
    integration_objective,
    verify_certificate,
    with_fixed_weights,
)
from lightning_crmt.attacks import Budget, MinimumNorm, distance_by
from lightning_crmt.certification import CertificateViolation, certify_late_fusion, label_sensitivities, sensitivities
from lightning_crmt.encoders import LipschitzMLP
from lightning_crmt.losses import radius_loss, true_class_radii
from lightning_crmt.metrics import (
    CertifiedAccuracy,
    CertifiedLabelAccuracy,
    MeanCertifiedRadius,
    credited_label_radii,
    credited_radius,
    robust_at,
)

KINDS = ("encoder", "scores", "labels")


def constants_of(head, of, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = () if of == "encoder" else (head.num_classes,)
    values = {name: 0.1 + torch.rand(shape, dtype=head.bias.dtype, generator=generator) for name in head.in_features}
    return LipschitzConstants(values, of=of, soundness=Soundness.SOUND)


def slow_sensitivity(head, constants, name, k):
    """How fast logit k may change with the modality, from the formula."""
    value = constants.values[name]
    if constants.of == "labels":
        return float(value[k])
    a = head.integration_weights[name][k].item()
    if constants.of == "scores":
        return a * float(value[k])
    return float(value) * math.sqrt(sum((a * d) ** 2 for d in head.directions[name][k].tolist()))


@pytest.mark.parametrize("of", KINDS)
@pytest.mark.parametrize("kind", [OrthogonalFusion, LinearFusion])
@pytest.mark.parametrize("missing", [(), ("m1",)])
def test_radii_and_budgets_are_the_formula(of, kind, missing):
    head = random_head(3, 4, kind, dtype=torch.float64)
    output, constants = head(random_features(head, 6)), constants_of(head, of)
    certificate = certify(output, head, constants, missing=missing, multi_label=True)
    logits = head.fuse({n: s for n, s in output.scores.items() if n not in missing})
    budgets = {"m0": 0.3, "m2": 0.2}
    for i, row in enumerate(logits.tolist()):
        radii, alone, safe = [], [], True
        for k, h in enumerate(row):
            slopes = {n: slow_sensitivity(head, constants, n, k) for n in ("m0", "m1", "m2") if n not in missing}
            radii.append(abs(h) / math.sqrt(sum(s * s for s in slopes.values())))
            alone.append(abs(h) / slopes["m0"])
            safe = safe and sum(slopes[n] * budget for n, budget in budgets.items()) < abs(h)
        assert certificate.prediction[i].tolist() == [h > 0 for h in row]
        assert certificate.label_radii()[i].tolist() == pytest.approx(radii)
        assert certificate.label_radii(["m0"])[i].tolist() == pytest.approx(alone)
        assert float(certificate.radius()[i]) == pytest.approx(min(radii))
        assert int(certificate.nearest_class()[i]) == radii.index(min(radii))
        assert bool(certificate.tolerates(budgets)[i]) == safe


def test_a_label_is_decided_like_a_class_against_nothing():
    """The same radii as of two classes, one of which has weights and bias 0."""
    head = random_head(2, 3, LinearFusion, dtype=torch.float64)
    features, constants = random_features(head, 9), constants_of(head, "encoder")
    labels = certify(head(features), head, constants, multi_label=True)
    for k in range(3):
        pair = FixedFusion(
            {n: torch.stack([w[k], torch.zeros_like(w[k])]) for n, w in head.class_weights.items()},
            {n: torch.ones(2, dtype=torch.float64) for n in head.in_features},
            torch.stack([head.bias[k], head.bias.new_zeros(())]),
        )
        classes = certify(pair(features), pair, constants)
        torch.testing.assert_close(labels.label_radii()[:, k], classes.radius())
        assert torch.equal(labels.prediction[:, k], classes.prediction == 0)


@pytest.mark.parametrize("row", [[0.0, 1.0], [-0.0, 1.0], [math.nan, 1.0], [math.inf, 1.0], [-math.inf, 1.0]])
def test_ties_and_logits_that_are_not_finite_have_radius_zero(row):
    head = FixedFusion({"a": torch.eye(2)}, {"a": torch.ones(2)}, bias=torch.zeros(2))
    constants = LipschitzConstants({"a": torch.tensor(0.0)}, of="encoder", soundness=Soundness.SOUND)
    output = FusionOutput(torch.tensor([row]), {"a": torch.tensor([row])})
    certificate = certify(output, head, constants, multi_label=True)
    assert certificate.radius().tolist() == [0.0]
    assert not certificate.tolerates({"a": 0.0})
    finite = all(map(math.isfinite, row))
    assert certificate.label_radii().tolist() == [[0.0, math.inf if finite else 0.0]]  # nothing changes the second


def test_labels_that_do_not_depend_on_a_modality_stay():
    weights = {"a": torch.tensor([1.0, 0.0]), "b": torch.ones(2)}
    head = FixedFusion({"a": torch.eye(2), "b": torch.eye(2)}, weights, bias=torch.zeros(2))
    certificate = certify(
        head({"a": torch.tensor([[1.0, 1.0]]), "b": torch.tensor([[1.0, 1.0]])}),
        head,
        LipschitzConstants({"a": torch.tensor(1.0), "b": torch.tensor(1.0)}, of="encoder", soundness=Soundness.SOUND),
        multi_label=True,
    )
    assert certificate.label_radii(["a"]).tolist() == [[2.0, math.inf]]
    assert certificate.radius(["a"]).tolist() == [2.0]


def test_tiny_rows_have_a_length():
    rows = torch.tensor([[3e-30, 4e-30], [1.0, 0.0], [0.0, 0.0]])
    head = FixedFusion({"a": rows}, {"a": torch.ones(3)}, bias=torch.zeros(3))
    one = LipschitzConstants({"a": torch.tensor(1.0)}, of="encoder", soundness=Soundness.SOUND)
    assert label_sensitivities(one, head)["a"].tolist() == pytest.approx([5e-30, 1.0, 0.0], rel=1e-6)


def test_constants_must_be_of_labels_or_of_what_labels_are_made_of():
    head = random_head(1, 3, LinearFusion)
    pairs = LipschitzConstants({"m0": torch.ones(3, 3)}, of="margins", soundness=Soundness.SOUND)
    with pytest.raises(ValueError, match="must not be of 'margins' here: differences of logits say nothing about one"):
        label_sensitivities(pairs, head)
    with pytest.raises(ValueError, match="must not be of 'labels' here: the model has one class per sample"):
        sensitivities(constants_of(head, "labels"), head)
    with pytest.raises(ValueError, match="`label_radii` are of labels"):
        certify(head(random_features(head, 2)), head, constants_of(head, "encoder")).label_radii()


# --- models


def build(head=LinearFusion, dtype=torch.float32, seed=0, sizes=(1, 1), labels=3, **settings):
    torch.manual_seed(seed)
    encoders = {name: LipschitzMLP(size, 4, hidden=(8,)) for name, size in zip("ab", sizes, strict=True)}
    model = CRMTModule(encoders, labels, head=head, multi_label=True, **settings)
    with torch.no_grad():
        for name, parameter in model.head.named_parameters():
            if "bias" in name:
                parameter.normal_(0, 0.1)
    return model.to(dtype).eval()


def inputs_of(model_sizes=(1, 1), size=24, dtype=torch.float32, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(size, each, generator=generator, dtype=torch.float64).to(dtype)
        for name, each in zip("ab", model_sizes, strict=True)
    }


@pytest.mark.parametrize("head", [LinearFusion, OrthogonalFusion])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(3))
def test_dense_search_breaks_no_label(head, dtype, seed):
    """All of a fine grid within the radius of each label, jointly and for one modality."""
    model, x = build(head, dtype, seed), inputs_of(dtype=dtype, seed=seed)
    certificate = model.certify(x)
    assert certificate.soundness is Soundness.SOUND
    angles = torch.linspace(0, 2 * math.pi, 73, dtype=torch.float64)
    shares = torch.tensor([0.25, 0.5, 0.75, 0.9, 1 - 1e-5], dtype=torch.float64)
    joint = (shares[:, None] * torch.stack([angles.cos(), angles.sin()])[:, None]).reshape(2, -1)
    alone = torch.stack([torch.cat([shares, -shares]), torch.zeros(10, dtype=torch.float64)])
    broken = torch.zeros((), dtype=torch.long)
    with torch.no_grad():
        for directions, radii in ((joint, certificate.label_radii()), (alone, certificate.label_radii(["a"]))):
            assert (radii > 0).float().mean() > 0.9
            for k in range(3):
                way = radii[:, k].double().clamp(max=1e6)
                for step in directions.unbind(dim=1):
                    moved = {n: (x[n].double() + way[:, None] * step[i]).to(dtype) for i, n in enumerate("ab")}
                    # What is stored may be a little further than the radius.
                    sides = [(moved[n].double() - x[n].double()).flatten() for n in "ab"]
                    inside = torch.stack(sides).norm(dim=0) <= way
                    flipped = (model(moved).logits[:, k] > 0) != certificate.prediction[:, k]
                    broken += (inside & flipped).sum()
    assert int(broken) == 0


@pytest.mark.parametrize("modality", ["a", "b", None])
def test_radii_of_a_linear_model_are_the_distances(modality):
    torch.manual_seed(0)
    model = CRMTModule(
        {"a": nn.Identity(), "b": nn.Identity()}, 4, in_features={"a": 3, "b": 2}, head=LinearFusion, multi_label=True
    ).double()
    x = {"a": torch.randn(16, 3).double(), "b": torch.randn(16, 2).double()}
    rows = torch.cat([model.head.class_weights[n].detach() for n in ([modality] if modality else "ab")], dim=1)
    wanted = (model(x).logits.abs() / rows.norm(dim=1)).detach()
    certificate = model.certify(x)
    radii = certificate.label_radii([modality] if modality else None)
    assert (radii <= wanted * (1 + 1e-12)).all()
    torch.testing.assert_close(radii, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("level", ["sound", "rigorous"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_attacks_do_not_break_certificates(level, dtype):
    model, x = build(LinearFusion, dtype, 1, (5, 3)), inputs_of((5, 3), 12, dtype)
    if level == "rigorous":
        model = with_fixed_weights(model)
    certificate = model.certify(x, level=level)
    assert certificate.soundness.name == level.upper()
    assert (certificate.radius() > 0).all()
    done = verify_certificate(model, certificate, x, probes=16, steps=15, products=2)
    assert done.samples == 12
    assert done.probes["a + b"] > 12
    too_long = replace(certificate, margins=3 * certificate.margins, soundness=Soundness.ESTIMATED)
    with pytest.raises(
        CertificateViolation, match=r"is estimated to stay of labels \[.*\] under .* makes it labels \["
    ):
        verify_certificate(model, too_long, x, probes=4, steps=30)


@pytest.mark.parametrize("level", ["sound", "rigorous"])
@pytest.mark.parametrize("scale", [1e-5, 1.0, 1e5])
@pytest.mark.parametrize("seed", range(4))
def test_steps_to_the_edge_of_each_label_break_none(level, scale, seed):
    """Linear models in single precision, straight towards the boundary of each label; some weights are 0."""
    torch.manual_seed(seed)
    sizes = {"a": 4, "b": 3}
    rows = {n: scale * torch.randn(5, size) * (torch.rand(5, 1) > 0.2) for n, size in sizes.items()}
    head = FixedFusion(rows, {n: torch.rand(5) for n in sizes}, bias=0.1 * scale * torch.randn(5))
    model = CRMTModule(
        {n: nn.Identity() for n in sizes}, 5, in_features=sizes, head=lambda *_: head, multi_label=True
    ).eval()
    x = {n: torch.randn(50, size) for n, size in sizes.items()}
    certificate = model.certify(x, level=level)
    assert torch.equal(certificate.prediction, model(x).logits > 0)
    # What is sound is so in exact arithmetic, what is rigorous as the model rounds.
    dtype = torch.float32 if level == "rigorous" else torch.float64
    judge, x = copy.deepcopy(model).to(dtype), {n: v.to(dtype) for n, v in x.items()}
    probes = 0
    for names in (["a", "b"], ["a"]):
        radii = certificate.label_radii(names)
        for k in range(5):
            row = torch.cat([model.head.class_weights[n][k].detach().double() for n in names])
            radius = radii[:, k]
            assert ((radius > 1e17) == (row == 0).all()).all()
            if (row == 0).all():
                continue
            signs = torch.where(certificate.prediction[:, k], -1.0, 1.0).double()
            for share in (1 - 1e-7, 1 - 1e-6, 0.99):
                steps = (signs * radius * share / row.norm())[:, None] * row
                parts = dict(zip(names, steps.split([sizes[n] for n in names], dim=1), strict=True))
                moved = {n: (v.double() + parts[n]).to(dtype) if n in parts else v for n, v in x.items()}
                sides = [moved[n].double() - x[n].double() for n in names]
                inside = torch.cat(sides, dim=1).norm(dim=1) <= radius
                kept = (judge(moved).logits[:, k] > 0) == certificate.prediction[:, k]
                assert kept[inside].all()
                probes += int(inside.sum())
    assert probes > 500


@pytest.mark.parametrize("seed", range(3))
def test_no_search_for_a_label_ends_within_its_radius(seed):
    model, x = build(LinearFusion, torch.float64, seed, (5, 3)), inputs_of((5, 3), 10, torch.float64, seed)
    certificate = model.certify(x)
    for k in range(3):
        for names in (None, ["b"]):
            attack = MinimumNorm(Budget(1.0, modalities=names), towards=k, steps=20, restarts=1)
            distance = distance_by(attack, model, x, certificate.prediction)
            assert (distance >= certificate.label_radii(names)[:, k] * (1 - 1e-9)).all()


def test_rigorous_radii_are_no_longer_than_sound_ones_and_hardly_shorter():
    model, x = with_fixed_weights(build(sizes=(5, 3))), inputs_of((5, 3))
    sound, rigorous = model.certify(x).label_radii(), model.certify(x, level="rigorous").label_radii()
    assert (rigorous <= sound).all()
    assert (rigorous > 0.99 * sound - 1e-4).all()


def test_a_label_that_rounding_may_flip_is_not_vouched_for_and_the_others_are():
    model, x = build(dtype=torch.float32, sizes=(5, 3)), inputs_of((5, 3), 4)
    with torch.no_grad():
        model.head.bias[1] -= model(x).logits[2, 1]  # within rounding of 0 for the third sample
    assert model(x).logits[2, 1].abs() < 1e-6
    radii = model.certify(x).label_radii()
    assert (radii == 0).nonzero().tolist() == [[2, 1]]
    assert model.certify(x).radius()[2] == 0


def test_logits_that_are_not_finite_certify_nothing():
    model, x = build(sizes=(5, 3)), inputs_of((5, 3), 4)
    with torch.no_grad():
        model.head.bias[0] = -math.inf
    assert (model.certify(x).label_radii() == 0).all()


def test_a_forward_that_shifts_all_logits_is_refused():
    torch.manual_seed(0)
    inner = build(sizes=(5, 3))
    wrapper = nn.Module()
    wrapper.encoders, wrapper.head = inner.encoders, inner.head
    wrapper.forward = lambda inputs: inner(inputs)._replace(logits=inner(inputs).logits + 10)
    x = inputs_of((5, 3))
    certify_late_fusion(wrapper, x)  # of classes that is the same answer
    with pytest.raises(ValueError, match="must answer head"):
        certify_late_fusion(wrapper, x, multi_label=True)
    wrapper.forward = lambda inputs: inner(inputs)
    assert (certify_late_fusion(wrapper, x, multi_label=True).radius() == inner.certify(x).radius()).all()


def test_estimated_constants_of_labels_are_the_largest_gradients():
    model, x = build(sizes=(5, 3), dtype=torch.float64), inputs_of((5, 3), 6, torch.float64)
    constants = estimate_lipschitz(model, [x], of="labels")
    leaves = {n: v.clone().requires_grad_(True) for n, v in x.items()}
    logits = model(leaves).logits
    for k in range(3):
        gradients = torch.autograd.grad(logits[:, k].sum(), list(leaves.values()), retain_graph=True)
        for name, gradient in zip(leaves, gradients, strict=True):
            assert float(constants.values[name][k]) == pytest.approx(float(gradient.norm(dim=1).max()))
    certificate = model.certify(x, constants)
    assert certificate.soundness is Soundness.ESTIMATED
    assert (certificate.label_radii() >= model.certify(x).label_radii() * (1 - 1e-9)).all()


@pytest.mark.parametrize("missing", ["a", "b"])
def test_labels_without_a_modality(missing):
    model, x = build(sizes=(5, 3)), inputs_of((5, 3))
    certificate = model.evaluation(x).certificate([missing])
    logits = model.head.fuse({n: s for n, s in model(x).scores.items() if n != missing})
    assert torch.equal(certificate.prediction, logits > 0)
    assert (certificate.sensitivities[missing] == 0).all()


def test_labels_of_samples_that_lack_a_modality():
    model, x = build(sizes=(5, 3)), inputs_of((5, 3), 6)
    x["a.present"] = torch.tensor([True, False, True, False, True, True])
    certificate = model.certify(x)
    lacking = ~x["a.present"]
    assert (certificate.sensitivities["a"][lacking] == 0).all()
    assert certificate.label_radii(["a"])[lacking].isinf().all()
    without = model.evaluation(inputs_of((5, 3), 6)).certificate(["a"])
    torch.testing.assert_close(certificate.label_radii()[lacking], without.label_radii()[lacking])


# --- what rests on them


def test_metrics_count_samples_and_labels():
    model, x = build(sizes=(5, 3)), inputs_of((5, 3), 30)
    certificate = model.certify(x)
    target = certificate.prediction.clone()
    target[:10, 0] ^= True
    target[5, 1] ^= True
    radius = float(certificate.label_radii().median())
    samples, labels, means = [], [], []
    for i in range(30):
        right = [bool(p) == bool(y) for p, y in zip(certificate.prediction[i], target[i], strict=True)]
        radii = certificate.label_radii()[i].tolist()
        samples.append(all(right) and min(radii) > radius)
        means.append(min(radii) if all(right) else 0.0)
        labels += [hit and r > radius for hit, r in zip(right, radii, strict=True)]
    accuracy, label_accuracy, mean = CertifiedAccuracy(radius), CertifiedLabelAccuracy(radius), MeanCertifiedRadius()
    for metric in (accuracy, label_accuracy, mean):
        for rows in (slice(0, 7), slice(7, 30)):
            part = replace(
                certificate,
                prediction=certificate.prediction[rows],
                margins=certificate.margins[rows],
                sensitivities={n: s[rows] for n, s in certificate.sensitivities.items()},
            )
            metric.update(part, target[rows].to(torch.uint8))
    assert float(accuracy.compute()) == pytest.approx(sum(samples) / 30)
    assert float(label_accuracy.compute()) == pytest.approx(sum(labels) / 90)
    assert float(mean.compute()) == pytest.approx(sum(means) / 30)
    assert robust_at(certificate, target, radius).tolist() == samples
    assert credited_radius(certificate, target).tolist() == pytest.approx(means)
    assert ((credited_label_radii(certificate, target) == 0) == (certificate.prediction != target)).all()
    with pytest.raises(ValueError, match=r"must be of labels \(B, K\), as the certificate is, got classes"):
        credited_radius(certificate, torch.zeros(30, dtype=torch.long))


@pytest.mark.parametrize("clip", [0.05, None])
def test_the_bound_of_step_2_against_slow_loops(clip):
    head = random_head(2, 3, OrthogonalFusion, dtype=torch.float64)
    output, constants = head(random_features(head, 8)), constants_of(head, "scores")
    target = torch.rand(8, 3, generator=torch.Generator().manual_seed(1)) < 0.5
    wanted = []
    for row, labels in zip(output.logits.tolist(), target.tolist(), strict=True):
        radii = []
        for k, (h, y) in enumerate(zip(row, labels, strict=True)):
            slopes = [slow_sensitivity(head, constants, n, k) for n in ("m0", "m1")]
            radii.append((h if y else -h) / math.hypot(*slopes))
        wanted.append(min(radii))
    assert true_class_radii(output, target, head, constants).tolist() == pytest.approx(wanted)
    clipped = [max(-clip, min(clip, r)) if clip else r for r in wanted]
    objective = "clipped" if clip else "mean"
    loss = integration_objective(output, target, head, constants, objective=objective, clip=clip)
    assert loss.item() == pytest.approx(-sum(clipped) / 8)


def test_the_radius_loss_against_slow_loops():
    head = random_head(2, 3, LinearFusion, dtype=torch.float64)
    output, constants = head(random_features(head, 5)), constants_of(head, "encoder")
    target = torch.rand(5, 3, generator=torch.Generator().manual_seed(1)) < 0.5

    def soft(logits, names, radius):
        total = 0.0
        for row, labels in zip(logits.tolist(), target.tolist(), strict=True):
            exponents = 0.0
            for k, (h, y) in enumerate(zip(row, labels, strict=True)):
                slope = math.hypot(*(slow_sensitivity(head, constants, n, k) for n in names))
                exponents += math.exp(7 * (radius - (h if y else -h) / slope))
            total += math.log(1 + exponents)
        return total / 5

    wanted = soft(output.logits, ["m0", "m1"], 0.3)
    for name in ("m0", "m1"):
        wanted += 0.4 * soft(head.integration_weights[name] * output.scores[name], [name], 0.15)
    loss = radius_loss(output, target, head, constants, radius=0.3, temperature=7, rho=0.4)
    assert loss.item() == pytest.approx(wanted)
