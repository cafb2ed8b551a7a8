# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a command line or a config, in a few lines: what, where, and what was probably meant."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import LightningDataModule, LightningModule, callbacks, loggers
from torch import nn
from typing_extensions import override

from lightning_crmt import attacks, data, encoders, fusion, methods, module
from lightning_crmt import callbacks as own_callbacks
from lightning_crmt.checks import did_you_mean
from lightning_crmt.cli.findings import Finding, read_finding
from lightning_crmt.cli.places import Place, config_files, find_place

#: Classes that an argument may be annotated with, of which nothing is made.
_BASES = (LightningModule, LightningDataModule, callbacks.Callback, loggers.Logger, nn.Module, attacks.Attack)

_FORM = "write {class_path: NAME, init_args: {ARGUMENT: VALUE}}"

_MOST_LINES = 5
_MOST_NAMES = 12
_LONGEST = 400

#: Whose public classes go by their short names.
_ROOMS: tuple[ModuleType, ...] = (attacks, own_callbacks, data, encoders, fusion, methods, module, callbacks, loggers)


def explain(report: str, parser: ArgumentParser, words: Sequence[str]) -> str:
    """What a report of jsonargparse comes down to, in at most five lines.

    Args:
        report: its message, however long.
        parser: of the subcommand.
        words: of the command line, in which config files are named.
    """
    if re.match("Problems parsing config|Unexpected config", report) and (broken := broken_file(words)):
        return broken
    if found := re.match(r"unrecognized arguments: (.*)", report):
        return _unknown_words(found[1].split(), parser)
    if found := re.search(r"File does not exist: '(.+)'", report):
        return f"there is no file {found[1]}"
    if found := re.match(r"the following arguments are required: (.+)", report):
        return _missing(Finding((), report), found[1], parser, words)
    if report.startswith('expected "subcommand"') or "argument subcommand" in report:
        return f"a subcommand must come first: {parser.prog} SUBCOMMAND ..."
    if found := re.match(r"(?:Subcommand|Group) '(.+)' does not accept option '(.+)'", report):
        key = found[2] if report.startswith("Subcommand") else f"{found[1]}.{found[2]}"
        return _unknown_key(Finding((), report), key, parser, words)
    if found := re.match(r"Option '(.+)' is not accepted", report):
        return _unknown_key(Finding((), report), found[1], parser, words)
    finding = read_finding(report)
    if found := re.match(r"Option '(.+)' is not accepted", finding.reason):
        return _unknown_key(finding, found[1], parser, words)
    if found := re.match(r"the following arguments are required: (.+)", finding.reason):
        return _missing(finding, found[1], parser, words)
    if found := re.search(r"(?:Expected a dot import path string|Unexpected import path format): (.*)", finding.reason):
        return _unknown_class(finding, found[1], words)
    if found := re.match(r"Import path (\S+) does not correspond to a subclass of \w+", finding.reason):
        return _unknown_class(finding, found[1], words)
    if finding.owner and re.search("No module named|has no attribute|to (be )?a subclass of|import", finding.reason):
        return _unknown_class(finding, finding.owner, words)
    return _wrong_value(finding, words)


def stop(message: str) -> NoReturn:
    """End the program with status 2 and a message."""
    sys.stderr.write(f"error: {message}\n")
    sys.exit(2)


class ExplainingParser(ArgumentParser):
    """A parser that explains what is wrong in a few lines."""

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Explain, and stop."""
        if not self.exit_on_error:  # one that another parser made for a part
            super().error(message, ex)
        stop(explain(message, self, ()))


def few_lines(*lines: str) -> str:
    """At most five lines, none of them endless."""
    shown = [line for text in lines for line in text.splitlines() if line.strip()]
    if len(shown) > _MOST_LINES:
        shown = [*shown[: _MOST_LINES - 1], "  ..."]
    return "\n".join(line if len(line) <= _LONGEST else f"{line[:_LONGEST]} ..." for line in shown)


def at(place: Place | None) -> str:
    """The line that says where an entry stands."""
    return f"  at {place}" if place else ""


def import_class(path: str) -> object | None:
    """What an import path names; None if it cannot be imported."""
    room, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(room), name, None)
    except Exception:  # whatever the code of a module raises
        return None


def _keys_of(owner: str) -> list[str]:
    """The names of a class' arguments, those that it passes on included."""
    kind = import_class(owner)
    parser = ArgumentParser(exit_on_error=False)
    try:
        if inspect.isclass(kind):
            parser.add_class_arguments(kind, fail_untyped=False)
        elif callable(kind):
            parser.add_function_arguments(kind, fail_untyped=False)
        else:
            return []
    except Exception:  # a signature that cannot be read
        return []
    return _top(parser.get_defaults(skip_validation=True))


def _top(namespace: Namespace) -> list[str]:
    return [name for name in vars(namespace) if name != "config"]


def _known_keys(parser: ArgumentParser) -> list[str]:
    namespace = parser.get_defaults(skip_validation=True)
    return [*namespace.keys(), *(key for key in _top(namespace) if key not in namespace)]


def _unknown_key(finding: Finding, key: str, parser: ArgumentParser, words: Sequence[str]) -> str:
    if not finding.owner:
        place = find_place(words, finding.steps, key)
        return few_lines(f"there is no key `{key}`{did_you_mean(key, _known_keys(parser))}", at(place))
    if import_class(finding.owner) in _BASES:  # assumed by jsonargparse where no class is given
        place = find_place(words, finding.steps[:-1])
        wrong = "the arguments of a class stand under `init_args`"
        if key != "class_path":
            wrong = f"`{key}` is an argument of what class?"
        return few_lines(f"`{finding.key}`: {wrong}", at(place), f"  {_FORM}")
    known = _keys_of(finding.owner)
    name = finding.owner.rpartition(".")[2]
    near = did_you_mean(key, known)
    takes = f"  {name} takes {', '.join(known)}" if not near and 0 < len(known) <= _MOST_NAMES else ""
    return few_lines(f"{name}: '{key}' is not accepted{near}", at(find_place(words, finding.steps, key)), takes)


def _missing(finding: Finding, keys: str, parser: ArgumentParser, words: Sequence[str]) -> str:
    names = keys.split(", ")
    place = find_place(words, finding.steps, names[0], absent=True) if finding.steps else None
    listed = " and ".join(f"`{re.sub('^(?:fit|validate|test|predict)[.]', '', name)}`" for name in names)
    if who := finding.owner.rpartition(".")[2]:
        return few_lines(f"{who} needs {listed}", at(place))
    way = "  in YAML, --config FILE, or as options, such as --model CRMTModule" if words else ""
    return few_lines(f"{listed} must be given", way)


def _unknown_class(finding: Finding, path: str, words: Sequence[str]) -> str:
    name = path.rpartition(".")[2]
    steps = tuple(step for step in finding.steps if step.name != path)
    place = find_place(words, steps, value=path) or find_place(words, steps)
    if path.endswith((".yaml", ".yml", ".json")):
        return few_lines(f"there is no file {path}, looked for from the folder of the config", at(place))
    if "." not in path:
        known = _short_names(finding)
        kind = next((vars(room)[path] for room in _ROOMS if path in vars(room)), None)
        if inspect.isclass(kind):
            return few_lines(f"{path}, a {_kind_of(kind)}, cannot be `{finding.key}`", at(place))
        hint = "  classes of lightning_crmt go by their names, others by import path, such as torch.nn.Linear"
        return few_lines(f"there is no class `{path}`{did_you_mean(path, known)}", at(place), hint)
    room = path.rpartition(".")[0]
    reason, hint = finding.reason, ""
    if found := re.search(r"to (?:be )?a subclass of (?:<class ')?(?:\w+\.)*(\w+)", reason):
        what = f"{path} does not correspond to a subclass of {found[1]}"
        return few_lines(f"{what}, and cannot be `{finding.key}`", at(place))
    if f"No module named {room.partition('.')[0]!r}" in reason:
        file = f"{room.partition('.')[0]}.py"
        hint = f"  looked for {file} in {Path.cwd()}, beside the configs, and among what is installed"
        reason = f"`{path}` cannot be imported: {reason}"
    elif f"module {room!r} has no attribute" in reason:
        classes = [each for each, value in vars(importlib.import_module(room)).items() if inspect.isclass(value)]
        reason = f"module {room!r} has no attribute {name!r}{did_you_mean(name, classes)}"
    else:
        reason = f"`{path}` cannot be imported: {reason}"
    return few_lines(reason, at(place), hint)


def _kind_of(kind: type) -> str:
    """What kind of thing a class is, by the known class that it is based on."""
    return next((base.__name__ for base in _BASES if issubclass(kind, base)), "class of another kind")


def _short_names(finding: Finding) -> list[str]:
    """Names of classes, those of the kind that is wanted first."""
    names = {name: value for room in _ROOMS for name, value in vars(room).items() if inspect.isclass(value)}
    kinds = {
        "model": (LightningModule,),
        "data": (LightningDataModule,),
        "trainer.callbacks": (callbacks.Callback,),
        "attacks": (attacks.Attack,),
        "attack": (attacks.Attack,),
        "encoders": (nn.Module,),
        "head": (fusion.FusionHead,),
    }
    wanted = kinds.get(finding.key, (object,))
    return [name for name, value in names.items() if issubclass(value, wanted)]


def _wrong_value(finding: Finding, words: Sequence[str]) -> str:
    key, value = finding.key, finding.value
    place = find_place(words, finding.steps, value=value) or find_place(words, finding.steps)
    shown = "" if value is None else f", got {_short(value)}"
    if finding.expected:
        choices = re.findall(r"'([^']+)'", finding.expected)
        if value and re.fullmatch(r"[A-Z]\w+", value):  # it may be meant for a class
            choices += _short_names(finding)
        near = did_you_mean(value, choices) if value and choices else ""
        tuple_hint = "  YAML has no tuples: write a list, [3, 3]" if value and re.fullmatch(r"\(.*\)", value) else ""
        return few_lines(f"`{key}` must be {finding.expected}{shown}{near}", at(place), tuple_hint)
    if found := re.match(r"Not a valid subclass of (\w+)", finding.reason):
        return few_lines(f"`{key}` must be of class {found[1]}{shown}", at(place), f"  {_FORM}")
    if "is not iterable" in finding.reason or "no signature found" in finding.reason:
        return few_lines(f"`{key}`: `class_path` must name a class", at(place))
    reason = finding.reason if not key or f"`{key}`" in finding.reason else f"`{key}`: {finding.reason}"
    return few_lines(reason + shown, at(place))


def _short(value: str) -> str:
    value = " ".join(value.split())
    return repr(value) if len(value) <= 60 else f"{value[:60]} ..."


def _unknown_words(unknown: list[str], parser: ArgumentParser) -> str:
    options = [word.partition("=")[0] for word in unknown if word.startswith("-")]
    if not options:
        word = unknown[0].partition("=")[0]
        return few_lines(f"`{word}` belongs to no option: options begin with --, and hold one value each")
    known = ["--help", "--config", "--print_config", *(f"--{key}" for key in _known_keys(parser))]
    return few_lines(*(f"there is no option `{option}`{did_you_mean(option, known)}" for option in options))


def broken_file(words: Sequence[str]) -> str:
    """What is wrong with the first config that is not YAML; nothing if all are."""
    for file in config_files(words):
        try:
            with file.open(encoding="utf-8") as text:
                content = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
            return few_lines(f"{file}{where}: not YAML: {error.problem or error.context}")
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            return few_lines(f"{file} cannot be read: {error}")
        if content is None:
            return f"{file} is empty"
        if not isinstance(content, yaml.MappingNode):
            return f"{file} must hold keys and values, such as `model: ...`"
    return ""
