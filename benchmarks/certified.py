# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""How much accuracy can be guaranteed, and does a guarantee cost more than adversarial training merely survives?

python benchmarks/certified.py --seeds 5
python benchmarks/certified.py --seeds 40 --rows JT radius --without-attacks

UCI Multiple Features, fou + mor, test part, float64. Rows:

- JT: joint training of plain networks;
- AT: the same on adversarial batches (joint l2 ball of 0.1), what MMAT does;
- radius: 1-Lipschitz encoders and RadiusTraining, the recipe of examples/mfeat_certified.yaml.

"certified" is guaranteed, "attacked" merely survived the attacks here: PGD (40 steps, all classes) and, at the same
radii, the minimum-norm search. Tightness is the certified radius over the distance of the nearest adversarial input
that the minimum-norm search found, over the samples that are right; a ratio above 1 would be a violation.
"""

import argparse
import logging
import warnings
from collections.abc import Sequence
from statistics import mean, stdev

import torch
from lightning.pytorch import Trainer, seed_everything
from tqdm.auto import tqdm

from lightning_crmt import CRMTModule, LinearFusion
from lightning_crmt.attacks import PGD, Budget, LossAscent, MinimumNorm
from lightning_crmt.callbacks import RadiusTraining
from lightning_crmt.data import UCIMultiFeatures
from lightning_crmt.encoders import MLP, LipschitzMLP
from lightning_crmt.methods import AdversarialTraining

RADII = (0.1, 0.2, 0.3)
VIEWS = ("fou", "mor")


def train(row: str, seed: int, data: UCIMultiFeatures) -> CRMTModule:
    """The model of a row."""
    seed_everything(seed, verbose=False)
    callbacks = []
    if row == "radius":
        epochs = 60
        model = CRMTModule(
            {"fou": LipschitzMLP(76, 64, (64,)), "mor": LipschitzMLP(6, 6, ())},
            num_classes=10,
            head=LinearFusion,
            optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.0),
            lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs),
        )
        callbacks.append(RadiusTraining(radius=0.2))
    else:
        epochs = 40
        callbacks += [AdversarialTraining(LossAscent(Budget(0.1), steps=7, step_size=0.35))] if row == "AT" else []
        model = CRMTModule(
            {"fou": MLP(76, 64, (128,)), "mor": MLP(6, 64, (128,))}, num_classes=10, rho=0, head=LinearFusion
        )
    trainer = Trainer(
        max_epochs=epochs, callbacks=callbacks, limit_val_batches=0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    return model.double().eval()


def measure(row: str, model: CRMTModule, part: str, data: UCIMultiFeatures, attacks: bool) -> dict[str, float]:
    """All numbers of one trained model; those that need attacks only if asked for."""
    inputs = {name: value.double() for name, value in data.parts[part].inputs.items()}
    target = data.parts[part].target
    with torch.no_grad():
        right = model(inputs).logits.argmax(1) == target
        found = {"clean": right.double().mean().item()}
        for name in VIEWS:
            without = {n: torch.zeros_like(x) if n == name else x for n, x in inputs.items()}
            found[f"{name} missing"] = (model(without).logits.argmax(1) == target).double().mean().item()
        recall = [right[target == k].double().mean().item() for k in range(10)]
        found["lowest recall"] = min(recall)
    certificate = model.certify(inputs) if row == "radius" else None
    for threat, views in {"joint": list(VIEWS), "fou": ["fou"], "mor": ["mor"]}.items():
        if certificate is not None:
            radius = certificate.radius(views)
            for r in RADII:
                found[f"certified {threat} {r}"] = (right & (radius > r)).double().mean().item()
        if not attacks:
            continue
        distance = MinimumNorm(Budget(1.0, modalities=views), restarts=2).search(model, inputs, target).factor
        for r in RADII:
            with torch.no_grad():
                attacked = PGD(Budget(r, modalities=views), targeted=True)(model, inputs, target)
                kept = (model(attacked).logits.argmax(1) == target) & (distance > r)
            found[f"attacked {threat} {r}"] = kept.double().mean().item()
        if certificate is not None:
            usable = right & distance.isfinite()
            ratio = radius[usable] / distance[usable]
            found[f"tightness {threat} mean"] = ratio.mean().item()
            found[f"tightness {threat} min"] = ratio.min().item()
            # Where the bound is attained, float64 leaves the last digits to chance.
            found[f"violations {threat}"] = float((ratio > 1 + 1e-9).sum())
            found[f"unbroken {threat}"] = float((right & ~distance.isfinite()).sum())
    return found


def show(rows: dict[str, list[dict[str, float]]], keys: Sequence[str]) -> None:
    """A table: a line per number, a column per row."""
    print(f"{'':24}" + "".join(f"{row:>18}" for row in rows))
    for key in keys:
        cells = []
        for runs in rows.values():
            values = [run[key] for run in runs if key in run]
            if not values:
                cells.append("-")
            elif key.endswith(" min"):
                cells.append(f"{min(values):.3f}")
            elif key.startswith(("violations", "unbroken")):
                cells.append(f"{sum(values):.0f}")
            else:
                cells.append(f"{mean(values):.3f} ± {stdev(values) if len(values) > 1 else 0:.3f}")
        print(f"{key:24}" + "".join(f"{cell:>18}" for cell in cells))


def main() -> None:
    """Train, attack, certify, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--part", choices=["val", "test"], default="test", help="settings were chosen on val")
    parser.add_argument("--rows", nargs="+", choices=["JT", "AT", "radius"], default=["JT", "AT", "radius"])
    parser.add_argument("--without-attacks", action="store_true", help="clean and certified accuracy alone: fast")
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    torch.set_num_threads(1)
    rows: dict[str, list[dict[str, float]]] = {row: [] for row in arguments.rows}
    for row, runs in rows.items():
        for seed in tqdm(range(arguments.seeds), desc=row, leave=False):
            data = UCIMultiFeatures(views=VIEWS, seed=seed)
            data.setup()
            runs.append(measure(row, train(row, seed, data), arguments.part, data, not arguments.without_attacks))
    show(rows, max((list(runs[0]) for runs in rows.values()), key=len))


if __name__ == "__main__":
    main()
