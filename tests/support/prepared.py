# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Small folders like those that `lightning-crmt prepare` leaves, drawn instead of filmed."""

import numpy as np
from PIL import Image

from lightning_crmt.data import UCF101, AudioVideoFolder, KineticsSounds, VGGSound

CLASSES = ["singing", "playing guitar"]


def write_picture(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(path, quality=95)


def write_frames(folder, count=5, size=(48, 64), pattern="{:06d}.jpg"):
    """Frame i is grey of brightness 20 i, its right half brighter by 40, so that each is known by what it shows."""
    for i in range(count):
        pixels = np.full((*size, 3), 20 * i)
        pixels[:, size[1] // 2 :] += 40
        write_picture(folder / pattern.format(i + 1), pixels)


def write_flow(folder, count=12, size=(48, 64)):
    """Frame i has u = 10 i grey values and v = 255 - 10 i."""
    for i in range(count):
        write_picture(folder / "u" / f"{i + 1:06d}.jpg", np.full(size, 10 * i))
        write_picture(folder / "v" / f"{i + 1:06d}.jpg", np.full(size, 255 - 10 * i))


def write_spectrogram(path, length=200, value=-4.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.full((length, 128), value, dtype=np.float16))


def write_clip(root, name, kinds=("frames", "spectrograms"), **settings):
    if "frames" in kinds:
        write_frames(root / "frames" / name, **settings)
    if "flow" in kinds:
        write_flow(root / "flow" / name)
    if "spectrograms" in kinds:
        write_spectrogram(root / "spectrograms" / f"{name}.npy")


def kinetics_sounds(root, train=4, test=2, **settings):
    """In folders by part and class."""
    for part, count in (("train", train), ("test", test)):
        for name in CLASSES:
            for i in range(count):
                write_clip(root, f"{part}/{name.replace(' ', '_')}/{name[:4]}{i}_000001_000011")
    return KineticsSounds(str(root), classes=CLASSES, **({"size": 32, "batch_size": 2, "num_workers": 0} | settings))


def vggsound(root, train=4, test=2, **settings):
    lines = []
    for label in ("barking, loudly", "singing"):
        for part, count in (("train", train), ("test", test)):
            for i in range(count):
                lines.append(f'{part}{label[:3]}{i},{30 + i},"{label}",{part}')
                write_clip(root, f"{part}{label[:3]}{i}_{30 + i:06d}")
    (root / "vggsound.csv").write_text("\n".join(lines) + "\n")
    return VGGSound(str(root), **({"size": 32, "batch_size": 2, "num_workers": 0} | settings))


def ucf101(root, groups=4, clips=2, **settings):
    lists = root / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    lines = {"train": [], "test": []}
    for label, name in enumerate(("Archery", "Bowling"), 1):
        for group in range(1, groups + 2):
            for clip in range(1, clips + 1):
                path = f"{name}/v_{name}_g{group:02d}_c{clip:02d}"
                write_clip(root, path, ("frames", "flow"))
                lines["train" if group > 1 else "test"].append(f"{path}.avi" + f" {label}" * (group > 1))
    for part, listed in lines.items():
        (lists / f"{part}list01.txt").write_text("\n".join(listed) + "\n")
    (lists / "classInd.txt").write_text("1 Archery\n2 Bowling\n")
    return UCF101(str(root), **({"size": 32, "batch_size": 2, "num_workers": 0} | settings))


#: What names of CREMA-D say: the person, the sentence, the emotion, how strongly.
CREMA_D = r"(.*/)?(?P<group>\d+)_[A-Z]+_(?P<label>[A-Z]+)_[A-Z]+"
EMOTIONS = ["NEU", "HAP", "SAD", "FEA", "DIS", "ANG"]


def crema_d(root, people=10, emotions=EMOTIONS, **settings):
    """Each person says two sentences in each emotion."""
    for person in range(1001, 1001 + people):
        for emotion in emotions:
            for sentence in ("DFA", "IEO"):
                write_clip(root, f"{person}_{sentence}_{emotion}_XX", count=1)
    given = {"pattern": CREMA_D, "classes": list(emotions), "size": 16, "batch_size": 2, "num_workers": 0}
    return AudioVideoFolder(str(root), **(given | settings))
