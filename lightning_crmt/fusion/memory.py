# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""A head that first pulls features towards those of training samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_crmt.checks import check_at_least, check_same_modalities, describe
from lightning_crmt.fusion.head import FusionHead
from lightning_crmt.fusion.late import LinearFusion
from lightning_crmt.fusion.sparse_coding import reconstruction
from lightning_crmt.modality import FusionOutput, Inputs, at_least_single


class MemoryFusion(FusionHead):
    r"""External feature memory (ExFMem of Tian and Xu, CVPR 2021, arXiv 2104.02000) before another head.

    .. math:: z^m \leftarrow a D^m c^m + (1 - a) z^m, \qquad
        c^m = \arg\min_c \tfrac 1 2 \lVert z^m - D^m c \rVert^2 + \lambda \lVert c \rVert_1

    with features :math:`z^m`, ``(B, d_m)``, and dictionaries :math:`D^m` of features of clean training samples, which
    :class:`~lightning_crmt.methods.FeatureMemory` fills in a fit. They are buffers, so a checkpoint holds them. Until
    they are filled the head is the inner one. Codes are computed by
    :func:`~lightning_crmt.fusion.sparse_coding.sparse_codes`, whose step size follows from the dictionary where the
    paper sets one by hand.

    The gradient passes through the memory, so that attacks see the defence they are up against. No Lipschitz bound is
    known for the memory, so nothing can be certified for this head.

    Args:
        in_features: size :math:`d_m` of the features of each modality, by name.
        num_classes: number of classes K, at least 2.
        head: makes the inner head.
        atoms: features in each dictionary, at least 1.
        blend: a in [0, 1]; the paper has 0.5 and 0.6.
        penalty: :math:`\lambda`, at least 0.
        steps: most iterations for a code, at least 1.
        tolerance: at least 0, see ``sparse_codes``.

    Raises:
        ValueError: if an argument is out of range; in ``forward``, if features have another shape than ``(B, d_m)``.

    >>> head = MemoryFusion({"audio": 16, "image": 32}, num_classes=10, atoms=64)
    >>> head.fill({"audio": torch.randn(64, 16), "image": torch.randn(64, 32)})
    >>> head({"audio": torch.randn(4, 16), "image": torch.randn(4, 32)}).logits.shape
    torch.Size([4, 10])
    """

    filled: Tensor

    def __init__(
        self,
        in_features: Mapping[str, int],
        num_classes: int,
        head: Callable[[Mapping[str, int], int], FusionHead] = LinearFusion,
        atoms: int = 128,
        blend: float = 0.5,
        penalty: float = 0.1,
        steps: int = 2000,
        tolerance: float = 8e-4,
    ) -> None:
        super().__init__(in_features, num_classes)
        check_at_least(1, atoms=atoms, steps=steps)
        check_at_least(0, penalty=penalty, tolerance=tolerance)
        if not 0 <= blend <= 1:
            raise ValueError(f"`blend` must be in [0, 1], got {blend}")
        self.head = head(in_features, num_classes)
        self.atoms = atoms
        self.blend = blend
        self.penalty = penalty
        self.steps = steps
        self.tolerance = tolerance
        for name, size in in_features.items():
            self.register_buffer(f"dictionary_{name}", torch.zeros(atoms, size))
        self.register_buffer("filled", torch.tensor(False))

    @property
    def dictionaries(self) -> dict[str, Tensor]:
        """Features of training samples, each ``(A, d_m)``; rows of zeros where there were fewer."""
        return {name: self.get_buffer(f"dictionary_{name}") for name in self.in_features}

    def fill(self, features: Inputs) -> None:
        """Store features of training samples in the dictionaries, at most ``atoms`` for each modality.

        Raises:
            ValueError: if modalities or shapes do not fit the head, or there are too many samples.
        """
        check_same_modalities("features", features, self.in_features)
        for name, dictionary in self.dictionaries.items():
            value = features[name]
            if value.dim() != 2 or value.shape[1] != dictionary.shape[1] or len(value) > self.atoms:
                raise ValueError(
                    f"`features[{name!r}]` must have shape (A, {dictionary.shape[1]}) with A at most {self.atoms}, "
                    f"got {describe(value)}"
                )
            dictionary.zero_()
            dictionary[: len(value)] = value.detach()
        self.filled.fill_(True)

    @override
    def forward(self, features: Inputs) -> FusionOutput:
        features = self.checked(features)
        filled = bool(self.filled)
        output = self.head({n: self._recall(n, value) for n, value in features.items()} if filled else features)
        return FusionOutput(output.logits, output.scores, features)

    @override
    def unimodal_logits(self, scores: Inputs) -> dict[str, Tensor]:
        """Those of the inner head."""
        return self.head.unimodal_logits(scores)

    @override
    def integration_parameters(self) -> list[nn.Parameter]:
        return self.head.integration_parameters()

    def _recall(self, name: str, features: Tensor) -> Tensor:
        # Many small steps add up: half precision has no room for them.
        with torch.autocast(features.device.type, enabled=False):
            single = at_least_single(features)
            atoms = self.get_buffer(f"dictionary_{name}").to(single)
            recalled = reconstruction(single, atoms, self.penalty, self.steps, self.tolerance)
            return (self.blend * recalled + (1 - self.blend) * single).to(features.dtype)
