# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What the base model answers around the samples of a batch, counted by class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_crmt.checks import check_batch, describe
from lightning_crmt.modality import logits_of, present_of, widest
from lightning_crmt.smoothing.ablation import Ablation
from lightning_crmt.smoothing.certificate import SmoothedCertificate
from lightning_crmt.smoothing.confidence import Array
from lightning_crmt.smoothing.noisy_batch import BLOCK, NoisyBatch


@dataclass
class AnswersAround:
    """What the base model answers around the samples of a batch."""

    answers: Callable[[dict[str, Tensor]], Any]
    inputs: dict[str, Tensor]
    noisy: dict[str, NoisyBatch]
    #: Standard deviations in units of the inputs.
    sigma: dict[str, float]
    ablations: dict[str, Ablation]
    lengths: dict[str, Tensor]
    missing: tuple[str, ...]
    alpha: float
    rows: int
    #: Known after the first answers.
    num_classes: int = 0

    @property
    def size(self) -> int:
        """B."""
        return check_batch("inputs", self.inputs)

    @property
    def device(self) -> torch.device:
        """Where the batch is."""
        return next(iter(self.inputs.values())).device

    def select(self) -> Array:
        """The most frequent class of each sample among a few draws, which no claim rests on."""
        counts = self.counts(list(range(self.size)), BLOCK, "select")
        chosen: Array = counts[:, : self.num_classes].argmax(axis=1)
        return chosen

    def counts(self, samples: Sequence[int], draws: int, purpose: str = "judge") -> Array:
        """How often each class was answered in the next draws, ``(len(samples), K + 1)``; last, how often none."""
        found: Tensor | None = None
        for some, inputs in self.noisy[purpose].draws(samples, draws, self.rows):
            rows = len(next(iter(inputs.values())))
            logits = logits_of(self.answers(inputs))
            if len(logits) != rows:
                raise ValueError(f"`model` must answer each of {rows} samples, got {describe(logits)}")
            self.num_classes = logits.shape[1]
            # What is not finite does not become 0 by this; ways that are slower are felt with small networks.
            finite = logits.mul(0).sum(dim=1) == 0
            answered = torch.where(finite, logits.argmax(dim=1), self.num_classes).reshape(len(some), -1)
            if found is None:
                found = answered.new_zeros(self.size, self.num_classes + 1)
            portion = answered.new_zeros(len(some), self.num_classes + 1)
            portion.scatter_add_(1, answered, torch.ones_like(answered))
            found.index_add_(0, torch.tensor(some, device=found.device), portion)
        assert found is not None, "there is a sample, and a draw"
        counts: Array = found.cpu().numpy()[samples]
        return counts

    def certificate(self, chosen: Array, lower: Array | None = None, draws: Array | None = None) -> SmoothedCertificate:
        """The certificate; without numbers one that claims nothing."""
        lower = np.zeros(self.size) if lower is None else lower
        draws = np.zeros(self.size, dtype=np.int64) if draws is None else draws
        present = present_of(self.inputs)
        # Claims are in double precision, where the device has it.
        device = self.device if widest(self.device) is torch.float64 else torch.device("cpu")
        sigma = {}
        for name, scale in self.sigma.items():
            each = torch.full((self.size,), scale, dtype=torch.float64, device=device)
            here = present.get(name)
            sigma[name] = each if here is None else torch.where(here.to(device), each, torch.inf)
        return SmoothedCertificate(
            prediction=torch.from_numpy(np.where(lower > 0.5, chosen, -1)).to(device),
            lower=torch.from_numpy(lower).to(device),
            sigma=sigma,
            alpha=self.alpha,
            draws=torch.from_numpy(draws).to(device),
            num_classes=self.num_classes,
            ablations=self.ablations,
            lengths={name: each.to(device) for name, each in self.lengths.items()},
            missing=self.missing,
        )
