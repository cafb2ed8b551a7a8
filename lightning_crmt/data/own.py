# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What data modules of one's own data share: classes, split, scale, presence and padding."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import override

from lightning_crmt.checks import check_positive
from lightning_crmt.data.module import MultimodalDataModule, MultimodalDataset
from lightning_crmt.data.read.columns import Column
from lightning_crmt.data.read.labels import Label, class_indices, few
from lightning_crmt.data.read.scaling import Scale
from lightning_crmt.data.read.splits import check_shares, split_rows
from lightning_crmt.data.samples import ColumnDataset, check_presence, collate_for, fit_scales, shown
from lightning_crmt.data.settings import several
from lightning_crmt.modality import select


class Read(NamedTuple):
    """All samples as they were found.

    Attributes:
        columns: what they have, by modality.
        context: what else they say, by names with a dot, each ``(N, ...)``.
        target: the class of each, by whatever label.
        split: the part of each; None where it is to be drawn.
        groups: the group of each; None where they belong together in no way.
        in_memory: whether all of it is in memory already.
    """

    columns: dict[str, Column]
    context: dict[str, Sequence[Any]]
    target: Sequence[Any]
    split: Sequence[Any] | None
    groups: Sequence[Any] | None
    in_memory: bool


class OwnData(MultimodalDataModule):
    """Data of one's own: a subclass reads them in ``read``.

    Args:
        modalities: their names.
        classes: all classes, in the order of their indices.
        shares: share of each part, of every class alike, where the data do not say what is in which.
        standardise: whether real numbers are standardised, or which modalities.
        channels_last: modalities whose last dimension holds the channels, each with its own mean and deviation, instead
            of the first.
        norm: if given, root of the mean squared norm that standardised samples get over the training part.
        ragged: modalities that are padded with a mask.
        masked: which of the padded ones get a mask, by default all.
        padding_id: the token that fills gaps.
        **loading: ``batch_size``, ``num_workers`` and ``seed``, see ``MultimodalDataModule``; ``seed`` also decides the
            split.

    Raises:
        ValueError: if a setting is out of range, or names a modality that is not there.
    """

    def __init__(
        self,
        modalities: Sequence[str],
        *,
        classes: Sequence[Label] | None = None,
        shares: Sequence[float] = (0.6, 0.2, 0.2),
        standardise: bool | Sequence[str] = True,
        channels_last: Sequence[str] = (),
        norm: float | None = None,
        ragged: Sequence[str] = (),
        masked: Sequence[str] | None = None,
        padding_id: int = 0,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        check_shares(shares)
        check_positive(norm=norm)
        self.modalities = tuple(modalities)
        self.shares = tuple(shares)
        self.standardise = standardise if isinstance(standardise, bool) else self.among("standardise", standardise)
        self.channels_last = self.among("channels_last", channels_last)
        self.norm = norm
        self.ragged = self.among("ragged", ragged)
        self.masked = None if masked is None else self.among("masked", masked)
        self.padding_id = padding_id
        self.given_classes = classes
        self._classes: list[Label] = []
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._columns: dict[str, Column] = {}
        self._context: tuple[str, ...] = ()
        self._lengths: dict[str, int] = {}  # of what is padded to one length in all batches

    def among(self, argument: str, names: str | Sequence[str]) -> tuple[str, ...]:
        """The modalities that a setting names.

        Raises:
            ValueError: if one is not known.
        """
        if not set(several(names)) <= set(self.modalities):
            raise ValueError(f"`{argument}` must name modalities among {list(self.modalities)}, got {names!r}")
        return several(names)

    @abstractmethod
    def read(self) -> Read:
        """All samples, of all parts; ``setup`` calls it once."""

    @property
    def classes(self) -> list[Label]:
        """The classes, in the order of their indices; reads the data."""
        self.setup()
        return self._classes

    @property
    def num_classes(self) -> int:
        """Number of classes; reads the data."""
        return len(self.classes)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one sample of each modality, -1 for a length that differs from batch to batch; reads the data."""
        self.setup()
        return self._shapes

    @property
    def mean(self) -> dict[str, Tensor]:
        """What is subtracted from each modality that is standardised, in double precision; reads the data.

        In a shape that goes with one sample, such as ``(3, 1, 1)`` for channels: the model takes
        ``(value - data.mean["image"]) / data.deviation["image"]``. Pixels, uint8, are from 0 to 1 before that.
        """
        self.setup()
        return {name: scale.along(column.example.dim())[0] for name, column, scale in self._scaled()}

    @property
    def deviation(self) -> dict[str, Tensor]:
        """What each modality that is standardised is divided by, like ``mean``; reads the data.

        The deviation over the training part; 1 where nothing varies. ``norm`` is counted in: with it, a multiple of
        that.
        """
        self.setup()
        return {name: scale.along(column.example.dim())[1].reciprocal() for name, column, scale in self._scaled()}

    def _scaled(self) -> list[tuple[str, Column, Scale]]:
        return [(name, column, column.scale) for name, column in self._columns.items() if column.scale is not None]

    def batch_of(self, columns: Mapping[str, Column], context: Mapping[str, Sequence[Any]]) -> dict[str, Tensor]:
        """New samples as a batch of the same entries and, where all of the data were in memory, lengths.

        Args:
            columns: what they have, by modality.
            context: what else they say, by names with a dot, each ``(B, ...)``.

        Raises:
            ValueError: naming the sample, if one has no modality, is like no sample of the data, or is not finite; if
                context is missing.
        """
        if missing := sorted(set(self._context) - set(context)):
            raise ValueError(f"new samples must have the context that the data have, {missing} is missing")
        target = torch.zeros(len(columns[self.modalities[0]]), dtype=torch.long)
        collate = collate_for(columns, context, self.masked, self.padding_id)
        inputs: dict[str, Tensor] = ColumnDataset(columns, context, target, torch.arange(len(target)), collate)[:][0]
        for key, length in self._lengths.items():
            tokens = key in columns and not inputs[key].is_floating_point()
            inputs[key] = _lengthened(inputs[key], length, self.padding_id if tokens else 0)
        return inputs

    @override
    def load(self) -> dict[str, Dataset[Any]]:
        """Read, split and scale."""
        columns, context, labels, split, groups, in_memory = self.read()
        target, self._classes = class_indices(labels, self.given_classes)
        rows = split_rows(target, self.shares, torch.Generator().manual_seed(self.seed), split=split, groups=groups)
        check_presence(columns, rows["train"])
        self._warn_of_new_classes(target, rows)
        numbers = [column for column in columns.values() if column.example.is_floating_point()]
        chosen = self.standardise if isinstance(self.standardise, tuple) else self.modalities * self.standardise
        if isinstance(self.standardise, tuple) and (tokens := set(chosen) - {column.name for column in numbers}):
            raise ValueError(f"`standardise` must name real numbers, got {sorted(tokens)}, which are integers: tokens")
        fit_scales((each for each in numbers if each.name in chosen), rows["train"], self.channels_last, self.norm)
        collate = collate_for(columns, context, self.masked, self.padding_id)
        self._columns, self._context = columns, tuple(context)
        self._shapes = {
            name: (-1, *column.example.shape[1:]) if column.ragged else tuple(column.example.shape)
            for name, column in columns.items()
        }
        if not in_memory:
            self.collate = collate
            return {part: ColumnDataset(columns, context, target, each, collate) for part, each in rows.items()}
        everything = ColumnDataset(columns, context, target, torch.arange(len(target)), collate)
        inputs, target = collate([everything[row] for row in shown(range(len(target)), "Reading")])
        self._shapes = {name: tuple(inputs[name].shape[1:]) for name in columns}
        ragged = {name for name, column in columns.items() if column.ragged}
        self._lengths = {
            key: value.shape[1] for key, value in inputs.items() if value.dim() > 1 and (key in ragged or "." in key)
        }
        return {part: MultimodalDataset(select(inputs, each), target[each]) for part, each in rows.items()}

    def _warn_of_new_classes(self, target: Tensor, rows: Mapping[str, Tensor]) -> None:
        """Say so if a part has classes that nothing is trained on."""
        known = set(target[rows["train"]].tolist())
        for part, each in rows.items():
            if new := sorted(set(target[each].tolist()) - known):
                names = few([self._classes[index] for index in new])
                rank_zero_warn(f"the part {part!r} has classes without a sample in training: {names}")


def _lengthened(value: Tensor, length: int, filling: float) -> Tensor:
    """Sequences ``(B, T, ...)`` with ``filling`` up to a length; longer ones as they are."""
    gap = value.new_full((len(value), max(0, length - value.shape[1]), *value.shape[2:]), filling)
    return torch.cat([value, gap], dim=1)
