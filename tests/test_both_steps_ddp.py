# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Two processes end both steps where one does."""

import pytest
import torch
from support.processes import train

from lightning_crmt import CRMTModule, estimate_lipschitz
from lightning_crmt.data import UCIMultiFeatures
from lightning_crmt.encoders import MLP

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def two(folder):
    """What each of two processes ended with."""
    return train("both_steps", folder, strategy="ddp", processes=2, batch_size=600)


@pytest.fixture(scope="module")
def one(folder):
    """What one process ended with."""
    (ended,) = train("both_steps", folder, batch_size=1200)
    return ended


def test_two_processes_end_where_one_does(two, one, folder):
    """With all samples in one step, the mean over two halves is the mean over the whole, up to rounding."""
    one, first, second = (each["given"] for each in (one, *two))
    for name, value in first["state"].items():
        assert torch.equal(value, second["state"][name]), name
        torch.testing.assert_close(value, one["state"][name], rtol=1e-3, atol=1e-4)
    for name, value in first["lipschitz"].items():
        assert torch.equal(value, second["lipschitz"][name])
        torch.testing.assert_close(value, one["lipschitz"][name], rtol=1e-4, atol=0)
    assert first["clip"] == second["clip"] == pytest.approx(one["clip"], rel=1e-3)
    assert first["metrics"] == second["metrics"] == pytest.approx(one["metrics"], abs=0.006)
    assert first["tested"] == second["tested"] == pytest.approx(one["tested"], abs=0.006)
    assert set(first["tested"]) == {f"test/robust_accuracy/fgm@{r}" for r in (0.05, 0.1)}
    drawn = {path.name for path in (folder / "2-given" / "figures").iterdir()}
    assert drawn == {"val_robust_curve.png", "test_robust_curve.png"}, "one process draws, none waits for it"


def test_step_two_of_two_processes_is_that_of_one(two, one):
    """From the same weights, with samples that are repeated to even out the processes, which count once."""
    one, first, second = (each["reweighted"] for each in (one, *two))
    assert torch.equal(one["target"], first["target"])
    assert len(first["target"]) == 2 * 1199
    for what in ("lipschitz", "state"):
        for name, value in first[what].items():
            assert torch.equal(value, second[what][name]), name
            torch.testing.assert_close(value, one[what][name], rtol=1e-6, atol=1e-6)


def test_constants_of_two_processes_are_those_of_all_the_data(two):
    """Whatever was trained: each process saw its half of the data, and the constants are the maximum over both."""
    first, second = (each["small"] for each in two)
    model = CRMTModule({"fou": MLP(76, 16), "mor": MLP(6, 16)}, num_classes=10)
    model.load_state_dict(first["after_step_1"])
    data = UCIMultiFeatures(views=("fou", "mor"))
    data.setup()
    tau = estimate_lipschitz(model, [data.parts["train"].inputs])
    for name, value in tau.values.items():
        torch.testing.assert_close(first["lipschitz"][name], value)
    for name, value in first["state"].items():
        assert torch.equal(value, second["state"][name]), name
        same = torch.equal(value, first["after_step_1"][name])
        assert same != name.startswith("head.raw_weights"), f"{name}: step 2 moves the weights and nothing else"
