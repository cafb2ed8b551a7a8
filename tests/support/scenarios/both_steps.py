# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Both steps with callbacks that observe and figures."""

import copy
from functools import partial

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch.utils.data import DataLoader, Subset

from lightning_crmt import CRMTModule
from lightning_crmt.attacks import FGM, PGD, Budget, MinimumNorm
from lightning_crmt.callbacks import (
    AdversarialRobustness,
    CertifiedRobustness,
    IntegrationReweighting,
    MissingModalities,
    RobustnessFigures,
)
from lightning_crmt.data import UCIMultiFeatures
from lightning_crmt.encoders import MLP


class AfterStepOne(Callback):
    """The weights that step 2 starts from; stands before it among the callbacks."""

    def on_train_batch_end(self, trainer, pl_module, *rest):
        self.state = copy.deepcopy(pl_module.state_dict())


def fit_and_test(strategy, processes, batch_size, folder):
    seed_everything(0)
    data = UCIMultiFeatures(views=("fou", "mor"), batch_size=batch_size)
    model = CRMTModule({"fou": MLP(76, 16), "mor": MLP(6, 16)}, num_classes=10, rho=0.3)
    step_2, step_1 = IntegrationReweighting(), AfterStepOne()
    attacks = {
        "pgd": PGD(Budget(0.1), steps=5),
        "near": MinimumNorm(Budget(1.0, modalities=["fou"]), steps=3, restarts=1),
    }
    trainer = Trainer(
        accelerator="cpu", strategy=strategy, devices=processes, max_epochs=4, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[
            step_1, step_2, CertifiedRobustness([0.1], constants="estimated"), MissingModalities(),
            AdversarialRobustness(attacks, every_n_epochs=20),
            AdversarialRobustness({"fgm": FGM(Budget(0.5))}, radii=[0.1, 0.2], every_n_epochs=20), RobustnessFigures(),
        ],
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    metrics = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("val/")}
    fitted = {
        "state": model.state_dict(),
        "after_step_1": step_1.state,
        "lipschitz": dict(step_2.lipschitz.values),
        "clip": step_2.reweighted.clip,
        "target": step_2.kept.target,
        "metrics": metrics,
    }
    trainer.test(model, datamodule=data, verbose=False)
    tested = {key: float(value) for key, value in trainer.callback_metrics.items() if "robust" in key and "fgm" in key}
    return fitted | {"tested": tested}


def reweight_alone(strategy, processes, folder):
    """Step 2 on given weights: a fit that moves nothing, with a last sample that the processes cannot share evenly."""
    seed_everything(3)
    data = UCIMultiFeatures(views=("fou", "mor"))
    data.setup()
    part = Subset(data.parts["train"], range(1199))
    still = partial(torch.optim.SGD, lr=0.0)
    model = CRMTModule({"fou": MLP(76, 16), "mor": MLP(6, 16)}, num_classes=10, rho=0.3, optimizer=still)
    # With scores of untrained encoders step 2 is chaotic: the last bit of a constant changes weights by a hundredth.
    everything, trained = data.parts["train"], torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(20):
        trained.zero_grad()
        model.crmt_loss(model(everything.inputs), everything.target).backward()
        trained.step()
    step_2 = IntegrationReweighting(passes=2)
    Trainer(
        accelerator="cpu", strategy=strategy, devices=processes, max_epochs=1, logger=False, callbacks=[step_2],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    ).fit(model, DataLoader(part, batch_size=100, shuffle=True), data.val_dataloader())  # fmt: skip
    return {"state": model.state_dict(), "lipschitz": dict(step_2.lipschitz.values), "target": step_2.kept.target}


def train(strategy, processes, batch_size, folder):
    """With the batch size given; with several processes, which take long to start, with small batches as well."""
    sizes = {"given": batch_size} if processes == 1 else {"given": batch_size, "small": 64}
    return {
        name: fit_and_test(strategy, processes, size, folder / f"{processes}-{name}") for name, size in sizes.items()
    } | {"reweighted": reweight_alone(strategy, processes, folder)}
