# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Methods that add losses end in two processes where they do in one."""

import pytest
import torch
from support.processes import train
from support.scenarios.added_losses import METHODS

from lightning_crmt.data import UCIMultiFeatures
from lightning_crmt.encoders import MLP

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """What one process ended with, and what each of two did; all samples in one step, as the order is another."""
    folder = tmp_path_factory.mktemp("processes")
    one = train("added_losses", folder, batch_size=1200)
    return one + train("added_losses", folder, strategy="ddp", processes=2, batch_size=600)


@pytest.mark.parametrize("name", METHODS)
def test_processes_agree(name, saved):
    _, first, second = (each[name] for each in saved)
    assert all(value.equal(second[key]) for key, value in first.items())


def test_two_processes_end_where_one_does(saved):
    one, first, _ = (each["losses"] for each in saved)  # the memory draws other samples
    assert first.keys() == one.keys()
    assert {"prototypes.fou", "weights.joint", "weight_fou"} <= one.keys()
    assert first["weights.joint"] != 1 / 3
    for key, value in one.items():
        torch.testing.assert_close(first[key], value, rtol=1e-5, atol=1e-8, msg=lambda text, key=key: f"{key}: {text}")


def test_the_memory_has_samples_of_both_processes(saved):
    state, data = saved[1]["memory"], UCIMultiFeatures(views=("fou", "mor"))
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
