# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Every method is chosen from YAML by the name of its class, checked there, and trains."""

import inspect
import sys

import pytest
import yaml

from lightning_crmt import methods
from lightning_crmt.cli import main
from lightning_crmt.methods import Method

#: What those need that have arguments without default.
NEEDED = {
    "AdversarialTraining": {
        "attack": {
            "class_path": "PGD",
            "init_args": {"budget": {"class_path": "Budget", "init_args": {"radius": 0.1}}, "steps": 1},
        }
    },
    "GaussianNoise": {"sigma": 0.2},
    "NoiseConsistency": {"sigma": 0.2},
    "TokenAblation": {"keep": 0.5, "mask_token": 0},
    "TeacherFeatures": {
        "teachers": {"mor": {"class_path": "MLP", "init_args": {"in_features": 6, "out_features": 16}}},
    },
}

#: Settings beyond the defaults whose types YAML must get right.
MORE = {
    "UnimodalLosses": [{"weight": {"fou": 0.5, "mor": 1.0}, "heads": "own"}],
    "GradientBlending": [{"weights": {"fou": 0.2, "mor": 0.3, "joint": 0.5}, "super_epoch": None}, {"super_epoch": 1}],
    "PrototypicalRebalancing": [{"weight": 0.5, "entropy_weight": 0.1, "entropy_epochs": 2, "momentum": 0.5}],
    "FeatureMemory": [{"start_epoch": 0, "seed": 3}],
    "MinimalSimilarity": [{"weight": 0.5}],
    "VulnerabilityPenalty": [{"weight": 0.1, "encoders": False}],
    "GaussianNoise": [{"sigma": {"fou": 0.2}}],
    "NoiseConsistency": [{"sigma": {"fou": 0.2, "mor": 0}, "copies": 3, "weight": 5, "entropy_weight": 0.1}],
    "ModalityDropout": [{"probability": {"fou": 0.1, "mor": 0.5}}],
}

#: A misspelt or wrong setting, and a word of the answer.
WRONG = {
    "UnimodalLosses": ({"heads": "mine"}, "heads"),
    "GradientBlending": ({"super_epoch": "often"}, "super_epoch"),
    "PrototypicalRebalancing": ({"momentun": 0.5}, "momentun"),
    "FeatureMemory": ({"start_epoch": 0.5}, "start_epoch"),
    "MinimalSimilarity": ({"weight": "much"}, "weight"),
    "GaussianNoise": ({"sigma": {"fou": "much"}}, "sigma"),
    "NoiseConsistency": ({"copies": 1.5}, "copies"),
    "TeacherFeatures": ({"checkpoints": ["a.ckpt"]}, "checkpoints"),
    "VulnerabilityPenalty": ({"encoders": "some"}, "encoders"),
}

ALL = [name for name in methods.__all__ if inspect.isclass(getattr(methods, name)) and name != "Method"]
CASES = [(name, NEEDED.get(name, {})) for name in ALL] + [(name, more) for name in MORE for more in MORE[name]]


def config(name, settings, folder, head="LinearFusion", of_head=None):
    encoders = {
        view: {"class_path": "MLP", "init_args": {"in_features": size, "out_features": 16}}
        for view, size in (("fou", 76), ("mor", 6))
    }
    head = {"class_path": head, "init_args": of_head or {}}
    if name == "FeatureMemory":
        head = {"class_path": "MemoryFusion", "init_args": {"atoms": 20, "steps": 20, "head": head}}
    path = folder / "run.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "model": {
                    "class_path": "CRMTModule",
                    "init_args": {"num_classes": 10, "encoders": encoders, "head": head},
                },
                "data": {"class_path": "UCIMultiFeatures", "init_args": {"views": ["fou", "mor"], "batch_size": 200}},
                "trainer": {
                    "accelerator": "cpu",
                    "logger": False,
                    "enable_checkpointing": False,
                    "enable_progress_bar": False,
                    "enable_model_summary": False,
                    "fast_dev_run": 1,
                    "callbacks": [{"class_path": name, "init_args": settings}],
                },
            }
        )
    )
    return ["fit", "--config", str(path)]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-crmt"])


def test_all_are_methods():
    assert all(issubclass(getattr(methods, name), Method) for name in ALL)
    assert set(MORE) | set(WRONG) | set(NEEDED) <= set(ALL)


@pytest.mark.parametrize(("name", "settings"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_it_trains_from_yaml(name, settings, tmp_path):
    main(config(name, settings, tmp_path))


@pytest.mark.parametrize(
    ("head", "settings"),
    [
        ("CosineFusion", {"scale": 15.0}),
        ("MemoryFusion", {"atoms": 10, "blend": 0.6, "head": {"class_path": "OrthogonalFusion"}}),
    ],
)
def test_a_head_trains_from_yaml(head, settings, tmp_path):
    main(config("UnimodalLosses", {}, tmp_path, head, settings))


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_setting_is_named(name, tmp_path, capsys):
    settings, word = WRONG[name]
    with pytest.raises(SystemExit) as stop:
        main(config(name, NEEDED.get(name, {}) | settings, tmp_path))
    assert stop.value.code == 2
    assert word in capsys.readouterr().err
