# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Losses: margin regularisation (step 1), the integration objective (step 2), and training on the radius itself."""

from lightning_crmt.losses.integration import OBJECTIVES, Objective, integration_objective, true_class_radii
from lightning_crmt.losses.margins import MarginRegularization, margin_regularization, smooth_margins
from lightning_crmt.losses.radius import EMMA, Hinge, LogitAnnealing, RadiusObjective, radius_loss

__all__ = [
    "EMMA",
    "OBJECTIVES",
    "Hinge",
    "LogitAnnealing",
    "MarginRegularization",
    "Objective",
    "RadiusObjective",
    "integration_objective",
    "margin_regularization",
    "radius_loss",
    "smooth_margins",
    "true_class_radii",
]
