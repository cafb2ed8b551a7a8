# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The callback that certifies the smoothed classifier: its numbers, its samples, and evaluations that go on."""

import itertools
import json
import math
from types import SimpleNamespace

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule
from support.processes import train
from support.scenarios.smoothed import SAMPLES
from torch import nn
from torch.utils.data import DataLoader

from lightning_crmt import Ablation, CRMTModule, SmoothedClassifier
from lightning_crmt.callbacks import RobustnessFigures, SmoothedRobustness
from lightning_crmt.encoders import MLP, LipschitzMLP
from lightning_crmt.evaluation import Key, read_keys, robustness_figures
from lightning_crmt.fusion import AttentionFusion


def batches(size=24, batch_size=10, seed=0, present=False):
    generator = torch.Generator().manual_seed(seed)
    inputs = {"a": torch.randn(size, 5, generator=generator), "b": torch.randn(size, 3, generator=generator)}
    target = (inputs["a"][:, 0] > 0).long() + (inputs["b"][:, 0] > 0).long()
    if present:
        inputs["b.present"] = torch.arange(size) % 3 > 0
    rows = [({name: value[i] for name, value in inputs.items()}, target[i]) for i in range(size)]
    return DataLoader(rows, batch_size), inputs, target


def crmt(seed=0, encoder=MLP, **settings):
    torch.manual_seed(seed)
    return CRMTModule({"a": encoder(5, 8, (8,)), "b": encoder(3, 8, (8,))}, 3, **settings)


def test(make_trainer, callback, module, loader, **settings):
    (numbers,) = make_trainer(callback, **settings).test(module, loader, verbose=False)
    return read_keys(numbers)


test.__test__ = False

SETTINGS = {"max_draws": 600, "alpha": 0.01, "seed": 3}


@pytest.mark.parametrize("batch_size", [24, 10, 1])
def test_its_numbers_are_those_of_certificates_added_up_by_hand(batch_size, make_trainer):
    loader, inputs, target = batches(batch_size=batch_size)
    module, budget = crmt(), {"a": 0.1, "b": 0.05}
    callback = SmoothedRobustness(
        {"a": 0.2, "b": 0.3}, [0.05, 0.1], budgets=[budget], missing=["a"], max_samples=None, **SETTINGS
    )
    numbers = test(make_trainer, callback, module, loader)
    smoothed = SmoothedClassifier(module, {"a": 0.2, "b": 0.3}, **SETTINGS)
    whole = smoothed.certify(inputs, radii=[0.05, 0.1], budgets=[budget])
    right = whole.prediction == target

    def of(what, name="joint", radius=None, sure="probably_certified", **more):
        return numbers[Key("test", what, name, radius, sure=sure, **more)]

    for radius in (0.05, 0.1):
        robust = right & (whole.radius() > radius)
        assert of("accuracy", radius=radius) == pytest.approx(robust.float().mean().item())
        for name in ("a", "b"):
            alone = right & (whole.radius([name]) > radius)
            assert of("accuracy", name, radius) == pytest.approx(alone.float().mean().item())
        by_class = [robust[target == k].float().mean().item() for k in range(3)]
        assert [of("accuracy_of_class", str(k), radius) for k in range(3)] == pytest.approx(by_class)
        assert of("accuracy_worst_class", radius=radius) == pytest.approx(min(by_class))
        assert robust.any()
    tolerated = right & whole.tolerates(budget)
    assert of("accuracy", "", budget=(("a", 0.1), ("b", 0.05))) == pytest.approx(tolerated.float().mean().item())
    assert of("smoothed_accuracy", sure="") == pytest.approx(right.float().mean().item())
    assert of("smoothed_abstained", sure="") == pytest.approx(whole.abstained.float().mean().item())
    assert of("smoothed_draws", sure="") == pytest.approx(whole.draws.float().mean().item())
    assert of("smoothed_expected_wrong", sure="") == pytest.approx(whole.expected_wrong) == 24 * 0.01
    assert of("smoothed_samples", sure="") == 24
    dropped = smoothed.certify(inputs, radii=[0.05, 0.1], missing=["a"])
    robust = (dropped.prediction == target) & (dropped.radius() > 0.1)
    assert of("accuracy_dropped", "a", 0.1) == pytest.approx(robust.float().mean().item())
    assert of("smoothed_accuracy_dropped", "a", sure="") == pytest.approx(
        (dropped.prediction == target).float().mean().item()
    )
    assert not [key for key in numbers if key.what.startswith("radius")]  # tests that stop early know little of it


def test_mean_radii_are_those_of_a_fixed_number_of_draws(make_trainer):
    loader, inputs, target = batches()
    module = crmt()
    numbers = test(make_trainer, SmoothedRobustness(0.2, max_samples=None, **SETTINGS), module, loader)
    certificate = SmoothedClassifier(module, 0.2, **SETTINGS).certify(inputs)
    for name, modalities in (("joint", None), ("a", ["a"])):
        radius = torch.where(certificate.prediction == target, certificate.radius(modalities), 0)
        found = numbers[Key("test", "radius", name, sure="probably_certified")]
        assert found == pytest.approx(radius.mean().item(), rel=1e-5)
    assert numbers[Key("test", "smoothed_draws", "joint")] == 600 + 64


def test_trusted_and_absent_modalities(make_trainer):
    loader, inputs, target = batches(present=True)
    module = crmt(head=AttentionFusion)
    numbers = test(make_trainer, SmoothedRobustness({"b": 0.3}, [0.1], max_samples=None, **SETTINGS), module, loader)
    certificate = SmoothedClassifier(module, {"b": 0.3}, **SETTINGS).certify(inputs, radii=[0.1])
    robust = (certificate.prediction == target) & (certificate.radius() > 0.1)
    assert Key("test", "accuracy", "joint", 0.1, sure="probably_certified") not in numbers
    # Of all samples, as for sound certificates: what a sample lacks cannot change.
    assert numbers[Key("test", "accuracy", "b", 0.1, sure="probably_certified")] == robust.float().mean().item()
    radii = test(make_trainer, SmoothedRobustness({"b": 0.3}, max_samples=None, **SETTINGS), module, loader)
    assert math.isfinite(radii[Key("test", "radius", "b", sure="probably_certified")])


def test_features_of_sound_encoders(make_trainer):
    loader, inputs, target = batches()
    module = crmt(encoder=LipschitzMLP, head=AttentionFusion)
    settings = SETTINGS | {"at": "features"}
    numbers = test(make_trainer, SmoothedRobustness(0.1, [0.05], max_samples=None, **settings), module, loader)
    certificate = SmoothedClassifier(module, 0.1, **settings).certify(inputs, radii=[0.05])
    robust = (certificate.prediction == target) & (certificate.radius() > 0.05)
    assert numbers[Key("test", "accuracy", "joint", 0.05, sure="probably_certified")] == robust.float().mean().item()


class Foreign(LightningModule):
    def __init__(self, labels=False):
        super().__init__()
        self.layer = nn.Linear(8, 3)
        self.labels = labels

    def forward(self, a, b):
        return self.layer(torch.cat([a, b], dim=1))

    def test_step(self, batch, batch_idx): ...


def test_a_module_of_another_kind(make_trainer):
    torch.manual_seed(0)
    loader, inputs, target = batches()
    module = Foreign()
    callback = SmoothedRobustness(0.2, [0.1], inputs=("a", "b"), max_samples=None, **SETTINGS)
    numbers = test(make_trainer, callback, module, loader)
    certificate = SmoothedClassifier(lambda x: module(**x), 0.2, **SETTINGS).certify(inputs, radii=[0.1])
    robust = (certificate.prediction == target) & (certificate.radius() > 0.1)
    assert numbers[Key("test", "accuracy", "joint", 0.1, sure="probably_certified")] == robust.float().mean().item()


def test_tokens_beside_gaussian_noise(make_trainer):
    torch.manual_seed(0)
    text = nn.Sequential(nn.Embedding(20, 4), nn.Flatten(), nn.Linear(24, 8))
    module = CRMTModule({"image": MLP(5, 8), "text": text}, 2)
    inputs = {"image": torch.randn(12, 5), "text": torch.randint(1, 20, (12, 6))}
    rows = [({name: value[i] for name, value in inputs.items()}, i % 2) for i in range(12)]
    sigma = {"image": 0.2, "text": Ablation(0.4, mask_token=0)}
    budgets = [{"text": 1}, {"text": 1, "image": 0.05}]
    callback = SmoothedRobustness(sigma, budgets=budgets, max_samples=None, **SETTINGS)
    numbers = test(make_trainer, callback, module, DataLoader(rows, 5))
    certificate = SmoothedClassifier(module, sigma, **SETTINGS).certify(inputs, budgets=budgets)
    right = certificate.prediction == torch.arange(12) % 2
    for budget in budgets:
        share = (right & certificate.tolerates(budget)).float().mean().item()
        assert numbers[Key("test", "accuracy", budget=tuple(budget.items()), sure="probably_certified")] == share
    only = SmoothedRobustness({"text": Ablation(0.4, 0)}, budgets=[{"text": 1}], max_samples=None, **SETTINGS)
    assert Key("test", "accuracy", budget=(("text", 1.0),), sure="probably_certified") in test(
        make_trainer, only, module, DataLoader(rows, 5)
    )


class Interrupted(SmoothedRobustness):
    """Stops with an error after some portions of samples."""

    left = 3

    def smoothed(self, model, max_draws=None):
        made = super().smoothed(model, max_draws)
        if isinstance(model, LightningModule):
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        return made


@pytest.mark.parametrize("cut", [False, True])
def test_what_was_stopped_goes_on_with_the_same_numbers(cut, make_trainer, tmp_path):
    settings = SETTINGS | {"radii": [0.1], "max_samples": 20, "missing": ["b"], "batch_size": 128}
    loader, _, _ = batches()
    whole = test(make_trainer, SmoothedRobustness(0.2, **settings), crmt(), loader)
    stopped = Interrupted(0.2, folder=tmp_path / "kept", **settings)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        test(make_trainer, stopped, crmt(), loader)
    (file,) = (tmp_path / "kept").iterdir()
    if cut:
        file.write_text(file.read_text()[:-30])
    before = len(file.read_text().splitlines())
    again = SmoothedRobustness(0.2, folder=tmp_path / "kept", **settings)
    asked = []
    again.smoothed = lambda model, max_draws=None: asked.append(1) or SmoothedRobustness.smoothed(again, model)
    assert test(make_trainer, again, crmt(), loader) == whole
    calls = len(asked)
    assert len(file.read_text().splitlines()) > before
    assert test(make_trainer, again, crmt(), loader) == whole
    assert len(asked) == calls  # nothing is certified twice
    assert len({json.loads(line)["key"] for line in file.read_text().splitlines() if line.endswith("}")}) == 40


@pytest.mark.parametrize("change", ["weights", "sigma", "seed", "radii", "inputs", "buffer"])
def test_what_is_kept_is_of_these_weights_settings_and_samples(change, make_trainer, tmp_path):
    settings = {"sigma": 0.2, "radii": [0.1], "max_samples": 5, "max_draws": 300, "seed": 0}
    changed = settings | {"sigma": {"sigma": 0.3}, "seed": {"seed": 1}, "radii": {"radii": [0.2]}}.get(change, {})
    module, other = crmt(), crmt(seed=1 if change == "weights" else 0)
    for each in (module, other):
        each.register_buffer("shift", torch.zeros(1))
    if change == "buffer":
        other.shift += 1
    callback = SmoothedRobustness(folder=tmp_path / "kept", **settings)
    test(make_trainer, callback, module, batches()[0])
    numbers = test(
        make_trainer,
        SmoothedRobustness(folder=tmp_path / "kept", **changed),
        other,
        batches(seed=1 if change == "inputs" else 0)[0],
    )
    (file,) = (tmp_path / "kept").iterdir()
    assert len([line for line in file.read_text().splitlines() if line]) == 10
    fresh = SmoothedRobustness(**changed)
    assert numbers == test(make_trainer, fresh, other, batches(seed=1 if change == "inputs" else 0)[0])


def test_the_bar_counts_parts_and_is_full_at_the_end(make_trainer):
    class Counted(SmoothedRobustness):
        updates = 0

        def _shown_bar(self, trainer):
            def update():
                self.updates += 1

            return SimpleNamespace(update=update)

    for batch_size, batch_count in ((24, 1), (10, 3), (1, 24)):
        callback = Counted(0.2, [0.1], max_draws=64, max_samples=None)
        test(make_trainer, callback, crmt(), batches(batch_size=batch_size)[0])
        assert callback.updates == batch_count * callback.parts


@pytest.mark.parametrize(
    ("written", "sigma"),
    [
        ("0.25", 0.25),
        ("{audio: 0.5, image: 0}", {"audio": 0.5, "image": 0}),
        (
            "{image: 0.25, text: {class_path: Ablation, init_args: {keep: 0.2, mask_token: 0}}}",
            {"image": 0.25, "text": Ablation(0.2, 0)},
        ),
        ("{text: {keep: 0.2, mask_token: 0}}", {"text": Ablation(0.2, 0)}),
    ],
)
def test_noise_from_yaml(written, sigma, tmp_path):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(SmoothedRobustness, "callback")
    parser.add_argument("--config", action="config")
    (tmp_path / "c.yaml").write_text(
        f"callback:\n  class_path: SmoothedRobustness\n  init_args:\n    sigma: {written}\n"
        "    radii: [0.1]\n    budgets: [{audio: 0.1, image: 1}]\n    folder: kept\n"
    )
    config = parser.parse_args(["--config", str(tmp_path / "c.yaml")])
    callback = parser.instantiate_classes(config).callback
    assert callback.sigma == sigma
    assert (callback.radii, callback.budgets) == ([0.1], [{"audio": 0.1, "image": 1}])


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"sigma": 0.0}, ValueError, "`sigma` must be at least 0 and finite, and above 0"),
        ({"radii": [-1.0]}, ValueError, "`radii` must be at least 0"),
        ({"alpha": 0.5}, ValueError, "`alpha` must be above 0 and at most"),
        ({"budgets": [{"a": -1}]}, ValueError, "`budgets` must map names"),
        ({"missing": "a"}, TypeError, "`missing` must be a sequence of names, got the string 'a'"),
        ({"batch_size": 10}, ValueError, "`batch_size` must be at least 64"),
        ({"max_samples": 0}, ValueError, "`max_samples` must be at least 1"),
    ],
)
def test_settings_that_are_none_are_refused_at_once(settings, error, message):
    with pytest.raises(error, match=message):
        SmoothedRobustness(**({"sigma": 0.1} | settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma": {"c": 0.1}}, r"`sigma` must name modalities among \['a', 'b'\], got \['c'\]"),
        ({"sigma": 0.1, "budgets": [{"c": 0.1}]}, r"`budgets` must name modalities among"),
        ({"sigma": 0.1, "missing": ["c"]}, r"`missing` must name modalities among"),
    ],
)
def test_names_that_there_are_not_are_refused_before_training(settings, message, make_trainer):
    trainer = make_trainer(SmoothedRobustness(**settings))
    with pytest.raises(ValueError, match=message):
        trainer.fit(crmt(), batches()[0], batches()[0])
    assert trainer.global_step == 0


def test_labels_and_two_of_them_are_refused(make_trainer):
    loader, inputs, _ = batches()
    rows = [({name: value[i] for name, value in inputs.items()}, torch.tensor([1, 0, 1])) for i in range(24)]
    callback = SmoothedRobustness(0.1, [0.1], inputs=("a", "b"))
    with pytest.raises(TypeError, match=r"needs one class per sample.*`target` has shape \(10, 3\)"):
        test(make_trainer, callback, Foreign(), DataLoader(rows, 10))
    trainer = make_trainer(SmoothedRobustness(0.1), SmoothedRobustness(0.2))
    with pytest.raises(ValueError, match="must be one SmoothedRobustness"):
        trainer.test(crmt(), loader, verbose=False)


def test_the_sanity_check_is_quick_and_keeps_nothing(make_trainer, tmp_path):
    asked = []

    class Asked(SmoothedRobustness):
        def smoothed(self, model, max_draws=None):
            asked.append(max_draws)
            return super().smoothed(model, max_draws)

    callback = Asked(0.1, [0.1], max_draws=300, max_samples=5, folder=tmp_path / "kept")
    asked.clear()
    trainer = make_trainer(callback, max_epochs=1, num_sanity_val_steps=2)
    trainer.fit(crmt(), batches()[0], batches()[0])
    assert asked[:2] == [64, 64]
    assert set(asked[2:]) == {None}
    assert len([line for line in next((tmp_path / "kept").iterdir()).read_text().splitlines() if line]) == 5


def test_it_never_changes_training(make_trainer):
    ended = []
    for callbacks in ([], [SmoothedRobustness(0.2, [0.1], max_draws=200, missing=["a"])]):
        module = crmt(encoder=lambda size, *_: nn.Sequential(nn.Linear(size, 8), nn.BatchNorm1d(8), nn.Dropout(0.2)))
        torch.manual_seed(1)
        make_trainer(*callbacks, max_epochs=2).fit(module, batches()[0], batches(seed=1)[0])
        ended.append(module.state_dict())
    assert all(torch.equal(value, ended[1][name]) for name, value in ended[0].items())


def test_figures_of_the_curve_with_its_abstentions_and_of_budgets(make_trainer, tmp_path):
    budgets = [{"a": r, "b": s} for r in (0.0, 0.05) for s in (0.0, 0.1)]
    callback = SmoothedRobustness(1.0, [0.05, 0.1], budgets=budgets, **(SETTINGS | {"max_draws": 64}))
    trainer = make_trainer(callback, RobustnessFigures())
    trainer.test(crmt(), batches()[0], verbose=False)
    files = {path.name for path in (tmp_path / "figures").iterdir()}
    assert files == {"test_probably_certified_curve.png", "test_probably_certified_frontier_a_b.png"}
    numbers = read_keys(trainer.callback_metrics)
    figures = robustness_figures(numbers)
    (axes,) = figures["test/probably_certified_curve"].axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
    right, abstained = (numbers[Key("test", f"smoothed_{what}", "joint")] for what in ("accuracy", "abstained"))
    assert lines["all modalities together"][0] == [0.0, right]
    assert 0 < abstained < 1
    labels = axes.get_legend_handles_labels()[1]
    assert f"no answer: {abstained:.1%} of samples" in labels
    assert axes.get_ylabel() == "right, and probably certified to stay so"
    frontier = figures["test/probably_certified_frontier_a_b"].axes
    assert [axes.get_ylabel() for axes in frontier][1] == "right, and probably certified to stay so"


@pytest.mark.slow
def test_two_processes_certify_the_samples_that_one_does(tmp_path):
    for each in ("alone", "shared"):
        (tmp_path / each).mkdir()
    (alone,) = train("smoothed", tmp_path / "alone", batch_size=4)
    shared = train("smoothed", tmp_path / "shared", strategy="ddp", processes=2, batch_size=4)
    for case, (certified, numbers) in alone.items():
        places = sorted(certified)
        assert len(places) == min(int(case), SAMPLES)
        assert max(b - a for a, b in itertools.pairwise([-1, *places, SAMPLES])) <= 2 * -(-SAMPLES // len(places))
        parts = [rank[case][0] for rank in shared]
        assert sorted([*parts[0], *parts[1]]) == places
        assert parts[0] | parts[1] == certified
        for rank in shared:
            assert rank[case][1] == pytest.approx(numbers, rel=1e-6)
    assert len(list((tmp_path / "shared" / "kept").iterdir())) == 2
