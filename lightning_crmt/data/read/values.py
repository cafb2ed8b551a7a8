# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What one sample has of a modality, in whatever form it comes, as a tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_crmt.checks import describe
from lightning_crmt.modality import at_least_single


def as_value(value: Any) -> Tensor:
    """One sample of a modality as a tensor: real numbers in single precision, double if they were, or tokens.

    Integers are tokens, int64, and never scaled. Pixels are the exception: uint8 with height and width, and pictures of
    Pillow, become real numbers from 0 to 1; pictures of Pillow also have their channels first.

    Args:
        value: a tensor, an array, a number, a list of numbers, or a picture.

    Returns:
        With at least one dimension.

    Raises:
        TypeError: if it holds neither real numbers nor integers.
        ValueError: if it is a list of lists of different lengths, or holds nothing.

    >>> as_value([3, 1, 2]), as_value(np.float64(0.5)), as_value(np.full((1, 2), 255, np.uint8))
    (tensor([3, 1, 2]), tensor([0.5000], dtype=torch.float64), tensor([[1., 1.]]))
    """
    picture = hasattr(value, "getbands") and hasattr(value, "convert")
    if picture and value.mode not in ("L", "RGB"):
        value = value.convert("RGB")
    tensor = as_tensor(value)
    if not tensor.numel():
        raise ValueError(f"it is empty, {describe(tensor)}: give None where a sample lacks the modality")
    if tensor.dtype is torch.uint8 and tensor.dim() >= 2:
        pixels = tensor.float() / 255
        if picture:
            return pixels.movedim(2, 0) if pixels.dim() == 3 else pixels[None]
        return pixels
    if tensor.is_floating_point():
        tensor = at_least_single(tensor)
    elif tensor.dtype is torch.bool or tensor.is_complex():
        raise TypeError(f"values must be real numbers, or integers for tokens, got {describe(tensor)}")
    else:
        tensor = tensor.long()
    return tensor if tensor.dim() else tensor[None]


def in_single(value: Tensor) -> Tensor:
    """Real numbers in single precision, which models compute in; tokens as they are.

    >>> in_single(torch.ones(1).double()), in_single(torch.tensor([7]))
    (tensor([1.]), tensor([7]))
    """
    return value.float() if value.is_floating_point() else value


def as_tensor(value: Any) -> Tensor:
    """Numbers in any form as a tensor of the same type, which shares memory with a tensor alone.

    Raises:
        TypeError: if they are no numbers.
        ValueError: if it is a list of lists of different lengths.

    >>> as_tensor([True, False])
    tensor([ True, False])
    """
    if isinstance(value, Tensor):
        return value.detach()
    array = np.asarray(value)
    if array.dtype.kind not in "biufc":
        kind = "text" if array.dtype.kind in "US" else f"{array.dtype} of {type(value).__name__}"
        hint = "; turn text into token ids first" if kind == "text" else ""
        raise TypeError(f"values must be numbers, got {kind}{hint}")
    # A copy: what it is read from may be a file that is mapped into memory for reading only. Torch has but one byte
    # order, and computes with no unsigned integers but uint8.
    wide = array.dtype.kind == "u" and array.dtype.itemsize > 1
    native = np.dtype(np.int64) if wide else array.dtype.newbyteorder("=")
    return torch.from_numpy(np.array(array, dtype=native, order="C"))
