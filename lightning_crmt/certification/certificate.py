# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The certificate: how robust the predictions of one batch are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_crmt.certification.inequality import own_class, signed_radii
from lightning_crmt.soundness import Soundness
from lightning_crmt.targets import has_labels


@dataclass(frozen=True)
class Certificate:
    r"""Robustness of the predictions for one batch in the l2 norm, in units of the model's inputs.

    The prediction p of a sample cannot change while, for every other class j,

    .. math:: \sum_m D_j^m \|\delta^m\|_2 < h_p - h_j .

    Of labels, each stays while :math:`\sum_m D_k^m \|\delta^m\|_2 < |h_k|`; the prediction is all of them.

    How far this can be trusted is ``soundness``: with estimated constants the radii are estimates and may be too large.
    It holds only for the weights and the precision it was computed with. :func:`certify` makes it; it stores no model.
    B is the number of samples, K that of classes.

    Attributes:
        prediction: class p of each sample, ``(B,)``, or its labels, ``(B, K)`` bool.
        margins: :math:`h_p - h_j`, or of labels :math:`|h_k|`, ``(B, K)``; all 0 where a logit is not finite, so that
            such a sample has radius 0. Where rounding was counted they are reduced by it, in double precision.
        sensitivities: :math:`D_j^m` by modality, each ``(B, K)``; 0 for samples without it. The column of p itself has
            no meaning. Modalities that have none, such as tokens, stay clean: no radius is about them.
        soundness: the level of trust, the weakest of its parts.
        missing: modalities that were dropped from the fusion.
        limit: the largest :math:`\|\delta^m\|_2` the inequality is proved for; radii and budgets end there.

    >>> from dataclasses import replace
    >>> certificate = Certificate(
    ...     prediction=torch.tensor([0]), margins=torch.tensor([[0.0, 1.0, 1.5]]),
    ...     sensitivities={"audio": torch.tensor([[0.0, 3.0, 9.0]]), "image": torch.tensor([[0.0, 4.0, 0.0]])},
    ...     soundness=Soundness.SOUND)
    >>> certificate.radius(), certificate.nearest_class()  # the runner-up is class 1
    (tensor([0.1667]), tensor([2]))
    >>> certificate.radius(["image"])  # of the image alone, with the audio clean
    tensor([0.2500])
    >>> labels = replace(certificate, prediction=torch.tensor([[True, True, False]]))
    >>> labels.radius(), labels.label_radii()  # nothing is certain about the first
    (tensor([0.]), tensor([[0.0000, 0.2000, 0.1667]]))
    """

    prediction: Tensor
    margins: Tensor
    sensitivities: dict[str, Tensor]
    soundness: Soundness
    missing: tuple[str, ...] = ()
    limit: float = math.inf

    @property
    def num_classes(self) -> int:
        """K, of classes or labels."""
        return self.margins.shape[1]

    def radius(self, modalities: Iterable[str] | None = None) -> Tensor:
        r"""l2 radius of the ball over ``modalities`` in which the prediction stays, ``(B,)``.

        .. math:: \min_{j \ne p} \; (h_p - h_j) \Big/ \sqrt{\textstyle\sum_{m \in S} (D_j^m)^2}

        The minimum runs over all other classes: the runner-up need not attain it. 0 for ties and for logits that are
        not finite; infinite, or ``limit``, where no change in ``modalities`` changes the logits. Compare it in its own
        precision: rounded to a lower one, it may exceed what is proved.

        Args:
            modalities: the set S that is perturbed, all others being clean; all modalities by default.

        Raises:
            ValueError: if a name is unknown, or none is given.
        """
        return self._proved(self._radii(modalities).amin(dim=1))

    def label_radii(self, modalities: Iterable[str] | None = None) -> Tensor:
        r"""l2 radius in which each label stays, whatever becomes of the others, ``(B, K)``.

        .. math:: |h_k| \Big/ \sqrt{\textstyle\sum_{m \in S} (D_k^m)^2}

        Args:
            modalities: the set S that is perturbed, all others being clean; all modalities by default.

        Raises:
            ValueError: if a name is unknown, or none is given, or the certificate is not of labels.
        """
        if not has_labels(self.prediction):
            raise ValueError("`label_radii` are of labels: a certificate of classes has one `radius` for each sample")
        return self._proved(self._radii(modalities))

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
        within = torch.ones(len(fall), dtype=torch.bool, device=fall.device)
        for name, slope in slopes.items():
            budget = torch.as_tensor(budgets[name], dtype=fall.dtype, device=fall.device)
            if budget.shape not in ((), within.shape) or not (budget >= 0).all():
                raise ValueError(f"`budgets[{name!r}]` must be >= 0, a number or shape (B,), got {budgets[name]}")
            within = within & (budget <= self.limit)
            budget = budget.reshape(-1, 1)
            # 0 times infinity: nothing changes if the logits do not depend on a modality, or its budget is 0.
            fall = fall + torch.where((slope == 0) | (budget == 0), 0.0, slope * budget)
        own = own_class(self.prediction, self.margins.shape[1])
        return ((fall < self.margins) | own).all(dim=1) & within

    def nearest_class(self, modalities: Iterable[str] | None = None) -> Tensor:
        """The class j, or the label k, whose bound attains the radius over ``modalities``, all by default, ``(B,)``."""
        radii = self._radii(modalities)
        return torch.where(radii.isnan(), torch.zeros_like(radii), radii).argmin(dim=1)

    def _radii(self, modalities: Iterable[str] | None) -> Tensor:
        return signed_radii(self.margins, self._chosen("modalities", modalities), self.prediction)

    def _proved(self, radii: Tensor) -> Tensor:
        return torch.where(radii > 0, radii, torch.zeros_like(radii)).clamp(max=self.limit)  # NaN is not > 0

    def to(self, device: torch.device | str) -> Certificate:
        """The same certificate on a device, as the Trainer moves what ``predict_step`` returns; precisions stay.

        >>> certificate = Certificate(
        ...     prediction=torch.tensor([0]), margins=torch.tensor([[0.0, 1.0]]),
        ...     sensitivities={"audio": torch.tensor([[0.0, 2.0]])}, soundness=Soundness.SOUND)
        >>> certificate.to("cpu").radius()
        tensor([0.5000])
        """
        return replace(
            self,
            prediction=self.prediction.to(device),
            margins=self.margins.to(device),
            sensitivities={name: slopes.to(device) for name, slopes in self.sensitivities.items()},
        )

    def _chosen(self, argument: str, names: Iterable[str] | None) -> dict[str, Tensor]:
        chosen = list(self.sensitivities) if names is None else [names] if isinstance(names, str) else list(names)
        unknown = [name for name in chosen if name not in self.sensitivities]
        if unknown or not chosen:
            raise ValueError(f"`{argument}` must name modalities among {list(self.sensitivities)}, got {chosen}")
        return {name: self.sensitivities[name] for name in chosen}


# What prediction writers save, `torch.load` reads as it is.
torch.serialization.add_safe_globals([Certificate, Soundness])
