# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Methods that change gradients end in two processes where they do in one."""

import pytest
import torch
from support.processes import train
from support.scenarios.changed_gradients import METHODS
from support.small_model import assert_close

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """What one process ended with, and what each of two did: batches of 600, and of 300 in each process."""
    folder = tmp_path_factory.mktemp("processes")
    one = train("changed_gradients", folder, batch_size=600)
    return one + train("changed_gradients", folder, strategy="ddp", processes=2, batch_size=300)


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_end_where_one_does(name, saved):
    one, first, second = (each[name] for each in saved)
    assert_close(first["state"], second["state"], rtol=0, atol=0)
    assert_close(first["state"], one["state"], rtol=1e-6, atol=1e-8)
    for key, value in one["method"].items():
        assert first["method"][key] == second["method"][key]
        assert first["method"][key] == (value if key == "stopped" else pytest.approx(value)), key


@pytest.mark.parametrize("name", [name for name in METHODS if name != "none"])
def test_each_method_did_something(name, saved):
    """Or that its processes agree says nothing."""
    one = saved[0]
    plain, state = one["none"]["state"], one[name]["state"]
    assert any(not torch.allclose(state[key], value) for key, value in plain.items())
    assert name != "mses" or one[name]["method"]["stopped"]
