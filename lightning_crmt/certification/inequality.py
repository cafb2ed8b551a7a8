# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
r"""The one inequality behind certificates and step 2.

Let :math:`D_{pj}^m` bound how fast :math:`h_p - h_j` can fall per unit of l2 change in modality m. A margin
:math:`h_p - h_j` stays positive under every perturbation with

.. math:: \sum_m D_{pj}^m \|\delta^m\|_2 < h_p - h_j .
"""

from __future__ import annotations

import math
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

    Differentiable with respect to the integration weights. The diagonal has no meaning. Modalities that stay clean
    have none.

    Args:
        lipschitz: constants of encoders, scores or margins.
        head: the head of the same model; needed for all but those of margins.

    Raises:
        ValueError: if a head is needed and there is none, or modalities or the number of classes differ.

    >>> from lightning_crmt import OrthogonalFusion, Soundness
    >>> head = OrthogonalFusion({"audio": 4}, num_classes=2)
    >>> one = LipschitzConstants({"audio": torch.tensor(1.0)}, of="encoder", soundness=Soundness.SOUND)
    >>> sensitivities(one, head)["audio"][0, 1].detach()  # the distance of two orthonormal rows
    tensor(1.4142)
    """
    if lipschitz.of == "margins":
        return dict(lipschitz.values)
    if not isinstance(head, LateFusion):
        raise ValueError(
            f"`head` must be late fusion with Lipschitz constants of {lipschitz.of}, got {describe(head)}; "
            "other models need constants of margins"
        )
    check_same_modalities("lipschitz", [*lipschitz.modalities, *lipschitz.clean], head.in_features)
    pairs = {}
    for name, constant in lipschitz.values.items():
        if lipschitz.of == "encoder":
            rows = at_least_single(head.class_weights[name])
            pairs[name] = _product(constant.to(rows), row_distances(rows))
        else:
            if constant.shape != (head.num_classes,):
                raise ValueError(
                    f"`lipschitz.values[{name!r}]` must have shape ({head.num_classes},), one constant per class, "
                    f"got {tuple(constant.shape)}"
                )
            weights = at_least_single(head.integration_weights[name])
            speed = _product(weights, constant.to(weights))
            pairs[name] = speed[:, None] + speed[None, :]
    return pairs


def row_distances(rows: Tensor) -> Tensor:
    """l2 distances of rows ``(K, d)`` from each other, ``(K, K)``, also where their squares would underflow.

    >>> row_distances(torch.tensor([[3e-30, 0.0], [0.0, 4e-30]]))[0, 1]
    tensor(5.0000e-30)
    """
    scale = _power_of_two(rows.detach().abs().amax())
    # This compute mode subtracts before it squares; the other loses half the digits for nearly equal rows.
    return scale * torch.cdist(rows / scale, rows / scale, compute_mode="donot_use_mm_for_euclid_dist")


def margins_of(logits: Tensor, classes: Tensor) -> Tensor:
    r"""Margins :math:`h_c - h_j` of each sample's own class c over all classes, ``(B, K)``; 0 in its own column.

    Args:
        logits: ``(B, K)``.
        classes: the own class of each sample, ``(B,)``.

    >>> margins_of(torch.tensor([[1.0, 3.0]]), torch.tensor([1]))
    tensor([[2., 0.]])
    """
    return logits.gather(1, classes[:, None]) - logits


def signed_radii(margins: Tensor, slopes: Mapping[str, Tensor], classes: Tensor) -> Tensor:
    r"""l2 distance over which the margin to each rival surely keeps its sign, with that sign, ``(B, K)``.

    .. math:: r_j = m_j \Big/ \sqrt{\textstyle\sum_m (D_j^m)^2}

    by Cauchy-Schwarz, the sum over the modalities in ``slopes``. Infinite where no perturbation changes the margin, and
    in the column of the own class, which therefore never is the minimum; 0 for a tie.

    Args:
        margins: ``(B, K)``.
        slopes: :math:`D_j^m` of each sample by modality, each ``(B, K)``.
        classes: the own class of each sample, ``(B,)``.

    >>> slopes = {"audio": torch.tensor([[0.0, 3.0, 0.0]]), "image": torch.tensor([[0.0, 4.0, 0.0]])}
    >>> signed_radii(torch.tensor([[0.0, 1.0, 1.0]]), slopes, torch.tensor([0]))
    tensor([[   inf, 0.2000,    inf]])
    """
    stacked = torch.stack(list(slopes.values()))
    scale = _power_of_two(stacked.detach().amax(dim=0))  # the squares of tiny slopes underflow
    joint = scale * torch.linalg.vector_norm(stacked / scale, dim=0)
    radii = torch.where((margins == 0) & (joint == 0), margins, margins / joint)
    return radii.masked_fill(own_class(classes, margins.shape[1]), math.inf)


def own_class(classes: Tensor, num_classes: int) -> Tensor:
    """Mask ``(B, K)`` of each sample's own class, which a minimum over rivals must leave out.

    Args:
        classes: the own class of each sample, ``(B,)``.
        num_classes: K.

    >>> own_class(torch.tensor([1, 0]), num_classes=2)
    tensor([[False,  True],
            [ True, False]])
    """
    return classes[:, None] == torch.arange(num_classes, device=classes.device)


def _product(first: Tensor, second: Tensor) -> Tensor:
    """A product of bounds, which is 0 only where one of them is: an underflow would make a radius infinite."""
    product = first * second
    tiny = torch.finfo(product.dtype).tiny
    return torch.where((first > 0) & (second > 0), product.clamp(min=tiny), product)


def _power_of_two(value: Tensor) -> Tensor:
    """A power of two near each number, to divide and multiply by without rounding; 1 for 0, infinity and NaN."""
    scale = value / (2 * torch.frexp(value).mantissa)  # exact, as the quotient is a power of two
    return torch.where(value.isfinite() & (value > 0), scale, torch.ones_like(scale))
