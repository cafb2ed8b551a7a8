# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Small networks to attack."""

import torch
from torch import nn


class Net(nn.Module):
    """Small, curved, with layers that differ between training and evaluation, and some parameters frozen."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.audio = nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4))
        self.image = nn.Sequential(nn.Flatten(), nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
        self.image[1].weight.requires_grad_(False)
        self.to(dtype)

    def forward(self, inputs):
        return {"logits": self.audio(inputs["audio"]) + self.image(inputs["image"])}


class LateFusion(nn.Module):
    def __init__(self, encoders, head):
        super().__init__()
        self.encoders, self.head = nn.ModuleDict(encoders), head

    def forward(self, inputs):
        return self.head({name: encoder(inputs[name]) for name, encoder in self.encoders.items()}).logits
