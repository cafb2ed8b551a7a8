# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Smoothed classifiers, against linear models, whose smoothed radius is known exactly."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from lightning_crmt import (
    CRMTModule,
    LinearFusion,
    NoBoundError,
    SmoothedCertificate,
    SmoothedClassifier,
    Soundness,
    encoder_bounds,
)
from lightning_crmt.encoders import MLP, LipschitzMLP
from lightning_crmt.fusion import AttentionFusion

SIZES = {"audio": 2, "image": 3}


def few_errors(wrong, tried, alpha):
    """Whether so many errors may happen at level alpha: one-sided binomial test at 1 %."""
    return stats.binom.sf(wrong - 1, tried, alpha) > 0.01


def linear_case(sigma, samples, seed=0, low=0.5, high=2.5):
    """A linear model of two classes, inputs, and their radii of ``low`` to ``high`` in units of the noise."""
    torch.manual_seed(seed)
    weight = {name: torch.randn(size, dtype=torch.float64) for name, size in SIZES.items()}
    inputs = {name: torch.randn(samples, size, dtype=torch.float64) for name, size in SIZES.items()}
    spread = math.sqrt(sum(sigma.get(name, 0) ** 2 * float(w @ w) for name, w in weight.items()))
    wanted = torch.rand(samples, dtype=torch.float64) * (high - low) + low
    margin = sum(inputs[name] @ w for name, w in weight.items())
    inputs = {name: x * (wanted * spread / margin.abs())[:, None] for name, x in inputs.items()}

    def model(inputs):
        margin = sum(inputs[name] @ w for name, w in weight.items())
        return torch.stack([margin, -margin], dim=1)

    return model, inputs, wanted


CASES = {
    "isotropic": {"audio": 0.5, "image": 0.5},
    "anisotropic": {"audio": 0.2, "image": 1.0},
    "trusted": {"image": 0.3},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_radii_of_linear_models_are_below_the_true_ones_and_close_to_them(case):
    sigma, alpha = CASES[case], 0.05
    model, inputs, true = linear_case(sigma, 2000)
    certificate = SmoothedClassifier(model, sigma, alpha=alpha).certify(inputs)
    margin = model(inputs)[:, 0]
    assert (certificate.prediction == (margin < 0).long()).all()
    sets = [list(sigma), *([name] for name in sigma)]
    for names in sets:
        truth = true * min(sigma[name] for name in names)
        radius = certificate.radius(names)
        assert few_errors(int((radius > truth).sum()), len(truth), alpha)
        assert float((radius / truth).mean()) > 0.95
    budget = {name: s * (1 + place) for place, (name, s) in enumerate(sigma.items())}
    length = math.sqrt(sum((budget[name] / s) ** 2 for name, s in sigma.items()))
    # As large as the truth allows, the budget is tolerated by mistake only; at 9/10 of that, nearly always.
    exact = certificate.tolerates({name: true / length * each for name, each in budget.items()})
    assert few_errors(int(exact.sum()), len(true), alpha)
    assert (
        certificate.tolerates({name: 0.9 * true / length * each for name, each in budget.items()}).double().mean() > 0.9
    )


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_sequential_tests_are_rarely_wrong_at_the_very_threshold(case):
    """Every sample's true radius is the one that is asked for, so that each certificate of it is wrong."""
    sigma, alpha = CASES[case], 0.05
    model, inputs, true = linear_case(sigma, 2000, seed=1, low=1, high=1)
    least = min(sigma.values())
    smoothed = SmoothedClassifier(model, sigma, alpha=alpha, max_draws=3000)
    certificate = smoothed.certify(inputs, radii=[least])
    assert few_errors(int((certificate.radius() > least * (1 - 1e-12)).sum()), len(true), alpha)


def test_sequential_tests_decide_what_is_asked_with_few_draws():
    sigma = {"audio": 0.5, "image": 0.25}
    model, inputs, true = linear_case(sigma, 400, seed=2)
    asked = [0.2, 0.4]
    certificate = SmoothedClassifier(model, sigma).certify(inputs, radii=asked, budgets=[{"audio": 0.3, "image": 0.3}])
    for radius in asked:
        clear = (true * 0.25 - radius).abs() > 0.06
        assert ((certificate.radius() > radius) == (true * 0.25 > radius))[clear].all()
    length = math.hypot(0.3 / 0.5, 0.3 / 0.25)
    clear = (true - length).abs() > 0.2
    assert (certificate.tolerates({"audio": 0.3, "image": 0.3}) == (true > length))[clear].all()
    assert certificate.draws.double().mean() < 5000
    assert certificate.draws.max() <= 10_064
    assert certificate.draws.min() < 500


def test_sequential_tests_answer_as_fixed_draws_do_with_a_fraction_of_them():
    model, inputs, _ = linear_case({"audio": 0.5}, 500, seed=5, low=0.2, high=3)
    smoothed = SmoothedClassifier(model, {"audio": 0.5})
    asked = [0.25, 0.5, 0.75]
    sequential, fixed = smoothed.certify(inputs, radii=asked), smoothed.certify(inputs)
    for radius in asked:
        differ = (sequential.radius() > radius) != (fixed.radius() > radius)
        assert differ.double().mean() <= 0.01
    assert 5 * sequential.draws.double().mean() < fixed.draws.double().mean()


def test_a_radius_that_no_draws_can_certify_costs_nothing():
    model, inputs, _ = linear_case({"audio": 0.5}, 20, seed=6)
    certificate = SmoothedClassifier(model, 0.5).certify(inputs, radii=[5.0])
    assert certificate.draws.max() < 2000


def test_a_sample_has_the_same_certificate_in_any_batch():
    sigma = {"audio": 0.5, "image": 0.25}
    model, inputs, _ = linear_case(sigma, 24, seed=3)
    whole = SmoothedClassifier(model, sigma, max_draws=1000).certify(inputs, radii=[0.2])
    fixed = SmoothedClassifier(model, sigma, max_draws=1000).certify(inputs)
    answers = SmoothedClassifier(model, sigma).predict(inputs)
    for size, rows in ((1, 64), (5, 100), (24, 4096)):
        smoothed = SmoothedClassifier(model, sigma, max_draws=1000, batch_size=rows)
        for first in range(0, 24, size):
            part = {name: x[first : first + size].flip(0) for name, x in inputs.items()}
            certificate = smoothed.certify(part, radii=[0.2])
            assert torch.equal(certificate.lower.flip(0), whole.lower[first : first + size])
            assert torch.equal(certificate.draws.flip(0), whole.draws[first : first + size])
            assert torch.equal(smoothed.certify(part).lower.flip(0), fixed.lower[first : first + size])
            assert torch.equal(smoothed.predict(part).flip(0), answers[first : first + size])
    other = SmoothedClassifier(model, sigma, max_draws=1000, seed=1).certify(inputs)
    assert not torch.equal(other.lower, fixed.lower)


def test_noise_is_of_the_stated_spread_and_independent():
    seen = []

    def model(inputs):
        seen.append({name: value.clone() for name, value in inputs.items()})
        return torch.stack([inputs["audio"][:, 0], -inputs["audio"][:, 0]], dim=1)

    inputs = {"audio": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "image": torch.zeros(2, 3), "audio.gain": torch.ones(2)}
    SmoothedClassifier(model, {"audio": 0.5}, max_draws=6000).certify(inputs)
    # The model is asked three times to see that it may be smoothed, and then for the draws that select.
    audio = torch.cat([each["audio"] for each in seen[4:]]).reshape(2, -1, 2).double()
    assert audio.shape[1] == 6000
    noise = (audio - inputs["audio"].double()[:, None]) / 0.5
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 0.001
    correlations = np.corrcoef(noise.permute(0, 2, 1).reshape(4, -1).numpy())[np.triu_indices(4, 1)]
    assert abs(correlations).max() < 0.06
    assert sum(len(each["audio"]) for each in seen[3:]) == 2 * 6064
    assert all(not each["image"].any() and each["audio.gain"].eq(1).all() for each in seen[3:])


def test_the_model_is_left_as_it_was():
    module = CRMTModule({"audio": nn.Sequential(MLP(2, 4), nn.Dropout(), nn.BatchNorm1d(4)), "image": MLP(3, 4)}, 3)
    module.train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    certificate = SmoothedClassifier(module, 0.1, max_draws=200).certify(
        {"audio": torch.randn(4, 2, generator=torch.Generator().manual_seed(0)), "image": torch.ones(4, 3)}
    )
    assert torch.equal(torch.rand(3), expected)
    assert module.training
    assert module.encoders["audio"][1].training
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert isinstance(certificate, SmoothedCertificate)
    assert certificate.soundness is Soundness.PROBABILISTIC
    assert certificate.soundness.label == "probably_certified"
    assert certificate.num_classes == 3


def test_more_classes_and_answers_that_are_none():
    logits = torch.tensor([[5.0, 0.0, 0.0], [0.0, 0.0, 0.0]])

    def model(inputs):
        answers = logits[0].expand(len(inputs["audio"]), 3).clone()
        answers[inputs["audio"][:, 0] > 0] = torch.nan
        return answers

    smoothed = SmoothedClassifier(model, 1.0, max_draws=2000)
    inputs = {"audio": torch.tensor([[-1.0], [0.0], [1.0]])}
    certificate = smoothed.certify(inputs)
    assert certificate.prediction[[0, 2]].tolist() == [0, -1]
    assert certificate.lower[0] == pytest.approx(stats.norm.cdf(1), abs=0.03)
    assert certificate.lower[1] == pytest.approx(0.5, abs=0.05)
    assert certificate.radius()[2] == 0
    assert not certificate.tolerates({"audio": 0.0})[2]
    assert certificate.expected_wrong == pytest.approx(0.001 * len(certificate.prediction))


def test_predictions_abstain_where_two_classes_are_equally_frequent():
    def model(inputs):
        x = inputs["audio"][:, 0]
        return torch.stack([x, -x, torch.full_like(x, -9.0)], dim=1)

    smoothed = SmoothedClassifier(model, 1.0, max_draws=3000)
    assert smoothed.predict({"audio": torch.tensor([[0.0], [0.5], [-0.5]])}).tolist() == [-1, 0, 1]


def test_predictions_need_no_majority():
    """40 % of draws answer class 1, 30 % each of two others: the most frequent class leads, without a radius."""

    def model(inputs):
        u = torch.special.ndtr(inputs["audio"][:, 0])
        return nn.functional.one_hot((u > 0.3).long() + (u > 0.7).long(), 3).double()

    smoothed = SmoothedClassifier(model, 1.0)
    inputs = {"audio": torch.tensor([[0.0]])}
    assert smoothed.predict(inputs).tolist() == [1]
    assert smoothed.certify(inputs, radii=[0.1]).prediction.tolist() == [-1]


def module_of(kind=LinearFusion):
    torch.manual_seed(0)
    return CRMTModule({"audio": MLP(2, 4), "image": MLP(3, 4)}, 3, head=kind)


@pytest.mark.parametrize("kind", [LinearFusion, AttentionFusion])
def test_samples_without_a_modality_have_radii_of_the_others(kind):
    module, present = module_of(kind), torch.tensor([True, False, False])
    inputs = {"audio": torch.randn(3, 2), "image": torch.randn(3, 3), "audio.present": present}
    smoothed = SmoothedClassifier(module, {"audio": 0.1, "image": 0.4}, max_draws=500)
    certificate = smoothed.certify(inputs)
    filled = {**inputs, "audio": torch.where(present[:, None], inputs["audio"], 7.0)}
    again = smoothed.certify(filled)
    assert torch.equal(certificate.lower, again.lower)
    assert torch.equal(certificate.radius(), again.radius())
    assert (certificate.radius()[1:] == certificate.radius(["image"])[1:]).all()
    assert certificate.radius(["audio"])[1:][~certificate.abstained[1:]].isinf().all()
    alone = smoothed.certify({name: value for name, value in inputs.items() if "." not in name}, missing=["audio"])
    assert torch.allclose(alone.lower[1:], certificate.lower[1:], atol=1e-3)
    assert alone.missing == ("audio",)
    assert list(alone.sigma) == ["image"]
    with pytest.raises(ValueError, match="among \\['image'\\]"):
        alone.radius(["audio"])


def test_a_model_that_does_not_heed_that_a_modality_is_missing_is_refused():
    def model(inputs):
        return torch.cat([inputs["audio"], inputs["image"]], dim=1)

    inputs = {"audio": torch.randn(2, 2), "image": torch.randn(2, 3)}
    with pytest.raises(ValueError, match=r"`missing` must lack only .*reads it nevertheless"):
        SmoothedClassifier(model, 0.1).certify(inputs, missing=["audio"])


class Encoded(nn.Module):
    """Linear encoders of known norm before a linear head: all is linear, so that the radius is known."""

    def __init__(self, head=None):
        super().__init__()
        torch.manual_seed(1)
        self.encoders = nn.ModuleDict({name: nn.Linear(size, 4, bias=False) for name, size in SIZES.items()})
        for layer, norm in zip(self.encoders.values(), (3.0, 0.5), strict=True):
            layer.weight.data *= norm / torch.linalg.matrix_norm(layer.weight.data, 2)
        self.head = head or LinearFusion({"audio": 4, "image": 4}, num_classes=2)
        self.double()


def test_noise_at_features_has_radii_in_units_of_the_inputs():
    model, sigma = Encoded(), {"audio": 0.6, "image": 0.2}
    inputs = {name: torch.randn(60, size, dtype=torch.float64) for name, size in SIZES.items()}
    certificate = SmoothedClassifier(model, sigma, at="features", alpha=0.01).certify(inputs)
    assert certificate.sigma["audio"][0] == pytest.approx(0.2, rel=1e-5)
    assert certificate.sigma["image"][0] == pytest.approx(0.4, rel=1e-5)
    rows = {name: (w[1] - w[0]).detach() for name, w in model.head.class_weights.items()}
    features = {name: model.encoders[name](x).detach() for name, x in inputs.items()}
    margin = sum(z @ rows[name] for name, z in features.items()) + model.head.bias.diff().detach()
    spread = math.sqrt(sum((sigma[name] * float(row.norm())) ** 2 for name, row in rows.items()))
    whitened = stats.norm.ppf(certificate.lower.numpy())
    assert few_errors(int((whitened > (margin.abs() / spread).numpy()).sum()), 60, 0.01)
    # And the true radius of the linear model, over all modalities, is never less than what is certified.
    slope = torch.cat([rows[name] @ model.encoders[name].weight for name in SIZES]).norm()
    assert few_errors(int((certificate.radius() > margin.abs() / slope).sum()), 60, 0.01)


def test_noise_at_features_takes_any_head_and_only_bounded_encoders():
    module = CRMTModule({"audio": LipschitzMLP(2, 4), "image": MLP(3, 4)}, 3, head=AttentionFusion)
    inputs = {"audio": torch.randn(5, 2), "image": torch.randn(5, 3)}
    certificate = SmoothedClassifier(module, 0.5, at="features", max_draws=500).certify(inputs)
    bound = encoder_bounds(module.encoders, {"audio": (2,), "image": (3,)}).values["image"]
    assert certificate.sigma["image"][0] == pytest.approx(0.5 / float(bound))
    module.encoders["image"] = nn.Sequential(nn.Linear(3, 4), nn.Softmax(dim=1))
    with pytest.raises(NoBoundError, match="Softmax"):
        SmoothedClassifier(module, 0.5, at="features").certify(inputs)
    trusted = SmoothedClassifier(module, {"audio": 0.5}, at="features", max_draws=500).certify(inputs)
    assert list(trusted.sigma) == ["audio"]


def test_a_model_in_half_precision_gets_noise_drawn_in_single():
    seen = []

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, inputs):
            seen.append(inputs["audio"])
            return self.layer(inputs["audio"])

    model = Half().bfloat16()
    inputs = {"audio": torch.randn(3, 2)}
    certificate = SmoothedClassifier(model, 0.5, max_draws=256).certify(inputs)
    assert all(each.dtype is torch.bfloat16 for each in seen)
    assert certificate.radius().dtype is torch.float64
    seen.clear()
    wide = SmoothedClassifier(lambda x: model({"audio": x["audio"].bfloat16()}), 0.5, max_draws=256).certify(inputs)
    assert torch.equal(wide.lower, certificate.lower), "the noise is the same"


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"sigma": 0.0}, ValueError, "`sigma` must be at least 0 and finite, and above 0 for a modality, got 0.0"),
        ({"sigma": {"audio": float("nan")}}, ValueError, "`sigma` must be at least 0"),
        ({"sigma": "big"}, TypeError, "`sigma` must be a number"),
        ({"sigma": {"sound": 0.1}}, ValueError, "`sigma` must name modalities among ['audio', 'image'], got ['sound']"),
        ({"sigma": 0.1, "alpha": 0.3}, ValueError, "`alpha` must be above 0 and at most 0.25, got 0.3"),
        ({"sigma": 0.1, "alpha": 0.0}, ValueError, "`alpha` must be above 0"),
        ({"sigma": 0.1, "max_draws": 0}, ValueError, "`max_draws` must be at least 1, got 0"),
        ({"sigma": 0.1, "batch_size": 10}, ValueError, "`batch_size` must be at least 64, got 10"),
        ({"sigma": 0.1, "at": "heads"}, ValueError, "`at` must be 'inputs' or 'features', got 'heads'"),
        (
            {"sigma": 0.1, "at": "features"},
            TypeError,
            "`model` must have `encoders`, by modality, and a `head`",
        ),
    ],
)
def test_bad_settings_are_named(settings, error, message):
    inputs = {"audio": torch.zeros(1, 2), "image": torch.zeros(1, 2)}
    with pytest.raises(error) as caught:
        SmoothedClassifier(lambda inputs: inputs["audio"], **settings).certify(inputs)
    assert message in str(caught.value)


def test_bad_inputs_and_claims_are_named():
    smoothed = SmoothedClassifier(lambda inputs: inputs["audio"], {"audio": 0.1}, max_draws=64)
    good = {"audio": torch.zeros(2, 2), "image": torch.zeros(2, 2)}
    with pytest.raises(ValueError, match="finite"):
        smoothed.certify({"audio": torch.full((2, 2), torch.nan)})
    with pytest.raises(TypeError, match="must be of real numbers"):
        smoothed.certify({"audio": torch.zeros(2, 2, dtype=torch.long)})
    with pytest.raises(ValueError, match="`radii` must be at least 0"):
        smoothed.certify(good, radii=[-0.1])
    with pytest.raises(TypeError, match="`radii` must be a list of numbers, got"):
        smoothed.certify(good, radii=0.1)
    with pytest.raises(TypeError, match="`budgets` must be a list of mappings from modalities to numbers"):
        smoothed.certify(good, budgets={"audio": 0.1})
    with pytest.raises(ValueError, match="`missing` must name modalities"):
        smoothed.certify(good, missing=["smell"])
    with pytest.raises(ValueError, match="`missing` must leave a modality"):
        smoothed.certify(good, missing=["audio", "image"])
    certificate = smoothed.certify(good)
    for call in (lambda: certificate.radius(["image"]), lambda: certificate.tolerates({"image": 0.1})):
        with pytest.raises(ValueError, match="must name modalities with noise, among \\['audio'\\]"):
            call()
    with pytest.raises(ValueError, match="`budgets\\['audio'\\]` must be >= 0"):
        certificate.tolerates({"audio": -0.1})
    with pytest.raises(ValueError, match="with noise, among \\[\\]"):
        certificate.replacements("audio")


def test_a_module_of_several_labels_is_refused():
    module = CRMTModule({"audio": MLP(2, 4)}, 3, multi_label=True)
    with pytest.raises(TypeError, match="must answer one class per sample"):
        SmoothedClassifier(module, 0.1)


def test_certificates_travel(tmp_path):
    model, inputs, _ = linear_case(CASES["isotropic"], 5)
    certificate = SmoothedClassifier(model, 0.5, max_draws=128).certify(inputs)
    torch.save(certificate, tmp_path / "certificate.pt")
    loaded = torch.load(tmp_path / "certificate.pt", weights_only=True)
    assert torch.equal(loaded.radius(), certificate.radius())
    assert torch.equal(certificate.to("cpu").radius(["audio"]), certificate.radius(["audio"]))


def test_noise_that_rounding_swallows_is_refused():
    """A pressure in pascals: noise of 0.001 is less than the last digit of single precision."""
    inputs = {"pressure": torch.full((1, 1), 101_325.0)}

    def model(inputs):
        above = inputs["pressure"].double() - 101_325.0
        return torch.cat([above, -above + 1e-5], dim=1)

    smoothed = SmoothedClassifier(model, 0.001, max_draws=1000)
    with pytest.raises(ValueError, match=r"`sigma` of 'pressure' must not be lost in rounding: 0.001 beside values"):
        smoothed.certify(inputs)
    certificate = smoothed.certify({"pressure": inputs["pressure"].double()})
    assert certificate.radius() <= 1e-5, "it lies on the boundary"


def test_models_that_work_in_place_or_drop_samples():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoders = nn.ModuleDict({"audio": nn.Sequential(nn.ReLU(inplace=True), nn.Linear(2, 4))})
            self.head = LinearFusion({"audio": 4}, 3)

        def forward(self, inputs):
            return self.head({"audio": self.encoders["audio"](inputs["audio"])})

    inputs = {"audio": -torch.ones(2, 2)}
    for at in ("inputs", "features"):
        SmoothedClassifier(InPlace(), 0.1, at=at, max_draws=64).certify(inputs)
        assert (inputs["audio"] == -1).all()
    with pytest.raises(ValueError, match="`model` must answer each of 128 samples, got a float32 tensor of shape"):
        SmoothedClassifier(lambda inputs: inputs["audio"][::2], 0.1).certify(inputs)


def test_what_no_number_of_draws_could_prove_is_not_tried():
    smoothed = SmoothedClassifier(lambda inputs: inputs["audio"], 0.1)
    certificate = smoothed.certify({"audio": torch.tensor([[9.0, 0.0]])}, radii=[5.0])
    assert certificate.prediction.tolist() == [0]
    assert certificate.draws.tolist() == [128]


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_trusted_modalities_are_not_shared_by_draws(samples):
    """In place, a model sets the image where the audio says so: that is of one draw and not of all."""

    def model(inputs):
        image = inputs["image"]
        image[inputs["audio"][:, 0] > 0] = -1
        return torch.cat([image, -image], dim=1)

    inputs = {"audio": torch.full((samples, 1), -1.0), "image": torch.ones(samples, 1)}
    certificate = SmoothedClassifier(model, {"audio": 1.0}, max_draws=2000).certify(inputs)
    assert certificate.prediction.tolist() == [0] * samples
    assert torch.allclose(certificate.lower, torch.tensor(stats.norm.cdf(1)).double(), atol=0.05)
    assert (inputs["image"] == 1).all()


def test_what_is_random_by_itself_is_refused():
    for random in (lambda x: x + torch.randn(1), lambda x: x + np.random.default_rng().normal()):
        smoothed = SmoothedClassifier(lambda inputs, random=random: random(inputs["audio"]), 0.1)
        with pytest.raises(ValueError, match="`model` must be a function: it answered differently"):
            smoothed.certify({"audio": torch.zeros(2, 2)})


def test_what_samples_lack_must_not_be_read():
    inputs = {"a": torch.randn(3, 2), "b": torch.randn(3, 2), "a.present": torch.tensor([True, False, True])}
    smoothed = SmoothedClassifier(lambda inputs: inputs["a"] + inputs["b"], 0.1)
    with pytest.raises(ValueError, match="`inputs` must lack only what the model can go without"):
        smoothed.certify(inputs)
    context = {"a": torch.randn(3, 2), "b": torch.randn(3, 2), "a.gain": torch.ones(3, 2)}
    of_gain = SmoothedClassifier(lambda inputs: inputs["b"] * inputs["a.gain"], 0.1)
    with pytest.raises(ValueError, match="`missing` must lack only what the model can go without"):
        of_gain.certify(context, missing=["a"])
    of_zeros = SmoothedClassifier(lambda inputs: inputs["b"] + inputs["t"], {"b": 0.1})
    with pytest.raises(ValueError, match="`missing` must lack only what the model can go without"):
        of_zeros.certify({"b": torch.randn(3, 2), "t": torch.zeros(3, 2, dtype=torch.long)}, missing=["t"])


def test_features_are_those_of_a_model_that_does_nothing_else():
    class Scaled(Encoded):
        def forward(self, inputs):
            return self.head({name: self.encoders[name](10 * x) for name, x in inputs.items()})

    inputs = {name: torch.randn(2, size, dtype=torch.float64) for name, size in SIZES.items()}
    with pytest.raises(ValueError, match="its `forward` answers something else"):
        SmoothedClassifier(Scaled(), 0.1, at="features").certify(inputs)
    with pytest.raises(ValueError, match="must run in float32 or in float64"):
        SmoothedClassifier(module_of().bfloat16(), 0.1, at="features").certify(inputs)
    offset = {name: x + 1e9 for name, x in inputs.items()}
    with pytest.raises(ValueError, match="must not be lost in rounding"):
        SmoothedClassifier(module_of(), 1e-4, at="features").certify(offset)
    with pytest.raises(ValueError, match="missing \\['image'\\]"):
        SmoothedClassifier(module_of(), 0.1, at="features").certify({"audio": inputs["audio"]})


def test_encoders_that_do_not_depend_on_their_input_have_no_radius_to_speak_of():
    model = Encoded()
    model.encoders["audio"].weight.data.zero_()
    inputs = {name: torch.randn(2, size, dtype=torch.float64) for name, size in SIZES.items()}
    certificate = SmoothedClassifier(model, 0.1, at="features", max_draws=128).certify(inputs)
    given = ~certificate.abstained
    assert certificate.radius(["audio"])[given].isinf().all()
    assert certificate.tolerates({"audio": 1e9})[given].all()
    assert certificate.tolerates({"audio": math.inf})[given].all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_draws": 1e4}, "`max_draws` must be an integer, got 10000.0"),
        ({"batch_size": 100.5}, "`batch_size` must be an integer, got 100.5"),
        ({"seed": None}, "`seed` must be an integer, got None"),
        ({"seed": True}, "`seed` must be an integer, got True"),
        ({"model": 3}, "`model` must be a function from inputs by name to logits, got a int"),
    ],
)
def test_settings_of_other_types_are_named(settings, message):
    with pytest.raises(TypeError, match=message):
        SmoothedClassifier(**{"model": lambda inputs: inputs["audio"], "sigma": 0.1, **settings})


def test_inputs_of_other_kinds_are_named():
    smoothed = SmoothedClassifier(lambda inputs: inputs["audio"], 0.1)
    for inputs in (None, torch.zeros(2, 2), [torch.zeros(2, 2)]):
        with pytest.raises(TypeError, match="`inputs` must"):
            smoothed.certify(inputs)
    with pytest.raises(ValueError, match="`inputs` must hold at least one"):
        smoothed.certify({})
    for present in (torch.ones(2, dtype=torch.long), torch.ones(2, 1, dtype=torch.bool)):
        with pytest.raises(TypeError, match="must be a bool tensor of shape"):
            smoothed.certify({"audio": torch.zeros(2, 2), "audio.present": present})
    for alpha in ("0.1", 5e-324):
        with pytest.raises(ValueError, match="`alpha` must be above 0"):
            SmoothedClassifier(lambda inputs: inputs["audio"], 0.1, alpha=alpha)
    lost = {"audio": torch.tensor([[0.0, 1.0], [1e9, 0.0], [0.0, 0.0]]), "audio.present": torch.ones(3).bool()}
    with pytest.raises(ValueError, match="in sample 1, in float32"):
        smoothed.certify(lost)


@pytest.mark.parametrize("samples", [1, 4])
def test_a_function_around_a_module_in_training_mode_is_refused(samples):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    net(torch.randn(50, 2))
    inputs = {"audio": torch.randn(samples, 2)}
    smoothed = SmoothedClassifier(lambda inputs: net(torch.cat([inputs["audio"], inputs["audio"] + 1])), 0.1)
    with pytest.raises(ValueError, match="`model` must"):
        smoothed.certify(inputs)
    of_function = SmoothedClassifier(lambda inputs: net(inputs["audio"]), 0.1, max_draws=64)
    if samples > 1:  # of one sample torch itself refuses to make statistics
        with pytest.raises(ValueError, match=r"batch normalisation in training mode.*call eval\(\)"):
            of_function.certify(inputs)
    net.eval()
    of_function.certify(inputs)
