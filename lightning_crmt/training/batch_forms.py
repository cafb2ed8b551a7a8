# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Read inputs by name, target and whatever else there is from batches in the forms that people have."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from lightning_crmt.checks import describe

#: From a batch to its inputs by name and its target ``(B,)``.
SplitBatch: TypeAlias = Callable[[Any], tuple[Mapping[str, Tensor], Tensor]]

#: Names that the target has in dicts and among the parameters of ``forward``.
TARGETS = ("target", "label", "labels", "y")


class Parts(NamedTuple):
    """A batch taken apart.

    Attributes:
        inputs: modalities by name, as the batch has them.
        beside: everything else in a dict, but for the target.
        target: the target.
        target_name: what it was called, None if it had no name.
        kind: the class of the mapping that held the inputs; None if they had no names.
    """

    inputs: dict[str, Any]
    beside: dict[str, Any]
    target: Any
    target_name: str | None
    kind: type[Mapping[str, Any]] | None


def take_apart(batch: Any, names: Sequence[str]) -> Parts:
    """The parts of a batch: inputs and target in a row, inputs in the order of ``names``, or by name.

    That is ``(…, target)``, ``((…), target)``, ``(dict, target)``, or a dict, a named tuple or a dataclass that holds
    the target too.

    Raises:
        ValueError: if a dict lacks a modality or the target.
        TypeError: if the batch has none of these forms.

    >>> take_apart({"image": 1, "labels": 2, "attention_mask": 3}, ["image"])
    Parts(inputs={'image': 1}, beside={'attention_mask': 3}, target=2, target_name='labels', kind=<class 'dict'>)
    """
    batch = _by_field(batch, names)
    pair = isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[0], Mapping)
    if isinstance(batch, Mapping) or pair:
        mapping: Mapping[str, Any] = batch[0] if pair else batch
        held: dict[str, Any] = dict(mapping)
        if absent := [name for name in names if name not in held]:
            raise ValueError(f"`inputs` names {absent}, but the batch holds {list(held)}")
        inputs = {name: held.pop(name) for name in names}
        if pair:
            return Parts(inputs, held, batch[1], None, type(mapping))
        key = next((key for key in TARGETS if key in held), None)
        if key is None:
            known = ", ".join(map(repr, TARGETS[:-1]))
            raise ValueError(
                f"a dict batch must hold {known} or {TARGETS[-1]!r}, got keys {list(batch)}; for another name give "
                "split_batch=, a function from a batch to (inputs, target)"
            )
        return Parts(inputs, held, held.pop(key), key, type(mapping))
    if isinstance(batch, tuple | list) and len(batch) == len(names) + 1:
        return Parts(dict(zip(names, batch[:-1], strict=True)), {}, batch[-1], None, None)
    nested = isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[0], tuple | list)
    if nested and len(batch[0]) == len(names):
        return Parts(dict(zip(names, batch[0], strict=True)), {}, batch[1], None, None)
    raise TypeError(
        f"a batch must be ({', '.join(names)}, target) or hold these names in a dict, got {describe(batch)}"
        + (f" of length {len(batch)}" if isinstance(batch, tuple | list) else "")
        + "; for another form give split_batch=, a function from a batch to (inputs, target)"
    )


def _by_field(batch: Any, names: Sequence[str]) -> Any:
    """A named tuple or dataclass whose fields have these names as a dict; anything else as it is."""
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type | Mapping):
        return {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    fields = getattr(batch, "_fields", ())
    if isinstance(batch, tuple) and set(names) <= set(fields):
        return dict(zip(fields, batch, strict=True))
    return batch


def check_tensor(name: str, value: Any) -> None:
    """Check that a modality is a tensor.

    Raises:
        TypeError: saying how to pass what it is.
    """
    if isinstance(value, Tensor) and not value.is_nested:
        return
    how = "give split_batch=, a function from a batch to (inputs, target) that makes one of it"
    if isinstance(value, PackedSequence | Tensor):
        how = (
            "pad it, as torch.nn.utils.rnn.pad_packed_sequence does, pass lengths or a mask beside it, and pack inside "
            "of the module"
        )
    kind = "a nested tensor" if isinstance(value, Tensor) else describe(value)
    raise TypeError(f"`inputs[{name!r}]` must be a tensor of shape (B, ...), got {kind}: {how}")


def as_split_batch(given: SplitBatch | str | None) -> SplitBatch | None:
    """The function that was given, or that an import path names.

    Raises:
        ValueError: if nothing can be imported from there.
        TypeError: if it is not a function.

    >>> as_split_batch("operator.itemgetter")
    <class 'operator.itemgetter'>
    >>> as_split_batch("nowhere.to_be_found")
    Traceback (most recent call last):
        ...
    ValueError: `split_batch` must be a function or the import path of one, 'package.module.function', got
    'nowhere.to_be_found': No module named 'nowhere'
    """
    found: Any = given
    if isinstance(given, str):
        path, _, name = given.rpartition(".")
        try:
            found = getattr(import_module(path), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(
                "`split_batch` must be a function or the import path of one, 'package.module.function', got "
                f"{given!r}: {error}"
            ) from error
    if found is not None and not callable(found):
        raise TypeError(f"`split_batch` must be a function from a batch to (inputs, target), got {describe(found)}")
    return found  # type: ignore[no-any-return]
