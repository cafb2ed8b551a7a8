# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
import contextlib
import copy
import math
import re

import pytest
import torch
from support import oracles
from torch import nn
from torch.testing import assert_close

from lightning_crmt import FusionOutput, LinearFusion, OrthogonalFusion, Soundness, certify, estimate_lipschitz
from lightning_crmt.encoders import MLP
from lightning_crmt.lipschitz import estimate_and_show

OFS = ("scores", "margins")
SIZES = {"fou": 76, "mor": 6}


class Late(nn.Module):
    """Encoders and a head."""

    def __init__(self, encoders, head):
        super().__init__()
        self.encoders, self.head = nn.ModuleDict(encoders), head

    def forward(self, inputs):
        return self.head({name: encoder(inputs[name]) for name, encoder in self.encoders.items()})


def mlps(kind=OrthogonalFusion, num_classes=4, hidden=(8,), dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    model = Late({name: MLP(size, 5, hidden) for name, size in SIZES.items()}, kind({"fou": 5, "mor": 5}, num_classes))
    return model.to(dtype)


def digits(batch_size=6, dtype=torch.float32, seed=0):
    """Random numbers of the size of the views ``fou`` and ``mor``: mean squared norm 1."""
    generator = torch.Generator().manual_seed(100 + seed)
    return {
        name: torch.randn(batch_size, size, dtype=dtype, generator=generator) / math.sqrt(size)
        for name, size in SIZES.items()
    }


def noisy():
    """A model in the middle of training: Dropout, BatchNorm, one part evaluating, one frozen, some gradients."""
    torch.manual_seed(0)
    encoders = {
        name: nn.Sequential(nn.Linear(size, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.ReLU(), nn.Linear(8, 5))
        for name, size in SIZES.items()
    }
    model = Late(encoders, OrthogonalFusion({"fou": 5, "mor": 5}, 3))
    model(digits()).logits.sum().backward()
    model.encoders["fou"][1].eval()
    model.encoders["mor"].requires_grad_(False)
    return model


def state_of(model):
    """Everything that an evaluation could disturb."""
    return {
        "tensors": {name: value.clone() for name, value in model.state_dict().items()},
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "random": torch.get_rng_state(),
        "grad_enabled": torch.is_grad_enabled(),
    }


def assert_same(left, right):
    assert_close(left, right, rtol=0, atol=0)


# Against the loops.


@pytest.mark.parametrize("of", OFS)
@pytest.mark.parametrize("kind", [OrthogonalFusion, LinearFusion])
@pytest.mark.parametrize("dtype", oracles.PRECISIONS)
def test_estimates_are_the_largest_gradients(of, kind, dtype):
    model, inputs = mlps(kind, dtype=dtype), digits(dtype=dtype)
    found = estimate_lipschitz(model, [inputs], of=of)
    assert found.of == of
    assert found.soundness is Soundness.ESTIMATED
    loop = oracles.score_speeds if of == "scores" else oracles.margin_speeds
    expected = loop(copy.deepcopy(model).double(), {name: value.double() for name, value in inputs.items()})
    for name, value in found.values.items():
        assert value.dtype is dtype
        assert not value.requires_grad
        tolerance = {"rtol": 1e-4, "atol": 1e-6} if dtype is torch.float32 else {"rtol": 1e-6, "atol": 1e-9}
        assert_close(value.double(), expected[name], **tolerance)


@pytest.mark.parametrize("of", OFS)
def test_inputs_of_any_shape(of):
    torch.manual_seed(0)
    image = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3))
    model = Late({"image": image, "mor": MLP(6, 3, (4,))}, LinearFusion({"image": 3, "mor": 3}, 3)).double()
    inputs = {"image": torch.randn(3, 1, 4, 4).double(), "mor": torch.randn(3, 6).double()}
    loop = oracles.score_speeds if of == "scores" else oracles.margin_speeds
    assert_close(estimate_lipschitz(model, [inputs], of=of).values, loop(model, inputs), rtol=1e-6, atol=1e-9)


def test_scores_of_a_linear_model_have_the_norms_of_its_rows():
    head = oracles.random_head(2, 4, dtype=torch.float64)
    found = estimate_lipschitz(head, [oracles.random_features(head, 3)])
    assert_close(found.values, {name: torch.ones(4).double() for name in head.in_features})  # orthonormal, no weights


@pytest.mark.parametrize("distance", [1e-2, 1e-4])
def test_nearly_equal_classes_keep_their_distance(distance):
    torch.manual_seed(0)
    head, row, step = LinearFusion({"a": 20}, 3), torch.randn(20), nn.functional.normalize(torch.randn(20), dim=0)
    with torch.no_grad():
        head.rows["a"].copy_(torch.stack([row, row + distance * step, -row]))
    found = estimate_lipschitz(head, [{"a": torch.randn(4, 20)}], of="margins").values["a"]
    rows = head.rows["a"].detach().double()
    assert_close(found.double(), (rows[:, None] - rows).norm(dim=2), rtol=1e-4, atol=0)


def test_margins_need_no_late_fusion():
    class Early(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = MLP(82, 3, (8,))

        def forward(self, inputs):
            return {"logits": self.net(torch.cat([inputs["fou"], inputs["mor"]], dim=1))}

    torch.manual_seed(0)
    model, inputs = Early().double(), digits(dtype=torch.float64)
    expected = oracles.margin_speeds(lambda sample: FusionOutput(model(sample)["logits"], {}), inputs)
    found = estimate_lipschitz(model, [inputs], of="margins")
    assert_close(found.values, expected, rtol=1e-6, atol=1e-9)
    assert certify(model(inputs)["logits"], None, found).soundness.label == "estimated"


@pytest.mark.parametrize("of", OFS)
def test_an_input_that_nothing_depends_on_has_constant_zero(of):
    model = mlps()
    nn.init.zeros_(model.encoders["mor"].layers[-1].weight)
    found = estimate_lipschitz(model, [digits()], of=of)
    assert found.values["mor"].eq(0).all()
    assert found.values["fou"].any()


@pytest.mark.parametrize("of", OFS)
def test_an_input_that_is_not_looked_at_has_constant_zero(of):
    class Deaf(nn.Module):
        def forward(self, inputs):
            scores = {"fou": inputs["fou"][:, :3], "mor": torch.zeros(6, 3)}
            return FusionOutput(scores["fou"], scores)

    class Constant(nn.Module):
        def forward(self, inputs):
            return FusionOutput(torch.ones(6, 3), {name: torch.ones(6, 3) for name in inputs})

    shape = (3,) if of == "scores" else (3, 3)
    speeds = torch.ones(3) if of == "scores" else math.sqrt(2) * (1 - torch.eye(3))
    assert_close(estimate_lipschitz(Deaf(), [digits()], of=of).values, {"fou": speeds, "mor": torch.zeros(shape)})
    assert_same(estimate_lipschitz(Constant(), [digits()], of=of).values, {name: torch.zeros(shape) for name in SIZES})


# Properties.


@pytest.mark.parametrize("of", OFS)
@pytest.mark.parametrize("sizes", [[12, 12], [1] * 24, [5, 19]])
def test_the_split_into_batches_does_not_matter(of, sizes):
    model, inputs = mlps(), digits(24)
    parts = {name: value.split(sizes) for name, value in inputs.items()}
    batches = [{name: part[i] for name, part in parts.items()} for i in range(len(sizes))]
    whole = estimate_lipschitz(model, [inputs], of=of).values
    for order in (batches, reversed(batches)):
        assert_close(estimate_lipschitz(model, (batch for batch in order), of=of).values, whole)


@pytest.mark.parametrize("of", OFS)
def test_more_data_never_lowers_an_estimate(of):
    model, batches = mlps(), [digits(seed=seed) for seed in range(3)]
    before = estimate_lipschitz(model, batches[:1], of=of).values
    after = estimate_lipschitz(model, batches, of=of).values
    assert all((after[name] >= before[name]).all() for name in SIZES)
    assert any((after[name] > before[name]).any() for name in SIZES)


def test_margins_are_symmetric_with_zero_diagonal_and_weights_included():
    model = mlps()
    before = estimate_lipschitz(model, [digits()], of="margins").values
    for value in before.values():
        assert value.equal(value.mT)
        assert value.diagonal().eq(0).all()
    scores = estimate_lipschitz(model, [digits()]).values
    with torch.no_grad():
        for weight in model.head.integration_parameters():
            weight.mul_(3)
    assert_close(estimate_lipschitz(model, [digits()], of="margins").values, {n: 3 * v for n, v in before.items()})
    assert_same(estimate_lipschitz(model, [digits()]).values, scores)


@pytest.mark.parametrize("of", OFS)
def test_evaluation_mode_is_what_is_measured(of):
    model = noisy()
    assert_same(
        estimate_lipschitz(model, [digits()], of=of).values,
        estimate_lipschitz(copy.deepcopy(model).eval(), [digits()], of=of).values,
    )


# Wherever it is called, nothing is disturbed.


@pytest.mark.parametrize("of", OFS)
@pytest.mark.parametrize(
    "surroundings", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)]
)
def test_surroundings_do_not_matter(of, surroundings):
    model = mlps()
    expected = estimate_lipschitz(model, [digits()], of=of).values
    with surroundings():
        assert_same(estimate_lipschitz(model, [digits()], of=of).values, expected)
    assert_same(estimate_lipschitz(model.requires_grad_(False), [digits()], of=of).values, expected)


@pytest.mark.parametrize("of", OFS)
def test_inputs_take_the_precision_of_the_parameters(of):
    model = mlps(dtype=torch.float64)
    found = estimate_lipschitz(model, [digits()], of=of).values
    assert_same(found, estimate_lipschitz(model, [{n: v.double() for n, v in digits().items()}], of=of).values)


@pytest.mark.parametrize("of", OFS)
def test_a_model_in_half_precision_is_estimated_too(of):
    model = mlps()
    expected = estimate_lipschitz(model, [digits()], of=of).values
    found = estimate_lipschitz(model.bfloat16(), [digits()], of=of).values
    assert_close({name: value.float() for name, value in found.items()}, expected, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("of", OFS)
@pytest.mark.parametrize("surroundings", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
def test_model_inputs_and_random_state_are_left_as_found(of, surroundings):
    model, inputs = noisy(), digits()
    inputs["fou"].requires_grad_(True)
    copies = {name: value.detach().clone() for name, value in inputs.items()}
    with surroundings():
        before = state_of(model)
        estimate_lipschitz(model, [inputs], of=of)
        after = state_of(model)
    assert_same(after, before)
    assert all(inputs[name].equal(copies[name]) and inputs[name].grad is None for name in inputs)
    assert inputs["fou"].requires_grad
    assert not inputs["mor"].requires_grad


def test_model_is_left_as_found_when_it_raises():
    class Fails(Late):
        calls = 0

        def forward(self, inputs):
            self.calls += 1
            torch.rand(1)
            if self.calls == 2:
                raise RuntimeError("out of memory")
            return super().forward(inputs)

    model = noisy()
    model = Fails(dict(model.encoders), model.head)
    before = state_of(model)
    with pytest.raises(RuntimeError, match="out of memory"):
        estimate_lipschitz(model, [digits(), digits()])
    assert_same(state_of(model), before)


def test_training_goes_on_as_if_nothing_had_been_estimated():
    def train(observe):
        model = noisy()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for step in range(4):
            nn.functional.cross_entropy(model(digits(seed=step)).logits, torch.randint(3, (6,))).backward()
            if observe:
                for of in OFS:
                    estimate_lipschitz(model, [digits(seed=9)], of=of)
            optimizer.step()
        return state_of(model)

    assert_same(train(True), train(False))


# An estimate is not a certificate.


@pytest.mark.parametrize("of", OFS)
def test_the_trap_is_called_an_estimate(of):
    class Trap(nn.Module):
        def forward(self, x):
            return 3 - (x + 10 * torch.relu(x - 2))

    head = LinearFusion({"x": 1}, 2)
    with torch.no_grad():
        head.rows["x"].copy_(torch.tensor([[1.0], [0.0]]))
        head.bias.zero_()
    model = Late({"x": Trap()}, head)
    found = estimate_lipschitz(model, [{"x": torch.linspace(-1.5, 1.5, 31)[:, None]}], of=of)
    origin = {"x": torch.zeros(1, 1)}
    certificate = certify(model(origin), head, found)
    assert certificate.radius().item() == pytest.approx(3.0)
    assert certificate.soundness is Soundness.ESTIMATED
    assert certificate.soundness.label == "estimated"
    assert not certificate.soundness.certified
    for x, flips in ((23 / 11 - 1e-4, False), (23 / 11 + 1e-4, True)):  # 2.0909, inside the estimated radius
        assert (model({"x": torch.tensor([[x]])}).logits.argmax(dim=1) != certificate.prediction).item() is flips


# What is refused.


class Gated(Late):
    """The scores of ``mor`` move with the input ``fou``, each class by its own factor."""

    def __init__(self, factors):
        model = mlps(num_classes=len(factors))
        super().__init__(dict(model.encoders), model.head)
        self.register_buffer("factors", torch.tensor(factors))

    def forward(self, inputs):
        output = super().forward(inputs)
        crossed = output.scores["mor"] + self.factors * inputs["fou"][:, :1]
        return FusionOutput(output.logits, {**output.scores, "mor": crossed})


@pytest.mark.parametrize("factors", [[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0]])
def test_scores_that_depend_on_another_modality_are_refused(factors):
    model = Gated(factors)
    before = state_of(model)
    with pytest.raises(ValueError, match="scores of 'mor' must depend on the input 'mor' alone, they move with 'fou'"):
        estimate_lipschitz(model, [digits()])
    assert_same(state_of(model), before)
    estimate_lipschitz(model, [digits()], of="margins")


def test_scores_that_depend_on_another_modality_are_refused_even_if_their_sum_does_not():
    with pytest.raises(ValueError, match="scores of 'mor' must depend on the input 'mor' alone, they move with 'fou'"):
        estimate_lipschitz(Gated([1.0, -1.0, 2.0, -2.0]), [digits()])


def with_nan(value):
    inputs = digits()
    inputs["mor"][2, 3] = value
    return inputs


@pytest.mark.parametrize("of", OFS)
@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], ValueError, "`batches` must hold at least one batch, got none"),
        ([digits(0)], ValueError, "`inputs` must hold at least one sample, got an empty batch"),
        (
            [with_nan(math.nan)],
            ValueError,
            "`inputs` must be finite: `inputs['mor']` has 1 NaN and 0 Inf among 36 values",
        ),
        ([digits(), with_nan(math.inf)], ValueError, "`inputs['mor']` has 0 NaN and 1 Inf among 36 values"),
        ([{"fou": digits()["fou"], "mor": digits(7)["mor"]}], ValueError, "one batch size, got {'fou': 6, 'mor': 7}"),
        (
            [{"fou": torch.ones(2, 76).long(), "mor": torch.ones(2, 6).long()}],
            TypeError,
            "`inputs['fou']` must be floating point",
        ),
    ],
)
def test_batches_that_are_refused(of, batches, error, message):
    with pytest.raises(error, match=re.escape(message)):
        estimate_lipschitz(mlps(), batches, of=of)


@pytest.mark.parametrize(
    ("batches", "got"),
    [([(digits(), torch.zeros(6))], "a tuple"), (digits(), "a str"), ([torch.zeros(2, 3)], "a float32")],
)
def test_batches_must_map_modalities_to_tensors(batches, got):
    with pytest.raises(TypeError, match=f"`inputs` must map the name of each modality to a tensor, got {got}"):
        estimate_lipschitz(mlps(), batches)


def test_unknown_kind_of_constants():
    with pytest.raises(ValueError, match="`of` must be 'scores' or 'margins', got 'encoder'"):
        estimate_lipschitz(mlps(), [digits()], of="encoder")


def test_scores_need_a_fusion_output():
    with pytest.raises(TypeError, match="`model` must return a FusionOutput for of='scores', got a float32 tensor"):
        estimate_lipschitz(_Logits(), [{"fou": torch.ones(2, 76)}])
    with pytest.raises(TypeError, match=re.escape("a model must return logits of shape (B, K)")):
        estimate_lipschitz(_Vector(), [{"fou": torch.ones(2, 76)}], of="margins")


@pytest.mark.parametrize("of", OFS)
def test_a_diverged_model_is_refused(of):
    model = mlps()
    nn.init.constant_(model.encoders["mor"].layers[-1].weight, math.nan)
    with pytest.raises(ValueError, match=r"gradients with respect to `inputs\['mor'\]` must be finite, got NaN or Inf"):
        estimate_lipschitz(model, [digits()], of=of)


class _Logits(nn.Module):
    def forward(self, inputs):
        return inputs["fou"]


class _Vector(nn.Module):
    def forward(self, inputs):
        return inputs["fou"].sum(dim=1)


def test_one_forward_pass_for_each_batch():
    class Counted(nn.Module):
        calls = 0

        def __init__(self):
            super().__init__()
            self.head = LinearFusion({"a": 3}, num_classes=2)

        def forward(self, inputs):
            self.calls += 1
            return self.head(inputs)

    model, seen = Counted(), []
    batches = [{"a": torch.randn(4, 3)} for _ in range(3)]
    estimate_and_show(model, batches, show=seen.append)
    assert model.calls == len(seen) == 3
    for batch, scores in zip(batches, seen, strict=True):
        assert not scores["a"].requires_grad
        assert torch.equal(scores["a"], model.head(batch).scores["a"])
