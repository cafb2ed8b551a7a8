# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Models of transformers, with random weights: as whole modules under the observers, and as encoders."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader

from lightning_crmt import CRMTModule, OrthogonalFusion, estimate_lipschitz, lipschitz_bound
from lightning_crmt.attacks import PGD, Budget, EmbeddedModel, MinimumNorm
from lightning_crmt.callbacks import (
    AdversarialRobustness,
    CertifiedRobustness,
    IntegrationReweighting,
    MissingModalities,
)
from lightning_crmt.cli import main
from lightning_crmt.encoders import MLP, HuggingFaceEncoder
from lightning_crmt.lipschitz import NoBoundError
from lightning_crmt.methods import VulnerabilityPenalty

transformers = pytest.importorskip("transformers")

B, T = 12, 8
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
BERT = {"vocab_size": 40, **TINY}
VIT = {"image_size": 8, "patch_size": 4, **TINY}
SOUND = {
    "conv_dim": (8, 8),
    "conv_stride": (4, 2),
    "conv_kernel": (4, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "mask_time_prob": 0.0,
    "mask_feature_prob": 0.0,
    **TINY,
}
CLIP = {
    "text_config": {"vocab_size": 40, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0, **TINY},
    "vision_config": VIT,
    "projection_dim": 12,
}


def seeded(make):
    torch.manual_seed(0)
    return make()


def tokens(size=B, seed=0):
    """Ids, padded by 0, and their mask."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(T) < (torch.arange(size) % 5 + 3)[:, None]).long()
    return torch.randint(3, 40, (size, T), generator=generator) * mask, mask


def images(size=B):
    return torch.randn(size, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def sounds(size=B, length=80):
    mask = (torch.arange(length) < (40 + 8 * (torch.arange(size) % 6))[:, None]).long()
    return torch.randn(size, length, generator=torch.Generator().manual_seed(2)) * mask, mask


def labels(size=B):
    return torch.arange(size) % 3


class Text(LightningModule):
    """A classifier of transformers in a module that does nothing but hand batches on."""

    def __init__(self):
        super().__init__()
        config = transformers.BertConfig(num_labels=3, **BERT)
        self.model = seeded(lambda: transformers.BertForSequenceClassification(config))

    def forward(self, **batch):
        return self.model(**batch)

    def validation_step(self, batch, index):
        self.log("val/accuracy", (self(**batch).logits.argmax(dim=1) == batch["labels"]).float().mean())


class Sound(Text):
    def __init__(self):
        LightningModule.__init__(self)
        config = transformers.Wav2Vec2Config(num_labels=3, classifier_proj_size=8, **SOUND)
        self.model = seeded(lambda: transformers.Wav2Vec2ForSequenceClassification(config))


class Clip(Text):
    """Images and texts, and a linear layer on both embeddings."""

    def __init__(self):
        LightningModule.__init__(self)
        self.model = seeded(lambda: transformers.CLIPModel(transformers.CLIPConfig(**CLIP)))
        self.classifier = nn.Linear(24, 3)

    def forward(self, labels=None, **batch):
        outputs = self.model(**batch)
        logits = self.classifier(torch.cat([outputs.image_embeds, outputs.text_embeds], dim=1))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return transformers.modeling_outputs.SequenceClassifierOutput(loss=loss, logits=logits)


class Tuples(Clip):
    """As ``return_dict=False`` gives them."""

    def forward(self, pixel_values, input_ids, attention_mask, labels):
        inputs = {"pixel_values": pixel_values, "input_ids": input_ids, "attention_mask": attention_mask}
        return super().forward(labels, **inputs).to_tuple()

    def validation_step(self, batch, index): ...


def text_batch(embed=None):
    ids, mask = tokens()
    if embed is not None:
        return {"inputs_embeds": embed(ids).detach(), "attention_mask": mask, "labels": labels()}
    return {"input_ids": ids, "token_type_ids": torch.zeros_like(ids), "attention_mask": mask, "labels": labels()}


def sound_batch():
    values, mask = sounds()
    return {"input_values": values, "attention_mask": mask, "labels": labels()}


def clip_batch():
    ids, mask = tokens()
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": images(), "labels": labels()}


def observers(names, perturbed):
    budget = Budget(4.0, modalities=perturbed)
    return [
        CertifiedRobustness([0.1], constants="estimated", inputs=names),
        AdversarialRobustness(
            {"pgd": PGD(budget, steps=4), "near": MinimumNorm(budget, steps=4, restarts=1)},
            inputs=names,
        ),
        MissingModalities(inputs=names),
    ]


CASES = {
    "embedded text": (Text, lambda m: text_batch(m.model.get_input_embeddings()), ["inputs_embeds"], ["inputs_embeds"]),
    "sound": (Sound, lambda m: sound_batch(), ["input_values"], ["input_values"]),
    "image and text": (Clip, lambda m: clip_batch(), ["pixel_values", "input_ids"], ["pixel_values"]),
    "image alone": (Clip, lambda m: clip_batch(), ["pixel_values"], ["pixel_values"]),
    "tuples, labels required": (Tuples, lambda m: clip_batch(), ["input_ids", "pixel_values"], ["pixel_values"]),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:AdversarialRobustness, attack")
@pytest.mark.parametrize(
    ("case", "encoding"), [*((case, dict) for case in CASES), ("sound", transformers.BatchEncoding)]
)
def test_whole_modules_under_every_observer(case, encoding, make_trainer):
    kind, data, names, perturbed = CASES[case]
    module = kind()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    trainer = make_trainer(*observers(names, perturbed))
    given = encoding(data(module))
    (found,) = trainer.validate(module, DataLoader([given], batch_size=None), verbose=False)
    with torch.no_grad():
        outputs = module.eval()(**given)
    logits = outputs[1] if isinstance(outputs, tuple) else outputs.logits
    accuracy = (logits.argmax(dim=1) == given["labels"]).float().mean().item()
    for key in ("clean_accuracy/pgd", "accuracy_zeroed/none"):
        assert found[f"val/{key}"] == pytest.approx(accuracy)
    assert found["val/robust_accuracy/pgd@4"] < accuracy
    assert found["val/adversarial_distance/near"] > 0
    assert found[f"val/estimated_radius/{perturbed[0]}"] > 0
    assert all(value.equal(state[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_padding_of_sound_and_text_is_not_attacked():
    for kind, data, name in [(Sound, sound_batch(), "input_values"), (Text, None, "inputs_embeds")]:
        module = kind().eval()
        data = data or text_batch(module.model.get_input_embeddings())
        x = {name: data[name], ".attention_mask": data["attention_mask"]}
        model = lambda inputs: module(**{key.lstrip("."): value for key, value in inputs.items()})  # noqa: B023, E731
        y = model(x).logits.argmax(dim=1)
        moved = PGD(Budget(5.0), steps=3)(model, x, y)
        real = data["attention_mask"] == 1
        assert moved[name][~real].equal(x[name][~real])
        assert (moved[name] != x[name])[real].any()


def encoders():
    t = transformers
    text, vision = (
        t.CLIPTextConfig(**CLIP["text_config"], projection_dim=12),
        t.CLIPVisionConfig(**VIT, projection_dim=12),
    )
    distil = t.DistilBertConfig(vocab_size=40, dim=16, n_layers=1, n_heads=2, hidden_dim=16)
    resnet = t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ast = t.ASTConfig(patch_size=4, max_length=8, num_mel_bins=8, frequency_stride=4, time_stride=4, **TINY)
    return {
        "bert": (t.BertModel, t.BertConfig(**BERT), "text", 16),
        "distilbert": (t.DistilBertModel, distil, "text", 16),
        "clip text": (t.CLIPTextModelWithProjection, text, "text", 12),
        "vit": (t.ViTModel, t.ViTConfig(**VIT), "image", 16),
        "clip image": (t.CLIPVisionModelWithProjection, vision, "image", 12),
        "resnet": (t.ResNetModel, resnet, "image", 16),
        "wav2vec2": (t.Wav2Vec2Model, t.Wav2Vec2Config(**SOUND), "sound", 16),
        "ast": (t.ASTModel, ast, "spectrogram", 16),
    }


ENCODERS = encoders()
INPUTS = {
    "text": tokens,
    "image": lambda: (images(), None),
    "sound": sounds,
    "spectrogram": lambda: (torch.randn(B, 8, 8), None),
}


def made(name):
    kind, config, _, _ = ENCODERS[name]
    return HuggingFaceEncoder(seeded(lambda: kind(config))).eval()


@pytest.mark.parametrize("name", ENCODERS)
def test_models_are_encoders(name):
    _, _, modality, size = ENCODERS[name]
    encoder, (x, mask) = made(name), INPUTS[modality]()
    assert encoder.out_features == size
    context = {} if mask is None else {"attention_mask": mask}
    features = encoder(x, **context)
    assert features.shape == (B, size)
    assert features.isfinite().all()
    alone = torch.cat([encoder(x[i : i + 1], **{k: v[i : i + 1] for k, v in context.items()}) for i in range(B)])
    assert torch.allclose(alone, features, atol=1e-5)


@pytest.mark.parametrize("name", ["distilbert", "wav2vec2"])
def test_means_are_over_what_is_real(name):
    encoder, (x, mask) = made(name), INPUTS[ENCODERS[name][2]]()
    features = encoder(x, attention_mask=mask)
    for i in range(B):
        hidden = encoder.model(x[i : i + 1], attention_mask=mask[i : i + 1]).last_hidden_state[0]
        length = int(mask[i].sum())
        if name == "wav2vec2":
            length = int(encoder.model._get_feat_extract_output_lengths(torch.tensor(length)))
        assert torch.allclose(features[i], hidden[:length].mean(dim=0), atol=1e-5)
    first = HuggingFaceEncoder(encoder.model, pooling="first")(x, attention_mask=mask)
    assert torch.allclose(first, encoder.model(x, attention_mask=mask).last_hidden_state[:, 0], atol=1e-5)


def test_an_output_may_be_named():
    model = seeded(lambda: transformers.BertModel(transformers.BertConfig(**BERT))).eval()
    ids, mask = tokens()
    outputs = model(ids, attention_mask=mask)
    assert HuggingFaceEncoder(model)(ids, attention_mask=mask).equal(outputs.pooler_output)
    means = HuggingFaceEncoder(model, output="last_hidden_state")(ids, attention_mask=mask)
    real = mask[:, :, None]
    assert torch.allclose(means, (outputs.last_hidden_state * real).sum(1) / real.sum(1), atol=1e-6)
    with pytest.raises(
        ValueError, match=r"`output` must be one of the outputs \['last_hidden_state', 'pooler_output'\]"
    ):
        HuggingFaceEncoder(model, output="pooled")(ids)
    with pytest.raises(ValueError, match="`out_features` must be the size of the features that BertModel gives, got 7"):
        HuggingFaceEncoder(model, out_features=7)(ids)


def test_embedded_tokens_are_tokens():
    encoder = made("bert")
    ids, mask = tokens()
    embedded = encoder.model.get_input_embeddings()(ids)
    assert torch.allclose(encoder(embedded, attention_mask=mask), encoder(ids, attention_mask=mask), atol=1e-5)


def test_text_is_attacked_at_its_embeddings_and_padding_is_not():
    module = CRMTModule({"text": made("bert"), "image": made("vit")}, num_classes=3).eval()
    embedded = EmbeddedModel(module, {"text": "encoders.text.model.embeddings.word_embeddings"})
    ids, mask = tokens()
    inputs = embedded.embed({"text": ids, "text.attention_mask": mask, "image": images()})
    y = module({"text": ids, "text.attention_mask": mask, "image": images()}).logits.argmax(dim=1)
    moved = PGD(Budget({"text": 3.0}), steps=5)(embedded, inputs, y)
    assert moved["text"][mask == 0].equal(inputs["text"][mask == 0])
    with torch.no_grad():
        assert (embedded(moved).logits.argmax(dim=1) != y).any()


def test_models_by_name(tmp_path):
    by_class = seeded(lambda: HuggingFaceEncoder("transformers.BertModel", config=BERT))
    model = seeded(lambda: transformers.BertModel(transformers.BertConfig(**BERT)))
    assert all(value.equal(by_class.model.state_dict()[name]) for name, value in model.state_dict().items())
    model.save_pretrained(tmp_path)
    for loaded in (
        HuggingFaceEncoder(pretrained=str(tmp_path)),
        HuggingFaceEncoder("transformers.BertModel", pretrained=str(tmp_path)),
    ):
        assert all(value.equal(loaded.model.state_dict()[name]) for name, value in model.state_dict().items())
        assert isinstance(loaded.model, transformers.BertModel)
        assert all(module.training for module in loaded.modules())


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({}, ValueError, "give `model` as a module, as the path of a class with either"),
        ({"model": "transformers.BertModel"}, ValueError, "give `model` as a module"),
        ({"config": {}}, ValueError, "give `model` as a module"),
        ({"model": "transformers.BertModel", "config": {}, "pretrained": "x"}, ValueError, "give `model` as a module"),
        ({"model": nn.Linear(2, 2), "config": {}}, ValueError, "are for a `model` given by its class"),
        ({"model": nn.Linear(2, 2)}, ValueError, "`out_features` must give the size of the features of Linear"),
        (
            {"model": "transformers.Brt", "config": {}},
            ValueError,
            "such as 'transformers.BertModel', got 'transformers.Brt'",
        ),
        ({"model": 3}, TypeError, "`model` must be a module or the import path"),
        ({"model": nn.Linear(2, 2), "pooling": "max"}, ValueError, "`pooling` must be 'mean' or 'first', got 'max'"),
    ],
)
def test_bad_settings(settings, error, message):
    with pytest.raises(error, match=message):
        HuggingFaceEncoder(**settings)


def test_loaded_models_train_however_they_are_given(tmp_path):
    """transformers loads in evaluation mode, in which Lightning leaves a module; what a user put there stays."""
    model = seeded(lambda: transformers.BertModel(transformers.BertConfig(**BERT)))
    model.save_pretrained(tmp_path)
    assert all(part.training for part in HuggingFaceEncoder(transformers.BertModel.from_pretrained(tmp_path)).modules())
    loaded = transformers.BertModel.from_pretrained(tmp_path).train()
    loaded.embeddings.eval()
    assert not HuggingFaceEncoder(loaded).model.embeddings.training
    assert not HuggingFaceEncoder(model.eval()).model.training


class KeepsContext(nn.Module):
    """Not of transformers: what it does with other names is its own affair."""

    main_input_name = "input_ids"

    def forward(self, input_ids, **others):
        self.got = sorted(others)
        return {"pooler_output": torch.zeros(len(input_ids), 3)}


@pytest.mark.parametrize("name", ENCODERS)
def test_context_that_a_model_does_not_name_is_refused(name):
    encoder, (x, mask) = made(name), INPUTS[ENCODERS[name][2]]()
    known = mask is not None
    with pytest.raises(ValueError, match=r"`context` must be what .* has no 'attention_maks'") as error:
        encoder(x, attention_maks=torch.ones(B, T))
    assert ("did you mean `attention_mask`?" in str(error.value)) == known
    if not known:
        with pytest.raises(ValueError, match="has no 'attention_mask'"):
            encoder(x, attention_mask=torch.ones(B, T))


def test_mistaken_context_in_a_module_names_the_modality():
    module = CRMTModule({"text": made("bert"), "image": made("vit")}, num_classes=3).eval()
    ids, mask = tokens()
    with pytest.raises(ValueError, match=r"(?s)text.*has no 'mask'; did you mean `\w*mask`"):
        module({"text": ids, "text.mask": mask, "image": images()})
    keeps = KeepsContext()
    HuggingFaceEncoder(keeps, out_features=3)(ids, mask=mask)
    assert keeps.got == ["mask"]


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("BertModel", {**BERT, "hiden_size": 8}, "`config` .* BertConfig, which has no 'hiden_size'; .* `hidden_size`"),
        ("DistilBertModel", {"n_layer": 1}, "DistilBertConfig, which has no 'n_layer'; did you mean `n_layers`"),
        (
            "CLIPModel",
            {"text_config": {"vocab_sise": 3}},
            "`config.text_config` .* CLIPTextConfig, .* 'vocab_sise'; did you mean `vocab_size`",
        ),
        ("AutoModel", BERT, "`model` must be a class with one configuration, .* got 'transformers.AutoModel'"),
        ("ViTConfig", VIT, "such as 'transformers.ViTModel', got 'transformers.ViTConfig'"),
        ("BertTokenizer", {}, "such as 'transformers.BertModel', got 'transformers.BertTokenizer'"),
    ],
)
def test_what_a_model_cannot_be_made_of(kind, config, message):
    with pytest.raises(ValueError, match=message):
        HuggingFaceEncoder(f"transformers.{kind}", config=config)


@pytest.mark.parametrize("name", ENCODERS)
def test_every_setting_of_a_configuration_is_taken(name):
    kind, config, _, size = ENCODERS[name]
    own = {key: value for key, value in config.to_dict().items() if key not in ("model_type", "transformers_version")}
    assert HuggingFaceEncoder(f"transformers.{kind.__name__}", config=own).out_features == size
    short = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "num_labels": 4, "id2label": {0: "a"}}
    if name == "distilbert":  # which calls them otherwise
        assert HuggingFaceEncoder("transformers.DistilBertModel", config={**short, "hidden_dim": 8}).out_features == 16


@pytest.mark.parametrize("model", [None, "transformers.BertModel"])
def test_weights_that_are_not_there_are_told_in_one_line(model, tmp_path):
    absent, nothing = tmp_path / "absent", tmp_path / "nothing"
    nothing.mkdir()
    for folder, cause in [(absent, "there is no such folder here"), (nothing, "no file named|Unrecognized model")]:
        with pytest.raises(ValueError, match=f"`pretrained` must be .*{re.escape(str(folder))}.*({cause})") as error:
            HuggingFaceEncoder(model, pretrained=str(folder))
        assert "\n" not in str(error.value)
        assert error.value.__suppress_context__
    with pytest.raises(ValueError, match=r"such as 'transformers\.BertModel', got 'transformers\.BertConfig'"):
        HuggingFaceEncoder("transformers.BertConfig", pretrained=str(nothing))


def test_a_model_with_a_head_is_told_which_one_has_none():
    model = seeded(lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**BERT)))
    with pytest.raises(ValueError, match=r"outputs \['logits'\] of BertForSeq.*; BertModel, which has no head, gives"):
        HuggingFaceEncoder(model)(tokens()[0])


def pair(i):
    ids, mask = tokens(48)
    return {"text": ids[i], "text.attention_mask": mask[i], "image": images(48)[i]}, i % 3


class Pairs(LightningDataModule):
    def loader(self):
        return DataLoader([pair(i) for i in range(24)], batch_size=12)

    train_dataloader = val_dataloader = test_dataloader = loader


def crmt(**settings):
    torch.manual_seed(0)
    text = HuggingFaceEncoder("transformers.BertModel", config=BERT)
    image = HuggingFaceEncoder("transformers.ViTModel", config=VIT)
    return CRMTModule({"text": text, "image": image}, num_classes=3, head=OrthogonalFusion, **settings)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:AdversarialRobustness, attack")
def test_crmt_on_models_of_transformers(make_trainer):
    names = ["image"]
    trainer = make_trainer(
        CertifiedRobustness([0.1], constants="estimated"),
        AdversarialRobustness({"pgd": PGD(Budget(0.5, modalities=names), steps=3)}),
        MissingModalities(),
        MissingModalities("dropped"),
        IntegrationReweighting(epochs=1),
        max_epochs=1,
    )
    module = crmt()
    trainer.fit(module, datamodule=Pairs())
    found = trainer.callback_metrics
    assert found["val/robust_accuracy/pgd@0.5"] <= found["val/clean_accuracy/pgd"]
    assert found["val/estimated_radius/image"] > 0
    assert "val/accuracy_zeroed/text" in found
    with pytest.raises(NoBoundError, match="HuggingFaceEncoder"):
        lipschitz_bound(module.encoders["image"], (3, 8, 8))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_gradients_of_gradients(attention, make_trainer):
    """Penalties of gradients need second derivatives, which not every kernel of attention has."""
    torch.manual_seed(0)
    image = HuggingFaceEncoder("transformers.ViTModel", config={**VIT, "attn_implementation": attention})
    module = CRMTModule({"image": image, "other": MLP(4, 16)}, num_classes=3)
    samples = [({"image": images()[i], "other": torch.randn(4)}, i % 3) for i in range(B)]
    before = {name: value.clone() for name, value in module.state_dict().items()}
    trainer, loader = make_trainer(VulnerabilityPenalty(0.1), max_epochs=1), DataLoader(samples, batch_size=6)
    trainer.fit(module, loader, loader)
    assert any(not value.equal(before[name]) for name, value in module.state_dict().items())


def test_constants_are_estimated_with_context():
    encoder = made("bert")
    embedded = encoder.model.get_input_embeddings()(tokens()[0]).detach()
    module = CRMTModule({"text": encoder, "image": made("vit")}, num_classes=3)
    inputs = {"text": embedded, "text.attention_mask": tokens()[1], "image": images()}
    constants = estimate_lipschitz(module, [inputs])
    assert set(constants.values) == {"text", "image"}
    assert all(value.isfinite().all() and (value > 0).all() for value in constants.values.values())


CONFIG = """
model:
  class_path: lightning_crmt.CRMTModule
  init_args:
    num_classes: 3
    encoders:
      text:
        class_path: lightning_crmt.encoders.HuggingFaceEncoder
        init_args: {pretrained: FOLDER}
      image:
        class_path: lightning_crmt.encoders.HuggingFaceEncoder
        init_args: {model: transformers.ViTModel, config: CONFIG, output: last_hidden_state, pooling: first}
data: test_hugging_face.Pairs
trainer:
  max_epochs: 1
  accelerator: cpu
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: CertifiedRobustness
      init_args: {radii: [0.1], constants: estimated}
"""


@pytest.mark.slow
def test_from_yaml(tmp_path, monkeypatch):
    seeded(lambda: transformers.BertModel(transformers.BertConfig(**BERT))).save_pretrained(tmp_path / "bert")
    config = yaml.safe_dump(VIT, default_flow_style=True).strip()
    text = CONFIG.replace("FOLDER", str(tmp_path / "bert")).replace("CONFIG", config)
    (tmp_path / "config.yaml").write_text(text)
    monkeypatch.setattr("sys.argv", ["lightning-crmt", "fit", "--config", str(tmp_path / "config.yaml")])
    monkeypatch.chdir(tmp_path)
    main()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:AdversarialRobustness, attack")
def test_python_in_the_page_runs(tmp_path, monkeypatch):
    page = (Path(__file__).parent.parent / "docs" / "hugging_face.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 5
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, "hugging_face.md", "exec"), names)
