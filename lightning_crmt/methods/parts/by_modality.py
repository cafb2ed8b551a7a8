# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Settings that are one number for all modalities, or a number for each."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TypeAlias

from lightning_crmt.checks import check_same_modalities

#: One number for all modalities, or one by name.
ByModality: TypeAlias = float | Mapping[str, float]


def check_by_modality(argument: str, setting: ByModality, below: float = math.inf) -> None:
    """Refuse numbers that are negative, not finite, or not ``below``.

    >>> check_by_modality("probability", {"audio": 0.5, "image": 1.0}, below=1)
    Traceback (most recent call last):
        ...
    ValueError: `probability` must be at least 0 and below 1, got {'audio': 0.5, 'image': 1.0}
    """
    for number in setting.values() if isinstance(setting, Mapping) else [setting]:
        if not 0 <= number < below:
            limit = f" and below {below}" if below < math.inf else ""
            raise ValueError(f"`{argument}` must be at least 0{limit}, got {setting}")


def check_modalities_of(argument: str, setting: ByModality, names: Collection[str]) -> None:
    """Refuse numbers by name that are not of exactly the modalities ``names``."""
    if isinstance(setting, Mapping):
        check_same_modalities(argument, setting, names)


def of_modality(setting: ByModality, name: str) -> float:
    """The number of one modality.

    >>> of_modality(0.5, "audio"), of_modality({"audio": 1.0, "image": 0.0}, "audio")
    (0.5, 1.0)
    """
    return setting[name] if isinstance(setting, Mapping) else setting
