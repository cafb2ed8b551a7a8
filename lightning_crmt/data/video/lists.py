# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The clips of a data set: named by its lists, split by seed, and looked up on disk."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from lightning_crmt.data.prepare.videos import SUFFIXES
from lightning_crmt.data.read.looks import Reader


class Listed(NamedTuple):
    """A clip that a list names.

    Attributes:
        names: what it may be called on the disk, path and name without suffix; the first that exists counts.
        label: the name of its class.
        group: clips of one group come from one recording or show one person, and no split separates them, whatever
            their classes; by default each is alone.
    """

    names: tuple[str, ...]
    label: str
    group: str = ""


def lines_of(path: Path, hint: str) -> Iterator[tuple[str, str]]:
    """``("file:line", text)`` of each line that is not empty.

    Names of files need not be UTF-8: what is not is read as Python names such files.

    Raises:
        FileNotFoundError: naming the file and, by ``hint``, where it comes from.
        ValueError: if it is not text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise FileNotFoundError(f"there is no list {path}: {hint}") from error
    if "\0" in text:
        raise ValueError(f"{path} must be text in UTF-8, got bytes that are 0")
    quoted = path.suffix.lower() == ".csv"
    return ((f"{path}:{number}", line) for number, line in _records(text, quoted) if line.strip())


def _records(text: str, quoted: bool) -> Iterator[tuple[int, str]]:
    """Lines with their numbers; if quoted, a line in the middle of a quoted field goes on with the next one."""
    held: list[str] = []
    inside = False
    # Not splitlines(): it takes characters for ends of lines that names may have.
    for number, line in enumerate(text.split("\n"), 1):
        held.append(line)
        inside ^= quoted and line.count('"') % 2 == 1
        if not inside:
            yield number + 1 - len(held), "\n".join(held)
            held = []
    if held:
        yield number + 1 - len(held), "\n".join(held)


def named(where: str, line: str, is_label: Callable[[str], bool] = lambda label: True) -> tuple[str, str]:
    """Name and label of a clip that a line of a list names.

    The line is ``name,label`` or ``name,number,label``, as in the lists that were released with OGM-GE (Peng et al.,
    CVPR 2022), or ``name label``, where a name may have spaces before a number, and none before another label.

    Args:
        where: file and line, for messages.
        line: the line.
        is_label: whether something is a label, which decides where a comma may be a part of a name.

    Raises:
        ValueError: if the line has none of these forms.

    >>> named("list.txt:1", "-3Mwkq-7TV4_2,10,23"), named("list.txt:2", "1001_DFA_ANG_XX,ANG")
    (('-3Mwkq-7TV4_2', '23'), ('1001_DFA_ANG_XX', 'ANG'))
    >>> named("list.txt:3", "train/playing guitar/a 12")
    ('train/playing guitar/a', '12')
    """
    fields = [field.strip() for field in next(csv.reader([line]))]
    commas = len(fields) == 2 or (len(fields) == 3 and fields[1].isdecimal())
    if commas and fields[0] and (is_label(fields[-1]) or len(line.split()) == 1):
        return fields[0], fields[-1]
    words = line.rsplit(maxsplit=1)
    if not words[-1].isdecimal():
        words = line.split(maxsplit=1)
    if len(words) < 2:
        raise ValueError(f"{where} must be `name label`, got {line!r}; or `name,label` or `name,number,label`")
    return words[0].strip(), words[1].strip()


def names_of(name: str, part: str) -> tuple[str, ...]:
    """What a clip that a list names may be called: without the suffix of a video, or in a folder named like the part.

    >>> names_of("a.mp4", "train")
    ('a.mp4', 'a', 'train/a.mp4', 'train/a')
    """
    names = (name, name.rpartition(".")[0]) if name.lower().endswith(SUFFIXES) else (name,)
    return (*names, *(f"{part}/{each}" for each in names))


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

    A class with two groups or more has at least one in the first part and, unless that takes the last group of another
    class, in the second. What is on the disk makes no difference, nor, where no group is in two classes, which other
    classes there are: the split is the same for everyone who has the list.

    Args:
        listed: the clips.
        share: of each class's groups, in the second.
        seed: decides which; together with the names of the groups and nothing else.
    """
    groups: dict[str, set[str]] = {}
    classes: dict[str, set[str]] = {}
    for clip in listed:
        groups.setdefault(clip.label, set()).add(clip.group or clip.names[0])
        classes.setdefault(clip.group or clip.names[0], set()).add(clip.label)
    kept = Counter({label: len(names) for label, names in groups.items()})
    held: set[str] = set()
    for names in groups.values():
        wanted = max(1, round(share * len(names))) - len(names & held)
        for name in sorted(names - held, key=lambda name: (_draw(name, seed), name)):
            if wanted > 0 and all(kept[each] > 1 for each in classes[name]):
                held.add(name)
                kept.subtract(classes[name])
                wanted -= 1
    parts: tuple[list[Listed], list[Listed]] = ([], [])
    for clip in listed:
        parts[(clip.group or clip.names[0]) in held].append(clip)
    return parts


def _draw(group: str, seed: int) -> bytes:
    """A number that the last part of a name and the seed decide, whatever the folders above are called."""
    name = plain(group.rpartition("/")[2]).encode("utf-8", "surrogateescape")
    return blake2b(name, key=str(seed).encode(), digest_size=8).digest()


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


def clips_below(folder: Path, suffix: str) -> list[str]:
    """Names of the clips whose files, with a suffix, are in a folder or below it; sorted, hidden ones left out."""
    names = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        above = Path(place).relative_to(folder)
        names += [(above / file).as_posix().removesuffix(suffix) for file in files if file.endswith(suffix)]
    return sorted(name for name in names if not name.rpartition("/")[2].startswith("."))


def entries(folder: Path) -> set[str]:
    """Names in a folder except hidden ones; none if there is no such folder."""
    try:
        return {name for name in os.listdir(folder) if not name.startswith(".")}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def few(names: Sequence[str]) -> str:
    """The first three names, for messages."""
    return ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
