# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Classes by number, from labels of any kind."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: A class as data name it.
Label = int | str


def class_indices(
    labels: Any, classes: Sequence[Label] | None = None, argument: str = "target"
) -> tuple[Tensor, list[Label]]:
    """The class of each sample as an index, and the classes in the order of these.

    Args:
        labels: integers or names, ``(N,)``.
        classes: all labels that may be there, in the order of their indices. By default names are sorted, and integers
            must be 0 to K - 1, each there.
        argument: what an error calls ``labels``.

    Raises:
        TypeError: if they are neither integers nor names.
        ValueError: if the shape is not ``(N,)``, a label is not among ``classes``, there is one class alone, or
            integers have gaps and ``classes`` does not say which there are.

    >>> class_indices(["dog", "cat", "dog"])
    (tensor([1, 0, 1]), ['cat', 'dog'])
    >>> class_indices([3, 1, 1], classes=[1, 2, 3])
    (tensor([2, 0, 0]), [1, 2, 3])
    """
    given = labels.tolist() if isinstance(labels, torch.Tensor | np.ndarray) else list(labels)
    values = [_label(value, row, argument) for row, value in enumerate(given)]
    if len({type(value) for value in values}) > 1:
        raise TypeError(f"`{argument}` must be all integers or all names, got both: {values[:5]}")
    if not values:
        raise ValueError(f"`{argument}` must hold at least one class, got none")
    found = sorted(set(values))
    if classes is None:
        if isinstance(found[0], int) and found != list(range(len(found))):
            raise ValueError(
                f"`{argument}` must hold every class from 0 on, got {few(found)}: name all of them in `classes`, in "
                "the order of their indices"
            )
        classes = found
    places = {label: index for index, label in enumerate(classes)}
    if len(places) != len(classes):
        raise ValueError(f"`classes` must be different labels, got {list(classes)}")
    for row, value in enumerate(values):
        if value not in places:
            raise ValueError(f"`{argument}` must hold labels among the classes {few(classes)}, got {value!r} at {row}")
    if len(places) < 2:
        raise ValueError(f"`{argument}` must hold two classes or more, got {list(classes)} alone")
    return torch.tensor([places[value] for value in values]), list(classes)


def few(values: Sequence[Any]) -> str:
    """Some of many values, for messages.

    >>> few(range(100))
    '[0, 1, 2, 3, 4, ..., 99]'
    """
    shown = [repr(value) for value in values]
    return f"[{', '.join(shown if len(shown) < 12 else [*shown[:5], '...', shown[-1]])}]"


def from_text(cells: Sequence[str]) -> list[Label]:
    """Labels of a file of text: integers if all of them are.

    >>> from_text(["10", "9"]), from_text(["10", "nine"])
    ([10, 9], ['10', 'nine'])
    """
    if all(re.fullmatch(r"[+-]?\d+", cell) for cell in cells):
        return [int(cell) for cell in cells]
    return list(cells)


def _label(value: Any, row: int, argument: str) -> Label:
    if isinstance(value, torch.Tensor | np.ndarray | np.generic) and value.ndim == 0:
        value = value.item()
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, list | tuple | torch.Tensor | np.ndarray):
        raise ValueError(f"`{argument}` must have shape (N,), one class per sample, got {value!r} at {row}")
    hint = "; make them integers, for instance by .astype(int)" if isinstance(value, float) else ""
    raise TypeError(f"`{argument}` must hold integers or names, got {value!r} at {row}{hint}")
