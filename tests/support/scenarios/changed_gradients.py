# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Each method that changes gradients, rates or weights, alone."""

import torch
from lightning.pytorch import Trainer, seed_everything

from lightning_crmt import CRMTModule
from lightning_crmt.data import UCIMultiFeatures
from lightning_crmt.encoders import MLP
from lightning_crmt.methods import (
    AdaptiveGradientModulation,
    GradientModulation,
    ModalityEarlyStopping,
    ModalitySpecificRates,
    ParetoGradients,
    Relearning,
)

METHODS = {
    "none": lambda: None,
    "ogm_ge": lambda: GradientModulation(alpha=0.4, noise=True),
    "agm": AdaptiveGradientModulation,
    "agm_at_once": AdaptiveGradientModulation,  # without accumulation its factors are known before the gradients
    "pareto": ParetoGradients,
    "mslr": lambda: ModalitySpecificRates(rates=0.5, window=1),
    "mses": lambda: ModalityEarlyStopping(patience=0, smoothing=0.0),
    "relearning": lambda: Relearning(epochs=(2, 3)),
}


def train_with(name, strategy, processes, batch_size):
    seed_everything(0, verbose=False)
    # Every step sees all samples: their order differs with the number of processes.
    accumulated = 1 if name == "agm_at_once" else 2
    data = UCIMultiFeatures(views=("fou", "mor"), batch_size=2 * batch_size // accumulated)
    # A rate that makes the validation losses go up and down, so that modalities stop.
    model = CRMTModule(
        {"fou": MLP(76, 16), "mor": MLP(6, 16)}, 10, rho=0.0, optimizer=lambda groups: torch.optim.SGD(groups, 2.0)
    ).double()
    method = METHODS[name]()
    trainer = Trainer(
        accelerator="cpu", strategy=strategy, devices=processes, max_epochs=6, precision="64-true", logger=False,
        accumulate_grad_batches=accumulated, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        callbacks=[] if method is None else [method],
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    known = {key: getattr(method, key) for key in ("coefficients", "trends", "stopped") if hasattr(method, key)}
    shares = {key: dict(getattr(method, key)) for key in ("shares", "weights") if hasattr(method, key)}
    if name == "mses":
        known["best_losses"] = method.state_dict()["best_losses"]
    return {"state": model.state_dict(), "method": known | shares}


def train(strategy, processes, batch_size, folder):
    return {name: train_with(name, strategy, processes, batch_size) for name in METHODS}
