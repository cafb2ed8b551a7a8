# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Encoders for tables, sensors, images and videos, and for certificates; any module that gives (B, d) serves too."""

from lightning_crmt.encoders.conv import ConvNet1d, ConvNet2d
from lightning_crmt.encoders.hugging_face import HuggingFaceEncoder
from lightning_crmt.encoders.lipschitz import LipschitzCNN, LipschitzMLP
from lightning_crmt.encoders.mlp import MLP
from lightning_crmt.encoders.resnet import ResNet18, ResNet18Tokens

__all__ = [
    "MLP",
    "ConvNet1d",
    "ConvNet2d",
    "HuggingFaceEncoder",
    "LipschitzCNN",
    "LipschitzMLP",
    "ResNet18",
    "ResNet18Tokens",
]
