# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""New samples, given as the data were, become what the model was trained on."""

import json

import numpy as np
import pytest
import torch

from lightning_crmt import CRMTModule, export_program
from lightning_crmt.data import ArrayData, TableData
from lightning_crmt.encoders import MLP

SIZE = 40
TARGET = np.arange(SIZE) % 3


def raw(seed=0):
    """Vectors, images in bytes, tokens and signals of different lengths; some samples lack the vector."""
    rng = np.random.default_rng(seed)
    return {
        "vector": [None if i % 8 in (1, 3, 6) else rng.normal(5, 3, 4) for i in range(SIZE)],
        "image": rng.integers(0, 256, (SIZE, 3, 5, 5), dtype=np.uint8),
        "text": [rng.integers(1, 9, rng.integers(1, 7)).tolist() for _ in range(SIZE)],
        "signal": [rng.normal(2, 7, (rng.integers(2, 6), 3)) for _ in range(SIZE)],
        ".weight": rng.random(SIZE).astype(np.float32),
    }


def at(values, rows):
    return [values[row] for row in rows]


def assert_same(found, wanted):
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        assert found[name].dtype is value.dtype
        assert torch.equal(found[name], value), name


def part_and_rows(data, part="test"):
    """A part of the data as a batch, and which samples it has."""
    (inputs, _) = data.parts[part][:]
    rows = inputs[".weight"].numpy()
    return inputs, [int(np.flatnonzero(data.given[".weight"] == weight)[0]) for weight in rows]


@pytest.mark.parametrize(
    "settings",
    [{}, {"norm": 10.0, "padding_id": 7, "masked": ["text"]}, {"standardise": ["image"], "ragged": ["image"]}],
)
def test_prepared_samples_are_those_of_the_parts(settings):
    """To the bit, whether they come together or one by one."""
    data = ArrayData(raw(), target=TARGET, **settings)
    wanted, rows = part_and_rows(data)
    assert not wanted["vector.present"].all()
    assert_same(data.prepared({key: at(value, rows) for key, value in raw().items()}), wanted)
    for place, row in enumerate(rows):
        one = data.prepared({key: at(value, [row]) for key, value in raw().items()})
        assert_same(one, {key: value[place : place + 1] for key, value in wanted.items()})


def test_a_modality_may_be_left_out_and_a_mask_given():
    data = ArrayData(raw(), target=TARGET)
    wanted, rows = part_and_rows(data)
    new = {key: at(value, rows[:3]) for key, value in raw().items()}
    without = data.prepared({key: value for key, value in new.items() if key not in ("vector", "image")})
    assert without["vector.present"].tolist() == without["image.present"].tolist() == [False] * 3
    assert not without["vector"].any()
    assert without["image"].shape == (3, 3, 5, 5)
    assert torch.equal(without["signal"], wanted["signal"][:3])
    # No sample of the data lacks the image: whoever wants its presence in every batch says so.
    assert "image.present" not in data.prepared(new)
    assert data.prepared(new | {"image.present": [True, False, True]})["image.present"].tolist() == [True, False, True]


def test_lengths_are_those_of_the_data_or_more():
    data = ArrayData({"text": [[1, 2, 3, 4], [5], [6]] * 4}, target=[0, 1, 2] * 4, padding_id=9)
    assert data.prepared({"text": [[8]]})["text"].tolist() == [[8, 9, 9, 9]]
    assert data.prepared({"text": [[8]]})["text.attention_mask"].tolist() == [[True, False, False, False]]
    assert data.prepared({"text": [[8] * 6]})["text"].shape == (1, 6)


def test_context_of_ones_own_is_padded_too():
    text = [[1, 2, 3], [5], [6]] * 4
    kinds = [[1] * len(each) for each in text]
    data = ArrayData({"text": text, "text.kind": kinds}, target=[0, 1, 2] * 4)
    assert data.prepared({"text": [[8]], "text.kind": [[1]]})["text.kind"].tolist() == [[1, 0, 0]]
    with pytest.raises(ValueError, match=r"context that the data have, \['text.kind'\] is missing"):
        data.prepared({"text": [[8]]})


def test_nan_means_absence_where_it_was_declared():
    vector = np.random.default_rng(0).normal(size=(SIZE, 2))
    vector[::5] = np.nan
    other = np.ones((SIZE, 1)) * np.arange(SIZE)[:, None]
    data = ArrayData({"vector": vector, "other": other}, target=TARGET, nan_is_absent=["vector"])
    new = data.prepared({"vector": [[np.nan, np.nan], [1.0, 2.0]], "other": [[1.0], [2.0]]})
    assert new["vector.present"].tolist() == [False, True]


def test_samples_in_files(tmp_path):
    """Data that stay on the disk, and new samples by the path of a file."""
    images = raw()["image"]
    np.save(tmp_path / "image.npy", images)
    data = ArrayData({"image": str(tmp_path / "image.npy")}, target=TARGET, shares=(0.5, 0, 0.5))
    rows = data.parts["test"].rows
    np.save(tmp_path / "new.npy", images[rows])
    assert_same(data.prepared({"image": tmp_path / "new.npy"}), data.parts["test"][:][0])


@pytest.mark.parametrize("settings", [{}, {"norm": 3.0}, {"channels_last": ["image"]}])
def test_mean_and_deviation_say_the_same_in_json(settings):
    inputs = {
        "image": raw()["image"],
        "vector": np.random.default_rng(1).normal(3, 2, (SIZE, 4)),
        "id": TARGET[:, None],
    }
    inputs["vector"][:, 2] = 7.0  # not divided
    data = ArrayData(inputs, target=TARGET, **settings)
    assert list(data.mean) == list(data.deviation) == ["image", "vector"]
    told = json.loads(
        json.dumps({name: [data.mean[name].tolist(), data.deviation[name].tolist()] for name in data.mean})
    )
    found = data.prepared({name: value[:5] for name, value in inputs.items()})
    for name, scale in (("image", 255), ("vector", 1)):
        mean, deviation = map(np.array, told[name])
        np.testing.assert_allclose((inputs[name][:5] / scale - mean) / deviation, found[name], rtol=1e-5, atol=1e-6)
    if not settings:
        train = inputs["vector"][part_rows(data)]
        np.testing.assert_allclose(data.deviation["vector"], [*train.std(0)[:2], 1, train.std(0)[3]])


def part_rows(data):
    """Which samples are for training, by the vectors that they have."""
    found = data.parts["train"].inputs["vector"].double() * data.deviation["vector"] + data.mean["vector"]
    return [int(np.abs(data.given["vector"] - each.numpy()).sum(1).argmin()) for each in found]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"imgae": [1]}, r"must name what the data have, .*, got \['imgae'\]"),
        ({"image": np.zeros((2, 3, 5, 5))}, r"one number of samples, at least 1, got \{'image': 2, 'text': 1\}"),
        ({"image": np.zeros((1, 3, 4, 5))}, r"'image' of sample 0 must have the shape \(3, 5, 5\) like the others"),
        ({"image": np.full((1, 3, 5, 5), np.nan)}, "'image' of sample 0 must be finite"),
        ({"image": [None], "text": [None]}, "sample 0 of the batch has no modality at all"),
        ({"image": np.zeros((0, 3, 5, 5)), "text": []}, "at least 1"),
    ],
)
def test_new_samples_that_are_wrong(change, message):
    data = ArrayData({"image": raw()["image"], "text": raw()["text"]}, target=TARGET)
    new = {"image": raw()["image"][:1], "text": raw()["text"][:1]}
    with pytest.raises(ValueError, match=message):
        data.prepared(new | change)
    with pytest.raises(ValueError, match=r"must have some of the modalities \['image', 'text'\], got \[\]"):
        data.prepared({})


def test_rows_of_a_table(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for i in range(SIZE):
        np.save(tmp_path / f"{i}.npy", rng.normal(2, 3, (2, 5)))
        rows.append(
            {"sensor": f"{i}.npy", "age": str(i), "title": "abcde"[: 1 + i % 5], "label": "xyz"[i % 3], "part": "test"}
            | ({"part": "train"} if i % 2 else {})
        )
        if i % 3 == 0:
            rows[-1]["sensor"] = ""
    data = TableData(
        rows,
        modalities={"sensor": "sensor", "body": ["age"], "title": "title"},
        split="part",
        root=tmp_path,
        from_text={"title": lambda text: [ord(letter) for letter in text]},
        ragged=["title"],
    )
    wanted, _ = data.parts["test"][:]
    new = [{key: row[key] for key in ("sensor", "age", "title")} for row in rows[::2]]
    assert_same(data.prepared(new), wanted)
    lines = ["sensor,age,title", *(",".join(row.values()) for row in new)]
    (tmp_path / "new.csv").write_text("\n".join(lines))
    assert_same(data.prepared(tmp_path / "new.csv"), wanted)
    # A column that is not there, of a modality that samples may lack.
    some = data.prepared([{"age": "3", "title": "b"}])
    assert some["sensor.present"].tolist() == [False]
    assert some["body"].item() == pytest.approx((3 - data.mean["body"].item()) / data.deviation["body"].item())
    with pytest.raises(FileNotFoundError, match=r"the first is .*no\.npy in row 0 of `table`"):
        data.prepared([{"sensor": "no.npy", "age": "3", "title": "b"}])
    with pytest.raises(ValueError, match="must have some of the columns"):
        data.prepared([{"sensors": "no.npy"}])
    with pytest.raises(ValueError, match="at least one row"):
        data.prepared([])


def test_an_exported_program_takes_them():
    """From raw arrays to classes by name, as a model answers that was never exported."""
    rng = np.random.default_rng(0)
    inputs = {"a": rng.normal(9, 4, (SIZE, 6)), "b": [None if i % 3 == 0 else rng.normal(size=4) for i in range(SIZE)]}
    data = ArrayData(inputs, target=np.array(["cat", "dog", "owl"])[TARGET])
    model = CRMTModule({"a": MLP(6, 8), "b": MLP(4, 8)}, data.num_classes).eval()
    program = export_program(model, data.parts["train"][:2][0]).module()
    new = data.prepared({"a": rng.normal(9, 4, (1, 6))})
    torch.testing.assert_close(program(new).logits, model(new).logits)
    assert data.classes[int(program(new).logits.argmax())] in ("cat", "dog", "owl")
