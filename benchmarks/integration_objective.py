# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Which objective should step 2 have? The paper's mean of the bound, or the mean of the clipped bound.

python benchmarks/integration_objective.py --seeds 5

Rows: the model after step 1, and after step 2 with either objective. Radii are estimates, in both forms: from gradients
of each margin, and the paper's, from the constants of scores that step 2 itself optimises on.
"""

import argparse
import logging
import warnings
from statistics import mean, stdev

import torch
from lightning.pytorch import Trainer, seed_everything
from tqdm.auto import tqdm

from lightning_crmt import CRMTModule, estimate_lipschitz
from lightning_crmt.callbacks import CertifiedRobustness, IntegrationReweighting, MissingModalities
from lightning_crmt.data import UCIMultiFeatures
from lightning_crmt.encoders import MLP

STEP_1, STEP_2 = 40, 10  # epochs
ROWS = ["step 1", "step 2, mean", "step 2, clipped"]
COLUMNS = {
    "clean": "test/accuracy/joint",
    "fou missing": "test/accuracy_zeroed/fou",
    "mor missing": "test/accuracy_zeroed/mor",
    "radius (margins)": "test/estimated_radius/joint",
    "radius (scores)": "radius_from_scores",
}


def run(row: str, seed: int) -> dict[str, float]:
    """Train to the end of the row's stage, and test."""
    seed_everything(seed, verbose=False)
    data = UCIMultiFeatures(views=("fou", "mor"), seed=seed)
    encoders = {"fou": MLP(76, 64, hidden=(128,)), "mor": MLP(6, 64, hidden=(128,))}
    model = CRMTModule(encoders, num_classes=10, rho=0.3)
    step_2 = []
    if row != "step 1":
        step_2 = [IntegrationReweighting(epochs=STEP_2, objective="mean" if row.endswith("mean") else "clipped")]
    trainer = Trainer(
        max_epochs=STEP_1,
        callbacks=[*step_2, CertifiedRobustness(constants="estimated"), MissingModalities()],
        limit_val_batches=0, enable_progress_bar=False, enable_model_summary=False, logger=False,
        enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    found = dict(trainer.test(model, data, verbose=False)[0])
    model.eval()
    tau = estimate_lipschitz(model, [data.parts["train"].inputs])
    test = data.parts["test"]
    certificate = model.certify(test.inputs, tau)
    found["radius_from_scores"] = (certificate.radius() * (certificate.prediction == test.target)).mean().item()
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args().seeds
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    torch.set_num_threads(1)
    print("  ".join(f"{name:16}" for name in ["", *COLUMNS]))
    for row in ROWS:
        runs = [run(row, seed) for seed in tqdm(range(seeds), desc=row, leave=False)]
        cells = [[found[key] for found in runs] for key in COLUMNS.values()]
        print("  ".join([f"{row:16}", *(f"{mean(c):.3f} ± {stdev(c) if seeds > 1 else 0:.3f}   " for c in cells)]))


if __name__ == "__main__":
    main()
