# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Randomised smoothing over several inputs: certificates for any model, true with a stated probability."""

from lightning_crmt.smoothing.ablation import Ablation, counted_tokens
from lightning_crmt.smoothing.certificate import AnyCertificate, SmoothedCertificate, needed_probability
from lightning_crmt.smoothing.classifier import At, SmoothedClassifier
from lightning_crmt.smoothing.confidence import (
    clopper_pearson,
    evidence_above,
    evidence_below,
    lower_bound_at_any_time,
    lower_bound_when_stopped,
)
from lightning_crmt.smoothing.finished import FinishedCertificates, fingerprint, joined, sample_digests
from lightning_crmt.smoothing.noisy_batch import BLOCK
from lightning_crmt.smoothing.verify import SmoothedVerification, SmoothedViolation, verify_smoothed

__all__ = [
    "BLOCK",
    "Ablation",
    "AnyCertificate",
    "At",
    "FinishedCertificates",
    "SmoothedCertificate",
    "SmoothedClassifier",
    "SmoothedVerification",
    "SmoothedViolation",
    "clopper_pearson",
    "counted_tokens",
    "evidence_above",
    "evidence_below",
    "fingerprint",
    "joined",
    "lower_bound_at_any_time",
    "lower_bound_when_stopped",
    "needed_probability",
    "sample_digests",
    "verify_smoothed",
]
