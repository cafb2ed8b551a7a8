# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""How far a perturbation may go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_crmt.checks import check_modality_names, describe

#: One radius for all samples, or one per sample ``(B,)``.
Radius: TypeAlias = float | Tensor


def check_radius(radius: Radius | Mapping[str, Radius]) -> None:
    """Refuse what is no radius, by modality or for all of them.

    >>> check_radius({"audio": -1.0})
    Traceback (most recent call last):
        ...
    ValueError: `radius` must be finite and at least 0, a number or one per sample, got {'audio': -1.0}
    """
    if isinstance(radius, Mapping):
        check_modality_names("radius", radius)
    for each in radius.values() if isinstance(radius, Mapping) else [radius]:
        if isinstance(each, bool) or not isinstance(each, int | float | Tensor):
            raise TypeError(
                f"`radius` must be a number, a tensor with one per sample, or either by modality, got {describe(each)}"
            )
        given = torch.as_tensor(each)
        if given.dim() > 1 or not bool(((given >= 0) & (given < torch.inf)).all()):
            raise ValueError(f"`radius` must be finite and at least 0, a number or one per sample, got {radius}")
