# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
r"""The one inequality that certificates and step 2 rest on.

Let :math:`D_{pj}^m` bound how fast :math:`h_p - h_j` can fall per unit of l2 change in modality m. A margin
:math:`h_p - h_j` stays positive under every perturbation with

.. math:: \sum_m D_{pj}^m \|\delta^m\|_2 < h_p - h_j .
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_crmt.checks import check_same_modalities, describe
from lightning_crmt.fusion import LateFusion
from lightning_crmt.lipschitz import LipschitzConstants
from lightning_crmt.modality import at_least_single


def sensitivities(lipschitz: LipschitzConstants, head: LateFusion | None) -> dict[str, Tensor]:
    r"""The bounds :math:`D^m`, each ``(K, K)``, for every pair of classes.

    - constants of scores, the paper's form: :math:`D_{pj}^m = a_p^m \tau_p^m + a_j^m \tau_j^m`;
    - constants of encoders, the pairwise form: :math:`D_{pj}^m = L_m \| a_p^m d_p^m - a_j^m d_j^m \|_2`,
      up to :math:`\sqrt 2` smaller than the paper's form at the same :math:`L_m`;
    - constants of margins are :math:`D^m` already.

    Differentiable with respect to the integration weights. The diagonal means nothing.

    Raises:
        ValueError: if a head is needed and there is none, or modalities or the number of classes differ.
    """
    if lipschitz.of == "margins":
        return dict(lipschitz.values)
    if not isinstance(head, LateFusion):
        raise ValueError(
            f"`head` must be late fusion with Lipschitz constants of {lipschitz.of}, got {describe(head)}; "
            "other models need constants of margins"
        )
    check_same_modalities("lipschitz", lipschitz.modalities, head.in_features)
    found = {}
    for name, constant in lipschitz.values.items():
        if lipschitz.of == "encoder":
            rows = at_least_single(head.class_weights[name])
            found[name] = constant.to(rows) * row_distances(rows)
        else:
            if constant.shape != (head.num_classes,):
                raise ValueError(
                    f"`lipschitz.values[{name!r}]` must have shape ({head.num_classes},), one constant per class, "
                    f"got {tuple(constant.shape)}"
                )
            weights = at_least_single(head.integration_weights[name])
            speed = weights * constant.to(weights)
            found[name] = speed[:, None] + speed[None, :]
    return found


def row_distances(rows: Tensor) -> Tensor:
    r"""l2 distances of rows ``(K, d)`` from each other, ``(K, K)``, also where their squares would underflow."""
    scale = power_of_two(rows.detach().abs().amax())
    # This compute mode subtracts before it squares; the other loses half the digits for nearly equal rows.
    return scale * torch.cdist(rows / scale, rows / scale, compute_mode="donot_use_mm_for_euclid_dist")


def signed_radii(margins: Tensor, slopes: Mapping[str, Tensor]) -> Tensor:
    r"""l2 distance over which each margin surely keeps its sign, with that sign, ``(B, K)``.

    .. math:: r_j = m_j \Big/ \sqrt{\textstyle\sum_m (D_j^m)^2}

    by Cauchy-Schwarz, the sum over the modalities in ``slopes``. A margin that nothing moves has an infinite radius,
    a tie the radius 0.

    Args:
        margins: ``(B, K)``.
        slopes: :math:`D_j^m` of each sample by modality, each ``(B, K)``.
    """
    stacked = torch.stack(list(slopes.values()))
    # Scaled, for squares of tiny slopes underflow, and an infinite radius is not what that should mean.
    scale = power_of_two(stacked.detach().amax(dim=0))
    joint = scale * torch.linalg.vector_norm(stacked / scale, dim=0)
    return torch.where((margins == 0) & (joint == 0), margins, margins / joint)


def power_of_two(value: Tensor) -> Tensor:
    """A power of two near each number, by which to divide and multiply without rounding; 1 for what has none."""
    exponent = torch.frexp(value).exponent.clamp(-120, 120)
    scale = torch.ldexp(torch.ones_like(value), exponent)
    return torch.where(value.isfinite() & (value > 0), scale, torch.ones_like(scale))


def own_class(classes: Tensor, num_classes: int) -> Tensor:
    """Mask ``(B, K)`` of each sample's own class: the pair that no minimum over rivals may contain."""
    return classes[:, None] == torch.arange(num_classes, device=classes.device)
