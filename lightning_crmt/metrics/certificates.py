# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Metrics over certificates: lower bounds of the robustness, or estimates that say so."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_crmt.metrics.sample_mean import SampleMean
from lightning_crmt.smoothing import AnyCertificate, SmoothedCertificate
from lightning_crmt.soundness import Soundness
from lightning_crmt.targets import check_answers, has_labels


def credited_radius(certificate: AnyCertificate, target: Tensor, modalities: Sequence[str] | None = None) -> Tensor:
    """The radius of each prediction that is right, 0 for each that is wrong, ``(B,)``; of labels all must be right.

    Args:
        certificate: for the same samples.
        target: classes, ``(B,)``, or labels, ``(B, K)`` of bools or integers.
        modalities: those that are perturbed, all by default.

    Raises:
        ValueError: if a class is out of range, a modality is unknown, or one is of classes and the other of labels.

    >>> from lightning_crmt import Certificate, Soundness
    >>> certificate = Certificate(
    ...     prediction=torch.tensor([0, 0]), margins=torch.tensor([[0.0, 1.0], [0.0, 1.0]]),
    ...     sensitivities={"audio": torch.tensor([[0.0, 2.0], [0.0, 2.0]])}, soundness=Soundness.SOUND)
    >>> credited_radius(certificate, torch.tensor([0, 1]))
    tensor([0.5000, 0.0000])
    """
    right = _right(certificate, target)
    radius = certificate.radius(modalities)
    return torch.where(right.all(dim=1) if right.dim() == 2 else right, radius, torch.zeros_like(radius))


def credited_label_radii(
    certificate: AnyCertificate, target: Tensor, modalities: Sequence[str] | None = None
) -> Tensor:
    """The radius of each label that is right, whatever becomes of the others, 0 for each that is wrong, ``(B, K)``.

    Args:
        certificate: of labels of the same samples.
        target: labels, ``(B, K)`` of bools or integers.
        modalities: those that are perturbed, all by default.

    Raises:
        ValueError: if the certificate or the target is of classes, or a modality is unknown.

    >>> from lightning_crmt import Certificate, Soundness
    >>> certificate = Certificate(
    ...     prediction=torch.tensor([[True, False]]), margins=torch.tensor([[1.0, 3.0]]),
    ...     sensitivities={"audio": torch.tensor([[2.0, 2.0]])}, soundness=Soundness.SOUND)
    >>> credited_label_radii(certificate, torch.tensor([[1, 1]]))
    tensor([[0.5000, 0.0000]])
    """
    if isinstance(certificate, SmoothedCertificate):
        raise ValueError("`certificate` must be of labels, and a smoothed classifier answers one class per sample")
    radii = certificate.label_radii(modalities)
    return torch.where(_right(certificate, target), radii, torch.zeros_like(radii))


def _right(certificate: AnyCertificate, target: Tensor) -> Tensor:
    target = check_answers(target, certificate.num_classes, len(certificate.prediction))
    if has_labels(target) != has_labels(certificate.prediction):
        kinds = ["classes (B,)", "labels (B, K)"]
        raise ValueError(
            f"`target` must be of {kinds[has_labels(certificate.prediction)]}, as the certificate is, "
            f"got {kinds[has_labels(target)]}"
        )
    return certificate.prediction == target.to(certificate.prediction.device)


def robust_at(
    certificate: AnyCertificate, target: Tensor, radius: float, modalities: Sequence[str] | None = None
) -> Tensor:
    """Which predictions are right and stay so in the closed ball of ``radius``, ``(B,)`` bool.

    A tie is not right, so at radius 0 this can be less than the accuracy of an argmax.

    Args:
        certificate: for the same samples.
        target: classes, ``(B,)``, or labels, ``(B, K)`` of bools or integers.
        radius: l2 radius in units of the model's inputs, at least 0.
        modalities: those that are perturbed, all by default.

    Raises:
        ValueError: if the radius is negative, a class is out of range, or a modality is unknown.

    >>> from lightning_crmt import Certificate, Soundness
    >>> certificate = Certificate(  # of radii 0.5, and 0 for a tie
    ...     prediction=torch.tensor([0, 0]), margins=torch.tensor([[0.0, 1.0], [0.0, 0.0]]),
    ...     sensitivities={"audio": torch.tensor([[0.0, 2.0], [0.0, 2.0]])}, soundness=Soundness.SOUND)
    >>> target = torch.tensor([0, 0])
    >>> robust_at(certificate, target, 0.4), robust_at(certificate, target, 0.5), robust_at(certificate, target, 0.0)
    (tensor([ True, False]), tensor([False, False]), tensor([ True, False]))
    """
    if not radius >= 0:
        raise ValueError(f"`radius` must be at least 0, got {radius}")
    return credited_radius(certificate, target, modalities) > radius


def _in_words(kind: str) -> str:
    return kind.replace("_", " ")


def _in_names(kind: str) -> str:
    return kind.title().replace("_", "")


class _CertificateMetric(SampleMean):
    """A mean over samples, of certificates of one kind: certified, probably certified or estimated."""

    #: The label of their soundness.
    kind = Soundness.SOUND.label

    @abstractmethod
    def values(self, certificate: AnyCertificate, target: Tensor) -> Tensor:
        """What is averaged, ``(B,)``."""

    @override
    def update(self, certificate: AnyCertificate, target: Tensor) -> None:
        """Add a batch.

        Args:
            certificate: for B samples, its margins and sensitivities ``(B, K)``.
            target: classes of these samples, ``(B,)``, or labels ``(B, K)``.

        Raises:
            ValueError: if the certificate is of the other kind, a class is out of range, or a modality is unknown.
        """
        soundness = certificate.soundness
        if soundness.label != self.kind:
            name = type(self).__name__
            other = name.replace(_in_names(self.kind), _in_names(soundness.label))
            raise ValueError(
                f"`{name}` takes {_in_words(self.kind)} radii, got a certificate of soundness {soundness.name}, "
                f"whose radii are {_in_words(soundness.label)}; use {other}"
            )
        self._add(self.values(certificate, target))


class CertifiedAccuracy(_CertificateMetric):
    """Share of samples that are right and certified to stay so within ``radius``; refuses estimates.

    Args:
        radius: l2 radius in units of the model's inputs, at least 0.
        modalities: those that are perturbed, all by default.
        kwargs: those of ``torchmetrics.Metric``.

    Raises:
        ValueError: if the radius is negative.

    >>> from lightning_crmt import Certificate, Soundness
    >>> certificate = Certificate(
    ...     prediction=torch.tensor([0, 0]), margins=torch.tensor([[0.0, 1.0], [0.0, 1.0]]),
    ...     sensitivities={"audio": torch.tensor([[0.0, 2.0], [0.0, 2.0]])}, soundness=Soundness.SOUND)
    >>> metric = CertifiedAccuracy(radius=0.2)
    >>> metric.update(certificate, torch.tensor([0, 1]))
    >>> metric.compute()
    tensor(0.5000)
    """

    plot_upper_bound = 1.0

    def __init__(self, radius: float = 0.0, modalities: Sequence[str] | None = None, **kwargs: Any) -> None:
        if not radius >= 0:
            raise ValueError(f"`radius` must be at least 0, got {radius}")
        super().__init__(radius, modalities, **kwargs)
        self.radius = radius
        self.modalities = None if modalities is None else list(modalities)

    @override
    def values(self, certificate: AnyCertificate, target: Tensor) -> Tensor:
        return robust_at(certificate, target, self.radius, self.modalities)


class CertifiedLabelAccuracy(CertifiedAccuracy):
    """Share of labels that are right and certified to stay so within ``radius``, each by itself; refuses estimates.

    The arguments are the same. :class:`CertifiedAccuracy` is the share of samples all of whose labels are.

    >>> from lightning_crmt import Certificate, Soundness
    >>> certificate = Certificate(
    ...     prediction=torch.tensor([[True, False]]), margins=torch.tensor([[1.0, 3.0]]),
    ...     sensitivities={"audio": torch.tensor([[2.0, 2.0]])}, soundness=Soundness.SOUND)
    >>> metric = CertifiedLabelAccuracy(radius=0.7)
    >>> metric.update(certificate, torch.tensor([[True, False]]))
    >>> metric.compute()
    tensor(0.5000)
    """

    @override
    def values(self, certificate: AnyCertificate, target: Tensor) -> Tensor:
        return (credited_label_radii(certificate, target, self.modalities) > self.radius).float().mean(dim=1)


class MeanCertifiedRadius(_CertificateMetric):
    r"""Mean certified radius, a wrong prediction counting as 0; refuses estimates.

    .. math:: \frac 1 N \sum_i r(x_i) \, [p_i = y_i]

    in units of the model's inputs; infinite if no perturbation can change one of the right predictions.

    Args:
        modalities: those that are perturbed, all by default.
        kwargs: those of ``torchmetrics.Metric``.

    >>> from lightning_crmt import Certificate, Soundness
    >>> slopes = {"audio": torch.tensor([[0.0, 3.0]] * 2), "image": torch.tensor([[0.0, 4.0]] * 2)}
    >>> certificate = Certificate(
    ...     prediction=torch.tensor([0, 0]), margins=torch.tensor([[0.0, 1.0]] * 2), sensitivities=slopes,
    ...     soundness=Soundness.SOUND)
    >>> joint, audio = MeanCertifiedRadius(), MeanCertifiedRadius(modalities=["audio"])
    >>> for metric in (joint, audio):
    ...     metric.update(certificate, torch.tensor([0, 1]))  # the second is wrong
    >>> joint.compute(), audio.compute()
    (tensor(0.1000), tensor(0.1667))
    """

    is_differentiable = True

    def __init__(self, modalities: Sequence[str] | None = None, **kwargs: Any) -> None:
        super().__init__(modalities, **kwargs)
        self.modalities = None if modalities is None else list(modalities)

    @override
    def values(self, certificate: AnyCertificate, target: Tensor) -> Tensor:
        return credited_radius(certificate, target, self.modalities)


class EstimatedAccuracy(CertifiedAccuracy):
    """:class:`CertifiedAccuracy` of radii that rest on estimated constants: no guarantee, as the name says.

    The arguments are the same. It refuses certificates from bounds, as the other refuses estimates.

    >>> from lightning_crmt import Certificate, Soundness
    >>> certificate = Certificate(
    ...     prediction=torch.tensor([0, 0]), margins=torch.tensor([[0.0, 1.0]] * 2),
    ...     sensitivities={"audio": torch.tensor([[0.0, 2.0]] * 2)}, soundness=Soundness.ESTIMATED)
    >>> metric = EstimatedAccuracy(radius=0.2)
    >>> metric.update(certificate, torch.tensor([0, 1]))
    >>> metric.compute()
    tensor(0.5000)
    >>> CertifiedAccuracy(radius=0.2).update(certificate, torch.tensor([0, 1]))
    Traceback (most recent call last):
        ...
    ValueError: `CertifiedAccuracy` takes certified radii, got a certificate of soundness ESTIMATED, whose radii are
    estimated; use EstimatedAccuracy
    """

    kind = Soundness.ESTIMATED.label


class EstimatedLabelAccuracy(CertifiedLabelAccuracy):
    """:class:`CertifiedLabelAccuracy` of radii that rest on estimated constants: no guarantee.

    The arguments are the same. It refuses certificates from bounds, as the other refuses estimates.

    >>> from lightning_crmt import LinearFusion, certify, estimate_lipschitz
    >>> head, x = LinearFusion({"audio": 4}, num_classes=3), {"audio": torch.randn(5, 4)}
    >>> certificate = certify(head(x), head, estimate_lipschitz(head, [x]), multi_label=True)
    >>> metric = EstimatedLabelAccuracy()
    >>> metric.update(certificate, target=certificate.prediction)  # as if all were right
    >>> metric.compute()
    tensor(1.)
    """

    kind = Soundness.ESTIMATED.label


class MeanEstimatedRadius(MeanCertifiedRadius):
    """:class:`MeanCertifiedRadius` of radii that rest on estimated constants: no guarantee.

    The arguments are the same. It refuses certificates from bounds, as the other refuses estimates.

    >>> from lightning_crmt import LinearFusion, certify, estimate_lipschitz
    >>> head, x = LinearFusion({"audio": 4}, num_classes=3), {"audio": torch.randn(5, 4)}
    >>> certificate = certify(head(x), head, estimate_lipschitz(head, [x]))
    >>> metric = MeanEstimatedRadius()
    >>> metric.update(certificate, target=certificate.prediction)  # as if all were right
    >>> torch.allclose(metric.compute(), certificate.radius().mean())
    True
    """

    kind = Soundness.ESTIMATED.label


class ProbablyCertifiedAccuracy(CertifiedAccuracy):
    """:class:`CertifiedAccuracy` of a smoothed classifier: each certificate holds with probability 1 - alpha.

    The arguments are the same; an abstention counts as not right. It refuses all other certificates.

    >>> from lightning_crmt import SmoothedClassifier
    >>> smoothed = SmoothedClassifier(lambda inputs: inputs["audio"], sigma=0.5)
    >>> certificate = smoothed.certify({"audio": torch.tensor([[9.0, 0.0], [0.0, 0.0]])}, radii=[0.5])
    >>> metric = ProbablyCertifiedAccuracy(radius=0.5)
    >>> metric.update(certificate, torch.tensor([0, 0]))
    >>> metric.compute()
    tensor(0.5000)
    """

    kind = Soundness.PROBABILISTIC.label


class MeanProbablyCertifiedRadius(MeanCertifiedRadius):
    """:class:`MeanCertifiedRadius` of a smoothed classifier: each radius holds with probability 1 - alpha.

    The arguments are the same; an abstention counts as 0. It refuses all other certificates. Sequential tests stop when
    they know enough for the radii asked for: for a mean radius certify without ``radii``.

    >>> from lightning_crmt import SmoothedClassifier
    >>> smoothed = SmoothedClassifier(lambda inputs: inputs["audio"], sigma=0.5)
    >>> certificate = smoothed.certify({"audio": torch.tensor([[9.0, 0.0], [0.0, 0.0]])})
    >>> metric = MeanProbablyCertifiedRadius()
    >>> metric.update(certificate, torch.tensor([0, 0]))
    >>> metric.compute()  # half of what 10,000 draws without exception prove
    tensor(0.7996)
    """

    kind = Soundness.PROBABILISTIC.label
    is_differentiable = False
