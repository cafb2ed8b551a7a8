# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""A table of files of one's own as a data module."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_crmt.checks import check_modality_names
from lightning_crmt.data.own import OwnData, Read
from lightning_crmt.data.read.columns import Column
from lightning_crmt.data.read.files import FileReader, read_by_suffix
from lightning_crmt.data.read.labels import few, from_text
from lightning_crmt.data.read.values import as_value


class TableData(OwnData):
    """A table whose rows are samples and whose cells name their files, as training, validation and test part.

    The table is a CSV file with a line of names on top (a ``.tsv`` has tabulators), or a list of dicts. The first part
    of this::

        photo,voice,species,camera
        a/01.jpg,a/01.wav,lynx,north
        a/02.jpg,,fox,south

    is ``TableData("table.csv", modalities={"image": "photo", "audio": "voice"}, target="species", groups="camera")``. A
    sample whose cell is empty lacks the modality; ``ArrayData`` says what becomes of it, and how all is scaled and
    padded.

    Files are read when a batch needs them, by workers if there are any; those of the training part once before, for
    mean and deviation, which ``standardise=False`` spares. What reads them, their suffix says: ``.npy``, ``.npz`` and
    ``.pt`` arrays, pictures, ``(3, H, W)`` from 0 to 1, and ``.wav``, ``(T,)`` from -1 to 1. ``readers`` can say it
    otherwise: pictures of different sizes need ``ImageFile(size=64)``, and sound makes a picture by
    ``SpectrogramFile(frames=100)``.

    Args:
        table: path of the file, or rows.
        modalities: the column that names the files of each modality; a list of names if both are called alike. Several
            columns hold numbers instead: ``{"vitals": ["age", "pulse"]}`` is a vector of two.
        target: the column of the class: names, or numbers from 0 on.
        split: the column of the part, ``train``, ``val`` or ``test``; without, parts are drawn by ``shares``.
        groups: the column of the group, such as a person: no group is in two parts.
        root: folder of the files, by default that of the table, or the current one.
        readers: by modality, what makes a tensor, or a list of token ids, of the path of a file.
        from_text: by modality, what makes a tensor or a list of token ids of the text in the cell, such as a tokenizer.
        **settings: ``classes``, ``shares``, ``standardise``, ``channels_last``, ``norm``, ``ragged``, which must name
            modalities whose samples differ in length, ``masked``, ``padding_id``, ``batch_size``, ``num_workers`` and
            ``seed``, see ``ArrayData``.

    Raises:
        ValueError: if a setting is out of range; on ``setup``, naming the row, if a column is missing, a class is
            unknown, a sample has no modality, or a group is in two parts; naming row and path, if a file cannot be
            read, or shapes differ.
        FileNotFoundError: on ``setup``, if the table is missing, or a file of it: the first, with its row.

    >>> import numpy as np, tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for i in range(20):
    ...     np.save(folder / f"{i}.npy", np.random.rand(3, 8))
    >>> rows = [{"sensor": f"{i}.npy", "state": ["idle", "walking"][i % 2]} for i in range(20)]
    >>> data = TableData(rows, modalities=["sensor"], target="state", root=folder)
    >>> data.classes, data.shapes, data.parts["train"][:4][0]["sensor"].shape
    (['idle', 'walking'], {'sensor': (3, 8)}, torch.Size([4, 3, 8]))
    """

    def __init__(
        self,
        table: str | Path | Sequence[Mapping[str, Any]],
        *,
        modalities: Sequence[str] | Mapping[str, str | Sequence[str]],
        target: str = "label",
        split: str | None = None,
        groups: str | None = None,
        root: str | Path | None = None,
        readers: Mapping[str, FileReader | Callable[[Path], Any]] | None = None,
        from_text: Mapping[str, Callable[[str], Any]] | None = None,
        **settings: Any,
    ) -> None:
        if isinstance(modalities, str):
            raise TypeError(f"`modalities` must be names or a mapping, got the text {modalities!r}: [{modalities!r}]")
        self.sources = dict(modalities) if isinstance(modalities, Mapping) else {name: name for name in modalities}
        check_modality_names("modalities", self.sources)
        super().__init__(list(self.sources), **settings)
        self.table = Path(table) if isinstance(table, str | Path) else list(table)
        self.root = Path(root) if root is not None else self.table.parent if isinstance(self.table, Path) else Path()
        self.target, self.split, self.groups = target, split, groups
        self.readers, self.from_text = dict(readers or {}), dict(from_text or {})
        for argument, given in (("readers", self.readers), ("from_text", self.from_text)):
            self.among(argument, list(given))
        if twice := set(self.readers) & set(self.from_text):
            raise ValueError(f"`readers` and `from_text` must not both have {sorted(twice)}")

    @override
    def read(self) -> Read:
        """Read the table, and look for the files."""
        rows, where = self._rows(self.table)
        columns = {name: self._column(name, rows, where) for name in self.modalities}
        target, split, groups = (self._cells(name, rows, where) for name in (self.target, self.split, self.groups))
        if all(isinstance(cell, str) for cell in target or ()):
            target = from_text(target or [])
        return Read(columns, {}, target or [], split, groups, in_memory=False)

    def prepared(self, table: str | Path | Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """New samples, given as the table was, as a batch that the model takes: read, scaled, padded, with presence.

        Args:
            table: rows, or the path of a file of them, with the columns of the modalities alone; a column may be
                missing where samples lack the modality. Files are looked for where those of the data are.

        Returns:
            Inputs by modality, ``(B, ...)``, with the entries of batches of the data. ``"audio.present"`` is among them
            if a sample of the data or of these lacks audio.

        Raises:
            ValueError: naming the row, if a sample has no modality, or is like no sample of the data.
            FileNotFoundError: if the table is missing, or a file of it.
        """
        self.setup()
        given = Path(table) if isinstance(table, str | Path) else list(table)
        rows, where = self._rows(given)
        if not rows:
            raise ValueError("`table` must hold at least one row, got none")
        sources = [
            name for source in self.sources.values() for name in ([source] if isinstance(source, str) else source)
        ]
        if not any(name in row for row in rows for name in sources):
            raise ValueError(f"`table` must have some of the columns {sources}, got {list(rows[0])}")
        rows = [{**dict.fromkeys(sources), **row} for row in rows]
        columns = {}
        for name, column in self._columns.items():
            values, here = self._values(name, rows, where)
            present = torch.tensor([value is not None for value in values])
            columns[name] = column.of_others(values, present, column.optional or not bool(present.all()), here)
        return self.batch_of(columns, {})

    def _rows(self, table: Path | list[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], Callable[[int], str]]:
        """The rows, and what an error calls each."""
        if not isinstance(table, Path):
            return table, partial(_row_of, "row {} of `table`", range(len(table)))
        if not table.is_file():
            raise FileNotFoundError(f"`table` must be the path of a file, there is no {table}")
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter="\t" if table.suffix == ".tsv" else ",", restkey="")
            rows, lines = [], []
            for row in reader:
                if "" in row or None in row.values():
                    cells = [cell for cell in row.values() if cell is not None]
                    raise ValueError(
                        f"line {reader.line_num} of {table} must have {len(reader.fieldnames or [])} cells, "
                        f"as the first line has, got {cells}"
                    )
                rows.append({key: cell.strip() for key, cell in row.items()})
                lines.append(reader.line_num)
        return list(rows), partial(_row_of, f"line {{}} of {table}", lines)

    def _cells(
        self, name: str | None, rows: Sequence[Mapping[str, Any]], where: Callable[[int], str], *, empty: bool = False
    ) -> list[Any] | None:
        """Cells of a column; None where a cell is empty, which only some may be."""
        if name is None:
            return None
        if not rows:
            raise ValueError("`table` must hold at least one row, got none")
        cells: list[Any] = []
        for number, row in enumerate(rows):
            cell = row.get(name)
            # What pandas makes of an empty cell is NaN.
            cell = None if cell is None or cell == "" or cell != cell else cell
            if cell is None and (not empty or name not in rows[0]):
                reason = "is empty in" if name in row else f"is missing among {few(list(row))} in"
                raise ValueError(f"the column {name!r} {reason} {where(number)}")
            cells.append(cell)
        return cells

    def _column(self, name: str, rows: Sequence[Mapping[str, Any]], where: Callable[[int], str]) -> Column:
        values, here = self._values(name, rows, where)
        present = torch.tensor([value is not None for value in values])
        optional = not bool(present.all())
        if not isinstance(self.sources[name], str):
            return Column(name, values, present, optional, where=here)
        read = self.from_text.get(name) or self.readers.get(name, read_by_suffix)
        return Column(name, values, present, optional, partial(_read_value, read), here, name in self.ragged)

    def _values(
        self, name: str, rows: Sequence[Mapping[str, Any]], where: Callable[[int], str]
    ) -> tuple[Sequence[Any], Callable[[int], str]]:
        """What is read of each sample, None where it lacks the modality, and what an error calls it."""
        source = self.sources[name]
        if not isinstance(source, str):
            cells = {key: self._cells(key, rows, where, empty=True) or [] for key in source}
            return _numbers(name, cells, where), where
        texts = self._cells(source, rows, where, empty=True) or []
        if name in self.from_text:
            return texts, where
        paths = [None if cell is None else self.root / str(cell) for cell in texts]
        missing = [row for row, path in enumerate(paths) if path is not None and not path.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{name!r} lacks {len(missing)} of {len(paths) - paths.count(None)} files; the first is "
                f"{paths[missing[0]]} in {where(missing[0])}"
            )
        return paths, partial(_file_of, where, paths)


def _read_value(reader: Callable[[Any], Any], cell: Any) -> Tensor:
    return as_value(reader(cell))


def _row_of(form: str, numbers: Sequence[int], row: int) -> str:
    return form.format(numbers[row])


def _file_of(where: Callable[[int], str], paths: Sequence[Path | None], row: int) -> str:
    return f"{where(row)} ({paths[row]})"


def _numbers(name: str, cells: Mapping[str, Sequence[Any]], where: Callable[[int], str]) -> list[list[float] | None]:
    """Columns of numbers as vectors; a sample lacks the modality, None, if all of its cells are empty."""
    values: list[list[float] | None] = []
    for row, held in enumerate(zip(*cells.values(), strict=True)):
        if all(cell is None for cell in held):
            values.append(None)
            continue
        try:
            values.append([float(cell) for cell in held])
        except (TypeError, ValueError) as error:
            shown = dict(zip(cells, held, strict=True))
            raise ValueError(f"{name!r} of {where(row)} must be numbers, all or none of them, got {shown}") from error
    return values
