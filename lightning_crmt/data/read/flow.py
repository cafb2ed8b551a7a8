# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Optical flow of prepared clips as tensors."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import Self, override

from lightning_crmt.checks import check_at_least, check_positive
from lightning_crmt.data.read.frames import pictures, read_jpeg
from lightning_crmt.data.read.looks import Look, Reader, stack_at


@dataclass(frozen=True)
class FlowReader(Reader):
    r"""Optical flow around the moments of a look, ``(moments, 2 length, size, size)``: successive pairs (u, v).

    A grey value g means :math:`(g - 128) / 127.5 \cdot \mathrm{bound}` pixels from one frame of the video to the
    next. The channels are these displacements divided by ``std``. In a mirrored clip what moved left moves right: u
    changes its sign.

    Args:
        size: height and width.
        length: successive pairs at each moment.
        std: what a displacement is divided by, in pixels.
        bound: the largest displacement that the grey values express, in pixels.
    """

    kind: ClassVar[str] = "flow"

    size: int
    length: int = 10
    std: float = 3.0
    bound: float = 20.0

    def __post_init__(self) -> None:
        check_at_least(1, size=self.size, flow_length=self.length)
        check_positive(flow_std=self.std, flow_bound=self.bound)

    @override
    def __call__(self, clip: str, look: Look) -> Tensor:
        us, vs = pictures(self.path(clip) / "u"), pictures(self.path(clip) / "v")
        if len(us) != len(vs):
            raise RuntimeError(
                f"{self.path(clip)} must hold as many pictures of u as of v, got {len(us)} and {len(vs)}: "
                "delete the folder and prepare it again"
            )
        stacks = []
        for moment in look.moments:
            pairs = [path for i in stack_at(moment, len(us), self.length) for path in (us[i], vs[i])]
            stacks.append(torch.cat([read_jpeg(path, "L", look, self.size) for path in pairs]))
        pixels = torch.stack(stacks).float().sub_(128).mul_(self.bound / 127.5).div_(self.std)
        if look.mirrored:
            pixels[:, ::2].neg_()
        return pixels

    @override
    def for_folder(self, folder: Path, root: Path) -> Self:
        """For a folder, with the bound in the settings beside it or beside a folder around it, if there are settings.

        Raises:
            ValueError: if there is a file of settings without a valid bound.
        """
        places = [folder, *folder.parents[:-1]]
        for place in places[: places.index(root) if root in places else None]:
            path = place.with_name(f"{place.name}.json")
            if path.is_file():
                try:
                    return replace(self, folder=folder, bound=json.loads(path.read_text("utf-8"))["bound"])
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(f"{path} must be what `lightning-crmt prepare` writes, got {error!r}") from error
        return replace(self, folder=folder)
