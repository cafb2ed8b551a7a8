# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Late fusion: linear heads that keep one score per class and modality."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_crmt.checks import check_positive, check_same_modalities, describe
from lightning_crmt.fusion.head import FusionHead
from lightning_crmt.layers import Fixable, orthonormal_rows
from lightning_crmt.modality import FusionOutput, Inputs, where_present


class LateFusion(FusionHead):
    r"""A head that fuses the features of all modalities by class-wise weighted uni-modal scores.

    .. math:: h_k = \sum_m a_k^m s_k^m + b_k, \qquad s_k^m = d_k^m \cdot z^m

    with features :math:`z^m`, directions :math:`d_k^m`, integration weights :math:`a_k^m` and bias :math:`b_k`.
    The head computes in the precision of its own parameters whatever autocast says: its products are cheap, and the
    margins of certificates are differences of its logits.

    Args:
        in_features: size :math:`d_m` of the features of each modality, by name.
        num_classes: number of classes :math:`K`, at least 2.

    Raises:
        ValueError: see :class:`FusionHead`.

    >>> head = OrthogonalFusion({"audio": 4, "image": 5}, num_classes=3)
    >>> output = head({"audio": torch.randn(2, 4), "image": torch.randn(2, 5)})
    >>> parts = head.unimodal_logits(output.scores)  # how much each modality adds to the logits
    >>> torch.allclose(parts["audio"] + parts["image"], output.logits, atol=1e-6)
    True
    """

    bias: nn.Parameter

    def __init__(self, in_features: Mapping[str, int], num_classes: int) -> None:
        super().__init__(in_features, num_classes)
        self.bias = nn.Parameter(torch.zeros(num_classes))

    @property
    @abstractmethod
    def directions(self) -> dict[str, Tensor]:
        """The directions :math:`d_k^m` as rows, each ``(K, d_m)``."""

    @property
    @abstractmethod
    def integration_weights(self) -> dict[str, Tensor]:
        """Weights :math:`a^m \\ge 0` of the scores in the logits, each ``(K,)``."""

    @property
    def class_weights(self) -> dict[str, Tensor]:
        """Rows of the joint linear classifier, weights times directions, each ``(K, d_m)``."""
        weights = self.integration_weights
        return {name: weights[name][:, None] * rows for name, rows in self.directions.items()}

    def fuse(self, scores: Inputs) -> Tensor:
        """Logits ``(B, K)`` from the scores of all modalities, or of some: an absent one adds nothing.

        Args:
            scores: by modality, each ``(B, K)``.

        Raises:
            ValueError: if there are none, or a modality is unknown.

        >>> head = OrthogonalFusion({"audio": 4, "image": 5}, num_classes=3)
        >>> output = head({"audio": torch.ones(2, 4), "image": torch.ones(2, 5)})
        >>> without_audio = head.fuse({"image": output.scores["image"]})
        >>> torch.equal(without_audio, head.integration_weights["image"] * output.scores["image"] + head.bias)
        True
        """
        unknown = [name for name in scores if name not in self.in_features]
        if unknown or not scores:
            raise ValueError(f"`scores` must hold modalities among {list(self.in_features)}, got {list(scores)}")
        weights = self.integration_weights
        with torch.autocast(self.bias.device.type, enabled=False):
            logits = self.bias.expand(next(iter(scores.values())).shape)
            for name, score in scores.items():
                logits = logits + weights[name] * score.to(logits.dtype)
        return logits

    @override
    def unimodal_logits(self, scores: Inputs) -> dict[str, Tensor]:
        r"""The part of each modality in the logits, :math:`a_k^m s_k^m + b_k / M`; the parts add up to the logits."""
        weights, share = self.integration_weights, len(self.in_features)
        return {name: weights[name] * score + self.bias / share for name, score in scores.items()}

    @override
    def forward(self, features: Inputs, present: Inputs | None = None) -> FusionOutput:
        features, present = self.checked(features), dict(present or {})
        with torch.autocast(self.bias.device.type, enabled=False):
            scores = {name: features[name].to(rows.dtype) @ rows.mT for name, rows in self.directions.items()}
        scores = {name: where_present(score, present.get(name)) for name, score in scores.items()}
        return FusionOutput(self.fuse(scores), scores, features, present)


class OrthogonalFusion(LateFusion, Fixable):
    r"""CRMT's head: orthonormal class directions per modality, class-wise integration weights.

    .. math:: W^m (W^m)^\top = I_K, \qquad a_k^m \ge 0

    (Yang et al., ICLR 2024, arXiv 2402.06244, the orthogonal framework.) With orthonormal rows a score is, up to the
    weight, the distance of the features to a class boundary, so the weight alone says how much a class relies on a
    modality.

    The rows are the Q factor of a free parameter, signs fixed, computed in every forward pass (0.1 ms at 512 x 10):
    orthonormal whatever the optimiser or weight decay does, differentiable, picklable. The weights are the absolute
    value of a free parameter, so that no optimiser can make them negative.

    Args:
        in_features: size :math:`d_m` of the features of each modality, by name; each at least ``num_classes``.
        num_classes: number of classes :math:`K`, at least 2.
        initial_weight: the value every integration weight starts from, above 0.

    Raises:
        ValueError: if ``num_classes`` exceeds a feature size: there are no K orthonormal rows in fewer dimensions.

    >>> head = OrthogonalFusion({"audio": 16, "image": 32}, num_classes=10)
    >>> output = head({"audio": torch.randn(4, 16), "image": torch.randn(4, 32)})
    >>> output.logits.shape, output.scores["audio"].shape
    (torch.Size([4, 10]), torch.Size([4, 10]))
    >>> W = head.directions["audio"]
    >>> torch.allclose(W @ W.mT, torch.eye(10), atol=1e-6)
    True
    """

    def __init__(self, in_features: Mapping[str, int], num_classes: int, initial_weight: float = 1.0) -> None:
        super().__init__(in_features, num_classes)
        for name, size in in_features.items():
            if num_classes > size:
                raise ValueError(
                    f"`in_features[{name!r}]` must be at least `num_classes` = {num_classes}, got {size}: "
                    f"{num_classes} orthonormal rows do not fit into {size} dimensions; give the encoder more outputs"
                )
        check_positive(initial_weight=initial_weight)
        self.raw_directions = nn.ParameterDict(
            {name: nn.Parameter(nn.init.orthogonal_(torch.empty(num_classes, d))) for name, d in in_features.items()}
        )
        self.raw_weights = nn.ParameterDict(
            {name: nn.Parameter(torch.full((num_classes,), float(initial_weight))) for name in in_features}
        )

    @property
    def directions(self) -> dict[str, Tensor]:
        """Orthonormal rows :math:`W^m`, each ``(K, d_m)``."""
        names, raws = list(self.raw_directions), list(self.raw_directions.values())
        trained = any(raw.requires_grad for raw in raws)
        if trained and len({(raw.shape, raw.dtype) for raw in raws}) == 1:  # one decomposition for all
            return dict(zip(names, orthonormal_rows(torch.stack(raws)).unbind(), strict=True))
        return {name: orthonormal_rows(raw) for name, raw in zip(names, raws, strict=True)}

    @property
    def integration_weights(self) -> dict[str, Tensor]:
        """Integration weights :math:`a^m \\ge 0`, each ``(K,)``."""
        return {name: raw.abs() for name, raw in self.raw_weights.items()}

    @override
    def integration_parameters(self) -> list[nn.Parameter]:
        return list(self.raw_weights.values())

    @override
    def fixed(self) -> FixedFusion:
        """A head with the same output from stored directions and weights; rigorous certificates need one.

        The last bits of a QR decomposition may differ from one number of threads to another.

        Raises:
            TypeError: if a subclass computes scores or logits in its own way.
        """
        self._refuse_overridden(LateFusion, "forward", "fuse")
        return FixedFusion(self.directions, self.integration_weights, self.bias)


class FixedFusion(LateFusion):
    r"""A head whose directions and integration weights are stored numbers, for deployment and rigorous certificates.

    Nothing in it is computed from a free parameter, and only the bias could still be trained.

    Args:
        directions: rows :math:`d_k^m`, each ``(K, d_m)``, by modality.
        integration_weights: :math:`a_k^m \ge 0`, each ``(K,)``.
        bias: :math:`b_k`, ``(K,)``.

    Raises:
        ValueError: if modalities or shapes do not fit together.

    >>> head = OrthogonalFusion({"audio": 16, "image": 32}, num_classes=10)
    >>> features = {"audio": torch.randn(4, 16), "image": torch.randn(4, 32)}
    >>> torch.equal(head.fixed()(features).logits, head(features).logits)
    True
    """

    def __init__(
        self, directions: Mapping[str, Tensor], integration_weights: Mapping[str, Tensor], bias: Tensor
    ) -> None:
        super().__init__({name: rows.shape[-1] for name, rows in directions.items()}, bias.numel())
        check_same_modalities("integration_weights", integration_weights, directions)
        self.bias = nn.Parameter(bias.detach().clone())
        for name, size in self.in_features.items():
            for argument, given, shape in (
                ("directions", directions[name], (self.num_classes, size)),
                ("integration_weights", integration_weights[name], (self.num_classes,)),
            ):
                if given.shape != shape:
                    raise ValueError(f"`{argument}[{name!r}]` must have shape {shape}, got {describe(given)}")
                self.register_buffer(f"{argument}_{name}", given.detach().clone())

    @property
    def directions(self) -> dict[str, Tensor]:
        """Stored rows, each ``(K, d_m)``."""
        return {name: self.get_buffer(f"directions_{name}") for name in self.in_features}

    @property
    def integration_weights(self) -> dict[str, Tensor]:
        """Stored weights, each ``(K,)``."""
        return {name: self.get_buffer(f"integration_weights_{name}") for name in self.in_features}


class LinearFusion(LateFusion):
    r"""The joint classifier of ordinary late fusion: one linear layer on the concatenated features.

    .. math:: h = \sum_m W^m z^m + b

    It has the interface of :class:`OrthogonalFusion`, with all integration weights fixed at 1, so that whatever reads
    scores, margins or class weights takes either.

    Args:
        in_features: size :math:`d_m` of the features of each modality, by name.
        num_classes: number of classes :math:`K`, at least 2.

    Raises:
        ValueError: see :class:`FusionHead`.

    >>> head = LinearFusion({"audio": 3, "image": 5}, num_classes=10)
    >>> head({"audio": torch.randn(4, 3), "image": torch.randn(4, 5)}).logits.shape
    torch.Size([4, 10])
    """

    def __init__(self, in_features: Mapping[str, int], num_classes: int) -> None:
        super().__init__(in_features, num_classes)
        joint = nn.Linear(sum(in_features.values()), num_classes)  # for its initialisation
        rows = torch.split(joint.weight.detach(), list(in_features.values()), dim=1)
        self.rows = nn.ParameterDict(
            {name: nn.Parameter(part.clone()) for name, part in zip(in_features, rows, strict=True)}
        )
        self.bias = nn.Parameter(joint.bias.detach().clone())

    @property
    def directions(self) -> dict[str, Tensor]:
        """Rows of the classifier, not normalised, each ``(K, d_m)``."""
        return dict(self.rows.items())

    @property
    def integration_weights(self) -> dict[str, Tensor]:
        """Ones, each ``(K,)``."""
        return {name: torch.ones_like(self.bias) for name in self.in_features}
