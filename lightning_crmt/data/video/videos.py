# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The videos of a folder, and the names of the clips they become."""

from __future__ import annotations

import os
from pathlib import Path

#: Files that count as videos, in lower or upper case.
SUFFIXES = (
    ".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv",
)  # fmt: skip


def find_videos(folder: Path, leave_out: Path | None = None) -> dict[str, Path]:
    """Videos in a folder and the folders below it, by the names of their clips: the path below it without suffix.

    Names that start with a dot are left out: they are what other programs hide.

    Args:
        folder: where to look; links are followed.
        leave_out: a folder not to look into.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds no video, or two whose clips would be mixed.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"`videos` must be a folder, got {str(folder)!r}, and there is none")
    found: dict[str, Path] = {}
    seen = set() if leave_out is None else {os.path.realpath(leave_out)}
    for place, folders, files in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(place))
        # a link may lead back to where it is
        folders[:] = sorted(f for f in folders if f[0] != "." and os.path.realpath(os.path.join(place, f)) not in seen)
        for file in sorted(files):
            path = Path(place, file)
            if file.startswith(".") or path.suffix.lower() not in SUFFIXES:
                continue
            clip = path.relative_to(folder).with_suffix("").as_posix()
            if clip in found:
                raise ValueError(f"`videos` must have names that differ without suffix, got {found[clip]} and {path}")
            found[clip] = path
    if not found:
        raise ValueError(f"`videos` must hold files that end with {', '.join(SUFFIXES)}, got {str(folder)!r} with none")
    for clip, path in found.items():
        for parent in Path(clip).parents:
            if parent.as_posix() in found:
                raise ValueError(
                    f"`videos` must not have a folder named as a video without suffix, got {found[parent.as_posix()]} "
                    f"and {path}"
                )
    return found
