# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""All methods in one pipeline: clean, each view's own scores, views missing, and under attack.

python benchmarks/methods.py --seeds 5
python benchmarks/methods.py --seeds 5 --views six --only jt crmt_jt mixup crmt_mix mmat crmt_at

Every row is one file of examples/methods on top of base.yaml; data, encoders, optimizer and epochs are the same, and
the seed decides the split, the initial weights and the order of batches. UCI Multiple Features, test part, mean and
standard deviation over seeds, in percent:

- clean: all views; alone: a view's own scores; missing: a view's input zeroed;
- FGM, PGD: all views within one l2 ball (PGD with margin loss, 20 steps); PGD of a view: that view alone.

The last two columns are means over views: of what a missing view leaves, and of what attacks on single views leave.
"""

import argparse
import logging
import os
import tempfile
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import mean, stdev

import torch

from lightning_crmt.attacks import FGM, PGD, Budget
from lightning_crmt.callbacks import AdversarialRobustness
from lightning_crmt.cli import command_line

CONFIGS = Path(__file__).parent.parent / "examples" / "methods"
RADIUS = 0.2
VIEWS = {"two": ["fou", "mor"], "six": ["fac", "fou", "kar", "mor", "pix", "zer"]}


def train_and_test(job: tuple[str, int, str]) -> dict[str, float]:
    """The numbers of one method, seed and choice of views."""
    method, seed, views = job
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    files = ["base", *(["six_views"] if views == "six" else []), method]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        cli = command_line(
            [
                *(f"--config={CONFIGS / name}.yaml" for name in files),
                f"--seed_everything={seed}",
                f"--data.init_args.seed={seed}",
                "--trainer.logger=false",
                "--trainer.enable_checkpointing=false",
                "--trainer.enable_progress_bar=false",
                "--trainer.accelerator=cpu",
            ],
            run=False,
        )
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
        attacks = {"fgm": FGM(Budget(RADIUS)), "pgd": PGD(Budget(RADIUS), steps=20)}
        attacks |= {f"pgd-{view}": PGD(Budget(RADIUS, modalities=[view]), steps=20) for view in VIEWS[views]}
        cli.trainer.callbacks.append(AdversarialRobustness(attacks))
        (found,) = cli.trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)
    return {key.removeprefix("test/"): 100 * value for key, value in found.items()}


def columns(views: str) -> dict[str, list[str]]:
    """What is shown, and the numbers each column is the mean of."""
    names = VIEWS[views]
    shown = {"clean": ["accuracy/joint"]}
    if views == "two":
        shown |= {f"{name} alone": [f"accuracy/{name}"] for name in names}
        shown |= {f"{name} missing": [f"accuracy_zeroed/{name}"] for name in names}
    else:
        shown["alone"] = [f"accuracy/{name}" for name in names]
    shown |= {"FGM": [f"robust_accuracy/fgm@{RADIUS}"], "PGD": [f"robust_accuracy/pgd@{RADIUS}"]}
    if views == "two":
        shown |= {f"PGD {name}": [f"robust_accuracy/pgd-{name}@{RADIUS}"] for name in names}
    shown["missing"] = [f"accuracy_zeroed/{name}" for name in names]
    shown["attacked"] = [f"robust_accuracy/pgd-{name}@{RADIUS}" for name in names]
    return shown


def table(rows: dict[str, list[dict[str, float]]], views: str) -> str:
    """Mean and spread of each method, as Markdown."""
    shown = columns(views)
    lines = [["method", *shown], ["---"] * (len(shown) + 1)]
    for method, runs in rows.items():
        cells = []
        for keys in shown.values():
            values = [mean(run[key] for key in keys) for run in runs]
            cells.append(f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{mean(values):.1f}")
        lines.append([method, *cells])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join("| " + " | ".join(line) + " |" for line in padded)


def main() -> None:
    """Train everything, a process for each core, and print the table."""
    methods = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem not in ("base", "six_views"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--views", choices=VIEWS, default="two")
    parser.add_argument("--only", nargs="+", choices=methods, default=methods, metavar="METHOD")
    options = parser.parse_args()
    jobs = [(method, seed, options.views) for method in options.only for seed in range(options.seeds)]
    rows: dict[str, list[dict[str, float]]] = {method: [] for method in options.only}
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for (method, _, _), found in zip(jobs, pool.map(train_and_test, jobs), strict=True):
            rows[method].append(found)
            if len(rows[method]) == options.seeds:
                print(table({method: rows[method]}, options.views).splitlines()[-1], flush=True)
    print("\n" + table(rows, options.views))


if __name__ == "__main__":
    main()
