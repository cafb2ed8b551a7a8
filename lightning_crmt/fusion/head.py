# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The base of all heads: features of all modalities in, logits and uni-modal scores out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from lightning_crmt.checks import check_at_least, check_batch, check_modality_names, check_same_modalities, describe
from lightning_crmt.modality import FusionOutput, Inputs


class FusionHead(nn.Module, ABC):
    """Fuses the features of all modalities into logits, and gives the scores of each modality alone.

    Args:
        in_features: size :math:`d_m` of the features of each modality, by name.
        num_classes: number of classes :math:`K`, at least 2.

    Raises:
        ValueError: if there is no modality, or a size or the number of classes is too small.

    >>> import torch
    >>> from lightning_crmt.modality import where_present
    >>> class Sum(FusionHead):
    ...     def forward(self, features, present=None):
    ...         features = self.checked(features)
    ...         scores = {name: where_present(z, (present or {}).get(name)) for name, z in features.items()}
    ...         return FusionOutput(sum(scores.values()), scores, features, dict(present or {}))
    >>> Sum({"audio": 3, "image": 3}, num_classes=3)({"audio": torch.ones(2, 3), "image": torch.ones(2, 4)})
    Traceback (most recent call last):
        ...
    ValueError: `features['image']` must have shape (B, 3), as in `in_features`, got a float32 tensor of shape (2, 4)
    """

    #: Whether features may also be sequences ``(B, T, d_m)``, not only vectors ``(B, d_m)``.
    takes_sequences = False

    __call__: Callable[..., FusionOutput]

    def __init__(self, in_features: Mapping[str, int], num_classes: int) -> None:
        super().__init__()
        check_modality_names("in_features", in_features)
        check_at_least(2, num_classes=num_classes)
        check_at_least(1, **{f"in_features[{name!r}]": size for name, size in in_features.items()})
        self.in_features = dict(in_features)
        self.num_classes = num_classes

    @abstractmethod
    def forward(self, features: Inputs, present: Inputs | None = None) -> FusionOutput:
        """Logits and uni-modal scores ``(B, K)`` of features ``{m: (B, d_m)}``, with the features they came from.

        Args:
            features: of all modalities.
            present: which samples have a modality, ``(B,)`` bool, for those that may be absent: features of absent
                ones must not be read, their scores are 0, and logits are as if there were no such modality.

        Raises:
            ValueError: see :meth:`checked`.
        """

    def checked(self, features: Inputs) -> dict[str, Tensor]:
        """``features`` in the order of ``in_features``, checked; every head calls this first.

        Raises:
            TypeError: if a modality has no tensor.
            ValueError: if a modality is missing or unknown, batch sizes differ, or features have a shape that the head
                does not take.
        """
        check_same_modalities("features", features, self.in_features)
        check_batch("features", features)
        ranks, shape = ((2, 3), "(B, {0}) or (B, T, {0})") if self.takes_sequences else ((2,), "(B, {0})")
        for name, size in self.in_features.items():
            if features[name].dim() not in ranks or features[name].shape[-1] != size:
                raise ValueError(
                    f"`features[{name!r}]` must have shape {shape.format(size)}, as in `in_features`, "
                    f"got {describe(features[name])}"
                )
        return {name: features[name] for name in self.in_features}

    def unimodal_logits(self, scores: Inputs) -> dict[str, Tensor]:
        """Logits of each modality alone, on the scale of the joint ones, each ``(B, K)``; by default its scores."""
        return dict(scores)

    def integration_parameters(self) -> list[nn.Parameter]:
        """The parameters that weigh the modalities and nothing else: what step 2 trains. Empty if there are none."""
        return []

    def extra_repr(self) -> str:
        """Sizes and number of classes."""
        return f"in_features={self.in_features}, num_classes={self.num_classes}"
