# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What does an attack cost beyond the model's own passes?

python benchmarks/attack_overhead.py

PGD of 20 steps on a small net of two images, batch 64, against the same number of bare passes: a forward, and a
backward to the inputs. Nothing falls, so that no step is saved: a bias makes one class win by far.
Both in turn, several times; the median is shown, in milliseconds: of the processor for one thread, where what else runs
does not count, and of wall clock for more.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn

from lightning_crmt import CRMTModule, LinearFusion
from lightning_crmt.attacks import PGD, Budget
from lightning_crmt.borrowing import borrow, differentiable

STEPS = 20


def encoder() -> nn.Module:
    """(B, 3, 16, 16) to (B, 32)."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 4 * 4, 32),
    )  # fmt: skip


def bare(model: CRMTModule, inputs: dict[str, Tensor], target: Tensor) -> None:
    """As many passes as the attack makes gradient steps, on the same loss."""
    with borrow(model):
        for _ in range(STEPS):
            leaves = differentiable(inputs, model)
            logits = model(leaves).logits
            rival = logits.scatter(1, target[:, None], -torch.inf).amax(dim=1)
            loss = (rival - logits.gather(1, target[:, None]).squeeze(1)).sum()
            torch.autograd.grad(loss, list(leaves.values()))


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
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = CRMTModule({"front": encoder(), "side": encoder()}, num_classes=10, rho=0, head=LinearFusion).eval()
    inputs = {name: torch.rand(arguments.batch_size, 3, 16, 16) for name in ("front", "side")}
    target = torch.zeros(arguments.batch_size, dtype=torch.long)
    with torch.no_grad():
        model.head.bias[0] += 1e3
    attack = PGD(Budget(0.5), steps=STEPS)
    print(f"{'threads':>8}{'bare':>12}{'PGD':>12}{'overhead':>12}")
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        clock = time.process_time if threads == 1 else time.perf_counter
        works = partial(bare, model, inputs, target), partial(attack, model, inputs, target)
        for work in works:  # the first call is slower
            work()
        pairs = [[milliseconds(work, clock) for work in works] for _ in range(arguments.repetitions)]
        without, whole = (median(side) for side in zip(*pairs, strict=True))
        more = median(attacked / plain for plain, attacked in pairs) - 1
        print(f"{threads:8}{without:12.1f}{whole:12.1f}{more:12.1%}", flush=True)


if __name__ == "__main__":
    main()
