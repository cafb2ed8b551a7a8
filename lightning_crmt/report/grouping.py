# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Which numbers stand in one table, in which order, and which few come first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import zip_longest

from lightning_crmt.evaluation import Key
from lightning_crmt.report.wording import FILLS, QUANTITIES, sureness


@dataclass(frozen=True)
class Group:
    """Keys that are shown in one table.

    Attributes:
        name: a word for files and anchors.
        title: what the table is called.
        keys: in the order of the columns.
    """

    name: str
    title: str
    keys: tuple[Key, ...]


_GROUPS = {
    "clean": "Accuracy on unchanged inputs",
    "certified": "Guaranteed accuracy",
    "probably-certified": "Accuracy guaranteed with a stated probability",
    "attacked": "Accuracy under attacks",
    "missing": "Accuracy with modalities missing",
    "estimated": "Estimated robustness, no guarantee",
    "inside": "Inside the models, each in its own scale",
    "classes": "Class by class",
    "others": "Other numbers that were logged",
}

#: What of all modalities together is shown first.
_OF_ALL = ("accuracy", "smoothed_accuracy", "accuracy_worst_class", "label_accuracy", "radius")

#: So many modalities are few enough to be shown each.
_FEW = 2


def grouped(keys: Iterable[Key]) -> list[Group]:
    """The keys in groups, those that matter most first.

    >>> [group.name for group in grouped([Key("test", "loss"), Key("test", "accuracy", "joint")])]
    ['clean', 'inside']
    """
    by_group: dict[str, list[Key]] = {name: [] for name in _GROUPS}
    for key in dict.fromkeys(keys):
        by_group[_group_of(key)].append(key)
    return [
        Group(name, title, tuple(sorted(by_group[name], key=_place)))
        for name, title in _GROUPS.items()
        if by_group[name]
    ]


def headline(keys: Iterable[Key], most: int = 8) -> list[Key]:
    """The few keys to show first: of each group those about all modalities, each at the middle of its radii.

    Where there are no more than two modalities, also what each answers alone.

    >>> at = lambda radius: Key("test", "accuracy", "joint", radius, sure="certified")
    >>> [str(key) for key in headline([at(0.1), at(0.2), at(0.3), Key("test", "accuracy", "joint")])]
    ['test/accuracy/joint', 'test/certified_accuracy/joint@0.2']
    """
    by_group = []
    for group in grouped(keys):
        alone = [key for key in group.keys if group.name == "clean" and _of_one_modality(key)]
        alike: dict[Key, list[Key]] = {}
        for key in group.keys:
            if _matters(key, group.name) or (key in alone and len(alone) <= _FEW):
                alike.setdefault(replace(key, radius=None, budget=(), sure=sureness(key)), []).append(key)
        by_group.append([_middle(each) for each in alike.values()])
    in_turn = [key for turn in zip_longest(*by_group) for key in turn if key is not None][:most]
    return [key for each in by_group for key in each if key in in_turn]


def _middle(keys: list[Key]) -> Key:
    """That at the middle of the radii; at 0 nothing is shown of robustness, so only if there is nothing else."""
    keys = [key for key in keys if key.size != 0] or keys
    return keys[(len(keys) - 1) // 2]


def _matters(key: Key, group: str) -> bool:
    if group in ("clean", "certified", "probably-certified", "estimated"):
        whole = key.of == "joint" and not key.budget
        return whole and key.what in _OF_ALL
    if group == "attacked":
        return key.sure == "robust"
    return group == "missing" and not key.sure and key.of != "none"


def _of_one_modality(key: Key) -> bool:
    return key.what == "accuracy" and key.of != "joint" and not key.sure


def _group_of(key: Key) -> str:
    what = key.what
    if "_of_class" in what:
        return "classes"
    if sureness(key) in ("certified", "estimated"):
        return key.sure
    if key.sure == "probably_certified" or what.startswith("smoothed_"):
        return "probably-certified"
    if key.sure == "robust" or what.startswith(("adversarial_distance", "clean_")):
        return "attacked"
    if what.startswith(("accuracy", "label_accuracy")):
        return "missing" if any(what.endswith(each) for each in (*FILLS, "present")) else "clean"
    return "inside" if what in QUANTITIES else "others"


def _place(key: Key) -> tuple[object, ...]:
    return (
        ("test", "", "val", "train").index(key.split),
        key.loader or 0,
        "_worst_class" in key.what,
        key.what,
        bool(key.budget),
        key.of not in ("", "joint", "none"),
        key.of,
        key.radius if key.radius is not None else -1.0,
        key.budget,
    )
