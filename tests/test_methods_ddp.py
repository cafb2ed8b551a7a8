# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Methods in two processes end where they do in one. Real DDP cannot run inside pytest, so a script is run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from three_modalities import assert_close
from train_methods_in_processes import METHODS

SCRIPT = Path(__file__).parent / "train_methods_in_processes.py"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What one process ended with, and what each of two did: batches of 600, and of 300 in each process."""
    folder = tmp_path_factory.mktemp("processes")
    for strategy, processes, batch_size in (("auto", 1, 600), ("ddp", 2, 300)):
        command = [sys.executable, str(SCRIPT), strategy, str(processes), str(batch_size), str(folder)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=folder)
        assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1")]


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_end_where_one_does(name, found):
    one, first, second = (each[name] for each in found)
    assert_close(first["state"], second["state"], rtol=0, atol=0)
    assert_close(first["state"], one["state"], rtol=1e-6, atol=1e-8)
    for key, value in one["method"].items():
        assert first["method"][key] == second["method"][key]
        assert first["method"][key] == (value if key == "stopped" else pytest.approx(value)), key


@pytest.mark.parametrize("name", [name for name in METHODS if name != "none"])
def test_each_method_did_something(name, found):
    """Or that its processes agree says nothing."""
    one = found[0]
    plain, state = one["none"]["state"], one[name]["state"]
    assert any(not torch.allclose(state[key], value) for key, value in plain.items())
    assert name != "mses" or one[name]["method"]["stopped"]
