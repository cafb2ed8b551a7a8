# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Attacks on several inputs: what a perturbation may be (the budget) apart from how one is searched for."""

from lightning_crmt.attacks.attack import Attack
from lightning_crmt.attacks.budget import Budget
from lightning_crmt.attacks.minimum_norm import Adversarial, MinimumNorm
from lightning_crmt.attacks.pgd import PGD

__all__ = ["PGD", "Adversarial", "Attack", "Budget", "MinimumNorm"]
