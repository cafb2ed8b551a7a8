# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""In which settings two configs differ, as few lines as it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_crmt.report.data_names import settings_of
from lightning_crmt.report.runs import Run

#: The most characters of one setting; all of them stand among the settings of the page.
_LONGEST = 90


def what_differs(runs: Sequence[Run], baseline: str = "") -> tuple[str, dict[str, list[str]]]:
    """What the settings of each method have that those of the baseline, or else of the first method, have not.

    Runs with the same data and seed are compared, the first that both have.

    Returns:
        The method that others are compared with, and for each other a line for each setting:
        ``"model.rho: 0.0 → 0.3"``. Without settings that can be compared, no method and nothing.

    >>> runs = [Run(name, "x", 0, config=f"model: {{rho: {rho}, size: 3}}") for name, rho in (("a", 0.0), ("b", 0.3))]
    >>> what_differs(runs)
    ('a', {'b': ['model.rho: 0.0 → 0.3']})
    """
    configs = {(run.method, run.data, run.seed): config for run in runs if (config := settings_of(run.config))}
    methods = list(dict.fromkeys(method for method, _, _ in configs))
    if len(methods) < 2 or (baseline and baseline not in methods):
        return "", {}
    first = baseline or methods[0]
    found = {}
    for method in methods:
        if method == first:
            continue
        pairs = [(configs[first, data, seed], configs[name, data, seed]) for name, data, seed in configs
                 if name == method and (first, data, seed) in configs]  # fmt: skip
        if pairs:
            found[method] = [_line(*each) for each in differences(*pairs[0])]
    return (first, found) if found else ("", {})


def _line(key: str, before: str, after: str) -> str:
    if "-" in (before, after):
        return f"{key}: with {after}" if before == "-" else f"{key}: without {before}"
    return f"{key}: {before} → {after}"


def differences(ours: Any, theirs: Any, key: str = "") -> list[tuple[str, str, str]]:
    """Settings that differ: the key, without ``init_args``, and both values as text; ``-`` where there is none.

    Of another class, all its settings are one value; of a list of classes, such as callbacks, each is found by its
    class.

    >>> callback = {"class_path": "a.Radius", "init_args": {"radius": 0.2}}
    >>> differences({"callbacks": []}, {"callbacks": [callback]})
    [('callbacks', '-', 'Radius(radius=0.2)')]
    """
    if ours == theirs:
        return []
    if _is_class(ours) and _is_class(theirs) and ours["class_path"] == theirs["class_path"]:
        return differences(ours.get("init_args") or {}, theirs.get("init_args") or {}, key)
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping) and not _is_class(ours) and not _is_class(theirs):
        return [
            each
            for name in dict.fromkeys([*ours, *theirs])
            for each in differences(ours.get(name, _NONE), theirs.get(name, _NONE), f"{key}.{name}".lstrip("."))
        ]
    if _are_classes(ours) and _are_classes(theirs):
        by_name = [_by_name(each) for each in (ours, theirs)]
        return [
            each
            for name in dict.fromkeys([*by_name[0], *by_name[1]])
            for each in differences(
                by_name[0].get(name, _NONE),
                by_name[1].get(name, _NONE),
                f"{key}.{name}" if all(name in names for names in by_name) else key,
            )
        ]
    return [(key, _text(ours), _text(theirs))]


#: Stands where a config has no such key.
_NONE = object()


def _is_class(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("class_path"), str)


def _are_classes(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_class, value))


def _by_name(classes: Sequence[Any]) -> dict[str, Any]:
    """By the name of the class; of several the second is ``NAME 2``."""
    found: dict[str, Any] = {}
    for each in classes:
        name = each["class_path"].rpartition(".")[2]
        number = sum(other.partition(" ")[0] == name for other in found) + 1
        found[name if number == 1 else f"{name} {number}"] = each
    return found


def _text(value: Any) -> str:
    text = _whole(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _whole(value: Any) -> str:
    if value is _NONE:
        return "-"
    if _is_class(value):
        arguments = (f"{name}={_whole(each)}" for name, each in (value.get("init_args") or {}).items())
        return f"{value['class_path'].rpartition('.')[2]}({', '.join(arguments)})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_whole(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_whole, value))}]"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
