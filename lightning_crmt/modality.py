# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Inputs by modality name, the mapping that every function takes, and the output of a multi-modal classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from lightning_crmt.checks import describe

#: One tensor per modality, by name, the batch first: ``{"audio": (B, ...), "image": (B, ...)}``.
Inputs: TypeAlias = Mapping[str, Tensor]


class FusionOutput(NamedTuple):
    """The output of a multi-modal classifier.

    Attributes:
        logits: joint logits :math:`h`, shape ``(B, K)``.
        scores: uni-modal scores :math:`s^m` by modality, each ``(B, K)``.
        features: what the head was given, by modality, ``(B, d_m)``; empty where the model does not say.

    >>> output = FusionOutput(torch.zeros(2, 10), {"audio": torch.zeros(2, 10)})
    >>> output.logits.shape, list(output.scores), output.features
    (torch.Size([2, 10]), ['audio'], {})
    """

    logits: Tensor
    scores: dict[str, Tensor]
    features: dict[str, Tensor] = {}  # noqa: RUF012


def select(inputs: Inputs, rows: Tensor) -> dict[str, Tensor]:
    """The samples ``rows`` of every modality, indices ``(n,)`` on any device.

    >>> select({"audio": torch.arange(6).reshape(3, 2)}, torch.tensor([2]))
    {'audio': tensor([[4, 5]])}
    """
    return {name: value[rows.to(value.device)] for name, value in inputs.items()}


def logits_of(output: Any) -> Tensor:
    """The logits in a model's output: a tensor, a ``FusionOutput``, a tuple that starts with them, or a dict with them.

    Args:
        output: what the model returned; a dict holds them under ``"logits"``.

    Raises:
        TypeError: if there is no ``(B, K)`` tensor in one of these places.

    >>> logits_of({"logits": torch.zeros(2, 3)}).shape
    torch.Size([2, 3])
    """
    logits = output
    if isinstance(logits, Mapping):
        logits = logits.get("logits")
    elif isinstance(logits, tuple | list) and logits:
        logits = logits[0]
    if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[1] < 2:
        one = isinstance(logits, Tensor) and logits.shape[-1:] == (1,)
        raise TypeError(
            "a model must return logits of shape (B, K), K >= 2, a tuple that begins with them, or a dict with the key "
            f"'logits'; {'for a single logit z, return stack([0, z], dim=1); ' * one}got {describe(output)}"
        )
    return logits


def as_vectors(features: Inputs) -> dict[str, Tensor]:
    """One vector ``(B, d_m)`` per sample: of a sequence ``(B, T, d_m)`` its mean.

    >>> as_vectors({"audio": torch.ones(2, 3), "text": torch.ones(2, 5, 4)})["text"].shape
    torch.Size([2, 4])
    """
    return {name: z if z.dim() == 2 else z.flatten(1, -2).mean(dim=1) for name, z in features.items()}


def at_least_single(value: Tensor) -> Tensor:
    """``value``, of any shape, in double precision if it is so already, else in single: half is too coarse to subtract.

    >>> at_least_single(torch.ones(2, dtype=torch.bfloat16)).dtype, at_least_single(torch.ones(2).double()).dtype
    (torch.float32, torch.float64)
    """
    return value if value.dtype is torch.float64 else value.float()


#: Types of devices that have no double precision.
_SINGLE_ONLY = {"mps"}


def widest(device: torch.device) -> torch.dtype:
    """Double precision, or single on a device that has no double: Apple's MPS.

    >>> widest(torch.device("cpu")), widest(torch.device("mps"))
    (torch.float64, torch.float32)
    """
    return torch.float32 if device.type in _SINGLE_ONLY else torch.float64


def widened(value: Tensor, device: torch.device | None = None) -> Tensor:
    """``value``, of any shape, in the widest precision of its device, or of another one that it is sent to.

    >>> widened(torch.ones(2)).dtype
    torch.float64
    """
    if device is None or device == value.device:
        return value.to(widest(value.device))
    # One after the other: no device may ever get a precision that it does not have.
    return in_double(value).to(widest(device)).to(device)


def in_double(value: Tensor) -> Tensor:
    """``value``, of any shape, in double precision: on its device, or on the CPU if that has none.

    >>> in_double(torch.ones(2)).dtype
    torch.float64
    """
    return (value.cpu() if widest(value.device) is not torch.float64 else value).double()
