# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What callbacks and methods share when they take part in a fit."""

from lightning_crmt.training.data_pass import TrainingPass
from lightning_crmt.training.method import Method
from lightning_crmt.training.named_model import NamedModel, crmt_module, late_fusion

__all__ = [
    "Method",
    "NamedModel",
    "TrainingPass",
    "crmt_module",
    "late_fusion",
]
