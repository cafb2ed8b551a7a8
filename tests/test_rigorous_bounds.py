# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Bounds that claim to survive rounding, against exact rational arithmetic."""

import itertools
import math
import random
from fractions import Fraction

import mpmath
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from lightning_crmt import Soundness
from lightning_crmt.encoders import MLP, LipschitzMLP
from lightning_crmt.layers import (
    GroupSort,
    MaxMin,
    OrthogonalConv2d,
    OrthogonalLinear,
    Residual,
    Scale,
    with_fixed_weights,
)
from lightning_crmt.lipschitz import NoBoundError, encoder_bounds, forward_error, lipschitz_bound
from lightning_crmt.lipschitz.rigorous import verified
from lightning_crmt.lipschitz.rigorous.verified import gamma, norm_up, product_up, sum_up

# Norms.


def exceeds_norm(bound, rows):
    """Whether c > ||W||_2 in exact arithmetic: by Sylvester, c^2 I - W^T W has positive leading minors."""
    square = Fraction(bound) ** 2
    columns = list(zip(*rows, strict=True))
    size = len(columns)
    gap = [
        [
            (square if i == j else 0) - sum(a * b for a, b in zip(columns[i], columns[j], strict=True))
            for j in range(size)
        ]
        for i in range(size)
    ]
    for k in range(size):  # Gaussian elimination, all pivots positive
        if gap[k][k] <= 0:
            return False
        for i in range(k + 1, size):
            factor = gap[i][k] / gap[k][k]
            gap[i] = [x - factor * y for x, y in zip(gap[i], gap[k], strict=True)]
    return True


def exact(matrix):
    return [[Fraction(value) for value in row] for row in matrix.double().tolist()]


@pytest.mark.parametrize(
    ("rows", "norm"),
    [
        ([[3, 4]], 5), ([[3], [4]], 5), ([[1, 0], [0, -7]], 7), ([[1] * 8] * 2, 4), ([[2, -1], [-1, 2]], 3),
        ([[0, 1, 0], [0, 0, 1], [1, 0, 0]], 1), ([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], 2),
        ([[5]], 5), ([[-5]], 5), ([[0, 0], [0, 0]], 0), ([[8, 0, 0], [0, 4, 3], [0, 3, -4]], 8),
    ],
)  # fmt: skip
def test_known_norms_of_integer_matrices(rows, norm):
    for scale in (1.0, 2.0**-100, 2.0**100):
        found = norm_up(torch.tensor(rows, dtype=torch.float32) * scale)
        assert norm * scale <= found <= norm * scale * (1 + 1e-14)


@pytest.mark.parametrize("seed", range(40))
def test_norms_exceed_the_exact_ones_and_hardly(seed):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    matrix = torch.randn(rng.randint(1, 9), rng.randint(1, 9), dtype=rng.choice([torch.float32, torch.float64]))
    kind = seed % 5
    if kind == 1:  # orthonormal up to rounding: all singular values alike
        matrix = torch.linalg.qr(matrix).Q
    elif kind == 2:  # of rank one
        matrix = matrix[:, :1] @ matrix[:1]
    elif kind == 3:  # wildly scaled
        matrix = matrix * torch.logspace(-15, 15, matrix.shape[1], dtype=matrix.dtype)
    elif kind == 4:  # integers
        matrix = (matrix * 10).round()
    found = norm_up(matrix)
    assert exceeds_norm(found, exact(matrix))
    assert not exceeds_norm(found * (1 - 1e-12), exact(matrix))


@pytest.mark.parametrize("scale", [1e-300, 1e-310, 1e-30, 1e30, 1e300])
def test_norms_at_the_ends_of_the_range(scale):
    matrix = torch.tensor([[3.0, 1.0], [4.0, -2.0]], dtype=torch.float64) * scale
    found = norm_up(matrix)
    assert exceeds_norm(found, exact(matrix))
    assert found <= 5.2 * scale


def test_norms_of_larger_matrices_are_tight():
    torch.manual_seed(0)
    for matrix in (torch.randn(120, 76), torch.linalg.qr(torch.randn(128, 100)).Q, nn.Linear(300, 200).weight.detach()):
        found = norm_up(matrix)
        truth = float(torch.linalg.svdvals(matrix.double())[0])
        assert truth * (1 - 1e-13) <= found <= truth * (1 + 1e-10)


def test_a_wrong_decomposition_is_noticed(monkeypatch):
    """Nothing is assumed of LAPACK: wrong eigenvectors cost tightness or an error, never soundness."""
    torch.manual_seed(0)
    matrix = torch.randn(6, 6, dtype=torch.float64)
    real = torch.linalg.eigh

    class Answer:
        pass

    for spoil in (lambda v: v + 0.02 * torch.randn_like(v), lambda v: torch.eye(6, dtype=v.dtype), lambda v: 0.99 * v):
        answer = Answer()
        answer.eigenvectors = spoil(real(matrix.mT @ matrix).eigenvectors)
        monkeypatch.setattr(torch.linalg, "eigh", lambda _, answer=answer: answer)
        assert exceeds_norm(norm_up(matrix), exact(matrix))
    for vectors in (torch.zeros(6, 6), torch.full((6, 6), math.nan), torch.eye(6) / 2, 100 * torch.eye(6)):
        answer = Answer()
        answer.eigenvectors = vectors.double()
        monkeypatch.setattr(torch.linalg, "eigh", lambda _, answer=answer: answer)
        with pytest.raises(ValueError, match="could not be diagonalised"):
            norm_up(matrix)


def test_bad_matrices():
    with pytest.raises(ValueError, match="`matrix` must be finite"):
        norm_up(torch.tensor([[math.inf]]))
    with pytest.raises(ValueError, match="must be real and have two dimensions"):
        norm_up(torch.zeros(3))
    with pytest.raises(ValueError, match="inner products must be shorter than"):
        gamma(2**53)


def test_directed_rounding_of_scalars():
    rng = random.Random(0)
    for _ in range(1000):
        factors = [rng.uniform(0, 10) for _ in range(rng.randint(1, 6))]
        assert Fraction(product_up(*factors)) >= math.prod(map(Fraction, factors))
        assert Fraction(sum_up(*factors)) >= sum(map(Fraction, factors))
        count = rng.randint(1, 10**6)
        for unit in (2.0**-53, 2.0**-24):
            if count * unit < 0.5:
                assert Fraction(gamma(count, unit)) >= count * Fraction(unit) / (1 - count * Fraction(unit))
    sums = torch.rand(50, 1000, dtype=torch.float64)
    for row, bound in zip(sums.tolist(), verified.inflated(sums.sum(dim=1), 1000).tolist(), strict=True):
        assert Fraction(bound) >= sum(map(Fraction, row))
    for _ in range(20):
        matrix = torch.rand(9, 7, dtype=torch.float64)
        assert Fraction(verified.frobenius_up(matrix)) ** 2 >= sum(Fraction(x) ** 2 for x in matrix.flatten().tolist())


# Networks.


def test_rigorous_bounds_of_networks():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Flatten(), Scale(2.0), nn.Linear(6, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 8), GroupSort(4), MaxMin(),
        Residual(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), 0.3), nn.Identity(), MLP(8, 4, hidden=(6,)),
    )  # fmt: skip
    rigorous, sound = lipschitz_bound(net, level="rigorous"), lipschitz_bound(net)
    assert sound * (1 - 2e-8) <= rigorous <= sound  # sound's slack is wider than rounding
    found = encoder_bounds({"audio": net}, level="rigorous")
    assert found.soundness is Soundness.RIGOROUS
    assert rigorous <= float(found.values["audio"].float()) <= rigorous * (1 + 2e-7)
    layer = nn.Linear(3, 3)
    assert (
        lipschitz_bound(nn.Sequential(layer, layer), level="rigorous") >= lipschitz_bound(layer, level="rigorous") ** 2
    )


class Fine(nn.ReLU):
    pass


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Conv2d(1, 1, 3), "'part', a Conv2d, is refused at level 'rigorous': libraries choose algorithms"),
        (OrthogonalConv2d(1, 1, 3), "'part', a OrthogonalConv2d, is refused at level 'rigorous': libraries choose"),
        (
            nn.BatchNorm1d(2),
            "'part', a BatchNorm1d, is refused at level 'rigorous': no bound of its rounding is proved",
        ),
        (OrthogonalLinear(2, 2), "'part', a OrthogonalLinear, is refused .* fix them first with .*with_fixed_weights"),
        (LipschitzMLP(2, 2), r"'part.layers.1', a OrthogonalLinear, is refused"),
        (nn.Tanh(), "'part', a Tanh, is refused"),
        (nn.LeakyReLU(), "'part', a LeakyReLU, is refused"),
        (nn.AvgPool1d(2), "'part', a AvgPool1d, is refused"),
        (nn.LayerNorm(2), "'part', a LayerNorm, is refused"),
        (Fine(), "'part', a Fine, is refused"),
        (Residual(nn.Sequential(nn.Tanh())), r"'part.branch.0', a Tanh, is refused"),
        (Scale(1e-40), "'part', a Scale, is refused at level 'rigorous': `factor` must be 0 or of a magnitude"),
        (nn.Flatten(0), "'part', a Flatten, is refused at level 'rigorous': `start_dim` must be at least 1"),
        (parametrizations.spectral_norm(nn.Linear(2, 2)), "the norm of `weight` is measured by power iteration"),
        (parametrizations.orthogonal(nn.Linear(2, 2)), "its weights are parametrised and computed anew in every pass"),
    ],
    ids=lambda x: "" if isinstance(x, str) else type(x).__name__,
)
def test_refused_by_name(layer, message):
    net = nn.Sequential()
    net.add_module("part", layer)
    with pytest.raises(NoBoundError, match=message):
        lipschitz_bound(net, level="rigorous")
    with pytest.raises(NoBoundError, match=message):
        forward_error(net, torch.zeros(1, 2))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")  # the old hook is what we want to see refused
def test_old_hooks_and_broken_weights_are_refused():
    with pytest.raises(NoBoundError, match="must have no forward hooks"):
        lipschitz_bound(nn.utils.spectral_norm(nn.Linear(2, 2)), level="rigorous")
    layer = nn.Linear(2, 2)
    nn.init.constant_(layer.weight, math.nan)
    with pytest.raises(
        NoBoundError,
        match="the module, a Linear, is refused at level 'rigorous': `weight` must be finite, it holds NaN",
    ):
        lipschitz_bound(layer, level="rigorous")


def test_fixed_weights_are_accepted_again():
    layer = parametrizations.spectral_norm(nn.Linear(4, 4))
    parametrize.remove_parametrizations(layer, "weight")
    truth = float(torch.linalg.svdvals(layer.weight.detach().double())[0])
    assert truth <= lipschitz_bound(layer, level="rigorous") <= truth * (1 + 1e-12)


# Forward error, against 60 digits.

mpmath.mp.dps = 60


def exactly(net, x):
    """The network in exact arithmetic, on one vector; x and weights are taken as they are."""
    for module in net:
        if isinstance(module, MLP | LipschitzMLP):
            x = exactly(module.layers, x)
        elif isinstance(module, nn.Linear):
            weight = module.weight.detach().double().tolist()
            bias = [0.0] * len(weight) if module.bias is None else module.bias.detach().double().tolist()
            x = [mpmath.fdot(row, x) + b for row, b in zip(weight, bias, strict=True)]
        elif isinstance(module, nn.ReLU):
            x = [max(value, mpmath.mpf(0)) for value in x]
        elif isinstance(module, GroupSort):
            size = module.group_size
            x = [v for start in range(0, len(x), size) for v in sorted(x[start : start + size])]
        elif isinstance(module, Scale):
            x = [mpmath.mpf(module.factor) * value for value in x]
        elif isinstance(module, Residual):
            w = mpmath.mpf(module.weight)
            x = [(1 - w) * a + w * b for a, b in zip(x, exactly([module.branch], x), strict=True)]
        elif isinstance(module, nn.Sequential):
            x = exactly(module, x)
        else:
            assert isinstance(module, nn.Flatten | nn.Identity)
    return x


def networks():
    yield MLP(20, 8, hidden=())
    yield MLP(20, 8, hidden=(32, 16))
    yield with_fixed_weights(LipschitzMLP(20, 8, hidden=(32, 16), group_size=4, scale=0.1))
    yield nn.Sequential(
        Scale(1 / 3), nn.Linear(20, 12, bias=False), Residual(nn.Sequential(nn.Linear(12, 12), nn.ReLU()), 0.3),
        GroupSort(3), Residual(nn.Linear(12, 12), 1.0), Residual(nn.Linear(12, 12), 0.0), Scale(7.7), nn.Linear(12, 3),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("index", range(4))
def test_computed_features_are_within_the_error_everywhere_in_the_ball(index, dtype):
    torch.manual_seed(index)
    net = list(networks())[index].to(dtype).eval()
    for parameter in net.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter)
    x = (torch.randn(4, 20) * torch.tensor([[1e-3], [1.0], [1.0], [1e3]])).to(dtype)
    found = forward_error(net, x)
    assert found.at.shape == (4,)
    assert found.at.dtype is torch.float64
    for radius, (row, sample) in itertools.product((0.0, 0.1, 30.0), enumerate(x)):
        way = nn.functional.normalize(torch.randn(20, dtype=torch.float64), dim=0)
        probe = (sample.double() + radius * (1 - 1e-6) * way).to(dtype) if radius else sample
        distance = float((probe.double() - sample.double()).norm())
        with torch.no_grad():
            computed = net(probe[None])[0]
        truth = exactly([net], [mpmath.mpf(value) for value in probe.double().tolist()])
        error = mpmath.norm([mpmath.mpf(a) - b for a, b in zip(computed.double().tolist(), truth, strict=True)])
        assert error <= float(found.within(distance)[row])
        assert float(computed.double().norm()) <= float(found.magnitude[row]) + found.magnitude_growth * distance
    largest = (found.at + found.growth) / found.magnitude
    assert float(largest.max()) < (1e-3 if dtype is torch.float32 else 1e-11)


def test_the_error_covers_the_worst_rounding_of_an_inner_product():
    """Summed in the worst order, with inputs chosen against it, the error comes near the bound and stays below."""
    ones = nn.Linear(4000, 1, bias=False)
    nn.init.ones_(ones.weight)
    x = torch.full((1, 4000), 2.0**-24)
    x[0, 0] = 1.0
    total = torch.tensor(1.0)
    for value in x[0, 1:]:
        total = total + value  # each addition rounds to even, down to 1
    error = float(x.double().sum() - total.double())
    bound = float(forward_error(ones, x).at)
    assert error / bound > 0.1
    assert error <= bound


def test_underflow_is_counted():
    net = nn.Sequential(nn.Linear(8, 8, bias=False))
    nn.init.constant_(net[0].weight, 1e-30)
    x = torch.full((1, 8), 1e-12)
    computed = net(x)[0, 0].item()
    assert computed < 1e-38  # the products are denormal
    truth = 8 * Fraction(net[0].weight[0, 0].item()) * Fraction(x[0, 0].item())
    assert math.sqrt(8) * float(abs(Fraction(computed) - truth)) <= forward_error(net, x).at.item()


def test_errors_shrink_with_the_precision_and_scale_with_the_input():
    torch.manual_seed(0)
    net, x = MLP(30, 10, hidden=(20,)), torch.randn(3, 30)
    single, double = forward_error(net, x), forward_error(net.double(), x)
    assert float((double.at / single.at).max()) == pytest.approx(2.0**-29, rel=1e-3)
    one_by_one = torch.cat([forward_error(net, row[None]).at for row in x])
    assert torch.allclose(double.at, one_by_one, rtol=1e-9)
    assert torch.equal(double.within(0.0) >= double.at, torch.ones(3, dtype=torch.bool))


def test_what_forward_error_refuses(monkeypatch):
    net = MLP(3, 2)
    for x in (torch.zeros(3), torch.zeros(0, 3), torch.zeros(2, 3, dtype=torch.int64), [1.0]):
        with pytest.raises(ValueError, match="`x` must be a floating point tensor"):
            forward_error(net, x)
    with pytest.raises(ValueError, match="`x` must be finite"):
        forward_error(net, torch.full((1, 3), 1e300, dtype=torch.float64))
    with pytest.raises(ValueError, match="the network must run in float32 or in float64"):
        forward_error(MLP(3, 2).bfloat16(), torch.zeros(1, 3))
    mixed = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3).double())
    with pytest.raises(ValueError, match="the network must run in float32 or in float64"):
        forward_error(mixed, torch.zeros(1, 3))
    huge = nn.Linear(3, 3)
    nn.init.constant_(huge.weight, 1e25)
    with pytest.raises(ValueError, match="values must stay below"):
        forward_error(huge, torch.ones(1, 3))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
        with pytest.raises(ValueError, match="products of matrices must run in full precision"):
            forward_error(net, torch.zeros(1, 3))
    with monkeypatch.context() as patch:
        patch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
        with pytest.raises(ValueError, match="products of matrices must run in full precision"):
            forward_error(net, torch.zeros(1, 3))
    if torch.set_flush_denormal(True):
        try:
            with pytest.raises(ValueError, match="small numbers must not be flushed to zero"):
                forward_error(net, torch.zeros(1, 3))
        finally:
            torch.set_flush_denormal(False)
    assert forward_error(net, torch.zeros(1, 3)).at.shape == (1,)


# What it is for.


def test_probes_at_the_edge_of_a_certificate():
    """Linear, so that the exact certificate is attained: without the slack probes flip, with it none does."""
    torch.manual_seed(0)
    size, classes = 64, 10
    net = nn.Linear(size, classes)
    x = torch.randn(200, size)
    with torch.no_grad():
        logits = net(x)
    label = logits.argmax(dim=1)
    weight = net.weight.detach().double()
    apart = torch.cdist(weight, weight, compute_mode="donot_use_mm_for_euclid_dist")[label]
    margins = (logits.gather(1, label[:, None]) - logits).double()
    others = nn.functional.one_hot(label, classes).bool()
    error = forward_error(net, x)
    naive = (margins / apart).masked_fill(others, math.inf)
    # Each logit is off by at most e at x and at the probe: a margin by sqrt(2) e, twice.
    slack = 2 * math.sqrt(2) * error.at[:, None]
    rigorous = (margins - slack) / ((apart + math.sqrt(2) * error.growth) * (1 + 2.0**-40))
    rigorous = rigorous.masked_fill(others, math.inf)
    nearest = naive.argmin(dim=1)
    cost = 1 - rigorous.amin(dim=1).median() / naive.amin(dim=1).median()
    assert 0 < float(cost) < 0.005
    downhill = nn.functional.normalize(weight[nearest] - weight[label], dim=1)
    flips = {}
    for name, radius in {"naive": naive.amin(dim=1), "rigorous": rigorous.amin(dim=1).clamp(min=0)}.items():
        flips[name] = 0
        for trial in range(20):
            length = radius * (1 - 1e-8 * 1.5**trial)
            probe = (x.double() + length[:, None] * downhill).float()
            inside = (probe.double() - x.double()).norm(dim=1) <= radius
            with torch.no_grad():
                flips[name] += int((net(probe).argmax(dim=1) != label)[inside].sum())
    assert flips["naive"] > 20
    assert flips["rigorous"] == 0


def test_levels_are_given_by_name_or_as_what_they_are():
    net = nn.Linear(3, 2)
    assert lipschitz_bound(net, level=Soundness.RIGOROUS) == lipschitz_bound(net, level="rigorous")
    assert lipschitz_bound(net, level=Soundness.SOUND) == lipschitz_bound(net)
    assert encoder_bounds({"a": net}, level=Soundness.RIGOROUS).soundness is Soundness.RIGOROUS
    with pytest.raises(ValueError, match="`level` must be 'sound' or 'rigorous', got 'estimated'"):
        encoder_bounds({"a": net}, level=Soundness.ESTIMATED)


def test_the_old_name_of_the_growth_of_the_magnitude():
    error = forward_error(nn.Linear(3, 2), torch.ones(1, 3))
    with pytest.warns(DeprecationWarning, match="`reach` is called `magnitude_growth` now"):
        assert error.reach == error.magnitude_growth
