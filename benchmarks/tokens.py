# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What step 2 should do with the integration weights of tokens.

python benchmarks/tokens.py --seeds 5

UCI Multiple Features, two views, one of them made discrete: each feature becomes one of four tokens, by the quartiles
of the training part. The same model after step 1, on the test part:

- step 1: as it is;
- kept: the weights of tokens stay, and the norm of the others', as ``reweight`` does;
- free: tokens cannot change, so their constants are 0, and all weights are trained;
- embedding: constants of tokens are those of their embedding, in units of that.

Accuracy, accuracy without the continuous view and without tokens, mean estimated radius of the continuous view with the
tokens clean (wrong answers count as 0), accuracy under PGD of 10 steps and radius 0.3 on it, and how the mean
integration weights compare; mean and standard deviation over seeds.
"""

import argparse
import logging
import warnings

import torch
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_crmt import CRMTModule, LipschitzConstants, Soundness, certify, estimate_lipschitz, keep_scores, reweight
from lightning_crmt.attacks import PGD, Budget, EmbeddedModel
from lightning_crmt.data import MultimodalDataset, UCIMultiFeatures
from lightning_crmt.encoders import MLP
from lightning_crmt.metrics import credited_radius

BINS = 4


def tokens_of(part: MultimodalDataset, view: str, cuts: Tensor) -> dict[str, Tensor]:
    """The inputs, one view in tokens of which each feature has its own."""
    value = part.inputs[view]
    found = sum((value > cut).long() for cut in cuts)
    return {**part.inputs, view: found + BINS * torch.arange(value.shape[1])}


def rules(model: CRMTModule, inputs: dict[str, Tensor], target: Tensor, view: str) -> dict[str, nn.Module]:
    """The head after step 2 by each rule."""
    kept = keep_scores(model, [(inputs, target)])
    free = {**kept.constants.values, view: torch.zeros(10)}
    embedded = EmbeddedModel(model, {view: f"encoders.{view}.0"})
    of_embedding = estimate_lipschitz(embedded, [embedded.embed(inputs)])
    constants = {
        "kept": kept.constants,
        "free": LipschitzConstants(free, of="scores", soundness=Soundness.ESTIMATED),
        "embedding": of_embedding,
    }
    heads = {rule: reweight(model.head, kept.scores, kept.target, each).head for rule, each in constants.items()}
    return {"step 1": model.head, **heads}


def run(seed: int, view: str, epochs: int) -> dict[str, list[float]]:
    """Numbers by rule."""
    seed_everything(seed, verbose=False)
    data = UCIMultiFeatures(views=("fou", "mor"), seed=seed)
    data.setup()
    train, test = data.parts["train"], data.parts["test"]
    cuts = torch.quantile(train.inputs[view], torch.linspace(0, 1, BINS + 1)[1:-1], dim=0)
    inputs, tested = tokens_of(train, view, cuts), tokens_of(test, view, cuts)
    (other,) = set(inputs) - {view}
    size = inputs[view].shape[1]
    text = nn.Sequential(nn.Embedding(BINS * size, 16), nn.Flatten(), nn.Linear(16 * size, 64), nn.ReLU())
    encoders = {other: MLP(inputs[other].shape[1], 64), view: text.append(nn.Linear(64, 64))}
    model = CRMTModule(encoders, 10)
    loader = DataLoader(MultimodalDataset(inputs, train.target), batch_size=64, shuffle=True)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    Trainer(max_epochs=epochs, accelerator="cpu", enable_checkpointing=False, **quiet).fit(model, loader)
    model.eval()
    found = {}
    for rule, head in rules(model, inputs, train.target, view).items():
        model.head = head.eval()
        with torch.no_grad():
            output = model(tested)
        radius = credited_radius(certify(output, None, estimate_lipschitz(model, [tested], of="margins")), test.target)
        moved = PGD(Budget({other: 0.3}), steps=10)(model, tested, test.target)
        with torch.no_grad():
            attacked = model(moved).logits
            without = [head.fuse({n: s for n, s in output.scores.items() if n != gone}) for gone in (other, view)]
        weights = head.integration_weights
        right = [(each.argmax(1) == test.target).float().mean() for each in (output.logits, *without, attacked)]
        ratio = weights[other].mean() / weights[view].mean()
        found[rule] = [float(each) for each in (*right[:3], radius.mean(), right[3], ratio.detach())]
    return found


def main() -> None:
    """Print the two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--epochs", type=int, default=30, help="of step 1")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    columns = ("clean", "no view", "no tokens", "radius", "PGD", "weights")
    for view, other in (("mor", "fou"), ("fou", "mor")):
        found = [run(seed, view, arguments.epochs) for seed in range(arguments.seeds)]
        print(f"\n{view} in tokens, {other} continuous")
        print(" " * 10, *(f"{column:>15}" for column in columns))
        for rule in found[0]:
            numbers = torch.tensor([each[rule] for each in found])
            shown = zip(numbers.mean(0), numbers.std(0), strict=True)
            print(f"{rule:10}", *(f"{mean:7.3f} ± {spread:.3f}" for mean, spread in shown))


if __name__ == "__main__":
    main()
