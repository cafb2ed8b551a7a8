# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Videos with sound whose names or lists say what they are, with whole people held out, from prepare to fit."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("PIL")

from support import clips, prepared
from support.prepared import CREMA_D, EMOTIONS, write_clip

from lightning_crmt.cli import main
from lightning_crmt.data import AudioVideoFolder
from lightning_crmt.data.video.lists import Listed, hold_out, named

EXAMPLE = Path(__file__).parent.parent / "examples" / "videos" / "crema_d.yaml"


def people(data):
    data.setup()
    return {part: {clip.rpartition("/")[2][:4] for clip in clips.clips} for part, clips in data.parts.items()}


def names(data, part):
    data.setup()
    return data.parts[part].clips


# --- people


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nobody_is_in_two_parts_and_every_emotion_is_in_each(tmp_path, seed):
    data = prepared.crema_d(tmp_path, seed=seed, val_share=0.25)
    found = people(data)
    assert {part: len(each) for part, each in found.items()} == {"train": 6, "val": 2, "test": 2}
    assert len(set.union(*found.values())) == 10
    for part in data.parts.values():
        assert part.target.bincount(minlength=6).tolist() == [len(part) // 6] * 6
        for clip, label in zip(part.clips, part.target, strict=True):
            assert f"_{EMOTIONS[label]}_" in clip
    again = prepared.crema_d(tmp_path, seed=seed, val_share=0.25)
    assert people(again) == found
    assert people(prepared.crema_d(tmp_path, seed=seed + 1, val_share=0.25)) != found
    inputs, _ = data.parts["test"][0]
    assert {name: tuple(value.shape) for name, value in inputs.items()} == {
        "image": (3, 3, 16, 16),
        "audio": (1, 1024, 128),
    }


def test_fewer_emotions_have_the_same_people(tmp_path):
    every = people(prepared.crema_d(tmp_path))
    for classes in (["SAD", "ANG"], EMOTIONS[::-1]):
        assert people(prepared.crema_d(tmp_path, classes=classes)) == every


def test_people_who_lack_an_emotion_are_not_torn_apart(tmp_path):
    prepared.crema_d(tmp_path, people=12)
    for i, emotion in enumerate(EMOTIONS):
        for sentence in ("DFA", "IEO"):
            shutil.rmtree(tmp_path / "frames" / f"{1001 + i}_{sentence}_{emotion}_XX")
            (tmp_path / "spectrograms" / f"{1001 + i}_{sentence}_{emotion}_XX.npy").unlink()
    found = people(AudioVideoFolder(str(tmp_path), pattern=CREMA_D, val_share=0.2))
    assert sum(map(len, found.values())) == len(set.union(*found.values())) == 12


@pytest.mark.parametrize("seed", range(20))
def test_no_split_separates_a_group_or_takes_all_of_a_class(seed):
    draw = torch.Generator().manual_seed(seed)
    groups = [torch.randint(1, 6, (1,), generator=draw).item() for _ in range(5)]
    listed = [
        Listed((f"{label}/{i}",), str(label), f"person {torch.randint(0, 6, (1,), generator=draw).item()}" * (i % 2))
        for label, count in enumerate(groups)
        for i in range(4 * count)
    ]
    kept, held = hold_out(listed, 0.3, seed)
    assert sorted(kept + held) == sorted(listed)
    assert not {clip.group for clip in kept} & {clip.group for clip in held} - {""}
    assert {clip.label for clip in kept} == {clip.label for clip in listed}
    for label in {clip.label for clip in listed}:
        alone = {clip.group or clip.names[0] for clip in listed if clip.label == label}
        out = {clip.group or clip.names[0] for clip in held if clip.label == label}
        assert len(out) < len(alone)


# --- parts


def test_folders_of_classes_and_of_parts(tmp_path):
    for name in ("cat", "dog"):
        for i in range(5):
            write_clip(tmp_path / "flat", f"{name}/{i}", count=1)
            for part in ("train", "val", "test"):
                write_clip(tmp_path / "parts", f"{part}/{name}/{part}{i}", count=1)
    data = AudioVideoFolder(str(tmp_path / "flat"), test_share=0.4, val_share=0.3)
    data.setup()
    assert data.classes == ["cat", "dog"]
    assert data.num_classes == 2
    assert {part: len(clips) for part, clips in data.parts.items()} == {"train": 4, "val": 2, "test": 4}
    data = AudioVideoFolder(str(tmp_path / "parts"))
    for part in ("train", "val", "test"):
        assert names(data, part) == [f"{part}/{name}/{part}{i}" for name in ("cat", "dog") for i in range(5)]


def test_lists_that_were_released_with_ogm_ge(tmp_path):
    """Emotions by name, with a mark that says that the text is UTF-8; validation on people who are not in training."""
    prepared.crema_d(tmp_path, people=8)
    lines = {"train": [], "test": []}
    for path in sorted((tmp_path / "frames").iterdir()):
        lines["test" if "_DFA_" in path.name else "train"].append(f"{path.name},{path.name.split('_')[2]}\n")
    for part, each in lines.items():
        (tmp_path / f"{part}.csv").write_text("".join(each), encoding="utf-8-sig")
    parts = {part: f"{part}.csv" for part in lines}
    data = AudioVideoFolder(
        str(tmp_path), pattern=CREMA_D, classes=EMOTIONS, parts=parts, val_share=0.25, num_workers=0
    )
    found = people(data)
    assert len(found["train"]) == 6
    assert not found["train"] & found["val"]
    assert data.parts["test"].target.bincount().tolist() == [8] * 6
    for clip, label in zip(names(data, "test"), data.parts["test"].target, strict=True):
        assert f"_{EMOTIONS[label]}_" in clip


@pytest.mark.parametrize("folder", ["", "{}/"])
def test_lists_of_name_number_and_label_find_clips_alone_or_by_part(tmp_path, folder):
    for part in ("train", "test"):
        lines = []
        for i in range(6):
            write_clip(tmp_path, f"{folder.format(part)}-{part}{i}_{i}", count=1)
            lines.append(f"-{part}{i}_{i},10,{i % 2}\n")
        (tmp_path / f"{part}.txt").write_text("".join(lines))
    parts = {"train": "train.txt", "test": "test.txt"}
    data = AudioVideoFolder(str(tmp_path), classes=["a", "b"], parts=parts, val_share=0)
    assert names(data, "train") == [f"{folder.format('train')}-train{i}_{i}" for i in range(6)]
    assert data.parts["test"].target.tolist() == [0, 1] * 3


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("-3Mwkq-7TV4_2,10,23", ("-3Mwkq-7TV4_2", "23")),
        ("-3Mwkq-7TV4_2, 10, 23", ("-3Mwkq-7TV4_2", "23")),
        ("1001_DFA_ANG_XX,ANG", ("1001_DFA_ANG_XX", "ANG")),
        ("a b.mp4,10,playing guitar", ("a b.mp4", "playing guitar")),
        ('"a, ""b""",10,ANG', ('a, "b"', "ANG")),
        ("a,b 3", ("a,b", "3")),
        ("a,10,b 3", ("a,10,b", "3")),
        ("a, b/c 3", ("a, b/c", "3")),
        ("a,b ANG", ("a,b", "ANG")),
        ("a playing guitar", ("a", "playing guitar")),
        ("a\t3", ("a", "3")),
        ("a,x,3", None),
        ("a,10,3,4", None),
        ("a", None),
        (",10", None),
    ],
)
def test_forms_of_a_line(line, found):
    def is_label(label):
        return label.isdecimal() or label in ("ANG", "playing guitar")

    if found is None:
        with pytest.raises(ValueError, match=r"list:1 must be `name label`, got"):
            named("list:1", line, is_label)
    else:
        assert named("list:1", line, is_label) == found


# --- what goes wrong


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pattern": "(?P<label>"}, "`pattern` must be a regular expression, got '(?P<label>'"),
        ({"pattern": "(.*)"}, "`pattern` must have a group (?P<label>...), got '(.*)'"),
        ({"parts": {"train": "a"}}, "`parts` must say what 'train', 'test' and perhaps 'val' are, got {'train': 'a'}"),
        ({"test_share": 0}, "`test_share` must be above 0 and below 1, got 0"),
        ({"test_share": 1.0}, "got 1.0"),
        ({"audio_rows": 0}, "`audio_rows` must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        AudioVideoFolder("x", **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"pattern": r"(?P<label>\d)"},
            r"`pattern` must match names of clips, got '(?P<label>\\d)', which matches none of",
        ),
        (
            {"pattern": r"(?P<part>\d+)_(?P<label>[A-Z]+)_.*"},
            "must find the parts ['train', 'val', 'test'], got ['1001'",
        ),
        ({"classes": ["NEU", "JOY"]}, "'JOY' (0 listed)"),
        ({"parts": {"train": "train.csv", "test": "train.csv"}}, "train.csv:2 must have a class from 0 to 1, got 2"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, settings, message):
    data = {"classes": ["NEU", "HAP"], "pattern": CREMA_D} | settings
    prepared.crema_d(tmp_path, people=4, emotions=["NEU", "HAP"])
    (tmp_path / "train.csv").write_text("1001_DFA_NEU_XX,10,0\n1001_DFA_HAP_XX,10,2\n")
    if "part" in data["pattern"]:
        data["classes"] = None
    with pytest.raises(ValueError, match=re.escape(message)):
        AudioVideoFolder(str(tmp_path), **data).setup()


def test_parts_without_classes_are_not_mistaken_for_classes(tmp_path):
    write_clip(tmp_path, "train/a", count=1)
    with pytest.raises(ValueError, match=re.escape("which matches none of the 1 in")):
        AudioVideoFolder(str(tmp_path)).setup()


# --- all of it


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # a new version of the log, as it should be
@pytest.mark.skipif(not clips.have_ffmpeg(), reason="neither ffmpeg nor imageio-ffmpeg is there")
def test_the_example_from_videos_to_numbers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-crmt"])
    for person in range(1001, 1009):
        for i, emotion in enumerate(EMOTIONS):
            sound = clips.tone(300 * (i + 1), 1)
            options = ["-c:v", "flv1", "-c:a", "adpcm_swf"]
            video = Path("VideoFlash") / f"{person}_DFA_{emotion}_XX.flv"
            clips.encode(video, clips.moving(i, 0, 1, seed=person), sound, options)
    with pytest.raises(SystemExit) as stop:
        main(["prepare", "VideoFlash", "crema-d", "--fps=4", "--size=32"])
    assert stop.value.code == 0
    encoders = yaml.safe_load(EXAMPLE.read_text())["model"]["init_args"]["encoders"]
    for encoder in encoders.values():
        encoder["init_args"]["width"] = 4
    words = [f"--config={EXAMPLE}", f"--model.init_args.encoders={json.dumps(encoders)}"]
    words += ["--data.init_args.size=32", "--data.init_args.batch_size=8", "--data.init_args.num_workers=0"]
    words += ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    words += ["--trainer.enable_model_summary=false", "--trainer.log_every_n_steps=1"]
    main(["fit", *words])
    capsys.readouterr()
    (best,) = tmp_path.glob("lightning_logs/*/checkpoints/best.ckpt")
    main(["test", *words, f"--ckpt_path={best}"])
    shown = capsys.readouterr().out
    for modality in ("joint", "image", "audio"):
        assert f"test/accuracy/{modality}" in shown
