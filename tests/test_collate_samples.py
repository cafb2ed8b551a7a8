# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
import re
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, default_collate

from lightning_crmt import CRMTModule
from lightning_crmt.callbacks import IntegrationReweighting
from lightning_crmt.data import collate_samples
from lightning_crmt.encoders import MLP

NAN = float("nan")
LACKING = {"audio": torch.zeros(3)}


def samples_lacking(ways, seed=0):
    """Samples of which each lacks audio in one of several ways, or has it; and what should come of them."""
    generator = torch.Generator().manual_seed(seed)
    samples, audio, present = [], [], []
    for index, way in enumerate(ways):
        value = torch.randn(3, generator=generator)
        inputs = {"image": torch.full((2, 2), float(index)), "audio": value}
        if way == "key":
            del inputs["audio"]
        elif way == "none":
            inputs["audio"] = None
        elif way == "flag":
            inputs["audio.present"] = False
        elif way == "nan":
            inputs["audio"] = torch.full((3,), NAN)
        elif way == "flagged":
            inputs["audio.present"] = torch.tensor(True)
        samples.append((inputs, index % 2))
        present.append(way in ("there", "flagged"))
        audio.append(value if present[-1] else torch.zeros(3))
    return samples, torch.stack(audio), torch.tensor(present)


WAYS = ["there", "key", "none", "flag", "nan", "flagged"]


@pytest.mark.parametrize("seed", range(5))
def test_absent_in_whatever_way(seed):
    rng = np.random.default_rng(seed)
    samples, audio, present = samples_lacking(rng.choice(WAYS, size=8).tolist(), seed)
    inputs, target = collate_samples(samples, optional=LACKING, nan_is_absent=["audio"])
    assert set(inputs) == {"audio", "image", "audio.present"}
    assert torch.equal(inputs["audio"], audio)
    assert torch.equal(inputs["audio.present"], present)
    assert inputs["audio.present"].dtype is torch.bool
    assert torch.equal(inputs["image"][:, 0, 0], torch.arange(8.0))
    assert torch.equal(target, torch.arange(8) % 2)


@pytest.mark.parametrize("seed", range(5))
def test_batches_are_pieces_of_the_whole(seed):
    """However samples are dealt out to batches and workers: same entries, same order, same values."""
    rng = np.random.default_rng(seed)
    samples, _, _ = samples_lacking(rng.choice(WAYS, size=12, p=[0.1, 0.3, 0.2, 0.1, 0.2, 0.1]).tolist(), seed)
    collate = partial(collate_samples, optional=LACKING, nan_is_absent=["audio"])
    whole, target = collate(samples)
    for size, workers in ((1, 0), (3, 2), (5, 0)):
        batches = list(DataLoader(samples, batch_size=size, collate_fn=collate, num_workers=workers))
        assert all(list(inputs) == list(whole) for inputs, _ in batches)
        for name, value in whole.items():
            assert torch.equal(torch.cat([inputs[name] for inputs, _ in batches]), value)
        assert torch.equal(torch.cat([each for _, each in batches]), target)


def test_complete_samples_are_collated_as_by_torch():
    samples = [({"a": torch.randn(4), "b": torch.randint(9, (5,))}, torch.tensor(i)) for i in range(3)]
    (inputs, target), (expected, classes) = collate_samples(samples), default_collate(samples)
    assert inputs.keys() == expected.keys()
    assert all(torch.equal(inputs[name], expected[name]) for name in expected)
    assert torch.equal(target, classes)


def test_no_sample_of_a_batch_has_it():
    """The shape is that of the example, also of tokens and sequences."""
    optional = {"audio": np.zeros((1, 4, 6)), "text": torch.zeros(5, dtype=torch.int64)}
    samples = [({"image": torch.ones(2)}, 0), ({"image": torch.ones(2)}, 1)]
    inputs, _ = collate_samples(samples, optional=optional, ragged=["text"], padding_id=7)
    assert inputs["audio"].shape == (2, 1, 4, 6)
    assert inputs["audio"].dtype is torch.float32
    assert not inputs["audio"].any()
    assert torch.equal(inputs["text"], torch.full((2, 5), 7))
    assert not inputs["audio.present"].any()
    # Attention to nothing would be NaN.
    assert inputs["text.attention_mask"].any(dim=1).all()
    attended = torch.nn.functional.scaled_dot_product_attention(
        *(torch.randn(2, 5, 4) for _ in range(3)), attn_mask=inputs["text.attention_mask"][:, None].expand(2, 5, 5)
    )
    assert attended.isfinite().all()


@pytest.mark.parametrize("kind", [list, torch.tensor, np.array])
def test_lengths_that_differ(kind):
    rng = np.random.default_rng(0)
    texts = [rng.integers(1, 50, size=rng.integers(1, 9)).tolist() for _ in range(6)]
    sounds = [rng.normal(size=(len(text) + 1, 2)).tolist() for text in texts]
    samples = [({"text": kind(text), "sound": kind(sound)}, 0) for text, sound in zip(texts, sounds, strict=True)]
    inputs, _ = collate_samples(samples, ragged=["text", "sound"], padding_id=99)
    longest = max(map(len, texts))
    for row, (text, sound) in enumerate(zip(texts, sounds, strict=True)):
        rest = longest - len(text)
        assert inputs["text"][row].tolist() == text + [99] * rest
        assert inputs["text.attention_mask"][row].tolist() == [True] * len(text) + [False] * rest
        assert torch.allclose(inputs["sound"][row], torch.tensor(sound + [[0.0, 0.0]] * rest))
        assert inputs["sound.attention_mask"][row].sum() == len(sound)
    assert inputs["text"].dtype is torch.int64
    assert inputs["sound"].dtype is torch.float32


def test_ragged_and_absent():
    samples = [({"text": [3, 4, 5], "image": torch.ones(2)}, 0), ({"text": None, "image": torch.ones(2)}, 1)]
    inputs, _ = collate_samples(samples, ragged=["text"], optional={"text": [0] * 9})
    assert inputs["text"].tolist() == [[3, 4, 5], [0, 0, 0]]
    assert inputs["text.attention_mask"].tolist() == [[True] * 3, [True, False, False]]
    assert inputs["text.present"].tolist() == [True, False]


def test_without_a_mask():
    samples = [({"text": [3, 4], "sound": [[1.0]]}, 0), ({"text": [5], "sound": [[1.0], [2.0]]}, 1)]
    inputs, _ = collate_samples(samples, ragged=["text", "sound"], masked=["sound"])
    assert set(inputs) == {"text", "sound", "sound.attention_mask"}


def test_masks_of_ones_own():
    """As a tokenizer gives them; those of an absent text are not read."""
    rows = [
        {"input_ids": [5, 6, 7], "attention_mask": [1, 1, 0], "pixels": torch.ones(2), "labels": 1},
        {"input_ids": None, "attention_mask": None, "pixels": torch.ones(2), "labels": 0},
        {"input_ids": [8], "attention_mask": [1], "pixels": torch.ones(2), "labels": 0},
    ]
    inputs, target = collate_samples(
        rows,
        names={"text": "input_ids", "text.attention_mask": "attention_mask", "image": "pixels"},
        target="labels",
        ragged=["text"],
        optional={"text": [0]},
    )
    assert list(inputs) == ["text", "image", "text.present", "text.attention_mask"]
    assert inputs["text.attention_mask"].tolist() == [[1, 1, 0], [1, 0, 0], [1, 0, 0]]
    assert target.tolist() == [1, 0, 0]


def test_context_of_the_whole_batch():
    samples = [({"a": [1.0], ".attention_mask": [1, 1]}, 0), ({"a": [1.0], ".attention_mask": [1]}, 0)]
    assert collate_samples(samples)[0][".attention_mask"].tolist() == [[1, 1], [1, 0]]


def test_a_stream_of_dicts():
    """As WebDataset gives them: keys of its own, numbers of NumPy, and no length."""

    class Stream(IterableDataset):
        def __iter__(self):
            for i in range(7):
                sample = {"__key__": f"{i:04d}", "__url__": "a.tar", "jpg": np.full((4, 4, 3), i, np.uint8)}
                sample["cls"] = np.int64(i % 3)
                if i % 2:
                    sample["npy"] = np.full((2,), i / 2)
                yield sample

    collate = partial(
        collate_samples, names={"image": "jpg", "sound": "npy"}, target="cls", optional={"sound": torch.zeros(2)}
    )
    batches = list(DataLoader(Stream(), batch_size=3, collate_fn=collate))
    assert [len(target) for _, target in batches] == [3, 3, 1]
    assert torch.cat([inputs["sound.present"] for inputs, _ in batches]).tolist() == [bool(i % 2) for i in range(7)]
    image = torch.cat([inputs["image"] for inputs, _ in batches])
    assert image.shape == (7, 4, 4, 3)
    assert torch.allclose(image[:, 0, 0, 0] * 255, torch.arange(7.0))
    assert batches[0][0]["sound"].dtype is torch.float32


@pytest.mark.filterwarnings("default")  # of what it is made of
def test_a_set_of_hugging_face():
    """As lists, as tensors, and as a stream."""
    datasets = pytest.importorskip("datasets")
    rows = {
        "input_ids": [[2, 3, 4], [5], [6, 7], None],
        "features": [[0.5, 1.0], None, [1.5, 2.0], [2.5, 3.0]],
        "label": [0, 1, 1, 0],
    }
    # With a fingerprint, because it cannot pickle all that it would take one of, with some versions of what it needs.
    data = datasets.Dataset(datasets.table.InMemoryTable.from_pydict(rows), fingerprint="rows")
    for given in (data, data.with_format("torch"), data.to_iterable_dataset()):
        collate = partial(
            collate_samples,
            names={"text": "input_ids", "sensor": "features"},
            ragged=["text"],
            optional={"text": [0], "sensor": torch.zeros(2)},
        )
        inputs, target = next(iter(DataLoader(given, batch_size=4, collate_fn=collate)))
        assert inputs["text"].tolist() == [[2, 3, 4], [5, 0, 0], [6, 7, 0], [0, 0, 0]]
        assert inputs["sensor"].tolist() == [[0.5, 1.0], [0.0, 0.0], [1.5, 2.0], [2.5, 3.0]]
        assert inputs["text.present"].tolist() == [True, True, True, False]
        assert inputs["sensor.present"].tolist() == [True, False, True, True]
        assert target.tolist() == [0, 1, 1, 0]


def test_a_fit_on_dicts(make_trainer):
    """Both steps, and a test: what callbacks read of the loader they read by the same function."""
    generator = torch.Generator().manual_seed(0)
    rows = [
        {
            "words": torch.randint(1, 20, (1 + i % 4,), generator=generator).tolist(),
            "sound": None if i % 3 == 0 else torch.randn(4, generator=generator),
            "label": i % 2,
        }
        for i in range(60)
    ]
    collate = partial(
        collate_samples,
        names={"text": "words", "audio": "sound"},
        ragged=["text"],
        masked=[],
        optional={"audio": torch.zeros(4)},
    )
    loader, in_order = (DataLoader(rows, batch_size=7, shuffle=each, collate_fn=collate) for each in (True, False))
    model = CRMTModule(
        {"text": torch.nn.EmbeddingBag(20, 6, padding_idx=0), "audio": MLP(4, 6)}, 2, in_features={"text": 6}
    )
    trainer = make_trainer(IntegrationReweighting(epochs=2), max_epochs=1)
    trainer.fit(model, loader, in_order)
    assert "train/integration_weight/audio" in trainer.callback_metrics
    (numbers,) = trainer.test(model, in_order, verbose=False)
    assert 0 <= numbers["test/accuracy/joint"] <= 1


def test_pictures_have_their_channels_first():
    image = pytest.importorskip("PIL.Image")
    for mode, channels in (("RGB", 3), ("L", 1), ("RGBA", 3), ("P", 3)):
        inputs, _ = collate_samples([({"image": image.new(mode, (5, 4), 255)}, 0)])
        assert inputs["image"].shape == (1, channels, 4, 5)


def test_samples_without_a_class():
    inputs = collate_samples([{"a": [1.0, 2.0]}, {"a": [3.0, 4.0]}], target=None)
    assert inputs["a"].tolist() == [[1.0, 2.0], [3.0, 4.0]]


A, B = {"audio": torch.ones(3), "image": torch.ones(2)}, {"image": torch.ones(2)}


@pytest.mark.parametrize(
    ("samples", "settings", "message"),
    [
        ([(A, 0), (B, 0)], {}, "sample 1 of the batch has no 'audio': if samples may lack it, declare that with an "
         "example of its value, optional={'audio': torch.zeros((3,))}"),
        ([(B, 0)], {"names": ["audio", "image"]}, "sample 0 of the batch has no 'audio'"),
        ([({"audio.present": False, "image": [1.0]}, 0)], {"names": ["audio", "image"]},
         "no sample of the batch has 'audio', so that its shape is not known"),
        ([(A, 0), ({"audio": None, "image": None}, 0)], {"optional": LACKING | {"image": torch.zeros(2)}},
         "sample 1 of the batch has no modality at all, got the keys ['audio', 'image']"),
        ([{"__key__": "n7", "audio": None, "label": 0}], {"optional": LACKING},
         "sample 0 of the batch ('n7') has no modality at all"),
        ([(A, 0), (A | {"audio": [1.0, NAN, 0.0]}, 0)], {"optional": LACKING, "nan_is_absent": ["audio"]},
         "'audio' of sample 1 of the batch must be finite, got 1 NaN and 0 Inf among 3 values; absence is NaN"),
        ([(A | {"audio": [NAN] * 3}, 0)], {"optional": LACKING}, "got 3 NaN and 0 Inf among 3 values; absence is NaN"),
        ([(A | {"image": [np.inf, 0.0]}, 0)], {}, "'image' of sample 0 of the batch must be finite, got 0 NaN and 1"),
        ([(B | {"audio.present": True}, 0)], {"optional": LACKING},
         "sample 0 of the batch has no 'audio', and says that it has, with 'audio.present'"),
        ([(A, 0), (A | {"audio": torch.ones(4)}, 0)], {}, "'audio' of sample 1 of the batch must have the shape (3,), "
         "got (4,); if lengths differ, declare ragged=['audio']"),
        ([(A, 0), (A | {"audio": torch.ones(3, 1)}, 0)], {"ragged": ["audio"]}, "must have the shape (T,), got (3, 1)"),
        ([({"text": [1]}, 0), ({"text": []}, 0)], {"ragged": ["text"]},
         "'text' of sample 1 of the batch: it is empty, a float64 tensor of shape (0,): give None where a sample"),
        ([(A, 0), (A, 1)], {"optional": {"audio": torch.zeros(4)}}, "must have the shape (4,), got (3,)"),
        ([{"image": [1.0]}], {}, "must have its class under `target` = 'label', got the keys ['image']"),
        ([(A, 0)], {"nan_is_absent": ["audio"]}, "`nan_is_absent` must be among `optional`, [], got ['audio']"),
        ([(A, 0)], {"masked": ["audio"]}, "`masked` must be among `ragged`, [], got ['audio']"),
        ([(A | {"depth.mask": [1]}, 0)], {}, "'depth.mask' must begin with one of the modalities ['audio', 'image']"),
        ([(A | {"audio.mask": [1]}, 0), (A, 0)], {}, "sample 1 of the batch has no 'audio.mask', which others have"),
        ([], {}, "`samples` must hold at least one, got none"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_batch(samples, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        collate_samples(samples, **settings)


@pytest.mark.parametrize(
    ("samples", "settings", "message"),
    [
        ([[1, 2, 3]], {}, "sample 0 of the batch must be (inputs, target) with inputs by modality, or a dict, got a l"),
        (
            [({"text": "a title"}, 0)],
            {},
            "'text' of sample 0 of the batch: values must be numbers, got text; turn text",
        ),
        ([({"text": [True]}, 0)], {}, "values must be real numbers, or integers for tokens, got a bool tensor"),
        (
            [({"a": [1, 2]}, 0), ({"a": [1.0, 2.0]}, 0)],
            {},
            "'a' of sample 1 of the batch must be tokens like the others",
        ),
        ([(A, "cat")], {}, "the class of sample 0 of the batch must be an integer, got 'cat'"),
        ([(A, 0.5)], {}, "the class of sample 0 of the batch must be an integer, got a float64 tensor"),
        (
            [(A | {"audio.present": 1}, 0)],
            {},
            "'audio.present' of sample 0 of the batch must be True or False, got a int64",
        ),
        ([(A, 0)], {"ragged": "audio"}, "`ragged` must be names of modalities, got the text 'audio': ['audio']"),
    ],
)
def test_what_is_of_another_kind(samples, settings, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        collate_samples(samples, **settings)
