# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Half of the samples lack one modality, in training as in the test: is it worth training on those that lack it?

pip install ".[data]"
python benchmarks/missing_samples.py watch
python benchmarks/missing_samples.py digits --methods jt crmt_jt --seeds 0 1 2

The data and encoders of examples/watch_motion.yaml (three of ten subjects held out to test on) and
examples/spoken_digits.yaml, and a file of examples/methods on top. In each part a random half of the samples lacks one
modality; which, the seed decides, and the split, the initial weights and the order of batches. Rows:

- presence: trained on all samples, which say what they lack: scores of absent modalities are dropped;
- complete: trained on the samples that have both, for as many steps;
- zeros: trained on all samples, with zeros, the mean input, for what is absent, and nobody says so.

All are tested on the same test part. The first two are told what is absent and drop its score, the third sees zeros.
Printed are means and standard deviations over seeds: of all test samples, of those that have both modalities, and of
those that lack one; differences to "presence", paired by seed, are in the page that is written.
"""

import argparse
import logging
import os
import tempfile
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

from lightning_crmt import CRMTModule
from lightning_crmt.callbacks import MissingModalities
from lightning_crmt.cli import command_line
from lightning_crmt.data import MultimodalDataset
from lightning_crmt.evaluation import Key
from lightning_crmt.modality import select, where_present
from lightning_crmt.report import Run, headline_text, write_report

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
MODALITIES = {"digits": ("audio", "image"), "watch": ("accelerometer", "gyroscope")}
BASES = {"digits": "spoken_digits", "watch": "watch_motion"}
ROWS = ("presence", "complete", "zeros")


class Job(NamedTuple):
    """One fit and its evaluation; words are further ones for the command line."""

    data: str
    method: str
    absent: str
    row: str
    seed: int
    words: tuple[str, ...]


def half_absent(part: MultimodalDataset, modality: str, generator: torch.Generator) -> MultimodalDataset:
    """The samples, of which a random half lacks a modality and says so."""
    present = torch.randperm(len(part), generator=generator) % 2 == 0
    value = where_present(part.inputs[modality], present)
    return MultimodalDataset(part.inputs | {modality: value, f"{modality}.present": present}, part.target)


def for_training(part: MultimodalDataset, modality: str, row: str) -> MultimodalDataset:
    """What a row is trained on."""
    present = part.inputs[f"{modality}.present"]
    if row == "presence":
        return part
    silent = {name: value for name, value in part.inputs.items() if "." not in name}
    rows = present.nonzero().squeeze(1) if row == "complete" else torch.arange(len(part))
    return MultimodalDataset(select(silent, rows), part.target[rows])


def train_and_test(job: Job) -> Run:
    """The accuracies of one row and seed."""
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    words = [
        f"--config={EXAMPLES / BASES[job.data]}.yaml",
        f"--config={EXAMPLES / 'methods' / job.method}.yaml",
        f"--seed_everything={job.seed}",
        f"--data.init_args.seed={job.seed}",
        "--trainer.logger=false",
        "--trainer.enable_progress_bar=false",
        "--trainer.accelerator=cpu",
        "--trainer.enable_checkpointing=false",
        "--trainer.limit_val_batches=0",
        *job.words,
    ]
    if job.data == "watch":
        subjects = [(3 * job.seed + i) % 10 + 1 for i in range(5)]
        words += [
            f"--data.init_args.held_out_subjects={subjects[:3]}",
            f"--data.init_args.validation_subjects={subjects[3:]}",
        ]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        cli = command_line(words, run=False)
        os.chdir(EXAMPLES)
        for observer in [each for each in cli.trainer.callbacks if isinstance(each, MissingModalities)]:
            cli.trainer.callbacks.remove(observer)
        generator, parts = torch.Generator().manual_seed(job.seed), cli.datamodule.parts
        train, test = (half_absent(parts[name], job.absent, generator) for name in ("train", "test"))
        parts["train"] = for_training(train, job.absent, job.row)
        # As many steps whatever there is to train on.
        cli.trainer.fit_loop.max_epochs = round(cli.trainer.max_epochs * len(train) / len(parts["train"]))
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    return accuracies(cli.model, test, job)


@torch.no_grad()
def accuracies(model: CRMTModule, test: MultimodalDataset, job: Job) -> Run:
    """Of all samples, of those that have both modalities, and of those that lack one."""
    present = test.inputs[f"{job.absent}.present"]
    told = test if job.row == "complete" else for_training(test, job.absent, job.row)
    model.eval()
    right = torch.cat([model(told[i : i + 500][0]).logits.argmax(1) for i in range(0, len(told), 500)]) == test.target
    both = MODALITIES[job.data]
    (other,) = set(both) - {job.absent}
    rows = {
        Key("test", "accuracy", "joint"): torch.ones_like(present),
        Key("test", "accuracy_present", "+".join(both)): present,
        Key("test", "accuracy_present", other): ~present,
    }
    return Run(
        method=job.row,
        data=f"{job.method}, {job.absent} absent",
        seed=job.seed,
        numbers={str(key): float(right[chosen].float().mean()) for key, chosen in rows.items()},
        counts={str(key): int(chosen.sum()) for key, chosen in rows.items()},
        samples=len(test),
    )


def main(args: Sequence[str] | None = None) -> None:
    """Train everything, a process for each core, print the means and write a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=MODALITIES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="which, not how many")
    parser.add_argument("--methods", nargs="+", default=["jt"], help="files of examples/methods")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=Path("results/missing_samples"))
    options, words = parser.parse_known_args(args)
    jobs = [
        Job(options.data, method, absent, row, seed, tuple(words))
        for method in options.methods
        for absent in MODALITIES[options.data]
        for row in ROWS
        for seed in options.seeds
    ]
    with ProcessPoolExecutor(options.processes) as pool:
        runs = []
        for run in pool.map(train_and_test, jobs):
            runs.append(run)
            print(f"{run.data}: {run.method}, seed {run.seed}: {run.numbers['test/accuracy/joint']:.3f}", flush=True)
    print(headline_text(runs, "presence"))
    print(f"page: {write_report(runs, options.out, baseline='presence')}")


if __name__ == "__main__":
    main()
