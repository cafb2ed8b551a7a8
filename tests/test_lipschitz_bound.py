# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Sound bounds against what is true: dense matrices, sampled Jacobians, steep places where no data is."""

import math
import random

import mpmath
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.testing import assert_close

from lightning_crmt import Soundness, estimate_lipschitz
from lightning_crmt.encoders import MLP, LipschitzCNN, LipschitzMLP
from lightning_crmt.layers import GroupSort, OrthogonalConv2d, OrthogonalLinear, Residual, Scale
from lightning_crmt.lipschitz import NoBoundError, encoder_bounds, lipschitz_bound, lipschitz_rule
from lightning_crmt.lipschitz.bounds import norms


def operator_norm(layer, *shape):
    """Largest singular value of what an affine layer does to each unit vector."""
    basis = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    with torch.no_grad():
        images = (layer(basis) - layer(torch.zeros_like(basis))).flatten(1)
    return float(torch.linalg.svdvals(images)[0])


def steepest(net, points):
    """Largest norm of a Jacobian among ``points``."""
    jacobians = [torch.func.jacrev(net)(point[None]).detach().reshape(-1, point.numel()) for point in points]
    return max(float(torch.linalg.matrix_norm(jacobian, 2)) for jacobian in jacobians)


# Matrices and convolutions.


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (4, 7), (7, 4), (40, 40)])
@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12])
def test_a_linear_layer_has_its_norm(shape, scale):
    layer = nn.Linear(*shape).double()
    layer.weight.data *= scale
    truth = float(torch.linalg.svdvals(layer.weight.detach())[0])
    assert truth <= lipschitz_bound(layer) <= truth * (1 + 2e-9)


def test_zero_and_denormal_weights():
    layer = nn.Linear(3, 3)
    nn.init.zeros_(layer.weight)
    assert lipschitz_bound(layer) == 0
    nn.init.constant_(layer.weight, 1e-45)
    assert lipschitz_bound(layer) >= 3 * layer.weight[0, 0].item() > 0


@pytest.mark.parametrize("rank", [1, 3, 30])
def test_gram_iteration_is_an_upper_bound_and_close(rank, monkeypatch):
    monkeypatch.setattr(norms, "_EXACT_UP_TO", 0)
    torch.manual_seed(rank)
    for scale in (1e-20, 1.0, 1e20):
        flat = torch.linalg.qr(
            torch.randn(30, rank, dtype=torch.float64)
        ).Q  # the worst case: all singular values equal
        for weight in (flat * scale, torch.randn(30, rank, dtype=torch.float64) * scale):
            truth = float(torch.linalg.svdvals(weight)[0])
            assert truth <= norms.spectral_norm(weight) <= truth * (rank ** (1 / 1024) + 1e-8)


def random_convolution(rng):
    axes = rng.choice([1, 2])
    pick = lambda low, high: [rng.randint(low, high) for _ in range(axes)]  # noqa: E731
    groups, mode = rng.choice([1, 1, 2]), rng.choice(["zeros", "zeros", "circular", "reflect", "replicate"])
    kernel, stride, dilation, size = pick(1, 4), pick(1, 3), pick(1, 2), pick(5, 8)
    padding = pick(0, 4)
    if all(k % 2 for k in kernel) and rng.random() < 0.3:
        padding, stride = "same", 1
    kind = nn.Conv1d if axes == 1 else nn.Conv2d
    layer = kind(
        2 * rng.randint(1, 2), 2 * rng.randint(1, 2), kernel, stride, padding, dilation, groups, True, mode
    ).double()
    extent = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    around = [e - 1 for e in extent] if padding == "same" else [2 * p for p in padding]
    fits = all(n + p >= e for n, p, e in zip(size, around, extent, strict=True))
    return (layer, (layer.in_channels, *size)) if fits else random_convolution(rng)


@pytest.mark.parametrize("seed", range(10))
def test_convolutions_are_never_below_their_operator(seed, monkeypatch):
    rng = random.Random(seed)
    for _ in range(30):
        layer, shape = random_convolution(rng)
        torch.manual_seed(rng.randint(0, 10**6))
        nn.init.normal_(layer.weight)
        truth = operator_norm(layer, *shape)
        assert lipschitz_bound(layer, shape) == pytest.approx(truth, rel=3e-9)  # written out
        with monkeypatch.context() as patch:
            patch.setattr(norms, "_DENSE_UP_TO", 0)
            through_symbol = lipschitz_bound(layer, shape)
            assert through_symbol >= truth
            patch.setattr(norms, "_FREQUENCIES", 6)  # fewer frequencies are looser, not lower
            assert lipschitz_bound(layer, shape) >= truth
        if layer.padding_mode == "zeros":
            for_all = lipschitz_bound(layer)
            assert for_all >= truth
            assert for_all >= through_symbol * (1 - 0.01)  # within its correction


def test_convolution_bounds_are_tight(monkeypatch):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 6, 3, padding=1).double()
    stages = {
        "stride 1": (nn.Conv2d(3, 6, 3, padding=1), 1.06),
        "stride 2": (nn.Conv2d(3, 6, 3, stride=2, padding=1), 1.04),
        "patches": (nn.Conv2d(3, 6, 4, stride=4), 1 + 1e-8),
        "circular": (nn.Conv2d(3, 6, 3, padding=1, padding_mode="circular"), 1 + 1e-8),
        "circular, stride 2": (nn.Conv2d(3, 6, 4, stride=2, padding=1, padding_mode="circular"), 1 + 1e-8),
        "sequence": (nn.Conv1d(3, 6, 5, padding=2, dilation=2), 1.06),
    }
    monkeypatch.setattr(norms, "_DENSE_UP_TO", 0)
    for name, (layer, looseness) in stages.items():
        shape = (3, 40) if isinstance(layer, nn.Conv1d) else (3, 12, 12)
        truth = operator_norm(layer.double(), *shape)
        assert truth <= lipschitz_bound(layer, shape) <= truth * looseness, name


def test_large_inputs_cost_no_more_and_stay_sound():
    torch.manual_seed(0)
    layer = nn.Conv1d(2, 2, 5, padding=2).double()
    truth = operator_norm(layer, 2, 700)
    assert truth <= lipschitz_bound(layer, (2, 700)) <= truth * 1.004
    assert lipschitz_bound(layer, (2, 10**6)) == pytest.approx(lipschitz_bound(layer), rel=1e-12)


def test_padding_that_needs_the_input_size_says_so():
    with pytest.raises(NoBoundError, match="padding_mode='reflect' here needs `input_shape`"):
        lipschitz_bound(nn.Conv1d(2, 2, 3, padding=1, padding_mode="reflect"))
    with pytest.raises(NoBoundError, match="padding_mode='circular' here needs `input_shape`"):
        lipschitz_bound(nn.Conv1d(2, 2, 3, stride=2, padding=1, padding_mode="circular"))
    with pytest.raises(NoBoundError, match=r"must have channels and 2 axes, got shape \(8,\)"):
        lipschitz_bound(nn.Conv2d(1, 1, 3), (8,))


# Batch normalisation.


def normed(norm, seed=0):
    torch.manual_seed(seed)
    norm.weight.data.normal_()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.01, 4)
    return norm.double().eval()


def test_batch_norm_alone_and_folded_into_the_layer_before_it():
    norm = normed(nn.BatchNorm1d(5))
    assert lipschitz_bound(norm) == pytest.approx(operator_norm(norm, 5), rel=1e-8)
    plain = nn.BatchNorm1d(5, affine=False).double().eval()
    assert lipschitz_bound(plain) == pytest.approx(operator_norm(plain, 5), rel=1e-8)
    for layer, norm, shape in [
        (nn.Linear(4, 5), normed(nn.BatchNorm1d(5)), (4,)),
        (OrthogonalLinear(4, 5), normed(nn.BatchNorm1d(5)), (4,)),
        (nn.Conv1d(2, 5, 3), normed(nn.BatchNorm1d(5)), (2, 9)),
        (nn.Conv2d(2, 4, 3, groups=2), normed(nn.BatchNorm2d(4)), (2, 5, 5)),
        (OrthogonalConv2d(2, 4, 3), normed(nn.BatchNorm2d(4)), (2, 5, 5)),
    ]:
        pair = nn.Sequential(layer.double(), norm).eval()
        truth = operator_norm(pair, *shape)
        assert truth <= lipschitz_bound(pair, shape) <= truth * (1 + 1e-8)
        if not isinstance(layer, OrthogonalLinear | OrthogonalConv2d):
            assert lipschitz_bound(layer, shape) * lipschitz_bound(norm) > truth * 1.01
        if not isinstance(layer, nn.Linear | OrthogonalLinear):
            assert lipschitz_bound(pair) >= truth


def test_batch_norm_is_not_folded_where_it_acts_on_another_dimension():
    # (B, T, C): Linear acts on C, BatchNorm1d on T.
    pair = nn.Sequential(nn.Linear(4, 4, bias=False), normed(nn.BatchNorm1d(4))).double().eval()
    truth = operator_norm(pair, 4, 4)
    assert lipschitz_bound(pair, (4, 4)) >= truth
    assert lipschitz_bound(pair) >= truth


# Activations and pooling.

ACTIVATIONS = [
    nn.ReLU(), nn.ReLU6(), nn.Tanh(), nn.Softsign(), nn.LogSigmoid(), nn.Sigmoid(), nn.Hardsigmoid(), nn.Hardtanh(),
    nn.LeakyReLU(0.2), nn.LeakyReLU(-3.0), nn.PReLU(), nn.PReLU(init=-2.0), nn.ELU(), nn.ELU(alpha=2.5), nn.SELU(),
    nn.GELU(), nn.SiLU(), nn.Softplus(threshold=40), nn.Softplus(beta=3, threshold=40), nn.Identity(),
]  # fmt: skip


@pytest.mark.parametrize("layer", ACTIVATIONS, ids=repr)
def test_activations_have_their_steepest_slope(layer):
    layer = layer.double()
    x = torch.cat([torch.linspace(-60, 60, 200_001), torch.linspace(-4, 4, 200_001)]).double().requires_grad_(True)
    (slopes,) = torch.autograd.grad(layer(x).sum(), x)
    steepest = float(slopes.abs().max())
    assert steepest <= lipschitz_bound(layer) <= steepest * (1 + 1e-4)
    x = x.detach()
    y = layer(x).detach()
    close = (x[1:] - x[:-1]).abs() > 0
    secants = ((y[1:] - y[:-1]).abs() / (x[1:] - x[:-1]).abs())[close]
    assert float(secants.max()) <= lipschitz_bound(layer) * (1 + 1e-8)


def test_the_slopes_of_gelu_and_silu_are_proved_by_intervals():
    # GELU: largest at sqrt(2), with Phi(sqrt 2) = (1 + erf 1) / 2.
    cdf = (1 + mpmath.iv.mpf([mpmath.erf(1) - 1e-15, mpmath.erf(1) + 1e-15])) / 2
    slope = cdf + mpmath.iv.sqrt(2) * mpmath.iv.exp(-1) / mpmath.iv.sqrt(2 * mpmath.iv.pi)
    assert slope.b < lipschitz_bound(nn.GELU())
    # SiLU: x in [0, 40] by 4,000 intervals; the slope at -x is one minus that at x, and beyond 40 it is below 1.001.
    largest = 0
    for i in range(4000):
        x = mpmath.iv.mpf([i / 100, (i + 1) / 100])
        middle = mpmath.iv.mpf((2 * i + 1) / 200)
        s = 1 / (1 + mpmath.iv.exp(-middle))
        slope = s + middle * s * (1 - s)
        wide = 1 / (1 + mpmath.iv.exp(-x))
        bend = wide * (1 - wide) * (2 + x * (1 - 2 * wide))  # its derivative: mean value form
        largest = max(largest, (slope + bend * mpmath.iv.mpf([-0.005, 0.005])).b)
    assert largest < lipschitz_bound(nn.SiLU())
    scale, alpha = mpmath.mpf("1.0507009873554804934193349852946"), mpmath.mpf("1.6732632423543772848170429916717")
    assert scale * alpha <= lipschitz_bound(nn.SELU())


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.AvgPool2d(2), (2, 6, 6)), (nn.AvgPool2d(3, 2), (1, 9, 9)), (nn.AvgPool2d((2, 3), (1, 2), 1), (1, 7, 8)),
        (nn.AvgPool2d(2, divisor_override=3), (1, 6, 6)), (nn.AvgPool1d(4, 3), (2, 20)),
        (nn.AvgPool2d(2, 5), (1, 9, 9)),
        (nn.AdaptiveAvgPool2d(1), (3, 4, 5)), (nn.AdaptiveAvgPool1d(1), (3, 7)),
        (nn.PixelShuffle(2), (8, 3, 3)), (nn.PixelUnshuffle(2), (2, 4, 4)), (nn.ZeroPad2d(2), (1, 3, 3)),
        (nn.Flatten(), (2, 3)), (nn.Unflatten(1, (2, 3)), (6,)), (nn.ChannelShuffle(2), (4, 3, 3)),
    ],
    ids=str,
)  # fmt: skip
def test_linear_layers_without_weights(layer, shape):
    truth = operator_norm(layer, *shape)
    assert truth <= lipschitz_bound(layer, shape) * (1 + 1e-12)
    assert truth <= lipschitz_bound(layer) * (1 + 1e-12)
    assert lipschitz_bound(layer, shape) <= truth * 1.5


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.MaxPool2d(2), (2, 6, 6)), (nn.MaxPool2d(3, 2, 1), (1, 7, 7)), (nn.MaxPool1d(5, 1), (1, 9)),
        (nn.MaxPool1d(3, 1, dilation=2), (1, 12)), (nn.MaxPool2d(3, 2, ceil_mode=True), (1, 8, 8)),
        (nn.MaxPool1d(2, 3), (1, 9)), (nn.AdaptiveMaxPool2d(1), (2, 4, 4)),
    ],
    ids=str,
)  # fmt: skip
def test_max_pooling(layer, shape):
    torch.manual_seed(0)
    x = torch.randn(4000, *shape, dtype=torch.float64) * 0.1
    y = x.clone()
    # One input above all others moves every window it is in.
    y.flatten(1).scatter_(1, torch.randint(math.prod(shape), (4000, 1)), 2.0)
    x.flatten(1).masked_fill_(y.flatten(1) == 2.0, 1.0)
    speed = (layer(y) - layer(x)).flatten(1).norm(dim=1) / (y - x).flatten(1).norm(dim=1)
    assert float(speed.max()) <= lipschitz_bound(layer, shape) * (1 + 1e-12)
    assert lipschitz_bound(layer) <= float(speed.max()) * 1.5
    assert lipschitz_bound(nn.MaxPool2d(2)) == 1


# Networks.


def networks():
    torch.manual_seed(0)
    yield MLP(5, 4, hidden=(8, 6)), (5,)
    yield LipschitzMLP(6, 4, hidden=(8,), scale=2.0), (6,)
    yield LipschitzCNN(1, 4, (6, 6), channels=(4,)), (1, 6, 6)
    yield nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), normed(nn.BatchNorm2d(4)), nn.SiLU(), nn.MaxPool2d(3, 2, 1), nn.Dropout2d(),
        nn.Conv2d(4, 4, 3, 2, 1, groups=2), nn.ELU(2.0), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    ), (1, 8, 8)  # fmt: skip
    yield nn.Sequential(
        nn.Unflatten(1, (2, 5)), nn.Conv1d(2, 4, 3, padding=1, padding_mode="circular"), GroupSort(4),
        nn.AvgPool1d(2, 1), nn.Flatten(), nn.Linear(16, 6), normed(nn.BatchNorm1d(6)), nn.GELU(),
        Residual(nn.Linear(6, 6), 0.3), Scale(1.5),
    ), (10,)  # fmt: skip


@pytest.mark.parametrize(("net", "shape"), list(networks()), ids=lambda x: type(x).__name__)
def test_networks_are_never_below_a_sampled_jacobian(net, shape):
    net = net.double()
    with_shape, without = lipschitz_bound(net, shape), lipschitz_bound(net)
    net.eval()
    points = torch.randn(200, *shape, dtype=torch.float64) * torch.logspace(-2, 1, 200).reshape(-1, *[1] * len(shape))
    seen = steepest(net, points)
    assert seen <= with_shape
    assert with_shape <= without * (1 + 1e-8)


def trap():
    """f(x) = 3 - (x + 10 relu(x - 2)), of plain layers."""
    net = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1))
    net[0].weight.data, net[0].bias.data = torch.tensor([[1.0], [-1.0], [1.0]]), torch.tensor([0.0, 0.0, -2.0])
    net[2].weight.data, net[2].bias.data = torch.tensor([[-1.0, 1.0, -10.0]]), torch.tensor([3.0])
    return net


def test_the_trap_is_steep_where_there_is_no_data():
    net = trap()
    x = torch.linspace(-1.5, 1.5, 100)[:, None]
    assert_close(net(x), 3 - (x + 10 * (x - 2).relu()))
    assert steepest(net, x) == pytest.approx(1)
    assert 11 <= lipschitz_bound(net) < 18
    radius = 3 / lipschitz_bound(net)
    assert radius <= 2.0909  # at x = 0; from the gradients on data, it would be 3


@pytest.mark.parametrize("seed", range(20))
def test_planted_cliffs_stay_below_the_bound(seed):
    """A random network that is steep only far from its data: the estimate misses that, the bound must not."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    data = torch.rand(200, 4, dtype=torch.float64) * 2 - 1
    direction = nn.functional.normalize(torch.randn(4, dtype=torch.float64), dim=0)
    with torch.no_grad():  # one unit wakes up where direction . x > 6, far from |x| <= 2, and lifts class 1 fast
        net[0].weight[-1] = 30 * direction
        net[0].bias[-1] = -30 * 6
        net[2].weight[:, -1] = torch.tensor([-5.0, 5.0])
        estimate = float(estimate_lipschitz(_OneModality(net), [{"x": data}], of="margins").values["x"].max())
        # A sample of class 0 with an estimated radius of 10.
        logits = net(data[:1])[0]
        net[2].bias[0] += 10 * estimate - (logits[0] - logits[1])

    def margin(x):
        return float((net(x[None])[0, 0] - net(x[None])[0, 1]).detach())

    assert margin(data[0]) == pytest.approx(10 * estimate)
    counterexample = data[0] + (6.5 - direction @ data[0]) * direction
    assert (counterexample - data[0]).norm() < 9
    assert margin(counterexample) < 0
    # The logits differ along (1, -1), of norm sqrt(2).
    certified = margin(data[0]) / (math.sqrt(2) * lipschitz_bound(net))
    assert steepest(net, counterexample[None]) <= lipschitz_bound(net)
    assert certified < (counterexample - data[0]).norm()
    for way in (direction, *torch.randn(50, 4, dtype=torch.float64)):
        assert margin(data[0] + certified * nn.functional.normalize(way, dim=0)) > 0


class _OneModality(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, inputs):
        return self.net(inputs["x"])


def test_a_module_that_stands_twice_counts_twice():
    layer = nn.Linear(3, 3)
    assert lipschitz_bound(nn.Sequential(layer, nn.ReLU(), layer)) == pytest.approx(lipschitz_bound(layer) ** 2)


def test_the_bound_is_for_evaluation_mode_and_leaves_no_trace():
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.9), nn.Linear(4, 2)).train()
    net[2].eval()
    net[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        bound = lipschitz_bound(net, (4,))
    state = torch.random.get_rng_state()
    assert bound == lipschitz_bound(net, (4,))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [module.training for module in net] == [True, True, False, True]
    assert [p.requires_grad for p in net.parameters()] == [False, True, True, True, True, True]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


# What is refused, and by which name.


class Quiet(nn.Linear):
    """A subclass that computes something else."""

    def forward(self, x):
        return 100 * super().forward(x)


class Doubling(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


def with_nan():
    layer = nn.Linear(2, 2)
    layer.weight.data[0, 0] = math.nan
    return layer


def with_hook(register):
    layer = nn.Linear(2, 2)
    getattr(layer, register)(lambda *_: None)
    return layer


def with_other_forward():
    layer = nn.Linear(2, 2)
    layer.forward = lambda x: 100 * x
    return layer


class Noise(nn.Module):
    def forward(self, weight):
        return weight + torch.randn_like(weight)


def with_random_weight():
    layer = nn.Linear(2, 2)
    parametrize.register_parametrization(layer, "weight", Noise())
    return layer


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.LayerNorm(2), "no Lipschitz bound is known for 'part', a LayerNorm"),
        (nn.GroupNorm(1, 2), "'part', a GroupNorm"),
        (nn.InstanceNorm1d(2), "'part', a InstanceNorm1d"),
        (nn.MultiheadAttention(2, 1), "'part', a MultiheadAttention"),
        (nn.TransformerEncoderLayer(2, 1), "'part', a TransformerEncoderLayer"),
        (nn.Softmax(dim=1), "'part', a Softmax"),
        (nn.LSTM(2, 2), "'part', a LSTM"),
        (nn.ModuleList([nn.ReLU()]), "'part', a ModuleList"),
        (Quiet(2, 2), "'part', a Quiet; if you can prove one, register it with @lipschitz_rule"),
        (Doubling(nn.ReLU()), "'part', a Doubling"),
        (torch.compile(nn.Linear(2, 2), backend="eager"), "'part', a OptimizedModule, hides .* encoder.compile()"),
        (nn.Sequential(nn.ReLU(), nn.LayerNorm(2)), "'part.1', a LayerNorm"),
        (Residual(nn.LayerNorm(2)), "'part.branch', a LayerNorm"),
        (nn.BatchNorm1d(2, track_running_stats=False), "'part', a BatchNorm1d: it must track running statistics"),
        (with_nan(), "'part', a Linear: `weight` must be finite, it holds NaN or Inf"),
        (nn.Linear(2, 2, dtype=torch.complex64), "`weight` must be a real floating point tensor, got torch.complex64"),
        (nn.LeakyReLU(math.nan), "'part', a LeakyReLU: slopes must be finite"),
        (nn.GELU(approximate="tanh"), "`approximate` must be 'none'"),
        (nn.Softplus(), "'part', a Softplus: it jumps at its threshold"),
        (nn.Flatten(start_dim=0), "`start_dim` must be at least 1"),
        (nn.Unflatten(0, (1, 2)), "`dim` must be at least 1"),
        (nn.AvgPool2d(2, ceil_mode=True), "`ceil_mode` or `count_include_pad=False`"),
        (nn.AvgPool2d(2, padding=1, count_include_pad=False), "`ceil_mode` or `count_include_pad=False`"),
        (nn.AdaptiveAvgPool2d(2), "`output_size` must be 1"),
        (nn.MaxPool2d(2, return_indices=True), "`return_indices` must be False"),
        (with_hook("register_forward_hook"), "'part', a Linear, must have no forward hooks, .* got with_hook"),
        (with_hook("register_forward_pre_hook"), "'part', a Linear, must have no forward hooks"),
        (with_other_forward(), "'part', a Linear, must run its type's code; {'forward'} was replaced"),
        (with_random_weight(), "'part', a ParametrizedLinear, must have a fixed `weight`; it changes at every pass"),
    ],
    ids=lambda x: "" if isinstance(x, str) else type(x).__name__,
)
def test_refused_by_name(layer, message):
    net = nn.Sequential()
    net.add_module("part", layer)
    with pytest.raises(NoBoundError, match=message):
        lipschitz_bound(net)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")  # the old hook is what we want to see refused
def test_old_weight_hooks_are_refused():
    for hooked in (nn.utils.spectral_norm(nn.Linear(2, 2)), nn.utils.weight_norm(nn.Linear(2, 2))):
        with pytest.raises(NoBoundError, match="the module, a Linear, must have no forward hooks"):
            lipschitz_bound(hooked)


def test_global_hooks_are_refused():
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        with pytest.raises(NoBoundError, match="must have no forward hooks"):
            lipschitz_bound(nn.ReLU())
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((nn.ReLU(), (0,)), ValueError, r"`input_shape` must hold sizes of one sample, all at least 1, got \(0,\)"),
        ((nn.ReLU(), ()), ValueError, "`input_shape` must hold sizes"),
        ((torch.relu,), TypeError, "`module` must be an nn.Module"),
        ((nn.Sequential(nn.Linear(3, 3), nn.ReLU()), (4,)), NoBoundError, "`input_shape` does not fit: a Linear got"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        lipschitz_bound(*arguments)
    with pytest.raises(ValueError, match="`level` must be 'sound' or 'rigorous', got 'certain'"):
        lipschitz_bound(nn.ReLU(), level="certain")


# Parametrised weights are measured as they run.


def test_parametrised_layers_are_measured_not_trusted():
    torch.manual_seed(0)
    normed_layer = parametrizations.spectral_norm(nn.Linear(20, 20))
    nn.init.normal_(normed_layer.parametrizations.weight.original)  # as if trained on
    normed_layer(torch.zeros(1, 20))
    truth = float(torch.linalg.svdvals(normed_layer.eval().weight.detach().double())[0])
    assert truth > 1.1  # power iteration approaches the norm from below, so the layer is steeper than 1
    assert truth <= lipschitz_bound(normed_layer) <= truth * (1 + 2e-9)
    assert lipschitz_bound(parametrizations.orthogonal(nn.Linear(5, 5))) == pytest.approx(1, abs=1e-5)
    assert lipschitz_bound(parametrizations.weight_norm(nn.Conv1d(2, 2, 3))) > 0


# Rules of one's own, and of other libraries.


def test_a_rule_serves_exactly_its_type():
    class Double(nn.Module):
        def forward(self, x):
            return 2 * x

    class Triple(Double):
        def forward(self, x):
            return 3 * x

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(3, 3), Double()

        def forward(self, x):
            return self.left(x) + self.right(x)

    @lipschitz_rule(Double)
    def _(layer, place):
        assert not layer.training
        return 2.0

    @lipschitz_rule(Sum)
    def _(layer, place):
        return place.bound(layer.left, "left", place.input_shape) + place.bound(layer.right, "right")

    net = nn.Sequential(nn.ReLU(), Sum())
    assert lipschitz_bound(net) == pytest.approx(2 + lipschitz_bound(net[1].left))
    with pytest.raises(NoBoundError, match="'0', a Triple"):
        lipschitz_bound(nn.Sequential(Triple()))
    net[1].left = nn.LayerNorm(3)
    with pytest.raises(NoBoundError, match=r"'1.left', a LayerNorm"):
        lipschitz_bound(net)

    @lipschitz_rule(Double)  # a better one may follow
    def _(layer, place):
        return math.nan

    with pytest.raises(NoBoundError, match="the bound of the module, a Double, must be finite and >= 0, got nan"):
        lipschitz_bound(Double())


def test_rules_of_the_package_cannot_be_replaced():
    with pytest.raises(ValueError, match="`types` must not hold Linear, lightning_crmt has a rule for it"):
        lipschitz_rule(nn.Linear)
    with pytest.raises(TypeError, match=r"`types` must be subclasses of nn.Module, got 'Linear'"):
        lipschitz_rule("Linear")


def test_layers_of_other_libraries_are_measured_and_only_if_they_run_torchs_code():
    def make(**code):
        kind = type("OrthoLinear", (nn.Linear,), code)
        kind.__module__, kind.__qualname__ = "orthogonium.layers.linear.ortho_linear", "OrthoLinear"
        return kind(4, 4)

    honest = make()
    assert lipschitz_bound(honest) == pytest.approx(lipschitz_bound(nn.Sequential(honest)), rel=1e-12)
    assert lipschitz_bound(honest) != 1
    with pytest.raises(NoBoundError, match="the module, a OrthoLinear"):
        lipschitz_bound(make(forward=lambda self, x: 2 * x))


def test_the_real_libraries_if_they_are_there():
    convolutions = pytest.importorskip("orthogonium.layers.conv.AOC")
    linear = pytest.importorskip("orthogonium.layers.linear")
    for stride, kernel in [(1, 3), (2, 2), (2, 4)]:
        layer = convolutions.AdaptiveOrthoConv2d(4, 8, kernel, stride, padding=(kernel - stride) // 2)
        # Its power iteration goes on in evaluation mode.
        with pytest.raises(NoBoundError, match=r"must have a fixed `weight.*`; it changes at every pass"):
            lipschitz_bound(layer, (4, 8, 8))
        for name in list(layer.parametrizations):
            parametrize.remove_parametrizations(layer, name)
        assert lipschitz_bound(layer, (4, 8, 8)) == pytest.approx(1, abs=1e-3)
    layer = linear.OrthoLinear(4, 4)
    parametrize.remove_parametrizations(layer, "weight")
    assert lipschitz_bound(layer) == pytest.approx(1, abs=1e-3)
    torchlip = pytest.importorskip("deel.torchlip")
    assert lipschitz_bound(torchlip.SpectralLinear(4, 4)) == pytest.approx(1, abs=0.1)
    assert lipschitz_bound(torchlip.FrobeniusLinear(4, 1)) == pytest.approx(1, abs=1e-5)


# Constants for certificates.


def test_encoder_bounds_are_what_certify_takes():
    torch.manual_seed(0)
    encoders = nn.ModuleDict({"audio": MLP(6, 4), "image": nn.Conv2d(1, 2, 3)})
    found = encoder_bounds(encoders, {"audio": (6,), "image": (1, 5, 5)})
    assert (found.of, found.soundness, found.modalities) == ("encoder", Soundness.SOUND, ["audio", "image"])
    for name, shape in {"audio": (6,), "image": (1, 5, 5)}.items():
        bound = lipschitz_bound(encoders[name], shape)
        # Casting to single precision must not round it down.
        assert bound <= float(found.values[name].float()) <= bound * (1 + 2e-7)
    assert float(encoder_bounds(encoders).values["image"]) >= float(found.values["image"])
    with pytest.raises(
        NoBoundError, match="the encoder of 'audio': no Lipschitz bound is known for the module, a Softmax"
    ):
        encoder_bounds({"audio": nn.Softmax(dim=1)})
    with pytest.raises(ValueError, match="`input_shapes` must hold exactly the modalities"):
        encoder_bounds(encoders, {"audio": (6,)})
