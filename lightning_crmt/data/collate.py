# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Batches of samples that may lack modalities, differ in length, or be dicts with names of their own."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_crmt.checks import describe
from lightning_crmt.data.read.values import as_tensor, as_value, in_single
from lightning_crmt.modality import PRESENT

#: The name, after the dot, of the mask that says what of a padded sample is real.
MASK = "attention_mask"


class Sample(NamedTuple):
    """One sample, taken apart.

    Attributes:
        name: what an error calls it.
        values: what it has, by modality.
        context: what it says besides, by names with a dot.
        target: its class; None where none is asked for.
    """

    name: str
    values: dict[str, Tensor]
    context: dict[str, Tensor]
    target: Any


def collate_samples(
    samples: Sequence[Any],
    *,
    names: Mapping[str, str] | Sequence[str] | None = None,
    target: str | None = "label",
    optional: Mapping[str, Any] | None = None,
    nan_is_absent: Collection[str] = (),
    ragged: Collection[str] = (),
    masked: Collection[str] | None = None,
    padding_id: int = 0,
) -> tuple[dict[str, Tensor], Tensor] | dict[str, Tensor]:
    """A batch of samples ``(inputs, target)`` or of dicts, for ``DataLoader(collate_fn=...)``.

    Settings are given by ``functools.partial``. Each stands for something that a batch must not decide by itself: the
    entries of a batch, and so what encoders are called with, are the same for every batch, worker and process.

    **Modalities that may be absent** are declared in ``optional``, each with an example, because a batch that lacks one
    in all of its samples cannot know its shape. A sample lacks it if the key is not there, the value is None, the
    sample's own ``"audio.present"`` is False, or, for those in ``nan_is_absent``, all of the value is NaN. The batch
    holds 0 in its place, or ``padding_id``, and ``"audio.present"``, ``(B,)`` bool, also where all samples have it.

    **Lengths that differ** are declared in ``ragged``: sequences ``(T,)`` or ``(T, ...)`` are padded to the longest of
    the batch with 0 or ``padding_id``, and ``"text.attention_mask"``, ``(B, T)`` bool, is True where they are real. The
    encoder of the modality is called with that mask; where it does not take one, leave the modality out of ``masked``.
    The mask of an absent sample is True at its first place: attention to nothing at all would be NaN.

    Args:
        samples: tuples ``({modality: value}, target)``, or dicts. Values are tensors, arrays, numbers, lists of numbers
            or pictures: :func:`~lightning_crmt.data.read.values.as_value`. Integers are tokens. Entries whose name has
            a dot, such as ``"text.attention_mask"``, are context and passed along.
        names: which entries to take, under their names or, in a mapping, from others: ``{"text": "input_ids"}``. By
            default all, without those that begin with two underscores.
        target: in dicts, the entry with the index of the class; None for samples without, of which only the inputs are
            returned.
        optional: by modality that may be absent, an example of its value.
        nan_is_absent: those of ``optional`` of which values that are NaN everywhere are absent.
        ragged: modalities whose samples differ in length, their first dimension.
        masked: those of ``ragged`` that get a mask, by default all.
        padding_id: the token that fills gaps; real numbers are filled with 0.

    Returns:
        Inputs ``{modality: (B, ...)}`` and target ``(B,)``.

    Raises:
        ValueError: if a modality is absent that is not declared so, a sample has none at all, shapes differ, or a value
            is not finite, NaN in part included.
        TypeError: if a sample is neither of both forms, its values or class are not numbers, or a modality is tokens in
            one sample and real numbers in another.

    >>> samples = [
    ...     {"title": [7, 2, 9], "picture": torch.ones(2), "label": 1},
    ...     {"title": [4], "picture": None, "label": 0},
    ... ]
    >>> inputs, target = collate_samples(
    ...     samples,
    ...     names={"image": "picture", "text": "title"},
    ...     optional={"image": torch.zeros(2)},
    ...     ragged=["text"],
    ... )
    >>> inputs["image"], inputs["image.present"]
    (tensor([[1., 1.],
            [0., 0.]]), tensor([ True, False]))
    >>> inputs["text"], inputs["text.attention_mask"], target
    (tensor([[7, 2, 9],
            [4, 0, 0]]), tensor([[ True,  True,  True],
            [ True, False, False]]), tensor([1, 0]))
    """
    optional = {} if optional is None else optional
    masked = ragged if masked is None else masked
    _check_settings(optional, nan_is_absent, ragged, masked)
    if not samples:
        raise ValueError("`samples` must hold at least one, got none")
    apart = [_take_apart(each, place, names, target, nan_is_absent) for place, each in enumerate(samples)]
    # Not in the order in which samples happen to name them.
    modalities = list(names or sorted({*optional, *(name for sample in apart for name in sample.values)}))
    inputs: dict[str, Tensor] = {}
    context: dict[str, Tensor] = {}
    for modality in (name for name in modalities if "." not in name):
        held = [sample.values.get(modality) for sample in apart]
        present = torch.tensor([value is not None for value in held])
        if modality in optional or all(f"{modality}.{PRESENT}" in sample.context for sample in apart):
            context[f"{modality}.{PRESENT}"] = present
        elif not present.all():
            raise ValueError(_undeclared(modality, apart, held))
        example = _example(modality, optional, held)
        _check_alike(modality, apart, example, modality in ragged)
        filling = 0 if example.is_floating_point() else padding_id
        gap = torch.full_like(example[:1] if modality in ragged and present.any() else example, filling)
        values = [gap if value is None else value for value in held]
        inputs[modality] = padded(values, filling) if modality in ragged else torch.stack(values)
        if not inputs[modality].isfinite().all():
            raise ValueError(_not_finite(modality, apart))
        if modality in masked:
            context[f"{modality}.{MASK}"] = padded([_mask_of(value, gap) for value in held])
    # Masks and the like that samples came with count, not ours.
    context |= _given(apart, inputs)
    return inputs | context if target is None else (inputs | context, _targets(apart))


def padded(values: Sequence[Tensor], filling: float = 0) -> Tensor:
    """Sequences ``(T_i, ...)`` as one tensor ``(B, max T_i, ...)``, with ``filling`` after the end of shorter ones.

    >>> padded([torch.tensor([1, 2]), torch.tensor([3])], filling=-1)
    tensor([[ 1,  2],
            [ 3, -1]])
    """
    whole = values[0].new_full((len(values), max(map(len, values)), *values[0].shape[1:]), filling)
    for row, value in zip(whole, values, strict=True):
        row[: len(value)] = value
    return whole


def _check_settings(
    optional: Mapping[str, Any], nan_is_absent: Collection[str], ragged: Collection[str], masked: Collection[str]
) -> None:
    for argument, given in (("nan_is_absent", nan_is_absent), ("ragged", ragged), ("masked", masked)):
        if isinstance(given, str):
            raise TypeError(f"`{argument}` must be names of modalities, got the text {given!r}: [{given!r}]")
    if not set(nan_is_absent) <= set(optional):
        raise ValueError(f"`nan_is_absent` must be among `optional`, {list(optional)}, got {list(nan_is_absent)}")
    if not set(masked) <= set(ragged):
        raise ValueError(f"`masked` must be among `ragged`, {list(ragged)}, got {list(masked)}")


def _take_apart(
    sample: Any, place: int, names: Mapping[str, str] | Sequence[str] | None, target: str | None, nan: Collection[str]
) -> Sample:
    """What a sample has; absent modalities are left out."""
    name = f"sample {place} of the batch"
    if isinstance(sample, Mapping):
        inputs, label = dict(sample), None
        if "__key__" in inputs:
            name += f" ({inputs['__key__']!r})"
        if target is not None and target not in inputs:
            raise ValueError(f"{name} must have its class under `target` = {target!r}, got the keys {list(inputs)}")
        label = None if target is None else inputs.pop(target)
    elif isinstance(sample, tuple | list) and len(sample) == 2 and isinstance(sample[0], Mapping):
        inputs, label = dict(sample[0]), sample[1]
    else:
        raise TypeError(f"{name} must be (inputs, target) with inputs by modality, or a dict, got {describe(sample)}")
    if names is None:
        taken = {key: key for key in inputs if not str(key).startswith("__")}
    else:
        taken = dict(names) if isinstance(names, Mapping) else {key: key for key in names}
        taken |= {key: key for modality in names for key in (f"{modality}.{PRESENT}",) if key in inputs}
    values: dict[str, Tensor] = {}
    context: dict[str, Tensor] = {}
    for key, source in taken.items():
        value = inputs.get(source)
        if value is None:
            continue
        try:
            if "." in key:
                context[key] = in_single(as_tensor(value))
                continue
            if key in nan and (value := as_tensor(value)).is_floating_point() and value.isnan().all():
                continue
            values[key] = in_single(as_value(value))
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{key!r} of {name}: {error}") from error
    present = {key.removesuffix(f".{PRESENT}"): value for key, value in context.items() if key.endswith(f".{PRESENT}")}
    for modality, here in present.items():
        if here.numel() != 1 or here.dtype is not torch.bool:
            raise TypeError(f"'{modality}.{PRESENT}' of {name} must be True or False, got {describe(here)}")
        if not here:
            values.pop(modality, None)
        elif modality not in values:
            raise ValueError(f"{name} has no {modality!r}, and says that it has, with '{modality}.{PRESENT}'")
    if not values:
        raise ValueError(f"{name} has no modality at all, got the keys {list(inputs)}")
    return Sample(name, values, context, label)


def _not_finite(modality: str, apart: Sequence[Sample]) -> str:
    """What to say of a modality that holds NaN or Inf in a sample: of the first of them."""
    held = ((sample.name, sample.values[modality]) for sample in apart if modality in sample.values)
    name, value = next((name, value) for name, value in held if not value.isfinite().all())
    nan, inf = int(value.isnan().sum()), int(value.isinf().sum())
    hint = "; absence is NaN everywhere, and declared in `nan_is_absent`" if nan else ""
    return f"{modality!r} of {name} must be finite, got {nan} NaN and {inf} Inf among {value.numel()} values{hint}"


def _undeclared(modality: str, apart: Sequence[Sample], held: Sequence[Tensor | None]) -> str:
    """What to say of a modality that is absent though nothing says that it may be."""
    lacks = next(sample.name for sample, value in zip(apart, held, strict=True) if value is None)
    shape = next((tuple(value.shape) for value in held if value is not None), "...")
    return (
        f"{lacks} has no {modality!r}: if samples may lack it, declare that with an example of its value, "
        f"optional={{{modality!r}: torch.zeros({shape})}}"
    )


def _example(modality: str, optional: Mapping[str, Any], held: Sequence[Tensor | None]) -> Tensor:
    if modality in optional:
        return in_single(as_value(optional[modality]))
    for value in held:
        if value is not None:
            return value
    raise ValueError(
        f"no sample of the batch has {modality!r}, so that its shape is not known: declare it with an example of its "
        f"value, optional={{{modality!r}: torch.zeros(...)}}"
    )


def _check_alike(modality: str, apart: Sequence[Sample], example: Tensor, ragged: bool) -> None:
    """Check that all samples that have a modality have it in one shape, but for lengths if it is ragged, and type."""
    for sample in apart:
        value = sample.values.get(modality)
        if value is None:
            continue
        if value.is_floating_point() != example.is_floating_point():
            kinds = [("tokens", "real numbers")[each.is_floating_point()] for each in (example, value)]
            raise TypeError(f"{modality!r} of {sample.name} must be {kinds[0]} like the others, got {kinds[1]}")
        shape, expected = tuple(value.shape), tuple(example.shape)
        if shape[ragged:] != expected[ragged:] or len(shape) != len(expected):
            hint = "" if ragged or shape[1:] != expected[1:] else f"; if lengths differ, declare ragged=[{modality!r}]"
            wanted = ("T", *expected[1:]) if ragged else expected
            shown = f"({', '.join(map(str, wanted))}{',' * (len(wanted) == 1)})"
            raise ValueError(f"{modality!r} of {sample.name} must have the shape {shown}, got {shape}{hint}")


def _mask_of(value: Tensor | None, gap: Tensor) -> Tensor:
    """Which places of a sequence are real: all of them, or, of an absent one, the first."""
    return torch.arange(len(gap)) == 0 if value is None else torch.ones(len(value), dtype=torch.bool)


def _given(apart: Sequence[Sample], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What samples say besides, but for presence, padded with 0; where a modality is absent there may be none."""
    found: dict[str, Tensor] = {}
    for key in sorted({key for sample in apart for key in sample.context if not key.endswith(f".{PRESENT}")}):
        owner, _, name = key.partition(".")
        if owner and owner not in inputs:
            raise ValueError(f"{key!r} must begin with one of the modalities {list(inputs)}, whose context it is")
        given = [sample.context.get(key) for sample in apart]
        some = next(value for value in given if value is not None)
        for place, (sample, value) in enumerate(zip(apart, given, strict=True)):
            absent = owner and owner not in sample.values
            if value is None and not absent:
                raise ValueError(f"{sample.name} has no {key!r}, which others have")
            if absent or value is None:
                gap = torch.zeros_like(some)
                given[place] = gap.index_fill(0, torch.tensor([0]), 1) if name == MASK and gap.dim() else gap
        values = [value for value in given if value is not None]
        if len({value.shape[1:] if value.dim() else () for value in values}) > 1 or len({v.dim() for v in values}) > 1:
            raise ValueError(f"{key!r} must differ in length alone, got {sorted({tuple(v.shape) for v in values})}")
        found[key] = padded(values) if some.dim() else torch.stack(values)
    return found


def _targets(apart: Sequence[Sample]) -> Tensor:
    targets = []
    for sample in apart:
        try:
            value = as_tensor(sample.target)
        except TypeError as error:
            raise TypeError(f"the class of {sample.name} must be an integer, got {sample.target!r}") from error
        if value.numel() != 1 or value.is_floating_point() or value.is_complex():
            raise TypeError(f"the class of {sample.name} must be an integer, got {describe(value)}")
        targets.append(value.reshape(()).long())
    return torch.stack(targets)
