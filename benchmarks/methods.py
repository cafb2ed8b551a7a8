# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""All methods in one pipeline: clean, each view's own scores, views missing, and under attack.

python benchmarks/methods.py --seeds 5
python benchmarks/methods.py --seeds 5 --views six --only jt crmt_jt mixup crmt_mix mmat crmt_at
python benchmarks/methods.py --seeds 3 --part val --only crmt_at  # what settings are chosen on

Every row is one file of examples/methods on top of base.yaml; data, encoders, optimizer and epochs are the same, and
the seed decides the split, the initial weights and the order of batches. lipschitz_at alone brings encoders and an
optimizer of its own. umt trains the teachers of its seed first. UCI Multiple Features, mean and standard deviation over
seeds, in percent:

- clean: all views; alone: a view's own scores; missing: a view's input zeroed;
- FGM, PGD: all views within one l2 ball of radius 0.2 (PGD with margin loss, 20 steps); PGD of a view: that view alone;
- PGD-4: the paper's weaker evaluation, 4 steps of a third of the radius on cross-entropy; the radius is ours.

The last columns are means over views: of their own scores, of what a missing view leaves, of what PGD on a single view
leaves, and of what the paper's attacks (FGM, PGD-4) on a single view leave. A second table has CRMT's three variants
less their bases, paired by seed: mean, standard deviation, and the number of seeds in which the variant is ahead.
"""

import argparse
import logging
import os
import tempfile
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import torch
import yaml
from torch import Tensor

from lightning_crmt import CRMTModule
from lightning_crmt.attacks import FGM, PGD, Attack, Budget
from lightning_crmt.attacks.survival import fooled_by
from lightning_crmt.callbacks import MissingModalities
from lightning_crmt.cli import command_line
from lightning_crmt.modality import Inputs

CONFIGS = Path(__file__).parent.parent / "examples" / "methods"
OVERLAYS = ("base", "six_views", "six_views_lipschitz", "umt_teachers")
METHODS = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem not in OVERLAYS)
#: Those that look at the validation part while they train; the others are validated at the end.
WATCHFUL = ("gblend", "mses", "mslr", "relearning")
PAIRS = {"jt": "crmt_jt", "mmat": "crmt_at", "mixup": "crmt_mix"}
RADIUS = 0.2
VIEWS = {"two": ["fou", "mor"], "six": ["fac", "fou", "kar", "mor", "pix", "zer"]}
#: Offline weights of Gradient-Blending for six views, found as those in gblend_offline.yaml, on one split.
BLENDING = {"fac": 0.14, "fou": 0.004, "kar": 0.05, "mor": 0.07, "pix": 0.04, "zer": 0.01, "joint": 0.686}

Run = dict[str, float]


class Job(NamedTuple):
    """One fit and its evaluation; words are further ones for the command line."""

    method: str
    seed: int
    views: str
    part: str = "test"
    words: tuple[str, ...] = ()


def attacks_on(views: Sequence[str], radius: float) -> dict[str, Attack]:
    """By the names that their keys have."""
    budgets = {"": Budget(radius)} | {f"-{view}": Budget(radius, modalities=[view]) for view in views}
    found: dict[str, Attack] = {}
    for where, budget in budgets.items():
        found[f"fgm{where}"] = FGM(budget)
        found[f"pgd4{where}"] = PGD(budget, steps=4, step_size=1 / 3, loss="ce", decay=1.0)
        found[f"pgd{where}"] = PGD(budget, steps=20)
    return found


def overlay(name: str, views: str) -> list[str]:
    """Words for a setting that a file of two views holds, for the views at hand: a file in the current folder."""
    if views == "two" or name not in ("umt_teachers", "umt", "gblend_offline"):
        return [f"--config={CONFIGS / name}.yaml"]
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    arguments = config["trainer"]["callbacks+"][0]["init_args"]
    if name == "umt":
        arguments["checkpoints"] = dict.fromkeys(VIEWS[views], "teachers/last.ckpt")
    else:
        alone = dict.fromkeys(VIEWS[views], 1.0) | {"joint": 0.0}
        arguments["weights"] = alone if name == "umt_teachers" else BLENDING
    Path(f"{name}.yaml").write_text(yaml.safe_dump(config))
    return [f"--config={name}.yaml"]


def words_for(job: Job, method: str) -> list[str]:
    """The command line of a fit."""
    last = ["six_views_lipschitz"] if job.views == "six" and method == "lipschitz_at" else []
    return [
        f"--config={CONFIGS / 'base.yaml'}",
        *([f"--config={CONFIGS / 'six_views.yaml'}"] if job.views == "six" else []),
        *overlay(method, job.views),
        *(f"--config={CONFIGS / name}.yaml" for name in last),
        f"--seed_everything={job.seed}",
        f"--data.init_args.seed={job.seed}",
        "--trainer.logger=false",
        "--trainer.enable_progress_bar=false",
        "--trainer.accelerator=cpu",
        f"--trainer.enable_checkpointing={str(method == 'umt_teachers').lower()}",
        *([] if method in WATCHFUL else ["--trainer.check_val_every_n_epoch=50"]),
        *job.words,
    ]


def quiet() -> None:
    """One thread per process, and no word of Lightning's."""
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)


def train_and_test(job: Job) -> Run:
    """The numbers of one method, seed and choice of views."""
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for method in (["umt_teachers"] if job.method == "umt" else []) + [job.method]:
            cli = command_line(words_for(job, method), run=False)
            # Measured once, at the end: in a fit of six views it would take longer than the training.
            for observer in [each for each in cli.trainer.callbacks if isinstance(each, MissingModalities)]:
                cli.trainer.callbacks.remove(observer)
            cli.trainer.fit(cli.model, datamodule=cli.datamodule)
        os.chdir(CONFIGS)
    return numbers(cli.model, *cli.datamodule.parts[job.part][:], RADIUS)


@torch.no_grad()
def numbers(model: CRMTModule, inputs: Inputs, target: Tensor, radius: float, attacked: int | None = None) -> Run:
    """Everything that is measured, on all samples at once; under attack on the first so many of a random order."""
    model.eval()
    output = model(inputs)
    right = {f"accuracy/{name}": scores.argmax(1) == target for name, scores in output.scores.items()}
    right["accuracy/joint"] = output.logits.argmax(1) == target
    for name, value in inputs.items():
        without = model({**inputs, name: torch.zeros_like(value)})
        right[f"accuracy_zeroed/{name}"] = without.logits.argmax(1) == target
    chosen = torch.randperm(len(target), generator=torch.Generator().manual_seed(0))[:attacked]
    inputs, target = {name: value[chosen] for name, value in inputs.items()}, target[chosen]
    for name, attack in attacks_on(list(inputs), radius).items():
        right[f"robust_accuracy/{name}"] = ~fooled_by(attack, model, inputs, target)
    return {key: 100 * float(each.float().mean()) for key, each in right.items()}


def columns(names: Sequence[str]) -> dict[str, list[str]]:
    """What is shown, and the numbers each column is the mean of; of many views their means only."""

    def under(attack: str, where: Sequence[str] = ("",)) -> list[str]:
        return [f"robust_accuracy/{attack}{view and '-'}{view}" for view in where]

    shown = {"clean": ["accuracy/joint"]}
    if len(names) == 2:
        shown |= {f"{name} alone": [f"accuracy/{name}"] for name in names}
        shown |= {f"{name} missing": [f"accuracy_zeroed/{name}"] for name in names}
    shown |= {"FGM": under("fgm"), "PGD-4": under("pgd4"), "PGD": under("pgd")}
    if len(names) == 2:
        shown |= {f"PGD {name}": under("pgd", [name]) for name in names}
    shown["alone"] = [f"accuracy/{name}" for name in names]
    shown["missing"] = [f"accuracy_zeroed/{name}" for name in names]
    shown["attacked"] = under("pgd", names)
    shown["attacked (paper)"] = under("fgm", names) + under("pgd4", names)
    return shown


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{mean(values):.1f}"


def markdown(lines: list[list[str]]) -> str:
    """A table; the first line is its head."""
    lines = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join("| " + " | ".join(line) + " |" for line in padded)


def table(rows: dict[str, list[Run]], shown: dict[str, list[str]]) -> str:
    """Mean and spread of each method; a dash for what it does not have."""

    def cell(runs: list[Run], keys: list[str]) -> str:
        if any(key not in run for run in runs for key in keys):
            return "-"
        return spread([mean(run[key] for key in keys) for run in runs])

    return markdown(
        [["method", *shown]] + [[name, *(cell(runs, keys) for keys in shown.values())] for name, runs in rows.items()]
    )


def comparison(
    rows: dict[str, list[Run]], groups: dict[str, list[str]], pairs: Sequence[tuple[str, str]] = tuple(PAIRS.items())
) -> str:
    """What the second of each pair adds to the first, its base, paired by seed; a dash for what one does not have."""

    def cell(ours: list[Run], theirs: list[Run], keys: list[str]) -> str:
        if any(key not in run for run in ours + theirs for key in keys):
            return "-"
        gains = [mean(one[key] - other[key] for key in keys) for one, other in zip(ours, theirs, strict=True)]
        return f"{spread(gains)} ({sum(gain > 0 for gain in gains)}/{len(gains)})"

    return markdown(
        [["difference", *groups]]
        + [
            [f"{variant} - {base}", *(cell(rows[variant], rows[base], keys) for keys in groups.values())]
            for base, variant in pairs
            if base in rows and variant in rows
        ]
    )


def main() -> None:
    """Train everything, a process for each core, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--views", choices=VIEWS, default="two")
    parser.add_argument("--part", choices=["test", "val"], default="test", help="val: to choose settings on")
    parser.add_argument("--only", nargs="+", choices=METHODS, default=METHODS, metavar="METHOD")
    parser.add_argument(
        "--also", nargs="+", type=Path, default=[], metavar="FILE", help="configs on top of each method"
    )
    options = parser.parse_args()
    words = tuple(f"--config={path.resolve()}" for path in options.also)
    jobs = [
        Job(method, seed, options.views, options.part, words)
        for method in options.only
        for seed in range(options.seeds)
    ]
    rows: dict[str, list[Run]] = {method: [] for method in options.only}
    shown = columns(VIEWS[options.views])
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for job, found in zip(jobs, pool.map(train_and_test, jobs), strict=True):
            rows[job.method].append(found)
            if len(rows[job.method]) == options.seeds:
                print(table({job.method: rows[job.method]}, shown).splitlines()[-1], flush=True)
    print("\n" + table(rows, shown))
    groups = {
        **{name: shown[name] for name in ("clean", "alone", "missing")},
        "alone and missing": shown["alone"] + shown["missing"],
        **{name: shown[name] for name in ("attacked", "attacked (paper)", "PGD")},
    }
    print("\n" + comparison(rows, groups))


if __name__ == "__main__":
    main()
