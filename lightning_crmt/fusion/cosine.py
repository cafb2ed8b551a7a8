# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Cosine logits: no modality wins by the norm of its features or its rows."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_crmt.checks import check_positive
from lightning_crmt.fusion.head import FusionHead
from lightning_crmt.modality import FusionOutput, Inputs, where_present


class CosineFusion(FusionHead):
    r"""Multi-modal cosine loss (MMCosine of Xu et al., ICASSP 2023, arXiv 2303.05338), as a head under cross-entropy.

    .. math:: h_k = s \sum_m \cos(W_k^m, z^m)

    with rows :math:`W_k^m` and features :math:`z^m`, ``(B, d_m)``, both normalised, and no bias. The score of a
    modality is its part, s times the cosine, ``(B, K)``; scores add up to the logits. Features of norm 0, such as those
    of a modality that is missing, add 0. Computed in the precision of the head's own parameters whatever autocast says.
    The paper's optional contrastive term is left out.

    A cosine has no bounded slope near 0, so bounds of the encoders certify nothing here, and step 2 has no weights to
    train: the head serves for comparison.

    Args:
        in_features: size :math:`d_m` of the features of each modality, by name.
        num_classes: number of classes K, at least 2.
        scale: s, above 0; the paper has 10 to 15.

    Raises:
        ValueError: if the scale is not above 0; in ``forward``, if features have another shape than ``(B, d_m)``.

    >>> head = CosineFusion({"audio": 16, "image": 32}, num_classes=10)
    >>> output = head({"audio": torch.randn(4, 16), "image": torch.randn(4, 32)})
    >>> output.logits.shape, bool(output.logits.abs().max() <= 2 * head.scale)
    (torch.Size([4, 10]), True)
    """

    def __init__(self, in_features: Mapping[str, int], num_classes: int, scale: float = 10.0) -> None:
        super().__init__(in_features, num_classes)
        check_positive(scale=scale)
        self.scale = scale
        self.rows = nn.ParameterDict(
            {name: nn.Parameter(nn.Linear(size, num_classes).weight.detach()) for name, size in in_features.items()}
        )

    @override
    def forward(self, features: Inputs, present: Inputs | None = None) -> FusionOutput:
        features, present = self.checked(features), dict(present or {})
        scores = {}
        for name, rows in self.rows.items():
            with torch.autocast(rows.device.type, enabled=False):
                cosines = _unit(features[name].to(rows.dtype)) @ _unit(rows).mT
            scores[name] = self.scale * where_present(cosines, present.get(name))
        return FusionOutput(torch.stack(list(scores.values())).sum(dim=0), scores, features, present)


def _unit(rows: Tensor) -> Tensor:
    """Rows of norm 1; those of norm 0 stay 0, without the huge gradient of dividing by almost nothing."""
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    positive = norm > torch.finfo(rows.dtype).eps
    return torch.where(positive, rows / torch.where(positive, norm, 1.0), 0.0)
