# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
import contextlib

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_crmt import CRMTModule
from lightning_crmt.attacks import PGD, Budget
from lightning_crmt.callbacks import AdversarialRobustness, CertifiedRobustness
from lightning_crmt.frozen_eval import as_taken_by, device_of, differentiable, frozen_eval


def half_frozen_model():
    """Modes and ``requires_grad`` differ between its parts, so that no single call restores them."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
    model[1].eval()
    model[3].weight.requires_grad_(False)
    return model


def state_of(model):
    return {
        "modes": [module.training for module in model.modules()],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "random": torch.get_rng_state().tolist(),
    }


@pytest.mark.parametrize("training", [True, False])
def test_inside_it_evaluates_and_is_frozen(training):
    model = half_frozen_model().train(training)
    with frozen_eval(model):
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("error", [None, RuntimeError("inside")])
def test_the_model_comes_back_as_it_was(error):
    model = half_frozen_model()
    before, buffers = state_of(model), {name: value.clone() for name, value in model.state_dict().items()}
    with contextlib.suppress(RuntimeError), frozen_eval(model):
        x = torch.randn(5, 3, requires_grad=True)
        model(x).sum().backward()
        if error:
            raise error
    assert state_of(model) == before
    assert all(value.equal(buffers[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_errors_pass_through():
    with pytest.raises(RuntimeError, match="inside"), frozen_eval(nn.Linear(1, 1)):
        raise RuntimeError("inside")


def test_it_nests():
    model = half_frozen_model()
    before = state_of(model)
    with frozen_eval(model):
        inner = state_of(model)
        with frozen_eval(model):
            pass
        assert state_of(model) == inner
    assert state_of(model) == before


@pytest.mark.parametrize(
    "surroundings",
    [torch.no_grad, torch.inference_mode, torch.enable_grad, lambda: torch.autocast("cpu", torch.bfloat16)],
)
def test_gradients_in_full_precision_wherever_it_is_called(surroundings):
    model = half_frozen_model()
    with surroundings():
        inputs = {"x": torch.ones(5, 3)}
        grad_enabled = torch.is_grad_enabled()
        with frozen_eval(model):
            leaves = differentiable(inputs, model)
            output = model(leaves["x"])
            (gradient,) = torch.autograd.grad(output.sum(), leaves["x"])
        assert torch.is_grad_enabled() is grad_enabled
    assert output.dtype is torch.float32
    assert gradient.shape == (5, 3)
    assert gradient.any()


def test_a_model_that_overrides_train_and_eval_is_not_asked_to():
    class Stubborn(nn.Linear):
        def train(self, mode=True):
            raise AssertionError("called")

    model = Stubborn(1, 1)
    with frozen_eval(model):
        assert not model.training
    assert model.training


def test_device_of_a_model_without_tensors_is_the_cpu():
    assert device_of(nn.ReLU()) == torch.device("cpu")
    assert device_of(nn.Linear(1, 1, device="meta")) == torch.device("meta")
    assert device_of(nn.BatchNorm1d(2, affine=False, device="meta")) == torch.device("meta")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_differentiable_copies_in_the_precision_of_the_parameters(dtype):
    inputs = {"a": torch.ones(2, 3), "b": torch.ones(2, 4, dtype=torch.float64, requires_grad=True)}
    leaves = differentiable(inputs, nn.Linear(1, 1, dtype=dtype))
    for name, leaf in leaves.items():
        assert leaf.dtype is dtype
        assert leaf.is_leaf
        assert leaf.requires_grad
        with torch.no_grad():
            leaf.zero_()
        assert inputs[name].eq(1).all()
    assert not inputs["a"].requires_grad


def test_differentiable_without_parameters_keeps_the_precision_of_the_inputs():
    leaves = differentiable({"a": torch.ones(2, 3, dtype=torch.float64)}, nn.ReLU())
    assert leaves["a"].dtype is torch.float64


def test_integers_cannot_be_differentiated():
    with pytest.raises(
        TypeError, match=r"`inputs\['tokens'\]` must be floating point to be differentiated, got torch.int"
    ):
        differentiable({"tokens": torch.ones(2, 3, dtype=torch.long)}, nn.ReLU())


def test_inputs_as_the_model_takes_them_are_copies():
    inputs = {"a": torch.ones(2, 3, dtype=torch.float64, requires_grad=True), "tokens": torch.ones(2, 3).long()}
    taken = as_taken_by(nn.Linear(3, 3), inputs)
    assert (taken["a"].dtype, taken["tokens"].dtype) == (torch.float32, torch.int64)
    assert not taken["a"].requires_grad
    taken["tokens"].zero_()
    assert inputs["tokens"].all()
    assert as_taken_by(nn.Identity(), inputs)["a"].dtype is torch.float64


class Tabled(nn.Linear):
    """Makes a tensor at the first pass, and keeps it."""

    table = None

    def forward(self, x):
        if self.table is None:
            self.table = torch.linspace(0.5, 2, x.shape[1])
        return super().forward(x * self.table)


@pytest.mark.parametrize(
    "observer",
    [
        lambda: CertifiedRobustness([0.1], constants="estimated"),
        lambda: AdversarialRobustness({"pgd": PGD(Budget(0.1), steps=2)}),
    ],
    ids=["certified", "adversarial"],
)
def test_a_tensor_kept_from_inference_mode(observer, make_trainer):
    batch = {name: torch.randn(8, 6) for name in "ab"}, torch.arange(8) % 3
    loader = DataLoader([batch], batch_size=None)

    def numbers(**settings):
        torch.manual_seed(0)
        model = CRMTModule({name: Tabled(6, 4) for name in "ab"}, num_classes=3)
        return make_trainer(observer(), **settings).test(model, loader, verbose=False)

    assert numbers(inference_mode=False)
    with pytest.raises(RuntimeError, match=r"evaluate .* by Trainer\(inference_mode=False\)"):
        numbers()
