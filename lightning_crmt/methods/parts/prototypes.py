# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Class means of features, and classification by the nearest."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_crmt.modality import at_least_single


class Prototypes:
    r"""One prototype per class of one modality's features, a moving average of class means.

    .. math:: p_c \leftarrow (1 - \mu) \, \bar z_c + \mu \, p_c, \qquad d_c(z) = - \lVert z - p_c \rVert_2

    A class without samples keeps the prototype it has; one that never had samples has none, and takes no part.

    Args:
        momentum: :math:`\mu` in [0, 1), the share of the old prototype.
        means: prototypes to start from, ``(K, d_m)``.
        known: which classes have one, ``(K,)``.

    >>> prototypes = Prototypes(momentum=0.0)
    >>> prototypes.update(sums=torch.tensor([[2.0, 0.0], [0.0, 0.0]]), counts=torch.tensor([2.0, 0.0]))
    >>> prototypes.known
    tensor([ True, False])
    >>> prototypes.logits(torch.tensor([[1.0, 3.0]]))
    tensor([[-3.]])
    """

    def __init__(self, momentum: float, *, means: Tensor | None = None, known: Tensor | None = None) -> None:
        self.momentum = momentum
        self.means = torch.empty(0, 0) if means is None else means
        self.known = torch.empty(0, dtype=torch.bool) if known is None else known

    def update(self, sums: Tensor, counts: Tensor) -> None:
        """Add the sum of the features of each class, ``(K, d_m)``, and the number of samples, ``(K,)``."""
        seen = counts > 0
        means = sums / counts.clamp(min=1)[:, None]
        if self.known.numel():
            old, known = self.means.to(means), self.known.to(seen.device)
            moved = (1 - self.momentum) * means + self.momentum * old
            means = torch.where((seen & known)[:, None], moved, torch.where(seen[:, None], means, old))
            seen = seen | known
        self.means, self.known = means, seen

    def logits(self, features: Tensor) -> Tensor:
        """Negative distances ``(B, C)`` of features ``(B, d_m)`` to the C prototypes there are, in order of classes."""
        # Distances are differences: autocast would round them away.
        with torch.autocast(features.device.type, enabled=False):
            features = at_least_single(features)
            known = self.means.to(features)[self.known.to(features.device)]
            # The plain differences: a product of matrices loses small distances to rounding.
            return -torch.cdist(features, known, compute_mode="donot_use_mm_for_euclid_dist")

    def columns(self, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Column of each class in the logits, ``(B,)``, and whether it has one."""
        known = self.known.to(classes.device)
        column = known.cumsum(dim=0) - 1
        return column[classes.long()].clamp(min=0), known[classes.long()]
