# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
from collections import Counter

import pytest
import torch
from lightning.pytorch import LightningModule, seed_everything
from torch import nn
from torch.utils.data import DataLoader

from lightning_crmt import CRMTModule
from lightning_crmt.callbacks import ModalityReliance
from lightning_crmt.encoders import MLP
from lightning_crmt.metrics import mismatched_inputs, mismatched_pairs

CLASSES = 4


def batch(size, seed=0, gaps=False, classes=CLASSES):
    draw = torch.Generator().manual_seed(seed)
    target = torch.randint(classes, (size,), generator=draw)
    one_hot = nn.functional.one_hot(target, CLASSES).float()
    inputs = {"audio": one_hot.clone(), "image": one_hot.clone(), "text": one_hot.clone()}
    if gaps:
        inputs |= {f"{name}.present": torch.rand(size, generator=draw) < 0.6 for name in ("audio", "image", "text")}
    return inputs, target


def slow_pairs(inputs, target, modality):
    """Straight from the words of the docstring."""
    names = ["audio", "image", "text"]
    size, has = len(target), {name: inputs.get(f"{name}.present", torch.ones(len(target)).bool()) for name in names}
    found = []
    for row in range(size):
        if not has[modality][row]:
            continue
        others = [
            other for other in range(size)
            if target[other] != target[row] and any(has[name][other] for name in names if name != modality)
        ]  # fmt: skip
        if others:
            found.append((row, others[row % len(others)]))
    return found


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("classes", [1, 2, 4])
def test_pairs_are_as_the_words_say(gaps, classes):
    for seed in range(10):
        inputs, target = batch(1 + 3 * seed, seed, gaps, classes)
        for modality in ("audio", "text"):
            rows, partners = mismatched_pairs(inputs, target, modality)
            assert list(zip(rows.tolist(), partners.tolist(), strict=True)) == slow_pairs(inputs, target, modality)


@pytest.mark.parametrize("in_order", [False, True])
def test_partners_are_spread_over_the_batch(in_order):
    inputs, target = batch(400)
    target = target.sort().values if in_order else target
    _, partners = mismatched_pairs(inputs, target, "audio")
    assert max(Counter(partners.tolist()).values()) <= CLASSES


def test_presence_tokens_and_context_travel_with_their_modality():
    inputs = {
        "audio": torch.arange(3.0)[:, None], "audio.rate": torch.tensor([10, 11, 12]),
        "text": torch.tensor([[7, 0], [8, 8], [9, 0]]), "text.mask": torch.tensor([[1, 0], [1, 1], [1, 0]]),
        "text.present": torch.tensor([True, True, False]), ".scale": torch.ones(3),
    }  # fmt: skip
    rows, partners = torch.tensor([0, 2]), torch.tensor([1, 0])
    of_audio = mismatched_inputs(inputs, "audio", rows, partners)
    of_text = mismatched_inputs(inputs, "text", rows, partners)
    for name, value in inputs.items():
        assert torch.equal(of_audio[name], value[rows if name.startswith("audio") else partners]), name
        assert torch.equal(of_text[name], value[rows if name.startswith("text") else partners]), name
    with pytest.raises(ValueError, match=r"`context` must say which modality '\.mask' of the batch belongs to"):
        mismatched_inputs(inputs | {".mask": torch.arange(3)}, "audio", rows, partners)
    named = mismatched_inputs(inputs | {".mask": torch.arange(3)}, "text", rows, partners, {"mask": "text"})
    assert named[".mask"].tolist() == [0, 2]


class Decides(LightningModule):
    """Answers the class that one modality says, or always another one than all say."""

    def __init__(self, by):
        super().__init__()
        self.by = by

    def forward(self, audio, image, text):
        said = {"audio": audio, "image": image, "text": text}
        return said[self.by] if self.by in said else -(audio + image + text)

    def test_step(self, batch, batch_idx): ...


def loader(size=60, *, gaps=False, classes=CLASSES, batch_size=20):
    inputs, target = batch(size, gaps=gaps, classes=classes)
    samples = [({name: value[i] for name, value in inputs.items()}, target[i]) for i in range(size)]
    return DataLoader(samples, batch_size=batch_size)


def measured(make_trainer, model, callback, data):
    trainer = make_trainer(callback)
    trainer.test(model, data, verbose=False)
    return {str(name): float(value) for name, value in trainer.callback_metrics.items()}


NAMES = ("audio", "image", "text")


def test_what_a_model_follows_is_found(make_trainer):
    numbers = measured(make_trainer, Decides("audio"), ModalityReliance(inputs=NAMES), loader())
    assert numbers == {
        f"test/{what}/{name}": float(what == ("reliance" if name == "audio" else "reliance_rest"))
        for name in NAMES
        for what in ("reliance", "reliance_rest", "reliance_neither")
    }
    numbers = measured(make_trainer, Decides("nothing"), ModalityReliance(inputs=NAMES), loader())
    assert [numbers[f"test/reliance_neither/{name}"] for name in NAMES] == [1.0] * 3


def test_numbers_are_as_a_slow_loop_counts_them(make_trainer):
    """Of a real model, on samples that lack modalities, over several batches."""
    seed_everything(0, verbose=False)
    model = CRMTModule({name: MLP(CLASSES, 8) for name in NAMES}, num_classes=CLASSES)
    callback = ModalityReliance()
    data = loader(gaps=True)
    kept = [(inputs, target) for inputs, target in data]
    numbers = measured(make_trainer, model, callback, data)
    model.eval()
    for name in NAMES:
        own = rest = pairs = 0
        for inputs, target in kept:
            for row, partner in slow_pairs(inputs, target, name):
                one = {key: value[[row if key.partition(".")[0] == name else partner]] for key, value in inputs.items()}
                predicted = model(one).logits.argmax()
                own, rest, pairs = own + (predicted == target[row]), rest + (predicted == target[partner]), pairs + 1
        assert numbers[f"test/reliance/{name}"] == pytest.approx(float(own) / pairs)
        assert numbers[f"test/reliance_rest/{name}"] == pytest.approx(float(rest) / pairs)
        assert numbers[f"test/reliance_neither/{name}"] == pytest.approx(1 - float(own + rest) / pairs)
        assert callback.samples[f"test/reliance/{name}"] == pairs


def test_nothing_random_is_touched(make_trainer):
    callback, data = ModalityReliance(inputs=NAMES), loader()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    inputs, target = next(iter(data))
    torch.set_rng_state(before)
    mismatched_pairs(inputs, target, "audio")
    assert torch.equal(torch.get_rng_state(), before)
    runs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        runs.append(measured(make_trainer, Decides("audio"), callback, data))
    assert runs[0] == runs[1]


def test_batches_of_one_class_are_left_out_and_warned_of_once(make_trainer):
    callback = ModalityReliance(inputs=NAMES)
    with pytest.warns(UserWarning, match="found a partner of another class for 0 of 60 samples only"):
        numbers = measured(make_trainer, Decides("audio"), callback, loader(classes=1))
    assert numbers == {}
    mixed = [*loader(20, classes=1), *loader(40)]
    numbers = measured(make_trainer, Decides("audio"), ModalityReliance(inputs=NAMES), DataLoader(mixed, None))
    assert numbers["test/reliance/audio"] == 1.0


def test_labels_and_a_single_modality_are_refused_before_training(make_trainer):
    labels = CRMTModule({name: MLP(CLASSES, 8) for name in NAMES}, num_classes=CLASSES, multi_label=True)
    with pytest.raises(ValueError, match="needs a target of one class per sample, got labels"):
        make_trainer(ModalityReliance()).fit(labels, loader(), loader())
    alone = CRMTModule({"audio": MLP(CLASSES, 8)}, num_classes=CLASSES)
    with pytest.raises(ValueError, match=r"needs at least two modalities to compare, got \['audio'\]"):
        make_trainer(ModalityReliance()).fit(alone, loader(), loader())
    with pytest.raises(ValueError, match=r"`context` must name modalities among \['audio', 'image', 'text'\]"):
        make_trainer(ModalityReliance(inputs=NAMES, context={"mask": "speech"})).test(Decides("audio"), loader())
    samples = [({name: torch.ones(2) for name in NAMES}, torch.tensor([True, False])) for _ in range(4)]
    with pytest.raises(ValueError, match="got labels"):
        make_trainer(ModalityReliance(inputs=NAMES)).test(Decides("audio"), DataLoader(samples, 2))


@pytest.mark.parametrize(
    ("target", "modality", "error", "message"),
    [
        (torch.zeros(5).long(), "speech", ValueError, "`modality` must be one of at least two"),
        (torch.zeros(5), "audio", TypeError, "`target` must be a tensor of integer class indices"),
        (torch.zeros(4).long(), "audio", ValueError, "`target` must have a class for each of 5 samples, got 4"),
    ],
)
def test_wrong_arguments_are_named(target, modality, error, message):
    with pytest.raises(error, match=message):
        mismatched_pairs(batch(5)[0], target, modality)
