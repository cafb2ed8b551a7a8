# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Are certificates that are 1 %, 5 % and 20 % too long found?

python benchmarks/planted.py --seeds 3

Longer than the true distance for linear models, inputs of one number and small ReLU networks, than the nearest
adversarial input found by other searches for the rest. Each cell counts samples: found of those that claim something.
"""

from __future__ import annotations

import argparse

from fuzzing.planted import KINDS, measure
from tqdm.auto import tqdm


def main() -> None:
    """Print a row per kind of model and number of modalities."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=12)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--modalities", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=30, help="of verify_certificate")
    parser.add_argument("--probes", type=int, default=32, help="of verify_certificate")
    arguments = parser.parse_args()
    print(f"{'model':<18}{'modalities':>11}{'1 %':>12}{'5 %':>12}{'20 %':>12}")
    for kind in arguments.kinds:
        for modalities in arguments.modalities:
            totals: dict[float, list[int]] = {}
            for seed in tqdm(range(arguments.seeds), desc=f"{kind} {modalities}", leave=False):
                counts = measure(
                    kind, modalities, seed, arguments.samples, steps=arguments.steps, probes=arguments.probes
                )
                for excess, (caught, claims) in counts.items():
                    totals.setdefault(excess, [0, 0])
                    totals[excess][0] += caught
                    totals[excess][1] += claims
            row = "".join(f"{f'{caught}/{claims}':>12}" for caught, claims in totals.values())
            print(f"{kind:<18}{modalities:>11}{row}", flush=True)


if __name__ == "__main__":
    main()
