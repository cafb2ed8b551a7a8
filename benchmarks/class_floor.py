# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What does it cost to give up no class? Certified accuracy over the lowest recall of a class.

lightning-crmt compare benchmarks/class_floor.yaml
python benchmarks/class_floor.py results/class_floor

A table, in percent of the test part, mean and standard deviation over seeds, a line for each radius of training and
weight of the floor: clean accuracy, lowest recall of a class, and certified accuracy at 0.1, 0.2 and 0.3. The figure,
class_floor.svg, has the means at 0.2 over the lowest recall, a line for each weight.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from certified_beside_attacked import table, told

from lightning_crmt.report import load_runs

LOWEST = "test/certified_accuracy_worst_class/joint@0"
SHOWN = {
    "clean": "test/accuracy/joint",
    "lowest recall": LOWEST,
    **{f"certified {radius}": f"test/certified_accuracy/joint@{radius}" for radius in ("0.1", "0.2", "0.3")},
}

#: Looks by weight.
LOOKS = {"0": ("#777777", "v", ":"), "1": ("#1d7a46", "o", "--"), "2": ("#0b5fa5", "^", "-")}


def settings(method: str) -> tuple[str, str]:
    """Radius and weight, out of the name.

    >>> settings("radius 0.15, weight 0")
    ('0.15', '0')
    """
    radius, weight = (part.split()[1] for part in method.split(", "))
    return radius, weight


def numbers_table(numbers: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """A line for each radius and weight."""
    lines = [
        [*settings(method), *(told([100 * run[key] for run in runs]) for key in SHOWN.values()), str(len(runs))]
        for method, runs in numbers.items()
    ]
    return table(["radius", "weight", *SHOWN, "seeds"], lines)


def draw(numbers: Mapping[str, Sequence[Mapping[str, float]]], path: Path) -> None:
    """The frontier at 0.2."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams |= {"svg.fonttype": "none", "font.size": 9}
    figure, axes = plt.subplots(figsize=(5, 3.4), layout="constrained")
    for weight, (colour, marker, line) in LOOKS.items():
        points = [
            (settings(method)[0], *(100 * mean(run[key] for run in runs) for key in (LOWEST, SHOWN["certified 0.2"])))
            for method, runs in numbers.items()
            if settings(method)[1] == weight
        ]
        label = f"floor of weight {weight}" if weight != "0" else "no floor"
        axes.plot([x for _, x, _ in points], [y for *_, y in points], color=colour, marker=marker, ls=line, label=label)
        for radius, x, y in points:
            axes.annotate(radius, (x, y), textcoords="offset points", xytext=(4, 4), color=colour, fontsize=8)
    axes.set_title("beside each point the radius of training", fontsize=9)
    axes.set_xlabel("lowest recall of a class, in percent")
    axes.set_ylabel("certified at 0.2, in percent")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None, "Description": "Certified accuracy over the lowest recall of a class"})
    plt.close(figure)


def main() -> None:
    """Read, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of a comparison that has been done")
    options = parser.parse_args()
    numbers: dict[str, list[dict[str, float]]] = {}
    for run in load_runs(options.folder):
        if not run.error:
            numbers.setdefault(run.method, []).append(dict(run.numbers))
    numbers = dict(sorted(numbers.items()))
    print(numbers_table(numbers))
    draw(numbers, options.folder / "class_floor.svg")
    print(f"\nfigure: {options.folder / 'class_floor.svg'}")


if __name__ == "__main__":
    main()
