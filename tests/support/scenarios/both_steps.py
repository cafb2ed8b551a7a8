# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Both steps with callbacks that observe and figures."""

import copy

from lightning.pytorch import Callback, Trainer, seed_everything

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


class AtTheSwitch(Callback):
    """The weights that step 2 starts from."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 4:
            self.state = copy.deepcopy(pl_module.state_dict())


def fit_and_test(strategy, processes, batch_size, folder):
    seed_everything(0)
    data = UCIMultiFeatures(views=("fou", "mor"), batch_size=batch_size)
    model = CRMTModule({"fou": MLP(76, 16), "mor": MLP(6, 16)}, num_classes=10, rho=0.3)
    step_2, switch = IntegrationReweighting(last_epochs=4), AtTheSwitch()
    attacks = {
        "pgd": PGD(Budget(0.1), steps=5),
        "near": MinimumNorm(Budget(1.0, modalities=["fou"]), steps=3, restarts=1),
    }
    trainer = Trainer(
        accelerator="cpu", strategy=strategy, devices=processes, max_epochs=8, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[
            switch, step_2, CertifiedRobustness([0.1], constants="estimated"), MissingModalities(),
            AdversarialRobustness(attacks, every_n_epochs=20),
            AdversarialRobustness({"fgm": FGM(Budget(0.5))}, radii=[0.1, 0.2], every_n_epochs=20), RobustnessFigures(),
        ],
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    metrics = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("val/")}
    fitted = {
        "state": model.state_dict(),
        "at_switch": switch.state,
        "lipschitz": dict(step_2.lipschitz.values),
        "clip": step_2.state_dict()["clip"],
        "metrics": metrics,
    }
    trainer.test(model, datamodule=data, verbose=False)
    tested = {key: float(value) for key, value in trainer.callback_metrics.items() if "robust" in key and "fgm" in key}
    return fitted | {"tested": tested}


def train(strategy, processes, batch_size, folder):
    """With the batch size given; with several processes, which take long to start, with small batches as well."""
    sizes = {"given": batch_size} if processes == 1 else {"given": batch_size, "small": 64}
    return {
        name: fit_and_test(strategy, processes, size, folder / f"{processes}-{name}") for name, size in sizes.items()
    }
