# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Videos may be called anything that a file may be called, from preparing to batches."""

import csv
import os
import shutil
import subprocess
import sys

import pytest
from support import clips
from support.prepared import write_clip

from lightning_crmt.data import AudioVideoFolder, KineticsSounds
from lightning_crmt.data.prepare import ffmpeg as program
from lightning_crmt.data.prepare.prepare import prepare, printable

pytest.importorskip("PIL")

#: Names that terminals, lists or other programs stumble on; the first is not UTF-8.
NAMES = [
    "caf\udce9",
    "two\nlines",
    "a\rb",
    "\x1b[31mred",
    "-i",
    "%06d",
    "a:b",
    "a,b 'c' \"d\"",
    "[f=null]|x",
    "\u2028\x85line",
    "No space left on device",
    "matches no streams",
    "[h264 @ 0x1] [error] x",
    " ",
    "日本語",
]


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    if not clips.have_ffmpeg():
        pytest.skip("neither ffmpeg nor imageio-ffmpeg is there")
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    clips.encode(path, clips.moving(1, 0, 1)[:10], clips.tone(440, 1))
    return path


@pytest.mark.slow
def test_whole_and_broken_videos_of_any_name(video, tmp_path):
    pytest.importorskip("cv2")
    kinds = ["frames", "spectrograms", "flow"]
    for name in NAMES:
        for place in ("broken", f"in {name}"):
            (tmp_path / "videos" / place).mkdir(parents=True, exist_ok=True)
        shutil.copy(video, tmp_path / "videos" / f"in {name}" / f"{name}.mp4")
        (tmp_path / "videos" / "broken" / f"{name}.mp4").write_text("none")
    report = prepare(tmp_path / "videos", tmp_path / "output", kinds, size=32)
    assert report.made == dict.fromkeys(kinds, len(NAMES))
    for name in NAMES:
        clip = f"in {name}/{name}"
        assert (tmp_path / "output" / "frames" / clip / "000001.jpg").is_file()
        assert (tmp_path / "output" / "flow" / clip / "u" / "000009.jpg").is_file()
        assert (tmp_path / "output" / "spectrograms" / f"{clip}.npy").is_file()
    with (tmp_path / "output" / "skipped.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.reader(file))[1:]
    assert sorted(rows) == sorted(map(list, report.skipped))
    assert {(row[0], row[1]) for row in rows} == {(f"broken/{name}.mp4", kind) for name in NAMES for kind in kinds}
    assert len({row[2] for row in rows}) == 1, "the reason does not depend on the name"
    assert len(str(report).splitlines()) == 1 + len(kinds) + 1 + 10 + 1
    again = prepare(tmp_path / "videos", tmp_path / "output", kinds, size=32)
    assert again.already == report.made
    assert again.skipped == report.skipped


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii"])
def test_what_a_terminal_cannot_show_does_not_fail_the_command(video, tmp_path, encoding):
    (tmp_path / "videos").mkdir()
    shutil.copy(video, tmp_path / "videos" / "a.mp4")
    for name in ("caf\udce9", "two\nlines", "日本語"):
        (tmp_path / "videos" / f"{name}.mp4").touch()
    command = [sys.executable, "-m", "lightning_crmt", "prepare", str(tmp_path / "videos"), str(tmp_path / "o\udce9\n")]
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([*command, "--kinds", "frames"], env=environment, capture_output=True, check=False)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)
    assert b"frames: 1 made, 0 already there, 3 skipped" in done.stdout
    assert rb"caf\udce9.mp4: the file is empty" in done.stdout
    assert rb"o\udce9\n" in done.stdout


def test_a_name_that_is_too_long_for_its_output_is_skipped(video, tmp_path):
    (tmp_path / "videos").mkdir()
    shutil.copy(video, tmp_path / "videos" / f"{'a' * 252}.ts")
    shutil.copy(video, tmp_path / "videos" / "b.mp4")
    report = prepare(tmp_path / "videos", tmp_path / "output", size=32)
    assert report.made == {"frames": 2, "spectrograms": 1}
    assert [(each.kind, each.reason) for each in report.skipped] == [("spectrograms", "File name too long, 256 bytes")]
    assert prepare(tmp_path / "videos", tmp_path / "output", size=32).already == report.made


def test_what_is_printable_stays_and_the_rest_is_escaped():
    for name in NAMES:
        shown = printable(name)
        assert shown.isprintable()
        assert shown == name or not name.isprintable()
    assert printable("caf\udce9\n\x1bü") == "caf\\udce9\\n\\x1bü"


def test_the_name_of_a_video_is_no_error(video, tmp_path):
    path = tmp_path / "No space left on device.mp4"
    path.write_text("none")
    with pytest.raises(program.BrokenVideoError), program.FFmpeg().decode(path, "video", ["-f", "null", "-"]) as pipe:
        pipe.read()


@pytest.mark.parametrize("form", ["name label", "name,label", "name,10,label"])
@pytest.mark.parametrize("suffix", [".txt", ".csv"])
def test_lists_may_have_any_name_that_fits_into_them(tmp_path, form, suffix):
    """A line has no end of line, but in a quoted field; a name does not end or begin with a space."""
    as_table = suffix == ".csv" and form != "name label"
    names = [name for name in NAMES if name.strip() == name and "\r" not in name and (as_table or "\n" not in name)]
    names = [name for name in names if suffix != ".csv" or as_table or '"' not in name]
    for part in ("train", "test"):
        with (tmp_path / f"{part}{suffix}").open("w", newline="", errors="surrogateescape") as file:
            for name in names:
                write_clip(tmp_path, f"{part} {name}", count=1)
                if as_table or "," in form:
                    csv.writer(file, lineterminator="\n").writerow([f"{part} {name}", *form.split(",")[1:-1], "0"])
                else:
                    file.write(f"{part} {name} 0\n")
    for kind in (KineticsSounds, AudioVideoFolder):
        parts = {part: f"{part}{suffix}" for part in ("train", "test")}
        data = kind(str(tmp_path), parts=parts, classes=["a"], val_share=0, size=8, num_workers=0)
        data.setup()
        assert data.parts["train"].clips == [f"train {name}" for name in names]
        assert data.missing == {"train": [], "test": []}
        inputs, _ = data.parts["test"][0]
        assert inputs["image"].shape == (3, 3, 8, 8)


def test_folders_may_have_any_name(tmp_path):
    for name in NAMES:
        write_clip(tmp_path, f"class/{name}", count=1)
    data = AudioVideoFolder(str(tmp_path), size=8, num_workers=0, val_share=0.3)
    data.setup()
    found = [clip for part in data.parts.values() for clip in part.clips]
    assert sorted(found) == sorted(f"class/{name}" for name in NAMES)
    assert data.parts["train"][0][0]["audio"].isfinite().all()
