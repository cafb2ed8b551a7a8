# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The videos of a folder, and the names of the clips they become."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

#: Files that count as videos, in lower or upper case.
SUFFIXES = (
    ".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv",
)  # fmt: skip


def find_videos(folder: Path, leave_out: Path | None = None) -> dict[str, Path]:
    """Videos in a folder and its subfolders, by clip name: the path below the folder without suffix.

    Names that start with a dot are left out: they are hidden files of other programs.

    Args:
        folder: where to look; links are followed, except those that lead back to a folder they are in.
        leave_out: a folder not to look into.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds no video, a folder that cannot be read, or videos whose clips would be mixed.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"`videos` must be a folder, got {str(folder)!r}, and there is none")
    clips: dict[str, list[Path]] = {}
    # The folders that each folder lies in, which a link must not lead back to.
    above = {str(folder): {os.path.realpath(each) for each in (folder, leave_out) if each is not None}}
    for place, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        closed = above.pop(place)
        real = {name: os.path.realpath(os.path.join(place, name)) for name in folders if not name.startswith(".")}
        folders[:] = sorted(name for name in real if real[name] not in closed)
        above.update({os.path.join(place, name): closed | {real[name]} for name in folders})
        for file in sorted(files):
            path = Path(place, file)
            if not file.startswith(".") and path.suffix.lower() in SUFFIXES:
                clips.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    if not clips:
        raise ValueError(f"`videos` must hold files that end with {', '.join(SUFFIXES)}, got {str(folder)!r} with none")
    if twins := [(first, other) for first, *others in clips.values() for other in others]:
        raise ValueError(
            f"`videos` must have names that differ without suffix, got {len(twins)} pair{'s' * (len(twins) > 1)} that "
            f"do not, such as {twins[0][0]} and {twins[0][1]}"
        )
    for clip, (path,) in clips.items():
        for parent in map(Path.as_posix, Path(clip).parents):
            if parent in clips:
                both = f"{clips[parent][0]} and {path}"
                raise ValueError(f"`videos` must not have a folder named as a video without suffix, got {both}")
    return {clip: path for clip, (path,) in clips.items()}


def _refuse(error: OSError) -> NoReturn:
    raise ValueError(
        f"`videos` must have folders that can all be read, got {error.filename}: {error.strerror}"
    ) from error
