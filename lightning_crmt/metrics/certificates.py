# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Metrics over certificates: lower bounds of the robustness, or estimates that say so."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override

from lightning_crmt.certification import Certificate
from lightning_crmt.checks import check_target


def credited_radius(certificate: Certificate, target: Tensor, modalities: Sequence[str] | None = None) -> Tensor:
    """The radius of each prediction that is right, 0 for each that is wrong, ``(B,)``.

    Args:
        certificate: for the same samples.
        target: classes, ``(B,)``.
        modalities: those that are perturbed, all by default.

    >>> from lightning_crmt import Soundness
    >>> certificate = Certificate(
    ...     prediction=torch.tensor([0, 0]), margins=torch.tensor([[0.0, 1.0], [0.0, 1.0]]),
    ...     sensitivities={"audio": torch.tensor([[0.0, 2.0], [0.0, 2.0]])}, soundness=Soundness.SOUND)
    >>> credited_radius(certificate, torch.tensor([0, 1]))
    tensor([0.5000, 0.0000])
    """
    check_target(target, certificate.margins.shape[1], len(certificate.prediction))
    radius = certificate.radius(modalities)
    return torch.where(certificate.prediction == target, radius, torch.zeros_like(radius))


def robust_at(
    certificate: Certificate, target: Tensor, radius: float, modalities: Sequence[str] | None = None
) -> Tensor:
    """Which predictions are right and stay so in the closed ball of ``radius``, ``(B,)`` bool.

    A tie is not right, so at radius 0 this can be less than the accuracy of an argmax.

    Args:
        certificate: for the same samples.
        target: classes, ``(B,)``.
        radius: l2 radius in units of the model's inputs, at least 0.
        modalities: those that are perturbed, all by default.

    Raises:
        ValueError: if the radius is negative, or a class is out of range.
    """
    if not radius >= 0:
        raise ValueError(f"`radius` must be at least 0, got {radius}")
    return credited_radius(certificate, target, modalities) > radius


class _CertificateMetric(Metric):
    """A mean over samples, of certificates of one kind: certified or estimated."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    label = "certified"
    total: Tensor
    count: Tensor

    def __init__(self, modalities: Sequence[str] | None = None) -> None:
        super().__init__()
        self.modalities = None if modalities is None else list(modalities)
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    @abstractmethod
    def values(self, certificate: Certificate, target: Tensor) -> Tensor:
        """What is averaged, ``(B,)``."""

    @override
    def update(self, certificate: Certificate, target: Tensor) -> None:
        """Take in a batch.

        Raises:
            ValueError: if the certificate is of the other kind, a class is out of range, or a modality is unknown.
        """
        if certificate.soundness.label != self.label:
            other = type(self).__name__.replace(self.label.capitalize(), certificate.soundness.label.capitalize())
            raise ValueError(
                f"`{type(self).__name__}` takes {self.label} radii, got a certificate of soundness "
                f"{certificate.soundness.name}, whose radii are {certificate.soundness.label}; use {other}"
            )
        values = self.values(certificate, target)
        self.total = self.total + values.double().sum()
        self.count = self.count + len(values)

    @override
    def compute(self) -> Tensor:
        """The mean over all samples so far."""
        return (self.total / self.count).float()


class CertifiedAccuracy(_CertificateMetric):
    """Share of samples that are right and certified to stay so within ``radius``; refuses estimates.

    Args:
        radius: l2 radius in units of the model's inputs, at least 0.
        modalities: those that are perturbed, all by default.

    >>> from lightning_crmt import Soundness
    >>> certificate = Certificate(
    ...     prediction=torch.tensor([0, 0]), margins=torch.tensor([[0.0, 1.0], [0.0, 1.0]]),
    ...     sensitivities={"audio": torch.tensor([[0.0, 2.0], [0.0, 2.0]])}, soundness=Soundness.SOUND)
    >>> metric = CertifiedAccuracy(radius=0.2)
    >>> metric.update(certificate, torch.tensor([0, 1]))
    >>> metric.compute()
    tensor(0.5000)
    """

    def __init__(self, radius: float = 0.0, modalities: Sequence[str] | None = None) -> None:
        super().__init__(modalities)
        if not radius >= 0:
            raise ValueError(f"`radius` must be at least 0, got {radius}")
        self.radius = radius

    @override
    def values(self, certificate: Certificate, target: Tensor) -> Tensor:
        return robust_at(certificate, target, self.radius, self.modalities)


class MeanCertifiedRadius(_CertificateMetric):
    """Mean certified radius, a wrong prediction counting as 0; refuses estimates.

    Args:
        modalities: those that are perturbed, all by default.
    """

    @override
    def values(self, certificate: Certificate, target: Tensor) -> Tensor:
        return credited_radius(certificate, target, self.modalities)


class EstimatedAccuracy(CertifiedAccuracy):
    """:class:`CertifiedAccuracy` of radii that rest on estimated constants: no guarantee, and no other name for it."""

    label = "estimated"


class MeanEstimatedRadius(MeanCertifiedRadius):
    """:class:`MeanCertifiedRadius` of radii that rest on estimated constants: no guarantee."""

    label = "estimated"
