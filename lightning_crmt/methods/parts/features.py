# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The features in an output, as a method of training needs them."""

from __future__ import annotations

from torch import Tensor

from lightning_crmt.modality import FusionOutput


def features_of(output: FusionOutput, method: object) -> dict[str, Tensor]:
    """What the head was given, by modality.

    Raises:
        ValueError: naming the method that needs them, if the output does not say.
    """
    if not output.features:
        raise ValueError(
            f"{type(method).__name__} reads the features of each modality: the head must put what it was given into "
            "`FusionOutput.features`, which is empty"
        )
    return output.features


def as_vectors(features: dict[str, Tensor]) -> dict[str, Tensor]:
    """One vector ``(B, d_m)`` per sample: of a sequence ``(B, T, d_m)`` its mean.

    >>> import torch
    >>> as_vectors({"audio": torch.ones(2, 3), "text": torch.ones(2, 5, 4)})["text"].shape
    torch.Size([2, 4])
    """
    return {name: z if z.dim() == 2 else z.flatten(1, -2).mean(dim=1) for name, z in features.items()}
