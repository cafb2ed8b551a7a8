# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Lipschitz constants per modality, with the functions they belong to and how far they can be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lightning_crmt.checks import check_modality_names, describe
from lightning_crmt.soundness import Soundness

_RANK = {"encoder": 0, "scores": 1, "margins": 2, "labels": 1}


@dataclass(frozen=True)
class LipschitzConstants:
    r"""Constants of one trained model in the l2 norm, by modality; stale as soon as its weights change.

    Attributes:
        values: one tensor per modality; its shape follows from ``of``.
        of: whose change the constants bound, per unit of l2 change in the modality's input:

            - ``"encoder"``: the features :math:`x^m \mapsto z^m`; a scalar :math:`L_m`;
            - ``"scores"``: each uni-modal score :math:`x^m \mapsto s_k^m`; :math:`\tau^m`, shape ``(K,)``;
            - ``"margins"``: each difference of logits :math:`x^m \mapsto h_p - h_j`; shape ``(K, K)``;
            - ``"labels"``: each logit :math:`x^m \mapsto h_k`, for models of several labels; shape ``(K,)``.
        soundness: the level of trust, inherited by every radius computed from them.
        fingerprints: of the encoders that they were bounded for, by modality; None where encoders were not examined.
        shapes: of one sample by modality, where the bounds hold for no other shape; None where they hold for any.
        clean: modalities that are never perturbed, and have no constant: those of integers, such as tokens. Radii are
            about the others while these stay as they are.

    Raises:
        ValueError: if ``of`` is unknown, or a value has another number of dimensions, is negative or NaN.
        TypeError: if ``soundness`` is not a ``Soundness``.

    >>> import torch
    >>> LipschitzConstants({"audio": torch.tensor(1.0)}, of="encoder", soundness=Soundness.SOUND).modalities
    ['audio']
    """

    values: Mapping[str, Tensor]
    of: Literal["encoder", "scores", "margins", "labels"]
    soundness: Soundness
    fingerprints: Mapping[str, str] | None = None
    shapes: Mapping[str, tuple[int, ...]] | None = None
    clean: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_modality_names("values", self.values)
        if isinstance(self.clean, str) or set(self.clean) & set(self.values):
            raise ValueError(f"`clean` must be names of modalities without a constant, got {self.clean!r}")
        if self.of not in _RANK:
            *of_classes, of_labels = _RANK
            raise ValueError(
                f"`of` must be one of {of_classes}, got {self.of!r}; or {of_labels!r}, where a model has several"
            )
        if not isinstance(self.soundness, Soundness):
            raise TypeError(f"`soundness` must be a Soundness, got {describe(self.soundness)}")
        for name, value in self.values.items():
            if not isinstance(value, Tensor) or value.dim() != _RANK[self.of]:
                raise ValueError(
                    f"`values[{name!r}]` must be a tensor with {_RANK[self.of]} dimensions for of={self.of!r}, "
                    f"got {describe(value)}"
                )
            if value.isnan().any() or (value < 0).any():
                raise ValueError(f"`values[{name!r}]` must be >= 0 and not NaN, got {value}")

    @property
    def modalities(self) -> list[str]:
        """Names of the modalities that have a constant."""
        return list(self.values)
