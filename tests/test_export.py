# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""A model that left Python answers what it answered there, for batches of any size."""

import copy
import logging
import subprocess
import sys
from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.export import Dim
from torch.utils.data import DataLoader

from lightning_crmt import CRMTModule, LinearFusion, OrthogonalFusion, export_onnx, export_program, for_inference
from lightning_crmt.encoders import (
    MLP,
    ConvNet1d,
    ConvNet2d,
    LipschitzCNN,
    LipschitzMLP,
    ResNet18,
    ResNet18Tokens,
)
from lightning_crmt.fusion import AttentionFusion, CosineFusion, FiLMFusion, GatedFusion, MemoryFusion
from lightning_crmt.layers import OrthogonalConv2d, OrthogonalConvTranspose2d, Residual, ScaledAvgPool2d
from lightning_crmt.modality import where_present

PADDED = nn.Sequential(
    OrthogonalConv2d(1, 4, 3, padding_mode="circular"), ScaledAvgPool2d(2), Residual(nn.ReLU()),
    OrthogonalConv2d(4, 4, 3, groups=2, padding_mode="reflect"), OrthogonalConvTranspose2d(4, 1, 2, 2), nn.Flatten(),
)  # fmt: skip

#: Encoders of 16 features, and the shape of a sample.
ENCODERS = {
    "mlp": (MLP(12, 16), (3, 4)),
    "conv1d": (ConvNet1d(3, 16, (4, 8)), (3, 21)),
    "conv2d": (ConvNet2d(1, 16, (4, 8)), (1, 9, 12)),
    "resnet": (ResNet18(3, 2), (3, 40, 36)),
    "resnet of frames": (ResNet18(3, 2), (2, 3, 40, 36)),
    "lipschitz mlp": (LipschitzMLP(12, 16, (32,), scale=3.0), (12,)),
    "sorting fours": (LipschitzMLP(12, 16, (32,), group_size=4), (12,)),
    "lipschitz cnn": (LipschitzCNN(1, 16, (8, 8), (4, 16)), (1, 8, 8)),
    "lipschitz cnn of sequences": (LipschitzCNN(2, 16, [16], (4, 16)), (2, 16)),
    "padded": (nn.Sequential(*PADDED, nn.Linear(64, 16)), (1, 8, 8)),
}
TOKENS = {"tokens of frames": (ResNet18Tokens(3, 2), (2, 3, 40, 36))}
HEADS = {
    "orthogonal": OrthogonalFusion,
    "linear": LinearFusion,
    "cosine": CosineFusion,
    "gated": GatedFusion,
    "gated, auxiliary": partial(GatedFusion, scores="auxiliary"),
    "film": partial(FiLMFusion, base="b"),
    "attention": AttentionFusion,
    "attention, auxiliary": partial(AttentionFusion, scores="auxiliary"),
}
CASES = [(encoder, "orthogonal", 2) for encoder in ENCODERS]
CASES += [("mlp", head, 3) for head in HEADS]
CASES += [(tokens, "attention", 2) for tokens in TOKENS]


def case(encoder, head, modalities):
    """A model in evaluation mode whose statistics are not those that it began with, and what draws its inputs."""
    torch.manual_seed(0)
    made, shape = copy.deepcopy((ENCODERS | TOKENS)[encoder])
    # Not in the order of the alphabet, in which torch may sort them.
    shapes = {"b": (7,), "a": shape, "c": (5,)}
    shapes = dict(list(shapes.items())[:modalities])
    encoders = {name: made if name == "a" else MLP(size[0], 16) for name, size in shapes.items()}
    model = CRMTModule(encoders, 4, head=HEADS[head])

    def draw(size):
        return {name: torch.randn(size, *shape) for name, shape in shapes.items()}

    model.train()(draw(8))
    return model.eval(), draw


def absent(inputs):
    """``inputs`` of which some samples lack the first modality, others the last, and some both where there are more."""
    size = len(next(iter(inputs.values())))
    first, *_, last = inputs
    present = {first: torch.arange(size) % 2 == 0, last: torch.arange(size) % 3 > 0}
    if len(inputs) == 2:
        present[last] |= ~present[first]
    changed = {name: where_present(inputs[name], has) for name, has in present.items()}
    return inputs | changed | {f"{name}.present": has for name, has in present.items()}


def named(output, path=""):
    """Tensors of an output by name."""
    if isinstance(output, torch.Tensor):
        return {path.removeprefix("."): output.detach()}
    fields = output._asdict() if hasattr(output, "_asdict") else output
    return {key: each for name, value in fields.items() for key, each in named(value, f"{path}.{name}").items()}


def assert_same(found, wanted):
    found, wanted = named(found), named(wanted)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


@pytest.fixture
def run_onnx(tmp_path):
    """A function that runs an ONNX file on inputs by name, and gives its outputs by name."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    runtime.set_default_logger_severity(3)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # that torchvision is not installed

    def run(file, inputs):
        session = runtime.InferenceSession(file)
        assert {each.name for each in session.get_inputs()} == set(inputs)
        assert {each.shape[0] for each in session.get_inputs()} == {"batch"}
        names = [each.name for each in session.get_outputs()]
        found = session.run(names, {name: value.numpy() for name, value in inputs.items()})
        return {name: torch.as_tensor(value) for name, value in zip(names, found, strict=True)}

    return run


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(("encoder", "head"), [("mlp", "orthogonal"), ("lipschitz cnn", "film"), ("mlp", "attention")])
def test_torch_export_takes_the_module_as_it_is(encoder, head, strict):
    model, draw = case(encoder, head, 2)
    batch = Dim("batch")
    program = torch.export.export(
        model, (draw(3),), dynamic_shapes=({name: {0: batch} for name in draw(1)},), strict=strict
    )
    for size in (1, 2, 9):
        inputs = draw(size)
        assert_same(program.module()(inputs), model(inputs))


@pytest.mark.parametrize(("encoder", "head", "modalities"), CASES)
def test_programs_can_be_saved_and_take_any_batch(encoder, head, modalities, tmp_path):
    model, draw = case(encoder, head, modalities)
    torch.export.save(export_program(model, draw(1)), tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for size in (1, 2, 9):
        inputs = draw(size)
        output = loaded(inputs)
        assert type(output) is type(model(inputs))
        assert_same(output, model(inputs))


@pytest.mark.slow
@pytest.mark.parametrize(("encoder", "head", "modalities"), CASES)
def test_onnx_answers_the_same(encoder, head, modalities, run_onnx, tmp_path):
    model, draw = case(encoder, head, modalities)
    model.to_onnx(tmp_path / "model.onnx", draw(1))
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]  # weights are in it
    for size in (1, 2, 9):
        inputs = draw(size)
        assert_same(run_onnx(tmp_path / "model.onnx", inputs), model(inputs))


@pytest.mark.slow
@pytest.mark.parametrize("head", [head for head in HEADS if head != "attention, auxiliary"])  # that takes the longest
def test_samples_may_lack_modalities(head, run_onnx, tmp_path):
    model, draw = case("mlp", head, 3)
    program = export_program(model, absent(draw(2))).module()
    model.to_onnx(tmp_path / "model.onnx", absent(draw(2)))
    for size in (1, 2, 12):
        inputs = absent(draw(size))
        output = model(inputs)
        assert_same(program(inputs), output)
        assert_same(run_onnx(tmp_path / "model.onnx", inputs), output)
    assert list(output.present) == list(program(inputs).present) != []


@pytest.mark.parametrize("head", ["orthogonal", "linear", "cosine", "gated", "film"])
def test_programs_answer_nan_for_samples_without_any_modality(head):
    model, draw = case("mlp", head, 2)
    program = export_program(model, absent(draw(2))).module()
    inputs = absent(draw(4))
    for name in ("a", "b"):
        inputs[f"{name}.present"] = torch.tensor([True, False, True, True])
    unread = program(inputs).logits
    if head in ("orthogonal", "linear", "cosine"):  # what is left is the bias
        assert unread.isfinite().all()
    else:
        assert unread.isnan().all(dim=1).tolist() == [False, True, False, False]


class Tokens(nn.Module):
    """Embeds tokens; takes a mask by keyword."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 16)

    def forward(self, x, attention_mask=None):
        weights = attention_mask.to(torch.float32)
        return (self.embedding(x) * weights[..., None]).sum(dim=1) / weights.sum(dim=1, keepdim=True)


def test_context_comes_along(run_onnx, tmp_path):
    model = CRMTModule({"text": Tokens(), "image": MLP(7, 16)}, 4, in_features={"text": 16}).eval()

    def draw(size):
        mask = (torch.arange(6) < torch.randint(1, 7, (size, 1))).long()
        text = torch.randint(0, 20, (size, 6))
        return {"text": text, "image": torch.randn(size, 7), "text.attention_mask": mask}

    program = export_program(model, draw(3)).module()
    model.to_onnx(tmp_path / "model.onnx", draw(3))
    for size in (1, 5):
        inputs = draw(size)
        assert_same(program(inputs), model(inputs))
        assert_same(run_onnx(tmp_path / "model.onnx", inputs), model(inputs))
    other = inputs | {"text.attention_mask": torch.ones_like(inputs["text.attention_mask"])}
    assert not torch.equal(program(other).logits, program(inputs).logits)


def test_sequences_of_any_length():
    model = CRMTModule({"a": nn.Linear(3, 16), "b": MLP(7, 16)}, 4, head=AttentionFusion).eval()
    batch, time = Dim("batch"), Dim("time", min=2, max=100)
    inputs = {"a": torch.randn(3, 6, 3), "b": torch.randn(3, 7)}
    dynamic = {"a": {0: batch, 1: time}, "b": {0: batch}}
    program = torch.export.export(model.to_deploy(), (inputs,), dynamic_shapes=(dynamic,)).module()
    named = export_program(model, inputs, {"a": {1: "time"}}).module()
    longer = inputs | {"a": torch.randn(3, 40, 3)}
    for each in (program, named):
        assert_same(each(longer), model(longer))
    for size, length in ((1, 6), (1, 1), (4, 1)):
        others = {"a": torch.randn(size, length, 3), "b": torch.randn(size, 7)}
        assert_same(named(others), model(others))


def test_a_length_that_an_encoder_fixes():
    model, inputs = CRMTModule({"a": ConvNet1d(3, 16, (4, 8))}, 4), {"a": torch.randn(2, 3, 21)}
    with pytest.raises(torch._dynamo.exc.UserError, match=r"Constraints violated \(time\)"):
        export_program(model, inputs, {"a": {2: "time"}})


def sequences(size, length):
    """Titles in tokens, padded by 0, and features of frames with a mask."""
    mask = (torch.arange(length) < torch.randint(1, length + 1, (size, 1))).long()
    return {
        "title": torch.randint(1, 20, (size, length)),
        "image": torch.randn(size, 7),
        "text": torch.randint(0, 20, (size, length + 3)),
        "text.attention_mask": torch.cat([torch.ones(size, 3).long(), mask], dim=1),
    }


DYNAMIC = {"title": {1: "length"}, "text": {1: "tokens"}, "text.attention_mask": {1: "tokens"}}


def test_other_dimensions_may_change(run_onnx, tmp_path):
    """Lengths, independently of each other, and of a mask with its tokens."""
    encoders = {"title": nn.EmbeddingBag(20, 16, padding_idx=0), "image": MLP(7, 16), "text": Tokens()}
    model = CRMTModule(encoders, 4, in_features={"title": 16, "text": 16}).eval()
    program = export_program(model, sequences(1, 5), DYNAMIC).module()
    model.to_onnx(tmp_path / "model.onnx", sequences(1, 5), dynamic=DYNAMIC)
    for size, length in ((1, 1), (3, 2), (2, 40)):
        inputs = sequences(size, length)
        inputs["title"][0, length // 2 + 1 :] = 0
        assert_same(program(inputs), model(inputs))
        assert_same(run_onnx(tmp_path / "model.onnx", inputs), model(inputs))
    with pytest.raises((RuntimeError, AssertionError)):  # one name, one size
        program(inputs | {"text.attention_mask": inputs["text.attention_mask"][:, 1:]})
    fixed = export_program(model, sequences(2, 5), {"title": {1: "length"}}).module()
    with pytest.raises((RuntimeError, AssertionError)):
        fixed(sequences(2, 6))


@pytest.mark.parametrize(
    ("dynamic", "message"),
    [
        ({"titel": {1: "length"}}, r"`dynamic` must map some of \['title', .*got 'titel': \{1: 'length'\}"),
        ({"title": "length"}, r"as \{\"text\": \{1: \"length\"\}\}, got 'title': 'length'"),
        ({"title": {2: "length"}}, r"`dynamic\['title'\]` must number dimensions from 1 to 1, got 2"),
        ({"title": {0: "size"}}, r"`dynamic\['title'\]` must number dimensions from 1 to 1, got 0"),
        ({"title": {1: "batch"}}, r"`dynamic\['title'\]\[1\]` must be a name that is not 'batch', got 'batch'"),
        ({"title": {1: "its length"}}, "must be a name that is not 'batch', got 'its length'"),
        ({"one": {1: "length"}}, r"`inputs\['one'\]` must have at least 2 in dimension 1 .*\(2, 1\)"),
    ],
)
def test_dimensions_that_cannot_change_are_said(dynamic, message):
    inputs = {"title": torch.ones(2, 5), "one": torch.ones(2, 1)}
    model = CRMTModule({"title": MLP(5, 16), "one": MLP(1, 16)}, 4)
    with pytest.raises(ValueError, match=message):
        export_program(model, inputs, dynamic)


def test_after_a_fit(make_model, make_trainer, data, tmp_path):
    model = make_model()
    make_trainer(max_epochs=1).fit(model, datamodule=data)
    inputs, _ = next(iter(data.val_dataloader()))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    training = [part.training for part in model.modules()]
    wanted = model.eval()(inputs)
    model.train()
    for program in (export_program(model, inputs), torch.export.export(model.to_deploy(), (inputs,))):
        assert_same(program.module()(inputs), wanted)
    deployed = model.to_deploy()
    assert_same(deployed(inputs), wanted)
    assert not any(part.training for part in deployed.modules())
    assert not any(parameter.requires_grad for parameter in deployed.parameters())
    # The model is left as it was, and can be trained on.
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [part.training for part in model.modules()] == training
    assert all(parameter.requires_grad for parameter in model.parameters())
    make_trainer(max_epochs=1).fit(model, datamodule=data)


@pytest.mark.parametrize("head", [OrthogonalFusion, LinearFusion])
def test_certificates_of_a_deployed_model_are_those_of_the_model(head):
    torch.manual_seed(0)
    model = CRMTModule({"a": LipschitzMLP(12, 16), "b": LipschitzMLP(7, 16)}, 4, head=head).eval()
    deployed = model.to_deploy()
    inputs = {"a": torch.randn(20, 12), "b": torch.randn(20, 7)}
    one, other = model.certify(inputs), deployed.certify(inputs)
    assert one.soundness is other.soundness
    assert torch.equal(one.prediction, other.prediction)
    torch.testing.assert_close(one.radius(), other.radius(), rtol=1e-4, atol=1e-6)
    assert (one.radius() > 0).any()
    assert deployed.certify(inputs, level="rigorous").soundness > other.soundness  # a model as it is is refused
    program = export_program(model, inputs).module()
    assert torch.equal(program(inputs).logits.argmax(dim=1), one.prediction)


def test_values_are_checked_but_in_programs_and_deployed_models():
    model, draw = case("mlp", "orthogonal", 2)
    inputs = draw(3)
    inputs["b"][1, 0] = torch.nan
    with pytest.raises(ValueError, match=r"`inputs\['b'\]` has 1 NaN"):
        model(inputs)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for other in (model.to_deploy(), export_program(model, draw(2)).module(), compiled):
        assert other(inputs).logits.isnan().any(dim=1).tolist() == [False, True, False]
    with pytest.raises(ValueError, match="must have one batch size"):
        model.to_deploy()(draw(3) | {"b": torch.zeros(2, 7)})


def test_programs_refuse_other_shapes():
    model, draw = case("mlp", "orthogonal", 2)
    program = export_program(model, draw(3)).module()
    for wrong in ({"b": torch.zeros(3, 8)}, {"b": torch.zeros(2, 7)}):
        with pytest.raises((RuntimeError, AssertionError)):
            program(draw(3) | wrong)


def test_parametrised_weights_are_stored_and_the_model_keeps_its_own():
    parametrizations = nn.utils.parametrizations
    encoder = nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(12, 16)), parametrizations.weight_norm(nn.Linear(16, 16)), nn.ReLU()
    )
    model = CRMTModule({"a": encoder, "b": MLP(7, 16)}, 4, in_features={"a": 16})
    inputs = {"a": torch.randn(3, 12), "b": torch.randn(3, 7)}
    model(inputs)
    deployed = model.to_deploy()
    kinds = {type(part) for part in deployed.encoders["a"]}
    assert kinds == {nn.Linear, nn.ReLU}
    assert_same(deployed(inputs), model.eval()(inputs))
    assert nn.utils.parametrize.is_parametrized(model.encoders["a"][0])
    assert_same(model(inputs), deployed(inputs))


def test_a_layer_in_two_places_stays_one():
    shared = LipschitzMLP(12, 16)
    deployed = for_inference(nn.ModuleList([shared, nn.Sequential(shared)]))
    assert deployed[0] is deployed[1][0]


def test_precisions():
    model, draw = case("mlp", "orthogonal", 2)
    for dtype in (torch.float64, torch.bfloat16):
        program = export_program(model.to(dtype), draw(2)).module()
        inputs = {name: value.to(dtype) for name, value in draw(3).items()}
        assert_same(program(inputs), model(inputs))


def test_a_model_without_lightning(tmp_path):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoders = nn.ModuleDict({"a": LipschitzMLP(12, 16), "b": MLP(7, 16)})
            self.head = OrthogonalFusion({"a": 16, "b": 16}, 4)

        def forward(self, inputs):
            return self.head({name: encoder(inputs[name]) for name, encoder in self.encoders.items()}).logits

    model, inputs = Plain(), {"a": torch.randn(1, 12), "b": torch.randn(1, 7)}
    torch.export.save(export_program(model, inputs), tmp_path / "model.pt2")
    torch.save(inputs, tmp_path / "inputs.pt")
    # It returns a tensor: a program that runs where this library is not known.
    code = (
        "import sys, torch; inputs = torch.load('inputs.pt'); print(torch.export.load('model.pt2').module()(inputs)"
        ".tolist()); assert not any(name.startswith('lightning') for name in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    torch.testing.assert_close(torch.tensor(eval(shown.stdout)), model(inputs).detach(), rtol=1e-4, atol=1e-5)


def test_onnx_of_outputs_of_other_forms(run_onnx, tmp_path):
    class Plain(nn.Module):
        def forward(self, inputs):
            return {"logits": inputs["a"] * 2, "parts": (inputs["b"] * 5, inputs["a"] + 2)}

    inputs = {"a": torch.ones(2, 3), "b": torch.zeros(2, 3)}
    export_onnx(Plain(), inputs, tmp_path / "model.onnx")
    found = run_onnx(tmp_path / "model.onnx", inputs)
    assert list(found) == ["logits", "parts.0", "parts.1"]
    assert (found["logits"] == 2).all()
    assert (found["parts.0"] == 0).all()
    assert (found["parts.1"] == 3).all()


def test_what_cannot_be_exported_is_said(monkeypatch):
    model, draw = case("mlp", "orthogonal", 2)
    with pytest.raises(TypeError, match="`input_sample` must be one batch of inputs by name, got a NoneType"):
        model.to_onnx("model.onnx")
    with pytest.raises(ValueError, match="`inputs` must have one batch size"):
        export_program(model, draw(2) | {"b": torch.zeros(3, 7)})
    memory = CRMTModule({"a": MLP(12, 16), "b": MLP(7, 16)}, 4, head=MemoryFusion)
    with pytest.raises(TypeError, match="`head` must not be a MemoryFusion to be exported"):
        export_program(memory, draw(2))
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "lightning_crmt\[onnx\]"'):
        export_onnx(model, draw(2))


def test_onnx_takes_the_example_of_a_module(run_onnx, tmp_path):
    model, draw = case("mlp", "orthogonal", 2)
    model.example_input_array = (draw(2),)
    model.to_onnx(tmp_path / "model.onnx")
    inputs = draw(5)
    assert_same(run_onnx(tmp_path / "model.onnx", inputs), model(inputs))
    named = CRMTModule({"logits": MLP(12, 16), "b": MLP(7, 16)}, 4)
    with pytest.raises(ValueError, match=r"must not have names that the outputs have in ONNX, .*; got \['logits'\]"):
        named.to_onnx(None, {"logits": torch.zeros(2, 12), "b": torch.zeros(2, 7)})


def test_example_inputs_of_a_trainer_do_not_disturb(make_trainer):
    """A tuple of the inputs is what Lightning's own summary takes."""
    model, draw = case("mlp", "orthogonal", 2)
    model.example_input_array = (draw(2),)
    trainer: Trainer = make_trainer(enable_model_summary=True)
    trainer.validate(model, DataLoader([(draw(4), torch.tensor([0, 1, 2, 3]))], batch_size=None), verbose=False)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torch's own
def test_aot_inductor(tmp_path):
    """Where there is a compiler, a library that needs no Python."""
    model, draw = case("lipschitz mlp", "orthogonal", 2)
    inductor = pytest.importorskip("torch._inductor")
    try:
        path = inductor.aoti_compile_and_package(
            export_program(model, draw(3)), package_path=str(tmp_path / "model.pt2")
        )
    except Exception as error:  # whatever a machine without a compiler raises
        if "compiler" not in str(error).lower():
            raise
        pytest.skip(f"no compiler: {error}")
    compiled = inductor.aoti_load_package(path)
    for size in (1, 2, 9):
        inputs = draw(size)
        assert_same(compiled(inputs), model(inputs))
