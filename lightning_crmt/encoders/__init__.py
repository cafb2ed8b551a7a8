# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Small encoders for first experiments and for certificates; any module that gives (B, d) serves as well."""

from lightning_crmt.encoders.lipschitz import LipschitzCNN, LipschitzMLP
from lightning_crmt.encoders.mlp import MLP

__all__ = ["MLP", "LipschitzCNN", "LipschitzMLP"]
