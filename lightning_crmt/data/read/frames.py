# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Frames of prepared clips as tensors."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from lightning_crmt.checks import check_at_least, require_package
from lightning_crmt.data.read.looks import Look, Reader, frame_at

#: Mean and deviation of the channels of ImageNet, pixels in [0, 1].
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class FrameReader(Reader):
    """RGB frames at the moments of a look, ``(moments, 3, size, size)``, normalised as ImageNet.

    Args:
        size: height and width.
    """

    kind: ClassVar[str] = "frames"

    size: int

    def __post_init__(self) -> None:
        check_at_least(1, size=self.size)

    @override
    def __call__(self, clip: str, look: Look) -> Tensor:
        files = pictures(self.path(clip))
        shown = [files[frame_at(moment, len(files))] for moment in look.moments]
        pixels = torch.stack([read_jpeg(path, "RGB", look, self.size) for path in shown])
        mean, std = (torch.tensor(each)[:, None, None] for each in (IMAGENET_MEAN, IMAGENET_STD))
        return pixels.float().div_(255).sub_(mean).div_(std)


def pillow() -> Any:
    """The module of Pillow that reads JPEGs.

    Raises:
        ModuleNotFoundError: without ``pip install "lightning_crmt[video]"``.
    """
    return require_package("PIL.Image", "reading frames needs Pillow", "video")


def read_jpeg(path: Path, mode: str, look: Look, size: int) -> Tensor:
    """Pixels ``(C, size, size)``, uint8, of an image under a look; ``mode`` is ``"RGB"`` or ``"L"``.

    Raises:
        RuntimeError: naming the file, if it cannot be read.
    """
    pil = pillow()
    try:
        with pil.open(path) as image:
            box = look.box(*image.size)
            # Decodes a large picture at a half, a quarter or an eighth, where that is still finer than what is wanted.
            image.draft(mode, (math.ceil(size / (box.right - box.left)), math.ceil(size / (box.bottom - box.top))))
            width, height = image.size
            corners = (box.left * width, box.top * height, box.right * width, box.bottom * height)
            seen = image.convert(mode).resize((size, size), pil.Resampling.BILINEAR, box=corners)
    except (OSError, SyntaxError, ValueError) as error:
        raise RuntimeError(
            f"{path} cannot be read ({error}): delete the folder of its clip and prepare it again"
        ) from error
    if look.mirrored:
        seen = seen.transpose(pil.Transpose.FLIP_LEFT_RIGHT)
    pixels = torch.from_numpy(np.array(seen))
    return pixels.permute(2, 0, 1) if pixels.dim() == 3 else pixels[None]


def pictures(folder: Path) -> list[Path]:
    """The pictures (*.jpg) of a folder in order: by number if their names differ in nothing else, else by name.

    Raises:
        RuntimeError: if there are none, or one is missing.
    """
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".jpg"))
    except OSError as error:
        raise RuntimeError(f"{folder} cannot be read ({error}): prepare its clip again") from error
    if not names:
        raise RuntimeError(
            f"{folder} must hold pictures (*.jpg), got none: delete the folder of its clip and prepare it again"
        )
    numbers = {name: match for name in names if (match := re.fullmatch(r"([^.]*?)(\d+)\.jpg", name))}
    if len(numbers) == len(names) and len({match[1] for match in numbers.values()}) == 1:
        names.sort(key=lambda name: int(numbers[name][2]))
    # Named as `prepare` names them, from 000001 on, they have no gaps; those of others may number as they like.
    expected = [f"{number:06d}.jpg" for number in range(1, len(names) + 1)]
    if names != expected and names[0] == expected[0] and all(re.fullmatch(r"\d{6}\.jpg", name) for name in names):
        missing = next(name for name in expected if name not in names)
        raise RuntimeError(
            f"{folder} must hold every picture up to {names[-1]}, got no {missing}: delete the folder of its clip and "
            "prepare it again"
        )
    return [folder / name for name in names]
