# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Prepared frames, spectrograms and flow keep their place in time, each picture counts once, and pixels are square."""

import numpy as np
import pytest
from support import clips

from lightning_crmt.data.prepare import ffmpeg as program
from lightning_crmt.data.prepare.kinds import Flow, Frames, Spectrograms
from lightning_crmt.data.prepare.prepare import prepare

Image = pytest.importorskip("PIL.Image")
pytestmark = pytest.mark.skipif(not clips.have_ffmpeg(), reason="neither ffmpeg nor imageio-ffmpeg is there")

#: Seconds that the scene lasts, and the half second of it in which it flashes and beeps.
LENGTH, FLASH = 7, (4.75, 5.25)
FPS = 8
#: By suffix, how sound is encoded: AVI and MOV do not know the times of such sound, which follows on itself there.
SOUND = {".mkv": "pcm_s16le", ".mp4": "aac", ".flv": "aac", ".mpg": "mp2"}


def scene(rate=25, sound_rate=16000):
    """Black and silent but for a flash with a beep."""
    first, last = FLASH
    pictures = np.zeros((LENGTH * rate, clips.HEIGHT, clips.WIDTH, 3), np.uint8)
    pictures[round(first * rate) : round(last * rate)] = 255
    sound = np.zeros(LENGTH * sound_rate)
    beep = slice(round(first * sound_rate), round(last * sound_rate))
    sound[beep] = clips.tone(440, LENGTH, sound_rate)[beep]
    return pictures, sound


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Pictures alone, and sound alone."""
    folder = tmp_path_factory.mktemp("parts")
    pictures, sound = scene()
    clips.encode(folder / "pictures.mkv", pictures)
    clips.encode(folder / "sound.mkv", sound=sound, options=["-c:a", "pcm_s16le"], sound_rate=16000)
    return folder


def join(parts, target, pictures=(), sound=(), options=(), after=()):
    """A video of the scene's pictures and sound, each with options of its own before it, and options after all."""
    codec = [] if target.suffix != ".mpg" else ["-c:v", "mpeg2video"]
    words = [*pictures, "-i", parts / "pictures.mkv", *sound, "-i", parts / "sound.mkv", *options]
    clips.run_ffmpeg(*words, *codec, "-q:v", 2, "-c:a", SOUND[target.suffix], *after, target)


def flash(video, folder):
    """When the scene flashes in the frames, and how many frames there are."""
    Frames(FPS, 24).make(program.FFmpeg(), video, folder / "frames")
    light = np.array([np.asarray(Image.open(path)).mean() for path in sorted((folder / "frames").iterdir())])
    return (np.flatnonzero(light > 128).mean() + 0.5) / FPS, len(light)


def beep(video, folder):
    """When the scene beeps in the spectrogram, and how many rows it has."""
    Spectrograms().make(program.FFmpeg(), video, folder / "sound.npy")
    loudest = np.load(folder / "sound.npy").astype(float).max(1)
    return np.flatnonzero(loudest > loudest.max() - 3).mean() / 100 + 0.0125, len(loudest)


def pairs(video, folder):
    pytest.importorskip("cv2")
    Flow(24).make(program.FFmpeg(), video, folder / "flow")
    return len(list((folder / "flow" / "u").iterdir()))


# --- sound and pictures


@pytest.mark.parametrize("suffix", SOUND)
@pytest.mark.parametrize(
    "heard",
    ["gte(t,3)", "gte(t,0.5)", "gte(t,0.07)", "lt(t,1)+gt(t,4)", "lt(t,1)+between(t,2,2.4)+between(t,3,3.3)+gt(t,4.2)"],
)
def test_sound_that_begins_late_or_has_gaps_stays_with_the_pictures(parts, tmp_path, suffix, heard):
    join(parts, tmp_path / f"a{suffix}", options=["-af", f"aselect='{heard}'"])
    assert beep(tmp_path / f"a{suffix}", tmp_path)[0] == pytest.approx(5, abs=0.1)
    where, count = flash(tmp_path / f"a{suffix}", tmp_path)
    assert where == pytest.approx(5, abs=0.1)
    assert count == pytest.approx(LENGTH * FPS, abs=1)


@pytest.mark.parametrize("suffix", SOUND)
@pytest.mark.parametrize(("pictures", "sound"), [(0, 2), (2, 0), (0, 0.3), (1.3, 0)])
def test_time_begins_with_whichever_begins_first(parts, tmp_path, suffix, pictures, sound):
    """The first picture stands for the time before it, silence for the time before the first sound."""
    video = tmp_path / f"a{suffix}"
    join(parts, video, ["-itsoffset", pictures], ["-itsoffset", sound])
    assert beep(video, tmp_path)[0] == pytest.approx(5 + sound, abs=0.1)
    where, count = flash(video, tmp_path)
    assert where == pytest.approx(5 + pictures, abs=0.1)
    assert count == pytest.approx((LENGTH + pictures) * FPS, abs=1)


@pytest.mark.parametrize("shift", [-1.7, -0.4, 100])
@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".mpg"])
def test_a_start_before_or_after_zero_changes_nothing_between_them(parts, tmp_path, suffix, shift):
    """Where a format cannot say that something begins before zero, it is cut off or all is shifted: never one alone."""
    video = tmp_path / f"a{suffix}"
    join(parts, video, after=["-output_ts_offset", shift, "-avoid_negative_ts", "disabled"])
    assert beep(video, tmp_path)[0] == pytest.approx(flash(video, tmp_path)[0], abs=0.1)


def test_sound_from_before_zero_stays_with_the_pictures(parts, tmp_path):
    join(parts, tmp_path / "a.mp4", sound=["-itsoffset", "-1"], after=["-avoid_negative_ts", "disabled"])
    assert beep(tmp_path / "a.mp4", tmp_path)[0] == pytest.approx(flash(tmp_path / "a.mp4", tmp_path)[0] - 1, abs=0.1)


@pytest.mark.parametrize(("pictures", "sound"), [(7, 5.5), (5.5, 7)])
def test_one_may_end_before_the_other(parts, tmp_path, pictures, sound):
    join(parts, tmp_path / "a.mkv", ["-t", pictures], ["-t", sound])
    where, rows = beep(tmp_path / "a.mkv", tmp_path)
    assert where == pytest.approx(5, abs=0.1)
    assert rows == pytest.approx(100 * sound - 2, abs=10)
    assert flash(tmp_path / "a.mkv", tmp_path) == (pytest.approx(5, abs=0.1), pytest.approx(pictures * FPS, abs=1))


@pytest.mark.parametrize("second", [0, 3])
def test_the_first_of_several_sound_tracks_counts_wherever_the_others_begin(parts, tmp_path, second):
    join(parts, tmp_path / "one.mkv", sound=["-itsoffset", "1"])
    other = ["-itsoffset", second, "-f", "lavfi", "-i", "sine=f=6000:d=3:r=16000"]
    tracks = ["-map", "0:v", "-map", "0:a", "-map", "1:a", "-c", "copy", "-c:a", "pcm_s16le"]
    clips.run_ffmpeg("-i", tmp_path / "one.mkv", *other, *tracks, tmp_path / "a.mkv")
    assert beep(tmp_path / "a.mkv", tmp_path)[0] == pytest.approx(6, abs=0.1)


def test_a_short_sound_that_begins_late_is_too_short_all_the_same(parts, tmp_path):
    join(parts, tmp_path / "a.mkv", sound=["-itsoffset", "3", "-t", "0.02"])
    with pytest.raises(program.BrokenVideoError, match=r"^20 ms of sound, less than a frame of 25 ms"):
        beep(tmp_path / "a.mkv", tmp_path)


def test_sound_after_the_end_of_the_spectrogram_is_no_sound(parts, tmp_path):
    join(parts, tmp_path / "a.mkv", sound=["-itsoffset", "20"])
    with pytest.raises(program.BrokenVideoError, match=r"^0 ms of sound"):
        beep(tmp_path / "a.mkv", tmp_path)


def test_sound_that_is_not_late_is_not_touched(tmp_path):
    """Formats round times: what is a little off goes on where it was, to the sample."""
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, 16000 * 3)
    for name, options in {"a": (), "b": ("-af", "asetnsamples=123,asetpts='PTS+160*sin(N)'")}.items():
        clips.encode(tmp_path / f"{name}.mkv", sound=sound, options=[*options, "-c:a", "pcm_s16le"], sound_rate=16000)
        Spectrograms().make(program.FFmpeg(), tmp_path / f"{name}.mkv", tmp_path / f"{name}.npy")
    first, other = (np.load(tmp_path / f"{name}.npy") for name in "ab")
    assert np.array_equal(first, other[: len(first)])


# --- each picture once


@pytest.mark.parametrize("codec", ["rawvideo", "mpeg4"])
@pytest.mark.parametrize(
    "times",
    [
        "4*N",  # four seconds each
        "if(lt(N,10),N/25,3+N/5)",  # another rate from the middle on
        "N/200",
        "N*N/50",
        "floor(N/2)/5",  # two at the same time
        "2+N/10",
    ],
)
def test_flow_sees_each_picture_once_whatever_its_time(tmp_path, times, codec):
    pytest.importorskip("cv2")
    if codec == "mpeg4" and "floor" in times:
        pytest.skip("the encoder refuses such times")
    options = ["-vf", f"setpts='({times})/TB'", *program.FFmpeg().every_picture, "-c:v", codec]
    clips.encode(tmp_path / "a.mkv", clips.moving(1, 0, 1)[:20], options=options, rate=1000)
    Flow(48).make(program.FFmpeg(), tmp_path / "a.mkv", tmp_path / "flow")
    found = np.stack([np.asarray(Image.open(path)) for path in sorted((tmp_path / "flow" / "u").iterdir())])
    found = np.median((found - 128) / 127.5 * 20, axis=(1, 2))
    assert found == pytest.approx(np.ones(19), abs=0.4), "a repeated picture does not move, a lost one makes two"


def test_frames_of_a_varying_rate_are_those_of_their_time(tmp_path):
    """Pictures of ever longer times, each of a grey of its own."""
    times = np.arange(12) ** 2 / 21
    pictures = np.broadcast_to(20 * np.arange(12, dtype=np.uint8)[:, None, None, None], (12, 48, 64, 3))
    vary = ["-vf", "setpts='N*N/21/TB'", *program.FFmpeg().every_picture]
    clips.encode(tmp_path / "a.mkv", pictures, options=vary, rate=1000)
    Frames(2, 24).make(program.FFmpeg(), tmp_path / "a.mkv", tmp_path / "frames")
    shown = [np.asarray(Image.open(path)).mean() / 20 for path in sorted((tmp_path / "frames").iterdir())]
    for number, picture in enumerate(shown[: int(times[-1] * 2)]):
        middle = (number + 0.5) / 2
        assert picture == pytest.approx(np.flatnonzero(times <= middle + 1e-3)[-1], abs=0.4)


@pytest.mark.parametrize("sizes", [((48, 64), (96, 128)), ((48, 64), (64, 64)), ((96, 128), (48, 64))])
def test_pictures_that_change_their_size_are_refused(tmp_path, sizes):
    pytest.importorskip("cv2")
    (tmp_path / "videos").mkdir()
    with (tmp_path / "videos" / "a.mpg").open("wb") as joined:
        for height, width in sizes:
            clips.encode(
                tmp_path / "part.m2v", np.zeros((30, height, width, 3), np.uint8), options=["-c:v", "mpeg2video"]
            )
            joined.write((tmp_path / "part.m2v").read_bytes())
    report = prepare(tmp_path / "videos", tmp_path / "output", ["frames", "flow"], size=32)
    (h, w), (height, width) = sizes
    reason = f"pictures change from {w}x{h} to {width}x{height} pixels"
    assert report.skipped == [("a.mpg", "flow", reason), ("a.mpg", "frames", reason)]
    assert not (tmp_path / "output" / "frames" / "a").exists()


# --- square pixels


@pytest.mark.parametrize(
    ("stored", "aspect", "shown"),
    [
        ((96, 120), "64/45", (48, 85)),  # as 16:9 on a European DVD
        ((96, 120), "1/2", (77, 48)),  # taller than wide only as shown
        ((96, 120), "1", (48, 60)),
        ((96, 120), "0", (48, 60)),  # not said
    ],
)
def test_frames_and_flow_have_the_proportions_that_are_shown(tmp_path, stored, aspect, shown):
    pytest.importorskip("cv2")
    options = ["-vf", f"scale={stored[1]}:{stored[0]},setsar={aspect}"]
    clips.encode(tmp_path / "a.mp4", clips.moving(2, 0, 1), options=options)
    Frames(2, 48).make(program.FFmpeg(), tmp_path / "a.mp4", tmp_path / "frames")
    Flow(48).make(program.FFmpeg(), tmp_path / "a.mp4", tmp_path / "flow")
    for path in (*(tmp_path / "frames").iterdir(), *(tmp_path / "flow").rglob("*.jpg")):
        assert np.asarray(Image.open(path)).shape[:2] == shown
    right = np.asarray(Image.open(tmp_path / "flow" / "u" / "000003.jpg"))
    assert np.median((right - 128.0) / 127.5 * 20) == pytest.approx(2 * shown[1] / clips.WIDTH, abs=0.2)
