# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""How a clip is viewed: moments, one crop and one mirroring for all of its modalities; the base of readers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from torch import Tensor
from typing_extensions import Self

_ATTEMPTS = 10


class Box(NamedTuple):
    """A part of an image, as fractions of its width and height."""

    left: float
    top: float
    right: float
    bottom: float


class Look(NamedTuple):
    """One view of a clip, drawn once and shared by all frames and modalities, so that they stay aligned.

    Attributes:
        moments: where in the clip frames are taken, as fractions of its length.
        crops: proposals ``(area, ratio, x, y)`` for the crop, of which the first that fits counts; none for no crop.
        mirrored: whether left and right are exchanged.
    """

    moments: tuple[float, ...]
    crops: tuple[tuple[float, float, float, float], ...] = ()
    mirrored: bool = False

    def box(self, width: int, height: int) -> Box:
        r"""The crop in an image of this size: of area :math:`s` times the whole and of ratio :math:`r`,

        .. math:: w = \sqrt{s r H / W}, \qquad h = \sqrt{s W / (r H)}

        as fractions; if no proposal fits, the largest crop of an allowed ratio, in the middle.

        >>> Look((0.5,), crops=((0.25, 1.0, 0.0, 1.0),)).box(100, 100)
        Box(left=0.0, top=0.5, right=0.5, bottom=1.0)
        """
        if not self.crops:
            return Box(0.0, 0.0, 1.0, 1.0)
        aspect = width / height
        for area, ratio, x, y in self.crops:
            w, h = math.sqrt(area * ratio / aspect), math.sqrt(area * aspect / ratio)
            if w <= 1 and h <= 1:
                return Box(x * (1 - w), y * (1 - h), x * (1 - w) + w, y * (1 - h) + h)
        ratio = min(max(aspect, 3 / 4), 4 / 3)
        w, h = min(1.0, ratio / aspect), min(1.0, aspect / ratio)
        return Box((1 - w) / 2, (1 - h) / 2, (1 + w) / 2, (1 + h) / 2)


def middle(moments: int) -> Look:
    """How a clip is seen in evaluation: the middles of equal segments, whole frames.

    >>> middle(2)
    Look(moments=(0.25, 0.75), crops=(), mirrored=False)
    """
    return Look(tuple((i + 0.5) / moments for i in range(moments)))


def random_look(moments: int, seed: Sequence[int]) -> Look:
    """How a clip is seen in training: a random moment of each segment, a random crop, mirrored in half of the cases.

    The crop has 0.08 to 1 of the area, evenly, and a ratio of 3/4 to 4/3, evenly in its logarithm (Szegedy et al.,
    CVPR 2015).

    Args:
        moments: number of equal segments.
        seed: numbers that alone decide the draw.
    """
    generator = np.random.default_rng(seed)
    where = tuple(float((i + u) / moments) for i, u in enumerate(generator.random(moments)))
    area = generator.uniform(0.08, 1.0, _ATTEMPTS)
    ratio = np.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3), _ATTEMPTS))
    places = generator.random((_ATTEMPTS, 2))
    crops = tuple(map(tuple, np.column_stack([area, ratio, places]).tolist()))
    return Look(where, crops, bool(generator.random() < 0.5))


def frame_at(moment: float, frames: int) -> int:
    """The frame that shows a moment, a fraction of the clip.

    >>> [frame_at(moment, 10) for moment in middle(3).moments], [frame_at(moment, 2) for moment in middle(3).moments]
    ([1, 5, 8], [0, 1, 1])
    """
    return min(int(moment * frames), frames - 1)


def stack_at(moment: float, frames: int, length: int) -> list[int]:
    """The ``length`` successive frames around a moment, shifted to stay within the clip; a short clip repeats its last.

    >>> stack_at(0.5, 20, 4), stack_at(0.0, 20, 4), stack_at(0.9, 3, 4)
    ([8, 9, 10, 11], [0, 1, 2, 3], [0, 1, 2, 2])
    """
    start = max(0, min(round(moment * frames - length / 2), frames - length))
    return [min(start + i, frames - 1) for i in range(length)]


@dataclass(frozen=True)
class Reader(ABC):
    """Reads one modality of a clip from its files.

    Args:
        folder: the folder that holds the files of all clips, by keyword.

    Attributes:
        kind: what ``lightning-crmt prepare`` calls files of this modality.
        suffix: what the name of a clip's file ends in; empty for a folder.
    """

    kind: ClassVar[str]
    suffix: ClassVar[str] = ""

    folder: Path = field(default=Path(), kw_only=True)

    @abstractmethod
    def __call__(self, clip: str, look: Look) -> Tensor:
        """The input that the model gets."""

    def path(self, clip: str) -> Path:
        """Where the file or folder of a clip is."""
        return self.folder / f"{clip}{self.suffix}"

    def for_folder(self, folder: Path, root: Path) -> Self:
        """This reader for the files in a folder below ``root``, and the settings that they were made with."""
        return replace(self, folder=folder)
