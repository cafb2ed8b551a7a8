# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What is compared: a YAML file of methods, data and seeds, read and checked."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from lightning_crmt.checks import did_you_mean
from lightning_crmt.evaluation import Key

_KEYS = ("out", "seeds", "baseline", "config", "data", "methods", "also", "select", "seed_keys", "ckpt_path")
_OF_METHODS = ("config", "before", "grid", "select")
_MODES = ("max", "min")

#: Comments that say nothing of a method: the last is that of a config that Lightning saved.
_NOT_ABOUT = ("SPDX-", "Copyright", "lightning.pytorch==")

#: Between two sentences, not after "e.g.".
_END = re.compile(r"(?<=\w\w\.)\s+(?=[A-Z`])")

#: Stands for the folder of a cell in the settings that a comparison gives.
CELL = "{cell}"


class ComparisonError(ValueError):
    """Something in a comparison is wrong; ``steps`` are the keys that lead to it."""

    def __init__(self, message: str, *steps: str) -> None:
        super().__init__(message)
        self.steps = steps


@dataclass(frozen=True)
class Select:
    """By which number of the validation part settings are chosen; it is averaged over seeds."""

    key: str
    mode: str = "max"


@dataclass(frozen=True)
class Point:
    """One of the settings that a method chooses among.

    Attributes:
        choice: what is set, as text by name; empty where there is nothing to choose.
        words: the same as words of the command line.
    """

    choice: Mapping[str, str] = field(default_factory=dict)
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Method:
    """A way of training.

    Attributes:
        words: of the command line, on top of those that all methods share.
        before: words of a fit that goes before, in place of ``words``; what it saves is there for the method.
        points: the settings to choose among, one that sets nothing where there is no choice.
        select: how they are chosen; None where there is no choice.
        about: what it is, as its file says; empty where that is not known.
    """

    words: tuple[str, ...]
    before: tuple[str, ...] = ()
    points: tuple[Point, ...] = (Point(),)
    select: Select | None = None
    about: str = ""


@dataclass(frozen=True)
class Comparison:
    """Methods x data x seeds; see :func:`read_comparison`.

    Attributes:
        methods: by name.
        data: words of the command line, by name.
        seeds: of the runs.
        out: the folder of the results.
        baseline: the method that others are compared with, or nothing.
        words: that all runs begin with.
        also: words for some methods on some data, after their own, by pattern of ``METHOD/DATA``.
        seed_keys: the keys that a seed is set for.
        ckpt_path: the weights that are tested, such as ``"best"``; None for those that the fit ends with.
        file: where it was read from, if from a file.
    """

    methods: Mapping[str, Method]
    data: Mapping[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    out: Path
    baseline: str = ""
    words: tuple[str, ...] = ()
    also: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    seed_keys: tuple[str, ...] = ("seed_everything",)
    ckpt_path: str | None = None
    file: Path | None = None

    def words_of(self, method: str, data: str, of_method: Sequence[str]) -> tuple[str, ...]:
        """Words of the command line for a method on some data, in their order: the later ones win."""
        also = (each for pattern, words in self.also.items() if matches(pattern, method, data) for each in words)
        return (*self.words, *self.data[data], *of_method, *also)

    def of_seed(self, seed: int) -> tuple[str, ...]:
        """The words that set a seed."""
        return tuple(f"--{key}={seed}" for key in self.seed_keys)


def matches(pattern: str, *names: object) -> bool:
    """Whether a pattern, whose parts are separated by ``/`` and may have ``*`` and ``?``, fits the names.

    >>> matches("crmt_*/mfeat", "crmt_at", "mfeat", 0), matches("crmt_at/*/1", "crmt_at", "mfeat", 0)
    (True, False)
    """
    parts = pattern.split("/")
    return len(parts) <= len(names) and all(map(fnmatchcase, map(str, names), parts))


def read_comparison(source: str | Path | Mapping[str, Any]) -> Comparison:
    """Read a comparison from a YAML file, or from the same as a mapping.

    Files are looked for from its folder, or from the working folder; what is given in their place is what they would
    hold. ``docs/compare.md`` explains the keys.

    Args:
        source: the file, or what it would hold.

    Raises:
        ComparisonError: a ``ValueError`` that names the key, what was expected and what came.

    >>> comparison = read_comparison({"seeds": 2, "select": {"key": "val/accuracy/joint"}, "methods": {
    ...     "plain": {"model": {"init_args": {"rho": 0.0}}},
    ...     "crmt": {"config": [], "grid": {"model.init_args.rho": [0.1, 0.3]}}}})
    >>> comparison.seeds, [dict(point.choice) for point in comparison.methods["crmt"].points]
    ((0, 1), [{'model.init_args.rho': '0.1'}, {'model.init_args.rho': '0.3'}])
    """
    file = None if isinstance(source, Mapping) else Path(source)
    given = _load(file) if file else source
    if not isinstance(given, Mapping):
        raise ComparisonError(f"{file or '`comparison`'} must hold keys and values, such as `methods: ...`")
    folder = file.parent if file else Path()
    if "methods" not in given and {"model", "trainer"} & set(given):
        raise ComparisonError(
            f"{file or '`comparison`'} is a config of fit: a comparison names such files, `methods: ...`"
        )
    _check_keys(given, _KEYS)
    methods = {
        str(name): _method(each, folder, given.get("select"), str(name))
        for name, each in _mapping(given, "methods").items()
    }
    if not methods:
        raise ComparisonError("`methods` must name at least one method, got none", "methods")
    data = given.get("data", {"data": []})
    if not isinstance(data, Mapping) or not data:
        raise ComparisonError(
            f"`data` must be a mapping, NAME: files or settings, got {data!r}: data that all runs share stand in a "
            "file of `config`, or in the files of the methods",
            "data",
        )
    baseline = given.get("baseline") or ""
    if baseline and baseline not in methods:
        raise ComparisonError(
            f"`baseline` must be one of the methods, got {baseline!r}{did_you_mean(str(baseline), list(methods))}",
            "baseline",
        )
    out = given.get("out") or Path("results") / (file.stem if file else "comparison")
    for key, names in (("methods", methods), ("data", data)):
        for name in names:
            if not str(name) or set(str(name)) & set("/*?[]"):
                raise ComparisonError(f"`{key}` must have names without any of '/*?[]', got {name!r}", key, str(name))
    read = {str(name): _configs(each, folder, "data", str(name)) for name, each in data.items()}
    also = {str(name): _configs(each, folder, "also", str(name)) for name, each in _mapping(given, "also").items()}
    for pattern in also:
        if not any(matches(pattern, method, each) for method in methods for each in read):
            raise ComparisonError(
                f"`also` must have patterns of METHOD or METHOD/DATA, got {pattern!r}, which fits none", "also", pattern
            )
    return Comparison(
        methods=methods,
        data=read,
        seeds=_seeds(given.get("seeds", 1)),
        out=Path(out),
        baseline=baseline,
        words=_configs(given.get("config", []), folder, "config"),
        also=also,
        seed_keys=_seed_keys(given.get("seed_keys", ["seed_everything"])),
        ckpt_path=given.get("ckpt_path"),
        file=file,
    )


def _load(file: Path) -> Any:
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ComparisonError(f"there is no file {file}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ComparisonError(f"{file}{where}: not YAML: {error.problem or error.context}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ComparisonError(f"{file} cannot be read: {error}") from error


def _check_keys(given: Mapping[str, Any], known: Sequence[str], *steps: str) -> None:
    for key in given:
        if key not in known:
            near = did_you_mean(str(key), known)
            raise ComparisonError(
                f"there is no key `{key}`{near or ': there are ' + ', '.join(known)}", *steps, str(key)
            )


def _mapping(given: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = given.get(key, {})
    if not isinstance(value, Mapping):
        raise ComparisonError(f"`{key}` must be a mapping, NAME: files or settings, got {value!r}", key)
    return value


def _seeds(given: Any) -> tuple[int, ...]:
    if isinstance(given, int) and not isinstance(given, bool) and given > 0:
        return tuple(range(given))
    numbers = given if isinstance(given, Sequence) and not isinstance(given, str) else []
    if not numbers or any(isinstance(each, bool) or not isinstance(each, int) or each < 0 for each in numbers):
        raise ComparisonError(f"`seeds` must be how many, or a list of integers from 0, got {given!r}", "seeds")
    if len(set(numbers)) < len(numbers):
        raise ComparisonError(f"`seeds` must differ, got {given!r}", "seeds")
    return tuple(numbers)


def _seed_keys(given: Any) -> tuple[str, ...]:
    if not isinstance(given, Sequence) or isinstance(given, str) or not all(isinstance(each, str) for each in given):
        raise ComparisonError(
            f"`seed_keys` must be a list of keys, such as [seed_everything, data.init_args.seed], got {given!r}",
            "seed_keys",
        )
    return tuple(dict.fromkeys(["seed_everything", *given]))


def _configs(given: Any, folder: Path, *steps: str) -> tuple[str, ...]:
    """Files and settings, one or a list of them, as words of the command line."""
    words = []
    for each in given if isinstance(given, Sequence) and not isinstance(given, str) else [given]:
        if isinstance(each, Mapping):
            words.append(f"--config={json.dumps(each)}")
        elif isinstance(each, str):
            file = folder / each
            if not file.is_file():
                raise ComparisonError(f"there is no file {file}", *steps)
            words.append(f"--config={file.resolve()}")
        elif each is not None:
            where = ".".join(steps)
            raise ComparisonError(f"`{where}` must be a file, settings, or a list of these, got {each!r}", *steps)
    return tuple(words)


def _method(given: Any, folder: Path, select: Any, name: str) -> Method:
    steps = ("methods", name)
    if not (isinstance(given, Mapping) and set(given) & set(_OF_METHODS)):
        words = _configs(given, folder, *steps)
        return Method(words, about=_about(name, words))
    _check_keys(given, _OF_METHODS, *steps)
    words = _configs(given.get("config", []), folder, *steps, "config")
    grid = given.get("grid")
    return Method(
        words,
        _configs(given.get("before"), folder, *steps, "before"),
        (Point(),) if grid is None else _points(grid, folder, *steps, "grid"),
        None if grid is None else _select(given.get("select", select), *steps),
        _about(name, words),
    )


def _about(name: str, words: Sequence[str]) -> str:
    """What a method is, from the file that is all of it or has its name; nothing is guessed from others."""
    files = [Path(word.removeprefix("--config=")) for word in words if not word.startswith("--config={")]
    own = [file for file in files if len(words) == 1 or file.stem == name]
    return first_sentence(own[0].read_text(encoding="utf-8", errors="replace")) if own else ""


def first_sentence(text: str) -> str:
    """That of the comment that a file begins with; licences and versions are passed over.

    >>> first_sentence("# SPDX-License-Identifier: MIT\\n# JT: training, e.g. of two\\n# views. No more.\\nmodel:\\n")
    'JT: training, e.g. of two views.'
    """
    lines: list[str] = []
    for line in text.splitlines():
        said = line.lstrip("#").strip()
        if (said and not line.startswith("#")) or (lines and not said):
            break
        if said and not said.startswith(_NOT_ABOUT):
            lines.append(said)
    return _END.split(" ".join(lines), maxsplit=1)[0]


def _points(grid: Any, folder: Path, *steps: str) -> tuple[Point, ...]:
    if not isinstance(grid, Mapping) or not grid:
        raise ComparisonError(f"`grid` must be a mapping, KEY: list of values, got {grid!r}", *steps)
    axes = []
    for key, values in grid.items():
        if isinstance(values, Mapping) and values:
            axis = [(key, str(name), _configs(each, folder, *steps, key)) for name, each in values.items()]
        elif isinstance(values, Sequence) and not isinstance(values, str) and values:
            texts = [each if isinstance(each, str) else json.dumps(each) for each in values]
            axis = [(key, text, (f"--{key}={text}",)) for text in texts]
        else:
            raise ComparisonError(
                f"`grid.{key}` must be a list of values, or a mapping, NAME: settings, got {values!r}", *steps, str(key)
            )
        axes.append(axis)
    return tuple(
        Point({key: text for key, text, _ in corner}, tuple(word for *_, words in corner for word in words))
        for corner in product(*axes)
    )


def _select(given: Any, *steps: str) -> Select:
    form = "select: {key: val/accuracy/joint, mode: max}"
    if given is None:
        raise ComparisonError(f"`grid` needs `select`, which says what to choose by: {form}", *steps)
    if not isinstance(given, Mapping) or "key" not in given or set(given) - {"key", "mode"}:
        raise ComparisonError(f"`select` must be like {form}, got {given!r}", *steps, "select")
    select = Select(str(given["key"]), str(given.get("mode", "max")))
    if select.mode not in _MODES:
        raise ComparisonError(f"`select.mode` must be max or min, got {select.mode!r}", *steps, "select")
    if _is_of_test(select.key):
        raise ComparisonError(
            f"`select.key` must be a number of the validation part, got {select.key!r}: the test part is for the end",
            *steps,
            "select",
        )
    return select


def _is_of_test(key: str) -> bool:
    try:
        return Key.parse(key).split == "test"
    except ValueError:
        return key.startswith("test")
