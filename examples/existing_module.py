# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Door two: add callbacks to a LightningModule and a Trainer that you already have. Nothing in the module changes.

python examples/existing_module.py
"""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_crmt.attacks import PGD, Budget
from lightning_crmt.callbacks import AdversarialRobustness, CertifiedRobustness, MissingModalities
from lightning_crmt.data import UCIMultiFeatures


class Yours(LightningModule):
    """A classifier that knows nothing of this library: batches ``(fourier, shape, y)``, two inputs by position."""

    def __init__(self) -> None:
        super().__init__()
        self.fourier_net = nn.Sequential(nn.Linear(76, 64), nn.ReLU())
        self.shape_net = nn.Sequential(nn.Linear(6, 64), nn.ReLU())
        self.classifier = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, fourier: Tensor, shape: Tensor) -> Tensor:
        """Logits of the two inputs."""
        return self.classifier(torch.cat([self.fourier_net(fourier), self.shape_net(shape)], dim=1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy."""
        fourier, shape, y = batch
        return nn.functional.cross_entropy(self(fourier, shape), y)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Accuracy."""
        fourier, shape, y = batch
        self.log("val/accuracy", (self(fourier, shape).argmax(1) == y).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def loader(part: str, data: UCIMultiFeatures) -> DataLoader[tuple[Tensor, ...]]:
    """Plain tuples, as you may have them."""
    views = data.parts[part]
    tensors = TensorDataset(views.inputs["fou"], views.inputs["mor"], views.target)
    return DataLoader(tensors, batch_size=64, shuffle=part == "train")


def main(max_epochs: int = 20) -> dict[str, float]:
    """Train, validate, and return the validation metrics."""
    seed_everything(0)
    data = UCIMultiFeatures(views=("fou", "mor"))
    data.setup()
    names = ("fourier", "shape")  # the two inputs, as `forward` calls them
    trainer = Trainer(
        max_epochs=max_epochs,
        callbacks=[
            CertifiedRobustness(radii=[0.1, 0.2], constants="estimated", inputs=names, every_n_epochs=10),
            AdversarialRobustness({"pgd": PGD(Budget(0.1), steps=10)}, inputs=names, every_n_epochs=10),
            MissingModalities(inputs=names, every_n_epochs=10),
        ],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    model = Yours()
    trainer.fit(model, loader("train", data), loader("val", data))
    return dict(trainer.validate(model, loader("val", data))[0])


if __name__ == "__main__":
    main()
