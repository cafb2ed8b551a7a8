# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Small real fits, for all tests that need a Trainer."""

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torch import nn

from lightning_crmt import CRMTModule
from lightning_crmt.data import UCIMultiFeatures
from lightning_crmt.encoders import MLP

#: Holds no tests, and some of it needs extras.
collect_ignore = ["support", "typing"]


@pytest.fixture(autouse=True)
def one_thread():
    """The layers here are too small to share; and results do not depend on the number of cores."""
    torch.set_num_threads(1)


@pytest.fixture
def data():
    return UCIMultiFeatures(views=("fou", "mor"), batch_size=200)


@pytest.fixture
def make_model():
    """A factory of equal models: small encoders, one of them with BatchNorm and Dropout."""

    def make(seed=0, **settings):
        seed_everything(seed, verbose=False)
        normed = nn.Sequential(nn.Linear(76, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.1), nn.Linear(24, 16))
        settings = {"num_classes": 10, "rho": 0.3} | settings
        return CRMTModule({"fou": normed, "mor": MLP(6, 16)}, **settings)

    return make


@pytest.fixture
def make_trainer(tmp_path):
    """A factory of quiet trainers."""

    def make(*callbacks, **settings):
        quiet = {
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "num_sanity_val_steps": 0,
            "default_root_dir": tmp_path,
            "max_epochs": 3,
        }
        return Trainer(callbacks=list(callbacks), **(quiet | settings))

    return make
