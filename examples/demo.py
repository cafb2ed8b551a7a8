# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What CRMT does, on real data: four methods, several seeds, one table, one figure.

python examples/demo.py --seeds 5

Trains on two views of handwritten digits (UCI Multiple Features, Fourier coefficients `fou` and morphological features
`mor`), and tests each model with both views, with each view's own scores alone, and with each view missing. Radii are
estimates: they are computed from the largest gradients over the test samples. Spread is the
standard deviation over seeds.
"""

import argparse
import csv
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from lightning_crmt import CRMTModule, LinearFusion, OrthogonalFusion
from lightning_crmt.callbacks import CertifiedRobustness, IntegrationReweighting, MissingModalities
from lightning_crmt.data import UCIMultiFeatures
from lightning_crmt.encoders import MLP

STEP_1, STEP_2 = 40, 10  # epochs of training, and over the scores that it ends with
RADII = [0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5]
METHODS = ["JT", "OJT", "CRMT step 1", "CRMT step 1+2"]
COLUMNS = {
    "clean": "accuracy/joint",
    "fou alone": "accuracy/fou",
    "mor alone": "accuracy/mor",
    "fou missing": "accuracy_zeroed/fou",
    "mor missing": "accuracy_zeroed/mor",
    "estimated radius": "estimated_radius/joint",
}
EXTRA = {"fou dropped": "accuracy_dropped/fou", "mor dropped": "accuracy_dropped/mor"}

Rows = Mapping[str, Sequence[Mapping[str, float]]]


class EpochBar(Callback):
    """Moves one bar along over all fits."""

    def __init__(self, bar: "tqdm[None]") -> None:
        self.bar = bar

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bar.update()


def train_and_test(method: str, seed: int, bar: "tqdm[None]") -> dict[str, float]:
    """Train one method with one seed; both decide the split, the initial weights and the order of batches."""
    seed_everything(seed, verbose=False)
    data = UCIMultiFeatures(views=("fou", "mor"), seed=seed)
    model = CRMTModule(
        encoders={"fou": MLP(76, 64, hidden=(128,)), "mor": MLP(6, 64, hidden=(128,))},
        num_classes=data.num_classes,
        rho=0.3 if method.startswith("CRMT") else 0.0,
        head=LinearFusion if method == "JT" else OrthogonalFusion,
    )
    step_2 = [IntegrationReweighting(epochs=STEP_2)] if method == "CRMT step 1+2" else []
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = Trainer(
        max_epochs=STEP_1,
        callbacks=[
            *step_2,
            EpochBar(bar),
            CertifiedRobustness(radii=RADII, constants="estimated"),
            MissingModalities("zeroed"),
            MissingModalities("dropped"),
        ],
        limit_val_batches=0,
        enable_progress_bar=False,
        **quiet,
    )
    trainer.fit(model, datamodule=data)
    return {key.removeprefix("test/"): value for key, value in trainer.test(model, data, verbose=False)[0].items()}


def table(rows: Rows) -> str:
    """Mean and spread of each method and column, as text."""
    cells = [["method", *COLUMNS]]
    for method, runs in rows.items():
        values = [[run[key] for run in runs] for key in COLUMNS.values()]
        cells.append([method, *(f"{mean(v):.3f} ± {stdev(v):.3f}" if len(v) > 1 else f"{mean(v):.3f}" for v in values)])
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def figure(rows: Rows) -> Figure:
    """Accuracies as bars, accuracy over the estimated radius as curves."""
    drawing = Figure(figsize=(12, 5), layout="constrained")
    bars, curves = drawing.subplots(1, 2, width_ratios=(1.4, 1))
    keys = list(COLUMNS)[:-1]
    for i, (method, runs) in enumerate(rows.items()):
        values = torch.tensor([[run[COLUMNS[key]] for key in keys] for run in runs])
        spread = values.std(dim=0, correction=min(1, len(runs) - 1))
        places = [j + (i - (len(rows) - 1) / 2) * 0.2 for j in range(len(keys))]
        bars.bar(places, values.mean(dim=0).tolist(), 0.2, yerr=spread.tolist(), label=method, capsize=2)
        curve = torch.tensor([[run[f"estimated_accuracy/joint@{r:g}"] for r in RADII] for run in runs])
        middle, spread = curve.mean(dim=0), curve.std(dim=0, correction=min(1, len(runs) - 1))
        curves.plot(RADII, middle.tolist(), marker=".", label=method)
        curves.fill_between(RADII, (middle - spread).tolist(), (middle + spread).tolist(), alpha=0.15)
    bars.set(xticks=range(len(keys)), xticklabels=keys, ylim=(0, 1), ylabel="test accuracy", title="Accuracy")
    curves.set(
        xlabel="l2 radius over both views together", ylim=(0, 1), ylabel="correct, with a larger estimated radius",
        title="Estimated robustness (no guarantee)",
    )  # fmt: skip
    curves.grid(alpha=0.3)
    drawing.legend(*bars.get_legend_handles_labels(), loc="outside lower center", ncols=len(rows))
    drawing.suptitle(f"UCI Multiple Features, fou + mor: mean and standard deviation over {len(runs)} seeds")
    return drawing


def main(seeds: int = 5, out: str = "results") -> Rows:
    """Run everything, print the table, save it and the figure."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")  # loaders without workers and no validation are intended here
    torch.set_num_threads(1)  # the layers are too small for more
    rows: dict[str, list[dict[str, float]]] = {method: [] for method in METHODS}
    with tqdm(total=seeds * len(METHODS) * STEP_1, unit="epoch") as bar:
        for method in METHODS:
            for seed in range(seeds):
                bar.set_description(f"{method}, seed {seed}")
                rows[method].append(train_and_test(method, seed, bar))
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "demo.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "seed", *COLUMNS, *EXTRA, *(f"estimated accuracy at {r:g}" for r in RADII)])
        keys = [*COLUMNS.values(), *EXTRA.values(), *(f"estimated_accuracy/joint@{r:g}" for r in RADII)]
        for method, runs in rows.items():
            writer.writerows([method, seed, *(run[key] for key in keys)] for seed, run in enumerate(runs))
    figure(rows).savefig(folder / "demo.png", dpi=120)
    print(f"\nTest accuracy and mean estimated radius, mean ± standard deviation over {seeds} seeds.")
    print("A missing view is all zeros. Radii are estimates, not guarantees.\n")
    print(table(rows))
    print(f"\nFigure: {folder / 'demo.png'}\nTable:  {folder / 'demo.csv'}")
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="CRMT against joint training, on real data.")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, at least 1")
    parser.add_argument("--out", default="results", help="folder for the figure and the table")
    arguments = parser.parse_args()
    if arguments.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {arguments.seeds}")
    main(**vars(arguments))
