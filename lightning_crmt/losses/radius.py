# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Training on the certified radius itself: objectives on the bound of the margins to every rival."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_crmt.certification import margins_of, own_class, sensitivities_of
from lightning_crmt.checks import check_at_least, check_logits, check_positive
from lightning_crmt.fusion import LateFusion
from lightning_crmt.lipschitz import LipschitzConstants
from lightning_crmt.losses.integration import bounded_slopes
from lightning_crmt.modality import FusionOutput, have_any, mean_over
from lightning_crmt.targets import check_answers, has_labels


class RadiusObjective(ABC):
    r"""What training makes of margins :math:`m_j = h_y - h_j` and of their sensitivities :math:`D_j`, for each sample.

    :math:`D_j = \sqrt{\sum_m (D_{yj}^m)^2}` for one ball over all modalities, or :math:`D_{yj}^m` for a ball over one:
    the margin to rival j can fall to :math:`m_j - R D_j` at worst within radius R. Of labels :math:`m_k = \pm h_k`,
    with the sign of the label, and each is decided against 0.
    """

    @abstractmethod
    def __call__(self, margins: Tensor, sensitivity: Tensor, own: Tensor, radius: float, labels: bool) -> Tensor:
        """The loss of each sample, ``(B,)``.

        Args:
            margins: ``(B, K)``.
            sensitivity: ``(B, K)``, above 0.
            own: which columns are the own class, with which nothing competes, ``(B, K)`` bool; none of labels.
            radius: R, in units of the inputs.
            labels: whether columns are labels, each by itself, and not rivals of one class.
        """


@dataclass(frozen=True)
class Hinge(RadiusObjective):
    r"""A smooth hinge: pushes the radius to every rival above R, and is content there.

    .. math:: \mathrm{softplus} \log \sum_{j \ne y} \exp\big( T (R - m_j / D_j) \big)

    about :math:`T \max(0, R - \min_j m_j / D_j)` for large T. A sample that is far from R weighs no more than another
    that is short of it by as much.

    Args:
        temperature: T, in inverse units of the inputs, above 0.

    >>> hinge = Hinge(temperature=15.0)
    """

    temperature: float = 15.0

    def __post_init__(self) -> None:
        check_positive(temperature=self.temperature)

    @override
    def __call__(self, margins: Tensor, sensitivity: Tensor, own: Tensor, radius: float, labels: bool) -> Tensor:
        missed = (self.temperature * (radius - margins / sensitivity)).masked_fill(own, -torch.inf)
        return nn.functional.softplus(torch.logsumexp(missed, dim=1))


@dataclass(frozen=True)
class EMMA(RadiusObjective):
    r"""Cross-entropy of the logits as an attack within R would leave them (EMMA, after Hu et al., ICLR 2024).

    .. math:: \mathrm{CE}\big( -m_j + R q_j D_j \big), \qquad
        q_j = \mathrm{clip}\Big( \frac{m_j}{R D_j},\; 0.01,\; 1 \Big) \text{ without gradient}

    with 0 for the own class: each rival gets the whole attack once it is further away than R, and until then the part
    of it that makes the two equal, so that rivals that win anyhow do not drown the others. The gradient goes through
    :math:`D_j` too: it makes the head less sensitive where that pays. For several modalities the joint sensitivity is
    what the ball over all of them can do; a modality that weighs less in the margin weighs less in it.

    It buys guarantees with clean accuracy, and may give up a class that is hard to tell apart.

    >>> objective = EMMA()
    """

    @override
    def __call__(self, margins: Tensor, sensitivity: Tensor, own: Tensor, radius: float, labels: bool) -> Tensor:
        attacked = self.attacked(margins, sensitivity, own, radius)
        if labels:
            return nn.functional.softplus(attacked).mean(dim=1)
        return nn.functional.softplus(torch.logsumexp(attacked, dim=1))

    @staticmethod
    def attacked(margins: Tensor, sensitivity: Tensor, own: Tensor, radius: float) -> Tensor:
        """By how much each rival leads after the attack, ``(B, K)``; minus infinity for the own class."""
        share = (margins / (radius * sensitivity)).clamp(0.01, 1).detach()
        return (radius * share * sensitivity - margins).masked_fill(own, -torch.inf)


@dataclass(frozen=True)
class LogitAnnealing(RadiusObjective):
    r""":class:`EMMA` in an annealed cross-entropy (after Lai et al., ICLR 2025), which stops where a sample is safe.

    .. math:: T (1 - e^{-c})^\beta c, \qquad c = \mathrm{CE}\big( (-m_j + R q_j D_j + \xi) / T \big)

    with an offset :math:`\xi` that every rival gets. Where the rivals are far, :math:`c \to 0` and the factor anneals
    the gradient away, so that capacity goes to samples that are short of the margin. Harder than EMMA on classes that
    are hard to tell apart: watch the worst class.

    Args:
        temperature: T, in units of the logits, above 0.
        offset: :math:`\xi`, in units of the logits, at least 0.
        focus: :math:`\beta`, at least 0.

    >>> objective = LogitAnnealing(offset=2.0)
    """

    temperature: float = 0.75
    offset: float = 2.0
    focus: float = 5.0

    def __post_init__(self) -> None:
        check_positive(temperature=self.temperature)
        check_at_least(0, offset=self.offset, focus=self.focus)

    @override
    def __call__(self, margins: Tensor, sensitivity: Tensor, own: Tensor, radius: float, labels: bool) -> Tensor:
        attacked = (EMMA.attacked(margins, sensitivity, own, radius) + self.offset) / self.temperature
        each = nn.functional.softplus(attacked if labels else torch.logsumexp(attacked, dim=1, keepdim=True))
        # Not 1 - exp(-c), which is 0 with no gradient where c is small.
        return (self.temperature * (-torch.expm1(-each)).pow(self.focus) * each).mean(dim=1)


def radius_loss(
    output: FusionOutput,
    target: Tensor,
    head: LateFusion,
    lipschitz: LipschitzConstants,
    *,
    radius: float = 0.2,
    temperature: float = 15.0,
    rho: float = 0.2,
    objective: RadiusObjective | None = None,
) -> Tensor:
    r"""Raises the joint radius, and that of each modality alone, over all rivals.

    .. math:: L = \frac 1 N \sum_i \ell_R\big( m_j(x_i), D_j \big)
        + \rho \sum_m \ell_{R/2}\big( a_y^m s_y^m(x_i) - a_j^m s_j^m(x_i),\; D_{yj}^m \big)

    with the margins :math:`m_j = h_y - h_j`, the joint bounds :math:`D_j = \sqrt{\sum_m (D_{yj}^m)^2}` of how fast they
    change, and an objective :math:`\ell_R`: a smooth :class:`Hinge`, :class:`EMMA` or :class:`LogitAnnealing`. Large
    logits alone satisfy cross-entropy but not this loss: scaling logits up changes no radius. The second term, about
    the logits of modality m alone, is margin regularisation in units of the radius; it keeps each modality useful when
    the others are missing.

    Args:
        output: output of ``head``.
        target: classes ``(B,)``, or labels ``(B, K)`` of bools or integers.
        head: the head; gradients flow to all of its parameters.
        lipschitz: constants of encoders or scores. For encoders that are 1-Lipschitz by construction they do not change
            in training; with others this loss trains the head well, but encoders without a view of their constants.
        radius: the wanted radius R, in units of the inputs, above 0.
        temperature: of the hinge, in inverse units of the inputs, above 0; other objectives have their own.
        rho: weight of the modalities' own terms, at least 0.
        objective: by default the hinge.

    Raises:
        ValueError: if a setting is out of range, logits are not finite, or a class is out of range.

    >>> from lightning_crmt import LinearFusion, Soundness
    >>> head = LinearFusion({"audio": 4}, num_classes=3)
    >>> one = LipschitzConstants({"audio": torch.tensor(1.0)}, of="encoder", soundness=Soundness.SOUND)
    >>> radius_loss(head({"audio": torch.ones(2, 4)}), torch.tensor([0, 2]), head, one, objective=EMMA()).shape
    torch.Size([])
    """
    check_positive(radius=radius, temperature=temperature)
    check_at_least(0, rho=rho)
    check_logits(output.logits)
    target = check_answers(target, output.logits.shape[1], output.logits.shape[0])
    objective = Hinge(temperature) if objective is None else objective
    own = own_class(target, output.logits.shape[1]).expand_as(output.logits)

    def mean_loss(logits: Tensor, slopes: Mapping[str, Tensor], wanted: float) -> Tensor:
        bounded = bounded_slopes(logits, target, slopes, output.present)
        sensitivity = torch.stack(list(bounded.values())).norm(dim=0)
        losses = objective(margins_of(logits, target), sensitivity, own, wanted, has_labels(target))
        return mean_over(losses, have_any(output, slopes))

    slopes = sensitivities_of(lipschitz, head, target)
    loss = mean_loss(output.logits, slopes, radius)
    if rho > 0:
        for name, slope in slopes.items():
            alone = head.integration_weights[name] * output.scores[name]
            loss = loss + rho * mean_loss(alone, {name: slope}, radius / 2)
    return loss
