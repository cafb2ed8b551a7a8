# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The tables of methods.md and digits_and_motion.md, from a comparison that has been done.

lightning-crmt compare benchmarks/methods.yaml
python benchmarks/comparison_tables.py benchmarks/methods.yaml

Mean and standard deviation over seeds, in percent, of the test part; a modality is called a view:

- clean: all views; alone: a view's own scores; missing: a view's input zeroed;
- FGM, PGD, PGD-4: all views within one l2 ball, see the comparison; PGD of a view: that view alone;
- certified: right, and nothing within the radius of the attacks changes that.

Columns that name no view are means over views: of their own scores, of what a missing view leaves, of what PGD on a
single view leaves ("attacked"), and of what the paper's attacks, FGM and PGD-4, on a single view leave. A second table
has CRMT's variants less their bases, and several views less one alone, paired by seed: mean, standard deviation, and
the number of seeds in which the first is ahead.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

from lightning_crmt.cli import read_comparison
from lightning_crmt.evaluation import Key
from lightning_crmt.report import Run, load_runs

#: Variants of CRMT by their bases.
PAIRS = {"jt": "crmt_jt", "mmat": "crmt_at", "mixup": "crmt_mix"}

#: Numbers in percent, by seed; those of attacks without their radius.
Rows = Mapping[str, Mapping[int, Mapping[str, float]]]

#: The numbers that a column is the mean of, by its title.
Columns = Mapping[str, Sequence[str]]


def rows_of(runs: Iterable[Run]) -> Rows:
    """The numbers that finished, by method."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for run in runs:
        keys = run.keys()
        (attacked,) = {key.radius for key in keys if key.sure == "robust"} or {None}
        shown = {key: value for key, value in keys.items() if key.radius in (None, attacked)}
        numbers = {_without_radius(key): 100 * value for key, value in shown.items()}
        if not run.error:
            found.setdefault(run.method, {})[run.seed] = numbers
    return found


def _without_radius(key: Key) -> str:
    return str(key).removeprefix("test/").partition("@")[0]


def views_of(rows: Rows) -> list[str]:
    """The views whose own scores were measured."""
    keys = [Key.parse(key) for runs in rows.values() for numbers in runs.values() for key in numbers]
    return sorted({key.of for key in keys if key.what == "accuracy" and not key.sure and key.of != "joint"})


def columns(views: Sequence[str]) -> dict[str, list[str]]:
    """What is shown; of many views their means only."""

    def under(attack: str, where: Sequence[str] = ("",)) -> list[str]:
        return [f"robust_accuracy/{attack}{view and '-'}{view}" for view in where]

    shown = {"clean": ["accuracy/joint"]}
    if len(views) == 2:
        shown |= {f"{view} alone": [f"accuracy/{view}"] for view in views}
        shown |= {f"{view} missing": [f"accuracy_zeroed/{view}"] for view in views}
    shown |= {"FGM": under("fgm"), "PGD-4": under("pgd4"), "PGD": under("pgd")}
    if len(views) == 2:
        shown |= {f"PGD {view}": under("pgd", [view]) for view in views}
    shown["alone"] = [f"accuracy/{view}" for view in views]
    shown["missing"] = [f"accuracy_zeroed/{view}" for view in views]
    shown["attacked"] = under("pgd", views)
    shown["attacked (paper)"] = under("fgm", views) + under("pgd4", views)
    shown["certified"] = ["certified_accuracy/joint"]
    return shown | {f"certified {view}": [f"certified_accuracy/{view}"] for view in views}


def table(rows: Rows, shown: Columns) -> str:
    """Mean and spread of each method; a dash for what it does not have."""

    def cell(runs: Mapping[int, Mapping[str, float]], keys: Sequence[str]) -> str:
        return spread([mean(run[key] for key in keys) for run in runs.values()]) if _all_have(runs, keys) else "-"

    return markdown(
        [["method", *shown]] + [[name, *(cell(runs, keys) for keys in shown.values())] for name, runs in rows.items()]
    )


def differences(rows: Rows, shown: Columns, views: Sequence[str]) -> str:
    """What one method adds to another, paired by seed; a dash for what one of them does not have."""
    pairs = [*PAIRS.items(), *((f"only_{view}", several) for several in ("jt", *PAIRS.values()) for view in views)]

    def cell(first: str, second: str, keys: Sequence[str]) -> str:
        ours, theirs = rows[first], rows[second]
        if not (_all_have(ours, keys) and _all_have(theirs, keys)):
            return "-"
        gains = [mean(ours[s][key] - theirs[s][key] for key in keys) for s in ours if s in theirs]
        return f"{spread(gains)} ({sum(gain > 0 for gain in gains)}/{len(gains)})"

    return markdown(
        [["difference", *shown]]
        + [
            [f"{variant} - {base}", *(cell(variant, base, keys) for keys in shown.values())]
            for base, variant in pairs
            if base in rows and variant in rows
        ]
    )


def _all_have(runs: Mapping[int, Mapping[str, float]], keys: Sequence[str]) -> bool:
    return all(key in run for run in runs.values() for key in keys)


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{mean(values):.1f}"


def markdown(lines: list[list[str]]) -> str:
    """A table; the first line is its head."""
    lines = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join("| " + " | ".join(line) + " |" for line in padded)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", type=Path, help="the YAML file; what was found is looked for where it says")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="in place of the one that the file says")
    options = parser.parse_args()
    comparison = read_comparison(options.comparison)
    order = list(comparison.methods)
    rows = rows_of(sorted(load_runs(options.out or comparison.out), key=lambda run: order.index(run.method)))
    views = views_of(rows)
    shown = {
        title: keys for title, keys in columns(views).items() if any(_all_have(runs, keys) for runs in rows.values())
    }
    print(table(rows, shown))
    groups = {name: shown[name] for name in ("clean", "alone", "missing") if name in shown}
    if {"alone", "missing"} <= set(shown):
        groups["alone and missing"] = [*shown["alone"], *shown["missing"]]
    groups |= {name: shown[name] for name in ("attacked", "attacked (paper)", "PGD") if name in shown}
    print(f"\n{differences(rows, groups, views)}")


if __name__ == "__main__":
    main()
