# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Checks of arguments: each error names the argument, what was expected and what it got."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn


def describe(value: Any) -> str:
    """``value`` in a few words, for error messages.

    >>> describe(torch.zeros(2, 3))
    'a float32 tensor of shape (2, 3)'
    """
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with keys {list(value)}"
    return f"a {type(value).__name__}"


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """A question, if a known name is near.

    >>> did_you_mean("widht", ["width", "depth"])
    '; did you mean `width`?'
    >>> did_you_mean("xyz", ["width", "depth"])
    ''
    """
    names = list(known)
    # What a key is called without those above it counts too, as does the case of letters.
    aliases = {each.rpartition(".")[2].lower(): each for each in reversed(names)}
    aliases.update({each.lower(): each for each in names})
    near = difflib.get_close_matches(wrong.lower(), aliases, n=1, cutoff=0.6)
    near = near or difflib.get_close_matches(wrong.rpartition(".")[2].lower(), aliases, n=1, cutoff=0.75)
    return f"; did you mean `{aliases[near[0]]}`?" if near else ""


def require_package(name: str, reason: str, extra: str) -> Any:
    """The module ``name`` of an optional package.

    Raises:
        ModuleNotFoundError: if it is not installed, with the ``reason`` for needing it and the extra that installs it.

    >>> require_package("no_such_package", "this needs it", "video")
    Traceback (most recent call last):
        ...
    ModuleNotFoundError: this needs it (No module named 'no_such_package'): pip install "lightning_crmt[video]"
    """
    try:
        import_module(name.partition(".")[0])  # a part may be loaded still where the package is gone
        return import_module(name)
    except ImportError as error:
        message = f'{reason} ({error}): pip install "lightning_crmt[{extra}]"'
        raise ModuleNotFoundError(message, name=error.name) from error


def check_at_least(least: float, **settings: float | None) -> None:
    """Refuse settings below ``least``, and NaN; None, where a setting may be left out, passes.

    Raises:
        ValueError: naming the first such setting.

    >>> check_at_least(1, steps=20, restarts=0)
    Traceback (most recent call last):
        ...
    ValueError: `restarts` must be at least 1, got 0
    """
    for name, value in settings.items():
        if value is not None and not value >= least:
            raise ValueError(f"`{name}` must be at least {least}, got {value}")


def check_positive(**settings: float | None) -> None:
    """Refuse settings that are not finite and above 0; None, where a setting may be left out, passes.

    Raises:
        ValueError: naming the first such setting.
    """
    for name, value in settings.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"`{name}` must be above 0, got {value}")


def check_modality_names(argument: str, names: Iterable[str]) -> None:
    """Refuse an empty set of modalities, and names that module paths or metric keys cannot carry.

    Raises:
        ValueError: quoting the name and the ``argument`` that it was given in.

    >>> check_modality_names("encoders", ["audio/left"])
    Traceback (most recent call last):
        ...
    ValueError: `encoders` must have names that are non-empty strings without '.' and '/', got 'audio/left'
    """
    names = list(names)
    if not names:
        raise ValueError(f"`{argument}` must name at least one modality, got none")
    for name in names:
        if not isinstance(name, str) or not name or "." in name or "/" in name:
            raise ValueError(
                f"`{argument}` must have names that are non-empty strings without '.' and '/', got {name!r}"
            )
        if name == "training" or hasattr(nn.ParameterDict, name):
            raise ValueError(f"`{argument}` must not use {name!r} as a name: torch modules have it as an attribute")


def check_same_modalities(argument: str, given: Iterable[str], expected: Iterable[str]) -> None:
    """Check that ``given`` are exactly the ``expected`` modalities; the order is free.

    Raises:
        ValueError: naming the ``argument``, and the modalities that are missing or unknown.
    """
    given, expected = list(given), list(expected)
    missing = [name for name in expected if name not in given]
    unknown = [name for name in given if name not in expected]
    if missing or unknown:
        what = [f"missing {missing}"] * bool(missing) + [f"unknown {unknown}"] * bool(unknown)
        raise ValueError(f"`{argument}` must hold exactly the modalities {expected}; got {given}: {', '.join(what)}")


def check_inputs(inputs: Any, modalities: Iterable[str]) -> None:
    """Check one batch of inputs, ``(B, ...)`` by modality, before anything is computed from it.

    Raises:
        TypeError: if it is not a mapping of tensors.
        ValueError: if a modality is missing or unknown, a tensor has no batch dimension, batch sizes differ, the
            batch is empty, or a floating point tensor holds NaN or Inf.

    >>> check_inputs({"audio": torch.zeros(2, 5)}, ["audio", "image"])
    Traceback (most recent call last):
        ...
    ValueError: `inputs` must hold exactly the modalities ['audio', 'image']; got ['audio']: missing ['image']
    """
    check_named_batch(inputs, modalities)
    require_finite("inputs", inputs)


def check_named_batch(inputs: Any, modalities: Iterable[str]) -> None:
    """The part of :func:`check_inputs` that does not look at values, and so does not wait for the device.

    Raises:
        TypeError: if it is not a mapping of tensors, or ``"….present"`` is not bool.
        ValueError: if a modality is missing or unknown, context is of an unknown modality, a tensor has no batch
            dimension, batch sizes differ, or the batch is empty.
    """
    if isinstance(inputs, Mapping):
        modalities = list(modalities)
        check_same_modalities("inputs", [name for name in inputs if "." not in name], modalities)
        for name, value in inputs.items():
            owner, _, key = name.partition(".")
            if "." in key:
                raise ValueError(f"`inputs[{name!r}]` must have one dot, between a modality and what its context is")
            if key and owner not in modalities:
                raise ValueError(
                    f"`inputs[{name!r}]` must begin with one of the modalities {modalities}, whose context it is"
                )
            if key == "present" and not (isinstance(value, Tensor) and value.dtype is torch.bool and value.dim() == 1):
                raise TypeError(f"`inputs[{name!r}]` must be a bool tensor of shape (B,), got {describe(value)}")
    check_batch("inputs", inputs)


def check_batch(argument: str, tensors: Any) -> int:
    """Check that ``tensors`` map names to tensors of one batch, ``(B, ...)`` each, and return B.

    Only entries whose name has a dot, which are context, may be ``(B,)``.

    Raises:
        TypeError: if it is not a mapping of tensors.
        ValueError: if a tensor has no batch dimension, batch sizes differ, or the batch is empty.
    """
    if not isinstance(tensors, Mapping):
        raise TypeError(f"`{argument}` must map the name of each modality to a tensor, got {describe(tensors)}")
    if not tensors:
        raise ValueError(f"`{argument}` must hold at least one modality, got none")
    sizes = {}
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"`{argument}[{name!r}]` must be a tensor, got {describe(value)}")
        if value.dim() < (1 if "." in name else 2):
            raise ValueError(
                f"`{argument}[{name!r}]` must have a batch dimension and at least one more, got {describe(value)}"
            )
        sizes[name] = value.shape[0]
    size, *others = sizes.values()
    if any(other != size for other in others):  # compared, as sizes that torch.export leaves open have no hash
        raise ValueError(f"`{argument}` must have one batch size, got {sizes}")
    if size == 0:
        raise ValueError(f"`{argument}` must hold at least one sample, got an empty batch")
    return size


def require_finite(argument: str, tensors: Mapping[str, Tensor]) -> None:
    """Check that floating point tensors are finite; one synchronisation with the device for all of them.

    Code that ``torch.compile`` or ``torch.export`` makes does not have this check: it knows shapes, not values.

    Args:
        argument: what an error calls ``tensors``.
        tensors: by name, of any shapes; those of integers pass.

    Raises:
        ValueError: naming those that hold NaN or Inf, and how many.

    >>> require_finite("inputs", {"audio": torch.tensor([[0.0, torch.nan]]), "text": torch.tensor([[3]])})
    Traceback (most recent call last):
        ...
    ValueError: `inputs` must be finite: `inputs['audio']` has 1 NaN and 0 Inf among 2 values
    """
    if torch.compiler.is_compiling():
        return
    finite = {name: value.isfinite().all() for name, value in tensors.items() if value.is_floating_point()}
    if finite and not torch.stack(list(finite.values())).all():
        bad = [name for name, ok in finite.items() if not ok]
        where = ", ".join(f"`{argument}[{name!r}]` has {_count_non_finite(tensors[name])}" for name in bad)
        raise ValueError(f"`{argument}` must be finite: {where}")


def usable(
    values: Iterable[Tensor], ranges: Iterable[tuple[Tensor, float, float]], count: Tensor | None = None
) -> tuple[bool, int]:
    """Whether values are finite and others in their ranges, found with one wait for the device.

    For a training step: where it is False, the other checks say what is wrong, and wait as often as they like. It may
    be False for sound values too, such as those beyond single precision.

    Args:
        values: floating point tensors; others pass.
        ranges: tensors, each with the least and the largest number that it may hold.
        count: bools ``(B,)`` to be counted in the same wait.

    Returns:
        Whether all is well, and how many of ``count`` are True.

    >>> usable([torch.ones(2, 3)], [(torch.tensor([0, 2]), 0, 2)])[0], usable([torch.ones(2) / 0], [])[0]
    (True, False)
    """
    found = [value.detach() for value in values if value.is_floating_point() and value.numel()]
    limited = [(value.detach(), low, high) for value, low, high in ranges if value.numel()]
    extremes = [extreme for value in [*found, *(value for value, *_ in limited)] for extreme in value.aminmax()]
    if count is not None:
        extremes.append(count.sum())
    if not extremes:
        return True, 0
    device = extremes[0].device
    numbers = torch.stack([extreme.to(device, torch.float32) for extreme in extremes]).tolist()
    counted = int(numbers.pop()) if count is not None else 0
    least, most = numbers[2 * len(found) :: 2], numbers[2 * len(found) + 1 :: 2]
    inside = all(
        low <= smallest and largest <= high
        for (_, low, high), smallest, largest in zip(limited, least, most, strict=True)
    )
    return inside and all(map(math.isfinite, numbers)), counted


def _count_non_finite(value: Tensor) -> str:
    nan, inf = int(value.isnan().sum()), int(value.isinf().sum())
    return f"{nan} NaN and {inf} Inf among {value.numel()} values"


def check_logits(logits: Any, argument: str = "logits") -> None:
    """Check that ``logits`` is a finite floating point tensor of shape (B, K) with K >= 2.

    Raises:
        ValueError: otherwise, naming ``argument``.
    """
    if not isinstance(logits, Tensor) or logits.dim() != 2 or not logits.is_floating_point() or logits.shape[1] < 2:
        raise ValueError(
            f"`{argument}` must be a floating point tensor of shape (B, K), K >= 2, got {describe(logits)}"
        )
    if not logits.isfinite().all():
        raise ValueError(
            f"`{argument}` must be finite: {_count_non_finite(logits)}; the model diverged or its input is broken"
        )


def check_target(target: Any, num_classes: int, batch_size: int, argument: str = "target") -> Tensor:
    """Check that ``target``, called ``argument`` in errors, holds one class index in [0, K) per sample.

    Returns:
        The classes, ``(B,)`` int64, whatever integers they came as.

    Raises:
        TypeError: if it holds neither integers nor, with two classes, bools.
        ValueError: if it does not have shape ``(batch_size,)``, is empty, or a class is out of range.

    >>> check_target(torch.tensor([0, 2], dtype=torch.uint8), num_classes=3, batch_size=2)
    tensor([0, 2])
    >>> check_target(torch.tensor([0, 3]), num_classes=3, batch_size=2)
    Traceback (most recent call last):
        ...
    ValueError: `target` must hold class indices from 0 to 2, got values from 0 to 3
    """
    classes = as_classes(target, num_classes, batch_size, argument)
    low, high = torch.stack(classes.aminmax()).tolist()
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"`{argument}` must hold class indices from 0 to {num_classes - 1}, got values from {low} to {high}"
        )
    return classes


def as_classes(target: Any, num_classes: int, batch_size: int, argument: str = "target") -> Tensor:
    """The part of :func:`check_target` that does not look at the classes, and so does not wait for the device.

    Raises:
        TypeError: if ``target`` holds neither integers nor, with two classes, bools.
        ValueError: if it does not have shape ``(batch_size,)``, or is empty.
    """
    if not isinstance(target, Tensor) or not (is_integer(target) or (target.dtype is torch.bool and num_classes == 2)):
        raise TypeError(f"`{argument}` must be a tensor of integer class indices, got {describe(target)}")
    if target.shape != (batch_size,):
        raise ValueError(f"`{argument}` must have shape ({batch_size},), one class per sample, got {describe(target)}")
    if batch_size == 0:
        raise ValueError(f"`{argument}` must hold at least one sample, got an empty batch")
    return target.long()


def is_integer(value: Tensor) -> bool:
    """Whether a tensor holds integers of any size; bools are none.

    >>> is_integer(torch.tensor([1], dtype=torch.uint8)), is_integer(torch.tensor([True]))
    (True, False)
    """
    return not value.dtype.is_floating_point and not value.dtype.is_complex and value.dtype is not torch.bool
