# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What does an attack cost beyond the model's own passes?

python benchmarks/attack_overhead.py

PGD, APGD and MinimumNorm of 20 steps, the last towards one class, on a small convolutional net of two colour images,
batch 64, against the bare passes: as many forward, and forward and backward to the inputs, of as many samples each as
the attack makes, which is recorded first. A bias makes one class win by far, so that nothing falls and no step of PGD
and APGD is saved.
glibc is told to keep freed memory. By default it gives some back to the system after every pass and fetches it again,
of one or of the other as luck has it, and that is as much as what is measured here.
Both in turn, several times; the median is shown, in milliseconds: of the processor for one thread, where what else runs
does not count, and of wall clock for more.
"""

import os
import sys
import time
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
from measuring import Row, benchmark_parser, in_turn, save
from torch import Tensor, nn

from lightning_crmt import CRMTModule, LinearFusion
from lightning_crmt.attacks import APGD, PGD, Budget, BudgetedAttack, MinimumNorm
from lightning_crmt.frozen_eval import differentiable, frozen_eval

STEPS = 20
ATTACKS: list[BudgetedAttack] = [
    PGD(Budget(0.5), steps=STEPS),
    APGD(Budget(0.5), steps=STEPS),
    MinimumNorm(Budget(0.5), steps=STEPS, restarts=1, classes=1),
]
KEEP = {"MALLOC_TRIM_THRESHOLD_": "1000000000", "MALLOC_MMAP_THRESHOLD_": "1000000000"}


class Pass(NamedTuple):
    """A call of the model: of how many samples, and whether gradients were taken."""

    samples: int
    differentiated: bool


def encoder(size: int) -> nn.Module:
    """(B, 3, size, size) to (B, 32)."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * (size // 4) ** 2, 32),
    )  # fmt: skip


def passes_of(attack: BudgetedAttack, model: CRMTModule, inputs: dict[str, Tensor], target: Tensor) -> list[Pass]:
    """What the attack asks of the model."""
    passes: list[Pass] = []

    def record(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        value = next(iter(arguments[0].values()))
        passes.append(Pass(len(value), torch.is_grad_enabled() and value.requires_grad))

    hook = model.register_forward_pre_hook(record)
    attack(model, inputs, target)
    hook.remove()
    return passes


def one_pass(model: CRMTModule, inputs: dict[str, Tensor], target: Tensor) -> tuple[Tensor, ...]:
    """Gradients of the loss that the attack raises."""
    leaves = differentiable(inputs, model)
    logits = model(leaves).logits
    rival = logits.scatter(1, target[:, None], -torch.inf).amax(dim=1)
    loss = (rival - logits.gather(1, target[:, None]).squeeze(1)).sum()
    return torch.autograd.grad(loss, list(leaves.values()))


def bare(passes: list[Pass], model: CRMTModule, inputs: dict[str, Tensor], target: Tensor) -> None:
    """The same passes, and nothing else."""
    with frozen_eval(model):
        for samples, differentiated in passes:
            part = {name: value[:samples] for name, value in inputs.items()}
            if differentiated:
                one_pass(model, part, target[:samples])
            else:
                with torch.no_grad():
                    model(part)


def main() -> None:
    """Measure, print."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 32], help="of the images, multiples of 4")
    arguments = parser.parse_args()
    if not os.environ.keys() >= KEEP.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP})
    rows = []
    print(f"{'attack':<14}{'image':>8}{'threads':>8}{'bare':>12}{'attack':>12}{'overhead':>12}")
    for size, threads in product(arguments.sizes, arguments.threads):
        torch.manual_seed(0)
        encoders = {"front": encoder(size), "side": encoder(size)}
        model = CRMTModule(encoders, num_classes=10, rho=0, head=LinearFusion).eval()
        batch = {name: torch.rand(arguments.batch_size, 3, size, size) for name in encoders}
        batch_and_target = batch, torch.zeros(arguments.batch_size, dtype=torch.long)
        with torch.no_grad():
            model.head.bias[0] += 1e3
        torch.set_num_threads(threads)
        clock = time.process_time if threads == 1 else time.perf_counter
        for attack in ATTACKS:
            passes = passes_of(attack, model, *batch_and_target)
            works = {
                "bare": partial(bare, passes, model, *batch_and_target),
                "attack": partial(attack, model, *batch_and_target),
            }
            turns = in_turn(works, arguments.repetitions, clock=clock)
            name, more = type(attack).__name__, 100 * (turns.ratio("attack", "bare") - 1)
            times = "".join(f"{turns.milliseconds(work):12.1f}" for work in works)
            print(f"{name:<14}{size:8}{threads:8}{times}{more:10.1f} %", flush=True)
            if threads == 1:
                rows.append(Row(f"{name} beyond its bare passes, two nets on {size} x {size}", more, "%", goal=10))
    save(rows, arguments.rows)


if __name__ == "__main__":
    main()
