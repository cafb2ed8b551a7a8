# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
r"""The one inequality behind certificates and step 2.

Let :math:`D_{pj}^m` bound how fast :math:`h_p - h_j` can fall per unit of l2 change in modality m. A margin
:math:`h_p - h_j` stays positive under every perturbation with

.. math:: \sum_m D_{pj}^m \|\delta^m\|_2 < h_p - h_j .

A label, which is a yes where its logit is above 0, is decided like a class against a rival of weights and bias 0, with
:math:`\pm h_k` and :math:`D_k^m` in place of :math:`h_p - h_j` and :math:`D_{pj}^m`. The functions here tell by their
answers, classes ``(B,)`` or labels ``(B, K)`` bool, which margins are meant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lightning_crmt.checks import check_same_modalities, describe
from lightning_crmt.fusion import LateFusion
from lightning_crmt.lipschitz import LipschitzConstants
from lightning_crmt.modality import at_least_single
from lightning_crmt.targets import has_labels, signed_scores


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
    _refuse(lipschitz, "labels", "the model has one class per sample")
    if lipschitz.of == "margins":
        return dict(lipschitz.values)
    if lipschitz.of == "encoder":
        return _of_encoders(lipschitz, head, row_distances)
    speeds = _of_each_logit(lipschitz, head)
    return {name: speed[:, None] + speed[None, :] for name, speed in speeds.items()}


def label_sensitivities(lipschitz: LipschitzConstants, head: LateFusion | None) -> dict[str, Tensor]:
    r"""The bounds :math:`D^m`, each ``(K,)``, of labels: how fast each logit can change.

    - constants of encoders: :math:`D_k^m = L_m a_k^m \| d_k^m \|_2`;
    - constants of scores: :math:`D_k^m = a_k^m \tau_k^m`;
    - constants of labels are :math:`D^m` already.

    Differentiable with respect to the integration weights.

    Args:
        lipschitz: constants of encoders, scores or labels.
        head: the head of the same model; needed for all but those of labels.

    Raises:
        ValueError: if a head is needed and there is none, modalities or the number of classes differ, or constants are
            of the margins of pairs, which say nothing about a logit alone.

    >>> from lightning_crmt import FixedFusion, Soundness
    >>> head = FixedFusion({"audio": torch.eye(2)}, {"audio": torch.tensor([1.0, 2.0])}, bias=torch.zeros(2))
    >>> three = LipschitzConstants({"audio": torch.tensor(3.0)}, of="encoder", soundness=Soundness.SOUND)
    >>> label_sensitivities(three, head)["audio"].detach()
    tensor([3., 6.])
    """
    _refuse(lipschitz, "margins", "differences of logits say nothing about one alone, which decides about a label")
    if lipschitz.of == "labels":
        return dict(lipschitz.values)
    return _of_encoders(lipschitz, head, row_lengths) if lipschitz.of == "encoder" else _of_each_logit(lipschitz, head)


def sensitivities_of(lipschitz: LipschitzConstants, head: LateFusion | None, answers: Tensor) -> dict[str, Tensor]:
    """:func:`sensitivities` of the margins of each sample, ``(B, K)`` by modality: of classes, or of labels.

    Args:
        lipschitz: constants that fit.
        head: the head of the same model, where it is needed.
        answers: the own class of each sample ``(B,)``, or labels ``(B, K)`` bool.

    Raises:
        ValueError: as :func:`sensitivities` and :func:`label_sensitivities` do.
    """
    return of_samples((label_sensitivities if has_labels(answers) else sensitivities)(lipschitz, head), answers)


def of_samples(bounds: Mapping[str, Tensor], answers: Tensor) -> dict[str, Tensor]:
    """:func:`of_answers` of each modality."""
    return {name: of_answers(bound, answers) for name, bound in bounds.items()}


def _refuse(lipschitz: LipschitzConstants, of: str, why: str) -> None:
    if lipschitz.of == of:
        raise ValueError(f"`lipschitz` must not be of {of!r} here: {why}")


def _of_encoders(
    lipschitz: LipschitzConstants, head: LateFusion | None, extent: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    rows = {n: at_least_single(each) for n, each in _checked(lipschitz, head).class_weights.items()}
    return {name: _product(value.to(rows[name]), extent(rows[name])) for name, value in lipschitz.values.items()}


def _of_each_logit(lipschitz: LipschitzConstants, head: LateFusion | None) -> dict[str, Tensor]:
    """How fast each logit can change, ``(K,)`` by modality, from constants of scores."""
    head, speeds = _checked(lipschitz, head), {}
    for name, constant in lipschitz.values.items():
        if constant.shape != (head.num_classes,):
            raise ValueError(
                f"`lipschitz.values[{name!r}]` must have shape ({head.num_classes},), one constant per class, "
                f"got {tuple(constant.shape)}"
            )
        weights = at_least_single(head.integration_weights[name])
        speeds[name] = _product(weights, constant.to(weights))
    return speeds


def _checked(lipschitz: LipschitzConstants, head: LateFusion | None) -> LateFusion:
    if not isinstance(head, LateFusion):
        raise ValueError(
            f"`head` must be late fusion with Lipschitz constants of {lipschitz.of}, got {describe(head)}; "
            "other models need constants of margins"
        )
    check_same_modalities("lipschitz", [*lipschitz.modalities, *lipschitz.clean], head.in_features)
    return head


def row_distances(rows: Tensor) -> Tensor:
    """l2 distances of rows ``(K, d)`` from each other, ``(K, K)``, also where their squares would underflow.

    >>> row_distances(torch.tensor([[3e-30, 0.0], [0.0, 4e-30]]))[0, 1]
    tensor(5.0000e-30)
    """
    scale = _power_of_two(rows.detach().abs().amax())
    # This compute mode subtracts before it squares; the other loses half the digits for nearly equal rows.
    return scale * torch.cdist(rows / scale, rows / scale, compute_mode="donot_use_mm_for_euclid_dist")


def row_lengths(rows: Tensor) -> Tensor:
    """l2 lengths of rows ``(K, d)``, ``(K,)``, also where their squares would underflow.

    >>> row_lengths(torch.tensor([[3e-30, 4e-30]]))
    tensor([5.0000e-30])
    """
    scale = _power_of_two(rows.detach().abs().amax(dim=1))
    lengths: Tensor = scale * torch.linalg.vector_norm(rows / scale[:, None], dim=1)
    return lengths


def apart(rows: Tensor, answers: Tensor) -> Tensor:
    """Distances of each sample's own row of ``(K, d)`` from all, ``(B, K)``; of labels the lengths of the rows."""
    return of_answers((row_lengths if has_labels(answers) else row_distances)(rows), answers)


def of_answers(bound: Tensor, answers: Tensor) -> Tensor:
    """The bounds of each sample's margins, ``(B, K)``, among those of all pairs ``(K, K)``, or of labels ``(K,)``."""
    return bound.expand(len(answers), -1) if has_labels(answers) else bound[answers.to(bound.device)]


def together(values: Tensor, answers: Tensor) -> Tensor:
    """Each sample's own of the values ``(K,)`` plus every other, ``(B, K)``; of labels the values alone."""
    return values.expand(len(answers), -1) if has_labels(answers) else values[answers][:, None] + values


def margins_of(logits: Tensor, answers: Tensor) -> Tensor:
    r"""Margins :math:`h_c - h_j` of each sample's own class c over all classes, ``(B, K)``; 0 in its own column.

    Of labels the logits, with the opposite sign where the label is a no.

    Args:
        logits: ``(B, K)``.
        answers: the own class of each sample ``(B,)``, or labels ``(B, K)`` bool.

    >>> margins_of(torch.tensor([[1.0, 3.0]]), torch.tensor([1]))
    tensor([[2., 0.]])
    """
    if has_labels(answers):
        return signed_scores(logits, answers)
    return logits.gather(1, answers[:, None]) - logits


def signed_radii(margins: Tensor, slopes: Mapping[str, Tensor], answers: Tensor) -> Tensor:
    r"""l2 distance over which the margin to each rival surely keeps its sign, with that sign, ``(B, K)``.

    .. math:: r_j = m_j \Big/ \sqrt{\textstyle\sum_m (D_j^m)^2}

    by Cauchy-Schwarz, the sum over the modalities in ``slopes``. Infinite where no perturbation changes the margin, and
    in the column of the own class, which therefore never is the minimum; 0 for a tie.

    Args:
        margins: ``(B, K)``.
        slopes: :math:`D_j^m` of each sample by modality, each ``(B, K)``.
        answers: the own class of each sample ``(B,)``, or labels ``(B, K)`` bool.

    >>> slopes = {"audio": torch.tensor([[0.0, 3.0, 0.0]]), "image": torch.tensor([[0.0, 4.0, 0.0]])}
    >>> signed_radii(torch.tensor([[0.0, 1.0, 1.0]]), slopes, torch.tensor([0]))
    tensor([[   inf, 0.2000,    inf]])
    """
    stacked = torch.stack(list(slopes.values()))
    scale = _power_of_two(stacked.detach().amax(dim=0))  # the squares of tiny slopes underflow
    joint = scale * torch.linalg.vector_norm(stacked / scale, dim=0)
    radii = torch.where((margins == 0) & (joint == 0), margins, margins / joint)
    return radii.masked_fill(own_class(answers, margins.shape[1]), math.inf)


def own_class(answers: Tensor, num_classes: int) -> Tensor:
    """Mask ``(B, K)`` of each sample's own class, which a minimum over rivals must leave out; of labels that is none.

    Args:
        answers: the own class of each sample ``(B,)``, or labels ``(B, K)`` bool.
        num_classes: K.

    >>> own_class(torch.tensor([1, 0]), num_classes=2)
    tensor([[False,  True],
            [ True, False]])
    """
    if has_labels(answers):
        return torch.zeros_like(answers)
    return answers[:, None] == torch.arange(num_classes, device=answers.device)


def _product(first: Tensor, second: Tensor) -> Tensor:
    """A product of bounds, which is 0 only where one of them is: an underflow would make a radius infinite."""
    product = first * second
    tiny = torch.finfo(product.dtype).tiny
    return torch.where((first > 0) & (second > 0), product.clamp(min=tiny), product)


def _power_of_two(value: Tensor) -> Tensor:
    """A power of two near each number, to divide and multiply by without rounding; 1 for 0, infinity and NaN."""
    scale = value / (2 * torch.frexp(value).mantissa)  # exact, as the quotient is a power of two
    return torch.where(value.isfinite() & (value > 0), scale, torch.ones_like(scale))
