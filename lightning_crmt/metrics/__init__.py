# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Metrics in the style of torchmetrics: pure functions, and classes that average them over samples.

Metrics of certificates are lower bounds of the robustness, or are named estimates; metrics of attacks are upper bounds.
"""

from lightning_crmt.metrics.attacks import MeanAdversarialDistance, RobustAccuracy, credited_distance, withstood
from lightning_crmt.metrics.certificates import (
    CertifiedAccuracy,
    CertifiedLabelAccuracy,
    EstimatedAccuracy,
    EstimatedLabelAccuracy,
    MeanCertifiedRadius,
    MeanEstimatedRadius,
    MeanProbablyCertifiedRadius,
    ProbablyCertifiedAccuracy,
    credited_label_radii,
    credited_radius,
    robust_at,
)
from lightning_crmt.metrics.mismatched import mismatched_inputs, mismatched_pairs

__all__ = [
    "CertifiedAccuracy",
    "CertifiedLabelAccuracy",
    "EstimatedAccuracy",
    "EstimatedLabelAccuracy",
    "MeanAdversarialDistance",
    "MeanCertifiedRadius",
    "MeanEstimatedRadius",
    "MeanProbablyCertifiedRadius",
    "ProbablyCertifiedAccuracy",
    "RobustAccuracy",
    "credited_distance",
    "credited_label_radii",
    "credited_radius",
    "mismatched_inputs",
    "mismatched_pairs",
    "robust_at",
    "withstood",
]
