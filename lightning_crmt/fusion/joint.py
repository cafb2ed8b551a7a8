# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Heads in which modalities interact, and where their uni-modal scores come from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from itertools import product
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_crmt.fusion.head import FusionHead
from lightning_crmt.modality import FusionOutput, Inputs, as_vectors, where_present

#: Where uni-modal scores come from: the head itself without the other modalities, or a linear head for each.
Scores: TypeAlias = Literal["ablated", "auxiliary"]


class JointFusion(FusionHead):
    """A head in which modalities interact before they are classified.

    The scores of a modality are the logits of the head when all others are absent (``scores="ablated"``, one more pass
    through the head for each), or the output of a linear head of its own (``"auxiliary"``). Margin
    regularisation and the methods that read scores work with either. The logits are not a weighted sum of scores, so
    there are no integration weights for step 2, and no certificate from bounds of the encoders: radii can be estimated
    only.

    Args:
        in_features: size of the features of each modality, by name.
        num_classes: number of classes K, at least 2.
        scores: where uni-modal scores come from.

    Raises:
        ValueError: if ``scores`` is unknown; see also :class:`FusionHead`.

    >>> class Product(JointFusion):
    ...     def joint_logits(self, features):
    ...         return torch.stack(list(features.values())).prod(dim=0)
    >>> head = Product({"audio": 2, "image": 2}, num_classes=2)
    >>> output = head({"audio": torch.tensor([[2.0, 3.0]]), "image": torch.tensor([[5.0, 7.0]])})
    >>> output.logits, output.scores["audio"]  # the score is what is left without the image
    (tensor([[10., 21.]]), tensor([[2., 3.]]))
    """

    def __init__(self, in_features: Mapping[str, int], num_classes: int, scores: Scores = "ablated") -> None:
        super().__init__(in_features, num_classes)
        if scores not in ("ablated", "auxiliary"):
            raise ValueError(f"`scores` must be 'ablated' or 'auxiliary', got {scores!r}")
        heads = in_features if scores == "auxiliary" else {}
        self.auxiliary = nn.ModuleDict({name: nn.Linear(size, num_classes) for name, size in heads.items()})

    @abstractmethod
    def joint_logits(self, features: Inputs) -> Tensor:
        """Logits ``(B, K)`` from the features of all modalities, or of some: those left out are absent.

        Args:
            features: by modality, ``(B, d_m)``, or ``(B, T, d_m)`` if the head takes sequences.
        """

    @override
    def forward(self, features: Inputs, present: Inputs | None = None) -> FusionOutput:
        features, present = self.checked(features), dict(present or {})
        scores = {name: where_present(score, present.get(name)) for name, score in self._scores(features).items()}
        logits = self._logits_of_present(features, present) if present else self.joint_logits(features)
        return FusionOutput(logits, scores, features, present)

    def _logits_of_present(self, features: Inputs, present: Inputs) -> Tensor:
        """Logits of each sample from the modalities that it has: of all samples at once that have the same ones."""
        if torch.compiler.is_exporting():
            return self._logits_of_every_pattern(features, present)
        names, size = list(features), len(next(iter(features.values())))
        everywhere = torch.ones(size, dtype=torch.bool, device=next(iter(present.values())).device)
        here = torch.stack([present.get(name, everywhere) for name in names], dim=1)
        patterns, of_sample = torch.unique(here, dim=0, return_inverse=True)
        rows, parts = [], []
        for index, pattern in enumerate(patterns.tolist()):
            if not any(pattern):
                raise ValueError(f"`present` must leave each sample one of the modalities {names}, got one without any")
            rows.append((of_sample == index).nonzero().squeeze(1))
            parts.append(
                self.joint_logits({n: features[n][rows[-1]] for n, has in zip(names, pattern, strict=True) if has})
            )
        return torch.cat(parts)[torch.cat(rows).argsort()]

    def _logits_of_every_pattern(self, features: Inputs, present: Inputs) -> Tensor:
        """The same where no value may decide what is computed: of all samples, for all that they might have.

        NaN for samples without any modality.
        """
        logits = torch.full_like(self.joint_logits(features), torch.nan)
        for pattern in product([True, False], repeat=len(present)):
            has = dict(zip(present, pattern, strict=True))
            chosen = {name: value for name, value in features.items() if has.get(name, True)}
            if chosen:
                here = torch.stack([present[name] == has[name] for name in has]).all(dim=0)
                logits = torch.where(here[:, None], self.joint_logits(chosen), logits)
        return logits

    def _scores(self, features: Inputs) -> dict[str, Tensor]:
        if not self.auxiliary:
            return {name: self.joint_logits({name: value}) for name, value in features.items()}
        vectors = as_vectors(features)
        return {name: head(vectors[name]) for name, head in self.auxiliary.items()}


class GatedFusion(JointFusion):
    r"""Gated multi-modal units (Arevalo et al., ICLR workshop 2017): all modalities decide how much of each passes.

    .. math:: v = \sum_m \sigma(U^m [z^1, \dots, z^M]) \odot \tanh(V^m z^m), \qquad h = W v + b

    Args:
        in_features: size of the features of each modality, by name.
        num_classes: number of classes K, at least 2.
        width: size of v.
        scores: where uni-modal scores come from; an absent modality has features 0 and adds nothing.

    Raises:
        ValueError: if ``scores`` is unknown.

    >>> head = GatedFusion({"audio": 16, "image": 32}, num_classes=10)
    >>> output = head({"audio": torch.randn(4, 16), "image": torch.randn(4, 32)})
    >>> output.logits.shape, output.scores["audio"].shape
    (torch.Size([4, 10]), torch.Size([4, 10]))
    """

    def __init__(
        self, in_features: Mapping[str, int], num_classes: int, width: int = 64, scores: Scores = "ablated"
    ) -> None:
        super().__init__(in_features, num_classes, scores)
        total = sum(in_features.values())
        self.values = nn.ModuleDict({name: nn.Linear(size, width, bias=False) for name, size in in_features.items()})
        self.gates = nn.ModuleDict({name: nn.Linear(total, width) for name in in_features})
        self.classifier = nn.Linear(width, num_classes)

    @override
    def joint_logits(self, features: Inputs) -> Tensor:
        first = next(iter(features.values()))
        blank = {name: first.new_zeros(first.shape[0], size) for name, size in self.in_features.items()}
        context = torch.cat([features.get(name, blank[name]) for name in self.in_features], dim=1)
        passed = [self.gates[name](context).sigmoid() * self.values[name](z).tanh() for name, z in features.items()]
        logits: Tensor = self.classifier(torch.stack(passed).sum(dim=0))
        return logits


class FiLMFusion(JointFusion):
    r"""Feature-wise linear modulation (Perez et al., AAAI 2018): one modality is scaled and shifted by the others.

    .. math:: v \leftarrow (1 + \gamma^m(z^m)) \odot v + \beta^m(z^m) \quad\text{for each } m \ne \text{base},
        \qquad v_0 = V z^{\text{base}}, \qquad h = W \, \mathrm{relu}(v) + b

    with linear maps :math:`\gamma^m, \beta^m`.

    Args:
        in_features: size of the features of each modality, by name.
        num_classes: number of classes K, at least 2.
        base: the modality that is modulated; the first by default.
        width: size of v.
        scores: where uni-modal scores come from; an absent modality does not modulate, an absent base is 0.

    Raises:
        ValueError: if ``base`` is not a modality, or ``scores`` is unknown.

    >>> head = FiLMFusion({"audio": 16, "image": 32}, num_classes=10, base="image")
    >>> head({"audio": torch.randn(4, 16), "image": torch.randn(4, 32)}).logits.shape
    torch.Size([4, 10])
    """

    def __init__(
        self,
        in_features: Mapping[str, int],
        num_classes: int,
        base: str | None = None,
        width: int = 64,
        scores: Scores = "ablated",
    ) -> None:
        super().__init__(in_features, num_classes, scores)
        self.base = next(iter(in_features)) if base is None else base
        if self.base not in in_features:
            raise ValueError(f"`base` must be one of {list(in_features)}, got {base!r}")
        self.value = nn.Linear(in_features[self.base], width)
        others = {name: size for name, size in in_features.items() if name != self.base}
        self.modulation = nn.ModuleDict({name: nn.Linear(size, 2 * width) for name, size in others.items()})
        self.classifier = nn.Linear(width, num_classes)

    @override
    def joint_logits(self, features: Inputs) -> Tensor:
        first = next(iter(features.values()))
        base = features.get(self.base)
        value = first.new_zeros(first.shape[0], self.value.out_features) if base is None else self.value(base)
        for name, modulation in self.modulation.items():
            if name in features:
                scale, shift = modulation(features[name]).chunk(2, dim=1)
                value = (1 + scale) * value + shift
        logits: Tensor = self.classifier(value.relu())
        return logits
