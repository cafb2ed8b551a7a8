# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Videos become frames, spectrograms and flow: what they hold, what is broken, and what a stopped run leaves."""

import csv
import json
import math
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support import clips

from lightning_crmt.cli import main
from lightning_crmt.data.prepare import ffmpeg as program
from lightning_crmt.data.prepare import prepare as production
from lightning_crmt.data.prepare.kinds import Flow, Frames, Spectrograms
from lightning_crmt.data.prepare.prepare import prepare
from lightning_crmt.data.prepare.videos import find_videos

Image = pytest.importorskip("PIL.Image")
pytestmark = pytest.mark.skipif(not clips.have_ffmpeg(), reason="neither ffmpeg nor imageio-ffmpeg is there")

ALL = ("frames", "spectrograms", "flow")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A folder of videos, whole and broken, to read only."""
    folder = tmp_path_factory.mktemp("videos")
    clips.make_clips(folder)
    return folder


@pytest.fixture(scope="module")
def prepared(videos, tmp_path_factory):
    """Everything, once: the folder and the report."""
    pytest.importorskip("cv2")
    output = tmp_path_factory.mktemp("output") / "new"
    return output, prepare(videos, output, ALL, size=48)


@pytest.fixture
def two(tmp_path):
    """Two short whole videos and one that is none."""
    folder = tmp_path / "two"
    for name in ("a", "b"):
        clips.encode(folder / f"{name}.mp4", clips.of_colours(1), clips.tone(440, 1))
    (folder / "c.mp4").write_text("none")
    return folder


def pictures(folder):
    return [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]


def motion(output, clip, axis, bound=20):
    return (np.stack(pictures(output / "flow" / clip / axis)) - 128.0) / 127.5 * bound


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# --- what is made


@pytest.mark.parametrize(("clip", "seconds"), clips.WHOLE.items())
def test_every_whole_video_has_every_kind(prepared, clip, seconds):
    output, _ = prepared
    names = [f"{number:06d}.jpg" for number in range(1, seconds * clips.RATE)]
    assert sorted(os.listdir(output / "frames" / clip)) == names[:seconds]
    assert sorted(os.listdir(output / "flow" / clip / "u")) == sorted(os.listdir(output / "flow" / clip / "v")) == names
    energies = np.load(output / "spectrograms" / f"{clip}.npy")
    assert energies.dtype == np.float16
    assert energies.shape[1] == 128
    assert 100 * seconds - 2 <= len(energies) <= 100 * seconds + 10, "AAC adds a little silence"


def test_frames_are_in_order_and_in_colour(prepared):
    output, _ = prepared
    shown = pictures(output / "frames" / "low/colours ü")
    assert [picture.shape for picture in shown] == [(48, 64, 3)] * 3
    for picture, colour in zip(shown, clips.COLOURS, strict=True):
        assert np.abs(picture.mean((0, 1)) - colour).max() < 8


@pytest.mark.parametrize(("fps", "count"), [(0.1, 1), (0.5, 2), (2.0, 6), (25.0, 75)])
def test_as_many_frames_as_asked_for(videos, tmp_path, fps, count):
    clip = videos / "low" / "colours ü.mkv"
    Frames(fps, 32).make(program.FFmpeg(), clip, tmp_path / "made")
    assert len(list((tmp_path / "made").iterdir())) == count


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48), (20, 90)])
def test_the_shorter_side_is_what_is_asked_for(tmp_path, height, width):
    clips.encode(tmp_path / "a.mp4", np.zeros((5, height, width, 3), np.uint8))
    Frames(1.0, 32).make(program.FFmpeg(), tmp_path / "a.mp4", tmp_path / "made")
    (picture,) = pictures(tmp_path / "made")
    assert min(picture.shape[:2]) == 32
    assert picture.shape[0] / picture.shape[1] == pytest.approx(height / width, rel=0.03)


@pytest.mark.parametrize(
    ("clip", "frequency"),
    [
        ("low/--4-0ih'tn\"BU_%d", 440),
        ("low/colours ü", 1000),
        ("high/moving.right", 3000),
        ("high/moving_up", 6000),
    ],
)
def test_a_tone_is_loudest_in_its_band(prepared, clip, frequency):
    def mel(f):
        return 1127 * math.log(1 + f / 700)

    centres = np.linspace(mel(20), mel(8000), 130)[1:-1]
    energies = np.load(prepared[0] / "spectrograms" / f"{clip}.npy").astype(float)[20:-20]
    assert (energies.argmax(1) == np.abs(centres - mel(frequency)).argmin()).all()


def test_channels_are_averaged_and_not_summed(tmp_path):
    def energies(name, sound):
        clips.encode(tmp_path / f"{name}.mkv", sound=sound, options=["-c:a", "pcm_s16le"], sound_rate=16000)
        Spectrograms().make(program.FFmpeg(), tmp_path / f"{name}.mkv", tmp_path / f"{name}.npy")
        return np.load(tmp_path / f"{name}.npy").astype(float)

    mono = clips.tone(1000, 1, 16000)
    np.testing.assert_allclose(energies("b", np.stack([mono, mono], 1)), energies("a", mono), atol=0.3)
    np.testing.assert_allclose(
        energies("c", np.stack([mono, 0 * mono], 1)).max(1), energies("a", mono).max(1) - math.log(4), atol=0.05
    )


def test_a_spectrogram_is_what_log_mel_says_of_the_samples(tmp_path):
    from lightning_crmt.data.read.spectrogram import log_mel

    sound = np.random.default_rng(0).uniform(-0.5, 0.5, 16000 * 11)
    clips.encode(tmp_path / "a.mkv", sound=sound, options=["-c:a", "pcm_s16le"], sound_rate=16000)
    Spectrograms().make(program.FFmpeg(), tmp_path / "a.mkv", tmp_path / "a.npy")
    energies = np.load(tmp_path / "a.npy")
    assert energies.shape == (1024, 128), "no more than that of 11 seconds"
    expected = log_mel(torch.from_numpy((sound * 32767).astype("<i2") / 32768), 16000)[:1024]
    np.testing.assert_allclose(energies.astype(float), expected, atol=0.02)


@pytest.mark.parametrize(
    ("clip", "right", "down"),
    [("low/--4-0ih'tn\"BU_%d", 0, 0), ("high/moving.right", 2, 0), ("high/moving_up", 0, -1)],
)
def test_flow_is_how_far_the_picture_moves(prepared, clip, right, down):
    for axis, true in {"u": right, "v": down}.items():
        found = motion(prepared[0], clip, axis)
        assert np.median(found) == pytest.approx(true, abs=0.2)
        assert found[:, 12:-12, 16:-16].mean() == pytest.approx(true, abs=0.25)


def test_flow_at_another_rate_in_other_units(videos, tmp_path):
    pytest.importorskip("cv2")
    flow = Flow(size=96, fps=12.5, bound=16)
    flow.make(program.FFmpeg(), videos / "high" / "moving.right.mp4", tmp_path / "flow" / "a")
    found = motion(tmp_path, "a", "u", bound=16)
    assert found.shape == (24, 96, 128)
    assert np.median(found) == pytest.approx(8, abs=0.5), "twice the size, twice the time"


@pytest.mark.parametrize("rate", [5, 12.5, 30000 / 1001, 60])
def test_flow_is_between_all_pictures_whatever_their_rate(tmp_path, rate):
    pytest.importorskip("cv2")
    clips.encode(tmp_path / "a.mp4", clips.moving(1, 0, 1), rate=rate)
    Flow(size=48).make(program.FFmpeg(), tmp_path / "a.mp4", tmp_path / "flow" / "a")
    found = motion(tmp_path, "a", "u")
    assert len(found) == clips.RATE - 1
    assert np.median(found, axis=(1, 2)) == pytest.approx(np.ones(clips.RATE - 1), abs=0.4), "none repeated, none lost"


def test_flow_beyond_the_bound_is_the_bound(videos, tmp_path):
    pytest.importorskip("cv2")
    Flow(size=48, bound=1).make(program.FFmpeg(), videos / "high" / "moving.right.mp4", tmp_path / "flow" / "a")
    found = motion(tmp_path, "a", "u", bound=1)
    assert np.median(found) == pytest.approx(1, abs=0.02)
    assert found.min() >= -1


def test_a_single_picture_has_no_flow(tmp_path):
    pytest.importorskip("cv2")
    clips.encode(tmp_path / "a.mp4", clips.of_colours(1)[:1])
    with pytest.raises(program.BrokenVideoError, match="less than two pictures"):
        Flow().make(program.FFmpeg(), tmp_path / "a.mp4", tmp_path / "made")


def test_the_number_of_workers_changes_nothing(videos, tmp_path):
    made = {}
    for workers in (1, 3):
        prepare(videos, tmp_path / str(workers), size=32, workers=workers)
        made[workers] = {name: (tmp_path / str(workers) / name).read_bytes() for name in files(tmp_path / str(workers))}
    assert made[1] == made[3]
    assert torch.get_num_threads() == 1


# --- what is broken


def test_broken_videos_are_listed_with_a_reason(prepared):
    output, report = prepared
    with (output / "skipped.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["video"], row["kind"]) for row in rows} == {
        (video, kind) for video, (kinds, _) in clips.BROKEN.items() for kind in kinds
    }
    for row in rows:
        assert clips.BROKEN[row["video"]][1] in row["reason"]
        assert 0 < len(row["reason"]) < 100
        assert "\n" not in row["reason"]
        assert not (output / row["kind"] / row["video"].rpartition(".")[0]).exists()
    assert [tuple(row.values()) for row in rows] == report.skipped
    assert files(output) >= {f"{kind}.json" for kind in ALL}
    assert not (output / ".unfinished").exists()


def test_the_report_counts(prepared):
    _, report = prepared
    assert report.videos == len(clips.WHOLE) + len(clips.BROKEN)
    whole = len(clips.WHOLE)
    assert report.made == {"frames": whole + 2, "spectrograms": whole + 1, "flow": whole + 2}
    assert report.already == dict.fromkeys(ALL, 0)
    assert report.nothing == []
    assert f"frames: {whole + 2} made, 0 already there, 6 skipped" in str(report)
    assert "broken/empty.mp4: the file is empty (flow, frames, spectrograms)" in str(report)


def test_a_cut_that_begins_between_key_frames_is_not_broken(videos, tmp_path):
    cut = tmp_path / "cut.avi"
    clips.run_ffmpeg("-i", videos / "high" / "moving_up.AVI", "-ss", 0.7, "-map", "0:v", "-copyinkf", "-c", "copy", cut)
    Frames().make(program.FFmpeg(), cut, tmp_path / "made")
    assert len(pictures(tmp_path / "made")) == 1


def test_damage_in_the_middle_is_broken(videos, tmp_path):
    data = bytearray((videos / "high" / "moving.right.mp4").read_bytes())
    start = data.index(b"mdat") + len(data) // 4
    for place in range(start, start + 2000, 7):
        data[place] ^= 0x55
    (tmp_path / "a.mp4").write_bytes(data)
    with pytest.raises(program.BrokenVideoError):
        Frames().make(program.FFmpeg(), tmp_path / "a.mp4", tmp_path / "made")


def test_a_full_disk_is_no_fault_of_the_video():
    with pytest.raises(OSError, match="No space left on device"):
        program.complaint("[image2 @ 0x1] av_write_frame(): No space left on device", status=1)


def test_what_takes_too_long_is_broken(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(program, "TIME_LIMIT", 0.0)
    with pytest.raises(program.BrokenVideoError, match="longer than 0 seconds"):
        Spectrograms().make(program.FFmpeg(), videos / "low" / "colours ü.mkv", tmp_path / "a.npy")


def test_stopping_ends_what_runs_and_what_comes(videos):
    ffmpeg = program.FFmpeg()
    endless = ["-vf", "loop=loop=-1:size=10", "-f", "rawvideo", "pipe:1"]

    def decode(stop):
        with ffmpeg.decode(videos / "low" / "colours ü.mkv", "video", endless) as pipe:
            if stop:
                assert len(pipe.read(100)) == 100
                ffmpeg.stop()
            pipe.read()

    for stop in (True, False):
        with pytest.raises(program.BrokenVideoError):
            decode(stop)


# --- what a stopped run leaves, and what the next one does


def test_what_is_there_is_not_made_again_and_what_is_broken_is_tried_again(two, tmp_path, monkeypatch):
    output = tmp_path / "output"
    first = prepare(two, output, size=32)
    assert first.made == {"frames": 2, "spectrograms": 2}
    before = {name: (output / name).stat().st_mtime_ns for name in files(output) - {"skipped.csv"}}
    shutil.copy(two / "a.mp4", two / "c.mp4")
    again = prepare(two, output, size=32)
    assert again.made == {"frames": 1, "spectrograms": 1}
    assert again.already == {"frames": 2, "spectrograms": 2}
    assert (output / "skipped.csv").read_text().split() == ["video,kind,reason"]
    unchanged = before.keys() - {"frames.json", "spectrograms.json"}
    assert {name: (output / name).stat().st_mtime_ns for name in unchanged} == {n: before[n] for n in unchanged}
    monkeypatch.setattr(program.subprocess, "Popen", lambda *a, **k: pytest.fail("nothing is left to decode"))
    assert prepare(two, output, size=32).already == {"frames": 3, "spectrograms": 3}


def test_another_kind_later_is_added(two, tmp_path):
    prepare(two, tmp_path / "output", "frames", size=32)
    report = prepare(two, tmp_path / "output", ["frames", "spectrograms"], size=32)
    assert report.made == {"frames": 0, "spectrograms": 2}


def test_what_was_skipped_of_kinds_that_are_not_made_now_stays_listed(two, tmp_path):
    def listed():
        with (tmp_path / "output" / "skipped.csv").open(encoding="utf-8", newline="") as file:
            return [(row["video"], row["kind"]) for row in csv.DictReader(file)]

    prepare(two, tmp_path / "output", "spectrograms")
    report = prepare(two, tmp_path / "output", "frames", size=32)
    assert [(each.video, each.kind) for each in report.skipped] == [("c.mp4", "frames")]
    assert listed() == [("c.mp4", "frames"), ("c.mp4", "spectrograms")]
    shutil.copy(two / "a.mp4", two / "c.mp4")
    prepare(two, tmp_path / "output", "frames", size=32)
    assert listed() == [("c.mp4", "spectrograms")]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_stopped_run_leaves_nothing_by_halves(two, tmp_path, monkeypatch, stop, workers):
    made = Frames._write

    def write(self, ffmpeg, video, target, choice):
        made(self, ffmpeg, video, target, choice)
        if video.name == "b.mp4":
            raise stop

    output = tmp_path / "output"
    monkeypatch.setattr(Frames, "_write", write)
    with pytest.raises(stop):
        prepare(two, output, ["frames"], size=32, workers=workers)
    monkeypatch.undo()
    assert not (output / "frames" / "b").exists()
    assert not (output / ".unfinished").exists()
    done = (output / "frames" / "a").exists()
    assert prepare(two, output, ["frames"], size=32).already == {"frames": int(done)}
    assert len(pictures(output / "frames" / "b")) == 1


def test_an_interruption_between_results_ends_the_run(two, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(production.Tqdm, "set_postfix", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare(two, tmp_path / "output", workers=1)
    assert not (tmp_path / "output" / ".unfinished").exists()
    assert not (tmp_path / "output" / "skipped.csv").exists()


def test_what_a_killed_run_has_left_is_removed_and_never_taken_for_done(two, tmp_path):
    output = tmp_path / "output"
    prepare(two, output, ["frames"], size=32)
    shutil.rmtree(output / "frames" / "a")
    left = output / ".unfinished" / "0-frames"
    left.mkdir(parents=True)
    (left / "000001.jpg").write_bytes(b"half a picture")
    assert prepare(two, output, ["frames"], size=32).made == {"frames": 1}
    assert len(pictures(output / "frames" / "a")) == 1
    assert not (output / ".unfinished").exists()


# --- bad input


@pytest.mark.parametrize("settings", [{"fps": 2.0}, {"size": 64}])
def test_other_settings_than_those_of_what_is_there_are_refused(two, tmp_path, settings):
    output = tmp_path / "output"
    prepare(two, output, size=32)
    before = files(output)
    with pytest.raises(
        ValueError, match=r"`output` must be another folder, .*was made with \{'fps': 1.0, 'size': 32\}"
    ):
        prepare(two, output, **{"size": 32} | settings)
    assert files(output) == before
    assert json.loads((output / "frames.json").read_text()) == {"fps": 1.0, "size": 32}
    assert prepare(two, output, "spectrograms", **settings).already == {"spectrograms": 2}, "has other settings"


def test_a_folder_that_something_else_has_made_is_refused(two, tmp_path):
    (tmp_path / "output" / "frames").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"was not made by this command: there is no frames\.json"):
        prepare(two, tmp_path / "output")
    assert files(tmp_path / "output") == set()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a/b.mp4", "a/b.avi"], r"`videos` must have names that differ without suffix, got .*a/b.avi and .*a/b.mp4"),
        (["a.mp4", "a.mkv"], r"got 1 pair that do not, such as \S*a.mkv and \S*a.mp4"),
        (["a.mp4", "a.mkv", "b/c.avi", "b/c.mov", "b/c.mp4", "d.mp4"], r"got 3 pairs .* \S*a.mkv and \S*a.mp4$"),
        (["a.mp4", "a/b/c.mp4"], r"must not have a folder named as a video without suffix, got .*a.mp4 and .*a/b/c"),
        (["a.txt", ".b.mp4", ".c/d.mp4"], r"`videos` must hold files that end with .3gp, .* got '.*' with none"),
        ([], "with none"),
    ],
)
def test_videos_that_would_be_mixed_or_are_not_there(tmp_path, names, message):
    (tmp_path / "videos").mkdir()
    for name in names:
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / name).touch()
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path / "videos", tmp_path / "output")
    assert not (tmp_path / "output").exists()


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`videos` must be a folder, got '.*nowhere', and there is none"):
        prepare(tmp_path / "nowhere", tmp_path / "output")


def test_links_are_followed_once_and_output_may_lie_within(two):
    (two / "link").symlink_to(two, target_is_directory=True)
    (two / "output" / "old").mkdir(parents=True)
    (two / "output" / "old" / "d.mp4").touch()
    assert prepare(two, two / "output", "frames", size=32).videos == 3


def test_a_folder_that_is_linked_to_is_there_under_both_names(tmp_path):
    for folder in ("real", "z", "output"):
        (tmp_path / "videos" / folder).mkdir(parents=True)
        (tmp_path / "videos" / folder / "x.mp4").touch()
    (tmp_path / "videos" / "z" / "linked").symlink_to("../real")
    (tmp_path / "videos" / "z" / "made").symlink_to("../output")
    # two that lead into each other, and out of the whole and back
    (tmp_path / "videos" / "real" / "other").symlink_to("../z")
    (tmp_path / "videos" / "real" / "out").symlink_to(tmp_path)
    found = find_videos(tmp_path / "videos", leave_out=tmp_path / "videos" / "output")
    assert list(found) == ["real/x", "real/other/x", "z/x", "z/linked/x"]
    assert all(path == tmp_path / "videos" / f"{clip}.mp4" for clip, path in found.items())


def test_a_folder_that_may_not_be_read_is_named(two, tmp_path, monkeypatch):
    (two / "closed").mkdir()
    scan = os.scandir

    def refuse(folder):
        if str(folder).endswith("closed"):  # removing a folder scans it by a number
            raise PermissionError(13, "Permission denied", folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    message = f"`videos` must have folders that can all be read, got {two / 'closed'}: Permission denied"
    with pytest.raises(ValueError, match=re.escape(message)):
        prepare(two, tmp_path / "output")
    assert not (tmp_path / "output").exists()


def test_output_must_not_be_the_folder_of_videos(two, monkeypatch):
    before = files(two)
    monkeypatch.chdir(two)
    for output in (two, two / ".." / two.name, Path(".")):
        with pytest.raises(ValueError, match=r"`output` must be another folder than `videos`, got '.*' for both"):
            prepare(two, output)
    assert files(two) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kinds": ()}, "`kinds` must be different names among ['frames', 'spectrograms', 'flow'], got ()"),
        ({"kinds": ("frames", "frames")}, "got ('frames', 'frames')"),
        ({"kinds": "sound"}, "got ('sound',)"),
        ({"fps": 0.0}, "`fps` must be above 0, got 0.0"),
        ({"fps": math.inf}, "got inf"),
        ({"size": 0}, "`size` must be at least 1, got 0"),
        ({"flow_fps": -1.0}, "`flow_fps` must be above 0, got -1.0"),
        ({"flow_bound": math.nan}, "`flow_bound` must be above 0, got nan"),
        ({"workers": 0}, "`workers` must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_refused(two, tmp_path, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        prepare(two, tmp_path / "output", **settings)
    assert not (tmp_path / "output").exists()


def test_without_ffmpeg_the_error_says_what_to_install(two, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(FileNotFoundError, match=re.escape('pip install "lightning_crmt[video]"')):
        prepare(two, tmp_path / "output")


def test_the_program_on_the_path_comes_first(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "ffmpeg").write_text("")
    (tmp_path / "ffmpeg").chmod(0o755)
    assert Path(program.ffmpeg_program()) == tmp_path / "ffmpeg"


def test_without_opencv_there_is_no_flow_but_all_else(two, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ModuleNotFoundError, match=re.escape('pip install "lightning_crmt[video]"')):
        prepare(two, tmp_path / "output", ALL)
    assert prepare(two, tmp_path / "output").made == {"frames": 2, "spectrograms": 2}


def test_tvl1_or_where_to_get_it(two, tmp_path):
    cv2 = pytest.importorskip("cv2")
    if hasattr(cv2, "optflow"):
        assert prepare(two, tmp_path / "output", "flow", size=32, flow_method="tvl1").made == {"flow": 2}
    else:
        with pytest.raises(ModuleNotFoundError, match="opencv-contrib-python-headless"):
            prepare(two, tmp_path / "output", "flow", flow_method="tvl1")


# --- the command line


def command(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        main(["prepare", *map(str, words)])
    return stop.value.code, capsys.readouterr()


def test_command_prepares_and_sums_up(two, tmp_path, capsys):
    status, shown = command(
        capsys, two, tmp_path / "output", "--kinds", "frames", "spectrograms", "--fps=2", "--size=32"
    )
    assert status == 0
    assert shown.out.splitlines()[:3] == [
        "3 videos",
        "frames: 2 made, 0 already there, 1 skipped",
        "spectrograms: 2 made, 0 already there, 1 skipped",
    ]
    assert f"skipped, see {tmp_path / 'output' / 'skipped.csv'}:" in shown.out
    assert shown.err == ""
    assert len(pictures(tmp_path / "output" / "frames" / "a")) == 2
    status, shown = command(capsys, two, tmp_path / "output", "--kinds", "frames", "--fps=2", "--size=32")
    assert status == 0
    assert "frames: 0 made, 2 already there, 1 skipped" in shown.out


def test_status_1_if_nothing_could_be_made(tmp_path, capsys):
    clips.encode(tmp_path / "videos" / "silent.mp4", clips.of_colours(1))
    status, shown = command(capsys, tmp_path / "videos", tmp_path / "output")
    assert status == 1
    assert "frames: 1 made" in shown.out
    assert "silent.mp4: no audio stream (spectrograms)" in shown.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "videos"),
        (("VIDEOS",), "output"),
        (("VIDEOS", "OUTPUT", "--kinds", "frams"), "frams"),
        (("VIDEOS", "OUTPUT", "--kinds"), "kinds"),
        (("VIDEOS", "OUTPUT", "--kind", "frames", "--fsp", "2"), "fsp"),
        (("VIDEOS", "OUTPUT", "--fps", "much"), "much"),
        (("VIDEOS", "OUTPUT", "--fps", "0"), "`fps` must be above 0, got 0.0"),
        (("VIDEOS", "OUTPUT", "--workers", "1.5"), "workers"),
        (("VIDEOS", "OUTPUT", "--flow_method", "farneback"), "farneback"),
        (("nowhere", "OUTPUT"), "`videos` must be a folder, got 'nowhere'"),
    ],
)
def test_a_mistyped_command_is_explained(two, tmp_path, capsys, words, message):
    places = {"VIDEOS": two, "OUTPUT": tmp_path / "output"}
    status, shown = command(capsys, *(places.get(word, word) for word in words))
    assert status == 2
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert not (tmp_path / "output").exists()


def test_interrupting_the_command_says_how_to_go_on(two, tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Frames, "make", interrupt)
    status, shown = command(capsys, two, tmp_path / "output")
    assert status == 130
    assert "the same command again goes on" in shown.err


def test_help_says_what_lands_where(capsys, monkeypatch):
    status, shown = command(capsys, "--help")
    assert status == 0
    for place in ("frames/a/b/000001.jpg", "spectrograms/a/b.npy", "flow/a/b/u/000001.jpg", "skipped.csv"):
        assert f"OUTPUT/{place}" in shown.out
    for word in ("--kinds", "--fps", "--size", "--flow_fps", "--workers", "Exit status"):
        assert word in shown.out
    assert "A video that was replaced is not noticed: delete its output to have it made again" in shown.out
    monkeypatch.setattr(sys, "argv", ["lightning-crmt"])
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "lightning-crmt prepare" in " ".join(capsys.readouterr().out.split())
