# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The floor weighs the best of each class, by whatever loss, and keeps a class that training would give up."""

import math
import re

import pytest
import torch
from lightning.pytorch import seed_everything
from torch.utils.data import DataLoader

from lightning_crmt import CRMTModule, LinearFusion
from lightning_crmt.callbacks import ClassFloor, RadiusTraining
from lightning_crmt.data import MultimodalDataset
from lightning_crmt.encoders import MLP, LipschitzMLP
from lightning_crmt.losses import EMMA
from lightning_crmt.modality import FusionOutput
from lightning_crmt.targets import MixedTarget


def best_by_loops(logits, target, share):
    """The places of the best samples of each class."""
    margins = [min(row[y] - row[j] for j in range(len(row)) if j != y) for row, y in zip(logits, target, strict=True)]
    best = set()
    for k in set(target):
        places = sorted((i for i, y in enumerate(target) if y == k), key=lambda i: -margins[i])
        best |= set(places[: math.ceil(share * len(places) - 1e-9)])
    return best


def cross_entropy_by_loops(row, y):
    return math.log(sum(math.exp(value - row[y]) for value in row))


def term_by_loops(logits, target, share, weight):
    best = best_by_loops(logits, target, share)
    return weight * sum(cross_entropy_by_loops(logits[i], target[i]) for i in best) / len(target)


@pytest.fixture
def module():
    return CRMTModule({"a": MLP(3, 4), "b": MLP(2, 4)}, num_classes=4, rho=0.0, head=LinearFusion)


@pytest.fixture
def samples():
    torch.manual_seed(0)
    return torch.randn(30, 4).double(), torch.randint(0, 4, (30,))


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("weight", [0.5, 3.0])
def test_the_term_is_the_formula(share, weight, module, samples):
    logits, target = samples
    term = ClassFloor(share, weight=weight).term(module, FusionOutput(logits, {}), target)
    assert term.item() == pytest.approx(term_by_loops(logits.tolist(), target.tolist(), share, weight), rel=1e-9)


def test_a_class_without_samples_takes_no_part_and_a_single_sample_is_the_best(module, samples):
    logits, target = samples
    few = torch.cat([(target == 1).nonzero()[:1, 0], (target == 2).nonzero()[:5, 0]])
    term = ClassFloor(0.2).term(module, FusionOutput(logits[few], {}), target[few])
    assert term.item() == pytest.approx(term_by_loops(logits[few].tolist(), target[few].tolist(), 0.2, 1.0))
    assert len(best_by_loops(logits[few].tolist(), target[few].tolist(), 0.2)) == 2


def test_mixed_samples_count_for_both_classes(module, samples):
    logits, target = samples
    floor, output = ClassFloor(0.3), FusionOutput(logits, {})
    first, second = (floor.term(module, output, each) for each in (target, target.flip(0)))
    mixed = floor.term(module, output, MixedTarget(target, target.flip(0), share=0.75))
    torch.testing.assert_close(mixed, 0.75 * first + 0.25 * second)


def test_of_probabilities_the_most_probable_class_counts(module, samples):
    logits, target = samples
    sure = torch.nn.functional.one_hot(target, 4).double()
    floor, output = ClassFloor(0.3), FusionOutput(logits, {})
    torch.testing.assert_close(floor.term(module, output, sure), floor.term(module, output, target))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 0.0}, "`share` must be above 0, got 0.0"),
        ({"share": 1.1}, "`share` must be at most 1, got 1.1"),
        ({"weight": 0.0}, "`weight` must be above 0, got 0.0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ClassFloor(**settings)


def test_labels_are_refused(make_trainer, data):
    model = CRMTModule({"fou": MLP(76, 10), "mor": MLP(6, 10)}, num_classes=10, multi_label=True)
    with pytest.raises(ValueError, match="ClassFloor goes by the class of a sample"):
        make_trainer(ClassFloor()).fit(model, datamodule=data)


def overlapping(count):
    """Three classes, two of which overlap; of these one is more frequent."""
    target = torch.arange(count) % 10
    target = torch.where(target < 4, 0, torch.where(target < 7, 1, 2))
    generator = torch.Generator().manual_seed(count)
    centres = torch.tensor([[0.0, 1.0], [0.15, 1.0], [0.0, -1.0]])
    inputs = {name: centres[target] + 0.3 * torch.randn(count, 2, generator=generator) for name in ("a", "b")}
    return inputs, target


def test_a_class_that_training_gives_up_is_kept(make_trainer):
    inputs, target = overlapping(1000)

    def recall(*floor):
        seed_everything(0, verbose=False)
        optimizer = lambda groups: torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.0)  # noqa: E731
        encoders = {"a": LipschitzMLP(2, 8, (8,)), "b": LipschitzMLP(2, 8, (8,))}
        model = CRMTModule(encoders, num_classes=3, head=LinearFusion, optimizer=optimizer)
        loader = DataLoader(MultimodalDataset(*overlapping(500)), batch_size=100, shuffle=True)
        callbacks = [RadiusTraining(0.3, rho=0.0, objective=EMMA()), *floor]
        make_trainer(*callbacks, max_epochs=20, limit_val_batches=0).fit(model, loader, loader)
        with torch.no_grad():
            right = model.eval()(inputs).logits.argmax(dim=1) == target
        return [right[target == k].float().mean().item() for k in range(3)]

    given_up, kept = recall(), recall(ClassFloor(0.3, weight=2.0))
    assert min(given_up) < 0.05
    assert min(kept) > 0.2
    assert kept[2] > 0.95
