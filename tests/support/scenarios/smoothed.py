# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The smoothed classifier of a model, where processes share out its samples."""

import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from lightning_crmt import CRMTModule
from lightning_crmt.callbacks import SmoothedRobustness
from lightning_crmt.encoders import MLP

SAMPLES = 43


class Recorded(SmoothedRobustness):
    certified: dict

    def on_certified(self, certificate, target, samples):
        rows = zip(samples.places.tolist(), certificate.lower.tolist(), strict=True)
        self.certified = getattr(self, "certified", {}) | dict(rows)


def train(strategy, processes, batch_size, folder):
    torch.manual_seed(0)
    module = CRMTModule({"a": MLP(5, 8, (8,)), "b": MLP(3, 8, (8,))}, 3)
    samples = [({"a": torch.randn(5), "b": torch.randn(3)}, i % 3) for i in range(SAMPLES)]
    said = {}
    for count in (7, SAMPLES, 100):
        callback = Recorded(0.2, [0.1], max_draws=500, max_samples=count, missing=["b"], folder=folder / "kept")
        trainer = Trainer(
            accelerator="cpu", strategy=strategy, devices=processes, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, callbacks=[callback],
        )  # fmt: skip
        (numbers,) = trainer.test(module, DataLoader(samples, batch_size), verbose=False)
        said[str(count)] = (
            callback.certified,
            {key: value for key, value in numbers.items() if "smoothed" in key or "certified" in key},
        )
    return said
