# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Does every certificate hold? Draw models, certify them, and compare with the true distance.

python benchmarks/soundness.py --minutes 25 --seeds 0 1 2

Models are drawn from all layers that have a rule, in all precisions, and things happen to them: weights change, inputs
of other lengths come, code is replaced. Each certificate is compared with an exact distance where there is one (affine
models, inputs of one number, small ReLU networks), and else with the nearest adversarial input that was found. A
certificate is wrong if its radius is above the true one in exact arithmetic, if its prediction changes with the batch
as the model runs, and, for rigorous ones, if a perturbed input inside changes the prediction as the model runs.

Refusals are no violations; their share is shown, so that a gate which refuses everything is seen. The exit code is 1
if there is a violation, with what repeats it: ``--repeat SEED:KIND``.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import torch
from fuzzing.trials import KINDS, SHARES, Outcome, Trial
from tqdm.auto import tqdm


def plan(seeds: list[int], kinds: list[str]) -> Iterator[tuple[str, int]]:
    """Kinds in the proportion of ``SHARES``, each with a seed of its own, without end."""
    for turn in itertools.count():
        for seed in seeds:
            order = [kind for kind in kinds for _ in range(SHARES[kind])]
            random.Random(f"{seed} {turn}").shuffle(order)
            for index, kind in enumerate(order):
                yield kind, (seed * 1_000_003 + turn) * 1_000 + index


def tried(job: tuple[str, int]) -> Outcome:
    """One trial; an error of the harness or of the package is part of the outcome."""
    kind, seed = job
    trial = Trial(kind, seed)
    try:
        return trial.run()
    except Exception as error:
        trial.outcome.error = f"{type(error).__name__} in --repeat {seed}:{kind}: {error}"
        return trial.outcome


def one_thread() -> None:
    """Each process has a core."""
    torch.set_num_threads(1)


def processes(count: int) -> ProcessPoolExecutor:
    """Each with a core."""
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=one_thread)


def tables(outcomes: list[Outcome]) -> str:
    """By kind of model and precision; and what was refused."""
    rows: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        rows[outcome.kind, outcome.precision].append(outcome)
    order = {kind: index for index, kind in enumerate(KINDS)}
    lines = [
        f"{'kind of model':<18}{'precision':<11}{'models':>8}{'refused':>9}{'certificates':>14}{'claims':>10}"
        f"{'probes':>10}{'largest ratio':>16}{'violations':>12}"
    ]
    for (kind, precision), group in sorted(rows.items(), key=lambda item: (order[item[0][0]], item[0][1])):
        share = sum(o.refused is not None for o in group) / len(group)
        lines.append(
            f"{kind:<18}{precision or '-':<11}{len(group):>8}{share:>9.0%}{sum(o.certificates for o in group):>14}"
            f"{sum(o.comparisons for o in group):>10}{sum(o.probes for o in group):>10}"
            f"{max(o.ratio for o in group):>16.9g}{sum(o.wrong for o in group):>12}"
        )
    total = [sum(getattr(o, name) for o in outcomes) for name in ("certificates", "comparisons", "probes", "wrong")]
    lines.append(
        f"{'all':<18}{'':<11}{len(outcomes):>8}{'':>9}{total[0]:>14}{total[1]:>10}{total[2]:>10}{'':>16}{total[3]:>12}"
    )
    return "\n".join(lines)


def reasons(outcomes: list[Outcome], limit: int = 12) -> str:
    """The most frequent messages of refusals, by kind."""
    counts = Counter((o.kind, str(o.refused)[:90]) for o in outcomes if o.refused is not None)
    return "\n".join(f"{count:>6}  {kind}: {message}" for (kind, message), count in counts.most_common(limit))


def found(outcomes: list[Outcome]) -> str:
    """One violation of each sort, and after how many certificates it was found."""
    seen: dict[tuple[str, ...], tuple[int, str]] = {}
    counts: Counter[tuple[str, ...]] = Counter()
    certificates = 0
    for outcome in outcomes:
        certificates += outcome.certificates
        for violation in outcome.violations:
            settings = violation.settings
            detail = settings.get("changed") or settings.get("change") or settings.get("encoders in") or ""
            sort = (violation.kind, violation.what.split(" for ")[0], outcome.precision, str(detail))
            counts[sort] += 1
            seen.setdefault(sort, (certificates, str(violation)))
    lines = []
    for sort, (after, text) in sorted(seen.items(), key=lambda item: item[1][0]):
        lines.append(f"{counts[sort]} of {' | '.join(part for part in sort if part)}; first after {after} certificates")
        lines.append(f"    {text}")
    return "\n".join(lines)


def main() -> int:
    """Print the tables; 1 if a certificate is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--certificates", type=int, default=10**9, help="stop after so many")
    parser.add_argument("--minutes", type=float, default=25.0, help="stop after so long")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repeat", metavar="SEED:KIND", help="one trial again, and what it finds")
    arguments = parser.parse_args()
    if arguments.repeat:
        seed, _, kind = arguments.repeat.partition(":")
        one_thread()
        outcome = Trial(kind, int(seed)).run()
        print(tables([outcome]), outcome.refused or "", *outcome.violations, sep="\n")
        return int(bool(outcome.violations))
    outcomes: list[Outcome] = []
    total, end = 0, time.monotonic() + 60 * arguments.minutes
    jobs = plan(arguments.seeds, arguments.kinds)
    bar = tqdm(total=None if arguments.certificates == 10**9 else arguments.certificates, unit=" certificates")
    pool = processes(arguments.processes)
    while total < arguments.certificates and time.monotonic() < end:
        chunk = list(itertools.islice(jobs, 4 * arguments.processes))
        try:
            found_now = list(pool.map(tried, chunk))
        except BrokenProcessPool:  # torch itself may crash
            found_now = [Outcome(chunk[0][0], error=f"a process died in one of these: {chunk}")]
            pool = processes(arguments.processes)
        for outcome in found_now:
            outcomes.append(outcome)
            total += outcome.certificates
            bar.update(outcome.certificates)
    pool.shutdown()
    bar.close()
    print(tables(outcomes))
    print("\nrefused, most often:", reasons(outcomes), sep="\n")
    errors = [outcome.error for outcome in outcomes if outcome.error]
    if errors:
        print(f"\n{len(errors)} errors:", *errors[:10], sep="\n")
    violations = found(outcomes)
    if violations:
        print("\nviolations:", violations, sep="\n")
    return int(bool(violations) or bool(errors))


if __name__ == "__main__":
    sys.exit(main())
