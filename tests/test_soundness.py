# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The short form of ``make soundness``, and whether what it measures by can be trusted."""

import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_crmt import CRMTModule, LinearFusion

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import soundness
from fuzzing import exact, planted
from fuzzing.exact import Reference, Threat
from fuzzing.trials import Trial

# Certificates hold; the long form of it is `make soundness`.

SHORT = {
    "linear": (0, 1),
    "one-dimensional": (0,),
    "small ReLU": (0,),
    "network": (1, 2),
    "rigorous": (0,),
    "dropped modality": (0,),
    "changed weights": (0, 1),
}


@pytest.mark.parametrize(("kind", "seed"), [(kind, seed) for kind, seeds in SHORT.items() for seed in seeds])
def test_certificates_hold(kind, seed):
    outcome = Trial(kind, seed).run()
    assert not outcome.violations, "\n".join(map(str, outcome.violations))


# A fuzzer that finds nothing must be one that could.


@pytest.mark.parametrize(
    ("kind", "shrink"),
    [
        ("linear", 1 - 1e-5),
        ("one-dimensional", 0.9),
        ("small ReLU", 0.5),
        ("network", 0.5),
        ("rigorous", 0.999),
        ("dropped modality", 0.7),
    ],
)
def test_certificates_that_are_too_long_are_found(kind, shrink):
    for seed in range(1, 13):
        outcome = Trial(kind, seed, gently=True, shrink=shrink).run()
        if outcome.violations:
            assert outcome.wrong > 0
            assert f"--repeat {seed}:{kind}" in str(outcome.violations[0])
            return
    pytest.fail("none of 12 models showed it")


def test_a_violation_is_repeated_from_its_seed():
    one, other = (Trial("linear", 7, gently=True, shrink=0.3).run() for _ in range(2))
    assert [str(v) for v in one.violations] == [str(v) for v in other.violations]
    assert one.violations


def test_the_command_fails_for_a_wrong_certificate_and_says_how_to_repeat_it(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["soundness.py", "--repeat", "7:linear"])
    monkeypatch.setattr(soundness, "Trial", partial(Trial, gently=True))
    assert soundness.main() == 0
    assert "--repeat" not in capsys.readouterr().out
    monkeypatch.setattr(soundness, "Trial", partial(Trial, gently=True, shrink=0.3))
    assert soundness.main() == 1
    assert "--repeat 7:linear" in capsys.readouterr().out


# Exact answers, by other means.


def model_of(encoders, sizes, classes):
    torch.manual_seed(0)
    return CRMTModule(encoders, classes, head=LinearFusion, in_features=sizes).double().eval().requires_grad_(False)


def test_affine_distances():
    model = model_of({"a": nn.Linear(3, 4), "b": nn.Identity()}, {"a": 4, "b": 2}, 3)
    inputs = {"a": torch.randn(20, 3).double(), "b": torch.randn(20, 2).double()}
    logits = model(inputs).logits
    prediction = logits.argmax(1)
    rows = {"a": model.head.class_weights["a"] @ model.encoders["a"].weight, "b": model.head.class_weights["b"]}
    threats = [Threat(("a", "b")), Threat(("b",)), Threat(("a", "b"), {"a": 0.3, "b": 0.8})]
    found = exact.affine(Reference(model, model), inputs, prediction, threats)
    for i, p in enumerate(prediction.tolist()):
        norms = {j: {m: float((w[p] - w[j]).norm()) for m, w in rows.items()} for j in range(3) if j != p}
        margins = {j: float(logits[i, p] - logits[i, j]) for j in norms}
        joint = min(margins[j] / (n["a"] ** 2 + n["b"] ** 2) ** 0.5 for j, n in norms.items())
        alone = min(margins[j] / n["b"] for j, n in norms.items())
        product = min(margins[j] / (0.3 * n["a"] + 0.8 * n["b"]) for j, n in norms.items())
        assert [d[i].item() for d in found] == pytest.approx([joint, alone, product], rel=1e-9)


class Trap(nn.Module):
    """x + 10 relu(x - 2), as a network: from 0 on its slope is 1, then 11."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(1, 3), nn.Linear(3, 1, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1.0], [-1.0], [1.0]]))
            self.first.bias.copy_(torch.tensor([0.0, 0.0, -2.0]))
            self.second.weight.copy_(torch.tensor([[1.0, -1.0, 10.0]]))

    def forward(self, x):
        return self.second(self.first(x).relu())


def trap():
    """f(x) = 3 - (x + 10 relu(x - 2)) against 0: from x = 0 it is 2.0909 to where the prediction changes."""
    net = Trap()
    model = model_of({"x": nn.Sequential(net.first, nn.ReLU(), net.second)}, {"x": 1}, 2)
    with torch.no_grad():
        model.head.rows["x"].copy_(torch.tensor([[-1.0], [0.0]]))
        model.head.bias.copy_(torch.tensor([3.0, 0.0]))
    return model


def test_a_grid_and_regions_and_a_search_know_the_trap():
    model, x, prediction = trap(), {"x": torch.full((1, 1), 0.1, dtype=torch.float64)}, torch.tensor([0])
    reference, threat = Reference(model, model), Threat(("x",))
    true = 2 + 1 / 11 - 0.1
    net = model.encoders["x"]
    weights = {"x": [(net[0].weight, net[0].bias), (net[2].weight, torch.zeros(1).double())]}
    rows = dict(model.head.class_weights)
    regions = exact.by_regions(reference, weights, rows, model.head.bias, x, prediction, threat)
    assert regions.item() == pytest.approx(true, rel=1e-10)
    radius = torch.tensor([1.5]).double()
    assert exact.on_a_grid(reference, x, prediction, threat, radius, 100).item() == pytest.approx(true, rel=1e-8)
    assert exact.searched(reference, x, prediction, threat, radius).item() == pytest.approx(true, rel=1e-4)
    assert exact.by_minimum_norm(reference, x, prediction, threat, radius, 40).item() == pytest.approx(true, rel=1e-3)


def test_regions_are_as_near_as_a_fine_grid():
    model, inputs = planted.build("small ReLU", modalities=1, seed=3, count=6)
    with torch.no_grad():
        prediction = model(inputs).logits.argmax(1)
    found = planted.distances("small ReLU", model, inputs, prediction, Threat(("m0",)))
    side = torch.linspace(-3, 3, 601).double()
    grid = torch.cartesian_prod(side, side)
    for i, x in enumerate(inputs["m0"]):
        with torch.no_grad():
            changed = model({"m0": x + grid}).logits.argmax(1) != prediction[i]
        nearest = grid[changed].norm(dim=1).min() if changed.any() else torch.inf
        if nearest < 3:
            assert found[i] <= nearest
            assert found[i] > nearest - 0.015  # the diagonal of a cell


def test_answers_are_never_nearer_than_float64_can_tell():
    """Right on a boundary nothing is certain, so no answer is 0."""
    model = model_of({"a": nn.Identity()}, {"a": 1}, 2)
    with torch.no_grad():
        model.head.rows["a"].copy_(torch.tensor([[1.0], [0.0]]))
        model.head.bias.copy_(torch.tensor([-1e5, 0.0]))
    x = {"a": torch.full((1, 1), 1e5).double()}
    (found,) = exact.affine(Reference(model, model), x, torch.tensor([0]), [Threat(("a",))])
    assert 1e-11 < found.item() < 1e-6


# Planted certificates that are too long.


@pytest.mark.parametrize("modalities", [1, 2, 3])
def test_planted_certificates_of_linear_models_are_found(modalities):
    counts = planted.measure("linear", modalities, seed=0, count=2)
    assert list(counts) == [0.01, 0.05, 0.2]
    for caught, claims in counts.values():
        assert caught == claims > 0
