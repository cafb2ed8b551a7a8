# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Bounds of pooling, interpolation and transposed convolutions against the matrix of what they do, and loops."""

import itertools
import math
import random

import pytest
import torch
from test_lipschitz_bound import operator_norm, steepest
from torch import nn
from torch.nn.utils.parametrizations import orthogonal

from lightning_crmt.lipschitz import NoBoundError, lipschitz_bound
from lightning_crmt.lipschitz.bounds import norms, resampling
from lightning_crmt.lipschitz.running_error import Precision, running_error
from lightning_crmt.lipschitz.running_error import _absolute_twin as absolute_twin

#: Linear layers, with a shape of a sample. With it, their bound is their norm.
LINEAR = [
    (nn.AvgPool1d(3, 1), (2, 7)), (nn.AvgPool1d(4, 3, 2), (1, 20)),
    (nn.AvgPool1d(3, 2, 1, count_include_pad=False), (2, 8)),
    (nn.AvgPool1d(3, 2, ceil_mode=True), (1, 8)), (nn.AvgPool2d(3, 1, 1), (2, 5, 6)),
    (nn.AvgPool2d((2, 3), (1, 2), (1, 1), count_include_pad=False), (1, 6, 7)),
    (nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), (1, 6, 5)),
    (nn.AvgPool2d(3, 2, 1, ceil_mode=True), (1, 6, 5)), (nn.AvgPool2d(2, 1, divisor_override=-3), (1, 4, 5)),
    (nn.AvgPool3d(2, 1), (1, 3, 4, 3)), (nn.AvgPool3d(3, 2, 1, count_include_pad=False), (2, 4, 3, 5)),
    (nn.AdaptiveAvgPool1d(3), (2, 7)), (nn.AdaptiveAvgPool2d((2, 5)), (2, 5, 3)),
    (nn.AdaptiveAvgPool2d((None, 2)), (1, 4, 5)),
    (nn.AdaptiveAvgPool3d(2), (1, 3, 4, 5)), (nn.AdaptiveAvgPool3d(1), (2, 3, 2, 2)),
    (nn.Upsample(scale_factor=2), (2, 5)), (nn.Upsample(size=7), (1, 5)), (nn.Upsample(scale_factor=(2, 3)), (2, 3, 4)),
    (nn.Upsample((6, 5), mode="nearest-exact"), (1, 4, 4)), (nn.Upsample(scale_factor=0.5), (1, 8)),
    (nn.Upsample(scale_factor=2, mode="linear"), (2, 5)),
    (nn.Upsample(size=9, mode="linear", align_corners=True), (1, 4)),
    (nn.Upsample(scale_factor=2.5, mode="bilinear"), (1, 4, 3)), (nn.Upsample((3, 9), mode="bilinear"), (2, 5, 4)),
    (nn.Upsample(scale_factor=1.7, mode="bilinear", recompute_scale_factor=True), (1, 4, 5)),
    (nn.Upsample(scale_factor=2, mode="trilinear"), (1, 3, 2, 3)), (nn.UpsamplingNearest2d(scale_factor=2), (1, 3, 3)),
    (nn.UpsamplingBilinear2d(scale_factor=2), (2, 3, 4)),
    (nn.Upsample((5, 1), mode="bilinear", align_corners=True), (1, 3, 4)),
]  # fmt: skip


@pytest.mark.parametrize(("layer", "shape"), LINEAR, ids=str)
def test_the_bound_of_a_resampling_layer_is_its_norm(layer, shape, monkeypatch):
    truth = operator_norm(layer, *shape)
    assert truth * (1 - 1e-12) <= lipschitz_bound(layer, shape) <= truth * (1 + 1e-8)
    try:
        assert truth <= lipschitz_bound(layer) * (1 + 1e-12)
    except NoBoundError as error:  # as it said before, or would be infinite
        assert "`input_shape`" in str(error)  # noqa: PT017
    # Long axes have their sums bounded in place of their matrix written out.
    monkeypatch.setattr(resampling, "_DENSE_UP_TO", 0)
    with torch.inference_mode():
        assert truth <= lipschitz_bound(layer, shape) * (1 + 1e-12)
    assert lipschitz_bound(layer, shape) <= truth * 1.25 ** (len(shape) - 1)


def test_overlapping_windows_have_less_than_the_sum_of_their_rows():
    layer = nn.AvgPool2d(3, 2)
    with_shape = lipschitz_bound(layer, (1, 9, 9))
    assert with_shape < 0.9 * lipschitz_bound(layer)
    long = nn.AvgPool1d(400, 160)
    assert lipschitz_bound(long, (1, 16000)) <= lipschitz_bound(long) * (1 + 1e-8)
    assert lipschitz_bound(nn.AdaptiveAvgPool1d(1), (1, 10**6)) == pytest.approx(1e-3, rel=1e-8)


def transposed(x, layer):
    """Every input adds the kernel to the output at its own place, in loops."""
    axes = x.dim() - 1
    sizes = [
        (n - 1) * s - 2 * p + d * (k - 1) + o + 1
        for n, s, p, d, k, o in zip(
            x.shape[1:], layer.stride, layer.padding, layer.dilation, layer.kernel_size, layer.output_padding,
            strict=True,
        )
    ]  # fmt: skip
    out = torch.zeros(layer.out_channels, *sizes, dtype=x.dtype)
    ins, outs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    for group, i, o in itertools.product(range(layer.groups), range(ins), range(outs)):
        for place in itertools.product(*map(range, x.shape[1:])):
            for tap in itertools.product(*map(range, layer.kernel_size)):
                at = tuple(
                    place[a] * layer.stride[a] - layer.padding[a] + tap[a] * layer.dilation[a] for a in range(axes)
                )
                if all(0 <= each < size for each, size in zip(at, sizes, strict=True)):
                    weight = layer.weight[(group * ins + i, o, *tap)]
                    out[(group * outs + o, *at)] += x[(group * ins + i, *place)] * weight
    return out


TRANSPOSED = [
    (nn.ConvTranspose1d(2, 3, 4, 2, 1), (2, 6)), (nn.ConvTranspose1d(4, 2, 3, 3, 2, 2, 2, dilation=2), (4, 5)),
    (nn.ConvTranspose2d(2, 4, (3, 2), (2, 1), 1, 0, 2), (2, 4, 3)), (nn.ConvTranspose2d(3, 2, 3, 2, 1, 1), (3, 3, 4)),
    (nn.ConvTranspose3d(2, 1, 2, 2), (2, 2, 2, 2)), (nn.ConvTranspose3d(1, 2, 3, 1, 1), (1, 3, 2, 3)),
]  # fmt: skip


@pytest.mark.parametrize(("layer", "shape"), TRANSPOSED, ids=str)
def test_transposed_convolutions(layer, shape, monkeypatch):
    layer = layer.double()
    x = torch.randn(1, *shape, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(layer(x)[0] - layer(0 * x)[0], transposed(x[0], layer))
    truth = operator_norm(layer, *shape)
    assert truth <= lipschitz_bound(layer, shape) <= truth * (1 + 1e-8)
    monkeypatch.setattr(norms, "_DENSE_UP_TO", 0)
    assert truth <= lipschitz_bound(layer, shape) <= truth * 1.25 ** (len(shape) - 1)  # on a torus, for small inputs
    assert lipschitz_bound(layer) >= truth  # of every size


@pytest.mark.parametrize("seed", range(2))
def test_convolutions_along_three_axes(seed, monkeypatch):
    rng = random.Random(seed)
    for _ in range(4):
        kernel, size = [rng.randint(1, 3) for _ in range(3)], [rng.randint(3, 4) for _ in range(3)]
        stride, dilation = [rng.randint(1, 2) for _ in range(3)], [1, 1, rng.choice([1, 1, 2]) if kernel[2] < 3 else 1]
        mode = rng.choice(["zeros", "zeros", "circular", "replicate", "reflect"])
        torch.manual_seed(rng.randint(0, 10**6))
        layer = nn.Conv3d(2, 2 * rng.randint(1, 2), kernel, stride, rng.randint(0, 1), dilation, 1, True, mode).double()
        shape = (2, *size)
        truth = operator_norm(layer, *shape)
        assert truth <= lipschitz_bound(layer, shape) <= truth * (1 + 1e-8)
        with monkeypatch.context() as patch:
            patch.setattr(norms, "_DENSE_UP_TO", 0)
            assert lipschitz_bound(layer, shape) >= truth
        if mode == "zeros":
            assert lipschitz_bound(layer) >= truth


def test_a_convolution_along_three_axes_on_large_inputs():
    torch.manual_seed(0)
    layer = nn.Conv3d(2, 2, 3, padding=1).double()
    symbol = torch.fft.fftn(layer.weight.detach(), s=(40, 40, 40), dim=(2, 3, 4)).movedim((0, 1), (3, 4))
    truth = float(torch.linalg.matrix_norm(symbol, 2).max())
    assert truth <= lipschitz_bound(layer) <= truth * 1.06


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.LPPool1d(2, 3, 1), (2, 8)), (nn.LPPool2d(2, 2), (1, 4, 4)), (nn.LPPool2d(2, (3, 2), (2, 1)), (1, 7, 6)),
     (nn.LPPool3d(2, 2, 1), (1, 3, 3, 3))],
    ids=str,
)  # fmt: skip
def test_pooling_by_norms(layer, shape):
    torch.manual_seed(0)
    # A number above all others is the norm of every window it is in.
    spikes = 1e-9 + torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    seen = steepest(layer, [*torch.randn(20, *shape, dtype=torch.float64), *spikes])
    assert seen <= lipschitz_bound(layer, shape) * (1 + 1e-12)
    assert lipschitz_bound(layer) <= seen * (1 + 1e-6)


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (nn.LPPool1d(1, 2), None, "`norm_type` must be 2, got 1"),
        (nn.LPPool1d(2, 2, ceil_mode=True), None, "`ceil_mode` must be False"),
        (nn.Upsample(scale_factor=2), None, "the bound needs `input_shape`"),
        (nn.Upsample(scale_factor=2, mode="bicubic"), (1, 3, 3), "`mode` must be nearest"),
        (nn.Upsample(scale_factor=2), (3,), "must have channels and axes"),
        (nn.Upsample((4, 4), mode="bilinear"), (1, 3), "`input_shape` does not fit: a Upsample got"),
        (nn.Upsample(scale_factor=1.1, mode="linear"), (1, 5), "it keeps the 5 inputs of an axis"),
        (nn.Upsample(scale_factor=(2, 1.3), mode="bilinear"), (1, 4, 3), "it keeps the 3 inputs of an axis"),
        (nn.AdaptiveAvgPool1d(2), None, "`output_size` must be 1 if `input_shape` is not given, got 2"),
        (nn.AvgPool3d(2, ceil_mode=True), None, "`ceil_mode` or .* needs `input_shape`"),
        (nn.AdaptiveAvgPool2d(2), (3, 4), "channels and 2 axes"),
    ],
)
def test_what_has_no_bound_says_why(layer, shape, message):
    with pytest.raises(NoBoundError, match=message):
        lipschitz_bound(layer, shape)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [*LINEAR, *TRANSPOSED, (nn.Conv3d(2, 3, 3, padding=1), (2, 4, 4, 4)), (nn.LPPool2d(2, 2, 1), (2, 5, 5)),
     (nn.MaxPool3d(2), (1, 4, 4, 4)), (nn.AdaptiveMaxPool3d(1), (1, 4, 4, 4))],
    ids=str,
)  # fmt: skip
def test_features_in_single_precision_are_within_the_stated_error(layer, shape):
    torch.manual_seed(0)
    layer = layer.float()
    twin = type(layer).__new__(type(layer))
    twin.__dict__ = layer.__dict__.copy()
    twin._parameters = {name: None if p is None else nn.Parameter(p.double()) for name, p in layer._parameters.items()}
    twin.requires_grad_(False)
    x = torch.randn(30, *shape) * torch.logspace(-12, 3, 30).reshape(-1, *[1] * len(shape))
    precision = Precision(torch.float32, torch.device("cpu"))
    features, error = running_error(layer, twin, x.double(), precision, lipschitz_bound)
    with torch.no_grad():
        off = (layer(x).double() - features).flatten(1).norm(dim=1)
    assert (off <= error).all()
    # Far below what is there.
    biases = 1e-3 * bool(layer._parameters) + 1e-15
    assert (error <= 1e-3 * math.sqrt(features[0].numel()) * x.double().abs().flatten(1).amax(1) + biases).all()


@pytest.mark.parametrize(("sizes", "size", "mode"), [((1000,), 3, "linear"), ((3, 999), (5, 7), "bilinear")], ids=str)
def test_positions_among_many_inputs_are_within_the_stated_error(sizes, size, mode):
    torch.manual_seed(0)
    layer = nn.Upsample(size, mode=mode)
    x = torch.randn(30, 1, *sizes).sign()
    precision = Precision(torch.float32, torch.device("cpu"))
    features, error = running_error(layer, layer, x.double(), precision, lipschitz_bound)
    off = (layer(x).double() - features).flatten(1).norm(dim=1)
    assert (off <= error).all()
    assert (error <= 1e-2).all()


def test_settings_that_a_layer_does_not_read_change_no_bound():
    layer = nn.AvgPool1d(2)
    layer.divisor_override = 9  # the averages along more axes read it
    assert lipschitz_bound(layer) >= operator_norm(layer.double(), 1, 4)
    assert lipschitz_bound(layer, (1, 4)) >= operator_norm(layer, 1, 4)


def test_magnitudes_are_of_the_weight_and_not_of_what_it_is_made_of():
    torch.manual_seed(0)
    layer = orthogonal(nn.ConvTranspose1d(2, 3, 3)).double()
    x = torch.randn(1, 2, 5, dtype=torch.float64)
    with torch.no_grad():
        wanted = nn.functional.conv_transpose1d(x, layer.weight.abs(), layer.bias.abs())
        torch.testing.assert_close(absolute_twin(layer)(x), wanted)
    assert layer.parametrizations  # that of the layer itself stays
