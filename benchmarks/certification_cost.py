# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What a certificate costs beyond the forward pass, per sample, and how that grows with classes and modalities.

python benchmarks/certification_cost.py

Median over repeats of certify() and all radii, on one thread, with the constants computed before: they belong to the
weights, not to the samples.

And of model.certify() and all radii for 1,000 samples of three views of mfeat's sizes, where the network is run,
examined, bounded and run in double precision too: with weights that are known from the certificate before, and with
weights that changed. Run it with two checkouts on PYTHONPATH in turn to compare them.
"""

import argparse
import time
from statistics import median

import torch
from torch import nn

from lightning_crmt import CRMTModule, LipschitzConstants, OrthogonalFusion, Soundness, certify
from lightning_crmt.encoders import MLP, LipschitzMLP

VIEWS = {"fou": 76, "mor": 6, "pix": 240}


def cost(num_classes: int, modalities: int, samples: int, repeats: int) -> float:
    """Milliseconds per sample."""
    names = [f"m{i}" for i in range(modalities)]
    head = OrthogonalFusion(dict.fromkeys(names, 512), num_classes)
    lipschitz = LipschitzConstants({name: torch.tensor(1.0) for name in names}, "encoder", Soundness.SOUND)
    with torch.no_grad():
        output = head({name: nn.functional.normalize(torch.randn(samples, 512)) for name in names})
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            certificate = certify(output, head, lipschitz)
            certificate.radius()
            for name in names:
                certificate.radius([name])
            times.append(time.perf_counter() - start)
    return 1000 * median(times) / samples


def of_model(kind: type[nn.Module], repeats: int) -> list[float]:
    """Milliseconds of the forward pass, and of a certificate of known and of changed weights."""
    model = CRMTModule({name: kind(size, 64) for name, size in VIEWS.items()}, num_classes=10).eval()
    inputs = {name: torch.randn(1000, size) for name, size in VIEWS.items()}

    def seconds(certified: bool) -> float:
        start = time.process_time()
        if certified:
            certificate = model.certify(inputs)
            certificate.radius()
            for name in VIEWS:
                certificate.radius([name])
        else:
            model(inputs)
        return time.process_time() - start

    times: list[list[float]] = [[], [], []]
    seconds(True)
    for _ in range(3 * repeats):
        with torch.no_grad():
            times[0].append(seconds(False))
            times[1].append(seconds(True))
            for weight in model.encoders.parameters():
                weight.mul_(1.0001)
            times[2].append(seconds(True))
    return [1000 * median(each) for each in times]


def main() -> None:
    """Print a line per size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{'K':>5}{'M':>4}{'ms a sample':>14}{'ns per K M':>13}")
    for num_classes, modalities in [(10, 2), (31, 2), (100, 2), (309, 2), (10, 4), (100, 4)]:
        found = cost(num_classes, modalities, arguments.samples, arguments.repeats)
        print(f"{num_classes:>5}{modalities:>4}{found:>14.5f}{1e6 * found / num_classes / modalities:>13.1f}")
    print(f"\n{'ms':<14}{'forward':>10}{'known weights':>16}{'changed weights':>18}")
    for kind in (MLP, LipschitzMLP):
        forward, known, changed = of_model(kind, arguments.repeats)
        print(f"{kind.__name__:<14}{forward:>10.1f}{known:>16.1f}{changed:>18.1f}")


if __name__ == "__main__":
    main()
