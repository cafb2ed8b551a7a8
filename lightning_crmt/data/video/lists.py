# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Which clips a data set has: read from list files or from folders, split by seed, and looked for on the disk."""

from __future__ import annotations

import csv
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lightning_crmt.data.prepare.videos import SUFFIXES


class Listed(NamedTuple):
    """A clip that a list names.

    Attributes:
        names: what it may be called on the disk, path and name without suffix; the first that is there counts.
        label: its class.
        group: clips of one group come from one recording, and no split tears them apart; by default each is alone.
    """

    names: tuple[str, ...]
    label: int
    group: str = ""


def lines_of(path: Path, hint: str) -> Iterator[tuple[str, str]]:
    """``("file:line", text)`` of each line that is not empty.

    Raises:
        FileNotFoundError: naming the file and, by ``hint``, where it comes from.
        ValueError: if it is no text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise FileNotFoundError(f"there is no list {path}: {hint}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be text in UTF-8, got {error}") from error
    return ((f"{path}:{number}", line) for number, line in enumerate(text.splitlines(), 1) if line.strip())


def label_of(name: str, classes: Sequence[str], where: str, others: Sequence[str] = ()) -> int:
    """The place of a class among ``classes``, then ``others``; spaces and underscores are the same.

    Raises:
        ValueError: if there is no such class.
    """
    spelt = [each.replace("_", " ") for each in (*classes, *others)]
    if (name := name.strip()).replace("_", " ") not in spelt:
        raise ValueError(f"{where} must name one of the {len(classes)} classes {_few(classes)}, got {name!r}")
    return spelt.index(name.replace("_", " "))


def named_list(path: Path, classes: Sequence[str], hint: str, others: Sequence[str] = ()) -> tuple[list[Listed], bool]:
    """Lines ``name label``, the label a number or the name of a class; and whether they are numbers.

    A name may have spaces before a number, and none before the name of a class. It may end as a video's does.

    Args:
        path: the list.
        classes: their places are the labels.
        hint: where the list comes from.
        others: classes that may be named as well; their labels come after those of ``classes``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a line of another form or another class, or if some labels are numbers and some are not.
    """
    found, numbers = [], set()
    for where, line in lines_of(path, hint):
        words = line.rsplit(maxsplit=1)
        if not words[-1].isdecimal():
            words = line.split(maxsplit=1)
        if len(words) < 2:
            raise ValueError(f"{where} must be `name label`, got {line!r}")
        name, label = (word.strip() for word in words)
        names = (name, name.rpartition(".")[0]) if name.lower().endswith(SUFFIXES) else (name,)
        numbers.add(label.isdecimal())
        if len(numbers) > 1:
            raise ValueError(f"{where} must have a label of the same kind as the lines before it, got {label!r}")
        if numbers == {False}:
            found.append(Listed(names, label_of(label, classes, where, others)))
        elif int(label) < len(classes):
            found.append(Listed(names, int(label)))
        else:
            raise ValueError(f"{where} must have a class from 0 to {len(classes) - 1}, got {label}")
    return found, numbers == {True}


def kinetics_csv(path: Path, classes: Sequence[str], hint: str) -> list[Listed]:
    """A list of Kinetics: ``label,youtube_id,time_start,time_end,split`` under a header; other classes are left out.

    A clip is called ``<class>/<id>_<start>_<end>``, each time six digits, the class with spaces or underscores, in a
    folder that is called as the file or in none.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a column is missing, or a line is of another form.
    """
    columns = ("label", "youtube_id", "time_start", "time_end")
    labels = {name.replace("_", " "): label for label, name in enumerate(classes)}
    lines = list(lines_of(path, hint))
    header, *rows = [next(csv.reader([line]), []) for _, line in lines] or [[]]
    if missing := [column for column in columns if column not in header]:
        raise ValueError(f"{path}:1 must name the columns {', '.join(columns)}; missing {missing}")
    found = []
    for (where, line), row in zip(lines[1:], rows, strict=True):
        try:
            label, clip, start, end = (row[header.index(column)] for column in columns)
            ends = f"{int(float(start)):06d}_{int(float(end)):06d}"
        except (IndexError, ValueError, OverflowError) as error:
            raise ValueError(f"{where} must have {', '.join(columns)} as in the header, got {line!r}") from error
        if (plain := label.replace("_", " ")) in labels:
            tails = [f"{spelt}/{clip}_{ends}" for spelt in (plain.replace(" ", "_"), plain)]
            found.append(Listed((*(f"{path.stem}/{tail}" for tail in tails), *tails), labels[plain]))
    return found


def class_folders(part: str, classes: Sequence[str], folders: Mapping[str, Path]) -> list[Listed]:
    """Clips that lie in ``<part>/<class>/`` of any of the folders, by modality; other classes are left out."""
    labels = {name.replace("_", " "): label for label, name in enumerate(classes)}
    found: dict[str, int] = {}
    for folder in folders.values():
        for directory in _entries(folder / part):
            label = labels.get(directory.replace("_", " "))
            if label is not None:
                clips = _entries(folder / part / directory)
                found.update({f"{part}/{directory}/{clip.removesuffix('.npy')}": label for clip in clips})
    return [Listed((name,), found[name]) for name in sorted(found)]


def vggsound_csv(path: Path, hint: str) -> tuple[list[str], dict[str, list[Listed]]]:
    """The classes, sorted, and the clips of ``train`` and ``test`` by lines ``id,start,label,part`` without header.

    A clip is called ``<id>_<start>``, the start six digits.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a line of another form.
    """
    rows = []
    for where, line in lines_of(path, hint):
        row = next(csv.reader([line]))
        if len(row) != 4 or not row[1].strip().isdecimal() or row[3].strip() not in ("train", "test"):
            raise ValueError(f"{where} must be `id,start,label,train` or `...,test`, got {line!r}")
        rows.append((f"{row[0].strip()}_{int(row[1]):06d}", row[2].strip(), row[3].strip()))
    classes = sorted({label for _, label, _ in rows})
    labels = {name: label for label, name in enumerate(classes)}
    parts: dict[str, list[Listed]] = {"train": [], "test": []}
    for name, label, part in rows:
        parts[part].append(Listed((name,), labels[label]))
    return classes, parts


def ucf101_classes(path: Path, hint: str) -> list[str]:
    """The classes of UCF101 by lines ``number name``, numbered from 1.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a line of another form.
    """
    classes: list[str] = []
    for where, line in lines_of(path, hint):
        fields = line.split()
        if len(fields) != 2 or fields[0] != str(len(classes) + 1):
            raise ValueError(f"{where} must be `{len(classes) + 1} name`, got {line!r}")
        classes.append(fields[1])
    return classes


def ucf101_list(path: Path, classes: Sequence[str], hint: str) -> list[Listed]:
    """Clips of UCF101 by lines ``class/v_class_g08_c01.avi``, in training lists with a number from 1 after it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a line of another form or another class.
    """
    found = []
    for where, line in lines_of(path, hint):
        fields = line.split()
        match = re.fullmatch(r"((\w+)/v_\w+_(g\d+)_c\d+)(\.\w+)?", fields[0])
        if len(fields) > 2 or match is None:
            raise ValueError(f"{where} must be `class/v_class_g01_c01.avi` and perhaps a number, got {line!r}")
        label = label_of(match[2], classes, where)
        if len(fields) == 2 and fields[1] != str(label + 1):
            raise ValueError(f"{where} must have the number {label + 1} of {match[2]!r}, got {fields[1]!r}")
        found.append(Listed((match[1],), label, match[3]))
    return found


def restrict(listed: Sequence[Listed], classes: Sequence[str], chosen: Sequence[str]) -> list[Listed]:
    """The clips of the chosen classes, with their places among these as labels; ``classes`` are those of the labels.

    Raises:
        ValueError: if a chosen class is none of ``classes``, or chosen twice.
    """
    if not chosen or len(set(chosen)) != len(chosen) or any(name not in classes for name in chosen):
        raise ValueError(f"`classes` must be different names among {_few(classes)}, got {list(chosen)}")
    return [clip._replace(label=chosen.index(classes[clip.label])) for clip in listed if classes[clip.label] in chosen]


def hold_out(
    listed: Sequence[Listed], share: float, seed: int, classes: Sequence[str]
) -> tuple[list[Listed], list[Listed]]:
    """Split clips in two, the second with ``share`` of each class, whole groups at a time.

    A class with two groups or more has at least one in either part. What is on the disk makes no difference, nor which
    other classes there are, so that the split is the same for everyone who has the list.

    Args:
        listed: the clips.
        share: of each class's groups, in the second.
        seed: decides which; together with the name of the class and nothing else.
        classes: names of the classes, by label.
    """
    groups: dict[int, dict[str, None]] = {}
    for clip in listed:
        groups.setdefault(clip.label, {})[clip.group or clip.names[0]] = None
    held: set[tuple[int, str]] = set()
    for label, names in sorted(groups.items()):
        count = min(max(1, round(share * len(names))), len(names) - 1)
        own = zlib.crc32(classes[label].replace("_", " ").encode())
        order = np.random.default_rng((seed, own)).permutation(len(names))
        held.update((label, list(names)[i]) for i in order[:count])
    chosen = [(clip.label, clip.group or clip.names[0]) in held for clip in listed]
    kept = [clip for clip, out in zip(listed, chosen, strict=True) if not out]
    return kept, [clip for clip, out in zip(listed, chosen, strict=True) if out]


def look_up(listed: Iterable[Listed], folders: Mapping[str, tuple[Path, str]]) -> tuple[list[Listed], list[Listed]]:
    """The clips that are there, each by its one name, and those that are not.

    Folders are listed once each and no file is touched, so that 200,000 clips take seconds.

    Args:
        listed: the clips.
        folders: by modality, where its files are and what their names end in.
    """
    known: dict[Path, frozenset[str]] = {}

    def is_there(name: str) -> bool:
        above, _, last = name.rpartition("/")
        for folder, suffix in folders.values():
            place = folder / above
            if place not in known:
                known[place] = frozenset(_entries(place))
            if f"{last}{suffix}" not in known[place]:
                return False
        return True

    there, missing = [], []
    for clip in listed:
        name = next((name for name in clip.names if is_there(name)), None)
        if name is None:
            missing.append(clip)
        else:
            there.append(clip._replace(names=(name,)))
    return there, missing


def _entries(folder: Path) -> list[str]:
    """Names in a folder but for hidden ones; none if there is no such folder."""
    try:
        return [name for name in os.listdir(folder) if not name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
