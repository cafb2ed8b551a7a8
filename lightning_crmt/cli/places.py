# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Where an entry stands: its full key, and the file and line, or the word of the command line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import yaml

from lightning_crmt.cli.findings import Step

_CONFIG_OPTIONS = ("--config", "-c")


@dataclass(frozen=True)
class Place:
    """Where an entry stands.

    Attributes:
        key: its full key, with dots.
        file: the file that it stands in; None for the command line.
        line: its line there, from 1.
    """

    key: str
    file: Path | None = None
    line: int = 0

    def __str__(self) -> str:
        return f"{self.key} ({self.file}, line {self.line})" if self.file else self.key


@dataclass(frozen=True)
class _Spot:
    """A node of a file, and the key that leads to it."""

    node: yaml.Node
    file: Path
    key: str
    line: int


def config_files(words: Sequence[str]) -> list[Path]:
    """The config files that the words of a command line name, in their order.

    >>> config_files(["fit", "--config", "base.yaml", "-c=mine.yaml"])
    [PosixPath('base.yaml'), PosixPath('mine.yaml')]
    """
    files = []
    for word, following in pairwise([*words, ""]):
        option, equals, value = word.partition("=")
        if option in _CONFIG_OPTIONS and (value or not equals):
            files.append(Path(value or following))
    return files


def find_place(
    words: Sequence[str], steps: Sequence[Step], last: str = "", value: str | None = None, absent: bool = False
) -> Place | None:
    """Where the entry stands that the steps lead to; None if it stands nowhere, as a default or a lacking one does.

    Args:
        words: of the command line.
        steps: the way from the whole config to the entry, as far as it is known.
        last: a further key, of the entry itself.
        value: what the entry must hold, where several could be meant.
        absent: the place where ``last`` is lacking instead.
    """
    key = last or (steps[-1].name if steps else "")
    if not key:
        return None
    if not absent:
        for word, following in pairwise([*words, ""]):
            option, equals, given = word.partition("=")
            meant = option.startswith("--") and option[2:].rpartition(".")[2] == key.rpartition(".")[2]
            if option == "--config" and steps:  # names the files; an argument of a class may be called so too
                continue
            if meant and value in (None, given if equals else following):
                return Place(option)
    for file in reversed(config_files(words)):
        root = _compose(file)
        if root is None:
            continue
        spots: Iterator[_Spot] = iter([_Spot(root, file, "", 1)])
        for step in steps:
            spots = _follow(spots, step)
        if last and not absent:
            spots = _follow(spots, Step(last))
        for spot in spots:
            entry = spot if value is None else next((each for each in _below(spot) if _holds(each, value)), None)
            if entry and entry.key and not (absent and _given(entry, last)):
                return Place(entry.key, entry.file, entry.line)
    return None


def _given(spot: _Spot, key: str) -> bool:
    """Whether there is an entry with a value, which null is not."""
    entry = _entry(spot, key)
    return entry is not None and not entry.node.tag.endswith(":null")


def _holds(spot: _Spot, value: str) -> bool:
    return isinstance(spot.node, yaml.ScalarNode) and spot.node.value == value


def _compose(file: Path) -> yaml.Node | None:
    try:
        with file.open(encoding="utf-8") as text:
            return yaml.compose(text, Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None


def _follow(spots: Iterator[_Spot], step: Step) -> Iterator[_Spot]:
    for spot in spots:
        if step.is_class:
            yield from _of_class(spot, step.name)
        elif found := _entry(spot, step.name):
            yield found


def _of_class(spot: _Spot, name: str) -> Iterator[_Spot]:
    """The entries at a spot and below it that are of a class, all of them for an empty name.

    The spot itself, if none says its class: jsonargparse may have assumed it.
    """
    short, found = name.rpartition(".")[2], False
    if not short:
        yield from _below(spot)
        return
    for each in _below(spot):
        written = _entry(each, "class_path", own=True)
        node = written.node if written else each.node
        if isinstance(node, yaml.ScalarNode) and node.value.rpartition(".")[2] == short:
            found = True
            yield each
    if not found:
        yield spot


def _below(spot: _Spot) -> Iterator[_Spot]:
    node = spot.node
    yield spot
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            full = f"{spot.key}.{key.value}".removeprefix(".")
            yield from _below(_Spot(value, spot.file, full, key.start_mark.line + 1))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _below(_Spot(value, spot.file, f"{spot.key}[{index}]", value.start_mark.line + 1))
    elif (opened := _opened(spot)) is not spot:
        yield from _below(opened)


def _opened(spot: _Spot) -> _Spot:
    """The content of the file that a spot names, or the spot."""
    if isinstance(spot.node, yaml.ScalarNode) and spot.node.value.endswith((".yaml", ".yml")):
        file = spot.file.parent / spot.node.value
        root = _compose(file)
        if root is not None:
            return _Spot(root, file, spot.key, 1)
    return spot


def _entry(spot: _Spot, key: str, own: bool = False) -> _Spot | None:
    """An entry below a spot, by its key, which may have dots; among the arguments of a class, unless ``own``."""
    spot = _opened(spot)
    if not isinstance(spot.node, yaml.MappingNode):
        return None
    entries = {each.value: (each, value) for each, value in spot.node.value}
    if not own and "init_args" in entries and key not in ("class_path", "init_args", "dict_kwargs"):
        name, value = entries["init_args"]
        inner = _Spot(value, spot.file, f"{spot.key}.init_args".removeprefix("."), name.start_mark.line + 1)
        if found := _entry(inner, key, own=True):
            return found
    first, _, rest = key.partition(".")
    for wanted, remaining in ((key, ""), (first, rest)):
        if wanted in entries:
            name, value = entries[wanted]
            full = f"{spot.key}.{wanted}".removeprefix(".")
            found = _Spot(value, spot.file, full, name.start_mark.line + 1)
            return _entry(found, remaining) if remaining else found
    return None
