# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Arrays of one's own as a data module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from lightning_crmt.checks import check_modality_names, describe
from lightning_crmt.data.own import OwnData, Read
from lightning_crmt.data.read.arrays import EndToEnd, found_present, lengths_differ, mapped, opened
from lightning_crmt.data.read.columns import Column
from lightning_crmt.data.read.values import as_tensor
from lightning_crmt.modality import PRESENT


class ArrayData(OwnData):
    r"""Arrays of your own, one per modality, as training, validation and test part.

    Everything that is something of each sample, ``inputs``, ``target``, ``split`` and ``groups``, can be a tensor, a
    NumPy array, a list, or the path of an ``.npy``, ``.npz`` or ``.pt`` file, so that YAML can name it. ``.npy`` files
    and memory maps are not read as a whole: batches read what they need. In an ``.npz`` of several arrays the one that
    is called like the modality counts, or like the argument. If ``target`` and all inputs are mappings of ``train``,
    ``val`` and ``test``, these are the parts.

    - **Real numbers** are standardised with mean and deviation of the training part: each feature of vectors, each
      channel, the first dimension of a sample, of what has more.
    - **Integers** are tokens and stay as they are; pixels, uint8 with height and width, become real numbers.
    - **Lists whose entries differ in length**, of tokens or of vectors, are padded at the end, and
      ``"text.attention_mask"`` says what is real. In memory all parts are padded to the length of the longest sample,
      so that no prediction depends on the batch that a sample is in.
    - **A sample lacks a modality** if its entry of a list is None, if ``inputs["audio.present"]``, ``(N,)`` bool, says
      so, or, for modalities in ``nan_is_absent``, if all of its numbers are NaN. Statistics are of what is present;
      batches hold 0 for what is absent, and ``"audio.present"``.
    - **Other entries with a dot**, such as a ``"text.attention_mask"`` of your own, are passed along.

    Args:
        inputs: samples by modality, ``(N, ...)``.
        target: class of each sample, ``(N,)``: 0 to K - 1, or names, which are sorted.
        classes: all classes in the order of their indices, if they are not these.
        split: the part of each sample, ``train``, ``val`` or ``test``.
        shares: where there is no ``split``: share of each part, of every class alike, drawn by ``seed``.
        groups: the group of each sample, such as a person: no group is in two parts.
        standardise: whether real numbers are standardised, or which modalities.
        channels_last: modalities whose last dimension holds the channels, such as images ``(H, W, C)``.
        norm: if given, the root of the mean squared norm that standardised samples get, over the training part, so that
            radii of different modalities compare.
        nan_is_absent: modalities that a sample lacks if all of its numbers are NaN; NaN is an error elsewhere.
        ragged: modalities to pad with a mask though their lengths do not differ.
        masked: which of the padded ones get a mask, by default all: their encoders are called with
            ``attention_mask=``.
        padding_id: the token that fills gaps.
        **loading: ``batch_size``, ``num_workers`` and ``seed``, see ``MultimodalDataModule``.

    Raises:
        ValueError: if a setting is out of range; on ``setup``, naming argument and sample, if lengths of modalities
            differ, shapes within one do, a class is unknown, a number is not finite, a sample has no modality, or a
            group is in two parts.
        TypeError: on ``setup``, if something is not numbers.
        FileNotFoundError: on ``setup``, if a file is missing.

    >>> data = ArrayData(
    ...     {"image": np.random.rand(100, 1, 8, 8), "title": [[1 + i % 5] * (1 + i % 3) for i in range(100)]},
    ...     target=["cat", "dog"] * 50,
    ... )
    >>> data.num_classes, data.classes, data.shapes
    (2, ['cat', 'dog'], {'image': (1, 8, 8), 'title': (3,)})
    >>> inputs, target = data.parts["train"][:4]
    >>> {name: tuple(value.shape) for name, value in inputs.items()}
    {'image': (4, 1, 8, 8), 'title': (4, 3), 'title.attention_mask': (4, 3)}
    """

    def __init__(
        self,
        inputs: Mapping[str, Any],
        *,
        target: Any,
        split: Any = None,
        groups: Any = None,
        nan_is_absent: Sequence[str] = (),
        **settings: Any,
    ) -> None:
        if not isinstance(inputs, Mapping):
            raise TypeError(f"`inputs` must map the name of each modality to its samples, got {describe(inputs)}")
        names = [name for name in inputs if "." not in str(name)]
        if inputs and not names:
            raise ValueError(
                f"`inputs` must name modalities, without a dot: with one it is context; got {list(inputs)}"
            )
        check_modality_names("inputs", names)
        super().__init__(names, **settings)
        for key in inputs:
            owner, _, name = str(key).partition(".")
            if owner not in names and (owner or name == PRESENT):
                raise ValueError(
                    f"`inputs[{key!r}]` must begin with one of the modalities {names}, whose context it is"
                )
        self.nan_is_absent = self.among("nan_is_absent", nan_is_absent)
        if isinstance(target, Mapping) and split is not None:
            raise ValueError("`split` must not be given where `target` says which part is which, got both")
        others = {f"inputs[{key!r}]": value for key, value in inputs.items()} | {"split": split, "groups": groups}
        for argument, value in others.items():
            if value is not None and _parts_of(value) != _parts_of(target):
                form = f"by part, {list(target)}," if isinstance(target, Mapping) else "as one, not by part,"
                raise ValueError(f"`{argument}` must be given {form} like `target`, got {describe(value)}")
        self.given = dict(inputs)
        self.given_target = target
        self.split = split
        self.groups = groups

    @override
    def read(self) -> Read:
        """Open the arrays, and see which samples lack what."""
        target = self._opened("`target`", self.given_target, "target")
        held = {key: self._opened(f"`inputs[{key!r}]`", value, key) for key, value in self.given.items()}
        sizes = {key: _sizes(values) for key, values in held.items()}
        if any(size != _sizes(target) for size in sizes.values()):
            raise ValueError(f"`inputs` must have as many samples as `target`, {_sizes(target)}, got {sizes}")
        groups = None if self.groups is None else _listed(self._opened("`groups`", self.groups, "groups"))
        split = None if self.split is None else _listed(self._opened("`split`", self.split, "split"))
        if isinstance(target, EndToEnd):
            split = [part for part, piece in zip(self.given_target, target.pieces, strict=True) for _ in piece]
        columns = {name: self._column(name, held) for name in self.modalities}
        context = {key: values for key, values in held.items() if "." in key and not key.endswith(f".{PRESENT}")}
        in_memory = not any(map(mapped, held.values()))
        return Read(columns, context, _listed(target), split, groups, in_memory)

    def prepared(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """New samples, given as the data were, as a batch that the model takes: scaled, padded, with presence.

        Args:
            inputs: samples by modality, ``(B, ...)``, and the context that the data have. A modality that is left out
                is absent from all of them. ``"audio.present"`` is in the batch if the data may lack audio, if it is
                given here, or if one of these samples lacks it.

        Returns:
            Inputs by modality, ``(B, ...)``, with the entries of batches of the data. Sequences are padded as far as
            those are, further if one is longer.

        Raises:
            ValueError: naming the sample, if one has no modality, another shape than those of the data, or is not
                finite; if modalities or context are unknown or missing, or differ in their number of samples.
            TypeError: if something is not numbers.

        >>> data = ArrayData({"sensor": np.arange(60.0).reshape(30, 2)}, target=[0, 1, 2] * 10)
        >>> data.prepared({"sensor": [data.mean["sensor"] + data.deviation["sensor"]]})
        {'sensor': tensor([[1., 1.]])}
        """
        self.setup()
        held = {key: opened(value, f"`inputs[{key!r}]`", key) for key, value in inputs.items()}
        known = {*self.modalities, *(f"{name}.{PRESENT}" for name in self.modalities), *self._context}
        if unknown := sorted(set(held) - known):
            raise ValueError(f"`inputs` must name what the data have, {sorted(known)}, got {unknown}")
        if not set(held) & set(self.modalities):
            raise ValueError(f"`inputs` must have some of the modalities {list(self.modalities)}, got {list(inputs)}")
        sizes = {key: len(values) for key, values in held.items()}
        if len(set(sizes.values())) > 1 or 0 in sizes.values():
            raise ValueError(f"`inputs` must have one number of samples, at least 1, got {sizes}")
        (size,) = set(sizes.values())
        columns = {}
        for name, column in self._columns.items():
            values = held.get(name, [None] * size)
            present, declared = self._present(name, {**held, name: values})
            optional = column.optional or declared or not bool(present.all())
            columns[name] = column.of_others(values, present, optional)
        return self.batch_of(columns, {key: held[key] for key in self._context if key in held})

    def _opened(self, argument: str, given: Any, key: str) -> Sequence[Any]:
        """One argument; if it is given by part, all parts end to end."""
        if not isinstance(given, Mapping):
            whole: Sequence[Any] = opened(given, argument, key)
            return whole
        return EndToEnd([opened(given[part], f"{argument}[{part!r}]", key) for part in self.given_target])

    def _column(self, name: str, held: Mapping[str, Sequence[Any]]) -> Column:
        values = held[name]
        present, declared = self._present(name, held)
        return Column(
            name,
            values,
            present,
            optional=declared or not bool(present.all()),
            ragged=name in self.ragged or lengths_differ(values, present),
        )

    def _present(self, name: str, held: Mapping[str, Sequence[Any]]) -> tuple[Tensor, bool]:
        """Which samples have a modality, and whether it was said that some may lack it."""
        values, key = held[name], f"{name}.{PRESENT}"
        present = found_present(values, name, name in self.nan_is_absent)
        declared = key in held or name in self.nan_is_absent
        if key in held:
            says = torch.stack([as_tensor(each).reshape(()) for each in held[key]])
            if says.dtype is not torch.bool:
                raise TypeError(f"`inputs[{key!r}]` must hold True and False, got {describe(says)}")
            if (contradicted := says & ~present).any():
                row = int(contradicted.nonzero()[0])
                raise ValueError(f"`inputs[{key!r}]` must be False where there is no {name!r}, got True at {row}")
            present = says
        return present, declared


def _parts_of(given: Any) -> set[str]:
    """The parts that something is given by."""
    return set(given) if isinstance(given, Mapping) else set()


def _sizes(values: Sequence[Any]) -> int | list[int]:
    """How many samples there are; if they were given by part, in each."""
    return list(map(len, values.pieces)) if isinstance(values, EndToEnd) else len(values)


def _listed(values: Sequence[Any]) -> list[Any]:
    """Numbers and names of Python."""
    return [value.item() if hasattr(value, "item") and not np.ndim(value) else value for value in values]
