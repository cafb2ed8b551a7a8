# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What does all of this cost? Every quick benchmark, and the table of benchmarks/README.md.

python benchmarks/quick.py
python benchmarks/quick.py --only training_step imports  # shows these, and leaves the README as it is

A quarter of an hour on two cores with nothing else on them. What is compared takes turns in one process, on one thread;
figures are medians of at least five turns, of the processor's time where one thread works. A benchmark that fails has a
row that says so, and makes the exit status 1; a goal that is missed does not.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measuring import Row, load, machine, table, write_between

FOLDER = Path(__file__).parent

#: The scripts, with the words by which each is quick.
QUICK: dict[str, list[str]] = {
    "imports": [],
    "training_step": [],
    "step_2_cost": ["--samples", "128"],
    "certification_cost": [],
    "validation_epoch": [],
    "attack_overhead": ["--threads", "1", "--repetitions", "7"],
    "attacks": ["--models", "conv", "--samples", "50", "--ddn-steps", "20"],
    "memory": [],
    "two_processes": [],
    "video_loading": [],
}


def command_of(name: str) -> str:
    """What a reader types."""
    return " ".join(["python", f"benchmarks/{name}.py", *QUICK[name]])


def rows_of(name: str, seconds: float) -> tuple[list[Row], bool]:
    """The rows of one script, and whether it ended well and in time."""
    with tempfile.TemporaryDirectory() as scratch:
        found = Path(scratch) / "rows.json"
        words = [sys.executable, str(FOLDER / f"{name}.py"), *QUICK[name], "--rows", str(found)]
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
        try:
            ended = subprocess.run(
                words, cwd=scratch, env=one_thread, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                timeout=seconds,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return [Row(name, note=f"took longer than {seconds:g} s")], False
        if ended.returncode or not found.exists():
            last = (ended.stdout.strip().splitlines() or ["without a word"])[-1]
            return [Row(name, note=f"failed: {last[:200]}")], False
        return load(found), True


def main() -> None:
    """Run, show, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(QUICK), help="show these; the README stays as it is")
    parser.add_argument("--timeout", type=float, default=420, help="seconds for one script")
    arguments = parser.parse_args()
    where = machine()
    print(where, flush=True)
    rows, failed, start = {}, False, time.perf_counter()
    for name in arguments.only or QUICK:
        rows[command_of(name)], well = rows_of(name, arguments.timeout)
        failed |= not well
        print(*table({command_of(name): rows[command_of(name)]}).splitlines()[2:], sep="\n", flush=True)
    minutes = (time.perf_counter() - start) / 60
    print(f"{minutes:.1f} minutes")
    if not arguments.only:
        text = f"\n{table(rows)}\n\nMeasured by `make bench` in {minutes:.0f} minutes: {where}\n"
        write_between(FOLDER / "README.md", "quick", text)
    sys.exit(failed)


if __name__ == "__main__":
    main()
