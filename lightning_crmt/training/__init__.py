# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Parts that callbacks and methods share while they act on a fit."""

from lightning_crmt.training.batch_forms import TARGETS, SplitBatch, as_split_batch
from lightning_crmt.training.batch_sums import BatchSums, check_all_measured, confidences, losses
from lightning_crmt.training.data_pass import TrainingPass, ValidationPass, in_order
from lightning_crmt.training.dealt_samples import DealtSamples, evaluation_loaders
from lightning_crmt.training.method import Method, Needs, ReleasingCallback, Source, callbacks_of
from lightning_crmt.training.named_model import NamedModel, crmt_module, late_fusion
from lightning_crmt.training.progress import ProgressBar

__all__ = [
    "TARGETS",
    "BatchSums",
    "DealtSamples",
    "Method",
    "NamedModel",
    "Needs",
    "ProgressBar",
    "ReleasingCallback",
    "Source",
    "SplitBatch",
    "TrainingPass",
    "ValidationPass",
    "as_split_batch",
    "callbacks_of",
    "check_all_measured",
    "confidences",
    "crmt_module",
    "evaluation_loaders",
    "in_order",
    "late_fusion",
    "losses",
]
