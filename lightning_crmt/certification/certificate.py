# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What can be said about the robustness of one batch of predictions."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_crmt.certification.inequality import own_class, sensitivities, signed_radii
from lightning_crmt.certification.rounding import UP, rounding
from lightning_crmt.checks import check_same_modalities, describe
from lightning_crmt.fusion import LateFusion
from lightning_crmt.lipschitz import ForwardError, LipschitzConstants
from lightning_crmt.modality import FusionOutput, at_least_single, logits_of
from lightning_crmt.soundness import Soundness


@dataclass(frozen=True)
class Certificate:
    r"""Robustness of the predictions for one batch in the l2 norm, in units of the model's inputs.

    The prediction p of a sample cannot change while, for every other class j,

    .. math:: \sum_m D_j^m \|\delta^m\|_2 < h_p - h_j .

    How far this can be trusted is ``soundness``: with estimated constants the radii are estimates and may be too large.
    It holds for the very weights and precision it was computed from. Built by :func:`certify`; holds no model, no data.

    Attributes:
        prediction: class p of each sample, ``(B,)``.
        margins: :math:`h_p - h_j`, ``(B, K)``; all 0 where a logit is not finite, so that such a sample has radius 0.
            Less what rounding may take from them, in double precision, where that was counted.
        sensitivities: :math:`D_j^m` by modality, each ``(B, K)``. The column of p itself means nothing.
        soundness: the level of trust, the weakest of its parts.
        missing: modalities that were dropped from the fusion.
        limit: the largest :math:`\|\delta^m\|_2` the inequality is proved for; radii and budgets end there.
    """

    prediction: Tensor
    margins: Tensor
    sensitivities: dict[str, Tensor]
    soundness: Soundness
    missing: tuple[str, ...] = ()
    limit: float = math.inf

    def radius(self, modalities: Iterable[str] | None = None) -> Tensor:
        r"""l2 radius of the ball over ``modalities`` in which the prediction stays, ``(B,)``.

        .. math:: \min_{j \ne p} \; (h_p - h_j) \Big/ \sqrt{\textstyle\sum_{m \in S} (D_j^m)^2}

        The minimum runs over all other classes: the runner-up need not attain it. 0 for ties and for logits that are
        not finite; infinite, or ``limit``, where nothing in ``modalities`` moves the logits. Compare it in its own
        precision: rounded to a shorter one, it may exceed what is proved.

        Args:
            modalities: the set S that is perturbed, all others being clean; all modalities by default.

        Raises:
            ValueError: if a name is unknown, or none is given.
        """
        radii = signed_radii(self.margins, self._chosen("modalities", modalities))
        nearest = radii.masked_fill(self._own_class(), math.inf).amin(dim=1)
        return torch.where(nearest > 0, nearest, torch.zeros_like(nearest)).clamp(max=self.limit)  # NaN is not > 0

    def tolerates(self, budgets: Mapping[str, float | Tensor]) -> Tensor:
        """Whether the prediction stays when each modality is perturbed by at most its own budget, ``(B,)`` bool.

        Args:
            budgets: l2 radius by modality, a number or one per sample ``(B,)``; a modality left out stays clean.

        Raises:
            ValueError: if a name is unknown or a budget is negative or NaN.

        >>> certificate = Certificate(
        ...     prediction=torch.tensor([0]), margins=torch.tensor([[0.0, 1.0]]),
        ...     sensitivities={"audio": torch.tensor([[0.0, 2.0]]), "image": torch.tensor([[0.0, 1.0]])},
        ...     soundness=Soundness.SOUND)
        >>> certificate.tolerates({"audio": 0.1, "image": 0.7}), certificate.tolerates({"audio": 0.4, "image": 0.7})
        (tensor([True]), tensor([False]))
        """
        slopes = self._chosen("budgets", budgets)
        fall = torch.zeros_like(self.margins)
        within = torch.ones_like(self.prediction, dtype=torch.bool)
        for name, slope in slopes.items():
            budget = torch.as_tensor(budgets[name], dtype=fall.dtype, device=fall.device)
            if budget.shape not in ((), self.prediction.shape) or not (budget >= 0).all():
                raise ValueError(f"`budgets[{name!r}]` must be >= 0, a number or shape (B,), got {budgets[name]}")
            within = within & (budget <= self.limit)
            budget = budget.reshape(-1, 1)
            # 0 times infinity: what moves nothing tolerates everything, and what is not moved does no harm.
            fall = fall + torch.where((slope == 0) | (budget == 0), 0.0, slope * budget)
        return ((fall < self.margins) | self._own_class()).all(dim=1) & within

    def nearest_class(self) -> Tensor:
        """The class j whose bound attains the joint radius, ``(B,)``."""
        radii = signed_radii(self.margins, self.sensitivities)
        radii = torch.where(radii.isnan(), torch.zeros_like(radii), radii)
        return radii.masked_fill(self._own_class(), math.inf).argmin(dim=1)

    def _own_class(self) -> Tensor:
        return own_class(self.prediction, self.margins.shape[1])

    def _chosen(self, argument: str, names: Iterable[str] | None) -> dict[str, Tensor]:
        chosen = list(self.sensitivities) if names is None else [names] if isinstance(names, str) else list(names)
        unknown = [name for name in chosen if name not in self.sensitivities]
        if unknown or not chosen:
            raise ValueError(f"`{argument}` must name modalities among {list(self.sensitivities)}, got {chosen}")
        return {name: self.sensitivities[name] for name in chosen}


def certify(
    output: FusionOutput | Tensor,
    head: LateFusion | None,
    lipschitz: LipschitzConstants,
    *,
    missing: Collection[str] = (),
    errors: Mapping[str, ForwardError] | None = None,
) -> Certificate:
    """Turn logits and Lipschitz constants into a :class:`Certificate`.

    The form of the bound follows from what the constants are constants of (see :class:`LipschitzConstants`).

    Without ``errors``, it is about exact arithmetic, ``SOUND`` at best, and a float32 input very near the edge of the
    ball may still change the float32 prediction. With them and rigorous constants it is ``RIGOROUS``: about the
    prediction of the public forward in evaluation mode, without autocast, for all inputs in the precision of the
    parameters.

    Args:
        output: what the model returned, computed in evaluation mode and full precision.
        head: the fusion head that computed it; ``None`` for another model, with constants of margins.
        lipschitz: constants of the same weights.
        missing: modalities to certify without: dropped from the fusion, their score adding nothing.
        errors: rounding errors of the features of these very samples, of every modality that is not missing, by
            :func:`~lightning_crmt.lipschitz.encoder_errors`. They need constants of encoders and a head of fixed
            numbers on the CPU, see :func:`~lightning_crmt.layers.with_fixed_weights`.

    Raises:
        ValueError: if head, constants, errors and output do not fit together, or every modality is missing; with
            ``errors``, if ``head`` computes its weights anew in every pass, as ``OrthogonalFusion`` does.
        TypeError: if there is no tensor of logits in ``output``.

    >>> from lightning_crmt.fusion import LinearFusion
    >>> head = LinearFusion({"audio": 3, "image": 4}, num_classes=5)
    >>> output = head({"audio": torch.randn(2, 3), "image": torch.randn(2, 4)})
    >>> one = {"audio": torch.tensor(1.0), "image": torch.tensor(1.0)}
    >>> certificate = certify(output, head, LipschitzConstants(one, of="encoder", soundness=Soundness.SOUND))
    >>> bool((certificate.radius() <= certificate.radius(["audio"])).all())
    True
    """
    logits = logits_of(output)
    pairs = sensitivities(lipschitz, head)
    if missing:
        logits, pairs = _without(missing, output, head, pairs)
    logits = logits.detach()
    num_classes = logits.shape[1]
    for name, pair in pairs.items():
        if pair.shape != (num_classes, num_classes):
            raise ValueError(
                f"`lipschitz` must fit the {num_classes} classes of `output`, got {tuple(pair.shape)} for {name!r}"
            )
    prediction = logits.argmax(dim=1)
    if errors is None:
        margins = _margins(at_least_single(logits), prediction)
        slopes = {name: pair.detach().to(margins)[prediction] for name, pair in pairs.items()}
        # Nothing here accounts for rounding, however rigorous the constants are.
        soundness = min(lipschitz.soundness, Soundness.SOUND)
        return Certificate(prediction, margins, slopes, soundness, tuple(missing))
    present = [name for name in pairs if name not in missing]
    errors = {name: error for name, error in errors.items() if name not in missing}
    check_same_modalities("errors", errors, present)
    slack, slopes = rounding(logits, head, lipschitz, errors)
    margins = _margins(logits.double(), prediction) / UP - slack
    slopes = {name: slopes.get(name, torch.zeros_like(margins)) for name in pairs}
    return Certificate(
        prediction, margins, slopes, lipschitz.soundness, tuple(missing), limit=ForwardError.LARGEST_RADIUS
    )


def _margins(logits: Tensor, prediction: Tensor) -> Tensor:
    margins = logits.gather(1, prediction[:, None]) - logits
    return torch.where(logits.isfinite().all(dim=1, keepdim=True), margins, torch.zeros_like(margins))


def _without(
    missing: Collection[str], output: FusionOutput | Tensor, head: LateFusion | None, pairs: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    if isinstance(missing, str):
        raise TypeError(f"`missing` must be a collection of names, got the string {missing!r}")
    if head is None or not isinstance(output, FusionOutput):
        raise ValueError(
            "`missing` needs a fusion head and a FusionOutput to drop scores from, "
            f"got {describe(head)} and {describe(output)}"
        )
    unknown = [name for name in missing if name not in pairs]
    present = [name for name in pairs if name not in missing]
    if unknown or not present:
        raise ValueError(f"`missing` must leave at least one of the modalities {list(pairs)}, got {list(missing)}")
    check_same_modalities("output.scores", output.scores, pairs)
    logits = head.fuse({name: output.scores[name] for name in present})
    return logits, {name: pair if name in present else torch.zeros_like(pair) for name, pair in pairs.items()}
