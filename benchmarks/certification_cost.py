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

from collections.abc import Callable

import torch
from measuring import Row, Turns, benchmark_parser, in_turn, save
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

    @torch.no_grad()
    def certified() -> None:
        certificate = certify(output, head, lipschitz)
        certificate.radius()
        for name in names:
            certificate.radius([name])

    return in_turn({"certify": certified}, repeats).milliseconds("certify") / samples


def of_model(kind: type[nn.Module], repeats: int) -> Turns:
    """A forward pass, and certificates of known and of changed weights."""
    model = CRMTModule({name: kind(size, 64) for name, size in VIEWS.items()}, num_classes=10).eval()
    inputs = {name: torch.randn(1000, size) for name, size in VIEWS.items()}

    @torch.no_grad()
    def forward() -> None:
        model(inputs)

    def certified() -> None:
        certificate = model.certify(inputs)
        certificate.radius()
        for name in VIEWS:
            certificate.radius([name])

    @torch.no_grad()
    def changed() -> None:
        for weight in model.encoders.parameters():
            weight.mul_(1.0001)
        certified()

    works: dict[str, Callable[[], None]] = {"forward": forward, "changed": changed, "known": certified}
    return in_turn(works, 3 * repeats)


def main() -> None:
    """Print a line per size."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    print(f"{'K':>5}{'M':>4}{'ms a sample':>14}{'ns per K M':>13}")
    for num_classes, modalities in [(10, 2), (31, 2), (100, 2), (309, 2), (10, 4), (100, 4)]:
        found = cost(num_classes, modalities, arguments.samples, arguments.repeats)
        print(f"{num_classes:>5}{modalities:>4}{found:>14.5f}{1e6 * found / num_classes / modalities:>13.1f}")
        if modalities == 2 and num_classes in (10, 309):
            rows.append(Row(f"Certificate and all radii of a sample, {num_classes} classes", found, "ms"))
    print(f"\n{'ms':<14}{'forward':>10}{'known weights':>16}{'changed weights':>18}")
    for kind in (MLP, LipschitzMLP):
        turns = of_model(kind, arguments.repeats)
        forward, known, changed = (turns.milliseconds(name) for name in ("forward", "known", "changed"))
        print(f"{kind.__name__:<14}{forward:>10.1f}{known:>16.1f}{changed:>18.1f}")
        about = f"Sound certificates of 1,000 samples over a forward pass, {kind.__name__}"
        rows.append(Row(about, turns.ratio("known", "forward")))
    save(rows, arguments.rows)


if __name__ == "__main__":
    main()
