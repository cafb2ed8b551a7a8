# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What users write, as strict type checkers want it: tests/test_typing.py checks it against the installed wheel."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from typing_extensions import assert_type, override

from lightning_crmt import (
    Certificate,
    CRMTMixin,
    CRMTModule,
    FusionOutput,
    Inputs,
    LinearFusion,
    LipschitzConstants,
    OrthogonalFusion,
    SmoothedCertificate,
    SmoothedClassifier,
    Soundness,
    certify,
    encoder_bounds,
    estimate_lipschitz,
    integration_objective,
    lipschitz_bound,
    lipschitz_rule,
    margin_regularization,
    verify_certificate,
)
from lightning_crmt.attacks import PGD, Attack, Budget, Ensemble, MissingModality, Model, strongest, suspicions
from lightning_crmt.callbacks import (
    AdversarialRobustness,
    Attacked,
    CertifiedRobustness,
    IntegrationReweighting,
    Measurement,
    MissingModalities,
    Observer,
    RadiusTraining,
    Samples,
)
from lightning_crmt.cli import CRMTCLI, main
from lightning_crmt.data import ArrayData, MultimodalDataModule, MultimodalDataset, UCIMultiFeatures
from lightning_crmt.encoders import MLP, LipschitzMLP
from lightning_crmt.evaluation import Key
from lightning_crmt.fusion import FusionHead
from lightning_crmt.lipschitz import Place
from lightning_crmt.methods import AdversarialTraining, Method, Mixup
from lightning_crmt.metrics import CertifiedAccuracy, RobustAccuracy
from lightning_crmt.report import Run, find_runs, save_run, write_report
from lightning_crmt.training import NamedModel

# --- modules


class Digits(CRMTModule):
    """Door one, with an optimizer of its own and batches of another form."""

    def __init__(self, width: int = 8) -> None:
        super().__init__({"audio": MLP(20, width), "image": MLP(30, width)}, num_classes=3, rho=0.3)

    @override
    def split_batch(self, batch: Any) -> tuple[Inputs, Tensor]:
        inputs, target = super().split_batch(batch)
        return {name: inputs[name] for name in ("audio", "image")}, target

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, target = self.training_batch(batch)
        output = self(inputs)
        assert_type(output, FusionOutput)
        assert_type(output.scores["audio"], Tensor)
        return self.crmt_loss(output, target) + 1e-3 * output.logits.square().mean()

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Mine(CRMTMixin, LightningModule):
    """A LightningModule of one's own."""

    def __init__(self, head: type[FusionHead] = OrthogonalFusion) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({"audio": MLP(20, 8), "image": MLP(30, 8)})
        self.head = head({"audio": 8, "image": 8}, num_classes=3)
        self.rho = 0.5

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())


class Doubled(nn.Module):
    """A layer of one's own."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


@lipschitz_rule(Doubled)
def bound_of_doubled(layer: Doubled, place: Place) -> float:
    return 2.0


# --- attacks, methods, callbacks


@dataclass(frozen=True)
class Backwards(Attack):
    """An attack of one's own."""

    times: int = 1

    @override
    def __call__(self, model: Model, inputs: Inputs, target: Tensor) -> dict[str, Tensor]:
        return {name: value.flip(1) if self.times % 2 else value for name, value in inputs.items()}


class SmallLogits(Method):
    """A training method of one's own."""

    source = "recalled"
    saved: ClassVar[tuple[str, ...]] = ("seen",)

    def __init__(self, weight: float) -> None:
        self.weight, self.seen = weight, 0

    @override
    def term(self, module: CRMTMixin, output: FusionOutput, target: Any) -> Tensor:
        self.seen += 1
        return self.weight * output.logits.square().mean()


class KeptRadii(CertifiedRobustness):
    """What is measured of each sample."""

    def __init__(self, **settings: Any) -> None:
        super().__init__([0.1], **settings)
        self.kept: list[Tensor] = []

    @override
    def on_certified(self, certificate: Certificate, target: Tensor, samples: Samples) -> None:
        self.kept.append(certificate.radius())


class KeptAttacks(AdversarialRobustness):
    @override
    def on_attacked(self, attacked: Attacked) -> None:
        assert_type(attacked.samples.places, Tensor)


class Confidence(Observer):
    """An observer of one's own."""

    @override
    def measurement(self, model: NamedModel) -> Measurement:
        return MeanConfidence(model)


class MeanConfidence(Measurement):
    def __init__(self, model: NamedModel) -> None:
        super().__init__()
        self.model = model

    @override
    def update(self, inputs: dict[str, Tensor], target: Tensor) -> None:
        logits = self.model(inputs).logits
        self.means.add({Key("", "confidence", "joint"): logits.softmax(1).amax(1)})


# --- data


def samples(n: int = 24) -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = {name: torch.randn(n, size, generator=generator) for name, size in {"audio": 20, "image": 30}.items()}
    return inputs, torch.arange(n) % 3


class Drawn(MultimodalDataModule):
    """Data of one's own."""

    @override
    def load(self) -> dict[str, MultimodalDataset]:
        part = MultimodalDataset(*samples())
        return {"train": part, "val": part, "test": part}


def arrays() -> ArrayData:
    inputs, target = samples(60)
    return ArrayData({name: value.numpy() for name, value in inputs.items()}, target=target.numpy())


# --- using it


def plain_loop() -> None:
    """Losses, constants and certificates without Lightning."""
    inputs, target = samples()
    head = OrthogonalFusion({"audio": 8, "image": 8}, num_classes=3)
    encoders = nn.ModuleDict({"audio": MLP(20, 8), "image": MLP(30, 8)})

    def model(given: Mapping[str, Tensor]) -> FusionOutput:
        return head({name: encoder(given[name]) for name, encoder in encoders.items()})

    output = model(inputs)
    assert_type(output, FusionOutput)
    loss = nn.functional.cross_entropy(output.logits, target) + 0.5 * margin_regularization(output.scores, target)
    assert_type(loss, Tensor)
    constants = estimate_lipschitz(Mine(), [inputs])
    assert_type(constants, LipschitzConstants)
    assert_type(integration_objective(output, target, head, constants, clip=1.0), Tensor)
    certificate = certify(output, head, constants)
    assert_type(certificate, Certificate)
    assert_type(certificate.soundness, Soundness)
    assert_type(certificate.radius(["audio"]), Tensor)
    assert_type(certificate.tolerates({"audio": 0.1, "image": 0.3}), Tensor)
    assert_type(lipschitz_bound(nn.Sequential(nn.Linear(2, 2), Doubled())), float)


def certificates() -> None:
    """Bounds, attacks on them, and smoothing."""
    inputs, target = samples()
    encoders = {"audio": LipschitzMLP(20, 8), "image": LipschitzMLP(30, 8)}
    model = CRMTModule(encoders, num_classes=3, head=LinearFusion).eval()
    assert_type(encoder_bounds(model.encoders), LipschitzConstants)
    certificate = model.certify(inputs, level="sound")
    assert_type(certificate, Certificate)
    verify_certificate(model, certificate, inputs)
    smoothed = SmoothedClassifier(model, sigma={"audio": 0.5, "image": 0.5}, max_draws=500)
    assert_type(smoothed.predict(inputs), Tensor)
    assert_type(smoothed.certify(inputs, radii=[0.1]), SmoothedCertificate)

    attack = PGD(Budget({"audio": 0.1, "image": 0.3}), steps=2)
    moved = attack(model, inputs, target)
    assert_type(moved, dict[str, Tensor])
    assert_type(attack.scaled(2.0), PGD)
    assert_type(suspicions(attack, model, inputs, target), list[str])
    both: Attack = Ensemble([attack, attack.scaled(1.0)])
    both(lambda given: given["audio"] @ torch.ones(20, 3), inputs, target)
    robust = RobustAccuracy()
    robust.update(model(inputs).logits, target, attack.logits(model, inputs, target))
    certified = CertifiedAccuracy(0.1)
    certified.update(certificate, target)
    assert_type(strongest(Budget(0.1)), Ensemble)


def fits() -> None:
    """All callbacks in Trainers, and what is left behind."""
    with tempfile.TemporaryDirectory() as folder:
        radii = KeptRadii(constants="estimated")
        callbacks = [
            IntegrationReweighting(epochs=1),
            radii,
            KeptAttacks({"pgd": PGD(Budget(0.1), steps=1), "gone": MissingModality(), "mine": Backwards()}),
            MissingModalities(),
            Confidence(),
            SmallLogits(0.1),
            AdversarialTraining(PGD(Budget(0.1), steps=1)),
            Mixup(),
        ]
        trainer = quiet(folder, *callbacks)
        module = Digits()
        trainer.fit(module, datamodule=Drawn(batch_size=8))
        numbers = dict(trainer.callback_metrics)
        assert_type(radii.kept[0], Tensor)
        runs = [Run("mine", "drawn", 0, {key: float(value) for key, value in numbers.items()})]
        save_run(runs[0], Path(folder) / "run")
        assert_type(find_runs(folder), list[Run])
        write_report([*runs, Run("other", "drawn", 0, runs[0].numbers)], Path(folder) / "report")

        part = UCIMultiFeatures().parts["test"]
        assert_type(part, MultimodalDataset)
        assert_type(part[:4], tuple[dict[str, Tensor], Tensor])
        raw = {"audio": torch.zeros(1, 20), "image": torch.zeros(1, 30)}
        assert_type(arrays().prepared(raw), dict[str, Tensor])


class MyCLI(CRMTCLI):
    """A command line of one's own."""


def radius_training() -> RadiusTraining:
    return RadiusTraining(radius=0.2)


def quiet(folder: str, *callbacks: Any) -> Trainer:
    return Trainer(
        max_epochs=1,
        callbacks=list(callbacks),
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


if __name__ == "__main__":
    plain_loop()
    certificates()
    fits()
    main(["methods"], cli=MyCLI)
