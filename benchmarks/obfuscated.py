# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Do gradients that exist and mislead deceive the strongest attack, and does anybody say so?

python benchmarks/obfuscated.py --seeds 20

Accuracy that is left by ``strongest``, by ``RandomSearch`` and by a transfer from a smooth surrogate, each a mean over
seeds; in how many seeds ``strongest`` leaves 5 points more than the best of the other two; and in how many of these
``suspicions`` says a word. For healthy models, any word is a false alarm.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from support.obfuscated import HEALTHY, OBFUSCATED, Measured, measure


def main() -> None:
    """Print a row per model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--models", nargs="+", choices=[*OBFUSCATED, *HEALTHY], default=[*OBFUSCATED, *HEALTHY])
    arguments = parser.parse_args()
    print(f"{'model':<22}{'strongest':>10}{'random':>9}{'transfer':>10}{'misled':>9}{'a word':>9}{'held':>9}")
    for name in arguments.models:
        found: list[Measured] = [
            measure(name, seed, arguments.samples) for seed in tqdm(range(arguments.seeds), desc=name, leave=False)
        ]
        means = [sum(getattr(m, what) for m in found) / len(found) for what in ("strongest", "random", "transfer")]
        counts = [sum(m.misled for m in found), sum(bool(m.doubts) for m in found), sum(m.held for m in found)]
        print(
            f"{name:<22}{means[0]:>10.3f}{means[1]:>9.3f}{means[2]:>10.3f}"
            + "".join(f"{f'{count}/{len(found)}':>9}" for count in counts)
        )
        words = Counter(doubt[:100] for m in found for doubt in m.doubts)
        for word, count in words.most_common(3):
            print(f"    {count}: {word}")


if __name__ == "__main__":
    main()
