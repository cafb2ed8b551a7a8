# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Each method that adds losses."""

from functools import partial

import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from lightning_crmt import CRMTModule, LinearFusion
from lightning_crmt.data import UCIMultiFeatures
from lightning_crmt.encoders import MLP
from lightning_crmt.fusion import MemoryFusion
from lightning_crmt.methods import (
    FeatureMemory,
    GradientBlending,
    MinimalSimilarity,
    PrototypicalRebalancing,
    TeacherFeatures,
    UnimodalLosses,
    VulnerabilityPenalty,
)


class Seed(Callback):
    """Heads are made in ``setup``, after what the strategies draw at their start."""

    def setup(self, trainer, pl_module, stage):
        torch.manual_seed(0)


METHODS = {
    "losses": lambda: [
        UnimodalLosses(),
        GradientBlending(super_epoch=1),
        PrototypicalRebalancing(entropy_weight=0.1),
        MinimalSimilarity(),
        VulnerabilityPenalty(),
        TeacherFeatures({"mor": MLP(6, 16)}, weight=0.1),
    ],
    "memory": lambda: [FeatureMemory(start_epoch=1)],
}


def train_with(name, strategy, processes, batch_size):
    seed_everything(0, verbose=False)
    data = UCIMultiFeatures(views=("fou", "mor"), batch_size=batch_size)
    model = CRMTModule(
        {"fou": MLP(76, 16), "mor": MLP(6, 16)},
        num_classes=10,
        rho=0.0,
        head=partial(MemoryFusion, atoms=25, steps=100) if name == "memory" else LinearFusion,
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.5),
    )
    methods = METHODS[name]()
    trainer = Trainer(
        accelerator="cpu", strategy=strategy, devices=processes, max_epochs=3, precision="64-true", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        callbacks=[Seed(), *methods],
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    for method in methods:
        if isinstance(method, PrototypicalRebalancing):
            state |= {f"prototypes.{key}": each.means for key, each in method.prototypes.items()}
        if isinstance(method, GradientBlending):
            state |= {f"weights.{key}": torch.tensor(value) for key, value in method.weights.items()}
            state |= method.readout.state_dict()
    return state


def train(strategy, processes, batch_size, folder):
    return {name: train_with(name, strategy, processes, batch_size) for name in METHODS}
