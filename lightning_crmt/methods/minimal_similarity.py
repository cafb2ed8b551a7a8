# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Keep the features of the modalities dissimilar."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_crmt.checks import check_at_least
from lightning_crmt.mixin import CRMTMixin
from lightning_crmt.modality import FusionOutput, as_vectors, at_least_single, mean_over
from lightning_crmt.targets import Target
from lightning_crmt.training import Method


class MinimalSimilarity(Method):
    r"""Dissimilarity constraint (MinSim of Tian and Xu, CVPR 2021, arXiv 2104.02000): features of modalities differ.

    .. math:: L = \mathrm{CE}(h, y) + w \, \frac 1 N \sum_i \frac 2 {M (M - 1)} \sum_{m < n} \cos(z_i^m, z_i^n)

    with features :math:`z^m` of shape ``(B, d)``. The paper has two modalities and weight 1; the mean over pairs is the
    natural form for more. Samples that lack one of a pair do not count in its mean. It does not use targets, so mixed
    samples need no special treatment. The other half of the paper's defence is :class:`FeatureMemory`.

    Args:
        weight: w, at least 0.

    Raises:
        ValueError: if the weight is negative; on ``setup``, for a single modality or features of different sizes.

    >>> method = MinimalSimilarity(weight=1.0)
    """

    source = "paper"

    def __init__(self, weight: float = 1.0) -> None:
        check_at_least(0, weight=weight)
        self.weight = weight

    @override
    def begin(self, module: CRMTMixin) -> None:
        sizes = module.head.in_features
        if len(sizes) < 2 or len(set(sizes.values())) != 1:
            raise ValueError(
                "MinimalSimilarity compares features by their angle: two modalities or more must have features of one "
                f"size, got {sizes}"
            )

    @override
    def term(self, module: CRMTMixin, output: FusionOutput, target: Target) -> Tensor:
        features = as_vectors(self.features_of(output))
        with torch.autocast(output.logits.device.type, enabled=False):
            vectors = {name: at_least_single(value) for name, value in features.items()}
            similarities = []
            for (first, a), (second, b) in combinations(vectors.items(), 2):
                here = [output.present[name] for name in (first, second) if name in output.present]
                both = torch.stack(here).all(dim=0) if here else None
                similarities.append(mean_over(nn.functional.cosine_similarity(a, b, dim=1), both))
            return self.weight * torch.stack(similarities).mean()
