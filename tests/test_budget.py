# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from support.linear_model import SIZES, samples

from lightning_crmt.attacks import FGM, PGD, Box, Budget

KINDS = {
    "joint": lambda r: Budget(r),
    "alone": lambda r: Budget(r, modalities=["audio"]),
    "product": lambda r: Budget({"audio": r, "image": 3 * r}),
    "linf": lambda r: Budget(r, norm="linf"),
    "joint, box": lambda r: Budget(r, box={"image": (-2.0, 2.0)}),
    "product, box": lambda r: Budget({"audio": r, "image": r}, box={"audio": (-2.0, 2.5)}),
    "linf, box": lambda r: Budget(r, norm="linf", box={"audio": (-2.0, 2.0)}),
}


def noise(inputs, names, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return {n: scale * torch.randn(inputs[n].shape, generator=generator, dtype=torch.float64) for n in names}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("radius", [0.0, 1e-3, 0.7, 50.0])
def test_projections_are_within_and_nearest(kind, radius):
    x, budget = samples(), KINDS[kind](radius)
    for seed in range(5):
        delta = noise(x, budget.attacked(x), seed, scale=2.0)
        near = budget.project(delta, x)
        assert (budget.size(near) <= 1 + 1e-12).all()
        again = budget.project(near, x)
        assert all(torch.allclose(again[n], near[n], atol=1e-12) for n in near)
        # Nearest in a convex set: no other member lies on the far side of the hyperplane through it.
        for other in range(5):
            member = budget.project(noise(x, near, 100 + other, scale=radius), x)
            beyond = sum(((delta[n] - near[n]) * (member[n] - near[n])).flatten(1).sum(1) for n in near)
            assert (beyond <= 1e-9 * (1 + radius)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_in_the_budget_gains_more_than_the_steepest(kind):
    x, budget = samples(), KINDS[kind](0.7)
    gradient = noise(x, budget.attacked(x))
    best = budget.steepest(gradient, x)
    gain = sum((gradient[n] * best[n]).flatten(1).sum(1) for n in best)
    assert (budget.size(best) <= 1 + 1e-12).all()
    for seed in range(20):
        other = budget.project(noise(x, best, seed, scale=0.5 + seed), x)
        assert (sum((gradient[n] * other[n]).flatten(1).sum(1) for n in best) <= gain + 1e-9).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("magnitude", [1.0, 3e4])
def test_what_is_stored_keeps_the_budget(kind, dtype, magnitude):
    x = {n: (v * magnitude / 2).clamp(-3e4, 3e4).to(dtype) for n, v in samples().items()}
    for radius in (1e-6, 0.03, 1.0, 7.0, 40.0):
        budget = KINDS[kind](radius)
        box = dict.fromkeys(budget.box, Box(-3e4, 3e4))
        budget = Budget(budget.radius, modalities=budget.modalities, norm=budget.norm, box=box)
        delta = budget.project(noise(x, budget.attacked(x), scale=100.0), x)
        stored = budget.apply(delta, x)
        assert all(stored[n].dtype is dtype for n in x)
        assert all(stored[n] is x[n] for n in x if n not in delta)
        assert (budget.size(budget.difference(stored, x)) <= 1 + 1e-9).all()
        assert all(stored[n].abs().max() <= 3e4 for n in budget.box)


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_are_told_where_rounding_left_all_within_and_nothing_else_is_nudged(kind):
    x = {n: v.float() for n, v in samples().items()}
    seen = set()
    for radius in (0.0, 0.7):
        budget = KINDS[kind](radius)
        delta = budget.project(noise(x, budget.attacked(x)), x)
        near, (stored, given, size) = budget.near(delta, x), budget.apply_and_measure(delta, x)
        assert given.equal(budget.size(delta))
        too_far = budget.size(budget.difference(near, x)) > given
        assert (size is None) == bool(too_far.any())
        assert size is None or size.equal(budget.size(budget.difference(stored, x)))
        for n, d in delta.items():
            over = (near[n].double() - x[n].double()).abs() > d.abs()
            nudged = over & too_far.reshape(-1, *[1] * (d.dim() - 1))
            assert stored[n].equal(torch.where(nudged, torch.nextafter(near[n], x[n]), near[n]))
        seen.add(size is None)
    assert False in seen


def test_coarse_inputs_can_still_be_moved():
    """At 3e4, single precision has steps of 0.002: of a budget of 0.05 most can be used."""
    x = {n: (v * 1.5e4).float() for n, v in samples().items()}
    budget = Budget(0.05)
    stored = budget.apply(budget.project(noise(x, x, scale=10.0), x), x)
    assert (budget.size(budget.difference(stored, x)) > 0.8).all()


@pytest.mark.parametrize("kind", KINDS)
def test_random_perturbations_are_within_reproducible_and_batches_may_be_split(kind):
    x, budget = samples(), KINDS[kind](0.7)
    before = torch.get_rng_state()
    drawn = budget.random(x, torch.Generator().manual_seed(3))
    assert torch.get_rng_state().equal(before)
    assert (budget.size(drawn) <= 1 + 1e-12).all()
    assert (budget.size(drawn) > 0).all()
    rows = torch.arange(4, 9)
    part = budget.select(rows).random({n: v[rows] for n, v in x.items()}, torch.Generator().manual_seed(3))
    assert all(torch.allclose(part[n], drawn[n][rows], rtol=1e-12) for n in part)


def test_size_of_what_is_known():
    delta = {"audio": torch.tensor([[3.0, 0.0]]), "image": torch.tensor([[0.0, -4.0]])}
    assert Budget(2.5).size(delta).item() == 2.0
    assert Budget({"audio": 6.0, "image": 1.0}).size(delta).item() == 4.0
    assert Budget(2.0, norm="linf").size(delta).item() == 2.0
    assert Budget({"audio": 0.0, "image": 1.0}).size(delta).item() == math.inf
    assert Budget(0.0).size({"audio": torch.zeros(1, 2)}).item() == 0.0


def test_a_radius_for_each_sample():
    x = samples()
    radius = torch.linspace(0, 2, 20)
    near = Budget(radius).project(noise(x, x, scale=100.0), x)
    norms = torch.stack([d.flatten(1).norm(dim=1) for d in near.values()]).norm(dim=0)
    assert torch.allclose(norms, radius.double(), rtol=1e-6)
    some = Budget({"audio": radius, "image": 1.0}).select(torch.tensor([3, 5]))
    assert some.radius["audio"].equal(radius[[3, 5]])
    assert some.radius["image"] == 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Budget(-0.1), "`radius` must be finite and at least 0.*-0.1"),
        (lambda: Budget({"audio": 0.1, "image": math.nan}), "`radius` must be finite.*nan"),
        (lambda: Budget(math.inf), "`radius` must be finite.*inf"),
        (lambda: Budget(torch.ones(2, 2)), "a number or one per sample"),
        (lambda: Budget({}), "`radius` must name at least one modality"),
        (lambda: Budget(0.1, norm="l1"), "`norm` must be 'l2' or 'linf', got 'l1'"),
        (lambda: Budget({"audio": 0.1}, modalities=["audio"]), "named by `radius` already"),
        (lambda: Budget(0.1, modalities=[]), "at least one modality"),
        (lambda: Budget(0.1, box={"audio": (1.0, 0.0)}), "low < high, got \\(1.0, 0.0\\)"),
        (
            lambda: Budget(0.1, modalities=["smell"]).attacked(samples()),
            "among .*, got \\['smell'\\]",
        ),
        (lambda: Budget(0.1, box={"smell": (0, 1)}).attacked(samples()), "got \\['smell'\\]"),
        (lambda: Budget(0.1, box={"audio": (0, 1)}).attacked(samples()), "`inputs\\['audio'\\]` must lie in its box"),
        (lambda: Budget(torch.ones(3)).attacked(samples()), "one for each of 20 samples, got 3"),
    ],
)
def test_bad_budgets(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_bad_types():
    with pytest.raises(TypeError, match="`modalities` must be a sequence of names, got the string 'audio'"):
        Budget(0.1, modalities="audio")
    tokens = {"text": torch.zeros(2, 3, dtype=torch.long), "image": torch.zeros(2, 3)}
    with pytest.raises(TypeError, match="`inputs\\['text'\\]` must be floating point to be perturbed"):
        Budget(0.1).attacked(tokens)
    assert Budget(0.1, modalities=["image"]).attacked(tokens) == ["image"]


def test_all_modalities_are_attacked_by_default():
    assert Budget(0.1).attacked(samples()) == list(SIZES)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Budget([0.1] * 3), "`radius` must be a number, a tensor with one per sample, .* got a list"),
        (lambda: Budget({"a": "0.1"}), "`radius` must be a number, .* got a str"),
        (lambda: Budget(0.1, box=(0, 1)), "`box` must be by modality, as in .*, got \\(0, 1\\)"),
        (lambda: Budget(0.1, box={"a": (0, 1, 2)}), "a box must be \\(low, high\\) or a Box, got \\(0, 1, 2\\)"),
        (lambda: PGD(0.1), "`budget` must be a Budget, as in PGD\\(Budget\\(0.1\\)\\), got 0.1"),
    ],
)
def test_what_is_of_another_type(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_an_attack_shows_its_settings():
    assert repr(FGM(Budget(0.1))).startswith("FGM(budget=Budget(0.1), loss='ce', ")
