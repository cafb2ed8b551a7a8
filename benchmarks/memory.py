# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""How much memory do attacks, certificates and step 2 take beside a training step on the same batch?

python benchmarks/memory.py

Two small convolutional nets on pictures and spectrograms of 32 x 32, batches of 64, 10 and 100 classes. Each work runs
in a process of its own that has the model and the batch already, and did the same with two samples: what is shown is
how far the memory of the process rises above that, at its peak; the median of several. Linux only: peaks are read from
/proc, and large blocks go back to the system at once.
"""

import ctypes
import multiprocessing
import re
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import torch
from measuring import Row, benchmark_parser, save
from torch import Tensor, nn

from lightning_crmt import CRMTModule, keep_scores
from lightning_crmt.attacks import APGD, PGD, Budget, MinimumNorm

#: Of mallopt: from this size on a block is mapped by itself. Left alone, glibc raises it with what was freed, and it is
#: chance how much of what is freed still counts as used: ratios of 1.1 became 12.
M_MMAP_THRESHOLD = -3

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def encoder(channels: int) -> nn.Module:
    """(B, channels, 32, 32) to (B, 128), of layers that have a bound."""
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 8 * 8, 128),
    )  # fmt: skip


def works(classes: int, samples: int) -> dict[str, Callable[[], object]]:
    """What is measured, by name, the training step first."""
    torch.manual_seed(0)
    channels = {"image": 3, "audio": 1}
    model = CRMTModule({name: encoder(c) for name, c in channels.items()}, num_classes=classes)
    inputs = {name: torch.randn(samples, c, 32, 32) for name, c in channels.items()}
    target = torch.randint(classes, (samples,))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        taken, right = model.training_batch((inputs, target))
        model.crmt_loss(model(taken), right).backward()
        optimizer.step()

    def attacked(attack: Callable[..., dict[str, Tensor]]) -> Callable[[], object]:
        with torch.no_grad():
            answers = model.eval()(inputs).logits.argmax(dim=1)  # nothing is wrong already
        return lambda: attack(model, inputs, answers)

    return {
        "training step": step,
        "PGD": attacked(PGD(Budget(0.5), steps=3)),
        "APGD": attacked(APGD(Budget(0.5), steps=5)),
        "MinimumNorm": attacked(MinimumNorm(Budget(0.5), steps=3, restarts=1, classes=1)),
        "pass of step 2": lambda: keep_scores(model, [(inputs, target)], "estimated"),
        "sound certificates": lambda: model.certify(inputs),
    }


def resident(name: str) -> int:
    """Bytes of this process, now (VmRSS) or at its peak (VmHWM)."""
    found = re.search(rf"{name}:\s+(\d+) kB", STATUS.read_text())
    assert found is not None
    return int(found[1]) * 1024


def rise(work: Callable[[], object], small: Callable[[], object]) -> int:
    """Bytes by which the memory rises while a process of its own does the work, after the same work on less."""

    def child(sender: Connection) -> None:
        small()  # code comes into memory too
        before = resident("VmRSS")
        RESET.write_text("5")
        work()
        sender.send(resident("VmHWM") - before)

    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=child, args=(sender,))
    process.start()
    sender.close()
    found: int = receiver.recv()
    process.join()
    return found


def main() -> None:
    """Print a table per number of classes."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100])
    arguments = parser.parse_args()
    if not RESET.exists():
        return save([Row("Memory over that of a training step", note="needs Linux")], arguments.rows)
    torch.set_num_threads(1)
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 2**17)
    rows = []
    for classes in arguments.classes:
        print(f"{f'{classes} classes':<20}{'MiB':>8}{'ratio':>8}")
        whole, small = works(classes, 64), works(classes, 2)
        step = 0.0
        for name, work in whole.items():
            peak = median(rise(work, small[name]) for _ in range(arguments.repeats))
            step = step or peak
            print(f"{name:<20}{peak / 2**20:>8.0f}{peak / step:>8.2f}", flush=True)
            if name != "training step":
                about = f"Memory of {name} over that of a training step, {classes} classes"
                rows.append(Row(about, peak / step, goal=1.5))
    return save(rows, arguments.rows)


if __name__ == "__main__":
    main()
