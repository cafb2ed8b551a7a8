# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What every head is: features of all modalities in, logits and uni-modal scores out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from lightning_crmt.checks import check_modality_names
from lightning_crmt.modality import FusionOutput, Inputs


class FusionHead(nn.Module, ABC):
    """Fuses the features of all modalities into logits, and says what each modality alone would answer.

    Args:
        in_features: size :math:`d_m` of the features of each modality, by name.
        num_classes: number of classes :math:`K`, at least 2.
    """

    def __init__(self, in_features: Mapping[str, int], num_classes: int) -> None:
        super().__init__()
        check_modality_names("in_features", in_features)
        if num_classes < 2:
            raise ValueError(f"`num_classes` must be at least 2, got {num_classes}")
        for name, size in in_features.items():
            if size < 1:
                raise ValueError(f"`in_features[{name!r}]` must be at least 1, got {size}")
        self.in_features = dict(in_features)
        self.num_classes = num_classes

    @abstractmethod
    def forward(self, features: Inputs) -> FusionOutput:
        """Logits and uni-modal scores, with the features they came from."""

    def unimodal_logits(self, scores: Inputs) -> dict[str, Tensor]:
        """What each modality alone would answer on the scale of the logits, each ``(B, K)``; by default its scores."""
        return dict(scores)

    def integration_parameters(self) -> list[nn.Parameter]:
        """The parameters that weigh the modalities and nothing else: what step 2 trains. Empty if there are none."""
        return []

    def extra_repr(self) -> str:
        """Sizes and number of classes."""
        return f"in_features={self.in_features}, num_classes={self.num_classes}"
