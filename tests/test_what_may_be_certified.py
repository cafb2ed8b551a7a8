# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Nothing is certified that was not examined, and what is certified is true of the model as it runs."""

import copy
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _OrthMaps, orthogonal
from torch.utils.data import DataLoader

from lightning_crmt import (
    CRMTModule,
    FixedFusion,
    FusionOutput,
    LinearFusion,
    NoBoundError,
    OrthogonalFusion,
    Soundness,
    encoder_bounds,
    estimate_lipschitz,
    lipschitz_bound,
    lipschitz_rule,
    with_fixed_weights,
)
from lightning_crmt.callbacks import CertifiedRobustness
from lightning_crmt.certification import certify_late_fusion
from lightning_crmt.certification.exact_twin import ExactTwin
from lightning_crmt.encoders import MLP, LipschitzMLP
from lightning_crmt.fusion import FusionHead, LateFusion
from lightning_crmt.layers import Fixable, OrthogonalLinear, Residual, Scale
from lightning_crmt.lipschitz import Precision, forward_error, running_error
from lightning_crmt.mixin import CRMTMixin


def model_of(encoder=None, features=4, head=LinearFusion, classes=3):
    torch.manual_seed(0)
    encoders = {"a": nn.Linear(6, features) if encoder is None else encoder, "b": MLP(5, features)}
    sizes = dict.fromkeys("ab", features)
    return CRMTModule(encoders, classes, head=head, in_features=sizes).eval()


def inputs_of(size=20):
    generator = torch.Generator().manual_seed(1)
    return {"a": torch.randn(size, 6, generator=generator), "b": torch.randn(size, 5, generator=generator)}


# --- constants know what they are of


def changed_by_data(model):
    model.encoders["a"].weight.data.mul_(10)


def loaded(model):
    model.load_state_dict({name: 3 * value for name, value in model.state_dict().items()})


def averaged(model):
    for parameter in model.encoders.parameters():
        parameter.data = 0.5 * parameter.data + 0.5


def adapted(model):
    with torch.no_grad():
        model.encoders["b"].layers[1].weight.add_(0.1)


@pytest.mark.parametrize("change", [changed_by_data, loaded, averaged, adapted])
def test_constants_of_other_weights_are_refused_and_computed_again_where_none_are_given(change):
    model, inputs = model_of(), inputs_of()
    constants, before = encoder_bounds(model.encoders), model.certify(inputs)
    torch.testing.assert_close(model.certify(inputs, constants).radius(), before.radius())
    change(model)
    with pytest.raises(ValueError, match=r"`lipschitz` must be bounds of these very encoders.*weights were changed"):
        model.certify(inputs, constants)
    fresh = copy.deepcopy(model)
    torch.testing.assert_close(model.certify(inputs).radius(), fresh.certify(inputs).radius())
    assert not torch.equal(model.certify(inputs).radius(), before.radius())


def test_constants_that_nobody_examined_certify_nothing():
    model, inputs = model_of(), inputs_of()
    made_up = encoder_bounds({"a": nn.Identity(), "b": nn.Identity()})
    with pytest.raises(ValueError, match="`lipschitz` must be bounds of these very encoders"):
        model.certify(inputs, made_up)


class Mapped(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, weight):
        return self.function(weight)


class Times(nn.Module):
    of_class = 1.0

    def __init__(self):
        super().__init__()
        self._private = 1.0
        self.nested = {"factors": [1.0]}

    def forward(self, x):
        return x * (self.of_class * self._private * self.nested["factors"][0])


@lipschitz_rule(Times)
def _(layer, place):
    return abs(layer.of_class * layer._private * layer.nested["factors"][0])


def by_another_function(encoder):
    encoder[1].parametrizations.weight[0].function = lambda weight: 3 * weight


def by_a_private_attribute(encoder):
    encoder[0]._private = 30.0


def by_a_nested_attribute(encoder):
    encoder[0].nested["factors"][0] = 30.0


def by_a_class_attribute(encoder):
    Times.of_class = 30.0


def by_another_map(encoder):
    encoder[2].parametrizations.weight[0].orthogonal_map = _OrthMaps.cayley


@pytest.mark.parametrize(
    "change",
    [by_another_function, by_a_private_attribute, by_a_nested_attribute, by_a_class_attribute, by_another_map],
)
def test_what_parts_compute_is_more_than_their_weights(change, monkeypatch):
    monkeypatch.setattr(Times, "of_class", 1.0)
    mapped = nn.Sequential(
        Times(),
        parametrize.register_parametrization(nn.Linear(6, 6), "weight", Mapped(lambda weight: 2 * weight)),
        orthogonal(nn.Linear(6, 4), orthogonal_map="matrix_exp", use_trivialization=False),
    )
    model, inputs = model_of(mapped), inputs_of()
    before, constants = model.certify(inputs), encoder_bounds(model.encoders)
    torch.testing.assert_close(model.certify(inputs, constants).margins, before.margins)
    change(mapped)
    after = model.certify(inputs)
    assert not torch.allclose(after.radius(), before.radius())
    ExactTwin._twins.clear()
    torch.testing.assert_close(after.radius(), model.certify(inputs).radius())
    with pytest.raises(ValueError, match="`lipschitz` must be bounds of these very encoders"):
        model.certify(inputs, constants)


def pooled():
    return nn.Sequential(nn.Conv1d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten())


def test_bounds_of_one_length_do_not_serve_another():
    torch.manual_seed(0)
    model = CRMTModule({"a": pooled(), "b": pooled()}, 3, head=LinearFusion, in_features={"a": 4, "b": 4}).eval()
    long, short = ({name: torch.randn(8, 1, length) for name in "ab"} for length in (400, 4))
    constants = encoder_bounds(model.encoders, {"a": (1, 400), "b": (1, 400)})
    model.certify(long, constants)
    with pytest.raises(ValueError, match=r"`lipschitz` must be bounds for samples of shapes \{'a': \(1, 4\)"):
        model.certify(short, constants)


@pytest.mark.parametrize("lengths", [(400, 4, 4), (4, 400, 4), (40, 4, 400, 7, 4)])
def test_a_loader_of_several_lengths_gives_each_its_own_bound(lengths):
    torch.manual_seed(0)
    model = CRMTModule({"a": pooled(), "b": pooled()}, 3, head=LinearFusion, in_features={"a": 4, "b": 4}).eval()
    batches = []
    for length in lengths:
        inputs = {name: torch.randn(16, 1, length) for name in "ab"}
        batches.append((inputs, model(inputs).logits.argmax(1).detach()))
    trainer = Trainer(
        logger=False, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
        callbacks=[CertifiedRobustness([0.3])],
    )  # fmt: skip
    (numbers,) = trainer.test(model, DataLoader(batches, batch_size=None), verbose=False)
    alone = [copy.deepcopy(model).certify(inputs).radius() for inputs, _ in batches]
    expected = torch.cat(alone).mean().item()
    assert numbers["test/certified_radius/joint"] == pytest.approx(expected, rel=1e-6)


def test_weights_that_change_between_two_batches_of_a_validation_are_noticed():
    model, inputs = model_of(), inputs_of()
    first = model.certify(inputs).radius()
    changed_by_data(model)
    second = model.certify(inputs).radius()
    with torch.no_grad():
        model.encoders["a"].weight.div_(10)
    torch.testing.assert_close(model.certify(inputs).radius(), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    "layer", [nn.Conv1d(5, 5, 1), nn.AdaptiveAvgPool1d(1), nn.AdaptiveMaxPool1d(1), nn.MaxPool1d(2), nn.AvgPool1d(2)]
)
def test_inputs_without_a_batch_are_refused(layer):
    model = CRMTModule({"a": nn.Sequential(layer, nn.Flatten())}, 2, head=LinearFusion, in_features={"a": 40}).eval()
    with pytest.raises(ValueError, match=r"must have channels and 1 axes|must have shape"):
        model.certify({"a": torch.randn(5, 40)})


def test_padding_that_would_shift_samples_is_refused():
    shifted = nn.Sequential(nn.ZeroPad2d((0, 0, 1, -1)), nn.Linear(6, 4))
    assert torch.equal(shifted[0](torch.ones(2, 6)), torch.tensor([[0.0] * 6, [1.0] * 6]))
    with pytest.raises(ValueError, match=r"'0', a ZeroPad2d: samples must have two axes.*got shape \(6,\)"):
        model_of(shifted).certify(inputs_of())


@pytest.mark.parametrize("padding", [1, "same"])
def test_padding_that_was_changed_is_refused(padding):
    convolution = nn.Conv1d(1, 1, 3, padding=padding, padding_mode="replicate")
    assert encoder_bounds({"a": convolution}, {"a": (1, 5)}).values["a"] > 0
    convolution.padding = (0,)  # which its forward does not read
    with pytest.raises(ValueError, match="`padding` must be as it was when the layer was made"):
        encoder_bounds({"a": convolution}, {"a": (1, 5)})


# --- the gate


class Hot(LinearFusion):
    def forward(self, features):
        output = super().forward(features)
        return FusionOutput(10 * output.logits, output.scores, output.features)


class HotFuse(LinearFusion):
    def fuse(self, scores):
        return 10 * super().fuse(scores)


class HotDirections(OrthogonalFusion):
    @property
    def directions(self):
        return {name: 10 * rows for name, rows in super().directions.items()}


@pytest.mark.parametrize("head", [Hot, HotFuse, HotDirections])
@pytest.mark.parametrize("level", ["sound", "rigorous"])
def test_a_head_of_another_type_is_refused(head, level):
    with pytest.raises((TypeError, ValueError), match="`head` must"):
        model_of(head=head).certify(inputs_of(), level=level)


def hook(module, arguments, output=None):
    """Does nothing, which nobody can know."""


def hook_on_encoder(model):
    model.encoders["a"].register_forward_hook(hook)


def hook_before_part(model):
    model.encoders["b"].layers[0].register_forward_pre_hook(hook)


def hook_on_head(model):
    model.head.register_forward_hook(hook)


def hook_on_model(model):
    model.register_forward_pre_hook(hook)


@pytest.mark.parametrize("level", ["sound", "rigorous"])
@pytest.mark.parametrize("add", [hook_on_encoder, hook_before_part, hook_on_head, hook_on_model])
def test_hooks_are_refused_by_name_also_with_bounds_given(add, level):
    model, inputs = model_of(), inputs_of()
    constants = encoder_bounds(model.encoders, level=level)
    add(model)
    for given in (None, constants):
        with pytest.raises(ValueError, match="hook"):
            model.certify(inputs, given, level=level)
    estimates = model.certify(inputs, estimate_lipschitz(model, [inputs]))
    assert estimates.soundness is Soundness.ESTIMATED


def test_global_hooks_are_refused():
    model, inputs = model_of(), inputs_of()
    handle = nn.modules.module.register_module_forward_hook(hook)
    try:
        with pytest.raises(ValueError, match="hook"):
            model.certify(inputs)
    finally:
        handle.remove()
    model.certify(inputs)


def test_replaced_methods_are_refused(monkeypatch):
    inputs = inputs_of()
    for path in ("encoders.a", "encoders.b.layers.0", "head"):
        model = model_of()
        part = model.get_submodule(path)
        part.forward = type(part).forward.__get__(part)
        with pytest.raises(ValueError, match="forward"):
            model.certify(inputs)
    model = model_of()
    model.head.fuse = lambda scores: 10 * LinearFusion.fuse(model.head, scores)
    with pytest.raises(ValueError, match="fuse"):
        model.certify(inputs)
    model = model_of()
    model.forward = lambda inputs: CRMTModule.forward(model, {name: 10 * x for name, x in inputs.items()})
    with pytest.raises(ValueError, match="forward"):
        model.certify(inputs)
    forward = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda layer, x: 10 * forward(layer, x))
    with pytest.raises(ValueError, match=r"must run its type's code; .*was replaced"):
        model_of().certify(inputs)
    monkeypatch.undo()
    fuse = LinearFusion.fuse
    monkeypatch.setattr(LinearFusion, "fuse", lambda head, scores: 10 * fuse(head, scores))
    with pytest.raises(ValueError, match=r"must run its type's code; .*was replaced"):
        model_of().certify(inputs)


class Wrapped(torch.Tensor):
    pass


def test_weights_that_are_no_plain_tensors_are_refused():
    model = model_of()
    weight = nn.Parameter(model.encoders["a"].weight.detach().as_subclass(Wrapped))
    model.encoders["a"].weight = weight
    assert type(model.encoders["a"].weight) is not nn.Parameter
    with pytest.raises(TypeError, match=r"`a.weight` must be a plain tensor"):
        model.certify(inputs_of())


class Scaled(CRMTModule):
    def forward(self, inputs):
        return super().forward({name: 10 * value for name, value in inputs.items()})


@pytest.mark.parametrize("given", [False, True])
def test_a_forward_that_does_more_is_refused(given):
    torch.manual_seed(0)
    model = Scaled({"a": nn.Linear(6, 4)}, 3, in_features={"a": 4}, head=LinearFusion).eval()
    constants = encoder_bounds(model.encoders) if given else None
    with pytest.raises(ValueError, match="`forward` must be that of CRMTMixin"):
        model.certify({"a": torch.randn(5, 6)}, constants)


class InDict(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoders = {"a": nn.Sequential(nn.Dropout(0.9), nn.Linear(20, 16))}
        self.head = LinearFusion({"a": 16}, 3)

    def forward(self, inputs):
        return self.head({name: encoder(inputs[name]) for name, encoder in self.encoders.items()})


def test_encoders_that_eval_does_not_reach_are_refused():
    with pytest.raises(TypeError, match="`model` must register 'a' as a submodule"):
        certify_late_fusion(InDict().eval(), {"a": torch.randn(5, 20)})


def test_a_plain_module_must_answer_what_its_encoders_and_head_do():
    class Louder(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.encoders, self.factor = nn.ModuleDict({"a": nn.Linear(20, 16)}), factor
            self.head = LinearFusion({"a": 16}, 3)

        def forward(self, inputs):
            return self.head({name: encoder(self.factor * inputs[name]) for name, encoder in self.encoders.items()})

    inputs = {"a": torch.randn(5, 20)}
    assert (certify_late_fusion(Louder(1), inputs).radius() > 0).any()
    with pytest.raises(ValueError, match="`model` must answer head"):
        certify_late_fusion(Louder(10), inputs)


@pytest.mark.parametrize("level", ["sound", "rigorous"])
def test_a_plain_module_may_answer_otherwise_by_rounding_alone(level):
    class Shifted(nn.Module):
        def __init__(self, shift):
            super().__init__()
            self.encoders, self.shift = nn.ModuleDict({"a": nn.Linear(20, 16)}), shift
            self.head = LinearFusion({"a": 16}, 3)

        def forward(self, inputs):
            return self.head({"a": self.encoders["a"](inputs["a"])}).logits + torch.tensor([0.0, 0.0, self.shift])

    inputs = {"a": torch.randn(5, 20)}
    assert (certify_late_fusion(Shifted(0.0).eval(), inputs, level=level).radius() > 0).any()
    with pytest.raises(ValueError, match="`model` must answer head"):
        certify_late_fusion(Shifted(5e-4).eval(), inputs, level=level)


def test_a_part_that_eval_leaves_in_training_mode_is_refused():
    model, inputs = model_of(nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 4))), inputs_of()
    dropout = model.encoders["a"][0]
    dropout.train = lambda mode=True: nn.Module.train(dropout, True)
    with pytest.raises(ValueError, match=r"`model.eval\(\)` must put every part.*encoders.a.0"):
        model.certify(inputs)
    del dropout.train
    model.certify(inputs)


def test_parts_in_training_mode_are_run_in_evaluation_mode():
    model = model_of(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)))
    inputs = inputs_of()
    right = model.certify(inputs).radius()
    model.train()
    model.encoders["b"].eval()
    mean = model.encoders["a"][1].running_mean.clone()
    torch.testing.assert_close(model.certify(inputs).radius(), right)
    assert torch.equal(model.encoders["a"][1].running_mean, mean)
    assert model.training
    assert not model.encoders["b"].training


def test_a_residual_layer_is_bounded_for_every_weight():
    for weight in (-0.7, 0.0, 0.3, 1.0, 2.49):
        residual = Residual(OrthogonalLinear(2, 2, bias=False), weight=nn.Parameter(torch.tensor(0.5)))
        with torch.no_grad():
            residual.branch.raw.copy_(-torch.eye(2))
            residual.weight.fill_(weight)
        matrix = torch.stack([residual(row[None])[0] for row in torch.eye(2)]).detach()
        bound = encoder_bounds({"a": residual}).values["a"]
        assert bound >= torch.linalg.matrix_norm(matrix, ord=2) * (1 - 1e-6)


# --- arithmetic


def exact(model, inputs):
    return copy.deepcopy(model).double().certify({name: value.double() for name, value in inputs.items()})


@pytest.mark.parametrize("offset", [0.0, 1e3, 101325.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_single_precision_lengthens_no_radius(offset, scale):
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
    model = CRMTModule({"a": encoder}, 4, in_features={"a": 8}, head=LinearFusion).eval()
    with torch.no_grad():
        encoder[0].weight.copy_(scale * torch.randn(16, 8))
        encoder[0].bias.copy_(-offset * encoder[0].weight.double().sum(1))
    inputs = {"a": offset + 0.02 * torch.randn(300, 8)}
    certificate, right = model.certify(inputs), exact(model, inputs)
    sure = certificate.radius() > 0
    assert torch.equal(certificate.prediction[sure], right.prediction[sure])
    assert (certificate.radius()[sure] <= right.radius()[sure] * (1 + 1e-9)).all()
    for size in (1, 7, 64):
        alone = torch.cat([model({"a": part}).logits.argmax(1) for part in inputs["a"].split(size)])
        assert torch.equal(alone[sure], certificate.prediction[sure])
    if offset == 0:
        assert sure.float().mean() > 0.95  # what can be vouched for is


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head", [LinearFusion, OrthogonalFusion])
def test_half_precision_is_refused(dtype, head):
    model = model_of(head=head).to(dtype)
    with pytest.raises(ValueError, match="a model must run in float32 or float64 to be certified"):
        model.certify({name: value.to(dtype) for name, value in inputs_of().items()})


def test_reduced_precision_of_products_is_seen():
    model, inputs = model_of(), inputs_of(400)
    full = (model.certify(inputs).radius() > 0).sum()
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        reduced = (model.certify(inputs).radius() > 0).sum()
    finally:
        torch.set_float32_matmul_precision(before)
    assert reduced < full


@pytest.mark.parametrize("factor", [1e-23, 1e-30, 1e-38])
def test_tiny_weights_do_not_make_radii_infinite(factor):
    torch.manual_seed(0)
    model = CRMTModule({"a": nn.Identity()}, 3, in_features={"a": 3}, head=LinearFusion).eval()
    x = {"a": torch.randn(5, 3)}
    with torch.no_grad():
        model.head.bias.zero_()
    right = model.certify(x).radius()
    with torch.no_grad():
        model.head.rows["a"].mul_(factor)
    assert (model.certify(x).radius() <= right * (1 + 1e-2 if factor == 1e-38 else 1 + 1e-5)).all()


@pytest.mark.parametrize("encoder", [LipschitzMLP(6, 8, hidden=(8,)), nn.Sequential(nn.Linear(6, 8), nn.GELU())])
def test_radii_agree_with_double_precision(encoder):
    model, inputs = model_of(encoder, features=8), inputs_of(200)
    certificate, right = model.certify(inputs), exact(model, inputs)
    sure = certificate.radius() > 0
    assert sure.float().mean() > 0.95
    torch.testing.assert_close(certificate.radius()[sure], right.radius()[sure], rtol=1e-5, atol=1e-7)
    fixed = with_fixed_weights(model)
    sure &= fixed.certify(inputs).radius() > 0
    torch.testing.assert_close(fixed.certify(inputs).radius()[sure], right.radius()[sure], rtol=1e-4, atol=1e-6)


def in_place(activation):
    return nn.Sequential(activation(inplace=True), nn.Linear(6, 6))


@pytest.mark.parametrize(
    "encoder",
    [in_place(nn.ELU), in_place(nn.LeakyReLU), nn.Sequential(nn.Linear(6, 6), Residual(in_place(nn.ReLU)))],
    ids=["ELU", "LeakyReLU", "in a branch"],
)
def test_activations_in_place_change_no_sample_and_no_shortcut(encoder):
    model, inputs = model_of(encoder, features=6), inputs_of(200)
    before = {name: value.clone() for name, value in inputs.items()}
    certificate = model.certify(inputs)
    assert all(torch.equal(value, before[name]) for name, value in inputs.items())
    exact_model = copy.deepcopy(model).double()
    logits = exact_model({name: value.double().clone() for name, value in inputs.items()}).logits
    margins = logits.gather(1, certificate.prediction[:, None]) - logits
    sure = certificate.radius() > 0
    assert sure.float().mean() > 0.95
    torch.testing.assert_close(certificate.margins[sure], margins[sure], rtol=1e-6, atol=1e-6)


def test_encoders_in_double_precision_before_a_head_in_single_round_in_double():
    model = CRMTModule({"a": nn.Linear(2, 1).double()}, 2, in_features={"a": 1}, head=LinearFusion).eval()
    weight = torch.tensor([[3.0, -3.0]], dtype=torch.float64) / 7
    with torch.no_grad():
        model.encoders["a"].weight.copy_(weight)
        model.encoders["a"].bias.zero_()
        model.head.rows["a"].copy_(torch.tensor([[1.0], [0.0]]))
        model.head.bias.zero_()
    # Whose products are rounded to eighths, and differ by as little as a few sevenths.
    x = 1e15 + torch.randint(-9, 10, (200, 2), generator=torch.Generator().manual_seed(0)).double()
    certificate = model.certify({"a": x})
    distance = torch.tensor([float(Fraction(float(weight[0, 0])) * int(a - b)) for a, b in x]).abs() / weight.norm()
    assert (certificate.radius() > 0).any()
    assert (certificate.radius() <= distance * (1 + 1e-9)).all()


@pytest.mark.parametrize(("rows", "message"), [(torch.bfloat16, "a model must run in float32"), (torch.float32, None)])
def test_a_head_rounds_as_its_coarsest_part(rows, message):
    model = CRMTModule({"a": nn.Identity()}, 2, in_features={"a": 64}, head=LinearFusion).double().eval()
    model.head.rows.to(rows)
    x = torch.randn(500, 64, generator=torch.Generator().manual_seed(0)).double()
    if message is not None:
        with pytest.raises(ValueError, match=message):
            model.certify({"a": x})
        return
    with torch.no_grad():
        # Nearly on the boundary: a margin that single precision cannot tell from 0, and double can.
        normal = (model.head.rows["a"][0] - model.head.rows["a"][1]).double()
        offset = x @ normal + model.head.bias[0] - model.head.bias[1] - 1e-10
        x -= offset[:, None] * normal / normal.square().sum()
    assert (model.certify({"a": x}).radius() == 0).all()


def test_where_more_than_rounding_separates_run_and_twin_nothing_is_certified():
    model, inputs = model_of(nn.BatchNorm1d(6), features=6), inputs_of()
    with torch.no_grad():
        model.encoders["a"].running_var.fill_(-9.9999e-6)  # of `running_var + eps`, little is left but rounding
    assert (model.certify(inputs).radius() == 0).all()


def test_a_product_of_bounds_that_underflows_is_not_0():
    factors = (1e-200, 1e-200, 1e100, 1e100, 1e100)
    assert encoder_bounds({"a": nn.Sequential(*map(Scale, factors))}).values["a"] >= 1e-100
    assert encoder_bounds({"a": nn.Sequential(Scale(0.0), Scale(2.0))}).values["a"] == 0


def test_where_numbers_overflow_nothing_is_certified():
    model = model_of(nn.Sequential(nn.Linear(6, 4), nn.ReLU()))
    with torch.no_grad():
        model.encoders["a"][0].weight.fill_(3e38)
    assert (model.certify({name: 10 * value for name, value in inputs_of().items()}).radius() == 0).all()


def test_layers_without_a_rule_are_named():
    with pytest.raises(NoBoundError, match=r"the encoder of 'a'.*LayerNorm.* lipschitz=estimate_lipschitz"):
        model_of(nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4))).certify(inputs_of())


# --- compiled code


@pytest.mark.parametrize("part", ["encoder", "layer", "head", "model"])
def test_what_is_compiled_in_place_is_certified_but_not_rigorously(part):
    model, inputs = model_of(MLP(6, 4)), inputs_of()
    plain = model.certify(inputs)
    encoder = model.encoders["a"]
    {"encoder": encoder, "layer": encoder.layers[0], "head": model.head, "model": model}[part].compile(backend="eager")
    assert model.certify(inputs).radius().equal(plain.radius())
    with pytest.raises(NoBoundError, match=r"refused at level 'rigorous': nothing is proved about .* compiled code"):
        model.certify(inputs, level="rigorous")
    if part in ("encoder", "layer"):
        with pytest.raises(NoBoundError, match="compiled code"):
            forward_error(encoder, inputs["a"])


def test_a_compiled_copy_is_refused_with_advice():
    model = model_of(torch.compile(nn.Linear(6, 4), backend="eager"))
    with pytest.raises(NoBoundError, match=r"hides the module that torch.compile got: .* encoder.compile"):
        model.certify(inputs_of())


def test_what_torch_compile_made_of_a_model_is_refused():
    with pytest.raises(TypeError, match=r"must be the module itself, got what torch.compile made of it"):
        certify_late_fusion(torch.compile(model_of(), backend="eager"), inputs_of())


def test_code_that_only_looks_compiled_is_refused():
    model = model_of()
    model.encoders["a"]._compiled_call_impl = lambda x: 100 * x[:, :4]
    with pytest.raises(NoBoundError, match="were compiled, and they compute something else"):
        model.certify(inputs_of())


class Helped(nn.Module):
    def helper(self, x):
        return 10 * x

    def forward(self, x):
        return self.helper(x)


@pytest.mark.parametrize("whole", [False, True])
def test_compiled_code_of_a_former_state_is_not_certified(whole, monkeypatch):
    torch.compiler.reset()
    lipschitz_rule(Helped)(lambda layer, place: 10.0)
    encoder = nn.Sequential(nn.Linear(6, 4, bias=False), Helped())
    model = CRMTModule({"a": encoder}, 2, in_features={"a": 4}).eval()
    (model if whole else encoder).compile(backend="eager")
    inputs, others = {"a": torch.zeros(3, 6)}, {"a": torch.randn(3, 6)}  # at 0 ten times as much is as much
    with torch.no_grad():
        before = model(others).logits
        monkeypatch.setattr(Helped, "helper", lambda layer, x: x)
        lipschitz_rule(Helped)(lambda layer, place: 1.0)
        assert model(others).logits.equal(before)  # torch does not notice
    with pytest.raises(NoBoundError, match="has layers of your own and parts that were compiled"):
        model.certify(inputs)


def test_compiled_code_that_computes_something_else_nearby_is_refused():
    model = model_of()
    own = model.encoders["a"]._call_impl
    model.encoders["a"]._compiled_call_impl = lambda x: 10 * own(x) - 9 * model.encoders["a"].bias  # the same at 0
    zero = {name: torch.zeros_like(value) for name, value in inputs_of().items()}
    with pytest.raises(NoBoundError, match=r"were compiled, and they compute something else.*torch.compiler.reset"):
        model.certify(zero)


# --- code of your own: nothing is remembered of what it computes


def test_a_rule_that_is_registered_anew_counts():
    class Thrice(nn.Module):
        def forward(self, x):
            return 3 * x

    lipschitz_rule(Thrice)(lambda layer, place: 1.0)  # wrong
    model, inputs = model_of(nn.Sequential(nn.Linear(6, 4), Thrice())), inputs_of()
    before = model.certify(inputs).radius()
    lipschitz_rule(Thrice)(lambda layer, place: 3.0)
    assert (model.certify(inputs).radius() < before).all()


class Equal(nn.Module):
    """Equal to every other of its kind, as a dataclass without fields is."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x

    def __eq__(self, other):
        return isinstance(other, Equal)

    def __hash__(self):
        return 1


def test_each_layer_has_a_bound_of_its_own_even_where_layers_are_equal():
    lipschitz_rule(Equal)(lambda layer, place: abs(layer.factor))
    assert lipschitz_bound(nn.Sequential(Equal(0.5), Equal(20.0))) == pytest.approx(10.0)
    model, inputs = model_of(nn.Sequential(Equal(0.5), Equal(20.0), nn.Linear(6, 4))), inputs_of()
    (slope,) = torch.linalg.svdvals(model.encoders["a"][2].weight.detach().double())[:1]
    assert float(encoder_bounds(model.encoders).values["a"]) == pytest.approx(float(10 * slope))
    rows = model.head.directions["a"].detach().double()
    certificate = model.certify(inputs)
    expected = 10 * slope * torch.cdist(rows, rows)[certificate.prediction]
    torch.testing.assert_close(certificate.sensitivities["a"], expected, rtol=1e-6, atol=1e-6)


def test_a_rule_that_asks_for_a_part_at_two_settings_gets_both_answers():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = Equal(1.0)

        def forward(self, x):
            return 0.1 * 10.0 * x

    @lipschitz_rule(Twice)
    def _(layer, place):
        bounds = []
        for layer.part.factor in (0.1, 10.0):
            bounds.append(place.bound(layer.part, "part"))
        return bounds[0] * bounds[1]

    lipschitz_rule(Equal)(lambda layer, place: abs(layer.factor))
    assert lipschitz_bound(Twice()) == pytest.approx(1.0)


def own_layer(name, **members):
    """A layer that multiplies by its factor, as a cell of a notebook that is run again makes it."""
    kind = type(name, (nn.Module,), {"forward": lambda layer, x: layer.gain() * x, **members})
    lipschitz_rule(kind)(lambda layer, place: abs(layer.gain()))
    return kind


def of_a_closure(factor):
    return own_layer("OfAClosure", gain=lambda layer: factor)()


class Settings:
    factor = 1.0


def of_a_class(factor):
    Settings.factor = factor
    layer = kept.setdefault("class", own_layer("OfAClass", gain=lambda layer: layer.settings.factor)())
    layer.settings = Settings
    return layer


def of_an_object(factor):
    kind = kept.setdefault("object", own_layer("OfAnObject", given=SimpleNamespace(), gain=lambda layer: layer.given.f))
    kind.given.f = factor
    return kind()


def of_an_array(factor):
    kind = kept.setdefault("array", own_layer("OfAnArray", given=np.ones(1), gain=lambda layer: float(layer.given[0])))
    kind.given[0] = factor
    return kind()


def of_a_parametrisation(factor):
    class Times(nn.Module):
        def forward(self, weight):
            return factor * weight

    layer = nn.Linear(4, 4, bias=False)
    nn.init.eye_(layer.weight)
    return parametrize.register_parametrization(layer, "weight", Times())


class Stored(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        return x * self.weight


class Computed(nn.Module, Fixable):
    def __init__(self, factor):
        super().__init__()
        self.logarithm = nn.Parameter(torch.full((4,), factor).log())

    def forward(self, x):
        return x * self.logarithm.exp()

    def fixed(self):
        return Stored(self.logarithm.detach().exp())


def of_a_rule_of_what_is_fixed(factor):
    layer = kept.setdefault("fixed", Computed(10.0))
    lipschitz_rule(Computed)(lambda layer, place: float(layer.logarithm.exp().max()))
    lipschitz_rule(Stored)(lambda layer, place: factor)
    return layer


kept = {}


@pytest.mark.parametrize(
    "layer_of",
    [
        of_a_closure,
        of_a_class,
        of_an_object,
        of_an_array,
        of_a_parametrisation,
        of_a_rule_of_what_is_fixed,
    ],
)
def test_what_layers_of_your_own_read_is_read_again(layer_of):
    bounds = []
    for factor in (1.0, 10.0):
        torch.manual_seed(0)
        model, inputs = model_of(nn.Sequential(nn.Linear(6, 4), layer_of(factor))), inputs_of()
        bounds.append(model.evaluation(inputs).constants.values["a"])
    torch.testing.assert_close(bounds[1], 10 * bounds[0])


class Rounded(nn.Module):
    def forward(self, weight):
        return torch.round(weight / 0.1) * 0.1


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_weights_that_double_precision_rounds_to_others_are_refused(name):
    layer, model = nn.Linear(6, 4), None
    ties = (torch.arange(60) + 0.5) / 10
    numbers = ties[(Rounded()(ties) - Rounded()(ties.double())).abs() > 0.05]
    assert len(numbers)
    with torch.no_grad():
        getattr(layer, name).fill_(numbers[0])
    model = model_of(nn.Sequential(parametrize.register_parametrization(layer, name, Rounded()), nn.ReLU()))
    with pytest.raises(NoBoundError, match=rf"must have a `{name}` that is the same in double precision"):
        model.certify(inputs_of())
    parametrize.remove_parametrizations(model.encoders["a"][0], name)
    assert model.certify(inputs_of()).soundness is Soundness.SOUND


class Tempered(OrthogonalLinear):
    def __call__(self, x):
        return 10 * super().__call__(x)


def test_a_fixable_layer_needs_a_rule_for_the_type_that_runs():
    for layer in (Tempered(6, 4), nn.Sequential(nn.Linear(6, 4), UnknownComputed(1.0))):
        with pytest.raises(NoBoundError, match="no Lipschitz bound is known for 'a"):
            model_of(layer).certify(inputs_of())


class UnknownComputed(Computed):
    pass


# --- the package's own code, replaced


@pytest.mark.parametrize("level", ["sound", "rigorous"])
def test_every_method_of_heads_and_layers_is_examined(monkeypatch, level):
    inputs = inputs_of()
    model = model_of()
    model.head.checked = lambda features: {name: 10 * value for name, value in features.items()}
    with pytest.raises(NoBoundError, match=r"'head', a LinearFusion, must run its type's code; \{'checked'\}"):
        model.certify(inputs, level=level)
    for kind, name in [(FusionHead, "checked"), (CRMTMixin, "forward"), (LateFusion, "class_weights")]:
        model = model_of()
        with monkeypatch.context() as patch:
            patch.setattr(kind, name, property(lambda part: part))
            with pytest.raises(ValueError, match=name):
                model.certify(inputs, level=level)
    model = model_of(OrthogonalLinear(6, 4))
    monkeypatch.setattr(OrthogonalLinear, "weight", property(lambda layer: 2 * layer.raw_weight))
    with pytest.raises(NoBoundError, match=r"'a', a OrthogonalLinear, must run its type's code; \{'weight'\}"):
        model.certify(inputs)


def test_what_stands_in_for_a_parametrised_weight_is_torchs():
    model = model_of(orthogonal(nn.Linear(6, 4)))
    own = type(model.encoders["a"]).weight
    type(model.encoders["a"]).weight = property(lambda layer: 10 * own.fget(layer))
    with pytest.raises(NoBoundError, match=r"must run its type's code; \{'weight'\}"):
        model.certify(inputs_of())


def test_a_type_that_only_looks_parametrised_is_refused():
    class Ten(nn.Linear):
        def __init__(self):
            super().__init__(6, 4)
            self.parametrizations = nn.ModuleDict({"x": nn.Identity()})

        def forward(self, x):
            return 10 * super().forward(x)

    with pytest.raises(NoBoundError, match="forward"):
        model_of(Ten()).certify(inputs_of())


def test_constants_of_an_evaluation_are_the_callers_own():
    model, inputs = model_of(), inputs_of()
    before = model.certify(inputs).radius()
    model.evaluation(inputs).constants.values["a"].zero_()
    assert model.certify(inputs).radius().equal(before)


class Student(CRMTModule):
    """Other parts in training than in evaluation."""

    def teach(self):
        self.teachers = nn.ModuleDict({name: nn.Sequential(Scale(0.1), each) for name, each in self.encoders.items()})
        self.students, self.judges = self._modules.pop("encoders"), self._modules.pop("head")
        self.better = copy.deepcopy(self.judges)
        nn.init.ones_(self.better.bias)
        type(self).encoders = property(lambda model: model.students if model.training else model.teachers)
        type(self).head = property(lambda model: model.judges if model.training else model.better)
        return self


def test_parts_that_depend_on_the_mode_are_those_of_evaluation():
    torch.manual_seed(0)
    model = Student({"a": nn.Linear(6, 4), "b": MLP(5, 4)}, 3, head=LinearFusion, in_features=dict.fromkeys("ab", 4))
    model, inputs = model.teach(), inputs_of()
    try:
        right = model.eval().certify(inputs).radius()
        assert model.train().certify(inputs).radius().equal(right)
        assert model.training
    finally:
        del Student.encoders, Student.head


def test_an_evaluation_is_of_the_model_as_it_was():
    model, inputs = model_of(), inputs_of()
    evaluation = model.evaluation(inputs)
    before = [evaluation.certificate(missing).radius() for missing in ((), ["a"])]
    with torch.no_grad():
        for rows in model.head.rows.values():
            rows.mul_(3)
    assert all(map(torch.equal, before, [evaluation.certificate(missing).radius() for missing in ((), ["a"])]))


@pytest.mark.parametrize("views", [False, True])
def test_activations_in_place_on_memory_that_modalities_share_are_refused(views):
    encoders = {"a": nn.Sequential(nn.Hardtanh(inplace=True), nn.Linear(6, 4)), "b": nn.Linear(6, 4)}
    model = CRMTModule(encoders, 3, in_features=dict.fromkeys("ab", 4)).eval()
    both = torch.randn(20, 8)
    inputs = {"a": both[:, :6], "b": both[:, 2:]} if views else dict.fromkeys("ab", both[:, :6])
    with pytest.raises(NoBoundError, match="the encoder of 'a', must not change its inputs in place"):
        model.certify(inputs)
    assert model.certify({name: value.clone() for name, value in inputs.items()}).soundness is Soundness.SOUND


def test_radii_are_from_the_sample_that_was_given_in_whatever_precision():
    layer = nn.Linear(1, 2)
    model = CRMTModule({"a": layer}, 2, in_features={"a": 2}, head=LinearFusion).eval()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1e-3], [-1e-3]]))
        layer.bias.copy_(torch.tensor([-101.325, 101.325]))
        model.head.rows["a"].copy_(torch.eye(2))
        model.head.bias.zero_()
    x = torch.linspace(101325.0, 101326.0, 2000, dtype=torch.float64)[:, None]
    weight, bias = layer.weight.double(), layer.bias.double()
    distance = ((x * (weight[0] - weight[1]) + bias[0] - bias[1]) / (weight[0] - weight[1])).abs().squeeze(1)
    radius = model.certify({"a": x}).radius()
    assert (radius > 0).any()
    assert (radius <= distance * (1 + 1e-9)).all()
    fixed = CRMTModule({"a": MLP(1, 2)}, 2, in_features={"a": 2}, head=LinearFusion).eval()
    with pytest.raises(ValueError, match=r"`inputs` must be numbers of the model's precision at level 'rigorous'"):
        fixed.certify({"a": x}, level="rigorous")
    assert fixed.certify({"a": x.float().double()}, level="rigorous").soundness is Soundness.RIGOROUS


def test_one_sided_roundings_of_long_sums_are_counted_in_any_split():
    terms, value = 921_600, 5 / 37
    layer = nn.Linear(terms, 2, bias=False)
    model = CRMTModule({"a": layer}, 2, in_features={"a": 2}, head=LinearFusion).eval()
    x = torch.full((33, terms), value)
    with torch.no_grad():
        layer.weight[0], layer.weight[1] = 1.0, 0.0
        model.head.rows["a"].copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
        answers = [model({"a": x[:size]}).scores["a"][0, 0] for size in (1, 2, 33)]
        for between in torch.linspace(float(min(answers)) - 1, float(max(answers)) + 1, 7):
            model.head.bias[1] = between
            certificate = model.certify({"a": x})
            split = {int(model({"a": x[:size]}).logits[0].argmax()) for size in (1, 2, 33)}
            assert certificate.radius()[0] == 0 or split == {int(certificate.prediction[0])}


def test_plain_tensors_in_the_place_of_parameters_are_refused():
    model = model_of()
    bias = model.head.bias.detach().clone()
    del model.head.bias
    model.head.bias = bias
    with pytest.raises(TypeError, match=r"`head.bias` must be a parameter or a buffer to be certified"):
        model.certify(inputs_of())


class Merging(nn.Linear):
    """Merges a second weight for evaluation, as low-rank adapters do."""

    merged = False

    def train(self, mode=True):
        if mode == self.merged:
            with torch.no_grad():
                self.weight.add_(torch.ones_like(self.weight), alpha=-1 if mode else 1)
            self.merged = not mode
        return super().train(mode)


def test_a_model_that_does_more_than_set_flags_is_left_as_it_was():
    model, inputs = model_of(Merging(6, 4)).train(), inputs_of()
    before = model.encoders["a"].weight.detach().clone()
    with pytest.raises(NoBoundError, match="Merging"):
        model.certify(inputs)
    assert model.encoders["a"].weight.equal(before)
    assert model.training
    assert not model.encoders["a"].merged


class DropsZeros(nn.Module):
    """A modality that is 0 is missing: a jump that encoders and head do not have."""

    def __init__(self, model):
        super().__init__()
        self.encoders, self.head = model.encoders, model.head

    def forward(self, inputs):
        output = self.head({name: encoder(inputs[name]) for name, encoder in self.encoders.items()})
        there = {name: (value != 0).any(dim=1, keepdim=True) for name, value in inputs.items()}
        return self.head.fuse({name: score * there[name] for name, score in output.scores.items()})


@pytest.mark.parametrize("level", ["sound", "rigorous"])
def test_a_forward_of_ones_own_is_compared_where_a_modality_is_0(level):
    model = DropsZeros(model_of(MLP(6, 4))).eval()
    with pytest.raises(ValueError, match="also nearby and where a modality is 0, and it answers something else"):
        certify_late_fusion(model, inputs_of(), level=level)


# --- extreme numbers


def test_slopes_that_underflow_are_not_0():
    layer = nn.Linear(2, 2, bias=False).double()
    model = CRMTModule({"a": layer}, 2, in_features={"a": 2}, head=LinearFusion).double().eval()
    with torch.no_grad():
        layer.weight.copy_(1e-40 * torch.eye(2).double())
        model.head.rows["a"].copy_(1e-290 * torch.eye(2).double())
        model.head.bias.copy_(torch.tensor([1e-30, 0.0], dtype=torch.float64))
    assert model.certify({"a": torch.zeros(1, 2, dtype=torch.float64)}).radius().isfinite().all()
    folded = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2)).double().eval()
    with torch.no_grad():
        folded[0].weight.fill_(1e-200)
        folded[1].weight.fill_(1e-200)
    assert lipschitz_bound(folded) > 0


@pytest.mark.parametrize("size", [2.0**60, 2.0**62, 2.0**70])
def test_sums_that_overflow_on_the_way_certify_nothing(size):
    layer = nn.Linear(512, 4, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.ones(512).where(torch.arange(512) % 32 < 16, -torch.ones(512)) * 2.0**63)
    model = CRMTModule({"a": layer}, 2, in_features={"a": 4}, head=LinearFusion).eval()
    inputs = {"a": torch.full((8, 512), size)}
    inputs["a"][:, 0] *= 1.2
    assert (model.certify(inputs).radius() == 0).all()


@pytest.mark.parametrize("size", [1e-150, 1e-205, 1e-290])
def test_tiny_rows_in_double_precision(size):
    model = CRMTModule({"a": nn.Identity()}, 2, in_features={"a": 2}, head=LinearFusion).double().eval()
    with torch.no_grad():
        model.head.rows["a"].copy_(size * torch.eye(2).double())
        model.head.bias.copy_(torch.tensor([size, 0.0], dtype=torch.float64))
    radius = model.certify({"a": torch.zeros(1, 2, dtype=torch.float64)}).radius()
    torch.testing.assert_close(radius, torch.full((1,), 0.5**0.5, dtype=torch.float64))


@pytest.mark.parametrize("level", ["sound", "rigorous"])
def test_missing_may_be_anything_that_gives_names(level):
    evaluation = model_of(MLP(6, 4)).evaluation(inputs_of(), level=level)
    right = evaluation.certificate(["a"])
    for names in (iter("a"), (name for name in "a"), filter(None, ["a"]), {"a": 1}.keys()):
        found = evaluation.certificate(names)
        assert found.missing == ("a",)
        assert found.radius().equal(right.radius())


@pytest.mark.parametrize("level", ["sound", "rigorous"])
def test_what_is_no_real_number_or_flushed_is_refused(level):
    model = CRMTModule({"a": nn.Sequential(Scale(1 / 255), nn.Linear(6, 4))}, 2, in_features={"a": 4}).eval()
    for dtype in (torch.uint8, torch.int64, torch.bool):
        with pytest.raises(ValueError, match=r"`inputs\['a'\]` must be floating point to be certified"):
            model.certify({"a": torch.ones(3, 6).to(dtype)}, level=level)
    if not torch.set_flush_denormal(True):
        return
    try:
        with pytest.raises(ValueError, match="small numbers must not be flushed to zero"):
            model.certify({"a": torch.ones(3, 6)}, level=level)
    finally:
        torch.set_flush_denormal(False)


def test_single_numbers_do_not_make_a_network_one_in_double_precision():
    scale = Scale(1.0)
    del scale.factor
    scale.factor = nn.Parameter(torch.tensor(1 - 2.0**-26, dtype=torch.float64))
    encoders = {"b": nn.Linear(1, 1), "a": nn.Sequential(*[scale] * 200)}
    model = CRMTModule(encoders, 2, in_features={"b": 1, "a": 1}, head=LinearFusion)
    with pytest.raises(ValueError, match="the network must run in float32 or in float64"):
        model.eval().certify({"b": torch.zeros(1, 1), "a": torch.zeros(1, 1)}, level="rigorous")


def test_rows_that_are_equal_only_by_rounding_do_not_make_radii_infinite():
    third = torch.tensor(1 / 3, dtype=torch.float64)
    one = torch.ones((), dtype=torch.float64)
    head = FixedFusion(
        {"a": torch.stack([third, one])[:, None]},
        {"a": torch.tensor([3.0, 1.0], dtype=torch.float64)},
        torch.tensor([1.0, 0.0], dtype=torch.float64),
    ).double()
    model = CRMTModule({"a": nn.Linear(1, 1).double()}, 2, in_features={"a": 1}, head=LinearFusion).double().eval()
    model.head = head
    assert model.certify({"a": torch.zeros(1, 1, dtype=torch.float64)}).radius().isfinite().all()


@pytest.mark.parametrize("threshold", [20, 1000])
def test_a_softplus_that_jumps_or_overflows_is_refused(threshold):
    with pytest.raises(NoBoundError, match="jumps at its threshold"):
        lipschitz_bound(nn.Softplus(threshold=threshold))


def test_rows_of_a_head_that_double_precision_rounds_to_others_are_refused():
    model = model_of()
    ties = (torch.arange(60) + 0.5) / 10
    with torch.no_grad():
        model.head.rows["a"].fill_(ties[(Rounded()(ties) - Rounded()(ties.double())).abs() > 0.05][0])
    parametrize.register_parametrization(model.head.rows, "a", Rounded())
    with pytest.raises(NoBoundError, match="must have a `a` that is the same in double precision"):
        model.certify(inputs_of())


# --- what is kept is what would be computed again


def deep():
    return nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3, padding=1), nn.ReLU(inplace=True),
        Residual(nn.Sequential(nn.Conv1d(4, 4, 3, padding=1), nn.Tanh())), nn.Flatten(), nn.Dropout(),
        nn.Linear(24, 8), nn.GELU(), nn.Linear(8, 4),
    )  # fmt: skip


@pytest.mark.parametrize("multi_label", [False, True])
def test_what_is_kept_of_weights_changes_no_bit(multi_label):
    torch.manual_seed(0)
    encoders, inputs = {"a": deep(), "b": MLP(5, 4)}, inputs_of()
    sizes = dict.fromkeys("ab", 4)
    model = CRMTModule(encoders, 3, head=LinearFusion, in_features=sizes, multi_label=multi_label).eval()

    def alone(missing):
        ExactTwin._twins.clear()
        return model.evaluation(inputs).certificate(missing)

    fresh = {missing: alone(missing) for missing in [(), ("a",), ("b",)]}
    model.evaluation(inputs)
    kept = model.evaluation(inputs)
    for missing in [("b",), ("a",), ()]:
        one, other = fresh[missing], kept.certificate(missing)
        assert torch.equal(one.prediction, other.prediction)
        assert torch.equal(one.margins, other.margins)
        assert all(torch.equal(each, other.sensitivities[name]) for name, each in one.sensitivities.items())
    assert (kept.certificate().radius() > 0).any()


def test_the_error_of_a_network_is_that_of_its_layers_one_after_the_other():
    torch.manual_seed(0)
    network, x = deep().eval(), torch.randn(5, 6).double()
    twin, precision = copy.deepcopy(network).double(), Precision(torch.float32, torch.device("cpu"))
    features, error = running_error(network, twin, x, precision, lipschitz_bound)
    z, so_far = x, 0.0
    for running, layer in zip(network, twin, strict=True):
        z, so_far = running_error(running, layer, z, precision, lipschitz_bound, so_far)
    assert torch.equal(features, z)
    assert torch.equal(error, so_far)
    assert (error > 0).all()
