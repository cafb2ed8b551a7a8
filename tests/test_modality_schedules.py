# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Methods that give each modality its own course of training: rates, stopping, learning anew."""

import copy
import math
import random
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from support.small_model import CLASSES, States, assert_close, model_of, samples, whole
from torch import nn

from lightning_crmt import CRMTModule, OrthogonalFusion
from lightning_crmt.cli import main
from lightning_crmt.methods import (
    AdaptiveGradientModulation,
    GradientModulation,
    Mixup,
    ModalityEarlyStopping,
    ModalitySpecificRates,
    ParetoGradients,
    Relearning,
)
from lightning_crmt.methods.parts.clustering import k_means, purity
from lightning_crmt.methods.parts.modality_parts import own_parameters


@pytest.fixture
def fit(make_trainer):
    def run(model, *methods, **settings):
        path = settings.pop("ckpt_path", None)
        settings = {"precision": "64-true", "max_epochs": 3} | settings
        trainer = make_trainer(*methods, **settings)
        names = list(model.encoders.keys())
        loaders = [samples(names, 200, 0, 100), samples(names, 130, 1, 50)]  # the last batch is smaller
        trainer.fit(model, *loaders, ckpt_path=path)
        return trainer

    return run


def scripted(method, numbers):
    """Makes validation t report the t-th numbers, whatever the model."""
    given, learn = iter(numbers), method.learn
    method.learn = lambda module, means: learn(module, next(given))
    return method


def momentum(groups):
    return torch.optim.SGD(groups, 0.05, momentum=0.9, weight_decay=0.01)


def belongs_to(key, name):
    return key.startswith(f"encoders.{name}.") or key == f"head.rows.{name}"


# --- what they share


@pytest.mark.parametrize("head", [OrthogonalFusion])
def test_what_belongs_to_a_modality(head):
    model = model_of("abc", head=head)
    found = own_parameters(model)
    by_id = {id(p): name for name, p in model.named_parameters()}
    for name, parameters in found.items():
        assert {by_id[id(p)] for p in parameters} == {
            *(key for key in by_id.values() if key.startswith(f"encoders.{name}.")),
            f"head.raw_directions.{name}",
            f"head.raw_weights.{name}",
        }
    shared = nn.Linear(5, 8)
    twins = CRMTModule({"a": nn.Sequential(shared, nn.Linear(8, 8)), "b": shared}, CLASSES)
    parameters = own_parameters(twins)
    assert not any(p is shared.weight for name in "ab" for p in parameters[name])
    assert any(p is twins.encoders["a"][1].weight for p in parameters["a"])


@pytest.mark.parametrize("names", ["ab", "abc"])
def test_unimodal_numbers_are_over_all_samples(names, fit):
    model, methods, seen = model_of(names), (ModalityEarlyStopping(), ModalitySpecificRates()), []
    for method in methods:
        method.learn = lambda module, means: seen.append(means)
    fit(model, *methods, max_epochs=1, num_sanity_val_steps=2)
    losses, accuracies = seen  # and nothing of the sanity check
    inputs, target = whole(samples(names, 130, 1))
    for name, logits in model.head.unimodal_logits(model(inputs).scores).items():
        assert losses[name] == pytest.approx(nn.functional.cross_entropy(logits, target).item())
        assert accuracies[name] == pytest.approx((logits.argmax(dim=1) == target).double().mean().item())


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
@pytest.mark.parametrize("settings", [{}, {"num_sanity_val_steps": 2}, {"check_val_every_n_epoch": 2}], ids=str)
@pytest.mark.parametrize("kind", [ModalitySpecificRates, ModalityEarlyStopping, Relearning])
def test_without_validation_there_is_nothing_to_go_by(kind, settings, fit, make_trainer):
    with pytest.raises(ValueError, match=f"{kind.__name__} needs validation data in the fit, got none"):
        fit(model_of(), kind(), limit_val_batches=0, **settings)
    trainer = make_trainer(kind(), precision="64-true", **settings)
    with pytest.raises(ValueError, match=f"{kind.__name__} needs validation data in the fit, got none"):
        trainer.fit(model_of(), samples())
    assert trainer.global_step == 0


@pytest.mark.parametrize("every", [2, 3])
def test_a_first_validation_after_several_epochs_is_validation(every, fit):
    methods = ModalitySpecificRates(window=1), Relearning(epochs=(1,)), ModalityEarlyStopping()
    fit(model_of(optimizer=momentum), *methods, check_val_every_n_epoch=every)
    assert len(methods[0].accuracies["a"]) == 1
    assert 0 < methods[1].weights["a"] < 1
    assert methods[2].best_epochs["a"] == every - 1


# --- MSLR


def test_who_gets_better_learns_faster(fit):
    accuracies = [(0.2, 0.6), (0.4, 0.6), (0.6, 0.3), (0.8, 0.0)]
    numbers = [{"a": a, "b": b} for a, b in accuracies]
    method = scripted(ModalitySpecificRates(rates={"a": 1.3, "b": 0.5}, window=2), numbers)
    found = []

    class Watch(States):
        def on_train_epoch_start(self, trainer, pl_module):
            found.append((method.factor("a"), method.factor("b")))

    fit(model_of(), method, Watch(), max_epochs=4)
    assert found[0] == found[1] == found[2] == (1.3, 0.5), "until there are two earlier ones"
    assert found[3] == pytest.approx((1.3 * 0.6 / 0.3, 0.5 * 0.3 / 0.6))
    assert method.trends == pytest.approx({"a": 0.8 / 0.5, "b": 0.0})
    assert method.accuracies == {"a": [0.6, 0.8], "b": [0.3, 0.0]}


def test_a_modality_that_is_never_right_keeps_its_rate(fit):
    numbers = [{"a": a, "b": 0.5} for a in (0.0, 0.0, 0.4)]
    method = scripted(ModalitySpecificRates(window=2), numbers)
    fit(model_of(), method)
    assert method.trends == {"a": 1.0, "b": 1.0}


@pytest.mark.parametrize("names", ["ab", "abc"])
@pytest.mark.parametrize("batches", [1, 2])
@pytest.mark.parametrize(
    "optimizer",
    [
        momentum,
        lambda groups: torch.optim.AdamW(groups, 0.05, weight_decay=0.1),
        lambda g: torch.optim.RMSprop(g, 0.01),
    ],
    ids=["momentum", "adamw", "rmsprop"],
)
def test_a_scaled_step_is_a_learning_rate_of_its_own(optimizer, batches, names, fit):
    rates = dict(zip("abc", (1.3, 0.4, 0.0), strict=True))
    grouped = model_of(names)

    def configure():
        own = own_parameters(grouped)
        taken = {id(p) for each in own.values() for p in each}
        rest = [p for p in grouped.parameters() if id(p) not in taken]
        made = optimizer([{"params": rest}, *({"params": own[name]} for name in names)])
        for group, factor in zip(made.param_groups, [1.0, *(rates[name] for name in names)], strict=True):
            group["lr"] *= factor
        return made

    grouped.configure_optimizers = configure
    fit(grouped, accumulate_grad_batches=batches)
    model = model_of(names, optimizer=optimizer)
    method = ModalitySpecificRates({name: rates[name] for name in names}, window=50)
    fit(model, method, accumulate_grad_batches=batches)
    assert_close(model.state_dict(), grouped.state_dict())
    assert not torch.allclose(model.head.rows["a"], model_of(names).head.rows["a"])


def test_a_rate_of_one_changes_nothing(fit):
    models = model_of(optimizer=momentum), model_of(optimizer=momentum)
    fit(models[0])
    fit(models[1], ModalitySpecificRates(window=50))
    assert_close(models[1].state_dict(), models[0].state_dict(), rtol=0, atol=0)


def test_rates_are_of_the_modalities(fit):
    with pytest.raises(ValueError, match=r"`rates` must hold exactly the modalities \['a', 'b'\]"):
        fit(model_of(), ModalitySpecificRates({"a": 1.0}))


# --- MSES


def losses_of(a, b):
    return [{"a": each, "b": other} for each, other in zip(a, b, strict=True)]


def test_who_overfits_goes_back_and_stays(fit):
    def make():
        model = model_of(optimizer=momentum)
        model.encoders["a"].layers.append(nn.BatchNorm1d(8).double())
        model.encoders["a"].layers.append(nn.Dropout(0.5))
        return model

    # Smoothed by hand, 0.5 of the one before: a 4, 3, 2.5, 4, 6, 6; its minimum is after epoch 2.
    script = losses_of([4.0, 2.0, 3.0, 5.0, 7.0, 5.0, 9.0], [7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    method = scripted(ModalityEarlyStopping(patience=2, smoothing=0.5), script)
    states, model = States(), make()
    fit(model, states, method, max_epochs=7)
    assert method.stopped == ["a"]
    assert method.best_epochs == {"a": 2, "b": 6}
    best, before, after, end = states.found[3], *states.found[5:8]
    # Epoch 5 is more than two after epoch 2: when it is over, the modality gets its best weights, and keeps them.
    for key in filter(lambda key: belongs_to(key, "a"), best):
        assert after[key].equal(best[key]), key
        assert end[key].equal(best[key]), key
    assert any(not before[key].equal(best[key]) for key in best if belongs_to(key, "a")), "or the case shows nothing"
    for key in filter(lambda key: belongs_to(key, "b") or key == "head.bias", best):
        assert not after[key].equal(best[key]), "the other modality does not go back"
        assert not end[key].equal(after[key]), "and learns on"
    assert all(part.training for part in model.modules())


def test_all_stopped_ends_the_fit(fit):
    script = losses_of([1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 0.5, 2.0, 3.0, 4.0])
    method = scripted(ModalityEarlyStopping(patience=0, smoothing=0.0), script)
    states = States()
    trainer = fit(model_of(optimizer=momentum), states, method, max_epochs=5)
    assert method.stopped == ["a", "b"]
    assert trainer.current_epoch == 3
    for key in filter(lambda key: belongs_to(key, "b"), states.found[0]):
        assert states.found[-1][key].equal(states.found[2][key])


def test_patience_bears_what_it_says(fit):
    for patience, expected in ((2, ["a"]), (3, [])):
        script = losses_of([1.0, 2.0, 2.0, 2.0], [4.0, 3.0, 2.0, 1.0])
        method = scripted(ModalityEarlyStopping(patience=patience), script)
        fit(model_of(), method, max_epochs=4)
        assert method.stopped == expected


# --- re-learning


def test_purity_by_hand():
    centres = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    torch.manual_seed(0)
    points = (centres[:, None] + 0.1 * torch.randn(3, 10, 2)).flatten(0, 1)
    assigned = k_means(points, 3)
    assert [len(part.unique()) for part in assigned.split(10)] == [1, 1, 1]
    assert len(assigned.unique()) == 3
    target = torch.arange(3).repeat_interleave(10)
    assert purity(points, target, 3) == 1.0
    target[:4] = 1  # of the first cluster 6 are of class 0
    assert purity(points, target, 3) == pytest.approx(26 / 30)
    assert purity(points * torch.tensor([1e6, 1e-6]) + 5, target, 3) == pytest.approx(26 / 30), "scaled by feature"
    assert purity(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]), 3) == 0.75, "one point, one cluster"


def test_the_best_of_the_starts_counts():
    torch.manual_seed(1)
    points, target = torch.randn(300, 4), torch.randint(5, (300,))
    assert k_means(points, 5).equal(k_means(points, 5))

    def spread(assigned):
        parts = [points[assigned == cluster] for cluster in range(5)]
        return sum(float((part - part.mean(dim=0)).square().sum()) for part in parts)

    alone = [spread(k_means(points, 5, restarts=1)), spread(k_means(points, 5, seed=1, restarts=1))]
    assert alone[0] != alone[1], "or the case shows nothing"
    assert spread(k_means(points, 5)) <= alone[0] + 1e-4
    assert spread(k_means(points, 5, seed=1)) <= alone[1] + 1e-4
    before = torch.get_rng_state()
    purity(points, target, 5)
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("names", ["ab", "abc"])
def test_who_learned_past_what_generalises_goes_back_the_most(names, fit):
    model = model_of(names, optimizer=lambda groups: torch.optim.Adam(groups, 0.02))
    first = copy.deepcopy(model.state_dict())
    before, after = States(), States()
    method = Relearning(epochs=(4,), strength=2.0)
    fit(model, before, method, after, max_epochs=5)
    reference = model_of(names)
    reference.load_state_dict(before.found[4])
    found = {}
    for part, loader in (("train", samples(names, 200, 0)), ("val", samples(names, 130, 1))):
        inputs, target = whole(loader)
        features = reference(inputs).features
        found[part] = {n: purity(features[n].detach().float(), target, CLASSES) for n in names}
    gaps = {n: abs(found["train"][n] - found["val"][n]) for n in names}
    assert method.weights == pytest.approx({n: math.tanh(2 * gap) for n, gap in gaps.items()})
    ordered = sorted(names, key=gaps.get)
    assert gaps[ordered[0]] < gaps[ordered[-1]], "or the case shows nothing"
    assert method.weights[ordered[0]] < method.weights[ordered[-1]]
    for key, value in before.found[4].items():
        weight = method.weights[key.split(".")[1]] if key.startswith("encoders.") else 0.0
        torch.testing.assert_close(after.found[4][key], weight * first[key] + (1 - weight) * value)


def test_other_batches_for_the_diagnosis(fit):
    methods = [Relearning((1,), dataloader=loader) for loader in (None, samples(size=200), samples(size=60, seed=3))]
    for method in methods:
        fit(model_of(optimizer=momentum), method, max_epochs=2)
    assert methods[0].weights == pytest.approx(methods[1].weights)
    assert methods[0].weights != pytest.approx(methods[2].weights)
    with pytest.raises(TypeError, match="must not be an iterator, got a generator"):
        Relearning(dataloader=(batch for batch in []))


def test_the_diagnosis_leaves_no_trace(fit):
    def make():
        model = model_of(optimizer=momentum)
        model.encoders["a"].layers.append(nn.BatchNorm1d(8).double())
        model.encoders["a"].layers.append(nn.Dropout(0.5))
        return model

    class Drawing:
        """Batches that draw from Python's own generator, as augmentations do."""

        def __iter__(self):
            random.random()
            yield from samples()

    found, draws = [], []
    for methods in ([], [Relearning(epochs=(1, 2), strength=1e-30, dataloader=Drawing())]):
        model = make()  # and the same random state for Dropout
        fit(model, *methods)
        found.append(model.state_dict())
        draws.append(random.random())
    assert_close(found[1], found[0])
    assert draws[0] == draws[1]


# --- all


METHODS = {
    "ogm_ge": lambda: GradientModulation(0.4),
    "agm": lambda: AdaptiveGradientModulation(),
    "pareto": lambda: ParetoGradients(),
    "mslr": lambda: ModalitySpecificRates(rates=0.5, window=1),
    "mses": lambda: ModalityEarlyStopping(patience=0),
    "relearning": lambda: Relearning(epochs=(1, 2)),
}


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("make", [METHODS[name] for name in ("mslr", "mses", "relearning")])
@pytest.mark.parametrize("done", [1, 3])
def test_a_resumed_run_equals_the_uninterrupted_one(make, done, fit, tmp_path):
    def optimizer(groups):
        return torch.optim.AdamW(groups, 0.05)

    def run(model, **settings):
        method, saving = make(), ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        fit(model, method, saving, max_epochs=6, enable_checkpointing=True, **settings)
        return model.state_dict(), method.state_dict()

    complete, state = run(model_of(optimizer=optimizer))
    resumed, again = run(model_of(seed=1, optimizer=optimizer), ckpt_path=tmp_path / f"epoch={done - 1}.ckpt")
    assert_close(resumed, complete, rtol=0, atol=0)
    assert str(again) == str(state)
    plain = model_of(optimizer=optimizer)
    fit(plain, max_epochs=6)
    assert not torch.allclose(plain.encoders["b"].layers[1].weight, complete["encoders.b.layers.1.weight"])


@pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
def test_in_bf16_with_mixed_samples_and_accumulation(make, make_model, make_trainer, data):
    model, plain = make_model(), make_model()
    settings = {"precision": "bf16-mixed", "accumulate_grad_batches": 4}  # of 6 batches: the last step has 2
    make_trainer(Mixup(), make(), **settings).fit(model, data)
    make_trainer(Mixup(), **settings).fit(plain, data)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert any(not p.equal(q) for p, q in zip(model.parameters(), plain.parameters(), strict=True))
    assert isinstance(model, LightningModule)
    assert model.training_stage.methods == []


def test_all_from_yaml(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-crmt"])
    config = yaml.safe_load((Path(__file__).parent.parent / "examples" / "mfeat.yaml").read_text())
    config["trainer"]["callbacks"] = [
        {"class_path": "GradientModulation", "init_args": {"alpha": 0.4, "parameters": "all", "end_epoch": 50}},
        {"class_path": "AdaptiveGradientModulation", "init_args": {"alpha": 1.5}},
        {"class_path": "ParetoGradients", "init_args": {"rescale": 1.5}},
        {"class_path": "ModalitySpecificRates", "init_args": {"rates": {"fou": 0.7, "mor": 1.3}}},
        {"class_path": "ModalityEarlyStopping", "init_args": {"patience": 10}},
        {"class_path": "Relearning", "init_args": {"epochs": [20, 40, 60]}},
    ]
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    main(["fit", "--config", str(path), "--trainer.fast_dev_run=2", "--trainer.enable_progress_bar=false"])
    config["trainer"]["callbacks"][0]["init_args"]["parameters"] = "some"
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(path)])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModalitySpecificRates(rates=-0.1), "`rates` must be at least 0, got -0.1"),
        (lambda: ModalitySpecificRates(rates={"a": math.nan}), "`rates` must be at least 0"),
        (lambda: ModalitySpecificRates(window=0), "`window` must be at least 1, got 0"),
        (lambda: ModalityEarlyStopping(patience=-1), "`patience` must be at least 0, got -1"),
        (lambda: ModalityEarlyStopping(smoothing=1.0), "`smoothing` must be at least 0 and below 1, got 1.0"),
        (lambda: Relearning(epochs=()), r"`epochs` must be one or more, each at least 1, got \[\]"),
        (lambda: Relearning(epochs=(0,)), r"`epochs` must be one or more, each at least 1, got \[0\]"),
        (lambda: Relearning(strength=0.0), "`strength` must be above 0, got 0.0"),
        (lambda: Relearning(seed=-1), "`seed` must be at least 0, got -1"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
