# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Samples that lack modalities: what fills the gaps is never read, and the rest is as if there were none."""

import math
import re
from itertools import combinations

import pytest
import torch
from lightning.pytorch import seed_everything
from support.every_callback import MAKE, head_for
from support.small_model import CLASSES, SIZES, model_of, samples, whole
from torch import nn
from torch.utils.data import DataLoader

from lightning_crmt import (
    CRMTModule,
    LipschitzConstants,
    OrthogonalFusion,
    Soundness,
    certify,
    estimate_lipschitz,
    keep_scores,
    margin_regularization,
    reweight,
)
from lightning_crmt.callbacks import CertifiedRobustness, MissingModalities
from lightning_crmt.certification import certify_late_fusion
from lightning_crmt.data import UCIMultiFeatures
from lightning_crmt.encoders import LipschitzMLP
from lightning_crmt.encoding import encoded
from lightning_crmt.fusion import (
    AttentionFusion,
    CosineFusion,
    FiLMFusion,
    FusionHead,
    GatedFusion,
    LinearFusion,
    MemoryFusion,
)
from lightning_crmt.losses import integration_objective, radius_loss, true_class_radii
from lightning_crmt.methods import Mixup, ModalityDropout, VulnerabilityPenalty
from lightning_crmt.modality import FusionOutput, modalities_of, present_of, with_stand_ins
from lightning_crmt.targets import MixedTarget

HEADS = (OrthogonalFusion, LinearFusion, CosineFusion, GatedFusion, FiLMFusion, AttentionFusion, MemoryFusion)


def presence(names, size, seed=0):
    """Every pattern that leaves something, again and again."""
    subsets = [subset for count in range(1, len(names) + 1) for subset in combinations(names, count)]
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    return {n: torch.tensor([n in subsets[i % len(subsets)] for i in range(size)])[order] for n in names}


def with_presence(inputs, present, filling=0.0):
    filled = {n: torch.where(here[:, None], inputs[n], filling) for n, here in present.items()}
    return inputs | filled | {f"{n}.present": here for n, here in present.items()}


def alone(inputs, row, names):
    return {n: inputs[n][row : row + 1] for n in names}


# What an encoder and a head see.


def test_encoders_see_samples_that_have_the_modality_and_nothing_else():
    seen = []

    def encoder(x, mask):
        seen.append((x, mask))
        return x

    present = torch.tensor([False, True, False, False, True])
    inputs = {"text": torch.arange(10).reshape(5, 2), "text.mask": torch.arange(5), "text.present": present}
    features = encoded({"text": encoder}, inputs)["text"]
    ((x, mask),) = seen
    assert set(mask.tolist()) == {1, 4}
    assert (x == inputs["text"][mask]).all()  # context goes with its sample
    assert (features[present] == inputs["text"][present]).all()


def test_where_no_sample_has_a_modality_the_filling_stays():
    inputs = {"audio": torch.zeros(3, 2), "audio.present": torch.zeros(3, dtype=torch.bool)}
    assert with_stand_ins(inputs, present_of(inputs))["audio"].equal(inputs["audio"])


def test_batch_normalisation_learns_from_samples_that_are_there():
    torch.manual_seed(0)
    model = CRMTModule({"a": nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 4)), "b": nn.Linear(6, 4)}, 3)
    inputs = {"a": 7 + torch.randn(64, 5), "b": torch.randn(64, 6)}
    model(with_presence(inputs, {"a": torch.arange(64) % 2 == 0}))
    mean = model.encoders["a"][0].running_mean / 0.1
    torch.testing.assert_close(mean, inputs["a"][::2].mean(dim=0))


def test_batch_normalisation_learns_nothing_from_a_batch_that_lacks_the_modality():
    model = CRMTModule({"a": nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 4)), "b": nn.Linear(6, 4)}, 3)
    inputs = {"a": torch.full((8, 5), 500.0), "b": torch.randn(8, 6)}
    model(with_presence(inputs, {"a": torch.zeros(8, dtype=torch.bool)}, 500.0))
    assert not model.encoders["a"][0].running_mean.any()
    assert model.encoders["a"][0].training
    model(with_presence(inputs, {"a": torch.arange(8) < 2}, 500.0))
    assert model.encoders["a"][0].running_mean.all()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("names", ["ab", "abc"])
def test_logits_are_those_of_the_modalities_that_a_sample_has(head, names):
    torch.manual_seed(0)
    sizes = {n: SIZES[n] + 3 for n in names}
    # Codes do not stop earlier in one batch than in another.
    settings = {"steps": 30, "tolerance": 0.0} if head is MemoryFusion else {}
    fusion = head(sizes, CLASSES, **settings).double().eval()
    if head is MemoryFusion:
        fusion.fill({n: torch.randn(20, size).double() for n, size in sizes.items()})
    features = {n: torch.randn(28, size, dtype=torch.double) for n, size in sizes.items()}
    present = presence(names, 28)
    output = fusion(features, present)
    assert output.present == present
    whole_scores = fusion(features).scores
    for row in range(28):
        here = [n for n in names if present[n][row]]
        for n in names:
            expected = whole_scores[n][row] if n in here else torch.zeros(CLASSES).double()
            torch.testing.assert_close(output.scores[n][row], expected)
        inner, own = fusion, alone(features, row, names)
        if head is MemoryFusion:
            own, inner = {n: fusion._recall(n, own[n]) for n in names}, fusion.head
        if hasattr(inner, "joint_logits"):
            expected = inner.joint_logits({n: own[n] for n in here})
        elif hasattr(inner, "fuse"):
            expected = inner.fuse({n: inner(own).scores[n] for n in here})
        else:
            expected = sum(inner(own).scores[n] for n in here)
        torch.testing.assert_close(output.logits[row], expected[0])


@pytest.mark.parametrize("head", HEADS)
def test_all_present_is_as_if_nothing_were_said(head):
    torch.manual_seed(0)
    model = CRMTModule({n: nn.Linear(SIZES[n], 8) for n in "ab"}, CLASSES, head=head).double().eval()
    inputs, _ = whole(samples(size=9))
    said = with_presence(inputs, {"b": torch.ones(9, dtype=torch.bool)})
    torch.testing.assert_close(model(said).logits, model(inputs).logits)


def test_a_head_that_knows_nothing_of_presence_says_so_when_it_must_know():
    class Mine(FusionHead):
        def forward(self, features):
            return FusionOutput(sum(features.values()), dict(features), features)

    model = CRMTModule({n: nn.Linear(SIZES[n], 3) for n in "ab"}, 3, head=Mine).double()
    inputs, _ = whole(samples(size=4))
    assert model(inputs).logits.shape == (4, 3)
    with pytest.raises(TypeError, match="head Mine cannot be told: its `forward` must take `present`"):
        model(with_presence(inputs, {"a": torch.arange(4) > 1}))


def test_joint_fusion_needs_something_to_fuse():
    head = GatedFusion({"a": 3, "b": 3}, 2)
    gone = torch.tensor([True, False])
    with pytest.raises(ValueError, match="`present` must leave each sample one of the modalities"):
        head({"a": torch.ones(2, 3), "b": torch.ones(2, 3)}, {"a": gone, "b": gone})


def test_an_encoder_that_does_not_take_its_context_is_named():
    inputs, _ = whole(samples(size=4))
    with pytest.raises(TypeError, match=r"the encoder of 'a' must take .*\['a.attention_mask'\].* masked=\[\]"):
        model_of()({**inputs, "a.attention_mask": torch.ones(4, 5)})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"a.present": torch.ones(4)}, TypeError, "`inputs['a.present']` must be a bool tensor of shape (B,)"),
        ({"a.present": torch.ones(4, 1).bool()}, TypeError, "must be a bool tensor of shape (B,)"),
        ({"a.present": torch.ones(3).bool()}, ValueError, "`inputs` must have one batch size"),
        ({"c.present": torch.ones(4).bool()}, ValueError, "must begin with one of the modalities ['a', 'b']"),
        ({".lengths": torch.ones(4).long()}, ValueError, "must begin with one of the modalities"),
        ({"a.gain.present": torch.ones(4).bool()}, ValueError, "`inputs['a.gain.present']` must have one dot"),
    ],
)
def test_context_that_is_refused(change, error, message):
    inputs, _ = whole(samples(size=4))
    with pytest.raises(error, match=re.escape(message)):
        model_of()({**inputs, **change})


# Losses, against slow loops.


def margins_by_loops(scores, target, present, temperature):
    """As in the formula: over the modalities that a sample has, over the samples that have one."""
    total, counted = 0.0, 0
    for i in range(len(next(iter(scores.values())))):
        here = [m for m in scores if present[m][i]]
        classes = target if isinstance(target, MixedTarget) else MixedTarget(target, target, 1.0)
        first, second, share = classes.first[i], classes.second[i], classes.share
        rivals = [k for k in range(CLASSES) if k not in (first, second)]
        if not here or not rivals:
            continue
        total += math.log(
            sum(
                math.exp(
                    temperature * (scores[m][i][k] - share * scores[m][i][first] - (1 - share) * scores[m][i][second])
                )
                for m in here
                for k in rivals
            )
        )
        counted += 1
    return total / max(counted, 1)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_margins_are_over_the_modalities_that_a_sample_has(mixed, temperature):
    generator = torch.Generator().manual_seed(0)
    scores = {m: torch.randn(30, CLASSES, generator=generator).double().requires_grad_() for m in "abc"}
    target = torch.randint(CLASSES, (30,), generator=generator)
    if mixed:
        target = MixedTarget(target, target[torch.randperm(30, generator=generator)], 0.3)
    present = presence("abc", 30)
    present["a"][3] = present["b"][3] = present["c"][3] = False  # nothing at all: not counted
    loss = margin_regularization(scores, target, temperature, present)
    detached = {m: score.tolist() for m, score in scores.items()}
    assert float(loss.detach()) == pytest.approx(margins_by_loops(detached, target, present, temperature), abs=1e-12)
    gradients = torch.autograd.grad(loss, list(scores.values()))
    for gradient, here in zip(gradients, present.values(), strict=True):
        assert gradient.isfinite().all()
        assert not gradient[~here].any()
        assert gradient[here].any()


def test_margins_without_any_sample_are_zero_with_a_graph():
    scores = {"a": torch.randn(2, 3, requires_grad=True)}
    loss = margin_regularization(scores, torch.tensor([0, 1]), present={"a": torch.zeros(2, dtype=torch.bool)})
    (gradient,) = torch.autograd.grad(loss, scores["a"])
    assert loss == 0
    assert not gradient.any()


def constants_of(names):
    values = {n: torch.tensor(0.5 + i, dtype=torch.double) for i, n in enumerate(names)}
    return LipschitzConstants(values, of="encoder", soundness=Soundness.SOUND)


def radii_by_loops(output, target, head, constants, rows):
    weights = {name: rows.detach() for name, rows in head.class_weights.items()}
    radii = []
    for i in rows:
        here = [m for m in constants.values if m not in output.present or output.present[m][i]]
        y, each = int(target[i]), []
        for j in range(CLASSES):
            if j != y:
                slope = math.sqrt(
                    sum(float(constants.values[m] * (weights[m][y] - weights[m][j]).norm()) ** 2 for m in here)
                )
                margin = float((output.logits[i, y] - output.logits[i, j]).detach())
                each.append(margin / slope if here else math.copysign(math.inf, margin))
        radii.append(min(each))
    return radii


@pytest.mark.parametrize("names", ["ab", "abc"])
def test_what_a_sample_lacks_cannot_change_in_its_bound(names):
    torch.manual_seed(0)
    model = model_of(names, head=OrthogonalFusion)
    inputs, target = whole(samples(names, size=28))
    output = model(with_presence(inputs, presence(names, 28)))
    constants = constants_of(names)
    found = true_class_radii(output, target, model.head, constants).detach()
    assert found.tolist() == pytest.approx(radii_by_loops(output, target, model.head, constants, range(28)))
    objective = integration_objective(output, target, model.head, constants, clip=0.05)
    assert objective.item() == pytest.approx(-float(found.clamp(-0.05, 0.05).mean()))


def test_a_sample_with_nothing_that_could_change_is_no_part_of_step_2():
    torch.manual_seed(0)
    model = model_of("ab", head=OrthogonalFusion)
    inputs, target = whole(samples("ab", size=6))
    only = torch.tensor([True, True, True, False, False, False])
    output = model(with_presence(inputs, {"a": only}))
    of_a = LipschitzConstants({"a": torch.tensor(2.0).double()}, of="encoder", soundness=Soundness.SOUND, clean=("b",))
    radii = true_class_radii(output, target, model.head, of_a)
    assert radii[only].isfinite().all()
    assert radii[~only].isinf().all()
    half = FusionOutput(output.logits[:3], {n: s[:3] for n, s in output.scores.items()})
    for objective in ("mean", "clipped"):
        settings = {"objective": objective, "clip": 0.1}
        assert integration_objective(output, target, model.head, of_a, **settings).item() == pytest.approx(
            integration_objective(half, target[:3], model.head, of_a, **settings).item()
        )
    loss = radius_loss(model(with_presence(inputs, {"b": only})), target, model.head, constants_of("ab"))
    assert loss.isfinite()


def test_step_2_on_samples_that_lack_modalities():
    torch.manual_seed(0)
    model = model_of("ab", head=OrthogonalFusion)
    inputs, target = whole(samples("ab", size=120))
    present = presence("ab", 120)
    batches = [
        ({n: value[rows] for n, value in with_presence(inputs, present, 99.0).items()}, target[rows])
        for rows in torch.arange(120).split(50)
    ]
    kept = keep_scores(model, batches)
    assert all(kept.present[n].equal(present[n]) for n in "ab")
    assert all(not kept.scores[n][~present[n]].any() for n in "ab")
    done = reweight(model.head, *kept, epochs=3)
    # What is kept of absent modalities is not read.
    garbage = kept._replace(scores={n: s.masked_fill(~present[n][:, None], 7.0) for n, s in kept.scores.items()})
    again = reweight(model.head, *garbage, epochs=3)
    assert done.objective == again.objective
    assert done.objective[-1] < done.objective[0]
    here = [{n: value[present[n]] for n, value in inputs.items()}[n] for n in "ab"]
    for n, own in zip("ab", here, strict=True):
        slopes = estimate_lipschitz(
            model, [{m: own if m == n else torch.zeros(len(own), SIZES[m]).double() for m in "ab"}]
        )
        torch.testing.assert_close(kept.constants.values[n], slopes.values[n])


# Certificates.


@pytest.mark.parametrize("names", ["ab", "abc"])
def test_a_certificate_is_that_of_the_fusion_without_what_a_sample_lacks(names):
    torch.manual_seed(0)
    model = CRMTModule({n: LipschitzMLP(SIZES[n], 8, (10,)) for n in names}, CLASSES).eval()
    inputs = {n: torch.randn(28, SIZES[n]) for n in names}
    present = presence(names, 28)
    certificate = model.certify(with_presence(inputs, present, 1e6))
    assert certificate.soundness is Soundness.SOUND
    for row in range(28):
        missing = [n for n in names if not present[n][row]]
        one = certify_late_fusion(model, alone(inputs, row, names), missing=missing)
        assert one.prediction == certificate.prediction[row]
        torch.testing.assert_close(certificate.radius()[row], one.radius()[0], rtol=1e-5, atol=1e-9)
        for n in names:
            expected = math.inf if n in missing else float(one.radius([n])[0])
            assert float(certificate.radius([n])[row]) == pytest.approx(expected, rel=1e-5)
    dropped = certify_late_fusion(model, with_presence(inputs, present), missing=["a"])
    torch.testing.assert_close(
        dropped.radius(), model.certify(with_presence(inputs, present | {"a": torch.zeros(28).bool()})).radius()
    )


def test_an_evaluation_keeps_nothing_of_the_caller():
    torch.manual_seed(0)
    model = CRMTModule({n: nn.Identity() if n == "a" else nn.Linear(6, 8) for n in "ab"}, CLASSES, in_features={"a": 5})
    model = model.double().eval()
    inputs = with_presence(whole(samples("ab", size=8))[0], presence("ab", 8))
    evaluation = model.evaluation(inputs)
    before = evaluation.certificate().radius()
    for value in inputs.values():
        value.zero_()
    assert evaluation.certificate().radius().equal(before)


def test_what_a_fit_under_ddp_leaves_can_be_certified():
    inputs, _ = whole(samples("ab", size=8))
    model = model_of("ab").eval()
    model.forward = model.forward  # Lightning takes it away for a step, and gives it back to the object
    assert "forward" in vars(model)
    assert model.certify(inputs).soundness is Soundness.SOUND
    other = model_of("ab", seed=1).eval()
    for forward in (lambda inputs: None, other.forward, lambda inputs: CRMTModule.forward(model, inputs)):
        model.forward = forward
        with pytest.raises(ValueError, match="must be that of CRMTMixin"):
            model.certify(inputs)


def test_estimates_know_what_a_sample_lacks():
    torch.manual_seed(0)
    model = model_of("ab", head=OrthogonalFusion).eval()
    inputs, _ = whole(samples("ab", size=12))
    said = with_presence(inputs, presence("ab", 12))
    output = model(said)
    certificate = certify(output, model.head, estimate_lipschitz(model, [said]))
    for n in "ab":
        absent = ~said[f"{n}.present"]
        assert certificate.radius([n])[absent].isinf().all()
        assert certificate.radius([n])[~absent].isfinite().all()


def test_rigorous_certificates_are_of_whole_samples():
    from lightning_crmt.layers import with_fixed_weights

    model = with_fixed_weights(CRMTModule({n: nn.Linear(SIZES[n], 8) for n in "ab"}, CLASSES).eval())
    inputs = {n: torch.randn(3, SIZES[n]) for n in "ab"}
    assert model.certify(inputs, level="rigorous").soundness is Soundness.RIGOROUS
    with pytest.raises(ValueError, match="must have all modalities in every sample at level 'rigorous'"):
        model.certify(with_presence(inputs, {"a": torch.tensor([True, False, True])}), level="rigorous")


def test_what_encoders_do_with_context_is_not_certified():
    class Masked(nn.Linear):
        def forward(self, x, mask=None):
            return super().forward(x if mask is None else x * mask)

    model = CRMTModule({"a": Masked(5, 8), "b": nn.Linear(6, 8)}, CLASSES)
    inputs = {"a": torch.randn(3, 5), "b": torch.randn(3, 6), "a.mask": torch.ones(3, 5)}
    with pytest.raises(ValueError, match=re.escape("`inputs` must be modalities alone to be certified")):
        model.certify(inputs)
    assert certify(model(inputs), model.head, estimate_lipschitz(model, [inputs])).radius().shape == (3,)


# Training and observers: nothing depends on what fills the gaps.


class Gaps(UCIMultiFeatures):
    """Half of the samples lack one view, or with ``both`` none does in a batch."""

    filling: float | None = 0.0

    def setup(self, stage=None):
        super().setup(stage)
        for part in self.parts.values():
            present = presence(("fou", "mor"), len(part.target), seed=len(part.target))
            noise = torch.Generator().manual_seed(1)
            for name in ("fou", "mor"):
                value = part.inputs[name]
                filling = torch.randn(value.shape, generator=noise) * 9 if self.filling is None else self.filling
                part.inputs[name] = torch.where(present[name][:, None], value, filling)
                part.inputs[f"{name}.present"] = present[name]


@pytest.mark.parametrize("name", sorted(MAKE))
def test_no_callback_reads_what_fills_the_gaps(make_trainer, make_model, name):
    weights, numbers = [], []
    for filling in (0.0, None):
        data = Gaps(views=("fou", "mor"), batch_size=200)
        data.filling = filling
        callback = MAKE[name]()
        if name in ("CertifiedRobustness", "RadiusTraining"):
            seed_everything(0, verbose=False)
            model = CRMTModule({"fou": LipschitzMLP(76, 16), "mor": LipschitzMLP(6, 16)}, num_classes=10)
        else:
            model = make_model(head=head_for(name))
        trainer = make_trainer(callback)
        trainer.fit(model, data)
        weights.append(model.state_dict())
        numbers.append({key: float(value) for key, value in trainer.callback_metrics.items()})
    assert weights[0].keys() == weights[1].keys()
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key]), key
    assert numbers[0].keys() == numbers[1].keys()
    for key, value in numbers[0].items():
        assert value == pytest.approx(numbers[1][key], nan_ok=True), key
        assert math.isfinite(value), key


def test_numbers_of_one_modality_are_over_the_samples_that_have_it(make_trainer, make_model):
    data = Gaps(views=("fou", "mor"), batch_size=200)
    model = make_model()
    trainer = make_trainer(MissingModalities(fill="dropped"), CertifiedRobustness([0.1], constants="estimated"))
    (logged,) = trainer.test(model, data, verbose=False)
    part = data.parts["test"]
    with torch.no_grad():
        output = model.eval()(part.inputs)
    for name in ("fou", "mor"):
        here = part.inputs[f"{name}.present"]
        right = output.scores[name].argmax(1) == part.target
        assert logged[f"test/accuracy/{name}"] == pytest.approx(float(right[here].float().mean()))
        other = {"fou": "mor", "mor": "fou"}[name]
        alone_here = here & ~part.inputs[f"{other}.present"]
        right = output.logits.argmax(1) == part.target
        assert logged[f"test/accuracy_present/{name}"] == pytest.approx(float(right[alone_here].float().mean()))
        # Without the other, of those that have both.
        only = model.head.fuse({name: output.scores[name]}).argmax(1) == part.target
        both = here & part.inputs[f"{other}.present"]
        assert logged[f"test/accuracy_dropped/{other}"] == pytest.approx(float(only[both].float().mean()))
        assert logged["test/accuracy_dropped/worst"] <= logged[f"test/accuracy_dropped/{other}"]
        assert math.isfinite(logged[f"test/estimated_radius/{name}"])
    everything = part.inputs["fou.present"] & part.inputs["mor.present"]
    assert logged["test/accuracy_present/fou+mor"] == pytest.approx(float(right[everything].float().mean()))


def test_counts_are_no_whole_numbers(monkeypatch):
    """Of whole ones Lightning takes the mean over processes by a division that rounds down."""
    inputs, target = whole(samples("ab", size=40))
    model, sizes = model_of("ab"), {}

    def log_dict(numbers, batch_size, sync_dist):
        sizes.update(dict.fromkeys(numbers, batch_size))

    monkeypatch.setattr(model, "log_dict", log_dict)
    model.validation_step((with_presence(inputs, {"a": torch.arange(40) < 3}), target), 0)
    assert sizes == {"val/loss": 40.0, "val/accuracy/joint": 40.0, "val/accuracy/a": 3.0, "val/accuracy/b": 40.0}
    assert {type(size) for size in sizes.values()} == {float}


def test_a_batch_in_which_nobody_has_a_modality_trains_and_evaluates(make_trainer):
    inputs, target = whole(samples("ab", size=40))
    gone = torch.arange(40) >= 20  # absent from the whole first batch
    said = with_presence(inputs, {"a": gone})
    rows = [({n: v[i] for n, v in said.items()}, target[i]) for i in range(40)]
    loader = DataLoader(rows, batch_size=20)
    model = model_of("ab", rho=0.5, lr=0.1)
    trainer = make_trainer()
    trainer.fit(model, loader, loader)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert all(math.isfinite(value) for value in trainer.callback_metrics.values())


@pytest.mark.parametrize("head", HEADS)
def test_every_parameter_has_a_gradient_where_nobody_has_a_modality(head):
    """Or else distributed training waits for it for ever."""
    torch.manual_seed(0)
    model = CRMTModule({n: nn.Linear(SIZES[n], 8) for n in "ab"}, CLASSES, head=head, rho=0.0).double()
    inputs, target = whole(samples("ab", size=6))
    model.crmt_loss(model(with_presence(inputs, {"a": torch.zeros(6, dtype=torch.bool)})), target).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not any(parameter.grad.any() for parameter in model.encoders["a"].parameters())
    assert any(parameter.grad.any() for parameter in model.encoders["b"].parameters())


@pytest.mark.parametrize("head", HEADS)
def test_a_penalty_of_features_that_nobody_has(head):
    torch.manual_seed(0)
    model = CRMTModule({n: nn.Linear(SIZES[n], 8) for n in "ab"}, CLASSES, head=head).double()
    inputs, target = whole(samples("ab", size=6))
    method = VulnerabilityPenalty(0.5)
    output = model(with_presence(inputs, {"a": torch.zeros(6, dtype=torch.bool)}))
    assert method.term(model, output, target).isfinite()


@pytest.mark.parametrize("silent", [0, 1])
def test_patterns_are_of_all_batches(make_trainer, silent):
    inputs, target = whole(samples("ab", size=40))
    said = with_presence(inputs, {"a": torch.arange(40) % 4 != 0})
    batches = [({n: v[rows] for n, v in said.items()}, target[rows]) for rows in torch.arange(40).split(20)]
    batches[silent] = ({n: inputs[n][20 * silent : 20 * silent + 20] for n in "ab"}, batches[silent][1])
    model = model_of("ab").eval()
    callback = MissingModalities(fill="dropped")
    (logged,) = make_trainer(callback).validate(model, DataLoader(batches, batch_size=None), verbose=False)
    right = {"b": [], "a+b": []}
    for each, classes in batches:
        hits = model(each).logits.argmax(1) == classes
        here = each.get("a.present", torch.ones(20, dtype=torch.bool))
        right["b"].append(hits[~here])
        right["a+b"].append(hits[here])
    for name, hits in right.items():
        assert logged[f"val/accuracy_present/{name}"] == pytest.approx(float(torch.cat(hits).float().mean()))
    (logged,) = make_trainer(callback).validate(model, samples("ab"), verbose=False)
    assert not [key for key in logged if "present" in key]


# Methods that change presence.


def test_a_mixture_has_the_modalities_that_both_samples_have():
    torch.manual_seed(0)
    inputs, target = whole(samples("ab", size=200))
    said = with_presence(inputs, presence("ab", 200))
    mixed, both = Mixup().transform(None, said, target)
    assert list(mixed) == list(said)
    stayed = 0
    for row in range(200):
        candidates = [
            other
            for other in range(200)
            if all(
                torch.allclose(both.share * said[n][row] + (1 - both.share) * said[n][other], mixed[n][row])
                for n in "ab"
            )
        ]
        assert len(candidates) == 1
        (other,) = candidates
        stayed += other == row
        assert both.second[row] == target[other]
        for n in "ab":
            assert bool(mixed[f"{n}.present"][row]) == bool(said[f"{n}.present"][row] and said[f"{n}.present"][other])
        assert any(mixed[f"{n}.present"][row] for n in "ab")
    assert 10 < stayed < 100  # those that have nothing in common


@pytest.mark.parametrize("probability", [0.3, {"a": 0.9, "b": 0.0}])
def test_dropped_modalities_are_absent(make_trainer, probability):
    torch.manual_seed(0)
    inputs, target = whole(samples("ab", size=5000))
    said = with_presence(inputs, {"b": torch.arange(5000) % 2 == 0})
    method = ModalityDropout(probability)
    found, same = method.transform(model_of("ab"), said, target)
    assert same is target
    assert all(found[n] is said[n] for n in "ab")
    a, b = found["a.present"], found["b.present"]
    assert (a | b).all()
    assert not b[~said["b.present"]].any()
    has = said["b.present"]
    p, q = (probability, probability) if isinstance(probability, float) else (0.9, 0.0)
    assert (~a)[has].float().mean().item() == pytest.approx(p * (1 - q) / (1 - p * q), abs=0.03)
    assert a[~has].all()  # nothing else would be left
    assert list(modalities_of(found)) == ["a", "b"]
