# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
import pickle
import re
import sys
from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch

from lightning_crmt import CRMTModule, cli
from lightning_crmt.data import ArrayData
from lightning_crmt.encoders import MLP

NAN = float("nan")


def loaded(inputs, target, **settings):
    data = ArrayData(inputs, target=target, **settings)
    data.setup()
    return data


def example(size=60, seed=0):
    """Vectors, signals, images as bytes and tokens, of samples that can be told apart by ``id``."""
    rng = np.random.default_rng(seed)
    inputs = {
        "vector": rng.normal(5, 3, (size, 4)),
        "signal": rng.normal(-1, 2, (size, 3, 7)).astype(np.float32),
        "image": rng.integers(0, 256, (size, 5, 5), dtype=np.uint8),
        "id": np.arange(1, size + 1)[:, None],
    }
    return inputs, rng.integers(0, 3, size) if size < 6 else np.arange(size) % 3


def rows_of(part):
    """Which samples a part has, by their ids."""
    return part[:][0]["id"][:, 0] - 1


FORMS = {
    "numpy": lambda inputs, folder: inputs,
    "torch": lambda inputs, folder: {name: torch.from_numpy(value) for name, value in inputs.items()},
    "lists": lambda inputs, folder: {name: list(value) for name, value in inputs.items()},
    "files": lambda inputs, folder: {name: saved(folder, name, value) for name, value in inputs.items()},
    "maps": lambda inputs, folder: {
        name: np.load(saved(folder, name, value), mmap_mode="r") for name, value in inputs.items()
    },
}


def saved(folder, name, value):
    np.save(folder / f"{name}.npy", value)
    return str(folder / f"{name}.npy")


@pytest.mark.parametrize("form", FORMS)
def test_in_whatever_form(form, tmp_path):
    """The same samples, by formulas: standardised by the training part alone, tokens and pixels as they should be."""
    inputs, target = example()
    data = loaded(FORMS[form](inputs, tmp_path), target)
    assert data.shapes == {"vector": (4,), "signal": (3, 7), "image": (5, 5), "id": (1,)}
    assert data.num_classes == 3
    assert {name: len(part) for name, part in data.parts.items()} == {"train": 36, "val": 12, "test": 12}
    train = rows_of(data.parts["train"]).numpy()
    for part in data.parts.values():
        rows = rows_of(part).numpy()
        found, classes = part[:]
        assert list(found) == list(inputs)
        assert classes.tolist() == target[rows].tolist()
        assert found["id"].dtype is torch.int64
        for name, over in (("vector", (0,)), ("signal", (0, 2)), ("image", (0, 2))):
            value = inputs[name].astype(np.float64)
            mean, deviation = (moment(value[train], axis=over, keepdims=True) for moment in (np.mean, np.std))
            assert np.allclose(found[name].numpy(), (value[rows] - mean) / deviation, atol=1e-5)
            assert found[name].dtype is torch.float32


def test_the_same_batches_from_memory_and_from_files(tmp_path):
    """In whatever process, and depending on seed and epoch alone."""
    inputs, target = example()
    orders = {}
    for form in ("numpy", "files"):
        for workers in (0, 2):
            data = loaded(FORMS[form](inputs, tmp_path), target, batch_size=7, num_workers=workers, seed=3)
            loader = data.train_dataloader()
            for epoch in (0, 1, 0):
                loader.sampler.set_epoch(epoch)
                batches = list(loader)
                again = orders.setdefault(epoch, batches)
                assert len(again) == len(batches) == 6
                for (one, one_class), (other, other_class) in zip(again, batches, strict=True):
                    assert torch.equal(one_class, other_class)
                    assert all(torch.equal(one[name], other[name]) for name in inputs)
    assert not torch.equal(orders[0][0][0]["id"], orders[1][0][0]["id"])


def test_files_are_not_read_as_a_whole(tmp_path):
    """And travel to other processes by their names."""
    inputs, target = example()
    part = loaded(FORMS["files"](inputs, tmp_path), target).parts["train"]
    sent = pickle.dumps(part)
    assert len(sent) < 20_000
    assert torch.equal(pickle.loads(sent)[:][0]["signal"], part[:][0]["signal"])
    assert torch.equal(part[3:5][0]["id"][1], part[4][0]["id"])


def test_large_offsets_are_removed_in_double_precision():
    seconds = 1.7e9 + np.arange(50.0)[:, None]
    train = loaded({"time": seconds}, np.arange(50) % 2).parts["train"].inputs["time"]
    assert train.std(correction=0) == pytest.approx(1, abs=1e-5)
    assert len(train.unique()) == 30


def test_constant_features_stay_as_they_are():
    value = np.full((40, 3), 0.1, dtype=np.float32)
    value[:, 1] = np.arange(40)
    part = loaded({"a": value}, np.arange(40) % 2).parts["test"]
    assert not part.inputs["a"][:, [0, 2]].any()


def test_unscaled():
    inputs, target = example()
    data = loaded(inputs, target, standardise=["vector"])
    rows = rows_of(data.parts["val"]).numpy()
    found = data.parts["val"].inputs
    assert np.array_equal(found["signal"].numpy(), inputs["signal"][rows])
    assert np.allclose(found["image"].numpy() * 255, inputs["image"][rows])
    assert not np.allclose(found["vector"].numpy(), inputs["vector"][rows])
    assert np.allclose(loaded(inputs, target, standardise=False).parts["val"].inputs["vector"], inputs["vector"][rows])


def test_a_common_norm():
    inputs, target = example()
    inputs["vector"][:, 1] = 4.0
    data = loaded(inputs, target, norm=10.0)
    for name in ("vector", "signal", "image"):
        train = data.parts["train"].inputs[name].double().flatten(1)
        assert train.square().sum(1).mean().sqrt() == pytest.approx(10, abs=1e-4)


def test_channels_last():
    inputs, target = example()
    data = loaded({"signal": inputs["signal"].swapaxes(1, 2)}, target, channels_last=["signal"])
    expected = loaded({"signal": inputs["signal"]}, target)
    found, wanted = (each.parts["test"].inputs["signal"] for each in (data, expected))
    assert torch.allclose(found.swapaxes(1, 2), wanted, atol=1e-6)


# Splits


@pytest.mark.parametrize("seed", range(3))
def test_drawn_parts_have_their_share_of_every_class(seed):
    inputs, target = example(200)
    target = np.repeat([0, 1, 2], [100, 60, 40])
    data = loaded(inputs, target, shares=(0.5, 0.25, 0.25), seed=seed)
    rows = {name: rows_of(part).tolist() for name, part in data.parts.items()}
    assert sorted(chain(*rows.values())) == list(range(200))
    assert [Counter(target[rows[name]].tolist()) for name in rows] == [
        {0: 50, 1: 30, 2: 20}, {0: 25, 1: 15, 2: 10}, {0: 25, 1: 15, 2: 10},
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(8))
def test_no_group_is_in_two_parts(seed):
    """Of groups of any sizes and mixtures of classes; near the shares, and the same for the same seed."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(3, 30))
    groups = np.concatenate([np.arange(count), rng.integers(0, count, 200 - count)])
    people = np.array([f"p{i}" for i in range(count)])[groups]
    target = np.where(rng.random(200) < 0.5, groups % 3, rng.integers(0, 3, 200))
    target[:3] = [0, 1, 2]
    inputs, _ = example(200)
    data, again, other = (loaded(inputs, target, groups=people, seed=each) for each in (seed, seed, seed + 1))
    rows = {name: rows_of(part).tolist() for name, part in data.parts.items()}
    assert list(rows) == ["train", "val", "test"]
    assert sorted(chain(*rows.values())) == list(range(200))
    sets = [set(people[each]) for each in rows.values()]
    assert sum(map(len, sets)) == count
    assert all(sets)
    biggest = max(Counter(people.tolist()).values())
    for each, share in zip(rows.values(), (0.6, 0.2, 0.2), strict=True):
        assert abs(len(each) - share * 200) <= 2 * biggest
    assert rows == {name: rows_of(part).tolist() for name, part in again.parts.items()}
    assert count < 6 or rows != {name: rows_of(part).tolist() for name, part in other.parts.items()}


def test_groups_of_one_class_are_dealt_out_by_class():
    """Patients with one diagnosis each: every part has patients of both."""
    groups, inputs = np.repeat(np.arange(20), 10), example(200)[0]
    data = loaded(inputs, groups % 2, groups=groups)
    for part, share in zip(data.parts.values(), (0.6, 0.2, 0.2), strict=True):
        assert part.target.float().mean() == 0.5
        assert len(part) == 200 * share


def test_parts_as_given():
    inputs, target = example()
    split = np.array(["training", "validation", "test"])[np.arange(60) // 20]
    data = loaded(inputs, target, split=split)
    assert {name: rows_of(part).tolist() for name, part in data.parts.items()} == {
        "train": list(range(20)), "val": list(range(20, 40)), "test": list(range(40, 60)),
    }  # fmt: skip
    only = loaded(inputs, target, split=["train"] * 60)
    assert list(only.parts) == ["train"]
    assert only.val_dataloader() == []


@pytest.mark.parametrize("form", FORMS)
def test_arrays_by_part(form, tmp_path):
    inputs, target = example()
    pieces = {"test": slice(0, 20), "train": slice(20, 60)}
    folders = {part: tmp_path / part for part in pieces}
    for folder in folders.values():
        folder.mkdir()
    by_part = {
        part: FORMS[form]({name: value[rows] for name, value in inputs.items()}, folders[part])
        for part, rows in pieces.items()
    }
    data = loaded(
        {name: {part: by_part[part][name] for part in ("train", "test")} for name in inputs},
        {part: target[rows] for part, rows in pieces.items()},
    )
    split = np.where(np.arange(60) < 20, "test", "train")
    expected = loaded(inputs, target, split=split)
    for part in pieces:
        (found, classes), (wanted, labels) = data.parts[part][:], expected.parts[part][:]
        assert torch.equal(classes, labels)
        assert all(torch.allclose(found[name], wanted[name], atol=1e-6) for name in inputs)


# Classes


def test_classes_by_name():
    inputs, _ = example(6)
    names = ["owl", "cat", "owl", "dog", "cat", "dog"]
    data = loaded(inputs, names, split=["train"] * 6)
    assert data.classes == ["cat", "dog", "owl"]
    assert data.parts["train"].target.tolist() == [2, 0, 2, 1, 0, 1]
    chosen = loaded(inputs, np.array(names), split=["train"] * 6, classes=["owl", "dog", "cat", "elk"])
    assert chosen.num_classes == 4
    assert chosen.parts["train"].target.tolist() == [0, 2, 0, 1, 2, 1]


def test_numbers_of_ones_own():
    inputs, _ = example(6)
    data = loaded(inputs, torch.tensor([5, 7, 5, 9, 7, 9]), classes=[9, 7, 5], split=["train"] * 6)
    assert data.parts["train"].target.tolist() == [2, 1, 2, 0, 1, 0]


def test_a_class_that_is_not_trained_on():
    inputs, target = example()
    with pytest.warns(
        UserWarning, match=re.escape("the part 'test' has classes without a sample in training: ['owl']")
    ):
        loaded(inputs, np.array(["cat", "dog", "owl"])[target], split=np.where(target == 2, "test", "train"))


# Presence


@pytest.mark.parametrize("way", ["mask", "none", "nan", "nan in a file", "mask of garbage"])
def test_a_modality_that_samples_lack(way, tmp_path):
    """Statistics are of those that have it; the others hold 0, whichever way absence is told."""
    inputs, target = example()
    present = np.random.default_rng(1).random(60) < 0.5
    signal, settings = inputs["signal"].copy(), {}
    if way == "none":
        inputs["signal"] = [value if here else None for value, here in zip(signal, present, strict=True)]
    elif way.startswith("nan"):
        inputs["signal"] = np.where(present[:, None, None], signal, NAN)
        settings["nan_is_absent"] = ["signal"]
        if way == "nan in a file":
            inputs["signal"] = saved(tmp_path, "signal", inputs["signal"])
    else:
        inputs["signal.present"] = present if way == "mask" else list(present)
        inputs["signal"] = np.where(present[:, None, None], signal, signal if way == "mask" else np.inf)
    data = loaded(inputs, target, **settings)
    train = rows_of(data.parts["train"]).numpy()
    seen = signal[train][present[train]].astype(np.float64)
    mean, deviation = (moment(seen, axis=(0, 2), keepdims=True) for moment in (np.mean, np.std))
    for part in data.parts.values():
        rows, found = rows_of(part).numpy(), part[:][0]
        expected = np.where(present[rows][:, None, None], (signal[rows] - mean) / deviation, 0)
        assert np.allclose(found["signal"].numpy(), expected, atol=1e-5)
        assert found["signal.present"].tolist() == present[rows].tolist()
        assert "vector.present" not in found
    batches = list(data.train_dataloader())
    assert all("signal.present" in batch for batch, _ in batches)


def test_tokens_of_different_lengths_that_samples_lack():
    rng = np.random.default_rng(0)
    titles = [None if i % 4 == 3 else rng.integers(1, 99, rng.integers(1, 12)).tolist() for i in range(60)]
    longest = max(len(title) for title in titles if title)
    inputs, target = example()
    data = loaded({"title": titles, "id": inputs["id"]}, target, padding_id=100)
    assert data.shapes["title"] == (longest,)
    for part in data.parts.values():
        found = part.inputs
        for place, row in enumerate(rows_of(part).tolist()):
            title = titles[row] or []
            assert found["title"][place].tolist() == title + [100] * (longest - len(title))
            assert bool(found["title.present"][place]) == bool(title)
            if title:
                assert found["title.attention_mask"][place].sum() == len(title)
    unmasked = loaded({"title": titles, "id": inputs["id"]}, target, masked=[])
    assert list(unmasked.parts["train"].inputs) == ["title", "id", "title.present"]


def test_sequences_of_vectors():
    """Padding does not count in the statistics, and stays 0."""
    rng = np.random.default_rng(0)
    sounds = [rng.normal(7, 2, (int(rng.integers(1, 9)), 3)) for _ in range(60)]
    inputs, target = example()
    data = loaded({"sound": sounds, "id": inputs["id"]}, target)
    train = rows_of(data.parts["train"]).tolist()
    seen = np.concatenate([sounds[row] for row in train])
    found = data.parts["test"].inputs
    for place, row in enumerate(rows_of(data.parts["test"]).tolist()):
        length = len(sounds[row])
        expected = (sounds[row] - seen.mean(0)) / seen.std(0)
        assert np.allclose(found["sound"][place, :length].numpy(), expected, atol=1e-5)
        assert not found["sound"][place, length:].any()
        assert found["sound.attention_mask"][place].tolist() == [i < length for i in range(8)]


def test_a_mask_though_lengths_are_equal():
    inputs, target = example()
    assert "id.attention_mask" not in loaded(inputs, target).parts["val"].inputs
    assert loaded(inputs, target, ragged=["id"]).parts["val"].inputs["id.attention_mask"].all()


def test_context_is_passed_along():
    inputs, target = example()
    inputs["id.attention_mask"] = np.arange(60)[:, None] % 2 == 0
    inputs[".weight"] = np.arange(60.0)
    part = loaded(inputs, target).parts["test"]
    rows = rows_of(part)
    assert torch.equal(part.inputs["id.attention_mask"][:, 0], rows % 2 == 0)
    assert torch.equal(part.inputs[".weight"], rows.float())


# Errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vector": np.zeros((59, 4))}, "`inputs` must have as many samples as `target`, 60, got {'vector': 59, "),
        ({"signal": [np.zeros((3, 7))] * 59 + [np.zeros((3, 8))]}, "'signal' of sample 59 must have the shape (3, 7)"),
        ({"signal": [np.zeros((7, 3))] * 59 + [np.zeros((6, 2))]}, "'signal' of sample 59 must have the shape (T, 3)"),
        ({"vector": [[1.0]] * 59 + [[7]]}, "'vector' of sample 59 must be real numbers like the others, got tokens"),
        ({"vector": [[1.0]] * 59 + [[]]}, "'vector' of sample 59 cannot be read: it is empty"),
        ({"vector": np.full((60, 4), NAN)}, "must be finite, got 4 NaN and 0 Inf in 4; samples"),
        ({"vector": ["a title"] * 60}, "'vector' of sample 0 cannot be read: values must be numbers, got text; turn"),
        ({"vector": np.zeros((60, 2), dtype=bool)}, "values must be real numbers, or integers for tokens, got a bool"),
        ({"vector": [None] * 60}, "some sample must have 'vector', got none in 60"),
        ({"vector.present": [True] * 59 + [False], "vector": [None] + [[1.0]] * 59},
         "`inputs['vector.present']` must be False where there is no 'vector', got True at 0"),
        ({f"{name}.present": np.arange(60) != 7 for name in ("vector", "signal", "image", "id")},
         "every sample must have a modality, got none in 1; the first is sample 7"),
        ({"vector": "arrays.csv"}, "there is no arrays.csv"),
        ({"vector": np.array(1.0)}, "`inputs['vector']` must have a dimension of samples, got an array of float64 of"),
    ],
)  # fmt: skip
def test_inputs_that_are_wrong(changes, message):
    inputs, target = example()
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
        loaded(inputs | changes, target)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": [0, 1] * 29 + [0, -1]}, "`target` must hold every class from 0 on, got [-1, 0, 1]: name all of"),
        ({"target": [0, 1] * 29 + [0, 9], "classes": [0, 1, 2]},
         "`target` must hold labels among the classes [0, 1, 2], got 9 at 59"),
        ({"target": ["a", "b"] * 29 + ["a", "c"], "classes": ["a", "b"]}, "got 'c' at 59"),
        ({"target": [0] * 60}, "`target` must hold two classes or more, got [0] alone"),
        ({"target": np.zeros((60, 3))}, "`target` must have shape (N,), one class per sample, got array"),
        ({"split": ["train", "exam"] * 30}, "`split` must name parts among ['train', 'val', 'test'], got 'exam' at 1"),
        ({"split": ["test"] * 60}, "`split` must name samples of the part 'train', got ['test'] alone"),
        ({"split": ["train"] * 9}, "`split` must have one entry per sample, 60, got 9"),
        ({"split": ["train", "test"] * 30, "groups": ["ann"] * 60},
         "a group must be in one part, got 'ann' in 'train' and 'test'"),
        ({"groups": ["ann", "bob"] * 30}, "`groups` must be at least as many as parts, 3, got 2"),
        ({"shares": (0.5, 0.2, 0.2)}, "`shares` must add up to 1, got (0.5, 0.2, 0.2)"),
        ({"shares": (0.0, 0.5, 0.5)}, "`shares` must be those of ['train', 'val', 'test'], at least 0, and"),
        ({"standardise": ["vektor"]}, "`standardise` must name modalities among ['vector', 'signal', 'image', 'id']"),
        ({"standardise": ["id"]}, "`standardise` must name real numbers, got ['id'], which are integers: tokens"),
        ({"nan_is_absent": ["vector."]}, "`nan_is_absent` must name modalities among"),
        ({"norm": 0.0}, "`norm` must be above 0, got 0.0"),
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
    ],
)  # fmt: skip
def test_settings_that_are_wrong(settings, message):
    inputs, target = example()
    with pytest.raises(ValueError, match=re.escape(message)):
        loaded(inputs, settings.pop("target", target), **settings)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ([0.0, 1.0], "`target` must hold integers or names, got 0.0 at 0; make them integers, for instance by .astype"),
        ([0, "one"], "`target` must be all integers or all names, got both: [0, 'one']"),
        ([None, 1], "`target` must hold integers or names, got None at 0"),
    ],
)
def test_labels_of_another_kind(target, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        loaded({"a": torch.zeros(2, 3)}, target)


def test_partial_nan_is_an_error_where_nan_is_absence(tmp_path):
    value = np.zeros((60, 4))
    value[7] = NAN
    value[9, 1:] = NAN
    value[11, :3] = NAN
    target = np.arange(60) % 2
    other = np.zeros((60, 1))
    with pytest.raises(
        ValueError, match=re.escape("'a' of sample 11 must be NaN everywhere, which means that it is absent, or ")
    ):
        loaded({"a": value, "b": other}, target, nan_is_absent=["a"])
    value[11] = 0
    with pytest.raises(ValueError, match="'a' of sample 9 must be finite, got 3 NaN and 0 Inf in 4"):
        loaded({"a": value, "b": other}, target, nan_is_absent=["a"])


@pytest.mark.parametrize(
    ("inputs", "target", "message"),
    [
        (
            {"a": {"train": [[1.0]]}},
            {"train": [0], "test": [1]},
            "`inputs['a']` must be given by part, ['train', 'test'], like `target`, got a dict with keys ['train']",
        ),
        (
            {"a": {"train": [[1.0]]}},
            [0],
            "`inputs['a']` must be given as one, not by part, like `target`, got a dict with keys ['train']",
        ),
        ({"b.present": [True], "a": [[1.0]]}, [0], "`inputs['b.present']` must begin with one of the modalities ['a']"),
        ({"a.b": [[1.0]]}, [0], "`inputs` must name modalities, without a dot: with one it is context; got ['a.b']"),
        ({"a/b": [[1.0]]}, [0], "`inputs` must have names that are non-empty strings without '.' and '/', got 'a/b'"),
    ],
)
def test_inputs_that_do_not_belong_together(inputs, target, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ArrayData(inputs, target=target)


@pytest.mark.parametrize("argument", ["split", "groups"])
def test_settings_that_do_not_belong_to_the_target(argument):
    with pytest.raises(ValueError, match=f"`{argument}` must"):
        ArrayData({"a": {"train": [[1.0]]}}, target={"train": [0]}, **{argument: ["train"]})
    with pytest.raises(ValueError, match=f"`{argument}` must be given as one, not by part, like `target`, got a dict"):
        ArrayData({"a": [[1.0]]}, target=[0], **{argument: {"train": ["train"]}})


def test_sizes_by_part():
    with pytest.raises(
        ValueError, match=re.escape("`inputs` must have as many samples as `target`, [2], got {'a': [1]}")
    ):
        loaded({"a": {"train": [[1.0]]}}, {"train": [0, 1]})


def test_broken_files(tmp_path):
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY")
    np.save(tmp_path / "lists.npy", np.array([[1, 2], [3]], dtype=object))
    with pytest.raises(
        ValueError, match=r"lists.npy cannot be read: .*; save lists of different lengths by torch\.save"
    ):
        loaded({"a": tmp_path / "lists.npy"}, [0, 1])
    with pytest.raises(ValueError, match=re.escape("`inputs['a']`: ") + ".*broken.npy cannot be read"):
        loaded({"a": str(tmp_path / "broken.npy")}, [0, 1])
    np.savez(tmp_path / "several.npz", audio=np.zeros((2, 1)), target=np.arange(2))
    with pytest.raises(ValueError, match=re.escape("none of them is called 'image': ['audio', 'target']")):
        loaded({"image": str(tmp_path / "several.npz")}, [0, 1])


@pytest.mark.parametrize("kind", ["tokens", "numbers"])
def test_a_modality_that_no_training_sample_has(kind):
    value = [None] * 40 + [[1, 2] if kind == "tokens" else [1.0, 2.0]] * 20
    inputs, target = example()
    with pytest.raises(ValueError, match="some training sample must have 'a', got none in 40"):
        loaded({"a": value, "id": inputs["id"]}, target, split=["train"] * 40 + ["test"] * 20)


# All the way


def test_from_yaml(tmp_path, monkeypatch):
    """Arrays in files, several kinds of them; also with workers."""
    inputs, target = example()
    torch.save(torch.from_numpy(inputs["signal"]), tmp_path / "signal.pt")
    np.savez(tmp_path / "rest.npz", vector=inputs["vector"], target=target, groups=np.arange(60) // 4)
    monkeypatch.setattr(sys, "argv", ["lightning-crmt"])
    config = tmp_path / "run.yaml"
    config.write_text(
        f"""
model:
  class_path: CRMTModule
  init_args:
    num_classes: 3
    encoders:
      vector: {{class_path: MLP, init_args: {{in_features: 4, out_features: 16, hidden: [8]}}}}
      signal: {{class_path: MLP, init_args: {{in_features: 21, out_features: 16, hidden: [8]}}}}
data:
  class_path: ArrayData
  init_args:
    inputs:
      vector: {tmp_path}/rest.npz
      signal: {tmp_path}/signal.pt
    target: {tmp_path}/rest.npz
    groups: {tmp_path}/rest.npz
    classes: [0, 1, 2]
    shares: [0.5, 0.25, 0.25]
    norm: 10
    batch_size: 16
trainer:
  max_epochs: 1
  accelerator: cpu
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  default_root_dir: {tmp_path}
"""
    )
    cli.main(["fit", "--config", str(config)])


def test_tokens_and_vectors_train(make_trainer):
    """Texts that some samples lack, images in memory: a model learns what the texts say."""
    rng = np.random.default_rng(0)
    target = np.arange(300) % 3
    titles = [(10 * c + rng.integers(1, 10, rng.integers(1, 6))).tolist() for c in target]
    titles = [None if i % 5 == 0 else title for i, title in enumerate(titles)]
    image = rng.normal(size=(300, 4)) + 2 * np.eye(3, 4)[target]
    data = ArrayData({"image": image, "title": titles}, target=target, masked=[], batch_size=30)
    model = CRMTModule(
        {"image": MLP(4, 8), "title": torch.nn.EmbeddingBag(40, 8, padding_idx=0)}, data.num_classes,
        in_features={"title": 8},
    )  # fmt: skip
    trainer = make_trainer(max_epochs=15)
    trainer.fit(model, datamodule=data)
    (numbers,) = trainer.test(model, datamodule=data, verbose=False)
    assert numbers["test/accuracy/joint"] > 0.8


class MeanOfTokens(torch.nn.Module):
    """The mean of embeddings where the mask says that there are some."""

    def __init__(self, num_tokens, out_features):
        super().__init__()
        self.embedding = torch.nn.Embedding(num_tokens, out_features)
        self.out_features = out_features

    def forward(self, tokens, attention_mask):
        real = attention_mask.unsqueeze(2)
        return (self.embedding(tokens) * real).sum(1) / real.sum(1)


def test_masks_and_presence_reach_the_model(make_trainer):
    """Predictions do not depend on the padding, nor on what fills gaps, nor on the batch, nor on workers."""
    rng = np.random.default_rng(0)
    target = np.arange(120) % 3
    titles = [(10 * c + rng.integers(1, 10, rng.integers(1, 6))).tolist() for c in target]
    titles = [None if i % 10 == 0 else title for i, title in enumerate(titles)]
    image = np.where(np.arange(120)[:, None] % 5 == 1, NAN, rng.normal(size=(120, 4)))
    data = ArrayData(
        {"image": image, "title": titles}, target=target, nan_is_absent=["image"], batch_size=16, num_workers=2,
        split=[["train", "val", "test"][i // 3 % 3] for i in range(120)], padding_id=39,
    )  # fmt: skip
    model = CRMTModule({"image": MLP(4, 8), "title": MeanOfTokens(40, 8)}, data.num_classes)
    make_trainer(max_epochs=2).fit(model, datamodule=data)
    model.eval()
    inputs, _ = data.parts["test"][:]
    whole = model(inputs).logits
    filled = inputs | {
        "image": torch.where(inputs["image.present"][:, None], inputs["image"], 7.0),
        "title": torch.where(inputs["title.attention_mask"], inputs["title"], 5),
    }
    assert torch.allclose(model(filled).logits, whole, atol=1e-6)
    for row in range(0, 40, 9):
        one = {name: value[row : row + 1] for name, value in inputs.items()}
        assert torch.allclose(model(one).logits, whole[row : row + 1], atol=1e-5)


def test_columns_of_pandas():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(example()[0]["vector"], columns=list("abcd"))
    frame["animal"] = ["cat", "dog", "owl"] * 20
    data = loaded({"vector": frame[list("abcd")]}, frame["animal"], groups=frame.index // 5)
    assert data.classes == ["cat", "dog", "owl"]
    assert data.shapes == {"vector": (4,)}
