# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Train with modalities missing at random."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from typing_extensions import override

from lightning_crmt.attacks import like
from lightning_crmt.mixin import CRMTMixin
from lightning_crmt.modality import Inputs
from lightning_crmt.targets import Target
from lightning_crmt.training import Method


class ModalityDropout(Method):
    r"""Modality dropout (after Neverova et al., ModDrop, TPAMI 2016): modalities of samples are blanked at random.

    Each is absent with probability p, independently, given that at least one is left.

    Args:
        probability: p, a number or one by modality, at least 0 and below 1.
        value: what stands for an absent input, a number or one by modality; 0 is what ``MissingModalities`` puts there.

    >>> method = ModalityDropout(probability={"audio": 0.5, "image": 0.1})
    """

    def __init__(
        self, probability: float | Mapping[str, float] = 0.3, value: float | Mapping[str, float] = 0.0
    ) -> None:
        for each in probability.values() if isinstance(probability, Mapping) else [probability]:
            if not 0 <= each < 1:
                raise ValueError(f"`probability` must be at least 0 and below 1, got {probability}")
        self.probability = probability
        self.value = value

    @override
    def transform(self, module: CRMTMixin, inputs: Inputs, target: Target) -> tuple[Inputs, Target]:
        names = list(inputs)
        first = inputs[names[0]]
        chance = torch.tensor([_of(self.probability, name, "probability") for name in names], device=first.device)
        absent = torch.rand(len(first), len(names), device=first.device) < chance
        # Drawn again until one is left: that is the distribution given that one is.
        while bool((lost := absent.all(dim=1)).any()):
            absent[lost] = torch.rand(int(lost.sum()), len(names), device=first.device) < chance
        blanked = {}
        for column, name in enumerate(names):
            value = inputs[name]
            blank = torch.full_like(value, _of(self.value, name, "value"))
            blanked[name] = torch.where(like(absent[:, column], value), blank, value)
        return blanked, target


def _of(setting: float | Mapping[str, float], name: str, argument: str) -> float:
    if not isinstance(setting, Mapping):
        return setting
    if name not in setting:
        raise ValueError(f"`{argument}` must be a number or hold every modality, got {dict(setting)} without {name!r}")
    return setting[name]
