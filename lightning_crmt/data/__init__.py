# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Multi-modal data: one base module, and one file per data set."""

from lightning_crmt.data.mfeat import UCIMultiFeatures
from lightning_crmt.data.module import MultimodalDataModule, MultimodalDataset

__all__ = ["MultimodalDataModule", "MultimodalDataset", "UCIMultiFeatures"]
