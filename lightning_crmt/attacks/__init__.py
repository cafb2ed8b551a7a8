# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Attacks on several inputs: what a perturbation may be (the budget) apart from how one is searched for."""

from lightning_crmt.attacks.apgd import APGD
from lightning_crmt.attacks.attack import Attack
from lightning_crmt.attacks.box import Box
from lightning_crmt.attacks.budget import Budget
from lightning_crmt.attacks.ensemble import Ensemble, MinimumNormEnsemble
from lightning_crmt.attacks.fgm import FGM
from lightning_crmt.attacks.hygiene import suspicions
from lightning_crmt.attacks.loss_ascent import LossAscent
from lightning_crmt.attacks.minimum_norm import Adversarial, MinimumNorm
from lightning_crmt.attacks.missing import MissingModality, mean_inputs
from lightning_crmt.attacks.pgd import PGD
from lightning_crmt.attacks.presets import paper_fgm, paper_pgd, strongest
from lightning_crmt.attacks.random_noise import RandomNoise
from lightning_crmt.attacks.random_search import RandomSearch
from lightning_crmt.attacks.second_opinion import AutoAttack, FoolboxDDN

__all__ = [
    "APGD",
    "FGM",
    "PGD",
    "Adversarial",
    "Attack",
    "AutoAttack",
    "Box",
    "Budget",
    "Ensemble",
    "FoolboxDDN",
    "LossAscent",
    "MinimumNorm",
    "MinimumNormEnsemble",
    "MissingModality",
    "RandomNoise",
    "RandomSearch",
    "mean_inputs",
    "paper_fgm",
    "paper_pgd",
    "strongest",
    "suspicions",
]
