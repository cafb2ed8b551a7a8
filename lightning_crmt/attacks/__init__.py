# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Attacks on several inputs. A budget says which perturbations are allowed; an attack says how to search for one."""

from lightning_crmt.attacks.apgd import APGD
from lightning_crmt.attacks.attack import Attack, BudgetedAttack
from lightning_crmt.attacks.averaged_model import AveragedModel
from lightning_crmt.attacks.embedded_model import EmbeddedModel
from lightning_crmt.attacks.ensemble import Ensemble, MinimumNormEnsemble
from lightning_crmt.attacks.external.autoattack import AutoAttack
from lightning_crmt.attacks.external.foolbox import FoolboxDDN
from lightning_crmt.attacks.fgm import FGM
from lightning_crmt.attacks.minimum_norm import Adversarial, MinimumNorm, MinimumNormAttack
from lightning_crmt.attacks.missing import Fill, MissingModality, mean_inputs
from lightning_crmt.attacks.pgd import PGD, LossAscent
from lightning_crmt.attacks.presets import paper_fgm, paper_pgd, strongest
from lightning_crmt.attacks.random_search import RandomNoise, RandomSearch
from lightning_crmt.attacks.sanity_checks import PROBABILITIES, PROBABILITIES_OF_LABELS, suspicions
from lightning_crmt.attacks.search.attacked_model import (
    AttackedModel,
    Model,
    holder_of,
    public_logits,
    under_attack,
)
from lightning_crmt.attacks.survival import Survival, check_fits, distance_by, survival, surviving
from lightning_crmt.attacks.threat.box import Box
from lightning_crmt.attacks.threat.budget import Budget
from lightning_crmt.attacks.threat.mask import check_mask, free_entries
from lightning_crmt.attacks.threat.norms import Norm
from lightning_crmt.attacks.threat.per_sample import Perturbation, like
from lightning_crmt.targets import right_answers

__all__ = [
    "APGD",
    "FGM",
    "PGD",
    "PROBABILITIES",
    "PROBABILITIES_OF_LABELS",
    "Adversarial",
    "Attack",
    "AttackedModel",
    "AutoAttack",
    "AveragedModel",
    "Box",
    "Budget",
    "BudgetedAttack",
    "EmbeddedModel",
    "Ensemble",
    "Fill",
    "FoolboxDDN",
    "LossAscent",
    "MinimumNorm",
    "MinimumNormAttack",
    "MinimumNormEnsemble",
    "MissingModality",
    "Model",
    "Norm",
    "Perturbation",
    "RandomNoise",
    "RandomSearch",
    "Survival",
    "check_fits",
    "check_mask",
    "distance_by",
    "free_entries",
    "holder_of",
    "like",
    "mean_inputs",
    "paper_fgm",
    "paper_pgd",
    "public_logits",
    "right_answers",
    "strongest",
    "survival",
    "surviving",
    "suspicions",
    "under_attack",
]
