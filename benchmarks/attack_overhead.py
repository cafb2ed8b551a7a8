# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What does an attack cost beyond the model's own passes?

python benchmarks/attack_overhead.py

PGD of 20 steps on a small convolutional net of two colour images, batch 64, against the bare passes of the same count:
20 forward and backward to the inputs, and two forward alone, for the clean prediction and the verdict on what it found.
Nothing falls, so that no step is saved: a bias makes one class win by far.
glibc is told to keep freed memory. By default it gives some back to the system after every pass and fetches it again,
of one or of the other as luck has it, and that is as much as what is measured here.
Both in turn, several times; the median is shown, in milliseconds: of the processor for one thread, where what else runs
does not count, and of wall clock for more.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from statistics import median

import torch
from torch import Tensor, nn

from lightning_crmt import CRMTModule, LinearFusion
from lightning_crmt.attacks import PGD, Budget
from lightning_crmt.frozen_eval import differentiable, frozen_eval

STEPS = 20


KEEP = {"MALLOC_TRIM_THRESHOLD_": "1000000000", "MALLOC_MMAP_THRESHOLD_": "1000000000"}


def encoder(size: int) -> nn.Module:
    """(B, 3, size, size) to (B, 32)."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * (size // 4) ** 2, 32),
    )  # fmt: skip


def one_pass(model: CRMTModule, inputs: dict[str, Tensor], target: Tensor) -> tuple[Tensor, ...]:
    """Gradients of the loss that the attack raises."""
    leaves = differentiable(inputs, model)
    logits = model(leaves).logits
    rival = logits.scatter(1, target[:, None], -torch.inf).amax(dim=1)
    loss = (rival - logits.gather(1, target[:, None]).squeeze(1)).sum()
    return torch.autograd.grad(loss, list(leaves.values()))


def bare(model: CRMTModule, inputs: dict[str, Tensor], target: Tensor) -> None:
    """The passes that the attack makes, on the same loss, and nothing else."""
    with frozen_eval(model):
        for _ in range(2):  # the clean prediction, and the verdict
            with torch.no_grad():
                model(inputs)
        for _ in range(STEPS):
            one_pass(model, inputs, target)


def milliseconds(work: Callable[[], object], clock: Callable[[], float]) -> float:
    """What one call takes."""
    start = clock()
    work()
    return 1e3 * (clock() - start)


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 32], help="of the images, multiples of 4")
    arguments = parser.parse_args()
    if not os.environ.keys() >= KEEP.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP})
    print(f"{'image':>8}{'threads':>8}{'bare':>12}{'PGD':>12}{'overhead':>12}")
    for size, threads in product(arguments.sizes, arguments.threads):
        torch.manual_seed(0)
        encoders = {"front": encoder(size), "side": encoder(size)}
        model = CRMTModule(encoders, num_classes=10, rho=0, head=LinearFusion).eval()
        inputs = {name: torch.rand(arguments.batch_size, 3, size, size) for name in encoders}
        target = torch.zeros(arguments.batch_size, dtype=torch.long)
        with torch.no_grad():
            model.head.bias[0] += 1e3
        attack = PGD(Budget(0.5), steps=STEPS)
        torch.set_num_threads(threads)
        clock = time.process_time if threads == 1 else time.perf_counter
        works = partial(bare, model, inputs, target), partial(attack, model, inputs, target)
        for work in works:  # the first call is slower
            work()
        pairs = [[milliseconds(work, clock) for work in works] for _ in range(arguments.repetitions)]
        without, whole = (median(side) for side in zip(*pairs, strict=True))
        more = median(attacked / plain for plain, attacked in pairs) - 1
        print(f"{size:8}{threads:8}{without:12.1f}{whole:12.1f}{more:12.1%}", flush=True)


if __name__ == "__main__":
    main()
