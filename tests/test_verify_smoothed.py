# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Honest certificates of smoothed classifiers are not refuted; ones that claim too much are."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from lightning_crmt import Ablation, CRMTModule, SmoothedClassifier, verify_certificate, verify_smoothed
from lightning_crmt.encoders import MLP, LipschitzMLP
from lightning_crmt.fusion import AttentionFusion
from lightning_crmt.smoothing import SmoothedVerification, SmoothedViolation

SETTINGS = {"alpha": 0.01, "max_draws": 3000}


def linear(seed=0, size=12):
    torch.manual_seed(seed)
    weights = {"a": torch.randn(5, 3), "b": torch.randn(3, 3)}
    inputs = {"a": torch.randn(size, 5), "b": torch.randn(size, 3)}
    return (lambda given: given["a"] @ weights["a"] + given["b"] @ weights["b"]), inputs


def trained(seed=0, size=12, **settings):
    """A small net that has learnt with noise, so that its smoothed form is sure of something."""
    torch.manual_seed(seed)
    encoder = settings.pop("encoder", MLP)
    module = CRMTModule({"a": encoder(5, 16, (16,)), "b": encoder(3, 16, (16,))}, 2, **settings)
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    for _ in range(150):
        inputs = {"a": torch.randn(64, 5), "b": torch.randn(64, 3)}
        target = (inputs["a"].sum(dim=1) + inputs["b"].sum(dim=1) > 0).long()
        noisy = {name: value + 0.3 * torch.randn_like(value) for name, value in inputs.items()}
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(noisy).logits, target).backward()
        optimizer.step()
    optimizer.zero_grad()
    return module.eval(), {"a": torch.randn(size, 5), "b": torch.randn(size, 3)}


def doubled(certificate):
    return replace(certificate, sigma={name: 2 * each for name, each in certificate.sigma.items()})


MODELS = {"linear": linear, "net": trained}


@pytest.mark.parametrize("sigma", [0.3, {"a": 0.2, "b": 0.5}, {"b": 0.4}])
@pytest.mark.parametrize("made", MODELS)
def test_honest_certificates_stand_and_doubled_ones_fall(made, sigma):
    model, inputs = MODELS[made]()
    smoothed = SmoothedClassifier(model, sigma, **SETTINGS)
    certificate = smoothed.certify(inputs)
    assert (~certificate.abstained).sum() >= 6
    done = verify_smoothed(smoothed, certificate, inputs)
    assert done.plausible
    assert set(done.probes) >= {"nothing", "b"}
    assert min(done.probes.values()) == int((~certificate.abstained).sum())
    with pytest.raises(SmoothedViolation, match="are refuted, which has a chance of") as caught:
        verify_smoothed(smoothed, doubled(certificate), inputs)
    refuted = {sample for samples in caught.value.verification.refuted.values() for sample in samples}
    assert len(refuted) >= 3
    assert refuted <= set((~certificate.abstained).nonzero().squeeze(1).tolist())


def test_certificates_of_more_noise_than_there_is_fall():
    model, inputs = linear()
    certificate = SmoothedClassifier(model, 0.6, **SETTINGS).certify(inputs)
    quieter = SmoothedClassifier(model, {"a": 0.6, "b": 0.15}, **SETTINGS)
    claimed = replace(quieter.certify(inputs), sigma=certificate.sigma)
    with pytest.raises(SmoothedViolation) as caught:
        verify_smoothed(quieter, claimed, inputs)
    assert caught.value.verification.refuted["a + b"]
    assert not caught.value.verification.refuted.get("nothing")


def test_answers_that_are_not_those_of_the_smoothed_classifier_fall():
    model, inputs = linear()
    smoothed = SmoothedClassifier(model, 0.3, **SETTINGS)
    certificate = smoothed.certify(inputs, radii=[0.05])
    wrong = replace(certificate, prediction=torch.where(certificate.abstained, -1, (certificate.prediction + 1) % 3))
    with pytest.raises(SmoothedViolation) as caught:
        verify_smoothed(smoothed, wrong, inputs, products=0, steps=1)
    assert caught.value.verification.refuted["nothing"] == (~certificate.abstained).nonzero().squeeze(1).tolist()


def test_products_of_budgets_are_tried():
    model, inputs = linear()
    smoothed = SmoothedClassifier(model, 0.3, **SETTINGS)
    certificate = smoothed.certify(inputs)

    # Radii as they are, but budgets as if each modality was alone.
    class Optimistic(type(certificate)):
        def tolerates(self, budgets):
            alone = [super(Optimistic, self).tolerates({name: each / 1.5}) for name, each in budgets.items()]
            return torch.stack(alone).all(dim=0)

    optimistic = Optimistic(**{name: getattr(certificate, name) for name in ("prediction", "lower", "sigma", "alpha",
                                                                              "draws", "num_classes")})  # fmt: skip
    with pytest.raises(SmoothedViolation) as caught:
        verify_smoothed(smoothed, optimistic, inputs, products=3)
    assert all(threat.startswith("product") for threat in caught.value.verification.refuted)


@pytest.mark.slow
def test_at_features_and_without_a_modality():
    module, inputs = trained(encoder=LipschitzMLP, head=AttentionFusion)
    smoothed = SmoothedClassifier(module, 0.2, at="features", **SETTINGS)
    certificate = smoothed.certify(inputs)
    assert verify_smoothed(smoothed, certificate, inputs, steps=10).plausible
    with pytest.raises(SmoothedViolation):
        verify_smoothed(smoothed, replace(certificate, sigma={n: 12 * s for n, s in certificate.sigma.items()}), inputs)
    dropped = smoothed.certify(inputs, missing=["a"])
    done = verify_smoothed(smoothed, dropped, inputs, steps=10)
    assert set(done.probes) == {"nothing", "b"}
    assert done.plausible


def counts_tokens(given):
    """A vote: how many tokens are large, beside the image."""
    votes = ((given["text"] >= 10).float() - ((given["text"] > 0) & (given["text"] < 10)).float()).sum(dim=1)
    score = votes + given["image"].sum(dim=1)
    return torch.stack([-score, score], dim=1)


@pytest.mark.parametrize("noise", [{"image": 0.5}, {}])
def test_tokens(noise):
    torch.manual_seed(0)
    text = torch.where(torch.rand(10, 12) < torch.where(torch.arange(10) % 2 > 0, 0.95, 0.05)[:, None], 15, 5)
    inputs = {"text": text, "image": torch.randn(10, 2) / 4}
    smoothed = SmoothedClassifier(counts_tokens, {"text": Ablation(0.25, mask_token=0), **noise}, **SETTINGS)
    certificate = smoothed.certify(inputs)
    assert (certificate.replacements("text") > 0).any()
    done = verify_smoothed(smoothed, certificate, inputs)
    assert done.plausible
    assert "text" in done.probes

    class Optimistic(type(certificate)):
        def replacements(self, modality):
            return torch.where(self.abstained, -1, self.lengths[modality])

    fields = ("prediction", "lower", "sigma", "alpha", "draws", "num_classes", "ablations", "lengths")
    with pytest.raises(SmoothedViolation) as caught:
        verify_smoothed(smoothed, Optimistic(**{name: getattr(certificate, name) for name in fields}), inputs)
    assert caught.value.verification.refuted["text"]


def test_samples_that_lack_a_modality_and_those_that_claim_nothing():
    module, inputs = trained()
    inputs["b.present"] = torch.arange(12) % 3 > 0
    smoothed = SmoothedClassifier(module, 0.3, **SETTINGS)
    certificate = smoothed.certify(inputs)
    assert verify_smoothed(smoothed, certificate, inputs, steps=5).plausible
    nothing = replace(certificate, prediction=torch.full_like(certificate.prediction, -1))
    assert verify_smoothed(smoothed, nothing, inputs) == SmoothedVerification(12, 0.02)


def test_one_that_is_refuted_is_no_wonder_among_many():
    assert SmoothedVerification(1000, 0.002, {"a": [4], "b": [4, 7]}).plausible
    assert not SmoothedVerification(10, 0.002, {"a": [4], "b": [4, 7]}).plausible
    assert SmoothedVerification(10, 0.002).p_value == 1.0


def test_it_leaves_the_world_as_it_was():
    module, inputs = trained()
    module.train()
    smoothed = SmoothedClassifier(module, 0.3, **SETTINGS)
    certificate = smoothed.certify(inputs, radii=[0.1])
    before = {name: value.clone() for name, value in inputs.items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    verify_smoothed(smoothed, certificate, inputs, steps=3)
    assert torch.equal(torch.rand(3), expected)
    assert module.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.head.parameters())
    assert all(torch.equal(value, before[name]) for name, value in inputs.items())


def test_what_does_not_fit_is_refused():
    model, inputs = linear()
    smoothed = SmoothedClassifier(model, 0.3, **SETTINGS)
    certificate = smoothed.certify(inputs, radii=[0.1])
    with pytest.raises(ValueError, match="`inputs` must be the 12 samples of the certificate with modalities"):
        verify_smoothed(smoothed, certificate, {"a": inputs["a"]})
    with pytest.raises(ValueError, match="`seed` must be another one than that of `smoothed`"):
        verify_smoothed(smoothed, certificate, inputs, seed=0)
    with pytest.raises(TypeError, match=r"`certificate` must be no smoothed one.*verify_smoothed"):
        verify_certificate(model, certificate, inputs)
