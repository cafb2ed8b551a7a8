# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Methods that change gradients, against slow copies of their formulas."""

import math
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from support.small_model import CLASSES, Gradients, assert_close, model_of, samples, whole
from torch import nn

from lightning_crmt import CRMTModule
from lightning_crmt.fusion import GatedFusion
from lightning_crmt.methods import AdaptiveGradientModulation, GradientModulation, Mixup, ParetoGradients
from lightning_crmt.methods.adaptive_gradient_modulation import response_coefficients, shapley_responses
from lightning_crmt.methods.gradient_modulation import modulation_coefficients
from lightning_crmt.methods.pareto_gradients import joint_share
from lightning_crmt.methods.parts.separate_gradients import SeparateGradients
from lightning_crmt.modality import FusionOutput
from lightning_crmt.stage import StageObjective
from lightning_crmt.targets import MixedTarget

cross_entropy = nn.functional.cross_entropy


@pytest.fixture
def fit(make_trainer):
    """Fits without validation, and gives the gradients of the steps."""

    def run(model, loader, *methods, **settings):
        gradients = Gradients()
        settings = {"precision": "64-true", "max_epochs": 1, "limit_val_batches": 0} | settings
        make_trainer(*methods, gradients, **settings).fit(model, loader, loader)
        return gradients.steps

    return run


def trained(names="ab", seed=0, steps=30):
    """A model that a few steps have made unbalanced: it relies on the modality that says the class."""
    model = model_of(names, seed)
    inputs, target = whole(samples(names))
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(inputs).logits, target).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model


def own_logits(model, inputs):
    return model.head.unimodal_logits(model(inputs).scores)


# --- OGM-GE


def test_the_dominant_modality_is_slowed():
    tanh = math.tanh
    assert modulation_coefficients({"a": 6.0, "b": 2.0}, alpha=0.3) == {"a": 1 - tanh(0.9), "b": 1.0}
    assert modulation_coefficients({"a": 2.0, "b": 6.0}, alpha=0.3) == {"a": 1.0, "b": 1 - tanh(0.9)}
    assert modulation_coefficients({"a": 2.0, "b": 2.0}, alpha=0.3) == {"a": 1.0, "b": 1.0}
    three = {"a": 6.0, "b": 3.0, "c": 2.0}
    assert modulation_coefficients(three, alpha=0.3) == {"a": 1 - tanh(0.3 * 6 / 2.5), "b": 1.0, "c": 1.0}
    assert modulation_coefficients(three, alpha=0.3, others="min") == {
        "a": 1 - tanh(0.3 * 3), "b": 1 - tanh(0.3 * 1.5), "c": 1.0,
    }  # fmt: skip
    assert modulation_coefficients({"a": 1.0, "b": 0.0}, alpha=0.3) == {"a": 0.0, "b": 1.0}


@pytest.mark.parametrize("names", ["ab", "abc"])
def test_modulated_gradients(names, fit):
    loader = samples(names)
    inputs, target = whole(loader)
    model = trained(names)
    sums = {}
    for name, logits in own_logits(model, inputs).items():
        sums[name] = sum(logits[i].softmax(dim=0)[target[i]].item() for i in range(len(target)))
    (plain,) = fit(trained(names), loader)
    method = GradientModulation(alpha=0.4, noise=False)
    (found,) = fit(model, loader, method)
    others = {name: (sum(sums.values()) - sums[name]) / (len(sums) - 1) for name in sums}
    assert sums["a"] > others["a"], "or the case shows nothing"
    expected = dict.fromkeys(sums, 1.0) | {"a": 1 - math.tanh(0.4 * sums["a"] / others["a"])}
    assert method.coefficients == pytest.approx(expected)
    for name, gradient in plain.items():
        slowed = name.startswith("encoders.a.") and name.endswith("weight")
        torch.testing.assert_close(found[name], gradient * (expected["a"] if slowed else 1.0))


def test_which_tensors_are_modulated(fit):
    loader = samples()
    (plain,) = fit(trained(), loader)
    (found,) = fit(trained(), loader, method := GradientModulation(0.4, noise=False, parameters="all"))
    assert method.coefficients["a"] < 1
    for name, gradient in plain.items():
        factor = method.coefficients["a"] if name.startswith("encoders.a.") else 1.0
        torch.testing.assert_close(found[name], gradient * factor)


def test_convolutions_alone(fit, make_trainer):
    def make():
        torch.manual_seed(0)
        convolving = nn.Sequential(
            nn.Unflatten(1, (1, 1, 5)), nn.Conv2d(1, 3, 1), nn.Flatten(), nn.ReLU(), nn.Linear(15, 8)
        )
        encoders = {"a": convolving, "b": nn.Sequential(nn.Unflatten(1, (6, 1, 1)), nn.Conv2d(6, 8, 1), nn.Flatten())}
        settings = {"in_features": {"a": 8, "b": 8}, "optimizer": lambda groups: torch.optim.SGD(groups, 0.0)}
        return CRMTModule(encoders, CLASSES, rho=0.0, **settings).double()

    (plain,) = fit(make(), samples())
    method = GradientModulation(0.4, noise=False, parameters="convolutions")
    (found,) = fit(make(), samples(), method)
    (slowed,) = [name for name, value in method.coefficients.items() if value < 1]
    for name, gradient in plain.items():
        touched = name.startswith(f"encoders.{slowed}.") and gradient.dim() == 4
        torch.testing.assert_close(found[name], gradient * (method.coefficients[slowed] if touched else 1.0))
    with pytest.raises(ValueError, match="must leave something to modulate in every encoder, but that of 'a'"):
        fit(model_of(), samples(), GradientModulation(parameters="convolutions"))


def test_the_noise_is_as_large_as_the_gradient_and_the_same_again(fit):
    def make():
        torch.manual_seed(0)
        encoders = {"a": nn.Linear(5, 3000), "b": nn.Linear(6, 3000)}
        optimizer = lambda groups: torch.optim.SGD(groups, 0.0)  # noqa: E731
        return CRMTModule(encoders, CLASSES, rho=0.0, optimizer=optimizer).double()

    plain, _ = fit(make(), samples(), max_epochs=2)
    method = GradientModulation(alpha=0.4, noise=True)
    first, second = fit(make(), samples(), method, max_epochs=2)
    for name in "ab":
        key = f"encoders.{name}.weight"
        noise = first[key] - method.coefficients[name] * plain[key]
        assert noise.std().item() == pytest.approx(plain[key].std().item(), rel=0.03)
        assert abs(noise.mean().item()) < 4 * plain[key].std().item() / math.sqrt(noise.numel())
        assert not torch.allclose(first[key], second[key]), "each step draws its own"
        assert first[f"encoders.{name}.bias"].equal(plain[f"encoders.{name}.bias"])
    again, _ = fit(make(), samples(), GradientModulation(alpha=0.4, noise=True), max_epochs=2)
    assert_close(again, first, rtol=0, atol=0)
    other, _ = fit(make(), samples(), GradientModulation(alpha=0.4, noise=True, seed=1), max_epochs=2)
    assert not torch.allclose(other["encoders.a.weight"], first["encoders.a.weight"])


def test_the_epochs_of_modulation(fit):
    plain = fit(trained(), samples(), max_epochs=4)
    method = GradientModulation(0.4, noise=False, start_epoch=1, end_epoch=2)
    found = fit(trained(), samples(), method, max_epochs=4)
    same = [each["encoders.a.layers.1.weight"].equal(p["encoders.a.layers.1.weight"]) for each, p in zip(found, plain)]  # noqa: B905
    assert same == [True, False, False, True]


# --- AGM


def test_responses_of_three_are_the_published_weights():
    torch.manual_seed(0)
    av, at, vt, avt, a, v, t = torch.randn(7, 2, 3)
    sets = {"av": av, "at": at, "vt": vt, "avt": avt, "a": a, "v": v, "t": t}
    found = shapley_responses({frozenset(present): value for present, value in sets.items()})
    torch.testing.assert_close(found["a"], (avt - vt) / 3 + (av - v + at - t) / 6 + a / 3)
    torch.testing.assert_close(found["v"], (avt - at) / 3 + (av - a + vt - t) / 6 + v / 3)
    torch.testing.assert_close(found["t"], (avt - av) / 3 + (at - a + vt - v) / 6 + t / 3)
    torch.testing.assert_close(found["a"] + found["v"] + found["t"], avt)


def test_who_is_ahead_of_its_history_is_slowed():
    now, means = {"a": 0.5, "b": 1.5}, {"a": 1.0, "b": 1.4}
    found = response_coefficients(now, means, alpha=0.7)
    assert found["a"] == pytest.approx(math.exp(0.7 * (math.exp(0.4) - math.exp(1.0))))
    assert found["b"] == pytest.approx(math.exp(0.7 * (math.exp(-0.4) - math.exp(-1.0))))
    assert found["a"] < 1 < found["b"]
    three = response_coefficients({"a": 0.5, "b": 1.5, "c": 1.0}, {"a": 1.0, "b": 1.0, "c": 1.0}, alpha=0.7)
    ratio = math.exp(1.5 * 0.5)
    assert three == pytest.approx({"a": math.exp(0.7 * (1 - ratio)), "b": math.exp(0.7 * (1 - 1 / ratio)), "c": 1.0})
    largest = response_coefficients({"a": 0.0, "b": 0.0}, {"a": 0.0, "b": 9.0}, alpha=0.7)
    assert largest["a"] == pytest.approx(math.exp(7.0)), "no further"


def slow_agm(model, inputs, target, means, alpha, pull=None):
    """Gradients, factors and losses of a step, each response with a pass of its own."""
    names = list(inputs)

    def f(present):
        blanked = {n: inputs[n] if n in present else torch.zeros_like(inputs[n]) for n in names}
        return model(blanked).logits

    if len(names) == 2:
        a, b = names
        both = f(names)
        phi = {a: (both - f([b]) + f([a])) / 2, b: (both - f([a]) + f([b])) / 2}
    else:
        a, b, c = names
        full = f(names)
        phi = {}
        for m, n, k in ((a, b, c), (b, a, c), (c, a, b)):
            phi[m] = (full - f([n, k])) / 3 + (f([m, n]) - f([n]) + f([m, k]) - f([k])) / 6 + f([m]) / 3
    losses = {n: cross_entropy(phi[n], target).item() for n in names}
    count = len(names)

    def ratio(values, n):
        return math.exp(count / (count - 1) * (sum(values.values()) / count - values[n]))

    kappa = {n: math.exp(alpha * (ratio(means, n) - ratio(losses, n))) for n in names}
    if pull is None:
        pull = (model(inputs).logits.softmax(dim=1) - nn.functional.one_hot(target, CLASSES)).detach() / len(target)
    loss = sum(kappa[n] * (pull * phi[n]).sum() for n in names)
    found = torch.autograd.grad(loss, list(model.parameters()))
    return dict(zip((n for n, _ in model.named_parameters()), found, strict=True)), kappa, losses


@pytest.mark.parametrize(("names", "settings"), [("ab", {}), ("abc", {}), ("ab", {"head": GatedFusion})])
def test_the_gradient_through_each_response_is_scaled(names, settings, fit):
    loader = samples(names)
    inputs, target = whole(loader)
    model = model_of(names, **settings)
    first, kappa, losses = slow_agm(model, inputs, target, dict.fromkeys(names, 0.0), alpha=1.5)
    method = AdaptiveGradientModulation(alpha=1.5)
    found = fit(model, loader, method, max_epochs=2)
    assert_close(found[0], first)
    assert len({round(value, 6) for value in kappa.values()}) == len(names), "or the case shows nothing"
    # Nothing moved, so that the means are the losses of the first step: the usual ratio, and factors of 1.
    assert method.coefficients == pytest.approx(dict.fromkeys(names, 1.0))
    assert method.state_dict() == {"means": pytest.approx(losses), "steps": 2}
    plain = fit(model_of(names, **settings), loader)
    assert_close(found[1], plain[0])


def test_the_means_are_over_all_steps_so_far(fit):
    loader = samples(size=120, batch_size=50)
    inputs, target = whole(loader)
    model, means, expected = model_of(), {"a": 0.0, "b": 0.0}, []
    for step, part in enumerate([slice(0, 50), slice(50, 100), slice(100, 120)]):  # the last batch is smaller
        x, y = {n: value[part] for n, value in inputs.items()}, target[part]
        gradients, kappa, losses = slow_agm(model, x, y, means, alpha=2.5)
        means = {n: (means[n] * step + losses[n]) / (step + 1) for n in means}
        expected.append(gradients)
    method = AdaptiveGradientModulation(alpha=2.5)
    for found, wanted in zip(fit(model_of(), loader, method), expected, strict=True):
        assert_close(found, wanted)
    assert method.coefficients == pytest.approx(kappa)


def test_blank_passes_leave_statistics_and_modes_alone(fit):
    def make():
        torch.manual_seed(0)
        normed = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 8))
        encoders = {"a": normed, "b": nn.Linear(6, 8)}
        optimizer = lambda groups: torch.optim.SGD(groups, 0.0)  # noqa: E731
        return CRMTModule(encoders, CLASSES, rho=0.0, optimizer=optimizer).double()

    plain, model = make(), make()
    fit(plain, samples())
    fit(model, samples(), AdaptiveGradientModulation())
    assert_close(dict(model.named_buffers()), dict(plain.named_buffers()), rtol=0, atol=0)
    assert all(part.training for part in model.modules())


def test_the_loss_keeps_its_value_and_other_terms_their_gradient(make_trainer):
    model = model_of(rho=0.5)
    inputs, target = whole(samples())
    method = AdaptiveGradientModulation()
    method.transform(model, inputs, target)
    model.trainer = make_trainer(precision="64-true")
    model.training_stage.push(method, method=method)
    plain = model_of(rho=0.5)
    margin = model.crmt_loss(model(inputs), target)
    assert margin.item() == pytest.approx(plain.crmt_loss(plain(inputs), target).item())
    gradients, _, _ = slow_agm(model, inputs, target, {"a": 0.0, "b": 0.0}, 1.5)
    rest = plain.crmt_loss(plain(inputs), target) - cross_entropy(plain(inputs).logits, target)
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        (found,) = torch.autograd.grad(margin, p, retain_graph=True)
        (other,) = torch.autograd.grad(rest, q, retain_graph=True, allow_unused=True)
        torch.testing.assert_close(found, gradients[name] + (0 if other is None else other))


def test_the_objective_of_another_stage_is_modulated_alike(make_trainer):
    model, method = model_of(), AdaptiveGradientModulation()
    inputs, target = whole(samples())
    pull = torch.randn(len(target), CLASSES, dtype=torch.double)
    objective = StageObjective("mine", lambda output, target: (pull * output.logits).sum())
    model.training_stage.push("me", objective=objective)
    model.trainer = make_trainer(precision="64-true")
    model.training_stage.push(method, method=method)
    method.transform(model, inputs, target)
    model.crmt_loss(model(inputs), target).backward()
    expected, _, _ = slow_agm(model_of(), inputs, target, {"a": 0.0, "b": 0.0}, 1.5, pull)
    assert_close({name: p.grad for name, p in model.named_parameters()}, expected)


def test_what_agm_needs_is_said(make_trainer):
    model, (inputs, target) = model_of(), whole(samples())
    model.trainer = make_trainer()
    with pytest.raises(ValueError, match=r"must begin with `inputs, target = self.training_batch\(batch\)`"):
        AdaptiveGradientModulation().term(model, model(inputs), target)
    with pytest.raises(ValueError, match="reads the features of each modality"):
        AdaptiveGradientModulation().term(model, FusionOutput(*model(inputs)[:2]), target)


# --- MMPareto


def test_the_share_is_that_of_the_shortest_combination():
    torch.manual_seed(0)
    for _ in range(200):
        g, u = torch.randn(2, 3, dtype=torch.double) * torch.rand(2, 1, dtype=torch.double)
        share = joint_share([g[:1], g[1:]], [u[:1], u[1:]])
        if g @ u >= 0:
            assert share == 0.5
            continue
        grid = torch.linspace(0, 1, 2001, dtype=torch.double)[:, None]
        assert share == pytest.approx(grid[(grid * g + (1 - grid) * u).norm(dim=1).argmin()].item(), abs=6e-4)
        mixed = share * g + (1 - share) * u
        assert mixed @ g > 0 < mixed @ u, "it descends on both"
    assert joint_share([torch.tensor([math.inf])], [torch.tensor([1.0])]) is None


def slow_pareto(model, inputs, target, rescale):
    names = [name for name, _ in model.named_parameters()]
    logits = own_logits(model, inputs)

    def gradients(loss):
        found = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True, allow_unused=True)
        return {n: g for n, g in zip(names, found, strict=True) if g is not None}

    joint = gradients(cross_entropy(model(inputs).logits, target))
    own = {m: gradients(cross_entropy(logits[m], target)) for m in logits}
    final, conflicts = {}, 0
    for name in names:
        final[name] = joint[name] + sum(own[m][name] for m in own if name in own[m])
    for m in own:
        mine = [name for name in names if name.startswith(f"encoders.{m}.")]
        g, u = (torch.cat([each[name].flatten() for name in mine]) for each in (joint, own[m]))
        share = 0.5
        if g @ u < 0:
            conflicts += 1
            share = float((u @ u - g @ u) / (g - u).square().sum())
        for name in mine:
            mixed = 2 * share * joint[name] + 2 * (1 - share) * own[m][name]
            longer = max(1.0, float((joint[name] + own[m][name]).norm() / mixed.norm()))
            final[name] = rescale * longer * mixed
    return final, conflicts


@pytest.mark.parametrize("names", ["ab", "abc"])
def test_gradients_are_reconciled(names, fit):
    seen = 0
    for seed in range(3):
        loader = samples(names, size=2, seed=seed)
        model = model_of(names, seed)
        with torch.no_grad():  # confident in nothing true: the modalities disagree
            for rows in model.head.rows.values():
                rows.mul_(60)
        expected, conflicts = slow_pareto(model, *whole(loader), rescale=1.3)
        seen += conflicts
        (found,) = fit(model, loader, method := ParetoGradients(rescale=1.3))
        assert_close(found, expected)
        assert sum(share != 0.5 for share in method.shares.values()) == conflicts
    assert 0 < seen < 3 * len(names), "or one of the cases is not covered"


def test_gradients_that_overflowed_stay_the_plain_sum(make_trainer):
    model, method = model_of(), ParetoGradients()
    inputs, target = whole(samples())
    model.trainer = make_trainer()
    model.training_stage.push(method, method=method)
    loss = method.term(model, model(inputs), target)
    loss.backward()
    next(model.encoders["a"].parameters()).grad[0, 0] = math.inf
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    method.on_before_optimizer_step(model.trainer, model, None)
    after = {name: p.grad for name, p in model.named_parameters()}
    assert all(after[name].equal(before[name]) for name in after if not name.startswith("encoders.b"))
    assert list(method.shares) == ["b"]


def test_separate_gradients_are_unscaled_and_divided():
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    trainer = SimpleNamespace(
        precision_plugin=SimpleNamespace(scaler=scaler), accumulate_grad_batches=2, world_size=1, optimizers=[]
    )
    store = SeparateGradients()
    store.add("x", weight.square().sum(), [weight], trainer)
    store.add("x", weight.sum(), [weight], trainer)
    (gradient,) = store.take(trainer)["x"][1]
    assert gradient.tolist() == [1.5, 2.5]
    assert weight.grad is None
    assert not store
    trainer.optimizers = [torch.optim.AdamW([weight], fused=True)]
    with pytest.raises(ValueError, match="make the optimizer with fused=False"):
        store.add("x", weight.sum(), [weight], trainer)


# --- all


METHODS = {
    "ogm": lambda: GradientModulation(0.4, noise=False),
    "ogm_ge": lambda: GradientModulation(0.4),
    "agm": lambda: AdaptiveGradientModulation(),
    "pareto": lambda: ParetoGradients(),
}


@pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("names", ["ab", "abc"])
def test_accumulated_batches_equal_one_of_their_size(make, names, fit):
    (one,) = fit(trained(names, steps=10), samples(names), make())
    (two,) = fit(trained(names, steps=10), samples(names, batch_size=100), make(), accumulate_grad_batches=2)
    assert_close(two, one)
    (plain,) = fit(trained(names, steps=10), samples(names))
    assert not torch.allclose(one["encoders.a.layers.1.weight"], plain["encoders.a.layers.1.weight"])


@pytest.mark.parametrize("make", [METHODS["ogm"], METHODS["agm"]])
def test_factors_are_over_samples_where_batches_differ(make, fit):
    found = []
    for batch_size, batches in ((200, 1), (150, 2)):
        method = make()
        fit(trained(), samples(batch_size=batch_size), method, accumulate_grad_batches=batches)
        found.append(method.coefficients)
    assert found[1] == pytest.approx(found[0])
    assert found[0]["a"] < 1


@pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
def test_labels_mixed_with_themselves_are_labels(make, fit):
    class Same(Mixup):
        def transform(self, module, inputs, target):
            return inputs, MixedTarget(target, target, 0.3)

    assert_close(fit(trained(), samples(), Same(), make())[0], fit(trained(), samples(), make())[0])
    mixed = fit(trained(), samples(), Mixup(), make())[0]
    assert all(gradient.isfinite().all() for gradient in mixed.values())


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
def test_a_resumed_run_equals_the_uninterrupted_one(make, make_trainer, tmp_path):
    def run(model, **settings):
        saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        trainer = make_trainer(
            make(), saving, precision="64-true", max_epochs=4, enable_checkpointing=True, limit_val_batches=0
        )
        trainer.fit(model, samples(batch_size=50), samples(), **settings)
        return model.state_dict()

    optimizer = lambda groups: torch.optim.SGD(groups, 0.1, momentum=0.9)  # noqa: E731
    complete = run(model_of(optimizer=optimizer))
    resumed = run(model_of(seed=1, optimizer=optimizer), ckpt_path=tmp_path / "epoch=1.ckpt")
    assert_close(resumed, complete, rtol=0, atol=0)


def test_a_single_modality_has_nothing_to_be_compared_with(fit):
    for method in (GradientModulation(), AdaptiveGradientModulation()):
        with pytest.raises(ValueError, match=r"needs at least 2, got \['a'\]"):
            fit(model_of("a"), samples("a"), method)


def test_manual_optimization_is_refused(fit):
    for make in METHODS.values():
        model = model_of()
        model.automatic_optimization = False
        with pytest.raises(ValueError, match="`automatic_optimization` must be True, got False"):
            fit(model, samples(), make())


def test_strategies_that_shard_are_refused():
    trainer = SimpleNamespace(strategy=SimpleNamespace())
    with pytest.raises(RuntimeError, match="on a single device and under DDP, got a SimpleNamespace"):
        ParetoGradients().setup(trainer, model_of(), "fit")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GradientModulation(alpha=0.0), "`alpha` must be above 0, got 0.0"),
        (lambda: GradientModulation(parameters="some"), "`parameters` must be among"),
        (lambda: GradientModulation(others="max"), "`others` must be 'mean' or 'min', got 'max'"),
        (lambda: GradientModulation(start_epoch=-1), "`start_epoch` must be at least 0, got -1"),
        (
            lambda: GradientModulation(start_epoch=3, end_epoch=2),
            "`end_epoch` must be at least `start_epoch` = 3, got 2",
        ),
        (lambda: GradientModulation(seed=-1), "`seed` must be at least 0, got -1"),
        (lambda: AdaptiveGradientModulation(alpha=math.inf), "`alpha` must be above 0, got inf"),
        (lambda: ParetoGradients(rescale=0.0), "`rescale` must be above 0, got 0.0"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
