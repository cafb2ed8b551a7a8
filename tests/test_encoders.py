# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Encoders of images, videos, spectrograms and sensors, and those of other libraries by class path."""

import importlib
import itertools
import math
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader

from lightning_crmt import CRMTModule
from lightning_crmt.cli import command_line
from lightning_crmt.data import MultimodalDataset
from lightning_crmt.encoders import ConvNet1d, ConvNet2d, ResNet18, ResNet18Tokens
from lightning_crmt.fusion import AttentionFusion
from lightning_crmt.lipschitz import encoder_bounds, lipschitz_bound


def settled(encoder, seed=0):
    """In evaluation mode and double precision, with statistics and gains as after training."""
    generator = torch.Generator().manual_seed(seed)
    for part in encoder.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            for value in (part.running_mean, part.bias.data):
                value.copy_(0.3 * torch.randn(value.shape, generator=generator))
            for value in (part.running_var, part.weight.data):
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
    return encoder.eval().double()


def images(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ResNet-18: what its paper draws, written down a second time.


def expected_shapes(in_channels, width):
    """Names and shapes of the entries, in order."""
    shapes = {}

    def convolution(name, out, into, size):
        shapes[f"{name}.weight"] = (out, into, size, size)

    def norm(name, size):
        shapes.update({f"{name}.{part}": (size,) for part in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{name}.num_batches_tracked"] = ()

    convolution("conv1", width, in_channels, 7)
    norm("bn1", width)
    into = width
    for stage, out in enumerate([width, 2 * width, 4 * width, 8 * width], 1):
        for block in (0, 1):
            name = f"layer{stage}.{block}"
            convolution(f"{name}.conv1", out, into, 3)
            norm(f"{name}.bn1", out)
            convolution(f"{name}.conv2", out, out, 3)
            norm(f"{name}.bn2", out)
            if into != out:
                convolution(f"{name}.downsample.0", out, into, 1)
                norm(f"{name}.downsample.1", out)
            into = out
    return shapes


def expected_maps(weights, x):
    """The last feature maps from a dictionary of weights."""

    def norm(name, x):
        mean, var, gain, bias = (
            weights[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(var + 1e-5) * gain + bias

    def convolution(name, x, stride, padding):
        return F.conv2d(x, weights[f"{name}.weight"], stride=stride, padding=padding)

    x = F.max_pool2d(norm("bn1", convolution("conv1", x, 2, 3)).clamp(min=0), 3, 2, 1)
    for stage, block in itertools.product((1, 2, 3, 4), (0, 1)):
        name = f"layer{stage}.{block}"
        stride = 2 if stage > 1 and block == 0 else 1
        inner = norm(f"{name}.bn1", convolution(f"{name}.conv1", x, stride, 1)).clamp(min=0)
        inner = norm(f"{name}.bn2", convolution(f"{name}.conv2", inner, 1, 1))
        if stride == 2:
            x = norm(f"{name}.downsample.1", convolution(f"{name}.downsample.0", x, 2, 0))
        x = (x + inner).clamp(min=0)
    return x


@pytest.mark.parametrize(
    ("kind", "in_channels", "width"), [(ResNet18, 3, 64), (ResNet18, 1, 6), (ResNet18Tokens, 2, 4)]
)
def test_resnet_has_the_names_and_shapes_of_torchvision(kind, in_channels, width):
    encoder = kind(in_channels, width)
    assert {name: tuple(value.shape) for name, value in encoder.state_dict().items()} == expected_shapes(
        in_channels, width
    )
    assert encoder.out_features == 8 * width


def test_resnet_has_the_size_of_torchvision_without_fc():
    encoder = ResNet18()
    # 11,689,512 with a classifier of 1000 * 512 weights and 1000 biases
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 11_176_512
    assert len(encoder.state_dict()) == 120
    assert encoder.out_features == 512


def test_pretrained_weights_load_without_fc():
    shapes = {**expected_shapes(3, 4), "fc.weight": (1000, 32), "fc.bias": (1000,)}
    weights = {name: torch.rand(shape) if shape else torch.tensor(7) for name, shape in shapes.items()}
    encoder = ResNet18(3, 4)
    found = encoder.load_state_dict(weights, strict=False)
    assert found.missing_keys == []
    assert found.unexpected_keys == ["fc.weight", "fc.bias"]
    x = images(2, 3, 40, 33)
    doubled = {name: value.double() for name, value in weights.items()}
    assert_close(encoder.eval().double()(x), expected_maps(doubled, x).mean(dim=(2, 3)))


@pytest.mark.parametrize(("in_channels", "height", "width"), [(3, 64, 64), (1, 33, 70), (2, 1, 1)])
def test_resnet_features(in_channels, height, width):
    encoder = settled(ResNet18(in_channels, 4))
    x = images(2, in_channels, height, width)
    maps = expected_maps(encoder.state_dict(), x)
    assert maps.shape[2:] == (math.ceil(height / 32), math.ceil(width / 32))
    assert_close(encoder(x), maps.mean(dim=(2, 3)))


def test_a_stack_of_frames_has_the_mean_of_its_frames():
    encoder = settled(ResNet18(3, 4))
    x = images(2, 5, 3, 40, 48)
    slow = torch.stack([sum(encoder(x[i, t][None])[0] for t in range(5)) / 5 for i in range(2)])
    assert_close(encoder(x), slow)
    assert_close(encoder(x[:, :1]), encoder(x[:, 0]))


def test_frames_train_like_one_batch_of_images():
    stacked, flat = ResNet18(1, 4).double(), ResNet18(1, 4).double()
    flat.load_state_dict(stacked.state_dict())
    x = images(2, 3, 1, 32, 32)
    assert_close(stacked(x), flat(x.flatten(0, 1)).reshape(2, 3, 32).mean(dim=1))
    assert_close(stacked.state_dict(), flat.state_dict())
    assert stacked.bn1.num_batches_tracked == 1


def test_kaiming_initialisation_by_outputs():
    torch.manual_seed(0)
    encoder = ResNet18(3, 32)
    for name, part in encoder.named_modules():
        if isinstance(part, nn.Conv2d):
            expected = math.sqrt(2 / (part.out_channels * part.kernel_size[0] ** 2))
            assert part.weight.std().item() == pytest.approx(expected, rel=0.05), name
        if isinstance(part, nn.BatchNorm2d):
            assert (part.weight == 1).all()
            assert (part.bias == 0).all()


# Tokens.


def slow_positions(count, size):
    rows = []
    for t in range(count):
        row = []
        for i in range(size // 2):
            angle = t / 10000 ** (2 * i / size)
            row += [math.sin(angle), math.cos(angle)]
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


def test_a_token_per_frame():
    tokens, vector = settled(ResNet18Tokens(3, 4)), settled(ResNet18(3, 4))
    vector.load_state_dict(tokens.state_dict())
    x = images(2, 6, 3, 40, 48)
    slow = torch.stack([vector(x[:, t]) for t in range(6)], dim=1)
    assert_close(tokens(x), slow + slow_positions(6, 32))


@pytest.mark.parametrize("axis", ["height", "width"])
@pytest.mark.parametrize("moments", [20, 64, 200])
def test_a_token_per_moment_of_a_spectrogram(moments, axis):
    encoder = settled(ResNet18Tokens(1, 4, time_axis=axis))
    x = images(2, 1, moments, 64) if axis == "height" else images(2, 1, 64, moments)
    maps = expected_maps(encoder.state_dict(), x)
    count = math.ceil(moments / 32)
    rows = [maps[:, :, t] if axis == "height" else maps[:, :, :, t] for t in range(count)]
    slow = torch.stack([row.mean(dim=2) for row in rows], dim=1)
    assert_close(encoder(x), slow + slow_positions(count, 32))


def test_time_is_where_our_spectrograms_have_it():
    encoder = settled(ResNet18Tokens(1, 2))
    x = images(1, 1, 1024, 32)
    later = x.clone()
    later[:, :, 800:] += 1
    before, after = encoder(x)[0], encoder(later)[0]
    assert len(before) == 32
    assert_close(before[0], after[0], rtol=0, atol=0)
    assert not torch.allclose(before[-1], after[-1])


def test_attention_sees_the_order_of_frames():
    torch.manual_seed(0)
    model = CRMTModule(
        {"audio": ResNet18Tokens(1, 2), "image": ResNet18Tokens(3, 2)}, num_classes=4, rho=0.0, head=AttentionFusion
    ).eval()
    inputs = {"audio": torch.randn(2, 1, 96, 64), "image": torch.randn(2, 3, 3, 32, 32)}
    reversed_frames = {**inputs, "image": inputs["image"].flip(1)}
    logits = model(inputs).logits
    assert logits.shape == (2, 4)
    assert not torch.allclose(logits, model(reversed_frames).logits, rtol=0, atol=1e-4)
    # A mean over time cannot know it.
    vector = ResNet18(3, 2).eval()
    assert_close(vector(inputs["image"]), vector(reversed_frames["image"]))


def test_positions_in_half_precision_are_rounded_once(monkeypatch):
    encoder = ResNet18Tokens(1, 8).eval()
    # In place of the convolutions, whose bfloat16 kernels may make NaN of zeros where freed memory held NaN.
    monkeypatch.setattr(encoder, "_maps", lambda x: torch.zeros(1, 64, 70, 1, dtype=torch.bfloat16))
    tokens = encoder(torch.zeros(1, 1, 32 * 70, 32))
    assert tokens.dtype == torch.bfloat16
    # Of zero maps, the positions are left.
    assert_close(tokens[0].double(), slow_positions(70, 64), rtol=0, atol=2**-8)


# Small networks.


def slow_convnet(encoder, x):
    """One sample through the network, by loops over every output."""
    layers = list(encoder.layers)
    signal = x.numpy()
    for convolution, norm in zip(layers[0:-3:4], layers[1:-3:4], strict=True):
        kernel = convolution.weight.detach().numpy()
        around = [(0, 0)] + [(size // 2, size // 2) for size in kernel.shape[2:]]
        padded = np.pad(signal, around)
        found = np.empty((len(kernel), *signal.shape[1:]))
        for at in np.ndindex(*found.shape):
            window = (slice(None), *(slice(i, i + k) for i, k in zip(at[1:], kernel.shape[2:], strict=True)))
            found[at] = (padded[window] * kernel[at[0]]).sum()
        mean, var, gain, bias = (
            value.detach().numpy().reshape(-1, *[1] * (signal.ndim - 1))
            for value in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        )
        found = np.maximum((found - mean) / np.sqrt(var + 1e-5) * gain + bias, 0)
        signal = np.empty((len(found), *(size // 2 for size in found.shape[1:])))
        for at in np.ndindex(*signal.shape):
            signal[at] = found[(at[0], *(slice(2 * i, 2 * i + 2) for i in at[1:]))].max()
    mean = torch.from_numpy(signal.reshape(len(signal), -1).mean(axis=1))
    return layers[-1].weight @ mean + layers[-1].bias


@pytest.mark.parametrize(
    ("encoder", "shape"),
    [
        (ConvNet1d(2, 5, channels=(3, 4)), (2, 13)),
        (ConvNet1d(1, 5, channels=(3,), kernel_size=3), (1, 2)),
        (ConvNet2d(2, 5, channels=(3, 4)), (2, 5, 8)),
        (ConvNet2d(1, 5, channels=[2], kernel_size=5), (1, 6, 7)),
    ],
)
def test_convnet_by_loops(encoder, shape):
    encoder = settled(encoder)
    x = images(3, *shape)
    assert_close(encoder(x), torch.stack([slow_convnet(encoder, sample) for sample in x]))


ANY_SIZE = [
    (lambda: ConvNet1d(3, 8), [(3, 8), (3, 100), (3, 251)]),
    (lambda: ConvNet2d(1, 8), [(1, 8, 8), (1, 28, 28), (1, 64, 41)]),
    (lambda: ResNet18(3, 2), [(3, 33, 40), (2, 3, 40, 33)]),
    (lambda: ResNet18Tokens(1, 2), [(1, 33, 40), (2, 1, 40, 33)]),
]


@pytest.mark.parametrize(("make", "shapes"), ANY_SIZE)
def test_every_size_trains_every_parameter_even_alone(make, shapes):
    encoder = make()
    for shape in shapes:
        encoder.zero_grad()
        features = encoder(torch.randn(1, *shape))
        assert features.shape[0] == 1
        assert features.shape[-1] == encoder.out_features
        (features * torch.randn(features.shape)).sum().backward()
        assert all(parameter.grad is not None for parameter in encoder.parameters())
    encoder.zero_grad()
    (encoder(torch.randn(4, *shapes[-1])) ** 3).sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in encoder.parameters())


@pytest.mark.parametrize(("make", "shapes"), ANY_SIZE)
def test_a_sample_does_not_depend_on_its_batch(make, shapes):
    encoder = settled(make())
    for shape in shapes:
        x = images(5, *shape)
        whole = encoder(x)
        assert_close(torch.cat([encoder(x[:2]), encoder(x[2:])]), whole)
        assert_close(encoder(x.flip(0)).flip(0), whole)


def test_convnets_learn(make_trainer):
    """Rising against falling, and lying against standing stripes, from noise."""
    torch.manual_seed(0)
    target = torch.arange(256) % 2
    sign = (2 * target - 1)[:, None, None]
    sensor = sign * torch.linspace(-1, 1, 40) + 0.5 * torch.randn(256, 1, 40)
    stripes = (torch.arange(16) // 2 % 2 * 2.0 - 1).expand(16, 16)
    image = torch.where(sign > 0, stripes, stripes.mT)[:, None] + 0.5 * torch.randn(256, 1, 16, 16)
    halves = [
        DataLoader(MultimodalDataset({"sensor": sensor[rows], "image": image[rows]}, target[rows]), batch_size=32)
        for rows in (slice(0, 128), slice(128, 256))
    ]
    model = CRMTModule({"sensor": ConvNet1d(1, 8, (8, 8)), "image": ConvNet2d(1, 8, (8, 8))}, num_classes=2)
    trainer = make_trainer(max_epochs=8)
    trainer.fit(model, *halves)
    found = trainer.callback_metrics
    assert min(found[f"val/accuracy/{name}"] for name in ("joint", "sensor", "image")) > 0.9


# Bad input.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResNet18(0), "`in_channels` must be at least 1, got 0"),
        (lambda: ResNet18Tokens(1, 0), "`width` must be at least 1, got 0"),
        (lambda: ResNet18Tokens(1, 4, "time"), "`time_axis` must be 'height' or 'width', got 'time'"),
        (lambda: ConvNet1d(0, 8), "`in_channels` must be at least 1, got 0"),
        (lambda: ConvNet2d(1, 0), "`out_features` must be at least 1, got 0"),
        (
            lambda: ConvNet2d(1, 8, channels=(4, 0)),
            "`channels` must hold .* at least 1, got \\[4, 0\\]",
        ),
        (lambda: ConvNet1d(1, 8, channels=()), "`channels` must hold .* at least 1, got \\[\\]"),
        (lambda: ConvNet1d(1, 8, kernel_size=4), "`kernel_size` must be odd and at least 1, got 4"),
        (lambda: ConvNet2d(1, 8, kernel_size=-1), "`kernel_size` must be odd and at least 1, got -1"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("encoder", "shape", "message"),
    [
        (
            ResNet18(3, 2),
            (2, 40, 40),
            "must have shape \\(B, 3, H, W\\) or \\(B, T, 3, H, W\\), got .*\\(2, 40, 40\\)",
        ),
        (
            ResNet18(3, 2),
            (2, 1, 40, 40),
            "must have shape \\(B, 3, H, W\\) .* got .* \\(2, 1, 40, 40\\)",
        ),
        (ResNet18(3, 2), (2, 3, 4, 40, 40), "or \\(B, T, 3, H, W\\), got .* \\(2, 3, 4, 40, 40\\)"),
        (ResNet18(3, 2), (2, 0, 3, 40, 40), "or \\(B, T, 3, H, W\\), got .* \\(2, 0, 3, 40, 40\\)"),
        (ResNet18Tokens(1, 2), (2, 3, 40, 40), "must have shape \\(B, 1, H, W\\) or \\(B, T, 1, H, W\\), got"),
        (ConvNet1d(3, 4), (2, 100), "must have shape \\(B, 3, T\\), T at least 8 .* got .* \\(2, 100\\)"),
        (ConvNet1d(3, 4), (100,), "must have shape \\(B, 3, T\\), .* got .* \\(100,\\)"),
        (ConvNet1d(3, 4), (2, 100, 30), "must have shape \\(B, 3, T\\), .* got .* \\(2, 100, 30\\)"),
        (ConvNet1d(3, 4, channels=(4, 4)), (2, 3, 3), "T at least 4 to be halved once per entry of `channels`"),
        (
            ConvNet2d(1, 4),
            (2, 28, 28),
            "must have shape \\(B, 1, H, W\\), H and W at least 8 .*got .*\\(2, 28, 28\\)",
        ),
        (ConvNet2d(1, 4), (2, 3, 28, 28), "must have shape \\(B, 1, H, W\\), .* got .* \\(2, 3, 28, 28\\)"),
        (ConvNet2d(1, 4), (2, 1, 28, 7), "H and W at least 8 .* got .* \\(2, 1, 28, 7\\)"),
    ],
)
def test_bad_input(encoder, shape, message):
    with pytest.raises(ValueError, match=f"^`x` .*{message}"):
        encoder(torch.zeros(shape))


# Bounds.


@pytest.mark.parametrize("kind", [ResNet18, ResNet18Tokens])
def test_resnet_has_no_bound_and_says_so(kind):
    message = f"the encoder of 'image': no Lipschitz bound is known for the module, a {kind.__name__}"
    with pytest.raises(ValueError, match=message):
        encoder_bounds({"image": kind(3, 2)})


@pytest.mark.parametrize(
    ("encoder", "shape"), [(ConvNet1d(2, 5, (4, 6)), (2, 20)), (ConvNet2d(1, 5, (3, 4)), (1, 9, 12))]
)
def test_the_layers_of_convnets_have_bounds(encoder, shape):
    encoder = settled(encoder)
    general, fitted = lipschitz_bound(encoder.layers), lipschitz_bound(encoder.layers, shape)
    assert fitted <= general
    x = images(1, *shape).requires_grad_()
    jacobian = torch.autograd.functional.jacobian(lambda x: encoder(x).flatten(), x).flatten(1)
    assert 0 < torch.linalg.matrix_norm(jacobian, ord=2) <= fitted


# Encoders of other libraries.

FOREIGN = '''
from typing import Any, Optional

from torch import nn


class Net(nn.Module):
    def __init__(self, inputs: int = 76, num_classes: int = 17) -> None:
        super().__init__()
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, x):
        return self.fc(x)


def net18(*, weights: Optional[str] = None, progress: bool = True, **kwargs: Any) -> Net:
    """As torchvision's resnet18: a function, the settings of the class behind ``kwargs``."""
    return Net(**kwargs)


def untyped(num_classes: int = 17):
    return Net(num_classes=num_classes)
'''


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A library of somebody else; it stays imported, for jsonargparse looks through all subclasses of nn.Module."""
    root = tmp_path_factory.mktemp("site")
    (root / "fakevision").mkdir()
    (root / "fakevision" / "models.py").write_text(FOREIGN)
    (root / "fakevision" / "__init__.py").write_text("from fakevision.models import net18 as net18\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root)
        importlib.import_module("fakevision")


@pytest.fixture
def run(foreign, tmp_path, monkeypatch):
    """Make a model from YAML with this encoder of the modality fou, and train one batch."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-crmt"])

    def fit(fou, **settings):
        encoders = {"fou": fou, "mor": {"class_path": "MLP", "init_args": {"in_features": 6, "out_features": 16}}}
        settings = {"num_classes": 10, "encoders": encoders, **settings}
        quiet = ("enable_progress_bar", "enable_model_summary", "logger")
        config = {
            "model": {"class_path": "CRMTModule", "init_args": settings},
            "data": {"class_path": "UCIMultiFeatures", "init_args": {"views": ["fou", "mor"]}},
            "trainer": {"fast_dev_run": 1, "accelerator": "cpu", **dict.fromkeys(quiet, False)},
        }
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(config))
        return command_line(["fit", "--config", str(path)]).model

    return fit


@pytest.mark.parametrize("path", ["fakevision.models.Net", "fakevision.models.net18", "fakevision.net18"])
def test_a_foreign_class_or_function_by_its_path(path, run):
    model = run({"class_path": path, "init_args": {"num_classes": 20}}, in_features={"fou": 20})
    assert type(model.encoders["fou"]).__name__ == "Net"
    assert model.head.in_features == {"fou": 20, "mor": 16}


def test_a_size_that_cannot_be_found_is_asked_for(run):
    message = "`in_features` must give the size of the features of 'fou': its encoder, a Net, has no `out_features`"
    with pytest.raises(ValueError, match=message):
        run({"class_path": "fakevision.net18"})


def test_a_size_that_is_wrong_is_named_with_the_right_one(run):
    with pytest.raises(ValueError, match=r"`features\['fou'\]` must have shape \(B, 16\).* got .* \(64, 17\)"):
        run({"class_path": "fakevision.net18"}, in_features={"fou": 16})


@pytest.mark.parametrize(
    ("encoder", "words"),
    [
        ({"class_path": "fakevision.net19"}, "module 'fakevision' has no attribute 'net19'"),
        ({"class_path": "fakevisio.net18"}, "No module named 'fakevisio'"),
        ({"class_path": "fakevision.net18", "init_args": {"classes": 20}}, "'classes' is not accepted"),
        # Without an annotation nobody knows that it returns a module.
        ({"class_path": "fakevision.models.untyped"}, "fakevision.models.untyped does not correspond to a subclass"),
    ],
)
def test_a_wrong_path_is_explained(encoder, words, run, capsys):
    with pytest.raises(SystemExit):
        run(encoder, in_features={"fou": 17})
    assert words in capsys.readouterr().err


def test_our_encoders_by_their_short_names(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lightning-crmt"])
    encoders = {
        "sensor": {"class_path": "ConvNet1d", "init_args": {"in_channels": 3, "out_features": 12, "channels": [4, 4]}},
        "digit": {"class_path": "ConvNet2d", "init_args": {"in_channels": 1, "out_features": 11, "kernel_size": 5}},
        "audio": {"class_path": "ResNet18", "init_args": {"in_channels": 1, "width": 2}},
        "video": {"class_path": "ResNet18Tokens", "init_args": {"width": 3, "time_axis": "width"}},
    }
    config = {
        "model": {
            "class_path": "CRMTModule",
            "init_args": {"encoders": encoders, "num_classes": 5, "head": "AttentionFusion"},
        },
        "data": {"class_path": "UCIMultiFeatures"},
        "trainer": {"logger": False, "accelerator": "cpu", "enable_checkpointing": False},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    model = command_line(["--config", str(path)], run=False).model
    assert {name: type(encoder).__name__ for name, encoder in model.encoders.items()} == {
        name: settings["class_path"] for name, settings in encoders.items()
    }
    assert model.head.in_features == {"sensor": 12, "digit": 11, "audio": 16, "video": 24}
    inputs = {"sensor": (3, 50), "digit": (1, 28, 28), "audio": (1, 64, 40), "video": (4, 3, 32, 32)}
    output = model({name: torch.randn(2, *shape) for name, shape in inputs.items()})
    assert output.logits.shape == (2, 5)
    assert {name: tuple(value.shape[1:]) for name, value in output.features.items()} == {
        "sensor": (12,), "digit": (11,), "audio": (16,), "video": (4, 24),
    }  # fmt: skip
