# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Train with modalities missing at random."""

from __future__ import annotations

import torch
from typing_extensions import override

from lightning_crmt.attacks import like
from lightning_crmt.deprecation import renamed_argument
from lightning_crmt.methods.parts.by_modality import (
    ByModality,
    check_by_modality,
    check_modalities_of,
    of_modality,
)
from lightning_crmt.mixin import CRMTMixin
from lightning_crmt.modality import PRESENT, Inputs, modalities_of, present_of
from lightning_crmt.targets import Target
from lightning_crmt.training import Method


class ModalityDropout(Method):
    r"""Modality dropout (after Neverova et al., ModDrop, TPAMI 2016): modalities of samples are absent at random.

    Each is absent with probability p, independently, given that at least one is left of those that the sample has.

    Args:
        probability: p, a number or one by modality, at least 0 and below 1.
        fill: None to train as on samples that lack the modality: its scores are dropped from fusion and losses. Or
            what an absent input becomes, a number or one by modality, as ``MissingModalities`` fills with 0: then
            encoders and head learn what that means.
        value: the old name of ``fill``.

    Raises:
        ValueError: if a probability is out of range; before training, if a setting by name is not of the modalities of
            the module.

    >>> method = ModalityDropout(probability={"audio": 0.5, "image": 0.1})
    """

    source = "recalled"

    def __init__(
        self, probability: ByModality = 0.3, *, fill: ByModality | None = None, value: ByModality | None = None
    ) -> None:
        check_by_modality("probability", probability, below=1)
        self.probability = probability
        self.fill = renamed_argument("value", value, "fill", fill)

    @override
    def begin(self, module: CRMTMixin) -> None:
        check_modalities_of("probability", self.probability, module.encoders.keys())
        if self.fill is not None:
            check_modalities_of("fill", self.fill, module.encoders.keys())

    @override
    def transform(self, module: CRMTMixin, inputs: Inputs, target: Target) -> tuple[Inputs, Target]:
        names, present = list(modalities_of(inputs)), present_of(inputs)
        first = inputs[names[0]]
        chance = torch.tensor([of_modality(self.probability, name) for name in names], device=first.device)
        everywhere = torch.ones(len(first), dtype=torch.bool, device=first.device)
        here = torch.stack([present.get(name, everywhere) for name in names], dim=1)
        absent = torch.rand(len(first), len(names), device=first.device) < chance
        # Drawn again until one is left: that is the distribution given that one is.
        while bool((lost := (absent | ~here).all(dim=1) & here.any(dim=1)).any()):
            absent[lost] = torch.rand(int(lost.sum()), len(names), device=first.device) < chance
        changed = dict(inputs)
        for name, gone, has in zip(names, absent.unbind(dim=1), here.unbind(dim=1), strict=True):
            if self.fill is None:
                changed[f"{name}.{PRESENT}"] = has & ~gone
            else:
                fill = torch.full_like(inputs[name], of_modality(self.fill, name))
                changed[name] = torch.where(like(gone, fill), fill, inputs[name])
        return changed, target
