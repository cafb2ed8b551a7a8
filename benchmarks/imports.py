# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What does importing this package cost over what it stands on?

python benchmarks/imports.py

Fresh processes: torch alone and then the numerical rooms; Lightning alone and then ``CRMTModule``; this alone and then
callbacks, methods and data. Seconds of the processor that the second import adds in the same process; the median, files
in memory.
"""

import os
import subprocess
import sys
from statistics import median

from measuring import Row, benchmark_parser, save

#: What is imported first, and what is then: the second one is timed.
PAIRS = {
    "import lightning_crmt over import torch": ("import torch", "import lightning_crmt"),
    "CRMTModule over import lightning.pytorch": (
        "import lightning.pytorch",
        "from lightning_crmt import CRMTModule",
    ),
    "callbacks, methods and data besides": (
        "from lightning_crmt import CRMTModule",
        "import lightning_crmt.callbacks, lightning_crmt.methods, lightning_crmt.data",
    ),
}
TIMED = """
import time
start = time.process_time()
{first}
middle = time.process_time()
{then}
print(middle - start, time.process_time() - middle)
"""


def seconds(first: str, then: str) -> list[float]:
    """Of the first import and of the second, in a fresh process."""
    command = [sys.executable, "-c", TIMED.format(first=first, then=then)]
    # What users have: files that were compiled by the first import of all.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    ended = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return [float(each) for each in ended.stdout.split()]


def main() -> None:
    """Print a line per pair."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    rows = []
    print(f"{'':45}{'before, s':>12}{'added, s':>12}")
    for name, pair in PAIRS.items():
        seconds(*pair)  # files come into memory
        before, added = (median(each) for each in zip(*(seconds(*pair) for _ in range(arguments.repeats)), strict=True))
        print(f"{name:45}{before:12.2f}{added:12.3f}", flush=True)
        rows.append(
            Row(f"Import: {name}", added, "s", goal=None if "besides" in name else 0.1, note=f"beside {before:.1f} s")
        )
    save(rows, arguments.rows)


if __name__ == "__main__":
    main()
