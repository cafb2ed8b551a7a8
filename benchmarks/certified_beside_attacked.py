# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Guarantees beside what adversarial training survives: tables and a figure, from the runs of a comparison.

lightning-crmt compare benchmarks/certified.yaml
python benchmarks/certified_beside_attacked.py results/certified
python benchmarks/certified_beside_attacked.py results/certified --check

A table for each data set, in percent of the test part, mean and standard deviation over seeds: clean accuracy, the
lowest recall of a class, accuracy with a modality zeroed (mean over modalities), accuracy under attack and accuracy
that is certified, at four l2 radii of all modalities together, and certified at the second of them where one modality
alone is perturbed (mean over modalities). Below it, what a method guarantees less what adversarial training survives
at the same radius, over the seeds that it and all of at_1 to at_4 have, with the number of seeds in which the
guarantee is at least as much. Which of at_1 to at_4 it is, is chosen for each radius by what the validation part keeps
under attack, on average over the seeds. The figure, certified.svg, is of the seeds that all methods have, without the
motion of a watch, which has a table alone.

--check attacks the certified models, in float64: the certified radius over the distance of the nearest adversarial
input that a search finds, over the samples that are right. More than 1 would be a violation.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory

import torch

from lightning_crmt.attacks import Budget, MinimumNorm
from lightning_crmt.cli import command_line
from lightning_crmt.evaluation import Key
from lightning_crmt.layers import kept_rows
from lightning_crmt.report import Run, load_runs
from lightning_crmt.report.runs import read_run

#: Numbers in percent, by method and seed.
Rows = Mapping[str, Mapping[int, Mapping[Key, float]]]

#: A number that certified models have, and no others.
CERTIFIED = "test/certified_radius/joint"

NAMES = {
    "two_views": "two views", "six_views": "six views", "voices": "voices held out", "watch": "subjects held out",
}  # fmt: skip


#: What lines look like in the figure.
JOINT = {"color": "#777777", "linestyle": ":", "marker": "v"}
ADVERSARIAL = {"color": "#c1440e", "linestyle": "--", "marker": "v"}
OURS = {
    f"radius_{name}": {"color": colour, "linestyle": "-", "marker": marker}
    for name, colour, marker in (
        ("hinge", "#0b5fa5", "^"), ("emma", "#1d7a46", "o"), ("annealing", "#7a3ea1", "s"), ("far", "#6b5d00", "D"),
    )
}  # fmt: skip

LABELS = {
    "radius_hinge": "hinge on the radius",
    "radius_emma": "EMMA",
    "radius_annealing": "logit annealing",
    "radius_far": "EMMA at a larger radius",
}


def rows_of(runs: Iterable[Run]) -> Rows:
    """The numbers that finished, the baseline first."""
    found: dict[str, dict[int, dict[Key, float]]] = {}
    for run in sorted(runs, key=lambda run: run.method != "jt"):
        if not run.error:
            last = {Key.parse(name): values[-1][1] for name, values in run.history.items() if name.startswith("val/")}
            numbers = {**last, **run.keys()}
            found.setdefault(run.method, {})[run.seed] = {key: 100 * value for key, value in numbers.items()}
    return found


def accuracy(sure: str, of: str, radius: float) -> Key:
    """The key of accuracy at a radius."""
    return Key("test", "accuracy", of, radius=radius, sure=sure)


def attacked(radius: float, split: str = "test") -> Key:
    """What the search for the nearest adversarial input leaves."""
    return replace(accuracy("robust", "nearest", radius), split=split)


def certified(radius: float) -> Key:
    """What is guaranteed."""
    return accuracy("certified", "joint", radius)


def radii_of(rows: Rows) -> list[float]:
    """Those of what is attacked or certified, without 0."""
    keys = {key for runs in rows.values() for numbers in runs.values() for key in numbers}
    return sorted({key.radius for key in keys if key.radius and key in (attacked(key.radius), certified(key.radius))})


def mean_over(numbers: Mapping[Key, float], wanted: Iterable[Key]) -> float | None:
    """The mean of those that were measured."""
    found = [numbers[key] for key in wanted if key in numbers]
    return mean(found) if found else None


def columns(rows: Rows) -> dict[str, list[Key]]:
    """By title the numbers that a column is the mean of."""
    keys = {key for runs in rows.values() for numbers in runs.values() for key in numbers}
    names = sorted({key.of for key in keys if key.what == "accuracy_zeroed" and key.of not in ("none", "worst")})
    names = [name for name in names if "+" not in name]
    radii = radii_of(rows)
    shown = {"clean": [Key("test", "accuracy", "joint")]}
    shown["lowest recall"] = [
        Key("test", "accuracy_worst_class", "joint", radius=0.0, sure=sure) for sure in ("certified", "estimated")
    ]
    shown["one missing"] = [Key("test", "accuracy_zeroed", name) for name in names]
    shown |= {f"attacked {radius:g}": [attacked(radius)] for radius in radii}
    shown |= {f"certified {radius:g}": [certified(radius)] for radius in radii}
    shown[f"one modality {radii[1]:g}"] = [accuracy("certified", name, radii[1]) for name in names]
    return shown


def paired(rows: Rows) -> Rows:
    """The seeds that all methods have."""
    seeds = set.intersection(*(set(runs) for runs in rows.values()))
    return {method: {seed: runs[seed] for seed in sorted(seeds)} for method, runs in rows.items()} if seeds else rows


def told(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    return f"{mean(values):.1f} ± {stdev(values) if len(values) > 1 else 0:.1f}"


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    return "\n".join(f"| {' | '.join(each)} |" for each in (header, ["---"] * len(header), *lines))


def numbers_table(rows: Rows) -> str:
    """A line for each method."""
    shown = columns(rows)
    lines = []
    for method, runs in rows.items():
        cells = [[mean_over(numbers, keys) for numbers in runs.values()] for keys in shown.values()]
        lines.append([method, *("-" if None in values else told(values) for values in cells), str(len(runs))])
    return table(["method", *shown, "seeds"], lines)


def best_attacked(rows: Rows, radius: float) -> str:
    """The adversarial training that keeps most of the validation part at a radius.

    Raises:
        ValueError: if there is none.
    """
    trained = [method for method in rows if method.startswith("at_")]
    kept = attacked(radius, "val")
    return max(trained, key=lambda method: mean(numbers[kept] for numbers in rows[method].values()))


def differences(rows: Rows) -> str:
    """What is guaranteed less what adversarial training survives."""
    trained = paired({method: runs for method, runs in rows.items() if method.startswith("at_")})
    radii, lines = radii_of(rows), []
    for method, runs in rows.items():
        cells = []
        for radius in radii:
            other = trained[best_attacked(trained, radius)]
            pairs = [
                (numbers[certified(radius)], other[seed][attacked(radius)])
                for seed, numbers in runs.items()
                if seed in other and certified(radius) in numbers
            ]
            gained = [ours - theirs for ours, theirs in pairs]
            cells.append(f"{told(gained)} ({sum(each >= 0 for each in gained)}/{len(gained)})" if gained else "-")
        if set(cells) != {"-"}:
            lines.append([method, *cells])
    best = [f"{radius:g} ({best_attacked(trained, radius)})" for radius in radii]
    return table(["certified less attacked at", *best], lines)


def draw(found: Mapping[str, Rows], path: Path) -> None:
    """What is certified, above or below what is merely survived; a panel for each data set."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams |= {"svg.fonttype": "none", "font.size": 9}
    figure, axes = plt.subplots(1, len(found), figsize=(3.6 * len(found), 3.4), squeeze=False, layout="constrained")
    for panel, (data, rows) in zip(axes[0], found.items(), strict=True):
        radii, clean = radii_of(rows), Key("test", "accuracy", "joint")
        trained = [method for method in rows if method.startswith("at_")]
        lines: list[tuple[list[str], Callable[[float], Key], str, Mapping[str, str]]] = [
            (["jt"] if "jt" in rows else [], attacked, "joint training, attacked", JOINT),
            (trained, attacked, "adversarial training, attacked", ADVERSARIAL),
            *(([method], certified, f"{LABELS[method]}, certified", OURS[method]) for method in OURS if method in rows),
        ]
        for methods, kind, label, look in lines:
            if not methods:
                continue
            values = []
            for radius in [0.0, *radii]:
                method = methods[0] if len(methods) == 1 else best_attacked(rows, radius or radii[0])
                values.append([numbers[kind(radius) if radius else clean] for numbers in rows[method].values()])
            middle = [mean(each) for each in values]
            panel.plot([0.0, *radii], middle, label=label, markersize=5, **look)
            spread = [stdev(each) if len(each) > 1 else 0.0 for each in values]
            low, high = ([m + sign * s for m, s in zip(middle, spread, strict=True)] for sign in (-1, 1))
            panel.fill_between([0.0, *radii], low, high, color=look["color"], alpha=0.12, linewidth=0)
        panel.set_title(NAMES.get(data, data))
        panel.set_xlabel("l2 radius, all modalities together")
        panel.grid(alpha=0.3)
    axes[0][0].set_ylabel("accuracy in percent of the test part")
    named = {
        label: handle for panel in axes[0] for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, metadata={"Date": None, "Description": "Certified and attacked accuracy over the radius"})
    plt.close(figure)


def check(file: Path, samples: int) -> str:
    """Attacks a certified model: how near to the truth its radii are, and whether one is too large."""
    run = read_run(file)
    (weights,) = file.parent.rglob("*.ckpt")
    with TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(run.config)
        cli = command_line([f"--config={config}", "--trainer.logger=false"], run=False)
    cli.model.load_state_dict(torch.load(weights, weights_only=True)["state_dict"])
    model = cli.model.double().eval().requires_grad_(False)
    part = cli.datamodule.parts["test"]
    rows = slice(None, None, max(1, len(part) // samples))
    inputs, target = {name: value[rows].double() for name, value in part.inputs.items()}, part.target[rows]
    certificate = model.certify(inputs)
    cells = []
    for names in (list(inputs), *([name] for name in inputs)):
        radius = certificate.radius(names)
        with kept_rows():
            found = MinimumNorm(Budget(1.0, modalities=names), restarts=1).search(model, inputs, target).factor
        usable = (certificate.prediction == target) & found.isfinite()
        ratio = radius[usable] / found[usable]
        violations = int((ratio > 1 + 1e-9).sum())  # where the bound is attained, the last digits are chance
        of = "joint" if len(names) > 1 else names[0]
        cells.append(f"{of} {ratio.mean():.3f} (largest {ratio.max():.4f}, violations {violations} of {len(ratio)})")
    return f"{run.method}/{run.data}/{run.seed}: {'; '.join(cells)}"


def main() -> None:
    """Read, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of a comparison that has been done")
    parser.add_argument("--check", action="store_true", help="attack the certified models")
    parser.add_argument("--seeds", type=int, nargs="+", help="of the models to attack, by default all")
    parser.add_argument("--samples", type=int, default=100, help="of the test part to attack, evenly spread")
    options = parser.parse_args()
    runs = load_runs(options.folder)
    if options.check:
        sys.path.append(str(Path(__file__).parent / "held_out"))  # data modules that the configs name
        for file in sorted(options.folder.rglob("run.json")):
            run = read_run(file)
            if CERTIFIED in run.numbers and (options.seeds is None or run.seed in options.seeds):
                print(check(file, options.samples), flush=True)
        return
    names = [name for name in NAMES if any(run.data == name for run in runs)]
    found = {name: rows_of(run for run in runs if run.data == name) for name in names}
    for name, rows in found.items():
        print(f"\n{NAMES[name]}\n\n{numbers_table(rows)}")
        if any(method.startswith("at_") for method in rows):
            print(f"\n{differences(rows)}")
    if drawn := {name: paired(rows) for name, rows in found.items() if name != "watch"}:
        draw(drawn, options.folder / "certified.svg")
        print(f"\nfigure: {options.folder / 'certified.svg'}")


if __name__ == "__main__":
    main()
