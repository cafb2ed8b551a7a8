# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Is noise in the ratio of the budgets worth it, where each view has a budget of its own?

python benchmarks/product_budgets.py --figure budgets.png

UCI Multiple Features, fou + mor, test part. One view has three times the budget of the other: t times (1.73, 0.58) or
(0.58, 1.73), so that t is the geometric mean. The plain network of benchmarks/smoothing.py, trained and smoothed with
noise

- in the ratio of the budgets, of the geometric mean 0.15 that was chosen for equal noise;
- isotropic, of the same geometric mean: the same volume, for which noise in the ratio has the largest set of tolerated
  budgets, by the inequality of the means;
- isotropic, of the same sum of variances: more noise, with which the tolerated budgets in this direction are as large
  as in the ratio, if the network answers as surely.

The share of samples that are right and probably certified (alpha 0.001, 10,000 draws) at the budgets; mean and standard
deviation over seeds.
"""

import argparse
import math
from pathlib import Path

import torch
from lightning.pytorch import seed_everything
from smoothing import TASKS, fit, plain_mlp, quiet, share
from tqdm.auto import tqdm

from lightning_crmt import SmoothedClassifier
from lightning_crmt.methods import NoiseConsistency

RATIO = 3.0
SIZES = torch.linspace(0, 0.4, 41)
SHOWN = (0.1, 0.2, 0.3)
DIRECTIONS = {
    "more for fou": {"fou": math.sqrt(RATIO), "mor": 1 / math.sqrt(RATIO)},
    "more for mor": {"fou": 1 / math.sqrt(RATIO), "mor": math.sqrt(RATIO)},
}


def noises(direction: dict[str, float]) -> dict[str, dict[str, float]]:
    """Standard deviations by the name of the line."""
    middle = TASKS["mfeat"].sigma
    ratio = {name: middle * each for name, each in direction.items()}
    spread = math.sqrt(sum(each**2 for each in ratio.values()) / len(ratio))
    return {
        "in the ratio": ratio,
        "isotropic, same volume": dict.fromkeys(ratio, middle),
        "isotropic, same variance": dict.fromkeys(ratio, spread),
    }


def certified(seed: int, sigma: dict[str, float]) -> dict[str, torch.Tensor]:
    """Certified shares at all sizes of the budgets, by direction."""
    task = TASKS["mfeat"]
    data = task.data(seed, None)
    seed_everything(seed, verbose=False)
    model = fit(plain_mlp(task.epochs), data, task.epochs, NoiseConsistency(sigma, weight=task.weight))
    inputs, target = data.parts["test"][:]
    certificate = SmoothedClassifier(model, sigma).certify(inputs)
    right = certificate.prediction == target
    return {
        name: torch.tensor(
            [share(right & certificate.tolerates({m: t * each for m, each in way.items()})) for t in SIZES.tolist()]
        )
        for name, way in DIRECTIONS.items()
    }


def draw(found: dict[str, dict[str, torch.Tensor]], path: Path) -> None:
    """A panel for each direction, a line for each noise."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(found), figsize=(9, 3.6), sharey=True, layout="constrained")
    for panel, (direction, lines) in zip(panels, found.items(), strict=True):
        for (name, runs), style in zip(lines.items(), ("-", "--", ":"), strict=True):
            panel.plot(SIZES, runs.mean(0), style, label=name)
            panel.fill_between(SIZES, runs.amin(0), runs.amax(0), alpha=0.15)
        way = DIRECTIONS[direction]
        panel.set(
            title=direction, xlabel="t of the budgets " + ", ".join(f"{m} {each:.2f} t" for m, each in way.items())
        )
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("probably certified accuracy")
    panels[0].legend(title="noise")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Train, certify, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--figure", type=Path, help="file to draw the shares at all sizes in")
    arguments = parser.parse_args()
    quiet()
    wanted = {name: noises(way) for name, way in DIRECTIONS.items()}
    different = list({tuple(sigma.items()): sigma for lines in wanted.values() for sigma in lines.values()}.values())
    runs = [[certified(seed, sigma) for seed in range(arguments.seeds)] for sigma in tqdm(different, leave=False)]
    found = {
        direction: {
            name: torch.stack([run[direction] for run in runs[different.index(sigma)]]) for name, sigma in lines.items()
        }
        for direction, lines in wanted.items()
    }
    for direction, lines in found.items():
        print(f"{direction:26}" + "".join(f"{f't = {t}':>16}" for t in (0.0, *SHOWN)))
        for name, shares in lines.items():
            at = [shares[:, int((SIZES - t).abs().argmin())] for t in (0.0, *SHOWN)]
            print(f"{name:26}" + "".join(f"{each.mean():>8.3f} ± {each.std():.3f}" for each in at))
    if arguments.figure:
        draw(found, arguments.figure)


if __name__ == "__main__":
    main()
