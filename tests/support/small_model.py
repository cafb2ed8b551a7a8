# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""A small model of two or three modalities in double precision, and what a fit does to its gradients."""

import copy

import torch
from lightning.pytorch import Callback, seed_everything
from torch.utils.data import DataLoader

from lightning_crmt import CRMTModule, LinearFusion
from lightning_crmt.data import MultimodalDataset
from lightning_crmt.encoders import MLP

SIZES = {"a": 5, "b": 6, "c": 7}
CLASSES = 4


def model_of(names="ab", seed=0, lr=0.0, **settings):
    """Encoders without randomness; by default an optimizer that shows gradients and moves nothing."""
    seed_everything(seed, verbose=False)
    encoders = {name: MLP(SIZES[name], 8, (9,)) for name in names}
    settings = {"num_classes": CLASSES, "rho": 0.0, "head": LinearFusion} | settings
    settings.setdefault("optimizer", lambda groups: torch.optim.SGD(groups, lr))
    return CRMTModule(encoders, **settings).double()


def samples(names="ab", size=200, seed=0, batch_size=None):
    """Every sample of one loader in order, in one batch unless said otherwise."""
    generator = torch.Generator().manual_seed(seed)
    inputs = {n: torch.randn(size, SIZES[n], generator=generator, dtype=torch.double) for n in names}
    # The first modality says what the class is, so that it dominates after a few steps.
    target = (inputs["a"][:, :CLASSES]).argmax(dim=1)
    return DataLoader(MultimodalDataset(inputs, target), batch_size=batch_size or size)


def whole(loader):
    return loader.dataset.inputs, loader.dataset.target


class Gradients(Callback):
    """The gradients that each step was made with, by the names of the parameters."""

    def __init__(self):
        self.steps = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        parameters = pl_module.named_parameters()
        self.steps.append({name: p.grad.clone() for name, p in parameters if p.grad is not None})


class States(Callback):
    """The state of the module at the start of each epoch, and at the end."""

    def __init__(self):
        self.found = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.found.append(copy.deepcopy(pl_module.state_dict()))

    on_train_end = on_train_epoch_start


def assert_close(first, second, **tolerance):
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)
