# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The integration objective, step 2 of CRMT, and the radii of the true classes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from lightning_crmt.certification import margins_of, own_class, sensitivities_of, signed_radii
from lightning_crmt.checks import check_logits
from lightning_crmt.fusion import LateFusion
from lightning_crmt.lipschitz import LipschitzConstants
from lightning_crmt.modality import FusionOutput, Inputs, have_any, mean_over, where_present
from lightning_crmt.targets import check_answers

#: How step 2 averages the bound over samples.
Objective: TypeAlias = Literal["mean", "clipped"]
OBJECTIVES = get_args(Objective)


def integration_objective(
    output: FusionOutput,
    target: Tensor,
    head: LateFusion,
    lipschitz: LipschitzConstants,
    *,
    objective: Objective = "clipped",
    clip: float | None = None,
) -> Tensor:
    r"""Negative mean of the robustness bound over integration weights, step 2 of CRMT (Yang et al., ICLR 2024).

    .. math:: L_2 = - \frac 1 N \sum_i r(x_i), \qquad
        r(x) = \min_{j \ne y} \frac{h_y - h_j}{\sqrt{\sum_m (D_{yj}^m)^2}}

    with :math:`D` from the Lipschitz constants (see :func:`~lightning_crmt.certification.inequality.sensitivities`)
    and y the true class, so that r is negative where the model errs; of labels the least
    :math:`\pm h_k / \sqrt{\sum_m (D_k^m)^2}`, with the sign of the label. ``"clipped"`` replaces r by
    :math:`\max(-c, \min(r, c))`: samples that are safe, or hopeless, no longer contribute gradients. Samples
    that have no modality that could change, whose bound is infinite, do not count.

    Args:
        output: output of ``head``, its logits with a graph back to the integration weights.
        target: classes ``(B,)``, or labels ``(B, K)`` of bools or integers.
        head: the head; gradients flow to its ``integration_parameters()``.
        lipschitz: constants of encoders or scores, which do not change with the integration weights.
        objective: ``"clipped"`` or ``"mean"``, the paper's.
        clip: the bound c, in units of the inputs; needed for ``"clipped"``.

    Raises:
        ValueError: if ``clip`` is needed and not above 0, constants are of margins, or a class is out of range.

    >>> from lightning_crmt import OrthogonalFusion, Soundness
    >>> head = OrthogonalFusion({"audio": 4, "image": 4}, num_classes=3)
    >>> output = head({"audio": torch.ones(2, 4), "image": torch.ones(2, 4)})
    >>> one = {"audio": torch.tensor(1.0), "image": torch.tensor(1.0)}
    >>> constants = LipschitzConstants(one, of="encoder", soundness=Soundness.SOUND)
    >>> integration_objective(output, torch.tensor([0, 2]), head, constants, clip=0.5).shape
    torch.Size([])
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"`objective` must be one of {OBJECTIVES}, got {objective!r}")
    if objective == "mean":
        clip = math.inf
    if clip is None or not clip > 0:
        raise ValueError(f"`clip` must be above 0 for the clipped objective, got {clip}")
    if lipschitz.of in ("margins", "labels"):
        raise ValueError(
            f"`lipschitz` must be of 'encoder' or 'scores'; constants of {lipschitz.of!r} contain the weights"
        )
    radii = true_class_radii(output, target, head, lipschitz)
    return -mean_over(radii.clamp(-clip, clip), ~radii.isinf())


def true_class_radii(output: FusionOutput, target: Tensor, head: LateFusion, lipschitz: LipschitzConstants) -> Tensor:
    """The bound r of :func:`integration_objective` for each sample, ``(B,)``, negative where the model errs.

    Differentiable, and in units of the inputs. Unlike :meth:`~lightning_crmt.Certificate.radius` it is about the true
    classes, not those predicted. Infinite, with the sign of the margin, for samples that lack all modalities that the
    constants are of.

    Args:
        output: output of ``head``, logits ``(B, K)``, and which modalities are present.
        target: classes ``(B,)``, or labels ``(B, K)`` of bools or integers.
        head: the head.
        lipschitz: constants of encoders, scores or margins.

    Raises:
        ValueError: if logits are not finite, a class is out of range, or head and constants do not fit together.
        TypeError: if ``target`` does not hold integers.

    >>> from lightning_crmt import FixedFusion, Soundness
    >>> head = FixedFusion({"audio": torch.eye(2)}, {"audio": torch.ones(2)}, bias=torch.zeros(2))
    >>> one = LipschitzConstants({"audio": torch.tensor(1.0)}, of="encoder", soundness=Soundness.SOUND)
    >>> output = head({"audio": torch.tensor([[2.0, 0.0], [2.0, 0.0]])})
    >>> true_class_radii(output, torch.tensor([0, 1]), head, one).detach()  # the second is wrong
    tensor([ 1.4142, -1.4142])
    """
    check_logits(output.logits)
    target = check_answers(target, output.logits.shape[1], output.logits.shape[0])
    slopes = sensitivities_of(lipschitz, head, target)
    radii = _radii_to_rivals(output.logits, target, slopes, output.present).amin(dim=1)
    fixed = ~have_any(output, slopes)
    return torch.where(fixed, torch.copysign(radii.new_tensor(math.inf), radii.detach()), radii)


def _radii_to_rivals(logits: Tensor, target: Tensor, slopes: Mapping[str, Tensor], present: Inputs) -> Tensor:
    """Signed radii of the true class against every other, ``(B, K)``, infinite in its own column; or of labels."""
    return signed_radii(margins_of(logits, target), bounded_slopes(logits, target, slopes, present), target)


def bounded_slopes(logits: Tensor, target: Tensor, slopes: Mapping[str, Tensor], present: Inputs) -> dict[str, Tensor]:
    """Sensitivities ``(B, K)`` by modality that quotients are finite with: 0 where absent, 1 in the own column."""
    own = own_class(target, logits.shape[1])
    slopes = {name: where_present(slope.to(logits), present.get(name)) for name, slope in slopes.items()}
    # Where all weights of a pair are 0 its margin is the bias alone and its slope 0: keep the quotient finite.
    tiny = torch.finfo(logits.dtype).eps
    return {name: slope.masked_fill(own, 1.0).clamp(min=tiny) for name, slope in slopes.items()}
