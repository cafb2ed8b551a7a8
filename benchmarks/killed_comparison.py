# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Is a comparison that was killed three times, at random moments, the same as one that was not?

python benchmarks/killed_comparison.py
python benchmarks/killed_comparison.py --kills 5 --seed 1

Four methods and three seeds on two views of UCI Multiple Features, five epochs each. The whole program is killed by
SIGKILL, workers and all, and started again; then the tables of raw values are compared but for what depends on the
clock and the machine: seconds, memory, and the command, which names the folder.
"""

import argparse
import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

EXAMPLES = Path(__file__).parent.parent / "examples" / "methods"
OF_THE_MACHINE = ("seconds", "peak_memory", "command")


def comparison(folder: Path) -> Path:
    """The file that says what is compared; results go beside it."""
    folder.mkdir(parents=True)
    content = {
        "out": "out",
        "seeds": 3,
        "seed_keys": ["data.init_args.seed"],
        "baseline": "jt",
        "config": [
            str(EXAMPLES / "base.yaml"),
            {"trainer": {"accelerator": "cpu", "enable_checkpointing": False, "max_epochs": 5}},
        ],
        "data": {"mfeat": []},
        "methods": {name: str(EXAMPLES / f"{name}.yaml") for name in ("jt", "ojt", "mixup", "modality_dropout")},
    }
    file = folder / "comparison.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def start(file: Path) -> "subprocess.Popen[bytes]":
    """The program, at the head of a group of its own."""
    words = [sys.executable, "-m", "lightning_crmt", "compare", file.name]
    return subprocess.Popen(
        words, cwd=file.parent, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def rows(file: Path) -> list[dict[str, str]]:
    """The raw values, without those of the machine."""
    with (file.parent / "out" / "runs.csv").open() as table:
        return [
            {name: value for name, value in row.items() if name not in OF_THE_MACHINE} for row in csv.DictReader(table)
        ]


def main() -> None:
    """Kill one of two comparisons, and compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = (comparison(Path(folder) / name) for name in ("whole", "killed"))
        began = time.monotonic()
        if start(whole).wait():
            sys.exit("the undisturbed comparison failed")
        lasted = time.monotonic() - began
        print(f"undisturbed: {lasted:.0f} s")
        kills = 0
        while kills < options.kills:
            program = start(killed)
            moment = draw.uniform(0.1, 0.6) * lasted
            try:
                program.wait(moment)
                sys.exit(f"it was done before {moment:.0f} s, after {kills} kills: try another --seed")
            except subprocess.TimeoutExpired:
                os.killpg(program.pid, signal.SIGKILL)
                program.wait()
                kills += 1
                done = len(list(killed.parent.rglob("run.json")))
                print(f"killed after {moment:.0f} s, with {done} of 12 runs done", flush=True)
        if start(killed).wait():
            sys.exit("the killed comparison failed when it was started again")
        whole_rows, killed_rows = rows(whole), rows(killed)
        for one, other in zip(whole_rows, killed_rows, strict=True):
            differ = [name for name in one if one[name] != other[name]]
            if differ:
                sys.exit(f"NOT the same: {one['method']}, seed {one['seed']}: {differ}")
        print(f"{len(whole_rows)} rows of {len(whole_rows[0])} values: the same")


if __name__ == "__main__":
    main()
