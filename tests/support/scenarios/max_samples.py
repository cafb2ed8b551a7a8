# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Which samples are measured where processes share them out, and the numbers of these."""

import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from lightning_crmt import CRMTModule
from lightning_crmt.attacks import FGM, Budget
from lightning_crmt.callbacks import AdversarialRobustness, CertifiedRobustness
from lightning_crmt.encoders import LipschitzMLP

SAMPLES = 43


class Places(CertifiedRobustness):
    def on_certified(self, certificate, target, samples):
        self.places = [*getattr(self, "places", []), *samples.places.tolist()]
        assert len(target) == len(samples.places) == len(certificate.prediction)


class AttackedPlaces(AdversarialRobustness):
    def on_attacked(self, attacked):
        self.places = [*getattr(self, "places", []), *attacked.samples.places.tolist()]

    def on_measured(self, model, inputs, target):
        """Without the check of the attack, which takes longer than the attack."""


def made():
    torch.manual_seed(0)
    module = CRMTModule({"a": LipschitzMLP(5, 8, (8,)), "b": LipschitzMLP(3, 8, (8,))}, 3)
    return module, [({"a": torch.randn(5), "b": torch.randn(3)}, i % 3) for i in range(SAMPLES)]


def train(strategy, processes, batch_size, folder):
    module, samples = made()
    said = {}
    for count in (2, 7, 30, SAMPLES, 100):
        for level in ("sound", "estimated"):
            certified = Places([0.1], constants=level, max_samples=count)
            attacked = AttackedPlaces({"fgm": FGM(Budget(0.1))}, max_samples=count)
            trainer = Trainer(
                accelerator="cpu", strategy=strategy, devices=processes, logger=False, enable_checkpointing=False,
                enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
                callbacks=[certified, attacked],
            )  # fmt: skip
            (numbers,) = trainer.test(module, DataLoader(samples, batch_size), verbose=False)
            numbers = {key: value for key, value in numbers.items() if "certified" in key or "robust" in key}
            said[f"{count}, {level}"] = (certified.places, attacked.places, numbers)
    return said
