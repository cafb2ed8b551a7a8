# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Gaussian noise on inputs, with a standard deviation per modality: to train with, and to smooth a classifier by."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_crmt.checks import describe
from lightning_crmt.modality import Inputs, continuous_of, present_of, where_present

#: Standard deviations in units of the inputs: one for all modalities of real numbers, or by modality; one left out has
#: none.
Sigma: TypeAlias = float | Mapping[str, float]


def check_sigma(sigma: Sigma, argument: str = "sigma") -> None:
    """Refuse standard deviations that are none; errors call them ``argument``.

    Raises:
        TypeError: if one is no number.
        ValueError: if one is negative or not finite, or all are 0.

    >>> check_sigma({"audio": -0.1})
    Traceback (most recent call last):
        ...
    ValueError: `sigma` must be at least 0 and finite, and above 0 for a modality, got {'audio': -0.1}
    """
    numbers = list(sigma.values()) if isinstance(sigma, Mapping) else [sigma]
    if not all(isinstance(each, int | float) and not isinstance(each, bool) for each in numbers):
        raise TypeError(f"`{argument}` must be a number, or numbers by modality, got {sigma!r}")
    if not all(0 <= each < math.inf for each in numbers) or not any(numbers):
        raise ValueError(f"`{argument}` must be at least 0 and finite, and above 0 for a modality, got {sigma}")


def sigma_of(sigma: Sigma, inputs: Inputs, argument: str = "sigma") -> dict[str, float]:
    """The standard deviation of each modality of ``inputs`` that has noise; errors call them ``argument``.

    Raises:
        ValueError: if ``sigma`` names a modality that ``inputs`` lacks.
        TypeError: if it names one that is not of real numbers, or there is none that is.

    >>> inputs = {"image": torch.ones(1, 3), "text": torch.tensor([[5, 2, 0]])}
    >>> sigma_of(0.5, inputs)
    {'image': 0.5}
    """
    names = continuous_of(inputs)
    if not isinstance(sigma, Mapping):
        if not names:
            raise TypeError(f"`{argument}` needs a modality of real numbers, got {describe(inputs)}")
        return dict.fromkeys(names, float(sigma))
    check_sigma_names(sigma, [name for name in inputs if "." not in name], argument)
    for name, each in sigma.items():
        if each and name not in names:
            raise TypeError(
                f"`{argument}[{name!r}]` must be of real numbers to have noise, got {describe(inputs[name])}"
            )
    return {name: float(each) for name, each in sigma.items() if each}


def check_sigma_names(sigma: Sigma, names: Collection[str], argument: str = "sigma") -> None:
    """Refuse standard deviations of modalities that there are not; errors call them ``argument``.

    Raises:
        ValueError: naming them.
    """
    if isinstance(sigma, Mapping) and (unknown := [name for name in sigma if name not in names]):
        raise ValueError(f"`{argument}` must name modalities among {list(names)}, got {unknown}")


def add_noise(inputs: Inputs, sigma: Sigma, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """``inputs`` with independent Gaussian noise on every entry of the modalities of real numbers.

    Args:
        inputs: by modality, ``(B, ...)``; tokens and context stay as they are, and what fills the gaps of samples that
            lack a modality does too.
        sigma: standard deviations in units of the inputs, a number or by modality.
        generator: to draw from, on the device of the inputs; torch's global one by default.

    Raises:
        ValueError, TypeError: see :func:`sigma_of`.

    >>> noisy = add_noise({"audio": torch.zeros(2000, 1), "image": torch.zeros(1, 3)}, {"audio": 0.5})
    >>> abs(noisy["audio"].std().item() - 0.5) < 0.1, noisy["image"]
    (True, tensor([[0., 0., 0.]]))
    """
    noisy, present = dict(inputs), present_of(inputs)
    for name, std in sigma_of(sigma, inputs).items():
        value = inputs[name]
        drawn = torch.randn(value.shape, generator=generator, dtype=value.dtype, device=value.device)
        noisy[name] = torch.add(value, where_present(drawn, present.get(name)), alpha=std)
    return noisy
