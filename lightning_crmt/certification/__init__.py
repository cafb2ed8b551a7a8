# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Robustness certificates: one inequality, and everything that follows from it."""

from lightning_crmt.certification.certificate import Certificate
from lightning_crmt.certification.evaluation import Evaluation, certify_late_fusion, has_forward
from lightning_crmt.certification.from_outputs import certify
from lightning_crmt.certification.inequality import (
    label_sensitivities,
    margins_of,
    own_class,
    sensitivities,
    sensitivities_of,
    signed_radii,
)
from lightning_crmt.certification.verify import (
    CertificateViolation,
    Counterexample,
    Verification,
    verify_certificate,
)
from lightning_crmt.soundness import Soundness

__all__ = [
    "Certificate",
    "CertificateViolation",
    "Counterexample",
    "Evaluation",
    "Soundness",
    "Verification",
    "certify",
    "certify_late_fusion",
    "has_forward",
    "label_sensitivities",
    "margins_of",
    "own_class",
    "sensitivities",
    "sensitivities_of",
    "signed_radii",
    "verify_certificate",
]
