"""Audio-visual digits with speakers held out, and watch motion with subjects held out: does preference hurt?

pip install ".[data]"
# FOLDER holds the Free Spoken Digit Dataset, which is fetched if it is not there; --part val is for choosing settings
python benchmarks/digits_and_motion.py digits --recordings FOLDER
python benchmarks/digits_and_motion.py watch
python benchmarks/digits_and_motion.py digits --recordings FOLDER --part val --only crmt_jt --model.rho=1

A row is a file of examples/methods on top of examples/spoken_digits.yaml or examples/watch_motion.yaml; only_* is one
modality alone, radius is trained for sound certificates. The seed decides who is held out to test on (two of six
speakers, three of ten subjects) and to choose settings on (one more, two more; --part val), the pairs, the initial
weights and the order of batches. Words that are not known here go to the command line of each fit.

Mean and standard deviation over seeds, in percent; an input has norm 10 on average:

- clean: all modalities; alone: a modality's own scores; missing: its input zeroed;
- FGM, PGD, PGD-4: all modalities within one l2 ball of radius 0.5, see methods.py; PGD of a modality: that one alone;
  400 random samples;
- certified: right, and nothing within the radius changes that; for the row radius alone.

The second table has differences paired by seed, with the number of seeds in which they are above 0.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from methods import CONFIGS, PAIRS, Run, columns, comparison, numbers, quiet, table

from lightning_crmt import CRMTModule
from lightning_crmt.callbacks import MissingModalities
from lightning_crmt.cli import command_line
from lightning_crmt.data import SpokenWrittenDigits
from lightning_crmt.modality import Inputs

SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
MODALITIES = {"digits": ("audio", "image"), "watch": ("accelerometer", "gyroscope")}
BASES = {"digits": "spoken_digits", "watch": "watch_motion"}
METHODS = ("jt", "ojt", "crmt_jt", "mmat", "crmt_at", "mixup", "crmt_mix", "modality_dropout", "radius")
RADIUS = 0.5
#: Of the spectrograms of recordings; the file has that of the installed coefficients.
SHAPE = ["--model.init_args.encoders.audio.init_args.input_size=[64,40]"]


class Job(NamedTuple):
    """One fit and its evaluation; words are further ones for the command line."""

    data: str
    row: str
    seed: int
    part: str
    recordings: str
    words: tuple[str, ...]


def held_out(job: Job) -> list[str]:
    """Who is tested and who is validated on."""
    if job.data == "digits":
        first, second, third = (SPEAKERS[(job.seed + i) % 6] for i in range(3))
        words = {
            "recordings": job.recordings,
            "held_out_speakers": f"[{first},{second}]",
            "validation_speakers": f"[{third}]",
        }
    else:
        subjects = [(3 * job.seed + i) % 10 + 1 for i in range(5)]
        words = {"held_out_subjects": str(subjects[:3]), "validation_subjects": str(subjects[3:])}
    return [f"--data.init_args.{name}={value}" for name, value in words.items()]


def overlay(job: Job) -> str:
    """The configuration of the row, on top of the base."""
    if not job.row.startswith("only_"):
        name = f"{BASES[job.data]}_certified" if job.row == "radius" else f"methods/{job.row}"
        return str(CONFIGS.parent / f"{name}.yaml")
    modality = job.row.removeprefix("only_")
    base = yaml.safe_load((CONFIGS.parent / f"{BASES[job.data]}.yaml").read_text())
    encoders = base["model"]["init_args"]["encoders"]
    config = {
        "model": {"init_args": {"encoders": {modality: encoders[modality]}}},
        "data": {"init_args": {"modalities": [modality]}},
    }
    Path("only.yaml").write_text(yaml.safe_dump(config))
    return "only.yaml"


def train_and_test(job: Job) -> Run:
    """The numbers of one row and seed."""
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        words = [
            f"--config={CONFIGS.parent / BASES[job.data]}.yaml",
            f"--config={overlay(job)}",
            f"--seed_everything={job.seed}",
            f"--data.init_args.seed={job.seed}",
            *held_out(job),
            *(SHAPE if (job.data, job.row) == ("digits", "radius") else []),
            "--trainer.logger=false",
            "--trainer.enable_progress_bar=false",
            "--trainer.accelerator=cpu",
            "--trainer.enable_checkpointing=false",
            "--trainer.limit_val_batches=0",
            *job.words,
        ]
        cli = command_line(words, run=False)
        for observer in [each for each in cli.trainer.callbacks if isinstance(each, MissingModalities)]:
            cli.trainer.callbacks.remove(observer)
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
        os.chdir(CONFIGS)
    inputs, target = cli.datamodule.parts[job.part][:]
    found = numbers(cli.model, inputs, target, RADIUS, attacked=400)
    return found | (certified(cli.model, inputs, target) if job.row == "radius" else {})


@torch.no_grad()
def certified(model: CRMTModule, inputs: Inputs, target: torch.Tensor) -> Run:
    """Shares that are right and certified at the radius, for all modalities and for each."""
    certificate = model.certify(inputs)
    right = certificate.prediction == target
    where = {"": None} | {f"-{name}": [name] for name in inputs}
    return {
        f"certified{suffix}": 100 * float((right & (certificate.radius(names) > RADIUS)).float().mean())
        for suffix, names in where.items()
    }


def main(args: Sequence[str] | None = None) -> None:
    """Train everything, a process for each core, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=MODALITIES)
    parser.add_argument("--recordings", type=Path, help="folder of the Free Spoken Digit Dataset, or an .npz of it")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)), help="which, not how many")
    parser.add_argument("--part", choices=["test", "val"], default="test", help="val: to choose settings on")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="rows, such as jt crmt_jt only_image")
    options, words = parser.parse_known_args(args)
    names = MODALITIES[options.data]
    if options.data == "digits":
        if options.recordings is None:
            parser.error("digits needs --recordings: the installed coefficients do not say who speaks")
        SpokenWrittenDigits(options.recordings, download=options.recordings.suffix != ".npz").prepare_data()
    rows = options.only or [*(f"only_{name}" for name in names), *METHODS]
    recordings = str(options.recordings and options.recordings.resolve())
    jobs = [
        Job(options.data, row, seed, options.part, recordings, tuple(words)) for row in rows for seed in options.seeds
    ]
    shown = columns(names) | {"certified": ["certified"]}
    shown |= {f"certified {name}": [f"certified-{name}"] for name in names}
    found: dict[str, list[Run]] = {row: [] for row in rows}
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for job, run in zip(jobs, pool.map(train_and_test, jobs), strict=True):
            found[job.row].append(run)
            if len(found[job.row]) == len(options.seeds):
                print(table({job.row: found[job.row]}, shown).splitlines()[-1], flush=True)
    print("\n" + table(found, shown))
    pairs = [*PAIRS.items(), *((f"only_{name}", joint) for joint in ("jt", *PAIRS.values()) for name in names)]
    groups = {name: shown[name] for name in ("clean", "alone", "missing", "attacked", "PGD")}
    print("\n" + comparison(found, groups, pairs))


if __name__ == "__main__":
    main()
