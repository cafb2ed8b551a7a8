# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""LightningModules as other people write them, and their data."""

import torch
from lightning.pytorch import LightningModule
from torch import nn


class Yours(LightningModule):
    """No CRMT module; ``form`` says what its batches and its forward look like."""

    def __init__(self, form):
        super().__init__()
        self.form = form
        self.image_net, self.audio_net = nn.Linear(4, 8), nn.Linear(3, 8)
        self.classifier = nn.Linear(16, 5)

    def logits(self, image, audio):
        return self.classifier(torch.cat([self.image_net(image).relu(), self.audio_net(audio).relu()], dim=1))

    def evaluate(self, batch):
        pass

    def validation_step(self, batch, batch_idx): ...

    def test_step(self, batch, batch_idx): ...


class Positional(Yours):
    def forward(self, first, second):
        return self.logits(first, second)


class Keywords(Yours):
    def forward(self, audio, image, scale=1.0):  # in another order than the batch
        return self.logits(image, audio) * scale


class TakesDict(Yours):
    def forward(self, batch):
        return self.logits(batch["image"], batch["audio"])


class GivesTuple(Positional):
    def forward(self, first, second):
        return self.logits(first, second), "something else"


class GivesDict(Positional):
    def forward(self, first, second):
        return {"features": None, "logits": self.logits(first, second)}


class Named(torch.utils.data.Dataset):
    def __init__(self, image, audio, y, nested):
        self.image, self.audio, self.y, self.nested = image, audio, y, nested

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        sample = {"image": self.image[i], "audio": self.audio[i]}
        return (sample, self.y[i]) if self.nested else sample | {"label": self.y[i]}
