# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What jsonargparse found wrong: its nested report, read down to the one entry that matters."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from textwrap import dedent

_UNION = "Does not validate against any of the Union subtypes"
_KEY = re.compile(r'Parser key "(?P<key>.+?)"(?: element \d+)?:\s*(?P<rest>.*)', re.DOTALL)
_CLASS = re.compile(r"Problem with given class_path '(?P<name>.+?)':\n(?P<rest>.*)", re.DOTALL)
_CALLABLE = re.compile(r"Type \S.*? expects a function or a callable class: (?P<rest>.*)", re.DOTALL)
_VALUE = re.compile(r"\.? ?Got value: (?P<value>.*?)(?:\n|$)")


@dataclass(frozen=True)
class Step:
    """One step from the whole config towards the entry that is wrong.

    Attributes:
        name: of a key, which may have dots in it, or of a class.
        is_class: whether it is a class, whose arguments the later steps are about.
    """

    name: str
    is_class: bool = False


@dataclass(frozen=True)
class Finding:
    """What is wrong with one entry of a config.

    Attributes:
        steps: the way to the entry.
        reason: what jsonargparse says of it.
        expected: types that it may have, if that is what it says.
        value: what was given, if it says so.
    """

    steps: tuple[Step, ...]
    reason: str
    expected: str = ""
    value: str | None = None

    @property
    def key(self) -> str:
        """The last key on the way."""
        return next((step.name for step in reversed(self.steps) if not step.is_class), "")

    @property
    def owner(self) -> str:
        """The last class on the way, whose arguments are wrong."""
        return next((step.name for step in reversed(self.steps) if step.is_class), "")


def read_finding(report: str) -> Finding:
    """The finding that goes furthest into the config, of all those in a report of jsonargparse.

    A value that fits none of several types is reported once for each of them; the type that it was meant to be is the
    one that got furthest.

    >>> report = '''Parser key "model":
    ...   Problem with given class_path 'lightning_crmt.encoders.MLP':
    ...     Option 'widht' is not accepted'''
    >>> finding = read_finding(report)
    >>> finding.owner, finding.reason
    ('lightning_crmt.encoders.MLP', "Option 'widht' is not accepted")
    """
    report = dedent(report).strip("\n")
    if found := _KEY.match(report):
        return _after(Step(found["key"]), _rest(found["rest"], report))
    if found := _CLASS.match(report):
        return _after(Step(found["name"], is_class=True), found["rest"])
    if found := _CALLABLE.match(report):
        rest, _, given = found["rest"].rpartition(". Got value: ")
        named = re.search(r"class_path='([^']+)'", given)
        return _after(Step(named[1] if named else given, is_class=True), rest)
    if report.startswith("- Expected a path but "):  # a string where a file of settings might be named
        return read_finding(report.partition("\n- ")[2])
    if report.startswith(_UNION):
        return _deepest(report)
    value = _VALUE.search(report)
    reason = report[: value.start()] if value else report
    expected = re.match(r"Expected an? (?!dot import|import path|path|instantiatable)(.+)", reason)
    return Finding((), reason, readable(expected[1]) if expected else "", value["value"] if value else None)


def _after(step: Step, rest: str) -> Finding:
    finding = read_finding(rest)
    return replace(finding, steps=(step, *finding.steps))


def _rest(rest: str, report: str) -> str:
    """What follows a key: on its line, or on the next lines, whose indentation must all be kept."""
    first, newline, following = report.partition("\n")
    return following if newline and first.endswith(":") else rest


def _deepest(report: str) -> Finding:
    head, _, errors = report.partition("\nErrors:\n")
    errors, _, given = errors.rpartition("\nGiven value type: ")
    value = given.partition("\nGiven value: ")[2]
    items = [item.replace("\n  ", "\n") for item in ("\n" + dedent(errors)).split("\n- ")[1:]]
    findings = [read_finding(item) for item in items]
    furthest = max(findings, key=lambda finding: len(finding.steps))
    if furthest.steps:
        return furthest
    told = [each for each in findings if not each.expected and not each.reason.startswith("Not a valid subclass")]
    types = "class_path" not in value and any(each.expected not in ("", "null") for each in findings)
    # That a value is no import path says little of what may be a number as well.
    if told and not (types and told[0].reason.startswith("Expected a dot import path")):
        return replace(told[0], value=told[0].value or value)
    return Finding((), "", readable(head.partition("Subtypes: ")[2]), value)


_IN_WORDS = {
    "int": "an integer", "float": "a number", "str": "a string", "NoneType": "null",
    "list": "a list", "List": "a list", "Sequence": "a list", "Iterable": "a list", "tuple": "a list",
    "dict": "a mapping, {NAME: VALUE}", "Dict": "a mapping, {NAME: VALUE}", "Mapping": "a mapping, {NAME: VALUE}",
}  # fmt: skip


def readable(types: str) -> str:
    """Types as a person writes them.

    >>> readable("[<class 'int'>, tuple[int, int], <class 'NoneType'>]")
    'an integer, a list of 2 or null'
    >>> readable("typing.Literal['mean', 'clipped']")
    "'mean' or 'clipped'"
    """
    types = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", types)
    types = re.sub(r"\b(?:[a-z_]\w*\.)+(?=\w)", "", types)
    listed = types[1:-1] if types.startswith("[") else types
    parts = list(dict.fromkeys(each for part in _split(listed) for each in _literals(part)))
    return " or ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _literals(part: str) -> list[str]:
    if found := re.fullmatch(r"Literal\[(.*)\]", part):
        return _split(found[1])
    if (found := re.fullmatch(r"[Tt]uple\[(.*)\]", part)) and "..." not in part:
        return [f"a list of {len(_split(found[1]))}"]
    if found := re.fullmatch(r"tuple with (\d+) elements", part):
        return [f"a list of {found[1]}"]
    if part == "bool":
        return ["true", "false"]
    return [_IN_WORDS.get(part.partition("[")[0], part)]


def _split(types: str) -> list[str]:
    """Split at the commas that are in no brackets."""
    parts, depth, start = [], 0, 0
    for place, sign in enumerate(types):
        depth += (sign in "[(") - (sign in "])")
        if sign == "," and depth == 0:
            parts.append(types[start:place].strip())
            start = place + 1
    return [*parts, types[start:].strip()]
