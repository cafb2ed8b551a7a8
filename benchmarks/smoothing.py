# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What smoothing certifies of ordinary networks, beside what 1-Lipschitz networks guarantee.

python benchmarks/smoothing.py mfeat
# FOLDER holds the Free Spoken Digit Dataset, fetched if it is not there, or an .npz of it
python benchmarks/smoothing.py digits --recordings FOLDER
python benchmarks/smoothing.py mfeat --part val --rows smoothed --sigma 0.1 --weight 20  # what settings are chosen on

Data: two views of UCI Multiple Features (400 samples), or audio-visual digits, voices held out (200 samples). Rows:

- smoothed: a plain MLP, or AttentionFusion over tokens of small convolutions, trained by NoiseConsistency, smoothed;
- without noise: the same network trained as it is, smoothed by the same noise;
- sound: 1-Lipschitz encoders and RadiusTraining, the recipe of examples/*_certified.yaml, not smoothed.

clean: right, of the classifier that is certified (an abstention is not right); abstains; certified: right, and nothing
within the radius changes that, with probability 1 - alpha of 0.999 for a sample (sound: always); attacked: still right
after PGD on it, through AveragedModel where it is smoothed, judged by other draws: 20 steps and 16 draws for mfeat, 10
steps and 8 draws on 100 of the samples for digits. Mean and standard deviation over seeds.
"""

import argparse
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import Tensor, nn
from tqdm.auto import tqdm

from lightning_crmt import CRMTModule, LinearFusion, SmoothedClassifier
from lightning_crmt.attacks import PGD, AveragedModel, Budget
from lightning_crmt.callbacks import RadiusTraining
from lightning_crmt.data import MultimodalDataModule, SpokenWrittenDigits, UCIMultiFeatures
from lightning_crmt.encoders import MLP, LipschitzCNN, LipschitzMLP
from lightning_crmt.fusion import AttentionFusion
from lightning_crmt.methods import NoiseConsistency
from lightning_crmt.modality import Inputs

SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")


class Tokens(nn.Module):
    """Two small convolutions, a token for each of their places, and where it is."""

    def __init__(self, height: int, width: int, size: int = 32) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 16, 8, stride=4, padding=2, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, size, 3, stride=2, padding=1),
        )
        with torch.no_grad():
            places = self.convolutions(torch.zeros(2, 1, height, width)).flatten(2).shape[2]
        self.places = nn.Parameter(0.02 * torch.randn(places, size))
        self.out_features = size

    def forward(self, x: Tensor) -> Tensor:
        return self.convolutions(x).flatten(2).transpose(1, 2) + self.places


def mfeat_data(seed: int, recordings: Path | None) -> UCIMultiFeatures:
    """Two views of digits."""
    return UCIMultiFeatures(views=("fou", "mor"), seed=seed)


def digits_data(seed: int, recordings: Path | None) -> SpokenWrittenDigits:
    """Two voices are tested, one other validated on."""
    first, second, third = (SPEAKERS[(seed + place) % 6] for place in range(3))
    return SpokenWrittenDigits(
        recordings, held_out_speakers=[first, second], validation_speakers=[third], seed=seed,
        download=recordings is not None and recordings.suffix != ".npz",
    )  # fmt: skip


def adamw(rate: float, epochs: int, decay: float = 0.01) -> dict[str, Callable[..., object]]:
    """AdamW and a learning rate that falls to 0."""
    return {
        "optimizer": lambda groups: torch.optim.AdamW(groups, lr=rate, weight_decay=decay),
        "lr_scheduler": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs),
    }


def plain_mlp(epochs: int) -> CRMTModule:
    """A network without any bound."""
    encoders = {"fou": MLP(76, 64, (128,)), "mor": MLP(6, 64, (128,))}
    return CRMTModule(encoders, num_classes=10, rho=0, head=LinearFusion)


def attention(epochs: int) -> CRMTModule:
    """A transformer over tokens of both modalities."""
    head = partial(AttentionFusion, width=32, dropout=0.0, scores="auxiliary")
    encoders = {"audio": Tokens(64, 40), "image": Tokens(28, 28)}
    return CRMTModule(encoders, num_classes=10, rho=0, head=head, **adamw(2e-3, epochs))


class Task(NamedTuple):
    """A data set, the plain network for it, and the recipe that was best on the validation part."""

    data: Callable[[int, Path | None], MultimodalDataModule]
    network: Callable[[int], CRMTModule]
    radii: tuple[float, ...]
    samples: int
    sigma: float
    weight: float
    epochs: int
    #: Of the attacks: samples, steps, and draws that they average over.
    attacked: tuple[int, int, int]


TASKS = {
    "mfeat": Task(
        mfeat_data, plain_mlp, (0.1, 0.2, 0.3), 400, sigma=0.15, weight=10.0, epochs=100, attacked=(400, 20, 16)
    ),
    "digits": Task(
        digits_data, attention, (0.25, 0.5, 1.0), 200, sigma=0.35, weight=5.0, epochs=40, attacked=(100, 10, 8)
    ),
}
ROWS = ("smoothed", "without noise", "sound")


def fit(model: CRMTModule, data: MultimodalDataModule, epochs: int, *methods: Callback) -> CRMTModule:
    """The model, trained."""
    Trainer(
        max_epochs=epochs, callbacks=list(methods), limit_val_batches=0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
    ).fit(model, datamodule=data)  # fmt: skip
    return model.eval()


def train(name: str, row: str, seed: int, data: MultimodalDataModule, task: Task) -> CRMTModule:
    """The network of a row."""
    seed_everything(seed, verbose=False)
    if row == "sound" and name == "mfeat":
        encoders = {"fou": LipschitzMLP(76, 64, (64,)), "mor": LipschitzMLP(6, 6, ())}
        model = CRMTModule(encoders, num_classes=10, head=LinearFusion, **adamw(1e-2, 60, decay=0.0))
        return fit(model, data, 60, RadiusTraining(radius=0.2)).double()
    if row == "sound":
        encoders = {m: LipschitzCNN(1, 64, input_size=shape[1:]) for m, shape in data.shapes.items()}
        model = CRMTModule(encoders, num_classes=10, head=LinearFusion, **adamw(1e-2, 20, decay=0.0))
        return fit(model, data, 20, RadiusTraining(radius=0.5)).double()
    methods = [NoiseConsistency(task.sigma, weight=task.weight)] if row == "smoothed" else []
    return fit(task.network(task.epochs), data, task.epochs, *methods)


def samples(data: MultimodalDataModule, part: str, count: int) -> tuple[dict[str, Tensor], Tensor]:
    """So many of a part, by chance, the same for all rows."""
    inputs, target = data.parts[part][:]
    chosen = torch.randperm(len(target), generator=torch.Generator().manual_seed(0))[:count]
    return {name: value[chosen] for name, value in inputs.items()}, target[chosen]


def measure(row: str, model: CRMTModule, task: Task, inputs: Inputs, target: Tensor, attacks: bool) -> dict[str, float]:
    """All numbers of one trained network."""
    if row == "sound":
        inputs = {name: value.double() for name, value in inputs.items()}
        certificate, attacked = model.certify(inputs), model

        def answers(given: Inputs) -> Tensor:
            with torch.no_grad():
                return model(given).logits.argmax(dim=1)
    else:
        certificate = SmoothedClassifier(model, task.sigma).certify(inputs, radii=task.radii)
        attacked = AveragedModel(model, task.attacked[2], noise=task.sigma, batch_size=4096)
        answers = SmoothedClassifier(model, task.sigma, seed=1).predict

    some, steps, _ = task.attacked
    right = certificate.prediction == target
    found = {"clean": share(right), "abstains": share(certificate.prediction < 0)}
    if row != "sound":
        found["draws"] = certificate.draws.double().mean().item()
    for threat, names in {"joint": list(inputs), **{name: [name] for name in inputs}}.items():
        for radius in task.radii:
            found[f"certified {threat} {radius}"] = share(right & (certificate.radius(names) > radius))
            if attacks:
                clean = {name: value[:some] for name, value in inputs.items()}
                moved = PGD(Budget(radius, modalities=names), steps=steps)(attacked, clean, target[:some])
                found[f"attacked {threat} {radius}"] = share(right[:some] & (answers(moved) == target[:some]))
    return found


def run(
    name: str, task: Task, rows: list[str], part: str, recordings: Path | None, attacks: bool, seed: int
) -> dict[str, dict[str, float]]:
    """The numbers of one seed, by row."""
    quiet()
    data = task.data(seed, recordings)
    data.prepare_data()
    data.setup()
    inputs, target = samples(data, part, task.samples)
    return {row: measure(row, train(name, row, seed, data, task), task, inputs, target, attacks) for row in rows}


def share(which: Tensor) -> float:
    """Of ones that are true."""
    return which.double().mean().item()


def quiet() -> None:
    """One thread, and no word of Lightning's."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)


def show(rows: dict[str, list[dict[str, float]]], keys: Sequence[str]) -> None:
    """A table: a line per number, a column per row."""
    print(f"{'':24}" + "".join(f"{row:>18}" for row in rows))
    for key in keys:
        found = [[run[key] for run in runs if key in run] for runs in rows.values()]
        cells = [f"{mean(v):.3f} ± {stdev(v) if len(v) > 1 else 0:.3f}" if v else "-" for v in found]
        print(f"{key:24}" + "".join(f"{cell:>18}" for cell in cells))


def main() -> None:
    """Train, attack, certify, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=TASKS)
    parser.add_argument("--recordings", type=Path, help="for digits: folder of the recordings, or an .npz of it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="which, not how many")
    parser.add_argument("--part", choices=["val", "test"], default="test", help="val: to choose settings on")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--sigma", type=float, help="in the place of the one that was chosen")
    parser.add_argument("--weight", type=float, help="of the consistency, in the place of the one that was chosen")
    parser.add_argument("--without-attacks", action="store_true", help="faster")
    arguments = parser.parse_args()
    if arguments.data == "digits" and arguments.recordings is None:
        parser.error("digits needs --recordings: the installed coefficients do not say who speaks")
    quiet()
    task = TASKS[arguments.data]
    chosen = {"sigma": arguments.sigma, "weight": arguments.weight}
    task = task._replace(**{name: value for name, value in chosen.items() if value is not None})
    attacks = not arguments.without_attacks
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        runs = partial(run, arguments.data, task, arguments.rows, arguments.part, arguments.recordings, attacks)
        found = list(tqdm(pool.map(runs, arguments.seeds), total=len(arguments.seeds), leave=False))
    rows = {row: [each[row] for each in found] for row in arguments.rows}
    print(f"{arguments.data}, {arguments.part}, sigma {task.sigma}, consistency {task.weight}, {task.epochs} epochs")
    show(rows, max((list(runs[0]) for runs in rows.values()), key=len))


if __name__ == "__main__":
    main()
