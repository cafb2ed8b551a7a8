# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
import csv
import pickle
import re
import sys
import wave

import numpy as np
import pytest
import torch

from lightning_crmt import cli
from lightning_crmt.data import ArrayData, ArrayFile, ImageFile, SpectrogramFile, TableData, WaveFile
from lightning_crmt.data.read.files import read_by_suffix, read_wave
from lightning_crmt.data.read.spectrogram import LOG_FLOOR, log_mel


def loaded(table, modalities, **settings):
    data = TableData(table, modalities=modalities, **settings)
    data.setup()
    return data


def written(path, rows):
    """The rows as a CSV file, or one with tabulators."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {"sensor": rng.normal(3, 2, (30, 2, 5)), "view": rng.normal(0, 1, (30, 4)).astype(np.float32)}


@pytest.fixture
def rows(arrays, tmp_path):
    """A table of files of these arrays, in folders of their own; every third sample has no view."""
    made = []
    for name in arrays:
        (tmp_path / name).mkdir()
    for i in range(30):
        np.save(tmp_path / "sensor" / f"{i}.npy", arrays["sensor"][i])
        np.savez(tmp_path / "view" / f"{i}.npz", arrays["view"][i])
        made.append(
            {
                "sensor": f"sensor/{i}.npy", "seen": "" if i % 3 == 0 else f"view/{i}.npz", "age": str(20 + i),
                "pulse": str(60.5 + i), "label": ["owl", "cat"][i % 2], "part": ["train", "train", "test"][i % 3],
                "person": f"p{i // 3}", "number": str(8 + i % 3), "title": "a b c"[: 1 + 2 * (i % 3)],
            }
        )  # fmt: skip
    return made


MODALITIES = {"sensor": "sensor", "view": "seen"}


@pytest.mark.parametrize("form", ["list", "csv", "tsv", "byte order mark"])
def test_a_table_holds_what_arrays_hold(form, rows, arrays, tmp_path):
    table, settings = rows, {"root": tmp_path}
    if form != "list":
        table, settings = written(tmp_path / ("table.tsv" if form == "tsv" else "table.csv"), rows), {}
    if form == "byte order mark":
        table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes())
    data = loaded(table, MODALITIES, split="part", **settings)
    expected = ArrayData(
        {"sensor": arrays["sensor"], "view": arrays["view"], "view.present": np.arange(30) % 3 != 0},
        target=[row["label"] for row in rows],
        split=[row["part"] for row in rows],
    )
    assert data.classes == ["cat", "owl"]
    assert data.shapes == {"sensor": (2, 5), "view": (4,)}
    for part in ("train", "test"):
        (found, target), (wanted, classes) = data.parts[part][:], (expected.setup(), expected.parts[part][:])[1]
        assert torch.equal(target, classes)
        assert found.keys() == wanted.keys()
        assert all(torch.allclose(found[name], wanted[name], atol=1e-6) for name in ("sensor", "view"))
        assert torch.equal(found["view.present"], wanted["view.present"])


def test_workers_do_not_change_batches(rows, tmp_path):
    batches = [
        list(loaded(rows, MODALITIES, root=tmp_path, batch_size=4, num_workers=workers).train_dataloader())
        for workers in (0, 2)
    ]
    for (one, _), (other, _) in zip(*batches, strict=True):
        assert list(one) == list(other) == ["sensor", "view", "view.present"]
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_groups_and_numbers(rows, tmp_path):
    modalities = {"sensor": "sensor", "vitals": ["age", "pulse"]}
    settings = {"groups": "person", "target": "number", "classes": [8, 9, 10, 11], "standardise": ["sensor"]}
    data = loaded(rows, modalities, root=tmp_path, **settings)
    assert data.num_classes == 4
    assert data.shapes["vitals"] == (2,)
    people = []
    for part in data.parts.values():
        inputs, target = part[:]
        number = (inputs["vitals"][:, 0] - 20).long()
        assert torch.equal(target, number % 3)
        assert torch.allclose(inputs["vitals"][:, 1], 60.5 + number)
        people.append({int(each) // 3 for each in number})
    assert sum(map(len, people)) == 10
    assert set.union(*people) == set(range(10))


def test_text_by_a_tokenizer(rows, tmp_path):
    def tokenize(title):
        return [ord(letter) - 96 for letter in title.split()]

    data = loaded(rows, {"title": "title", "sensor": "sensor"}, from_text={"title": tokenize}, ragged=["title"],
                  root=tmp_path, shares=(1.0, 0.0, 0.0))  # fmt: skip
    inputs, _ = data.parts["train"][:3]
    assert inputs["title"].tolist() == [[1, 0, 0], [1, 2, 0], [1, 2, 3]]
    assert inputs["title.attention_mask"].sum(1).tolist() == [1, 2, 3]
    assert data.shapes["title"] == (-1,)


def test_a_table_of_pandas(rows, tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_csv(written(tmp_path / "table.csv", rows))
    data = loaded(frame.to_dict("records"), MODALITIES, root=tmp_path, split="part")
    expected = loaded(tmp_path / "table.csv", MODALITIES, split="part")
    assert torch.equal(data.parts["test"][:][0]["view"], expected.parts["test"][:][0]["view"])
    assert not data.parts["test"][:][0]["view.present"].all() or data.parts["train"][:][0]["view.present"].any()


def test_data_sets_travel(rows, tmp_path):
    part = loaded(rows, MODALITIES, root=tmp_path).parts["train"]
    again = pickle.loads(pickle.dumps(part))
    assert torch.equal(again[:][0]["sensor"], part[:][0]["sensor"])


# Files


def wav(path, samples, rate=8000, width=2, channels=1):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        whole = np.round(samples * 2 ** (8 * width - 1)).astype(np.int64)
        whole = whole.clip(-(2 ** (8 * width - 1)), 2 ** (8 * width - 1) - 1) + (128 if width == 1 else 0)
        file.writeframes(whole.astype("<i8").reshape(-1, 1).view(np.uint8)[:, :width].tobytes())
    return path


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_sound_of_any_width(width, channels, tmp_path):
    samples = np.random.default_rng(0).uniform(-1, 1, (500, channels))
    samples[0], samples[1] = -1, 1
    found, rate = read_wave(wav(tmp_path / "a.wav", samples, width=width, channels=channels))
    assert rate == 8000
    assert np.allclose(found.numpy(), samples.mean(1), atol=1.01 / 2 ** min(8 * width - 1, 20))


def test_sound_as_it_is_and_as_a_spectrogram(tmp_path):
    samples = np.sin(np.arange(4000) * 0.3) * 0.5
    path = wav(tmp_path / "a.WAV", samples)
    waveform = read_by_suffix(path)
    assert waveform.shape == (4000,)
    assert WaveFile(samples=5000)(path).shape == (1, 5000)
    assert torch.equal(WaveFile(samples=100)(path)[0], waveform[:100])
    energies = log_mel(waveform, 8000, 16)
    found = SpectrogramFile(frames=60, n_mels=16, sample_rate=8000)(path)
    assert found.shape == (1, 60, 16)
    assert torch.equal(found[0, : len(energies)], energies)
    assert (found[0, len(energies) :] == LOG_FLOOR).all()
    with pytest.raises(ValueError, match="it must have 16000 Hz, got 8000"):
        SpectrogramFile(frames=60, sample_rate=16000)(path)


def test_pictures(tmp_path):
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    image.fromarray(pixels).save(tmp_path / "a.png")
    found = read_by_suffix(tmp_path / "a.png")
    assert torch.allclose(found, torch.from_numpy(pixels).permute(2, 0, 1) / 255)
    assert ImageFile(size=4)(tmp_path / "a.png").shape == (3, 4, 4)
    assert ImageFile(size=(4, 7), grey=True)(tmp_path / "a.png").shape == (1, 4, 7)
    image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    assert read_by_suffix(tmp_path / "grey.png").shape == (3, 6, 9)


def test_arrays_in_files(tmp_path):
    value = torch.arange(6.0).reshape(2, 3)
    torch.save(value, tmp_path / "a.pt")
    np.savez(tmp_path / "a.npz", one=value.numpy(), two=2 * value.numpy())
    assert torch.equal(read_by_suffix(tmp_path / "a.pt"), value)
    assert torch.equal(ArrayFile(key="two")(tmp_path / "a.npz"), 2 * value)
    with pytest.raises(ValueError, match=re.escape("must hold one array, or that of `key`, None, got ['one', 'two']")):
        read_by_suffix(tmp_path / "a.npz")


# Errors


def test_a_missing_file_is_named_with_its_row(rows, tmp_path):
    (tmp_path / "sensor" / "4.npy").unlink()
    (tmp_path / "sensor" / "9.npy").unlink()
    path = tmp_path / "sensor" / "4.npy"
    with pytest.raises(FileNotFoundError, match=re.escape(
        f"'sensor' lacks 2 of 30 files; the first is {path} in row 4 of `table`"
    )):  # fmt: skip
        loaded(rows, MODALITIES, root=tmp_path)
    table = written(tmp_path / "table.csv", rows)
    with pytest.raises(FileNotFoundError, match=re.escape(f"the first is {path} in line 6 of {table}")):
        loaded(table, MODALITIES)
    with pytest.raises(FileNotFoundError, match=re.escape("`table` must be the path of a file, there is no no.csv")):
        loaded("no.csv", MODALITIES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((2, 6)), "must have the shape (2, 5) like the others, got (2, 6)"),
        (
            np.zeros((3, 5)),
            "must have the shape (2, 5) like the others, got (3, 5); if lengths differ, name 'sensor' in",
        ),
        (np.full((2, 5), np.nan), "must be finite, got 10 NaN and 0 Inf in 10"),
        (np.zeros((2, 5), dtype=int), "must be real numbers like the others, got tokens"),
        (None, "cannot be read: "),
    ],
)
def test_a_file_that_is_not_like_the_others(content, message, rows, tmp_path):
    path = tmp_path / "sensor" / "7.npy"
    path.write_bytes(b"\x93NUMPY\x01") if content is None else np.save(path, content)
    with pytest.raises(ValueError, match=re.escape(f"'sensor' of row 7 of `table` ({path}) {message}")):
        loaded(rows, MODALITIES, root=tmp_path, split="part")
    data = loaded(rows, MODALITIES, root=tmp_path, split="part", standardise=False)
    with pytest.raises(ValueError, match=re.escape(f"'sensor' of row 7 of `table` ({path}) {message}")):
        data.parts["train"][:]


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ({}, {"target": "species"}, "the column 'species' is missing among ['sensor', 'seen', 'age', 'pulse', '"),
        ({}, {"modalities": {"sensor": "sensors"}}, "the column 'sensors' is missing among"),
        ({"label": ""}, {}, "the column 'label' is empty in row 5 of `table`"),
        ({"label": "elk"}, {"classes": ["owl", "cat"]}, "labels among the classes ['owl', 'cat'], got 'elk' at 5"),
        ({"sensor": "", "seen": ""}, {}, "every sample must have a modality, got none in 1; the first is row 5 of"),
        ({"pulse": ""}, {"modalities": {"vitals": ["age", "pulse"]}},
         "'vitals' of row 5 of `table` must be numbers, all or none of them, got {'age': '25', 'pulse': None}"),
        ({"part": "exam"}, {"split": "part"}, "`split` must name parts among ['train', 'val', 'test'], got 'exam'"),
        ({"sensor": "table.csv"}, {}, "its name must end in one of ['.npy', '.npz', '.pt'"),
        ({}, {"readers": {"view": np.load}, "from_text": {"view": len}}, "must not both have ['view']"),
        ({}, {"readers": {"views": np.load}}, "`readers` must name modalities among ['sensor', 'view'], got ['views']"),
    ],
)  # fmt: skip
def test_tables_that_are_wrong(change, settings, message, rows, tmp_path):
    written(tmp_path / "table.csv", rows)
    rows[5] |= change
    with pytest.raises(ValueError, match=re.escape(message)):
        loaded(rows, settings.pop("modalities", MODALITIES), root=tmp_path, **settings)


def test_a_line_with_too_few_cells(rows, tmp_path):
    table = written(tmp_path / "table.csv", rows)
    with table.open("a") as file:
        file.write("a.npy,b.npy\n")
    with pytest.raises(
        ValueError, match=re.escape(f"line 32 of {table} must have 9 cells, as the first line has, got [")
    ):
        loaded(table, MODALITIES)


def test_from_yaml(rows, tmp_path, monkeypatch):
    """With sound as spectrograms, of a reader that YAML names."""
    monkeypatch.setattr(sys, "argv", ["lightning-crmt"])
    rng = np.random.default_rng(0)
    for i, row in enumerate(rows):
        row["sound"] = f"{i}.wav"
        wav(tmp_path / f"{i}.wav", rng.normal(0, 0.1, 1000))
    written(tmp_path / "table.csv", rows)
    config = tmp_path / "run.yaml"
    config.write_text(
        f"""
model:
  class_path: CRMTModule
  init_args:
    num_classes: 2
    encoders:
      sensor: {{class_path: MLP, init_args: {{in_features: 10, out_features: 16, hidden: [8]}}}}
      sound: {{class_path: MLP, init_args: {{in_features: 80, out_features: 16, hidden: [8]}}}}
data:
  class_path: TableData
  init_args:
    table: {tmp_path}/table.csv
    modalities: [sensor, sound]
    groups: person
    readers:
      sound: {{class_path: SpectrogramFile, init_args: {{frames: 10, n_mels: 8}}}}
    batch_size: 8
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
