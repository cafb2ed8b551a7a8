# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Are our attacks as strong as those of other libraries, and what do they cost?

pip install "lightning_crmt[attacks]"
python benchmarks/attacks.py

UCI Multiple Features, test part, float32, all attacks on the joint l2 ball. Models:

- JT, AT, radius: on the views fou + mor, joint training, the same on adversarial batches (joint l2 ball of 0.1), and
  1-Lipschitz encoders with RadiusTraining, as in examples/mfeat_certified.yaml;
- conv, conv AT: two convolutional networks and a linear head on the upper and the lower half of the pixels, trained on
  clean and on adversarial batches.

First table: robust accuracy and seconds of our strongest fixed-budget attack and of pyautoattack (apgd-ce, apgd-t,
fab-t, all wrong classes), one after the other on the same samples. Second: share of samples for which our minimum-norm
search ends more than 0.1 % further away than foolbox's DDN (the best of one run away from the target and one towards
each wrong class), and the other way round. Seconds are of the processor, on one thread; of pyautoattack's, about a
fifth is the handing over.
"""

import importlib.util
import logging
import time
import warnings
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import TypeVar

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from measuring import Row, benchmark_parser, save
from torch import Tensor, nn

from lightning_crmt import CRMTModule, LinearFusion
from lightning_crmt.attacks import AutoAttack, Budget, FoolboxDDN, LossAscent, MinimumNorm, strongest
from lightning_crmt.callbacks import RadiusTraining
from lightning_crmt.data import UCIMultiFeatures
from lightning_crmt.data.module import MultimodalDataset
from lightning_crmt.encoders import MLP, LipschitzMLP
from lightning_crmt.methods import AdversarialTraining

RADII = {
    "JT": (0.02, 0.05, 0.1),
    "AT": (0.05, 0.1, 0.2),
    "radius": (0.1, 0.2, 0.3),
    "conv": (0.1, 0.2, 0.3),
    "conv AT": (0.1, 0.2, 0.3),
}
Found = TypeVar("Found")


class Halves(UCIMultiFeatures):
    """The 16 x 15 pixels of a digit as two images of 8 x 15, the upper and the lower."""

    def load(self):
        parts = super().load()
        return {n: MultimodalDataset(self._cut(part.inputs["pix"]), part.target) for n, part in parts.items()}

    def _cut(self, pixels: Tensor) -> dict[str, Tensor]:
        image = pixels.reshape(-1, 1, 16, 15)
        return {"upper": image[:, :, :8], "lower": image[:, :, 8:]}


def encoder() -> nn.Module:
    """(B, 1, 8, 15) to (B, 32)."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * 4 * 8, 32),
    )  # fmt: skip


def on_views(row: str) -> tuple[CRMTModule, int, list[Callback]]:
    """A model of the two views, its epochs, and how it is trained."""
    if row == "radius":
        model = CRMTModule(
            {"fou": LipschitzMLP(76, 64, (64,)), "mor": LipschitzMLP(6, 6, ())},
            num_classes=10,
            head=LinearFusion,
            optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.0),
            lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=60),
        )
        return model, 60, [RadiusTraining(radius=0.2)]
    plain = CRMTModule(
        {"fou": MLP(76, 64, (128,)), "mor": MLP(6, 64, (128,))}, num_classes=10, rho=0, head=LinearFusion
    )
    attack = LossAscent(Budget(0.1), steps=7, step_size=0.35)
    return plain, 40, [AdversarialTraining(attack)] if row == "AT" else []


def on_halves(row: str) -> tuple[CRMTModule, int, list[Callback]]:
    """The same of the two halves of the pixels."""
    model = CRMTModule({"upper": encoder(), "lower": encoder()}, num_classes=10, rho=0, head=LinearFusion)
    return model, 8, [AdversarialTraining(LossAscent(Budget(0.1)))] if row.endswith("AT") else []


def trained(row: str) -> tuple[CRMTModule, dict[str, Tensor], Tensor]:
    """The model of a row, and the test part."""
    seed_everything(0, verbose=False)
    halves = row.startswith("conv")
    data = Halves(views=("pix",), seed=0) if halves else UCIMultiFeatures(views=("fou", "mor"), seed=0)
    model, epochs, callbacks = on_halves(row) if halves else on_views(row)
    trainer = Trainer(
        max_epochs=epochs, callbacks=callbacks, limit_val_batches=0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    data.setup()
    part = data.parts["test"]
    return model.float().eval(), part.inputs, part.target


def timed(search: Callable[[], Found]) -> tuple[Found, float]:
    """What it returns, and the seconds of the processor it took: on one thread, what else runs does not count."""
    start = time.process_time()
    found = search()
    return found, time.process_time() - start


def fixed_budget(row: str, model: CRMTModule, inputs: dict[str, Tensor], target: Tensor) -> list[float]:
    """Lines of the first table; seconds of ours over theirs."""

    def accuracy(moved: dict[str, Tensor]) -> float:
        with torch.no_grad():
            return (model(moved).logits.argmax(1) == target).double().mean().item()

    print(f"{row:10}{'clean':>8}{accuracy(inputs):9.3f}")
    shares = []
    for radius in RADII[row]:
        attacks = strongest(Budget(radius)), AutoAttack(Budget(radius))
        (ours, seconds), (theirs, other) = (timed(partial(each, model, inputs, target)) for each in attacks)
        cells = f"{accuracy(ours):9.3f}{accuracy(theirs):9.3f}{seconds:10.2f}{other:9.2f}{seconds / other:8.2f}"
        print(f"{row:10}{radius:8.2f}{cells}", flush=True)
        shares.append(seconds / other)
    return shares


def minimum_norm(row: str, model: CRMTModule, inputs: dict[str, Tensor], target: Tensor, steps: int) -> str:
    """A line of the second table."""
    unit = Budget(RADII[row][-1])
    searches = MinimumNorm(unit).search, FoolboxDDN(unit, steps=steps).search
    ((_, ours), seconds), ((_, theirs), other) = (timed(partial(each, model, inputs, target)) for each in searches)
    further, nearer = (ours > theirs * 1.001).double().mean(), (theirs > ours * 1.001).double().mean()
    worst = (ours / theirs).nan_to_num(1.0).max().item()
    return f"{row:10}{further:10.2%}{nearer:10.2%}{worst:10.4f}{seconds:10.2f}{other:9.2f}"


def main() -> None:
    """Train, attack with both, print."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--models", nargs="+", choices=list(RADII), default=list(RADII))
    parser.add_argument("--samples", type=int, default=200, help="so many of the test part")
    parser.add_argument("--ddn-steps", type=int, default=300, help="of each of its ten runs")
    arguments = parser.parse_args()
    question = "Our strongest attack over pyautoattack, processor time"
    if importlib.util.find_spec("pyautoattack") is None and arguments.rows:
        return save([Row(question, note="pyautoattack is not installed")], arguments.rows)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    torch.set_num_threads(1)
    distances, shares = [], []
    print(f"{'':10}{'radius':>8}{'ours':>9}{'theirs':>9}{'seconds':>10}{'theirs':>9}{'ratio':>8}")
    for row in arguments.models:
        model, inputs, target = trained(row)
        rows = torch.arange(len(target))[:: max(1, len(target) // arguments.samples)][: arguments.samples]
        batch = {name: value[rows] for name, value in inputs.items()}, target[rows]
        shares += fixed_budget(row, model, *batch)
        distances.append(minimum_norm(row, model, *batch, arguments.ddn_steps))
    print(f"\n{'':10}{'further':>10}{'nearer':>10}{'worst':>10}{'seconds':>10}{'theirs':>9}")
    print("\n".join(distances))
    return save([Row(question, median(shares))], arguments.rows)


if __name__ == "__main__":
    main()
