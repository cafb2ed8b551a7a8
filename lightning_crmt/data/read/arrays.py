# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Arrays of all samples: opened from files without being read, laid end to end, and which samples they lack."""

from __future__ import annotations

import pickle
import zipfile
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from lightning_crmt.checks import describe
from lightning_crmt.data.read.values import as_tensor


class MappedArray(Sequence[Any]):
    """An ``.npy`` file that is read where it is looked at; workers that get a copy open the file themselves.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.array: np.ndarray[Any, Any] = np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Any]: ...
    @override
    def __getitem__(self, index: int | slice) -> Any:
        return self.array[index]

    def __reduce__(self) -> Any:
        return MappedArray, (self.path,)


class EndToEnd(Sequence[Any]):
    """Several sequences as one, without copies.

    >>> both = EndToEnd([[1, 2], [3]])
    >>> len(both), both[2], list(both)
    (3, 3, [1, 2, 3])
    """

    def __init__(self, pieces: Sequence[Sequence[Any]]) -> None:
        self.pieces = pieces
        self.ends = list(accumulate(map(len, pieces)))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Any]: ...
    @override
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        piece = bisect_right(self.ends, index)
        return self.pieces[piece][index - (self.ends[piece - 1] if piece else 0)]


def opened(given: Any, argument: str, key: str) -> Any:
    """An argument that holds something of every sample, as a sequence of these.

    Args:
        given: a tensor, an array, a list, a column of a table that has ``to_numpy``, or the path of a file of one:
            ``.npy``, which is mapped into memory and read when it is looked at, ``.npz`` or ``.pt``.
        argument: what an error calls it.
        key: the array's name in an ``.npz`` that holds several.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is of another kind, or cannot be read.
        TypeError: if it is none of these.

    >>> opened([1, 2], "target", "target")
    [1, 2]
    """
    if isinstance(given, str | Path):
        return _opened_file(Path(given), argument, key)
    if hasattr(given, "to_numpy"):
        given = given.to_numpy()
    if isinstance(given, Tensor | np.ndarray):
        if given.ndim == 0:
            raise ValueError(f"{argument} must have a dimension of samples, got {describe_array(given)}")
        return given.tolist() if isinstance(given, np.ndarray) and given.dtype == object else given
    if hasattr(given, "__len__") and hasattr(given, "__getitem__") and not isinstance(given, Mapping):
        return given
    raise TypeError(f"{argument} must be a tensor, an array, a list or the path of a file, got {describe(given)}")


def _opened_file(path: Path, argument: str, key: str) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{argument} must be the path of a file, there is no {path}")
    try:
        if path.suffix == ".npy":
            return MappedArray(path)
        if path.suffix == ".npz":
            with np.load(path) as archive:
                names = list(archive)
                if len(names) > 1 and key not in names:
                    raise ValueError(f"it holds several arrays, none of them is called {key!r}: {names}")
                return archive[key if key in names else names[0]]
        if path.suffix in (".pt", ".pth"):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(loaded, Tensor | list):
                raise ValueError(f"it must hold a tensor or a list, got {describe(loaded)}")
            return loaded
    except (ValueError, OSError, EOFError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        hint = (
            "; save lists of different lengths by torch.save(..., 'name.pt')" if "object" in str(error).lower() else ""
        )
        raise ValueError(f"{argument}: {path} cannot be read: {str(error).rstrip('.')}{hint}") from error
    raise ValueError(f"{argument} must be the path of an .npy, .npz or .pt file, got {path}")


def dense(values: Sequence[Any]) -> bool:
    """Whether all samples have one shape by construction, as rows of an array do."""
    if isinstance(values, EndToEnd):
        return all(dense(piece) for piece in values.pieces)
    return isinstance(values, Tensor | np.ndarray | MappedArray)


def mapped(values: Sequence[Any]) -> bool:
    """Whether samples stay in a file until they are looked at."""
    if isinstance(values, EndToEnd):
        return any(mapped(piece) for piece in values.pieces)
    return isinstance(values, MappedArray | np.memmap)


def describe_array(value: Any) -> str:
    """An array in a few words, for messages.

    >>> describe_array(np.zeros((2, 3)))
    'an array of float64 of shape (2, 3)'
    """
    return f"an array of {value.dtype} of shape {value.shape}" if isinstance(value, np.ndarray) else describe(value)


def found_present(values: Sequence[Any], name: str, nan_is_absent: bool) -> Tensor:
    """Which samples are there, ``(N,)`` bool: neither None nor, if that means absence, NaN everywhere.

    Raises:
        ValueError: if NaN means absence, and a sample that begins with NaN is not all of it.

    >>> found_present([[1.0], None, [float("nan")]], "audio", nan_is_absent=True)
    tensor([ True, False, False])
    """
    here = torch.ones(len(values), dtype=torch.bool)
    if not dense(values):
        here = torch.tensor([value is not None for value in values])
    if nan_is_absent:
        for row in here.nonzero().flatten().tolist():
            value = values[row]
            while np.ndim(value) and len(value) > 0:  # of large arrays in files, only the beginnings of samples
                value = value[0]
            if np.ndim(value) == 0 and value != value:
                whole = as_tensor(values[row])
                if not whole.isnan().all():
                    raise ValueError(
                        f"{name!r} of sample {row} must be NaN everywhere, which means that it is absent, or nowhere, "
                        f"got {int(whole.isnan().sum())} NaN in {whole.numel()}"
                    )
                here[row] = False
    return here


def lengths_differ(values: Sequence[Any], present: Tensor) -> bool:
    """Whether samples are sequences of different lengths."""
    if dense(values):
        return False
    shapes = (values[row] for row in present.nonzero().flatten().tolist())
    return len({len(value) for value in shapes if hasattr(value, "__len__") and not _scalar(value)}) > 1


def _scalar(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, Tensor | np.ndarray) and value.ndim == 0)
