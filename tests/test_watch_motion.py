# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
import math
import re
import sys

import numpy as np
import pytest
import torch

from lightning_crmt import cli
from lightning_crmt.data import WatchMotion
from lightning_crmt.data.read.installed import installed_file

try:
    FILE = installed_file("seglearn", "data/watch_dataset.npy")
except FileNotFoundError:
    pytest.skip("needs the extra data", allow_module_level=True)

CONTENT = np.load(FILE, allow_pickle=True).item()


def loaded(**settings):
    data = WatchMotion(**settings)
    data.setup()
    return data


def test_subjects_and_recordings_are_in_one_part():
    data = loaded()
    subjects, recordings = (
        {name: set(of[windows[:, 0].numpy()].tolist()) for name, windows in data.windows.items()}
        for of in (CONTENT["subject"], np.arange(140))
    )
    assert subjects == {"train": {1, 2, 3, 4, 5}, "val": {6, 7}, "test": {8, 9, 10}}
    assert sorted(len(rows) for rows in recordings.values()) == [28, 42, 70]
    assert len(set.union(*recordings.values())) == 140


def test_windows_are_pieces_of_one_recording():
    """Each window again, cut out by hand; standardised by moments over all training windows."""
    data = loaded(window=2.5, step=0.5, norm=4.0)
    columns = {"accelerometer": [0, 1, 2], "gyroscope": [3, 4, 5]}
    for modality, axes in columns.items():
        cut = {
            name: np.stack([CONTENT["X"][row][start : start + 125, axes].T for row, start in windows.tolist()])
            for name, windows in data.windows.items()
        }
        mean, deviation = (moment(cut["train"], axis=(0, 2), keepdims=True) for moment in (np.mean, np.std))
        for name, part in data.parts.items():
            expected = torch.from_numpy((cut[name] - mean) / deviation) * 4 / math.sqrt(375)
            assert part.inputs[modality].shape[1:] == data.shapes[modality] == (3, 125)
            assert (part.inputs[modality] - expected).abs().max() < 1e-4
    for name, part in data.parts.items():
        assert torch.equal(part.target, torch.from_numpy(CONTENT["y"])[data.windows[name][:, 0]])
        assert part.target.unique().tolist() == list(range(7))


def test_training_windows_overlap_and_others_do_not():
    for name, windows in loaded(window=2.0, step=0.5).windows.items():
        for row in windows[:, 0].unique().tolist():
            starts = windows[windows[:, 0] == row, 1]
            step = 25 if name == "train" else 100
            length = len(CONTENT["X"][row])
            assert starts.tolist() == list(range(0, length - 99, step)), (name, row)


def test_each_sensor_has_the_same_size_on_the_training_part():
    data = loaded()
    for value in data.parts["train"].inputs.values():
        assert value.double().flatten(1).square().sum(1).mean().sqrt() == pytest.approx(10, abs=1e-3)
        assert value.mean((0, 2)).abs().max() < 1e-4
        assert value.std((0, 2)) == pytest.approx(10 / math.sqrt(300), rel=1e-3)


def test_the_seed_changes_the_order_alone():
    one, other = loaded(seed=0), loaded(seed=1)
    assert torch.equal(one.parts["test"].inputs["gyroscope"], other.parts["test"].inputs["gyroscope"])
    first, again, second = (next(iter(data.train_dataloader()))[1] for data in (one, one, other))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_no_validation():
    data = loaded(validation_subjects=())
    assert list(data.parts) == ["train", "test"]
    assert data.val_dataloader() == []
    assert set(CONTENT["subject"][data.windows["train"][:, 0].numpy()]) == {1, 2, 3, 4, 5, 6, 7}


def test_one_sensor_has_the_samples_it_has_in_the_pair():
    data = loaded(modalities="gyroscope")
    assert list(data.shapes) == list(data.parts["val"].inputs) == ["gyroscope"]
    assert torch.equal(data.parts["val"].inputs["gyroscope"], loaded().parts["val"].inputs["gyroscope"])


def test_longest_window():
    assert loaded(window=18.94).shapes["gyroscope"] == (3, 947)
    with pytest.raises(ValueError, match=re.escape("`window` must be at most 18.94 seconds, the shortest recording, ")):
        loaded(window=18.96)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modalities": ("gyro",)}, "`modalities` must be different names among ['accelerometer', 'gyroscope'], got"),
        ({"modalities": ()}, "got ()"),
        (
            {"held_out_subjects": (0, 8)},
            "`held_out_subjects` must be different names among [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], got (0, 8)",
        ),
        (
            {"held_out_subjects": ()},
            "`held_out_subjects` must be different names among [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], got ()",
        ),
        ({"held_out_subjects": (8, 8)}, "got (8, 8)"),
        (
            {"validation_subjects": (0, 7)},
            "among [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], and leave one to train on, got [8, 9, 10] and [0, 7]",
        ),
        ({"held_out_subjects": (7, 8)}, "got [7, 8] and [6, 7]"),
        (
            {"held_out_subjects": (1, 2, 3, 4, 5, 8, 9, 10)},
            "leave one to train on, got [1, 2, 3, 4, 5, 8, 9, 10] and [6, 7]",
        ),
        ({"window": 0.0}, "`window` must be at least 0.02 seconds, a sample, got 0.0"),
        ({"window": math.nan}, "got nan"),
        ({"step": -1.0}, "`step` must be at least 0.02 seconds, a sample, got -1.0"),
        ({"norm": -1.0}, "`norm` must be above 0, got -1.0"),
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        WatchMotion(**settings)


def test_from_yaml(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lightning-crmt"])
    config = tmp_path / "run.yaml"
    config.write_text(
        f"""
model:
  class_path: CRMTModule
  init_args:
    num_classes: 7
    encoders:
      accelerometer: {{class_path: MLP, init_args: {{in_features: 150, out_features: 16, hidden: [8]}}}}
      gyroscope: {{class_path: MLP, init_args: {{in_features: 150, out_features: 16, hidden: [8]}}}}
    head: {{class_path: OrthogonalFusion}}
    optimizer: {{class_path: torch.optim.AdamW, init_args: {{lr: 1.0e-3}}}}
data:
  class_path: WatchMotion
  init_args:
    window: 1.0
    held_out_subjects: [1]
    validation_subjects: [2]
trainer:
  max_epochs: 1
  accelerator: cpu
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  default_root_dir: {tmp_path}
"""
    )
    cli.main(["fit", "--config", str(config)])


def test_one_subject_needs_no_list():
    assert WatchMotion(held_out_subjects=8).held_out_subjects == (8,)


def test_classes_are_those_of_the_file():
    spelt = {
        "PEN": "pendulum", "ABD": "abduction", "FEL": "forward elevation", "IR": "internal rotation",
        "ER": "external rotation", "TRAP": "trapezius extension", "ROW": "upright row",
    }  # fmt: skip
    content = np.load(installed_file("seglearn", "data/watch_dataset.npy"), allow_pickle=True).item()
    assert WatchMotion.classes == tuple(spelt[short] for short in content["y_labels"])
    assert WatchMotion.num_classes == len(WatchMotion.classes)
