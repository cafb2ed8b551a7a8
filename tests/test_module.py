# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
import copy
import math
import re

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_crmt import CRMTMixin, CRMTModule, LinearFusion, OrthogonalFusion, estimate_lipschitz
from lightning_crmt.encoders import MLP

SIZES = {"audio": 4, "image": 5, "flow": 3, "text": 7, "depth": 2, "touch": 6}


def module_of(count, **settings):
    names = list(SIZES)[:count]
    return CRMTModule({name: MLP(SIZES[name], 8) for name in names}, num_classes=5, **settings)


def batch_of(names, size=6):
    generator = torch.Generator().manual_seed(0)
    inputs = {name: torch.randn(size, SIZES[name], generator=generator) for name in names}
    return inputs, torch.arange(size) % 5


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_any_number_of_modalities_trains(count):
    torch.manual_seed(0)
    model = module_of(count)
    inputs, target = batch_of(model.encoders)
    optimizer = model.configure_optimizers()
    losses = []
    for _ in range(50):
        loss = model.crmt_loss(model(inputs), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert set(model(inputs).scores) == set(list(SIZES)[:count])


def test_loss_is_cross_entropy_plus_rho_times_margin_regularization():
    inputs, target = batch_of(["audio", "image"])
    model = module_of(2, rho=0.7)
    output = model(inputs)
    expected = torch.tensor(0.0)
    for i, y in enumerate(target.tolist()):
        h = output.logits[i]
        negative = [s[i, k] - s[i, y] for s in output.scores.values() for k in range(5) if k != y]
        expected = expected + h.exp().sum().log() - h[y] + 0.7 * torch.stack(negative).exp().sum().log()
    assert model.crmt_loss(output, target).item() == pytest.approx(expected.item() / len(target), rel=1e-5)


def test_rho_zero_is_cross_entropy():
    inputs, target = batch_of(["audio", "image"])
    model = module_of(2, rho=0.0)
    output = model(inputs)
    assert torch.equal(model.crmt_loss(output, target), nn.functional.cross_entropy(output.logits, target))


def test_groups_of_the_optimizer_are_named_and_complete():
    model = module_of(2)
    body, integration = model.configure_optimizers().param_groups
    assert (body["name"], integration["name"]) == ("body", "integration")
    assert {id(p) for p in integration["params"]} == {id(p) for p in model.head.integration_parameters()}
    held = [id(p) for group in (body, integration) for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


def test_a_linear_head_leaves_one_group():
    (body,) = module_of(2, head=LinearFusion).configure_optimizers().param_groups
    assert body["name"] == "body"


def test_optimizer_and_scheduler_are_the_callers():
    model = module_of(
        2,
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.5),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 3),
    )
    configured = model.configure_optimizers()
    assert isinstance(configured["optimizer"], torch.optim.SGD)
    assert isinstance(configured["lr_scheduler"]["scheduler"], torch.optim.lr_scheduler.StepLR)


def test_feature_sizes_are_read_off_encoders():
    model = CRMTModule({"audio": nn.Sequential(nn.Linear(4, 9), nn.ReLU()), "image": nn.Linear(5, 7)}, num_classes=5)
    assert model.head.in_features == {"audio": 9, "image": 7}


def test_feature_sizes_can_be_given():
    opaque = nn.Sequential(nn.Linear(4, 8), nn.Unflatten(1, (2, 4)), nn.Flatten())
    model = CRMTModule({"audio": nn.ModuleList([opaque])[0]}, num_classes=3, in_features={"audio": 8})
    assert model({"audio": torch.zeros(2, 4)}).logits.shape == (2, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rho": -0.1}, "`rho` must be at least 0, got -0.1"),
        ({"rho": float("nan")}, "`rho` must be at least 0, got nan"),
        ({"num_classes": 9}, "`in_features['audio']` must be at least `num_classes` = 9, got 8"),
        ({"num_classes": 1}, "`num_classes` must be at least 2, got 1"),
        ({"in_features": {"sound": 3}}, "unknown ['sound']"),
        ({"encoders": {}}, "`encoders` must name at least one modality"),
        ({"encoders": {"a.b": MLP(3, 8)}}, "got 'a.b'"),
        ({"encoders": {"audio": nn.Flatten()}}, "`in_features` must give the size of the features of 'audio'"),
    ],
)
def test_bad_settings_are_refused_at_once(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        CRMTModule(**({"encoders": {"audio": MLP(4, 8), "image": MLP(5, 8)}, "num_classes": 5} | settings))


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda x: x.pop("image"), ValueError, "missing ['image']"),
        (lambda x: x.update(smell=x["image"]), ValueError, "unknown ['smell']"),
        (lambda x: x.update(image=x["image"][:3]), ValueError, "`inputs` must have one batch size"),
        (lambda x: x.update(image=x["image"][:, 0]), ValueError, "`inputs['image']` must have a batch dimension"),
        (lambda x: x.update(image=[1.0]), TypeError, "`inputs['image']` must be a tensor, got a list"),
        (lambda x: x["image"].__setitem__((0, 0), torch.nan), ValueError, "`inputs['image']` has 1 NaN and 0 Inf"),
        (lambda x: x["audio"].__setitem__((0, 0), torch.inf), ValueError, "`inputs['audio']` has 0 NaN and 1 Inf"),
    ],
)
def test_bad_inputs_are_named(spoil, error, message):
    model = module_of(2)
    inputs, _ = batch_of(model.encoders)
    spoil(inputs)
    with pytest.raises(error, match=re.escape(message)):
        model(inputs)


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (torch.tensor([0, 1, 2, 3, 4, 5]), ValueError, "class indices from 0 to 4, got values from 0 to 5"),
        (torch.tensor([0, 1, 2, 3, 4, -1]), ValueError, "class indices from 0 to 4, got values from -1 to 4"),
        (torch.zeros(5, dtype=torch.long), ValueError, "`target` must have shape (6,)"),
        (torch.zeros(6), TypeError, "`target` must be a tensor of integer class indices, got a float32 tensor"),
    ],
)
def test_bad_targets_are_named(target, error, message):
    model = module_of(2)
    inputs, _ = batch_of(model.encoders)
    with pytest.raises(error, match=re.escape(message)):
        model.crmt_loss(model(inputs), target)


def test_diverged_logits_stop_training():
    model = module_of(2)
    inputs, target = batch_of(model.encoders)
    with torch.no_grad():
        model.head.bias[0] = torch.nan
    with pytest.raises(ValueError, match="`logits` must be finite: 6 NaN and 0 Inf among 30 values"):
        model.crmt_loss(model(inputs), target)


def test_features_of_a_wrong_shape_name_the_encoder():
    model = CRMTModule({"audio": nn.Unflatten(1, (2, 2))}, num_classes=2, in_features={"audio": 4})
    with pytest.raises(ValueError, match=re.escape("`features['audio']` must have shape (B, 4)")):
        model({"audio": torch.zeros(3, 4)})


def test_a_strange_batch_points_to_split_batch():
    with pytest.raises(TypeError, match="override `split_batch`"):
        module_of(2).training_step([torch.zeros(2, 4), torch.zeros(2, 5), torch.zeros(2)], 0)


class Own(CRMTMixin, LightningModule):
    """Someone's module, with its own batches and its own terms in the loss."""

    def __init__(self, use_loss=True):
        super().__init__()
        self.encoders = nn.ModuleDict({"fou": MLP(76, 12), "mor": MLP(6, 12)})
        self.head = OrthogonalFusion({"fou": 12, "mor": 12}, num_classes=10)
        self.rho = 0.1
        self.use_loss = use_loss

    def training_step(self, batch, batch_idx):
        inputs, target = self.split_batch(batch)
        output = self(inputs)
        return self.crmt_loss(output, target) if self.use_loss else output.logits.square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_the_mixin_serves_a_module_of_ones_own(data, make_trainer):
    model = Own()
    before = copy.deepcopy(model.state_dict())
    make_trainer(max_epochs=1).fit(model, datamodule=data)
    assert any(not torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_fit_that_never_asks_for_the_loss_warns(data, make_trainer):
    with pytest.warns(UserWarning, match="no training step called `crmt_loss`"):
        make_trainer(max_epochs=1).fit(Own(use_loss=False), datamodule=data)


def test_certify_leaves_the_model_as_it_was_and_agrees_with_evaluation():
    model = module_of(2).train()
    inputs, _ = batch_of(model.encoders)
    tau = estimate_lipschitz(model, [inputs])
    certificate = model.certify(inputs, tau)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert certificate.soundness.label == "estimated"
    assert torch.equal(certificate.prediction, model.eval()(inputs).logits.argmax(1))


def test_predict_gives_probabilities(data, make_trainer):
    model = Own()
    batches = make_trainer().predict(model, datamodule=data)
    found = torch.cat(batches)
    assert found.shape == (400, 10)
    assert torch.allclose(found.sum(1), torch.ones(400), atol=1e-5)


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_precision_is_the_trainers(precision, make_model, data, make_trainer):
    model = make_model()
    if precision == "64-true":
        data.setup()
        for part in data.parts.values():
            part.inputs = {name: value.double() for name, value in part.inputs.items()}
    trainer = make_trainer(max_epochs=1, precision=precision)
    trainer.fit(model, datamodule=data)
    rows = model.head.directions["fou"]
    assert rows.dtype is (torch.float64 if precision == "64-true" else torch.float32)
    assert (rows @ rows.mT - torch.eye(10)).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (
            lambda m: delattr(m, "head"),
            TypeError,
            "`head` must be a fusion head such as OrthogonalFusion, got a NoneType",
        ),
        (lambda m: setattr(m, "head", nn.Linear(2, 2)), TypeError, "got a Linear"),
        (lambda m: setattr(m, "encoders", nn.Linear(2, 2)), TypeError, "`encoders` must map names of modalities"),
        (lambda m: setattr(m, "rho", -1.0), ValueError, "`rho` must be at least 0, got -1.0"),
        (lambda m: m.encoders.pop("mor"), ValueError, "`encoders` must hold exactly the modalities ['fou', 'mor']"),
    ],
)
def test_missing_parts_of_a_module_of_ones_own_are_named(spoil, error, message, data, make_trainer):
    model = Own()
    spoil(model)
    with pytest.raises(error, match=re.escape(message)):
        make_trainer().fit(model, datamodule=data)


def test_rho_has_a_default():
    assert CRMTMixin.rho == 0.5


def test_a_scheduler_that_watches_watches_the_validation_loss():
    model = module_of(2, lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer))
    assert model.configure_optimizers()["lr_scheduler"]["monitor"] == "val/loss"


def test_encoders_in_a_plain_dict_are_refused(make_trainer, data):
    class Unregistered(CRMTMixin, LightningModule):
        def __init__(self):
            super().__init__()
            self.encoders = {"fou": MLP(76, 16), "mor": MLP(6, 16)}
            self.head = OrthogonalFusion({"fou": 16, "mor": 16}, num_classes=10)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    with pytest.raises(TypeError, match=r"`encoders` must be an nn\.ModuleDict: the parameters of a plain dict"):
        make_trainer().fit(Unregistered(), data)


def test_the_mixin_goes_first():
    class Yours(LightningModule):
        pass

    assert type("Right", (CRMTMixin, Yours), {}).forward is CRMTMixin.forward
    assert type("Longer", (CRMTModule, Yours), {}).forward is CRMTMixin.forward
    with pytest.raises(TypeError, match="Wrong must have CRMTMixin before Yours among its bases"):
        type("Wrong", (Yours, CRMTMixin), {})
    with pytest.raises(TypeError, match="for bases LightningModule, CRMTMixin"):
        type("Wrong", (LightningModule, CRMTMixin), {})  # Python's own refusal


def test_the_mixin_is_a_lightning_module_of_yours(data, make_trainer):
    class Yours(LightningModule):
        def __init__(self, lr):
            super().__init__()
            self.save_hyperparameters()
            self.rates = []

        def on_train_start(self):
            self.rates.append(self.hparams.lr)

        def training_step(self, batch, batch_idx):
            raise AssertionError("the mixin's is used")

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)

    class Mine(CRMTMixin, Yours):
        def __init__(self):
            Yours.__init__(self, lr=0.1)  # around the mixin
            self.encoders = nn.ModuleDict({"fou": MLP(76, 12), "mor": MLP(6, 12)})
            self.head = OrthogonalFusion({"fou": 12, "mor": 12}, num_classes=10)

    model = Mine()
    assert isinstance(model, LightningModule)
    make_trainer(max_epochs=1).fit(model, datamodule=data)
    assert model.rates == [0.1]
    assert model.rho == 0.5


@pytest.mark.parametrize("run", ["fit", "validate", "test"])
def test_a_compiled_whole_is_refused_before_anything_runs(run, make_model, make_trainer, data):
    trainer, model = make_trainer(max_epochs=1), make_model()
    with pytest.raises(TypeError, match=r"got what torch.compile made of it: compile it in place, model.compile\(\)"):
        getattr(trainer, run)(torch.compile(model, backend="eager"), data)
    assert trainer.global_step == 0
    model.compile(backend="eager")  # as it says
    getattr(make_trainer(max_epochs=1), run)(model, data)
    model.certify(data.parts["test"][:4][0])


def test_a_module_compiled_in_place_trains(make_model, make_trainer, data):
    plain, compiled = make_model(), make_model()
    compiled.compile(backend="eager")
    for module in (plain, compiled):
        torch.manual_seed(0)
        make_trainer(max_epochs=1).fit(module, data)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], value)


class Waits(TorchDispatchMode):
    """Counts what would wait for a GPU: reading numbers, and shapes that depend on them."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        if name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::item"):
            self.seen.append(name)
        if name.startswith("aten::index") and any(
            isinstance(each, torch.Tensor) and each.dtype is torch.bool for each in args[1] or ()
        ):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("head", [OrthogonalFusion, LinearFusion])
def test_a_training_step_waits_for_the_device_once(head, monkeypatch):
    calls, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: calls.append(1) or tolist(tensor))
    model = CRMTModule({"a": MLP(5, 8), "b": MLP(4, 8)}, num_classes=3, head=head)
    batch = {"a": torch.randn(6, 5), "b": torch.randn(6, 4)}, torch.tensor([0, 1, 2, 0, 1, 2])
    with Waits() as waits:
        inputs, target = model.training_batch(batch)
        model.crmt_loss(model(inputs), target).backward()
    assert waits.seen == []  # beside tolist() in `usable`, which is one
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_inputs_that_forward_left_to_the_loss_are_named_there(name, bad):
    encoders = {"a": nn.Sequential(nn.Tanh(), nn.Linear(5, 8)), "b": nn.Linear(5, 8)}
    model = CRMTModule(encoders, 3, in_features={"a": 8, "b": 8})
    values = {"a": torch.randn(6, 5), "b": torch.randn(6, 5)}
    values[name][0, 0] = bad
    inputs, target = model.training_batch((values, torch.tensor([0, 1, 2, 0, 1, 2])))
    with pytest.raises(ValueError, match=rf"`inputs` must be finite: `inputs\['{name}'\]` has"):
        model.crmt_loss(model(inputs), target)
    with pytest.raises(ValueError, match="`inputs` must be finite"):  # nobody left it to the loss
        model(values)
