# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Door one: subclass ``CRMTModule``. Trains both steps of CRMT on real data in about ten seconds.

python examples/subclass.py
"""

from lightning.pytorch import Trainer, seed_everything

from lightning_crmt import CRMTModule
from lightning_crmt.callbacks import CertifiedRobustness, IntegrationReweighting, MissingModalities
from lightning_crmt.data import UCIMultiFeatures
from lightning_crmt.encoders import MLP


class Digits(CRMTModule):
    """Digits from Fourier coefficients and morphological features; override any hook as in every LightningModule."""

    def __init__(self, width: int = 64, rho: float = 0.3) -> None:
        encoders = {"fou": MLP(76, width, hidden=(128,)), "mor": MLP(6, width, hidden=(128,))}
        super().__init__(encoders, num_classes=10, rho=rho)


def main(max_epochs: int = 40) -> dict[str, float]:
    """Train, test, and return the test metrics."""
    seed_everything(0)
    data = UCIMultiFeatures(views=("fou", "mor"))
    trainer = Trainer(
        max_epochs=max_epochs,
        callbacks=[
            IntegrationReweighting(),  # step 2
            CertifiedRobustness(radii=[0.1, 0.2], constants="estimated", every_n_epochs=10),
            MissingModalities(every_n_epochs=10),
        ],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    model = Digits()
    trainer.fit(model, datamodule=data)
    return dict(trainer.test(model, datamodule=data)[0])


if __name__ == "__main__":
    main()
