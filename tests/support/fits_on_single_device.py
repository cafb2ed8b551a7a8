# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Fits and tests with every callback, on the CPU and on a device without double precision; prints what differs."""

import contextlib
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import pytest
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils.data import DataLoader

import support.single_device  # noqa: F401  before anything asks torch for its devices
from lightning_crmt import CRMTModule, LinearFusion, attacks, estimate_lipschitz
from lightning_crmt.attacks import Budget, distance_by, surviving
from lightning_crmt.certification import CertificateViolation, evaluation, verify_certificate
from lightning_crmt.data import MultimodalDataset
from lightning_crmt.encoders import MLP, LipschitzMLP
from lightning_crmt.methods import GradientModulation
from lightning_crmt.metrics import CertifiedAccuracy, MeanEstimatedRadius
from support.every_callback import MAKE, head_for

SIZES = {"fou": 7, "mor": 6}
ATTACKS = {
    "fgm": attacks.FGM(Budget(0.5)),
    "momentum": attacks.PGD(Budget(0.5), steps=4, momentum=0.5),
    "linf": attacks.PGD(Budget(0.1, norm="linf"), steps=2, restarts=2),
    "box": attacks.PGD(Budget(0.5, box={"fou": (-9.0, 0.5)}), steps=2),
    "by-modality": attacks.LossAscent(Budget({"fou": 0.1, "mor": 0.2}), steps=3),
    "apgd": attacks.APGD(Budget(0.5), steps=6),
    "noise": attacks.RandomNoise(Budget(0.5)),
    "search": attacks.RandomSearch(Budget(0.5), steps=8),
    "missing": attacks.MissingModality(),
}
CALLBACKS = {
    **MAKE,
    # torch has no generator for a device that is written in Python.
    "GradientModulation": lambda: GradientModulation(noise=False),
}


class Device(CPUAccelerator):
    def setup_device(self, device):
        """Any will do."""


class Where(Callback):
    def on_train_start(self, trainer, pl_module):
        self.device = pl_module.device.type


def loader(size, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = {name: torch.randn(size, count, generator=generator).clamp(max=0.5) for name, count in SIZES.items()}
    return DataLoader(MultimodalDataset(inputs, torch.randint(0, 10, (size,), generator=generator)), batch_size=16)


def fit(name, device):
    seed_everything(0, verbose=False)
    module = CRMTModule(
        {modality: MLP(size, 16) for modality, size in SIZES.items()}, 10, head=head_for(name),
        optimizer=lambda groups: torch.optim.AdamW(groups, 0.01, foreach=False),
    )  # fmt: skip
    trainer = Trainer(
        strategy=SingleDeviceStrategy(device=torch.device(device), accelerator=Device()), max_epochs=1,
        callbacks=[CALLBACKS[name](), where := Where()], num_sanity_val_steps=0, inference_mode=False,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, loader(48, 0), loader(20, 1))
    assert where.device == device
    (numbers,) = trainer.test(module, loader(20, 1), verbose=False)
    return numbers | {key: float(value.detach().double().norm()) for key, value in module.state_dict().items()}


def measured(device):
    """What is measured outside of a fit: metrics, distances, certificates and whether these hold."""
    seed_everything(0, verbose=False)
    module = CRMTModule({name: LipschitzMLP(size, 16) for name, size in SIZES.items()}, 3, head=LinearFusion)
    inputs = {name: each.to(device) for name, each in next(iter(loader(12, 2)))[0].items()}
    module.to(device)
    target = module(inputs).logits.argmax(dim=1)
    certificate = module.certify(inputs)
    estimated = module.certify(inputs, estimate_lipschitz(module, [inputs]))
    checked = [verify_certificate(module, certificate, inputs, probes=2, steps=3, products=0)]
    with contextlib.suppress(CertificateViolation):  # estimates may be too large
        checked.append(verify_certificate(module, estimated, inputs, probes=2, steps=3, products=0))
    wrong = replace(certificate, margins=100 * certificate.margins)
    with pytest.raises(CertificateViolation) as raised:
        verify_certificate(module, wrong, inputs, probes=2, steps=3, products=0)
    assert all(each.dtype is torch.float64 for each in raised.value.counterexample.perturbation.values())
    metric, mean = CertifiedAccuracy(radius=0.01).to(device), MeanEstimatedRadius().to(device)
    metric.update(certificate, target.to(certificate.prediction.device))
    mean.update(estimated, target)
    mean.reset()
    mean.update(estimated, target)
    lengths = {}
    for size in (1e-30, 1.0, 1e30):  # the squares of the first and the last are 0 and infinite in single precision
        steepest = Budget(0.5, box={"fou": (-9.0, 0.5)}).steepest(
            {name: size * each for name, each in inputs.items()}, inputs
        )
        lengths[f"steepest {size}"] = float(Budget(0.5).size(steepest).max())
    distances = distance_by(attacks.MinimumNorm(Budget(0.5), steps=4), module, inputs, target)
    everything = torch.ones_like(target, dtype=torch.bool)
    survived = {
        name: int(surviving(attack, module, inputs, target, [1.0], everything)[0].sum())
        for name, attack in ATTACKS.items()
    }
    assert (certificate.prediction.device.type, certificate.margins.dtype) == ("cpu", torch.float64)
    return (
        survived
        | lengths
        | {
            "certified": float(certificate.radius().mean()),
            "probes": sum(checked[0].probes.values()),
            "CertifiedAccuracy": float(metric.compute()),
            "MeanEstimatedRadius": float(mean.compute()),
            "distance": float(distances.mean()),
            "mean inputs": float(attacks.mean_inputs([inputs])["fou"].sum()),
        }
    )


def main(names):
    """One line per callback, and one of what is measured outside of a fit: on the CPU, and on the device."""
    torch.set_num_threads(1)
    evaluation.examine = lambda encoders, head: None  # it takes no tensors of other types, as those here are
    for name in names:
        run = partial(fit, name) if name in CALLBACKS else measured
        sys.stdout.write(json.dumps([name, run("cpu"), run("single")]) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
