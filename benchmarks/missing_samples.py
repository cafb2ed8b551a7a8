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
Accuracy in percent, mean and standard deviation over seeds: of all test samples, of those that have both modalities,
and of those that lack one. The second table has the differences of rows, paired by seed, and the number of seeds in
which they are above 0.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import torch
from methods import CONFIGS, Run, markdown, quiet, spread, table
from torch import Tensor

from lightning_crmt import CRMTModule
from lightning_crmt.callbacks import MissingModalities
from lightning_crmt.cli import command_line
from lightning_crmt.data import MultimodalDataset
from lightning_crmt.modality import select, where_present

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
    quiet()
    words = [
        f"--config={CONFIGS.parent / BASES[job.data]}.yaml",
        f"--config={CONFIGS / job.method}.yaml",
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
        os.chdir(CONFIGS)
        for observer in [each for each in cli.trainer.callbacks if isinstance(each, MissingModalities)]:
            cli.trainer.callbacks.remove(observer)
        generator, parts = torch.Generator().manual_seed(job.seed), cli.datamodule.parts
        train, test = (half_absent(parts[name], job.absent, generator) for name in ("train", "test"))
        parts["train"] = for_training(train, job.absent, job.row)
        # As many steps whatever there is to train on.
        cli.trainer.fit_loop.max_epochs = round(cli.trainer.max_epochs * len(train) / len(parts["train"]))
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    return accuracies(cli.model, test, job.absent, job.row)


@torch.no_grad()
def accuracies(model: CRMTModule, test: MultimodalDataset, modality: str, row: str) -> Run:
    """Of all samples, of those that have both modalities, and of those that lack one."""
    present = test.inputs[f"{modality}.present"]
    told = test if row == "complete" else for_training(test, modality, row)
    model.eval()
    right = torch.cat([model(told[i : i + 500][0]).logits.argmax(1) for i in range(0, len(told), 500)]) == test.target

    def share(rows: Tensor) -> float:
        return 100 * float(right[rows].float().mean())

    return {"all": share(torch.ones_like(present)), "both": share(present), "lacking": share(~present)}


def main(args: Sequence[str] | None = None) -> None:
    """Train everything, a process for each core, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=MODALITIES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="which, not how many")
    parser.add_argument("--methods", nargs="+", default=["jt"], help="files of examples/methods")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options, words = parser.parse_known_args(args)
    jobs = [
        Job(options.data, method, absent, row, seed, tuple(words))
        for method in options.methods
        for absent in MODALITIES[options.data]
        for row in ROWS
        for seed in options.seeds
    ]
    shown = {"all samples": ["all"], "both present": ["both"], "one absent": ["lacking"]}
    found: dict[str, list[Run]] = {}
    with ProcessPoolExecutor(options.processes) as pool:
        for job, run in zip(jobs, pool.map(train_and_test, jobs), strict=True):
            name = f"{job.method}, {job.absent} absent: {job.row}"
            found.setdefault(name, []).append(run)
            if len(found[name]) == len(options.seeds):
                print(table({name: found[name]}, shown).splitlines()[-1], flush=True)
    print("\n" + table(found, shown))
    lines = [["difference of all samples", "mean ± spread", "seeds above 0"]]
    for name, runs in found.items():
        start, _, row = name.rpartition(": ")
        if row == "presence":
            for other in ROWS[1:]:
                gains = [a["all"] - b["all"] for a, b in zip(runs, found[f"{start}: {other}"], strict=True)]
                lines.append(
                    [f"{start}: presence - {other}", spread(gains), f"{sum(g > 0 for g in gains)}/{len(gains)}"]
                )
    print("\n" + markdown(lines))


if __name__ == "__main__":
    main()
