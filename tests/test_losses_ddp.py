# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Methods that add losses end in two processes where they do in one. A script is run: real DDP cannot be in pytest."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from train_losses_in_processes import METHODS

from lightning_crmt.data import UCIMultiFeatures
from lightning_crmt.encoders import MLP

SCRIPT = Path(__file__).parent / "train_losses_in_processes.py"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What one process ended with, and what each of two did; all samples in one step, as the order is another."""
    folder = tmp_path_factory.mktemp("processes")
    for strategy, processes, batch_size in (("auto", 1, 1200), ("ddp", 2, 600)):
        command = [sys.executable, str(SCRIPT), strategy, str(processes), str(batch_size), str(folder)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, cwd=folder)
        assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1")]


@pytest.mark.parametrize("name", METHODS)
def test_processes_agree(name, found):
    _, first, second = (each[name] for each in found)
    assert all(value.equal(second[key]) for key, value in first.items())


def test_two_processes_end_where_one_does(found):
    one, first, _ = (each["losses"] for each in found)  # the memory draws other samples
    assert first.keys() == one.keys()
    assert {"prototypes.fou", "weights.joint", "weight_fou"} <= one.keys()
    assert first["weights.joint"] != 1 / 3
    for key, value in one.items():
        torch.testing.assert_close(first[key], value, rtol=1e-5, atol=1e-8, msg=lambda text, key=key: f"{key}: {text}")


def test_the_memory_has_samples_of_both_processes(found):
    state, data = found[1]["memory"], UCIMultiFeatures(views=("fou", "mor"))
    data.setup()
    # Both modalities at once: it is one sample in both.
    recalled, features = [], []
    for name, x in data.parts["train"].inputs.items():
        encoder, prefix = MLP(x.shape[1], 16).double(), f"model.encoders.{name}."
        encoder.load_state_dict({key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)})
        with torch.no_grad():
            features.append(encoder(x.double()))
        recalled.append(state[f"model.head.dictionary_{name}"])
    distance = torch.cdist(torch.cat(recalled, 1), torch.cat(features, 1))
    for place, row in enumerate(distance < 1e-6):
        assert row[place % 2 :: 2].any()  # each process reads every second sample
    assert len(torch.cat(recalled, 1).unique(dim=0)) == 25
