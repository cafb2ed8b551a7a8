# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Voices held out, with training images and spectrograms that are shifted at random."""

from typing import Any

import torch
from people_held_out import VoicesHeldOut
from torch import Tensor
from torch.utils.data import Dataset

from lightning_crmt.data.module import MultimodalDataset

#: The largest shifts along both axes, in pixels, and in frames and bands.
MOST = {"image": (1, 1), "audio": (6, 2)}


class ShiftedVoicesHeldOut(VoicesHeldOut):
    """Each time that a training sample is taken, it is shifted anew; what leaves at one border is back at the other.

    Args:
        **settings: as ``VoicesHeldOut`` takes them.
    """

    def load(self) -> dict[str, Dataset[Any]]:
        parts = super().load()
        return {**parts, "train": _Shifted(parts["train"].inputs, parts["train"].target)}


class _Shifted(MultimodalDataset):
    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], Tensor]:
        inputs, target = super().__getitem__(index)
        return {name: _shifted(value, MOST[name]) for name, value in inputs.items()}, target


def _shifted(value: Tensor, most: tuple[int, int]) -> Tensor:
    by = [int(torch.randint(-m, m + 1, ())) for m in most]
    return torch.roll(value, by, dims=(1, 2))
