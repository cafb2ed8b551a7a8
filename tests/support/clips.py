# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Small real videos of known content, whole and broken, made by ffmpeg on the spot in about a second."""

import subprocess
import wave

import numpy as np

from lightning_crmt.data.prepare.ffmpeg import ffmpeg_program

RATE = 25
WIDTH, HEIGHT = 64, 48
#: What `colours` shows, a second each.
COLOURS = ((220, 20, 20), (20, 200, 20), (20, 20, 220))

#: Whole videos by the names of their clips, with their seconds; the first is named as videos of YouTube may be.
WHOLE = {"low/--4-0ih'tn\"BU_%d": 3, "low/colours ü": 3, "high/moving.right": 2, "high/moving_up": 2}
#: Broken ones, the kinds that they are broken for, and words of the reason.
BROKEN = {
    "broken/cut_off.mp4": ({"frames", "spectrograms", "flow"}, ""),  # in words that depend on the version
    "broken/cut_short.avi": ({"frames", "spectrograms", "flow"}, "the file ends after"),
    "broken/empty.mp4": ({"frames", "spectrograms", "flow"}, "the file is empty"),
    "broken/gone.mp4": ({"frames", "spectrograms", "flow"}, "No such file"),
    "broken/text.mp4": ({"frames", "spectrograms", "flow"}, ""),
    "broken/silent.mp4": ({"spectrograms"}, "no audio stream"),
    "broken/blip.mkv": ({"spectrograms"}, "20 ms of sound, less than a frame of 25 ms"),
    "broken/unseen.mp4": ({"frames", "flow"}, "no video stream"),
}


def have_ffmpeg():
    try:
        ffmpeg_program()
    except FileNotFoundError:
        return False
    return True


def run_ffmpeg(*words, **settings):
    subprocess.run([ffmpeg_program(), "-nostdin", "-v", "error", "-y", *map(str, words)], check=True, **settings)


def encode(path, pictures=None, sound=None, options=(), rate=RATE, sound_rate=44100):
    """A video of pictures ``(T, H, W, 3)``, so many per second, and sound ``(T,)`` or ``(T, channels)`` within 1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    words, piped = [], None
    if sound is not None:
        track = path.parent / "sound.wav"
        with wave.open(str(track), "wb") as file:
            file.setnchannels(1 if sound.ndim == 1 else sound.shape[1])
            file.setsampwidth(2)
            file.setframerate(sound_rate)
            file.writeframes((sound * 32767).astype("<i2").tobytes())
        words += ["-i", track]
    if pictures is not None:
        size = f"{pictures.shape[2]}x{pictures.shape[1]}"
        words += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", rate, "-i", "pipe:0", "-c:v", "mpeg4"]
        words += ["-q:v", 2, "-pix_fmt", "yuv420p"]
        piped = np.ascontiguousarray(pictures).tobytes()
    run_ffmpeg(*words, *options, f"file:{path}", input=piped)
    if sound is not None:
        track.unlink()


def tone(frequency, seconds, rate=44100):
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


def of_colours(seconds=3):
    """A second of each colour."""
    shown = np.array(COLOURS, dtype=np.uint8)[np.arange(seconds * RATE) // RATE % len(COLOURS)]
    return np.broadcast_to(shown[:, None, None], (seconds * RATE, HEIGHT, WIDTH, 3))


def moving(right, down, seconds=2, seed=0):
    """A smooth texture that moves so many whole pixels from each picture to the next."""
    count = seconds * RATE
    rows, columns = HEIGHT + abs(down) * count, WIDTH + abs(right) * count
    texture = np.random.default_rng(seed).normal(size=(rows, columns))
    for axis in (0, 1, 0, 1):
        texture = sum(np.roll(texture, shift, axis) for shift in (-2, -1, 0, 1, 2))
    texture = np.clip(128 + 40 * texture / texture.std(), 0, 255).astype(np.uint8)
    starts = [
        (max(0, down * count) - down * step, max(0, right * count) - right * step) for step in range(1, count + 1)
    ]
    pictures = np.stack([texture[y : y + HEIGHT, x : x + WIDTH] for y, x in starts])
    return np.repeat(pictures[..., None], 3, axis=-1)


def make_clips(folder):
    """The videos of ``WHOLE`` and ``BROKEN`` in a folder."""
    encode(folder / "low/--4-0ih'tn\"BU_%d.mp4", moving(0, 0, 3), tone(440, 3))
    stereo = np.stack([tone(1000, 3)] * 2, axis=1)
    encode(folder / "low/colours ü.mkv", of_colours(), stereo, ["-c:a", "pcm_s16le"])
    encode(folder / "high/moving.right.mp4", moving(2, 0), tone(3000, 2))
    encode(folder / "high/moving_up.AVI", moving(0, -1), tone(6000, 2), ["-c:a", "pcm_s16le"])
    broken = folder / "broken"
    encode(broken / "cut_off.mp4", moving(1, 1, 3), tone(440, 3), ["-movflags", "+faststart"])
    encode(broken / "cut_short.avi", of_colours(), tone(440, 3))
    for path in (broken / "cut_off.mp4", broken / "cut_short.avi"):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) * 6 // 10])
    encode(broken / "silent.mp4", of_colours(1))
    encode(broken / "blip.mkv", of_colours(1), tone(440, 0.02, 16000), ["-c:a", "pcm_s16le"], sound_rate=16000)
    encode(broken / "unseen.mp4", sound=tone(440, 1))
    (broken / "empty.mp4").touch()
    (broken / "gone.mp4").symlink_to("nowhere.mp4")
    (broken / "text.mp4").write_text("not a video\n")
    (folder / "low" / "._colours.mp4").write_text("what some systems hide")
    (folder / "README.txt").write_text("not a video either")
