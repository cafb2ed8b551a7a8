# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
import copy
import itertools
import math
import pickle
import random

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lightning_crmt.encoders import LipschitzCNN, LipschitzMLP
from lightning_crmt.fusion import OrthogonalFusion
from lightning_crmt.layers import (
    GroupSort,
    MaxMin,
    OrthogonalConv1d,
    OrthogonalConv2d,
    OrthogonalConvTranspose1d,
    OrthogonalConvTranspose2d,
    OrthogonalLinear,
    Residual,
    Scale,
    ScaledAvgPool1d,
    ScaledAvgPool2d,
    ScaledPad,
    with_fixed_weights,
)
from lightning_crmt.layers.orthogonal import kept_rows, orthonormal_rows
from lightning_crmt.lipschitz import estimate_lipschitz, lipschitz_bound
from lightning_crmt.lipschitz.bounds import norms
from lightning_crmt.lipschitz.running_error import Precision, running_error

#: in_channels, out_channels, kernel_size, stride
CONVOLUTIONS = [
    (1, 1, 1, 1), (1, 1, 3, 1), (1, 6, 3, 1), (6, 6, 3, 1), (6, 3, 3, 1), (3, 6, 2, 1), (4, 4, 5, 1),
    (3, 6, 2, 2), (2, 8, 2, 2), (8, 3, 2, 2), (3, 6, 3, 2), (2, 9, 4, 2), (1, 4, 4, 2), (2, 5, 5, 3), (3, 3, 3, 3),
]  # fmt: skip


def dense(layer, *shape):
    """The matrix of an affine layer on one sample of this shape: what it does to each unit vector."""
    basis = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    with torch.no_grad():
        return (layer(basis) - layer(torch.zeros_like(basis))).flatten(1).mT


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (7, 3), (5, 5), (2, 3, 7)])
def test_orthonormal_rows(shape):
    raw = torch.randn(*shape, dtype=torch.float64)
    if shape[-2] > shape[-1]:
        raw = raw.mT
    rows = orthonormal_rows(raw)
    eye = torch.eye(raw.shape[-2], dtype=torch.float64).expand(*raw.shape[:-2], -1, -1)
    assert_close(rows @ rows.mT, eye, atol=1e-13, rtol=0)
    # Unique, and what is orthonormal stays as it is.
    assert_close(orthonormal_rows(3 * raw), rows)
    assert_close(orthonormal_rows(rows), rows)


def test_the_head_has_the_same_rows():
    head = OrthogonalFusion({"audio": 8}, num_classes=4)
    assert torch.equal(head.directions["audio"], orthonormal_rows(head.raw_directions["audio"]))


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4), (1, 6), (6, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_orthogonal_linear(shape, dtype):
    layer = OrthogonalLinear(*shape).to(dtype)
    nn.init.normal_(layer.raw)  # wherever the optimiser took it
    short = min(shape)
    gram = layer.weight @ layer.weight.mT if shape[1] <= shape[0] else layer.weight.mT @ layer.weight
    assert layer.weight.dtype is dtype
    assert_close(gram, torch.eye(short, dtype=dtype), atol=1e-5 if dtype is torch.float32 else 1e-13, rtol=0)
    x = torch.randn(7, shape[0], dtype=dtype)
    assert_close(layer(x), x @ layer.weight.mT + layer.bias)
    assert OrthogonalLinear(*shape, bias=False).bias is None


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("mode", ["zeros", "circular"])
@pytest.mark.parametrize("setting", CONVOLUTIONS, ids=str)
def test_orthogonal_convolutions_have_norm_at_most_one(dims, mode, setting):
    ins, outs, kernel, stride = setting
    torch.manual_seed(0)
    kind = OrthogonalConv1d if dims == 1 else OrthogonalConv2d
    layer = kind(ins, outs, kernel, stride, padding_mode=mode).double()
    for raw in layer.parameters():
        nn.init.normal_(raw)
    size = 2 * stride * math.ceil(kernel / stride)
    singular = torch.linalg.svdvals(dense(layer, ins, *[size] * dims))
    assert singular[0] < 1 + 1e-12
    assert singular[0] > 0.9
    if mode == "circular" and (kernel - stride) % 2 == 0:
        assert_close(singular, torch.ones_like(singular), atol=1e-10, rtol=0)  # isometry, or its adjoint
        assert layer(torch.zeros(1, ins, *[size] * dims, dtype=torch.float64)).shape[2:] == (size // stride,) * dims
    # Any padding, and any size of the input that is taken.
    for padding in range((kernel + 1) // 2 if mode == "circular" else kernel + 1):
        other = kind(ins, outs, kernel, stride, padding, padding_mode=mode).double()
        other.load_state_dict(layer.state_dict())
        for size in range(kernel, 8):
            if mode == "zeros" or size % stride == 0:
                assert torch.linalg.svdvals(dense(other, ins, *[size] * dims))[0] < 1 + 1e-12


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_circular_padding_keeps_every_norm_unless_outputs_are_missing(dims, kernel, stride):
    if kernel < stride:
        return
    torch.manual_seed(0)
    kind, ins = OrthogonalConv1d if dims == 1 else OrthogonalConv2d, 2
    paddings = [None, *range((kernel + 1) // 2), *["same"] * (stride == 1)]
    for padding, outs, steps in itertools.product(paddings, [ins * stride**dims, ins * stride**dims + 1], [2, 3, 5]):
        size = steps * stride
        if size < (kernel if dims == 1 else max(kernel, 4)) or size**dims > 150:
            continue
        layer = kind(ins, outs, kernel, stride, padding, padding_mode="circular").double()
        for raw in layer.parameters():
            nn.init.normal_(raw)
        shape, matrix = (ins, *[size] * dims), dense(layer, ins, *[size] * dims)
        singular = torch.linalg.svdvals(matrix)
        if padding in (None, "same") or 2 * padding >= kernel - stride:
            assert matrix.shape[0] == outs * steps**dims
            assert_close(singular, torch.ones_like(singular), atol=1e-10, rtol=0)
        else:  # the claim is sharp
            assert matrix.shape[0] < outs * steps**dims
            assert singular[0] < 1 + 1e-12
            x = torch.linalg.svd(matrix).Vh[-1].reshape(1, *shape)
            assert layer(x).sub(layer(0 * x)).norm() < 0.99 * x.norm()
        fixed = layer.fixed()
        x = torch.randn(2, *shape, dtype=torch.float64)
        assert torch.equal(fixed(x), layer(x))
        assert lipschitz_bound(layer, shape) == pytest.approx(float(singular[0]), rel=1e-8)


def drawn(rng, dims):
    """Settings of a convolution: channels, and all that has one value by axis, as torch's layers take them."""
    groups = rng.choice([1, 1, 2, 3])
    ins, outs = groups * rng.randint(1, 2), groups * rng.randint(1, 5)
    return ins, outs, *[tuple(rng.randint(1, most) for _ in range(dims)) for most in (5, 3, 4 - dims)], groups


def randomly(layer):
    """The layer in double precision, wherever an optimiser may have taken it."""
    for parameter in layer.double().parameters():
        nn.init.normal_(parameter)
    return layer


@pytest.mark.filterwarnings("ignore:.*even kernel lengths:UserWarning")  # torch's, of its own layer
@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_any_setting_has_norm_at_most_one_and_keeps_norms_where_it_says(dims, mode, monkeypatch):
    torch.manual_seed(0)
    rng, kept, seen = random.Random(dims), 0, set()
    while len(seen) < (40 if dims == 1 else 20):
        ins, outs, kernel, stride, dilation, groups = drawn(rng, dims)
        spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
        most = [(span - 1) // 2 if mode == "circular" else span for span in spans]
        by_axis = tuple(rng.randint(0, each) for each in most)
        padding = rng.choice([None, None, "valid", min(most), by_axis, *["same"] * (max(stride) == 1)])
        kind = OrthogonalConv1d if dims == 1 else OrthogonalConv2d
        layer = randomly(kind(ins, outs, kernel, stride, padding, dilation, groups, padding_mode=mode))
        around = layer._around()
        # Circular: any number of steps. Others: from the smallest input that there is an output of.
        least = [max(span - sum(pair), 1, *(mode != "zeros") * pair) for span, pair in zip(spans, around, strict=True)]
        sizes = [each + (mode == "reflect") + rng.randint(0, 2) for each in least]
        if mode == "circular":
            sizes = [-(-size // step) * step for size, step in zip(sizes, stride, strict=True)]
        if ins * math.prod(sizes) > 250:
            continue
        seen.add((ins, outs, kernel, stride, padding, dilation, groups, *sizes))
        shape, matrix = (ins, *sizes), dense(layer, ins, *sizes)
        singular = torch.linalg.svdvals(matrix)
        assert singular[0] < 1 + 1e-12
        # As it computes when its weights are stored, which torch's own layer does.
        x = torch.randn(2, *shape, dtype=torch.float64)
        assert_close(layer.fixed()(x), layer(x))
        # Where the docstring says so, it keeps every norm.
        steps = [-(-size // step) for size, step in zip(sizes, stride, strict=True)]
        enough = outs >= ins * math.prod(stride) and all(
            math.gcd(s, d) == 1 for s, d in zip(stride, dilation, strict=True)
        )
        enough &= all(k >= s for k, s in zip(kernel, stride, strict=True))
        enough &= all(sum(pair) >= span - s for pair, span, s in zip(around, spans, stride, strict=True))
        if mode == "circular" and enough:
            assert_close(matrix.mT @ matrix, torch.eye(len(x[0].flatten()), dtype=torch.float64), atol=1e-12, rtol=0)
            kept += 1
        if mode == "circular" and padding is None and (max(stride) == 1 or min(stride) > 1) and min(kernel) > 1:
            assert matrix.shape[0] == outs * math.prod(steps)
        # The bound measures the norm, or is that of any size.
        assert lipschitz_bound(layer, shape) == pytest.approx(float(singular[0]), rel=1e-8)
        with monkeypatch.context() as patch:
            patch.setattr(norms, "_DENSE_UP_TO", 0)
            assert singular[0] <= lipschitz_bound(layer, shape) < 1.01
            if mode != "circular" or max(stride) == 1:
                assert singular[0] <= lipschitz_bound(layer) < 1.01
    assert kept or mode != "circular"


@pytest.mark.parametrize("dims", [1, 2])
def test_a_transposed_convolution_is_the_transpose_of_one(dims, monkeypatch):
    torch.manual_seed(0)
    rng, kept, seen = random.Random(dims), 0, 0
    while seen < (40 if dims == 1 else 20):
        outs, ins, kernel, stride, dilation, groups = drawn(rng, dims)
        padding = tuple(rng.randint(0, k) for k in kernel) if rng.random() < 0.5 else 0
        more = tuple(rng.randint(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True))
        kind, other = (
            (OrthogonalConvTranspose1d, OrthogonalConv1d)
            if dims == 1
            else (OrthogonalConvTranspose2d, OrthogonalConv2d)
        )
        layer = randomly(kind(ins, outs, kernel, stride, padding, more, groups, dilation=dilation))
        shape = (ins, *[rng.randint(1, 4) for _ in range(dims)])
        try:
            matrix = dense(layer, *shape)
        except RuntimeError:  # nothing comes out
            continue
        if max(matrix.shape) > 250:
            continue
        seen += 1
        convolution = other(outs, ins, kernel, stride, padding, dilation, groups, bias=False).double()
        convolution.load_state_dict({name: value for name, value in layer.state_dict().items() if name != "bias"})
        sizes = layer(torch.zeros(1, *shape, dtype=torch.float64)).shape[1:]
        whole = convolution(torch.zeros(1, *sizes, dtype=torch.float64)).shape[2:]
        here = dense(convolution, *sizes).unflatten(0, (ins, *whole))
        for axis, size in enumerate(shape):  # more output padding than the stride, and there would be more of them
            here = here.narrow(axis, 0, size)
        assert_close(matrix, here.flatten(0, dims).mT)
        singular = torch.linalg.svdvals(matrix)
        assert singular[0] < 1 + 1e-12
        patch = [min(k, s // math.gcd(s, d)) for k, s, d in zip(kernel, stride, dilation, strict=True)]
        if padding == 0 and ins <= outs * math.prod(patch):
            assert_close(matrix.mT @ matrix, torch.eye(matrix.shape[1], dtype=torch.float64), atol=1e-12, rtol=0)
            kept += 1
        x = torch.randn(2, *shape, dtype=torch.float64)
        assert torch.equal(layer.fixed()(x), layer(x))
        assert lipschitz_bound(layer, shape) >= singular[0]
        if all(rows < step for rows, step in zip(more, stride, strict=True)):
            assert lipschitz_bound(layer, shape) == pytest.approx(float(singular[0]), rel=1e-8)
        with monkeypatch.context() as patching:
            patching.setattr(norms, "_DENSE_UP_TO", 0)
            assert singular[0] <= lipschitz_bound(layer, shape) < 1.01
            assert singular[0] <= lipschitz_bound(layer) < 1.01
    assert kept


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize(("padding", "sizes"), [([(2, 1)], [5]), ([(4, 3)], [5]), ([(1, 0), (2, 2)], [4, 3])], ids=str)
def test_scaled_padding_keeps_norms_and_repeats_what_torch_does(mode, padding, sizes):
    layer = ScaledPad(padding, mode)
    matrix = dense(layer, 2, *sizes)
    assert_close(matrix.mT @ matrix, torch.eye(matrix.shape[1], dtype=torch.float64))
    around = [rows for pair in reversed(padding) for rows in pair]
    plain = dense(lambda x: nn.functional.pad(x, around, mode=mode), 2, *sizes)
    assert_close(matrix, plain / plain.sum(0).sqrt())
    assert lipschitz_bound(layer, (2, *sizes)) == 1
    # Its rounding, of which certificates make allowance, is that of two products.
    x = torch.randn(5, 2, *sizes)
    precision = Precision(torch.float32, x.device)
    exact, error = running_error(layer, layer, x.double(), precision, lipschitz_bound)
    made = (layer(x) - exact).flatten(1).norm(dim=1)
    assert (made <= error).all()
    assert (error <= 1e-6 * x.flatten(1).norm(dim=1)).all()


def test_groups_have_kernels_of_their_own_and_stay_apart():
    layer = randomly(OrthogonalConv1d(4, 6, 3, groups=2))
    assert layer.weight.shape == (6, 2, 3)
    matrix = dense(layer, 4, 5).reshape(2, 15, 2, 10)
    assert not matrix[0, :, 1].any()
    assert not matrix[1, :, 0].any()
    assert not torch.allclose(*layer.weight.detach().chunk(2))


@pytest.mark.filterwarnings("ignore:.*even kernel lengths:UserWarning")  # torch's, of its own layer
def test_padding_that_is_set_later_is_bounded_as_it_runs():
    layer = OrthogonalConv1d(2, 4, 5, padding="same").double()
    layer.padding = "valid"
    assert layer(torch.zeros(1, 2, 5, dtype=torch.float64)).shape == (1, 4, 1)
    with torch.no_grad():
        images = layer(torch.eye(10, dtype=torch.float64).reshape(10, 2, 5)) - layer.bias[:, None]
    assert float(torch.linalg.matrix_norm(images.flatten(1), 2)) <= lipschitz_bound(layer, (2, 5))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # torch, of the layer with fixed weights
@pytest.mark.parametrize("kernel", [2, 3])
def test_zeros_around_an_even_kernel(kernel):
    layer = OrthogonalConv1d(3, 3, kernel, padding="same").double()
    assert layer(torch.zeros(1, 3, 8, dtype=torch.float64)).shape == (1, 3, 8)
    assert torch.linalg.svdvals(dense(layer, 3, 8))[0] < 1 + 1e-12
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    assert torch.equal(layer.fixed()(x), layer(x))


def test_an_orthogonal_convolution_does_not_shift_its_input():
    # A single channel leaves no choice but the identity, up to sign.
    layer = OrthogonalConv2d(1, 1, kernel_size=5, bias=False)
    x = torch.randn(2, 1, 6, 6)
    assert_close(layer(x).abs(), x.abs())


@pytest.mark.parametrize(
    "layer",
    [OrthogonalLinear(4, 6), OrthogonalConv1d(4, 6, 3), OrthogonalConv2d(4, 6, 3, 2), OrthogonalConv2d(1, 1, 3)],
    ids=lambda layer: type(layer).__name__,
)
def test_every_parameter_is_trained_and_the_layer_travels(layer):
    x = (
        torch.randn(8, 4)
        if isinstance(layer, OrthogonalLinear)
        else torch.randn(8, layer.in_channels, *[5] * layer.axes)
    )
    target = torch.randn_like(layer(x))
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    before = nn.functional.mse_loss(layer(x), target)
    for _ in range(30):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(layer(x), target)
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
        optimizer.step()
    assert loss < before
    assert lipschitz_bound(layer) == pytest.approx(1, abs=0.01)
    again = type(layer)(*_arguments(layer))
    again.load_state_dict(layer.state_dict())
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), again):
        assert torch.equal(other(x), layer(x))


def _arguments(layer):
    if isinstance(layer, OrthogonalLinear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride


def test_orthogonal_layers_under_autocast_and_in_half_precision():
    layer, convolution = OrthogonalLinear(8, 8), OrthogonalConv2d(4, 4, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.weight.dtype is torch.float32
        assert layer(torch.randn(2, 8)).dtype is torch.bfloat16
        assert convolution.weight.dtype is torch.float32
        convolution(torch.randn(2, 4, 5, 5)).sum().backward()
    half = OrthogonalLinear(8, 8).bfloat16()
    assert half(torch.randn(2, 8, dtype=torch.bfloat16)).dtype is torch.bfloat16


@pytest.mark.parametrize("shape", [(3, 12), (3, 12, 5), (3, 12, 2, 5)])
@pytest.mark.parametrize("size", [2, 3, 4, 12])
def test_group_sort_sorts_each_group_of_channels(shape, size):
    x = torch.randn(*shape)
    found = GroupSort(size)(x)
    for start in range(0, 12, size):
        expected = x[:, start : start + size].sort(dim=1).values
        assert torch.equal(found[:, start : start + size], expected)
    y = torch.randn(*shape)
    assert (found - GroupSort(size)(y)).norm() <= (x - y).norm()
    if size == 2:
        assert torch.equal(MaxMin()(x), found)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's forward mode runs it
@pytest.mark.parametrize("shape", [(3, 6), (2, 4, 5), (2, 4, 3, 2)])
def test_sorted_pairs_have_the_derivatives_of_sorting(shape):
    """In every mode of differentiation, of first and second order, in batches of points."""
    torch.manual_seed(0)
    pairs = GroupSort()

    def by_sort(x):
        return x.unflatten(1, (-1, 2)).sort(dim=2).values.flatten(1, 2)

    x, v = torch.randn(2, *shape, dtype=torch.float64)
    assert torch.autograd.gradcheck(pairs, x.clone().requires_grad_(), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: pairs(x) ** 3, x.clone().requires_grad_())
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        assert_close(transform(pairs)(x), transform(by_sort)(x))
    assert_close(torch.func.vmap(pairs)(torch.stack([x, v])), torch.stack([pairs(x), pairs(v)]))
    ties = x.clone().unflatten(1, (-1, 2))[:, :, :1].expand(-1, -1, 2, *shape[2:]).flatten(1, 2).requires_grad_()
    (gradient,) = torch.autograd.grad(pairs(ties), ties, v)
    assert torch.equal(gradient.norm(), v.norm())  # sorting only permutes, also what is equal
    assert pairs(x.half()).dtype is torch.half
    nan = x.clone()
    nan[0] = torch.nan
    assert pairs(nan)[0].isnan().all()


SHAPED = [
    *[(OrthogonalConv2d(4, 6, 3, padding_mode=mode), (4, 6, 6)) for mode in ("zeros", "reflect", "circular")],
    *[(OrthogonalConv1d(4, 8, 4, 2, groups=2, padding_mode=mode), (4, 6)) for mode in ("replicate", "circular")],
    (OrthogonalConvTranspose2d(4, 6, (3, 2), 2, 1, 1, 2), (4, 5, 6)), (GroupSort(), (4, 6, 6)), (GroupSort(4), (4,)),
    (ScaledPad([(1, 2), (2, 0)], "reflect"), (4, 6, 6)),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's forward mode runs it
@pytest.mark.parametrize(("layer", "shape"), SHAPED, ids=str)
def test_empty_batches_short_numbers_and_derivatives(layer, shape):
    torch.manual_seed(0)
    x = torch.randn(2, *shape, requires_grad=True)
    empty = torch.zeros(0, *shape, requires_grad=True)
    assert layer(empty).shape == (0, *layer(x).shape[1:])
    layer(empty).sum().backward()
    assert empty.grad.shape == empty.shape
    if not isinstance(layer, GroupSort):  # which takes channels from the second dimension
        assert_close(layer(x[0]), layer(x)[0])
    half = copy.deepcopy(layer).bfloat16()(x.bfloat16())
    assert half.dtype is torch.bfloat16
    assert (half - layer(x)).norm() < 0.02 * x.norm()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (gradient,) = torch.autograd.grad(layer(x).float().square().sum(), x)
    assert (gradient - torch.autograd.grad(layer(x).square().sum(), x)[0]).norm() < 0.04 * x.norm()
    double, z = copy.deepcopy(layer).double(), torch.randn(1, *shape, dtype=torch.float64, requires_grad=True)
    v = torch.randn_like(z)
    ahead = (double(z + 1e-6 * v) - double(z - 1e-6 * v)) / 2e-6
    assert_close(torch.func.jvp(double, (z,), (v,))[1], ahead, atol=1e-8, rtol=1e-6)
    assert_close(torch.func.vmap(double)(torch.stack([z, v])), torch.stack([double(z), double(v)]))

    # Twice backward: the gradient of sum(f^3) in direction v, differenced.
    def slope(z):
        return torch.autograd.grad(double(z).pow(3).sum(), z, create_graph=True)[0]

    (curve,) = torch.autograd.grad(slope(z), z, v)
    ahead = (slope(z + 1e-6 * v) - slope(z - 1e-6 * v)) / 2e-6
    assert_close(curve, ahead, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("mode", ["circular", "replicate"])
def test_programs_take_inputs_of_other_sizes(mode):
    layer = nn.Sequential(OrthogonalConv1d(2, 4, 4, 2, padding_mode=mode), GroupSort())
    sizes = {0: torch.export.Dim("B"), 2: 2 * torch.export.Dim("T", min=4, max=100)}
    program = torch.export.export(layer, (torch.randn(3, 2, 12),), dynamic_shapes=(sizes,)).module()
    x = torch.randn(5, 2, 20)
    assert_close(program(x), layer(x))


def test_scaled_pooling_has_norm_one():
    for layer, shape in [
        (ScaledAvgPool2d(2), (2, 4, 6)), (ScaledAvgPool2d(3), (1, 7, 8)), (ScaledAvgPool2d(), (2, 3, 5)),
        (ScaledAvgPool1d(3), (2, 9)), (ScaledAvgPool1d(), (3, 4)),
    ]:  # fmt: skip
        assert_close(torch.linalg.svdvals(dense(layer, *shape))[0], torch.tensor(1.0, dtype=torch.float64))
        assert lipschitz_bound(layer, shape) == 1


def test_residual_and_scale():
    x = torch.randn(4, 3)
    assert_close(Residual(nn.Identity(), 0.3)(x), x)
    branch = nn.Linear(3, 3)
    assert_close(Residual(branch, 0.25)(x), 0.75 * x + 0.25 * branch(x))
    # An activation in place must not reach the other path.
    assert_close(Residual(nn.SELU(inplace=True))(x.clone()), 0.5 * x + 0.5 * nn.functional.selu(x))
    assert_close(Scale(-2.5)(x), -2.5 * x)
    assert lipschitz_bound(Scale(-2.5)) == 2.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OrthogonalLinear(0, 3), "`in_features` must be at least 1, got 0"),
        (lambda: OrthogonalConv2d(3, 0, 3), "`out_channels` must be at least 1, got 0"),
        (lambda: OrthogonalConv2d(3, 4, 3, padding_mode="wrap"), "`padding_mode` must be 'zeros', .*, got 'wrap'"),
        (lambda: OrthogonalConv2d(3, 4, (3, 3, 3)), "`kernel_size` must be one number or 2, one for each axis, got .3"),
        (lambda: OrthogonalConv2d(3, 4, 3, stride=(1, 0)), "`stride` must be at least 1, got 0"),
        (lambda: OrthogonalConv1d(3, 4, 3, dilation=0), "`dilation` must be at least 1, got 0"),
        (lambda: OrthogonalConv1d(4, 6, 3, groups=4), "`groups` must divide the channels of input and output, got 4"),
        (lambda: OrthogonalConv1d(4, 6, 3, groups=3), "`groups` must divide the channels of input and output, got 3"),
        (lambda: OrthogonalConvTranspose1d(4, 6, 3, groups=3), "`groups` must divide the channels"),
        (lambda: OrthogonalConvTranspose2d(4, 6, 3, 2, 1, (1, 2)), "`output_padding` must be below the larger of"),
        (lambda: OrthogonalConvTranspose2d(4, 6, 3, padding=(0, -1)), "`padding` must be at least 0, got -1"),
        (lambda: ScaledPad([(1, 1), (0, -1)], "reflect"), "`padding` must be at least 0, got -1"),
        (lambda: ScaledPad([(1, 1)], "zeros"), "`mode` must be 'reflect', 'replicate' or 'circular', got 'zeros'"),
        (lambda: OrthogonalConv2d(3, 4, 3, padding=-1), "`padding` must be at least 0, got -1"),
        (lambda: OrthogonalConv2d(3, 4, 3, 1, 2, padding_mode="circular"), r"spans, \(3, 3\), if circular"),
        (lambda: OrthogonalConv2d(3, 4, 3, (1, 2), "same"), "or 'same' where `stride` is 1, got 'same' and .1, 2."),
        (lambda: OrthogonalConv2d(3, 4, 3, 1, "full"), "'valid', or 'same' where `stride` is 1, got 'full' and .1, 1."),
        (
            lambda: OrthogonalConv2d(3, 4, 2, 2, padding_mode="circular")(torch.zeros(1, 3, 4, 5)),
            r"`x` must have sizes that `stride` = \(2, 2\) divides",
        ),
        (lambda: GroupSort(1), "`group_size` must be at least 2, got 1"),
        (lambda: GroupSort(2)(torch.zeros(1, 3)), "with C a multiple of `group_size` = 2, got .1, 3."),
        (lambda: ScaledAvgPool2d(0), "`kernel_size` must be at least 1"),
        (lambda: Residual(nn.Identity(), 1.5), "`weight` must be from 0 to 1, got 1.5"),
        (lambda: Residual(nn.Linear(3, 1))(torch.zeros(2, 3)), "`branch` must keep the shape"),
        (lambda: Scale(math.inf), "`factor` must be finite, got inf"),
        (lambda: LipschitzMLP(4, 4, hidden=(7,)), "`hidden` must hold multiples of `group_size` = 2"),
        (lambda: LipschitzMLP(4, 4, scale=0), "`scale` must be above 0, got 0"),
        (lambda: LipschitzCNN(1, 4, input_size=(3, 9)), "`input_size` must allow 2 halvings"),
        (lambda: LipschitzCNN(1, 4, input_size=8), r"`input_size` must be \(height, width\) or \(length,\), got 8"),
        (lambda: LipschitzCNN(1, 4, input_size=(8, 8, 8)), r"`input_size` must be \(height, width\) or \(length,\)"),
        (lambda: LipschitzCNN(1, 4, (8, 8))(torch.zeros(1, 1, 8, 9)), "`x` must have shape"),
        (lambda: LipschitzCNN(1, 4, (8, 8))(torch.zeros(1, 2, 8, 8)), r"shape \(B, 1, 8, 8\), got \(1, 2, 8, 8\)"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_input_of_too_few_axes_is_refused_by_torch():
    with pytest.raises(RuntimeError, match=r"Expected .* input"):
        OrthogonalConv2d(2, 2, 3, 2)(torch.zeros(8))
    with pytest.raises((RuntimeError, NotImplementedError), match=r"[Pp]adding"):
        OrthogonalConv2d(2, 2, 3, 2, padding_mode="circular")(torch.zeros(8))


def test_lipschitz_encoders_stay_within_their_scale():
    torch.manual_seed(0)
    encoders = {
        LipschitzMLP(10, 6, hidden=(16, 8), group_size=4): (10,),
        LipschitzMLP(10, 6, hidden=(), scale=3.0): (2, 5),
        LipschitzCNN(2, 8, input_size=(9, 8), channels=(4, 8), scale=2.0): (2, 9, 8),
        LipschitzCNN(2, 8, input_size=[12]): (2, 12),
    }
    for encoder, shape in encoders.items():
        scale = getattr(encoder.layers[1], "factor", getattr(encoder.layers[0], "factor", 1.0))
        assert lipschitz_bound(encoder, shape) == pytest.approx(scale, rel=1e-5)
        x = torch.randn(20, *shape)
        y = x + torch.randn(20, *shape) * torch.logspace(-3, 1, 20).reshape(-1, *[1] * len(shape))
        speed = (encoder(y) - encoder(x)).norm(dim=1) / (y - x).flatten(1).norm(dim=1)
        assert encoder(x).shape == (20, encoder.out_features)
        assert speed.max() <= scale * (1 + 1e-5)


def test_fixed_weights_compute_the_same():
    torch.manual_seed(0)
    shared = OrthogonalLinear(4, 4)
    for module, shape in [
        (OrthogonalLinear(4, 3, bias=False).double(), (4,)),
        (nn.Sequential(shared, GroupSort(), shared, nn.Sequential(Residual(OrthogonalLinear(4, 4)))).eval(), (4,)),
        (LipschitzCNN(2, 8, input_size=(9, 8)), (2, 9, 8)),
        (OrthogonalConv1d(2, 4, 4, 2, padding_mode="circular"), (2, 8)),
    ]:
        fixed = with_fixed_weights(module)
        x = torch.randn(3, *shape, dtype=next(module.parameters()).dtype)
        assert torch.equal(fixed(x), module(x))
        assert fixed.training == module.training
        assert not any(type(part).__name__.startswith("Orthogonal") for part in fixed.modules())
        assert lipschitz_bound(fixed, shape) == lipschitz_bound(module, shape)
        next(fixed.parameters()).data.zero_()
        assert next(module.parameters()).any()


def test_lipschitz_encoders_learn():
    torch.manual_seed(0)
    x = torch.randn(200, 1, 8, 8)
    target = (x[:, 0, :4].mean((1, 2)) > x[:, 0, 4:].mean((1, 2))).long()
    for encoder in (LipschitzMLP(64, 8, scale=5.0), LipschitzCNN(1, 8, (8, 8), channels=(8, 16), scale=5.0)):
        model = nn.Sequential(encoder, OrthogonalLinear(8, 2))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(40):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), target).backward()
            optimizer.step()
        assert (model(x).argmax(1) == target).float().mean() > 0.9


class Doubling(OrthogonalLinear):
    def forward(self, x):
        return 2 * super().forward(x)


class Named(OrthogonalLinear):
    """A subclass that computes the same."""


def test_only_layers_that_compute_what_their_type_does_are_fixed():
    x = torch.randn(2, 4)
    layer = Named(4, 3)
    assert torch.equal(with_fixed_weights(nn.Sequential(layer))(x), layer(x))
    with pytest.raises(TypeError, match="Doubling must not override `forward` to be fixed, it does"):
        with_fixed_weights(nn.Sequential(Doubling(4, 3)))


def test_a_layer_in_two_places_is_fixed_once_and_stays_shared():
    shared = OrthogonalLinear(4, 4)
    fixed = with_fixed_weights(nn.ModuleDict({"a": nn.Sequential(shared), "b": nn.Sequential(shared)}))
    assert type(fixed["a"][0]) is nn.Linear
    assert fixed["a"][0] is fixed["b"][0]


def decompositions(monkeypatch):
    """Shapes that are decomposed from now on."""
    shapes, qr = [], torch.linalg.qr
    monkeypatch.setattr(torch.linalg, "qr", lambda matrix: shapes.append(tuple(matrix.shape)) or qr(matrix))
    return shapes


def draw_in_place(layer):
    with torch.no_grad():
        layer.raw.normal_()


@pytest.mark.parametrize("shape", [(5, 3), (3, 5)])
@pytest.mark.parametrize(
    "change",
    [draw_in_place, lambda layer: layer.load_state_dict(OrthogonalLinear(*layer.raw.mT.shape).state_dict()),
     lambda layer: setattr(layer.raw, "data", torch.randn_like(layer.raw)), nn.Module.double],
    ids=["in place", "loaded", "set", "double"],
)  # fmt: skip
def test_kept_rows_are_of_the_parameter_as_it_is(shape, change, monkeypatch):
    layer = OrthogonalLinear(*shape).requires_grad_(False)
    shapes = decompositions(monkeypatch)
    with kept_rows():
        assert torch.equal(layer.weight, layer.weight)
        assert len(shapes) == 1
        change(layer)
        kept = layer.weight
    assert torch.equal(kept, layer.weight)
    assert kept.dtype is layer.raw.dtype


def test_rows_that_inference_mode_kept_do_not_stop_a_gradient():
    layer, x = OrthogonalLinear(5, 3).requires_grad_(False), torch.ones(1, 5, requires_grad=True)
    with kept_rows():
        with torch.inference_mode():
            layer(x)
        layer(x).sum().backward()
    assert_close(x.grad, layer.weight.sum(0, keepdim=True))


@pytest.mark.parametrize("sizes", [{"a": 5, "b": 5}, {"a": 5, "b": 7}])
def test_an_estimate_decomposes_each_parameter_once(monkeypatch, sizes):
    head = OrthogonalFusion(sizes, num_classes=3)
    batches = [{name: torch.randn(4, size) for name, size in sizes.items()} for _ in range(3)]
    shapes = decompositions(monkeypatch)
    estimate_lipschitz(head, batches)
    assert shapes == [(size, 3) for size in sizes.values()]
    with torch.no_grad():
        head.raw_directions["a"].mul_(-1)
    expected = {name: rows.norm(dim=1) for name, rows in head.directions.items()}
    assert_close(estimate_lipschitz(head, batches).values, {name: value.detach() for name, value in expected.items()})
    assert len(shapes) > 2


def test_rows_are_kept_of_frozen_parameters_alone_and_no_longer_than_said(monkeypatch):
    layer, frozen = OrthogonalLinear(5, 3), OrthogonalLinear(5, 3).requires_grad_(False)
    shapes = decompositions(monkeypatch)
    with kept_rows():
        for _ in range(2):
            layer(torch.ones(1, 5)).sum().backward()
        assert len(shapes) == 2
        for _ in range(2):
            frozen(torch.ones(1, 5))
        assert len(shapes) == 3
        before = frozen.weight
        frozen.requires_grad_(True)
        assert frozen.weight.requires_grad
        assert len(shapes) == 4
        frozen.requires_grad_(False)
    with torch.no_grad():
        frozen.raw.add_(1)
    assert not torch.allclose(frozen.weight, before)
    with kept_rows():
        assert not torch.allclose(frozen.weight, before)
