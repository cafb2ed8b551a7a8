# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What a smoothed certificate costs: draws of sequential tests and of fixed ones, and time beside the bare model.

python benchmarks/smoothing_cost.py draws mfeat
python benchmarks/smoothing_cost.py draws digits --recordings FOLDER --seeds 0 --samples 100
python benchmarks/smoothing_cost.py overhead
python benchmarks/smoothing_cost.py resnet

draws: the networks of benchmarks/smoothing.py, certified at their radii by sequential tests and from 10,000 fixed
draws, at the same error level and of the same stream of noise: mean draws, their ratio, and the share of samples whose
answer differs at a radius, where what is given up counts as not certified. Beside that how often two runs of the fixed
test differ whose noise has different seeds.

overhead: processor time of certificates from fixed draws, of drawing the noise alone, and of as many bare forward
passes on noisy samples that lie ready; the three take turns, and the median of their runs is shown. Overhead is what
remains when the noise is drawn, over the bare passes.

resnet: two ResNet-18s with random weights on images of 64 x 64 and spectrograms of 64 x 40, 20 samples, one radius:
what it takes on a processor. Their answers mean nothing.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median

import torch
from lightning.pytorch import seed_everything
from smoothing import TASKS, Task, attention, plain_mlp, quiet, samples, share, train
from torch import Tensor

from lightning_crmt import CRMTModule, LinearFusion, SmoothedCertificate, SmoothedClassifier
from lightning_crmt.encoders import ConvNet2d, ResNet18
from lightning_crmt.modality import Inputs
from lightning_crmt.smoothing.noisy_batch import BLOCK, NoisyBatch, content_seeds

FIXED = 10_000
SHAPES = {"audio": (1, 64, 40), "image": (1, 28, 28)}


def compare_draws(name: str, task: Task, seeds: list[int], recordings: Path | None) -> None:
    """The table of draws."""
    few, same_noise, other_noise = [], {r: [] for r in (0.0, *task.radii)}, {r: [] for r in (0.0, *task.radii)}
    for seed in seeds:
        data = task.data(seed, recordings)
        data.prepare_data()
        data.setup()
        inputs, _ = samples(data, "test", task.samples)
        model = train(name, "smoothed", seed, data, task)
        sequential = SmoothedClassifier(model, task.sigma).certify(inputs, radii=task.radii)
        fixed, again = (SmoothedClassifier(model, task.sigma, seed=s, max_draws=FIXED).certify(inputs) for s in (0, 1))
        few.append(sequential.draws.double().mean().item())
        for radius in same_noise:
            here, there, elsewhere = (answered(each, radius) for each in (sequential, fixed, again))
            same_noise[radius].append(share(here != there))
            other_noise[radius].append(share(elsewhere != there))
    fixed_draws = FIXED + BLOCK
    ratio = fixed_draws / mean(few)
    print(
        f"{name}, sigma {task.sigma}: {mean(few):.0f} draws in the mean, {fixed_draws} fixed, {ratio:.1f} times fewer"
    )
    print(f"{'radius':>8}{'answers differ':>18}{'two fixed runs':>18}")
    for radius in same_noise:
        print(f"{radius:>8}{mean(same_noise[radius]):>18.2%}{mean(other_noise[radius]):>18.2%}")


def answered(certificate: SmoothedCertificate, radius: float) -> Tensor:
    """Whether there is an answer, and it is certified at a radius above 0."""
    return ~certificate.abstained & (certificate.radius() > radius if radius else True)


def processor_time(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each; they take turns, the first one is not counted."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            start = time.process_time()
            run()
            if repeat:
                times[name].append(time.process_time() - start)
    return {name: median(each) for name, each in times.items()}


def overhead(model: CRMTModule, inputs: Inputs, draws: int, repeats: int) -> dict[str, float]:
    """Seconds of certificates, of noise and of bare passes."""
    smoothed, size = SmoothedClassifier(model, 0.25, max_draws=draws), len(next(iter(inputs.values())))
    everyone, sigma = list(range(size)), dict.fromkeys(inputs, 0.25)

    def noise() -> list[dict[str, Tensor]]:
        seeds = content_seeds(inputs, 0)
        return [
            noisy
            for purpose, count in (("select", BLOCK), ("judge", draws))
            for _, noisy in NoisyBatch(inputs, sigma, {}, {}, seeds, purpose).draws(everyone, count, 1024)
        ]

    ready = noise()

    @torch.no_grad()
    def bare() -> None:
        for noisy in ready:
            model(noisy)

    def draw() -> None:
        seeds = content_seeds(inputs, 0)
        for purpose, count in (("select", BLOCK), ("judge", draws)):
            for _ in NoisyBatch(inputs, sigma, {}, {}, seeds, purpose).draws(everyone, count, 1024):
                pass

    return processor_time({"certify": lambda: smoothed.certify(inputs), "noise": draw, "bare": bare}, repeats)


def networks() -> dict[str, tuple[CRMTModule, dict[str, tuple[int, ...]], int, int]]:
    """Networks, the shapes of their inputs, samples and draws."""
    convolutions = {name: ConvNet2d(1, 64) for name in SHAPES}
    return {
        "MLPs": (plain_mlp(1), {"fou": (76,), "mor": (6,)}, 32, 4032),
        "convolutions": (CRMTModule(convolutions, 10, rho=0, head=LinearFusion), SHAPES, 4, 960),
        "attention": (attention(1), SHAPES, 4, 1984),
    }


def main() -> None:
    """Print the table that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["draws", "overhead", "resnet"])
    parser.add_argument("data", nargs="?", choices=TASKS, default="mfeat", help="of draws")
    parser.add_argument("--recordings", type=Path, help="see benchmarks/smoothing.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="which, not how many; of draws")
    parser.add_argument("--samples", type=int, help="fewer than the task has; of draws")
    parser.add_argument("--sigma", type=float, help="in the place of the one that was chosen; of draws")
    parser.add_argument("--repeats", type=int, default=9, help="of overhead")
    arguments = parser.parse_args()
    quiet()
    seed_everything(0, verbose=False)
    if arguments.what == "draws":
        task = TASKS[arguments.data]
        task = task._replace(sigma=arguments.sigma or task.sigma, samples=arguments.samples or task.samples)
        compare_draws(arguments.data, task, arguments.seeds, arguments.recordings)
    elif arguments.what == "overhead":
        print(f"{'':16}{'draws':>8}{'certify, s':>12}{'noise, s':>10}{'bare, s':>10}{'overhead':>10}{'noise/bare':>12}")
        for name, (model, shapes, size, draws) in networks().items():
            inputs = {each: torch.randn(size, *shape) for each, shape in shapes.items()}
            found = overhead(model.eval(), inputs, draws, arguments.repeats)
            rest = (found["certify"] - found["noise"]) / found["bare"] - 1
            print(
                f"{name:16}{size * (draws + BLOCK):>8}{found['certify']:>12.3f}{found['noise']:>10.3f}"
                f"{found['bare']:>10.3f}{rest:>10.1%}{found['noise'] / found['bare']:>12.1%}"
            )
    else:
        model = CRMTModule({"audio": ResNet18(1), "image": ResNet18(3)}, 10, rho=0, head=LinearFusion).eval()
        inputs = {"audio": torch.randn(20, 1, 64, 40), "image": torch.randn(20, 3, 64, 64)}
        start = time.process_time()
        certificate = SmoothedClassifier(model, 0.25, max_draws=1000, batch_size=64).certify(inputs, radii=[0.1])
        took, draws = time.process_time() - start, int(certificate.draws.sum())
        print(f"{took:.0f} s of processor time for {draws} draws around 20 samples, {1000 * took / draws:.1f} ms each")


if __name__ == "__main__":
    main()
