# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Modalities of integers beside continuous ones: they train, count and can be missing; radii are about the others."""

import copy
import math
import re
from dataclasses import replace

import pytest
import torch
from lightning.pytorch import seed_everything
from torch import nn
from torch.utils.data import DataLoader

from lightning_crmt import (
    CRMTModule,
    LinearFusion,
    LipschitzConstants,
    OrthogonalFusion,
    ProbeSearch,
    Soundness,
    certify,
    estimate_lipschitz,
    keep_scores,
    methods,
    reweight,
    verify_certificate,
)
from lightning_crmt.attacks import APGD, PGD, Budget, EmbeddedModel, LossAscent, MinimumNorm
from lightning_crmt.callbacks import (
    AdversarialRobustness,
    CertifiedRobustness,
    IntegrationReweighting,
    MissingModalities,
    RadiusTraining,
)
from lightning_crmt.certification import certify_late_fusion
from lightning_crmt.encoders import MLP, LipschitzMLP
from lightning_crmt.fusion import MemoryFusion
from lightning_crmt.lipschitz import NoBoundError
from lightning_crmt.losses import integration_objective, radius_loss
from lightning_crmt.modality import FusionOutput

CLASSES = 3


def model_of(*names, seed=0, lipschitz=False, **settings):
    seed_everything(seed, verbose=False)
    encoders = {name: (LipschitzMLP if lipschitz else MLP)(12, 8) for name in names if name != "text"}
    if "text" in names:
        encoders["text"] = nn.EmbeddingBag(50, 8)
        settings["in_features"] = {"text": 8}
    return CRMTModule({name: encoders[name] for name in names}, CLASSES, **settings)


def samples(*names, size=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(size) % CLASSES
    inputs = {n: torch.randn(size, 12, generator=generator) + target[:, None] for n in names if n != "text"}
    if "text" in names:
        # The first tokens of a title tell something of the class.
        inputs["text"] = torch.randint(1, 50, (size, 7), generator=generator)
        inputs["text"][:, 0] = 1 + target
    return {n: inputs[n] for n in names}, target


def loader_of(inputs, target):
    rows = [({n: v[i] for n, v in inputs.items()}, target[i]) for i in range(len(target))]
    return DataLoader(rows, batch_size=20)


@pytest.mark.parametrize("order", [("image", "text"), ("text", "image"), ("image", "text", "audio")])
def test_a_fit_with_everything(make_trainer, order):
    loader = loader_of(*samples(*order))
    others = [name for name in order if name != "text"]
    callbacks = [
        IntegrationReweighting(epochs=1),
        CertifiedRobustness([0.1], constants="estimated"),
        MissingModalities(),
        AdversarialRobustness({"pgd": PGD(Budget(0.1, modalities=others), steps=2)}),
    ]
    trainer = make_trainer(*callbacks)
    model = model_of(*order)
    trainer.fit(model, loader, loader)
    logged = trainer.callback_metrics
    together = "+".join(others)
    assert not [key for key in logged if "estimated" in key and ("joint" in key or "text" in key.replace(together, ""))]
    assert logged[f"val/estimated_radius/{together}"] > 0
    assert f"val/estimated_accuracy/{together}@0.1" in logged
    assert "val/accuracy/text" in logged
    assert "val/accuracy_zeroed/text" in logged
    assert callbacks[0].lipschitz.clean == ("text",)
    assert list(callbacks[0].lipschitz.values) == others


SETTINGS = {
    **dict.fromkeys(["GaussianNoise", "NoiseConsistency"], lambda: {"sigma": 0.1}),
    "TokenAblation": lambda: {"keep": 0.5, "mask_token": 0},
    "AdversarialTraining": lambda: {"attack": LossAscent(Budget(0.1, modalities=["image"]))},
    "TeacherFeatures": lambda: {
        "teachers": {name: copy.deepcopy(each) for name, each in model_of("image", "text").encoders.items()}
    },
}


@pytest.mark.parametrize("name", [each for each in methods.__all__ if each[0].isupper() and each != "Method"])
def test_methods_take_tokens(name, make_trainer):
    method = getattr(methods, name)(**SETTINGS.get(name, dict)())
    module = model_of("image", "text", **({"head": MemoryFusion} if name == "FeatureMemory" else {}))
    before = {key: value.clone() for key, value in module.encoders.state_dict().items()}
    loader, trainer = loader_of(*samples("image", "text")), make_trainer(method, max_epochs=2)
    if name == "Mixup":
        with pytest.raises(TypeError, match=r"`inputs\['text'\]` must be floating point to be mixed"):
            trainer.fit(module, loader, loader)
        return
    trainer.fit(module, loader, loader)
    assert any(
        not value.equal(before[key]) for key, value in module.encoders["text"].state_dict(prefix="text.").items()
    )


def test_some_of_several_continuous_modalities(make_trainer):
    loader = loader_of(*samples("image", "audio"))
    model = model_of("image", "audio")
    trainer = make_trainer(CertifiedRobustness([0.1], constants="estimated", modalities=["audio"]))
    (logged,) = trainer.validate(model, loader, verbose=False)
    assert [key for key in logged if "radius" in key] == ["val/estimated_radius/audio"]
    (everything,) = make_trainer(CertifiedRobustness([0.1], constants="estimated")).validate(
        model, loader, verbose=False
    )
    keys = sorted(key for key in everything if "radius" in key)
    assert keys == ["val/estimated_radius/audio", "val/estimated_radius/image", "val/estimated_radius/joint"]
    assert everything["val/estimated_radius/audio"] == pytest.approx(logged["val/estimated_radius/audio"])


def test_two_callbacks_must_not_give_one_name_to_two_numbers(make_trainer):
    two = [CertifiedRobustness([0.1], constants="estimated", modalities=m) for m in (["audio"], None)]
    with pytest.raises(ValueError, match="`modalities` of two CertifiedRobustness at level estimated must be the same"):
        make_trainer(*two).validate(model_of("image", "audio"), loader_of(*samples("image", "audio")), verbose=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"modalities": ["image", "tekst"]},
            "`modalities` must name modalities among ['image', 'text'], got ['tekst']",
        ),
        ({"modalities": "image"}, "`modalities` must be a list of at least one name, got 'image'"),
        ({"modalities": []}, "`modalities` must be a list of at least one name, got []"),
        ({"modalities": ["text"]}, "`modalities` must be of real numbers, got 'text'"),
        ({"budgets": [{"image": 0.1, "text": 0.1}]}, "must name modalities of real numbers, got ['text']"),
    ],
)
def test_modalities_that_cannot_be_perturbed(make_trainer, settings, message):
    loader = loader_of(*samples("image", "text"))
    with pytest.raises(ValueError, match=re.escape(message)):
        make_trainer(CertifiedRobustness([0.1], constants="estimated", **settings)).validate(
            model_of("image", "text"), loader, verbose=False
        )


# Constants and certificates.


@pytest.mark.parametrize("of", ["scores", "margins"])
@pytest.mark.parametrize("search", [None, ProbeSearch(pool=30, pilots=8)])
def test_constants_are_those_of_the_model_with_the_text_fixed(of, search):
    if search is not None and of == "margins":
        pytest.skip("searches are for scores")
    model = model_of("text", "image", "audio").double()
    inputs, _ = samples("text", "image", "audio")
    inputs = {n: v.double() if v.is_floating_point() else v for n, v in inputs.items()}
    parts = [{n: v[rows] for n, v in inputs.items()} for rows in torch.arange(60).split(16)]
    found = estimate_lipschitz(model, parts, of=of, search=search)
    assert found.clean == ("text",)

    class Rest(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model
            self.row = 0

        def forward(self, some):
            text = inputs["text"][self.row : self.row + 1].expand(len(some["image"]), -1)
            output = self.model({**some, "text": text})
            return FusionOutput(output.logits, {n: output.scores[n] for n in some})

    rest, largest = Rest(), {}
    for row in range(60):
        rest.row = row
        one = estimate_lipschitz(rest, [{n: inputs[n][row : row + 1] for n in ("image", "audio")}], of=of)
        for n, value in one.values.items():
            largest[n] = torch.maximum(largest.get(n, value), value)
    assert set(found.values) == {"image", "audio"}
    for n, value in largest.items():
        torch.testing.assert_close(found.values[n], value)


def test_radii_are_about_changes_of_the_others():
    model = model_of("image", "text").eval()
    inputs, _ = samples("image", "text")
    constants = estimate_lipschitz(model, [inputs], of="margins")
    certificate = certify(model(inputs), None, constants)
    torch.testing.assert_close(certificate.radius(), certificate.radius(["image"]))
    with pytest.raises(ValueError, match=re.escape("must name modalities among ['image'], got ['text']")):
        certificate.radius(["text"])
    by_scores = certify(model(inputs), model.head, estimate_lipschitz(model, [inputs]))
    assert list(by_scores.sensitivities) == ["image"]
    without = certify(model(inputs), model.head, estimate_lipschitz(model, [inputs]), missing=["text"])
    assert without.radius().isfinite().all()


def test_constants_must_say_that_a_modality_stays_clean():
    model = model_of("image", "text")
    inputs, _ = samples("image", "text")
    one = {"image": torch.tensor(1.0)}
    with pytest.raises(ValueError, match="missing \\['text'\\]"):
        certify(model(inputs), model.head, LipschitzConstants(one, of="encoder", soundness=Soundness.ESTIMATED))


def test_batches_must_agree_on_what_is_discrete():
    model = model_of("image", "audio")
    inputs, _ = samples("image", "audio")
    pixels = {**inputs, "audio": inputs["audio"].long()}
    model.encoders["audio"] = nn.Sequential(Cast(), model.encoders["audio"])
    with pytest.raises(TypeError, match="`batches` must have the same integer modalities"):
        estimate_lipschitz(model, [inputs, pixels])


class Cast(nn.Module):
    def forward(self, x):
        return x.float()


# Step 2.


def kept_of(*names):
    model = model_of(*names)
    inputs, target = samples(*names, size=120)
    return model, keep_scores(model, [(inputs, target)])


@pytest.mark.parametrize("names", [("image", "text"), ("text", "image", "audio")])
def test_step_2_leaves_the_weights_of_tokens_alone(names):
    model, kept = kept_of(*names)
    head = model.head
    done = reweight(head, *kept, epochs=4)
    before, after = head.integration_weights, done.head.integration_weights
    assert after["text"].equal(before["text"])
    others = [n for n in names if n != "text"]
    assert all(not after[n].equal(before[n]) for n in others)
    norms = [math.sqrt(sum(float(weights[n].detach().square().sum()) for n in others)) for weights in (before, after)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    output = FusionOutput(head.fuse(kept.scores), kept.scores)
    first = integration_objective(output, kept.target, head, kept.constants, clip=done.clip)
    output = FusionOutput(done.head.fuse(kept.scores), kept.scores)
    assert integration_objective(output, kept.target, done.head, kept.constants, clip=done.clip) < first


def test_the_same_whatever_place_text_has():
    (first, kept), (second, other) = kept_of("image", "text"), kept_of("text", "image")
    second.load_state_dict(first.state_dict())
    other = keep_scores(second, [samples("text", "image", size=120)])
    one, two = (reweight(m.head, *k).head.integration_weights["image"] for m, k in ((first, kept), (second, other)))
    inputs, _ = samples("image", "text", size=120)
    assert inputs["text"].equal(samples("text", "image", size=120)[0]["text"])
    torch.testing.assert_close(one, two)


def test_text_alone_cannot_be_reweighted():
    model, _ = kept_of("image", "text")
    inputs, target = samples("image", "text")
    with pytest.raises(TypeError, match="must be floating point to be differentiated"):
        keep_scores(model_of("text"), [({"text": inputs["text"]}, target)])
    values = {"image": torch.ones(CLASSES)}
    constants = LipschitzConstants(values, of="scores", soundness=Soundness.ESTIMATED, clean=("text",))
    scores = {n: torch.randn(60, CLASSES) for n in ("image", "text")}
    linear = LinearFusion({"image": 8, "text": 8}, CLASSES)
    with pytest.raises(TypeError, match="step 2 needs late fusion with integration weights"):
        reweight(linear, scores, target, constants)
    other = {"audio": torch.ones(CLASSES)}
    everything = LipschitzConstants(other, of="scores", soundness=Soundness.ESTIMATED, clean=("image", "text"))
    with pytest.raises(ValueError, match="`constants` must be of a modality to reweight, and all stay clean"):
        reweight(model.head, scores, target, everything)


def test_a_head_that_keeps_all_weights_together_cannot_leave_some_alone():
    class Together(OrthogonalFusion):
        def integration_parameters(self):
            return [nn.Parameter(torch.cat([raw.detach() for raw in self.raw_weights.values()]))]

    _, kept = kept_of("image", "text")
    head = Together({"image": 8, "text": 8}, CLASSES)
    with pytest.raises(TypeError, match="must keep the integration weights of each modality in a parameter under its"):
        reweight(head, *kept)
    with pytest.raises(ValueError, match="`clean` must be names of modalities without a constant, got 'text'"):
        LipschitzConstants({"image": torch.ones(3)}, of="scores", soundness=Soundness.ESTIMATED, clean="text")


def test_sound_constants_beside_text(make_trainer):
    loader = loader_of(*samples("image", "text"))
    step_2 = IntegrationReweighting(epochs=1, constants="sound")
    trainer = make_trainer(RadiusTraining(0.1), step_2)
    trainer.fit(model_of("image", "text", lipschitz=True), loader, loader)
    assert step_2.lipschitz.soundness is Soundness.SOUND
    assert step_2.lipschitz.clean == ("text",)


def test_the_radius_that_is_trained_is_that_of_the_others():
    model = model_of("image", "text")
    inputs, target = samples("image", "text")
    of_image = LipschitzConstants(
        {"image": torch.tensor(2.0)}, of="encoder", soundness=Soundness.SOUND, clean=("text",)
    )
    both = LipschitzConstants(
        {"image": torch.tensor(2.0), "text": torch.tensor(0.0)}, of="encoder", soundness=Soundness.SOUND
    )
    output = model(inputs)
    found = radius_loss(output, target, model.head, of_image, rho=0.0)
    torch.testing.assert_close(found, radius_loss(output, target, model.head, both, rho=0.0))


# Embeddings as inputs.


def text_model():
    seed_everything(0, verbose=False)
    text = nn.Sequential(nn.Embedding(50, 4), nn.Flatten(), nn.Linear(28, 8), nn.Tanh(), nn.Linear(8, 8))
    return CRMTModule({"image": MLP(12, 8), "text": text}, CLASSES).eval()


@pytest.mark.parametrize("make", [text_model, lambda: model_of("image", "text").eval()])
def test_an_embedded_model_is_the_same_function(make):
    model = make()
    layer = "encoders.text" if isinstance(model.encoders["text"], nn.EmbeddingBag) else "encoders.text.0"
    inputs, _ = samples("image", "text")
    embedded = EmbeddedModel(model, {"text": layer})
    taken = embedded.embed(inputs)
    assert taken["text"].is_floating_point()
    torch.testing.assert_close(embedded(taken).logits, model(inputs).logits)
    moved = {**taken, "text": taken["text"] + 1}
    assert not torch.allclose(embedded(moved).logits, model(inputs).logits)
    torch.testing.assert_close(model(inputs).logits, embedded(taken).logits)  # no hook is left behind
    assert not any(part._forward_hooks for part in model.modules())


def test_gradients_and_constants_of_embeddings():
    model = text_model()
    inputs, _ = samples("image", "text", size=9)
    embedded = EmbeddedModel(model, {"text": "encoders.text.0"})
    taken = embedded.embed(inputs)
    constants = estimate_lipschitz(embedded, [taken])
    assert constants.clean == ()
    rest = model.encoders["text"][1:]
    largest = torch.zeros(CLASSES)
    for row in range(9):
        leaf = taken["text"][row : row + 1].clone().requires_grad_()
        scores = rest(leaf) @ model.head.directions["text"].detach().mT
        for k in range(CLASSES):
            (gradient,) = torch.autograd.grad(scores[0, k], leaf, retain_graph=True)
            largest[k] = max(largest[k], gradient.norm())
    torch.testing.assert_close(constants.values["text"], largest)


@pytest.mark.parametrize("attack", [PGD, APGD])
def test_attacks_on_embeddings_stay_in_their_ball(attack):
    model = text_model()
    inputs, target = samples("image", "text")
    embedded = EmbeddedModel(model, {"text": "encoders.text.0"})
    taken = embedded.embed(inputs)
    attacked = attack(Budget({"text": 0.5}))(embedded, taken, target)
    distance = (attacked["text"] - taken["text"]).double().flatten(1).norm(dim=1)
    assert distance.max() <= 0.5 * (1 + 1e-6)
    assert distance.max() > 0.1
    assert attacked["image"] is taken["image"]
    assert attacked["text.tokens"].equal(inputs["text"])
    near = MinimumNorm(Budget({"text": 1.0}), steps=20)(embedded, taken, target)
    assert near["text"].shape == taken["text"].shape


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (
            {"text": "encoders.text.9"},
            "must be a layer of the model, such as ['encoders.text.0'], got 'encoders.text.9'",
        ),
        ({}, "`layers` must map modalities to paths of embedding layers"),
    ],
)
def test_embedding_layers_that_are_not_there(layers, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        EmbeddedModel(text_model(), layers)


def test_an_embedding_layer_must_be_called_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.EmbeddingBag(50, 8)

        def forward(self, x):
            return self.layer(x) + self.layer(x)

    model = CRMTModule({"image": MLP(12, 8), "text": Twice()}, CLASSES, in_features={"text": 8})
    inputs, _ = samples("image", "text", size=4)
    with pytest.raises(ValueError, match="must be called once, and give a row for each of 4 samples"):
        EmbeddedModel(model, {"text": "encoders.text.layer"}).embed(inputs)
    said = {**inputs, "text.present": torch.ones(4, dtype=torch.bool)}
    with pytest.raises(ValueError, match="must have 'text' in every sample to be embedded"):
        EmbeddedModel(model_of("image", "text"), {"text": "encoders.text"}).embed(said)


# Sound certificates beside tokens.


def certified_model(text, **settings):
    seed_everything(0, verbose=False)
    encoders = {"image": LipschitzMLP(12, 8), "text": text}
    return CRMTModule(encoders, CLASSES, in_features={"text": 8}, **settings).eval()


TEXTS = {
    "embedding": lambda: nn.Sequential(nn.Embedding(50, 4), nn.Flatten(), nn.Linear(28, 8)),
    "mean": lambda: nn.EmbeddingBag(50, 8),
    "sum": lambda: nn.Sequential(nn.EmbeddingBag(50, 6, mode="sum", padding_idx=0), nn.ReLU(), nn.Linear(6, 8)),
    "max": lambda: nn.EmbeddingBag(50, 8, mode="max"),
}


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("shift", [0.0, 1e5])
def test_a_sound_certificate_is_that_of_the_image_with_the_text_fixed(kind, shift):
    model = certified_model(TEXTS[kind]())
    inputs, _ = samples("image", "text")
    if shift:  # the rounding of a sum of large numbers counts
        with torch.no_grad():
            for layer in model.encoders["text"].modules():
                if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
                    layer.weight.add_(shift)
    certificate = model.certify(inputs)
    assert certificate.soundness is Soundness.SOUND
    assert list(certificate.sensitivities) == ["image"]
    exact = copy.deepcopy(model).double()
    with torch.no_grad():
        logits = exact({"image": inputs["image"].double(), "text": inputs["text"]}).logits
    running = model(inputs).logits.double().detach()
    for row in range(60):
        p, radii = int(certificate.prediction[row]), []
        assert p == int(running[row].argmax())
        for j in range(CLASSES):
            if j != p:
                rows = exact.head.class_weights["image"].detach()
                radii.append(float((logits[row, p] - logits[row, j]) / (rows[p] - rows[j]).norm()))
        assert float(certificate.radius()[row]) <= max(min(radii), 0.0) * (1 + 1e-9)
        if not shift:
            assert float(certificate.radius()[row]) == pytest.approx(max(min(radii), 0.0), rel=1e-3, abs=1e-5)
    # What rounds as it runs is within what was allowed for.
    vouched = certificate.radius() > 0
    assert (running.argmax(1) == logits.argmax(1))[vouched].all()
    assert certificate.radius().max() > 0 or shift


def test_sound_radii_beside_tokens_are_logged(make_trainer):
    loader = loader_of(*samples("image", "text"))
    trainer = make_trainer(CertifiedRobustness([0.1], budgets=[{"image": 0.05}]))
    (logged,) = trainer.validate(certified_model(TEXTS["mean"]()), loader, verbose=False)
    assert logged["val/certified_radius/image"] > 0
    assert logged["val/certified_accuracy_dropped/text@0.1"] >= 0
    assert not [key for key in logged if "certified" in key and "joint" in key]


def test_a_certificate_beside_tokens_is_verified():
    model = certified_model(TEXTS["embedding"]())
    inputs, _ = samples("image", "text")
    certificate = model.certify(inputs)
    assert verify_certificate(model, certificate, inputs).samples > 0
    longer = replace(certificate, sensitivities={"image": certificate.sensitivities["image"] / 3})
    with pytest.raises(AssertionError, match="image"):
        verify_certificate(model, longer, inputs)


def test_what_is_certified_beside_tokens_and_what_not():
    inputs, _ = samples("image", "text")
    refused = {
        "LSTM": nn.Sequential(nn.Embedding(50, 4), nn.Flatten(), nn.Linear(28, 8), nn.Softmax(1)),
        "max_norm": nn.EmbeddingBag(50, 8, max_norm=1.0),
        "nn.Embedding": nn.Sequential(Cast(), nn.Linear(7, 8)),
    }
    for text in refused.values():
        before = [parameter.clone() for parameter in text.parameters()]
        with pytest.raises(NoBoundError):
            certified_model(text).certify(inputs)
        assert all(map(torch.equal, before, text.parameters()))
    with pytest.raises(ValueError, match="must be floating point to be certified"):
        certified_model(TEXTS["mean"]()).certify(inputs, level="rigorous")
    hooked = certified_model(TEXTS["mean"]())
    hooked.encoders["text"].register_forward_hook(lambda *_: None)
    with pytest.raises(NoBoundError, match="text"):
        hooked.certify(inputs)


def test_samples_without_text_or_image_are_certified_alike():
    model = certified_model(TEXTS["mean"]())
    inputs, _ = samples("image", "text")
    present = torch.arange(60) % 3 != 0
    said = {**inputs, "text.present": present}
    certificate, whole = model.certify(said), model.certify(inputs)
    torch.testing.assert_close(certificate.radius()[present], whole.radius()[present])
    dropped = certify_late_fusion(model, inputs, missing=["text"])
    torch.testing.assert_close(certificate.radius()[~present], dropped.radius()[~present])
    said = {**inputs, "image.present": present}
    assert model.certify(said).radius()[~present].isinf().all()
