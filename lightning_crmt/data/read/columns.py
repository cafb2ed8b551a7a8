# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""One modality of a whole data set, read sample by sample: rows of an array, entries of a list, files."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lightning_crmt.data.read.scaling import Scale
from lightning_crmt.data.read.values import as_value, in_single


@dataclass(eq=False)
class Column:
    """What all samples have of one modality.

    Args:
        name: of the modality.
        values: of each sample, ``(N, ...)``, in a form that ``reader`` reads; looked at one by one.
        present: which samples have the modality, ``(N,)`` bool.
        optional: whether samples may lack it.
        reader: makes a tensor of one of the values.
        where: what an error calls a sample, by its row; the default is its number.
        ragged: whether samples differ in length, their first dimension.

    Attributes:
        example: the first sample that is present, as it was read.
        scale: what samples are scaled by; none until it is set.

    Raises:
        ValueError: if no sample has the modality, or the first one cannot be read.
    """

    name: str
    values: Sequence[Any]
    present: Tensor
    optional: bool = False
    reader: Callable[[Any], Tensor] = as_value
    where: Callable[[int], str] | None = None
    ragged: bool = False
    example: Tensor = field(init=False)
    scale: Scale | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if not self.present.any():
            raise ValueError(f"some sample must have {self.name!r}, got none in {len(self)}")
        first = int(self.present.nonzero()[0])
        self.example = self._read(first)

    def __len__(self) -> int:
        return len(self.present)

    def __getitem__(self, row: int) -> Tensor | None:
        """One sample in single precision, scaled; None if it lacks the modality.

        Raises:
            ValueError: naming the sample, if it cannot be read, has another shape than others, or is not finite.
        """
        if not self.present[row]:
            return None
        value = self.raw(row)
        return in_single(value) if self.scale is None else self.scale(value)

    def of_others(
        self, values: Sequence[Any], present: Tensor, optional: bool, where: Callable[[int], str] | None = None
    ) -> Column:
        """What other samples have of the modality, read and scaled like these; see the class for the arguments."""
        others = copy.copy(self)  # not made anew: none of them need have it, and what is like the example is decided
        others.values, others.present, others.optional, others.where = values, present, optional, where
        return others

    def raw(self, row: int) -> Tensor:
        """One sample that is present, as it was read and before it is scaled; see ``__getitem__`` for errors."""
        value = self._read(row)
        if value.shape != self.example.shape or value.dtype != self.example.dtype:
            self._check_like_others(value, row)
        if value.is_floating_point() and not value.isfinite().all():
            nan, inf = int(value.isnan().sum()), int(value.isinf().sum())
            hint = "; samples that are all NaN may be declared absent by `nan_is_absent`" if nan else ""
            raise ValueError(f"{self.at(row)} must be finite, got {nan} NaN and {inf} Inf in {value.numel()}{hint}")
        return value

    def _check_like_others(self, value: Tensor, row: int) -> None:
        if value.is_floating_point() != self.example.is_floating_point():
            kinds = [("tokens", "real numbers")[each.is_floating_point()] for each in (self.example, value)]
            raise ValueError(f"{self.at(row)} must be {kinds[0]} like the others, got {kinds[1]}")
        shape, expected = tuple(value.shape), tuple(self.example.shape)
        if len(shape) != len(expected) or shape[self.ragged :] != expected[self.ragged :]:
            lengths = not self.ragged and len(shape) == len(expected) and shape[1:] == expected[1:]
            hint = f"; if lengths differ, name {self.name!r} in `ragged`" if lengths else ""
            wanted = f"{expected}" if not self.ragged else f"{('T', *expected[1:])}".replace("'", "")
            raise ValueError(f"{self.at(row)} must have the shape {wanted} like the others, got {shape}{hint}")

    def at(self, row: int) -> str:
        """What an error calls a sample."""
        return f"{self.name!r} of {f'sample {row}' if self.where is None else self.where(row)}"

    def _read(self, row: int) -> Tensor:
        try:
            return self.reader(self.values[row])
        except (OSError, ValueError, TypeError, EOFError, RuntimeError) as error:
            raise ValueError(f"{self.at(row)} cannot be read: {error}") from error
