# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Robustness certificates: one inequality, and everything that follows from it."""

from lightning_crmt.certification.certificate import Certificate, certify
from lightning_crmt.soundness import Soundness

__all__ = ["Certificate", "Soundness", "certify"]
