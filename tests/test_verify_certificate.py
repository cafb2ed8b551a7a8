# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses

import pytest
import torch
from support.linear_model import SIZES, Linear, predict, samples
from support.nets import LateFusion
from torch import nn

from lightning_crmt import (
    CertificateViolation,
    LinearFusion,
    LipschitzConstants,
    Soundness,
    Verification,
    certify,
    estimate_lipschitz,
    verify_certificate,
)
from lightning_crmt.certification import certify_late_fusion
from lightning_crmt.encoders import LipschitzMLP


class Trap(nn.Module):
    """f(x) = 3 - (x + 10 relu(x - 2)): on [-1.5, 1.5] its slope is 1, and from x = 0 it reaches 0 at 2.0909."""

    def forward(self, inputs):
        x = inputs["x"]
        return torch.cat([3 - (x + 10 * torch.relu(x - 2)), torch.zeros_like(x)], dim=1)


def exact_certificate(model, inputs, scale=1.0, soundness=Soundness.SOUND):
    """Of a linear model, whose constants are the distances of its rows."""
    values = {n: scale * torch.cdist(w.detach(), w.detach()) for n, w in model.weights.items()}
    with torch.no_grad():
        constants = LipschitzConstants(values, of="margins", soundness=soundness)
        return dataclasses.replace(certify(model(inputs), None, constants), soundness=soundness)


def test_certificates_are_about_padding_too():
    """One that is too long is refuted although only padding, which attacks leave alone by default, can do it."""
    model, x = Linear(sizes={"audio": (5,)}), samples(sizes={"audio": (5,)})
    with torch.no_grad():
        model.weights["audio"][:, :2] = 0  # the real entries decide nothing
    padded = {**x, "audio.attention_mask": torch.tensor([1, 1, 0, 0, 0]).expand(20, 5)}
    assert verify_certificate(model, exact_certificate(model, x), padded).samples == 20
    with pytest.raises(CertificateViolation):
        verify_certificate(model, exact_certificate(model, x, scale=0.9), padded)


def test_the_trap_exposes_the_estimate(tmp_path):
    model, data = Trap(), {"x": torch.linspace(-1.5, 1.5, 31)[:, None]}
    x = {"x": torch.zeros(1, 1)}
    certificate = certify(model(x), None, estimate_lipschitz(model, [data], of="margins"))
    assert certificate.radius().item() == pytest.approx(3.0)
    with pytest.raises(CertificateViolation, match="sample 0 is estimated to stay of class 0") as caught:
        verify_certificate(model, certificate, x, save_to=tmp_path / "deep" / "trap.pt")
    found = caught.value.counterexample
    assert found.radius == pytest.approx(3.0)
    assert found.distance == pytest.approx(2.0909, abs=1e-3)
    assert (found.sample, found.threat, found.before, found.after) == (0, "x", 0, 1)
    assert str(tmp_path / "deep" / "trap.pt") in str(caught.value)
    stored = torch.load(caught.value.saved_to, weights_only=True)
    assert stored["inputs"]["x"].equal(x["x"])
    assert stored["perturbed"]["x"].equal((x["x"].double() + stored["perturbation"]["x"]).float())
    assert predict(model, stored["perturbed"]).item() == stored["after"] == 1
    assert stored["before"] == 0
    assert stored["soundness"] == "ESTIMATED"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_certificates_stand(dtype):
    model = Linear(dtype=dtype)
    x = samples(30, dtype=dtype)
    done = verify_certificate(model, exact_certificate(model, x), x, probes=10, products=3)
    assert isinstance(done, Verification)
    assert done.samples == 30
    assert done.soundness is Soundness.SOUND
    threats = ["audio + image", "audio", "image", *(f"product {i}" for i in range(3))]
    assert list(done.probes) == ["clean", *threats]
    assert done.probes["clean"] == 30
    # None of the random and gradient searches is lost outside of the claim; the nearest input of another class may be.
    assert all(330 <= done.probes[threat] <= 360 for threat in threats)


@pytest.mark.parametrize("scale", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constants_that_are_too_small_are_found(scale, dtype):
    model, x = Linear(dtype=dtype), samples(30, dtype=dtype)
    with pytest.raises(CertificateViolation, match="audio \\+ image") as caught:
        verify_certificate(model, exact_certificate(model, x, scale), x, probes=1)
    found = caught.value.counterexample
    assert found.distance < found.radius
    assert predict(model, found.perturbed).item() == found.after != found.before
    assert found.before == predict(model, x)[found.sample]
    for name in x:
        assert found.perturbation[name].equal(found.perturbed[name].double() - x[name][found.sample].double()[None])


@pytest.mark.parametrize("name", SIZES)
def test_one_modality_alone_is_searched(name):
    """The other constant is so large that the ball over both is safe."""
    model, x = Linear(), samples(30)
    certificate = exact_certificate(model, x)
    slopes = {n: d * (0.5 if n == name else 100) for n, d in certificate.sensitivities.items()}
    with pytest.raises(CertificateViolation, match=f"changes of {name} up to"):
        verify_certificate(model, dataclasses.replace(certificate, sensitivities=slopes), x, probes=1)


def test_products_of_budgets_are_searched():
    """Claims each modality's own radius, and the ball, but adds up budgets as if they did not act together."""

    class Careless(type(exact_certificate(Linear(), samples()))):
        def tolerates(self, budgets):
            return torch.stack([self.radius([n]) > b for n, b in budgets.items()]).all(dim=0)

    model, x = Linear(), samples(30)
    careless = Careless(**vars(exact_certificate(model, x)))
    with pytest.raises(CertificateViolation, match=r"changes of product 0 up to .* in audio, .* in image") as caught:
        verify_certificate(model, careless, x, probes=1)
    found = caught.value.counterexample
    assert all(found.distance[n] < found.radius[n] for n in SIZES)


@pytest.fixture(scope="module")
def lipschitz_net():
    torch.manual_seed(0)
    encoders = {"audio": LipschitzMLP(5, 16, [16]), "image": LipschitzMLP(6, 16, [16])}
    return LateFusion(encoders, LinearFusion({"audio": 16, "image": 16}, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nets(lipschitz_net, dtype):
    model, x = lipschitz_net.to(dtype).train(), samples(40, dtype=dtype)
    with torch.inference_mode():

        def certificate(constant):
            constants = dict.fromkeys(SIZES, torch.tensor(constant, dtype=torch.float64))
            return certify(model(x), model.head, LipschitzConstants(constants, of="encoder", soundness=Soundness.SOUND))

        state, random = {n: v.clone() for n, v in model.state_dict().items()}, torch.get_rng_state()
        done = verify_certificate(model, certificate(1.00001), x, probes=5, products=2)
        assert sum(done.rounding.values()) == 0
        with pytest.raises(CertificateViolation):
            verify_certificate(model, certificate(0.5), x, probes=5)
        assert torch.get_rng_state().equal(random)
    assert model.training
    assert all(v.equal(state[n]) for n, v in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_rounding_is_told_apart_unless_the_claim_is_rigorous():
    """A rival that catches up exactly on the border, where nothing but rounding decides."""
    model, x = Linear(dtype=torch.float32, seed=3), samples(400, dtype=torch.float32)
    certificate = exact_certificate(model, x, scale=1 - 1.3e-6)
    done = verify_certificate(model, certificate, x, probes=1, products=0)
    assert done.rounding["audio + image"] > 0
    with pytest.raises(CertificateViolation):
        verify_certificate(model, dataclasses.replace(certificate, soundness=Soundness.RIGOROUS), x, probes=1)


def test_what_lies_outside_of_the_claim_proves_nothing(monkeypatch):
    model, x = Linear(), samples(10)
    far = {name: value + 1e3 for name, value in x.items()}
    for search in ("PGD", "MinimumNorm"):
        monkeypatch.setattr(f"lightning_crmt.certification.verify.{search}", lambda *_, **settings: lambda *given: far)
    done = verify_certificate(model, exact_certificate(model, x), x, probes=1, products=0)
    assert done.probes["audio + image"] == 10  # the random direction alone


class Fused(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoders = nn.ModuleDict({"audio": nn.Linear(5, 8), "image": nn.Sequential(nn.Flatten(), nn.Linear(6, 8))})
        self.head = LinearFusion({"audio": 8, "image": 8}, 3)

    def forward(self, inputs):
        return self.head({name: encoder(inputs[name]) for name, encoder in self.encoders.items()})


def test_rigorous_claims_are_taken_to_the_letter():
    model, x = Fused(), samples(100, dtype=torch.float32)
    certificate = certify_late_fusion(model, x, level="rigorous")
    assert certificate.soundness is Soundness.RIGOROUS
    done = verify_certificate(model, certificate, x, probes=5)
    assert done.rounding == {}
    assert done.probes["audio + image"] >= 6 * done.samples  # none but of the last search is lost outside of the claim
    wider = dataclasses.replace(certificate, margins=certificate.margins * 100)
    with pytest.raises(CertificateViolation):
        verify_certificate(model, wider, x, probes=1)


def test_a_certificate_of_other_inputs():
    model, x = Linear(), samples(30)
    with pytest.raises(CertificateViolation, match="is the certificate of these weights"):
        verify_certificate(model, exact_certificate(model, samples(30, seed=9)), x)


def test_samples_that_claim_nothing_are_not_probed():
    model, x = Linear(), samples(3)
    certificate = exact_certificate(model, x)
    margins = certificate.margins.clone()
    margins[1] = 0
    done = verify_certificate(model, dataclasses.replace(certificate, margins=margins), x, probes=1, products=0)
    assert done.samples == 2
    none = verify_certificate(model, dataclasses.replace(certificate, margins=torch.zeros_like(margins)), x)
    assert (none.samples, none.probes) == (0, {})


def test_a_modality_that_is_claimed_not_to_matter():
    model, x = Linear(), samples(10)
    certificate = exact_certificate(model, x)
    deaf = dataclasses.replace(
        certificate, sensitivities=certificate.sensitivities | {"audio": torch.zeros_like(certificate.margins)}
    )
    assert deaf.radius(["audio"]).isinf().all()
    with pytest.raises(CertificateViolation):
        verify_certificate(model, deaf, x, probes=1)
    with torch.no_grad():
        model.weights["audio"].zero_()
    done = verify_certificate(model, exact_certificate(model, x), x, probes=1, products=1)
    assert done.probes["audio"] == 30


def test_missing_modalities_are_left_out():
    model, x = Linear(), samples(10)
    certificate = exact_certificate(model, x)
    slopes = certificate.sensitivities | {"audio": torch.zeros_like(certificate.margins)}
    with torch.no_grad():
        logits = model({"audio": torch.zeros(10, 5).double(), "image": x["image"]})
    prediction = logits.argmax(dim=1)
    margins = logits.gather(1, prediction[:, None]) - logits
    w = model.weights["image"].detach()
    slopes["image"] = torch.cdist(w, w)[prediction]
    without = dataclasses.replace(
        certificate, prediction=prediction, margins=margins, sensitivities=slopes, missing=("audio",)
    )

    def seeing(inputs):
        return model({"audio": torch.zeros(len(inputs["image"]), 5).double(), **inputs})

    done = verify_certificate(seeing, without, {"image": x["image"]}, probes=1)
    assert done.probes["clean"] == 10
    assert 20 <= done.probes["image"] <= 30
    assert len(done.probes) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"probes": 0}, "`probes` must be at least 1, got 0"),
        ({"steps": 0}, "`steps` must be at least 1, got 0"),
        ({"products": -1}, "`products` must be at least 0, got -1"),
        ({"inputs": samples(4)}, "`inputs` must be the 5 samples of the certificate"),
        ({"inputs": {"audio": torch.zeros(5, 5)}}, "with modalities \\['audio', 'image'\\]"),
    ],
)
def test_bad_input(settings, message):
    model, x = Linear(), samples(5)
    with pytest.raises(ValueError, match=message):
        verify_certificate(model, exact_certificate(model, x), **({"inputs": x} | settings))
