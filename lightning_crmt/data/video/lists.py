# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The clips of a data set: named by its lists, split by seed, and looked up on disk."""

from __future__ import annotations

import os
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lightning_crmt.data.read.looks import Reader


class Listed(NamedTuple):
    """A clip that a list names.

    Attributes:
        names: what it may be called on the disk, path and name without suffix; the first that exists counts.
        label: the name of its class.
        group: clips of one group come from one recording, and no split separates them; by default each is alone.
    """

    names: tuple[str, ...]
    label: str
    group: str = ""


def lines_of(path: Path, hint: str) -> Iterator[tuple[str, str]]:
    """``("file:line", text)`` of each line that is not empty.

    Raises:
        FileNotFoundError: naming the file and, by ``hint``, where it comes from.
        ValueError: if it is not text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise FileNotFoundError(f"there is no list {path}: {hint}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be text in UTF-8, got {error}") from error
    return ((f"{path}:{number}", line) for number, line in enumerate(text.splitlines(), 1) if line.strip())


def plain(name: str) -> str:
    """The form in which names of classes are compared: spaces and underscores are the same."""
    return name.strip().replace("_", " ")


def class_index(name: str, classes: Sequence[str], where: str, others: Sequence[str] = ()) -> int:
    """The place of a class among ``classes``, then ``others``, which the message does not name.

    Raises:
        ValueError: if there is no such class.
    """
    known = [plain(each) for each in (*classes, *others)]
    if plain(name) not in known:
        raise ValueError(f"{where} must name one of the {len(classes)} classes {few(classes)}, got {name!r}")
    return known.index(plain(name))


def restrict(listed: Iterable[Listed], classes: Sequence[str]) -> list[Listed]:
    """The clips of some classes, which are named as in ``classes``."""
    spelt = {plain(name): name for name in classes}
    return [clip._replace(label=spelt[plain(clip.label)]) for clip in listed if plain(clip.label) in spelt]


def hold_out(listed: Sequence[Listed], share: float, seed: int) -> tuple[list[Listed], list[Listed]]:
    """Split clips in two, the second with ``share`` of each class, whole groups at a time.

    A class with two groups or more has at least one in either part. What is on the disk makes no difference, nor which
    other classes there are, so that the split is the same for everyone who has the list.

    Args:
        listed: the clips.
        share: of each class's groups, in the second.
        seed: decides which; together with the name of the class and nothing else.
    """
    groups: dict[str, dict[str, None]] = {}
    for clip in listed:
        groups.setdefault(clip.label, {})[clip.group or clip.names[0]] = None
    held: set[tuple[str, str]] = set()
    for label, names in groups.items():
        count = min(max(1, round(share * len(names))), len(names) - 1)
        order = np.random.default_rng((seed, zlib.crc32(plain(label).encode()))).permutation(len(names))
        held.update((label, list(names)[i]) for i in order[:count])
    parts: tuple[list[Listed], list[Listed]] = ([], [])
    for clip in listed:
        parts[(clip.label, clip.group or clip.names[0]) in held].append(clip)
    return parts


def look_up(listed: Iterable[Listed], readers: Collection[Reader]) -> tuple[list[Listed], list[Listed]]:
    """The clips of which all readers have files, each by its one name, and the others.

    Folders are listed once each and no file is touched, so that 200,000 clips take seconds.
    """
    inside = cache(entries)

    def is_there(name: str) -> bool:
        above, _, last = name.rpartition("/")
        return all(f"{last}{reader.suffix}" in inside(reader.folder / above) for reader in readers)

    there, missing = [], []
    for clip in listed:
        if name := next(filter(is_there, clip.names), None):
            there.append(clip._replace(names=(name,)))
        else:
            missing.append(clip)
    return there, missing


def entries(folder: Path) -> set[str]:
    """Names in a folder except hidden ones; none if there is no such folder."""
    try:
        return {name for name in os.listdir(folder) if not name.startswith(".")}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def few(names: Sequence[str]) -> str:
    """The first three names, for messages."""
    return ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
