# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Which exceptions say that a value is wrong, and need no traceback; all others are bugs, and keep theirs."""

from __future__ import annotations

import inspect
import linecache
import os
import re
import sysconfig
import traceback
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from types import CodeType, FrameType

import jsonargparse
import lightning
import torch
import torchmetrics
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import lightning_crmt
from lightning_crmt.cli.explain import at, few_lines
from lightning_crmt.cli.findings import Step
from lightning_crmt.cli.places import Place, find_place

#: Shows tracebacks always, if it is set.
TRACEBACK = "LIGHTNING_CRMT_TRACEBACK"

_OF_VALUES = (ValueError, TypeError, ImportError, RuntimeError, UnpicklingError, MisconfigurationException)
_OF_FILES = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError, FileExistsError)

#: Where nobody's own code is: this package and what it rests on, all that is installed, and Python itself.
_PACKAGES = (lightning_crmt, lightning, jsonargparse, torch, torchmetrics)
_FOLDERS = [Path(inspect.getfile(package)).parent for package in _PACKAGES]
_LIBRARIES = tuple(
    f"{folder}{os.sep}" for folder in (*_FOLDERS, *map(sysconfig.get_path, ("purelib", "platlib", "stdlib")))
)


def explain_failure(error: Exception, words: Sequence[str], making: CodeType) -> str | None:
    """What to tell of an exception in at most five lines; None if it needs its traceback.

    It needs none if a file is not there; if an object of the config could not be made, because something refused a
    value; or if later this package, Lightning or torch refused one, called by nothing but each other. What one's own
    code lets happen while a model is trained is a bug for all that can be known.

    Args:
        error: what was raised.
        words: of the command line.
        making: the code that makes the objects of the config.
    """
    made = any(frame.f_code is making for frame, _ in traceback.walk_tb(error.__traceback__))
    error = unwrapped(error)
    frames = list(traceback.walk_tb(error.__traceback__))
    own = [each for each in frames if not _of_library(each[0])]
    if isinstance(error, _OF_FILES):
        return _told(error, own)
    cause = error.__cause__
    of_encoder = type(cause) is type(error) and "encoder of" in str(error)
    if not isinstance(error, _OF_VALUES) and not of_encoder:
        return None
    if made:
        by_accident = bool(own) and frames[-1] is own[-1] and not _is_raise(*own[-1])
        return None if by_accident else _told(error, own, at(_place(error, frames, words)))
    if own:
        return None
    if cause is not None and of_encoder:  # it may be one's own, made of layers for inputs of another shape
        inside = list(traceback.walk_tb(cause.__traceback__))
        own = [each for each in inside if not _of_library(each[0])]
        if own and inside[-1] is own[-1]:
            return None
    return _told(error, own)


def _told(error: Exception, own: Sequence[tuple[FrameType, int]], place: str = "") -> str:
    message = str(error).strip() or type(error).__name__
    if isinstance(error, OSError) and error.filename and error.strerror:
        message = f"{error.strerror}: {error.filename}"
    if isinstance(error, UnpicklingError):
        message = f"`ckpt_path` must be a checkpoint, which cannot be read: {message.partition(chr(10))[0]}"
    raised = f"  raised in {_shown(own[-1][0])}, line {own[-1][1]}" if own else ""
    hint = f"  ({TRACEBACK}=1 shows the traceback)"
    lines = few_lines(message).splitlines()
    rest = [line for line in (place, raised, hint) if line]
    return few_lines(*lines[: 5 - len(rest)], *rest)


def own_bug(error: BaseException) -> Exception | None:
    """What code of one's own raised while its module was imported, of which jsonargparse tells without a place."""
    while error.__cause__ is not None:
        error = error.__cause__
    frames = list(traceback.walk_tb(error.__traceback__))
    own = bool(frames) and not _of_library(frames[-1][0])
    own = own and not isinstance(error, ImportError)  # of which enough is told
    return error if isinstance(error, Exception) and (own or isinstance(error, SyntaxError)) else None


def unwrapped(error: Exception) -> Exception:
    """What a constructor raised, of which jsonargparse says only that no type of the argument fits."""
    while str(error).startswith("Does not validate against any of the Union") and isinstance(
        error.__cause__, Exception
    ):
        error = error.__cause__
    return error


def is_of_library(file: str) -> bool:
    """Whether a file is nobody's own; those of frozen and of compiled modules are no paths, or not whole ones."""
    return not os.path.isabs(file) or f"{file}{os.sep}".startswith(_LIBRARIES)


def _of_library(frame: FrameType) -> bool:
    return is_of_library(frame.f_code.co_filename)


def _is_raise(frame: FrameType, line: int) -> bool:
    return linecache.getline(frame.f_code.co_filename, line).lstrip().startswith("raise")


def _shown(frame: FrameType) -> str:
    path = Path(frame.f_code.co_filename)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _place(error: Exception, frames: Sequence[tuple[FrameType, int]], words: Sequence[str]) -> Place | None:
    """Where the argument stands that a constructor complains of."""
    makers = [frame.f_locals["self"] for frame, _ in frames if _makes(frame)]
    named = re.findall(r"`(\w+)", str(error))
    for kind in map(type, makers):
        steps = (Step("trainer"),) if kind.__name__ == "Trainer" else (Step(kind.__name__, is_class=True),)
        for name in named:
            if place := find_place(words, steps, name):
                return place
    if got := re.search(r"got (\S+)$", str(error)):  # of a class that the config leaves to be guessed
        for name in named:
            if place := find_place(words, (Step("", is_class=True),), name, got[1]):
                return place
    return find_place(words, (Step(type(makers[0]).__name__, is_class=True),)) if makers else None


def _makes(frame: FrameType) -> bool:
    return frame.f_code.co_name in ("__init__", "__post_init__") and "self" in frame.f_locals
