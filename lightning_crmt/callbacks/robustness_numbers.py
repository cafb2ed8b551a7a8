# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The numbers that certificates of one epoch add up to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_crmt.callbacks.observer import Reduce
from lightning_crmt.certification import Certificate
from lightning_crmt.fusion import LateFusion
from lightning_crmt.metrics import credited_radius
from lightning_crmt.modality import FusionOutput, logits_of

#: Up to so many classes each gets a key of its own; of more, the worst.
MOST_CLASSES = 32


class RobustnessNumbers:
    """Sums of what each sample contributes, and of right answers by class.

    Args:
        names: the modalities.
        radii: at which accuracy is counted.
        budgets: radii of several modalities at once.
        head: the fusion head, if the model has one.
    """

    def __init__(
        self,
        names: Sequence[str],
        radii: Sequence[float],
        budgets: Sequence[Mapping[str, float]],
        head: LateFusion | None,
    ) -> None:
        self.names = names
        self.radii = radii
        self.budgets = budgets
        self.head = head
        self.label = ""
        self.sums: dict[str, Tensor] = {}
        self.by_class: dict[str, Tensor] = {}  # robust ones by radius, and how many there are

    def update(self, certificate: Certificate, output: FusionOutput | Tensor, target: Tensor) -> None:
        """Take in a batch."""
        target = target.to(certificate.prediction.device)
        self.label = certificate.soundness.label
        samples = self._per_sample(certificate, output, target)
        samples["samples"] = torch.ones_like(target)
        for key, values in samples.items():
            self.sums[key] = self.sums.get(key, torch.zeros((), device=values.device)) + values.float().sum()
        num_classes = certificate.margins.shape[1]
        counted = {"samples": torch.ones_like(target)}
        counted |= {f"{r:g}": samples[f"{self.label}_accuracy/joint@{r:g}"] for r in self.radii}
        for key, values in counted.items():
            found = torch.zeros(num_classes, device=target.device).index_add_(0, target, values.float())
            self.by_class[key] = self.by_class.get(key, torch.zeros_like(found)) + found

    def compute(self, reduce: Reduce) -> dict[str, float]:
        """Means over the samples of all processes, by key."""
        totals = dict(zip(self.sums, reduce(torch.stack(list(self.sums.values())), "sum").tolist(), strict=True))
        samples = totals.pop("samples")
        numbers = {key: total / samples for key, total in totals.items()}
        by_class = {key: reduce(value, "sum") for key, value in self.by_class.items()}
        present = by_class.pop("samples")
        for radius, robust in by_class.items():
            share = robust / present
            numbers[f"{self.label}_accuracy_worst_class/joint@{radius}"] = share[present > 0].min().item()
            if len(share) <= MOST_CLASSES:
                of_class = {k: value for k, value in enumerate(share.tolist()) if present[k] > 0}
                numbers |= {f"{self.label}_accuracy_of_class/{k}@{radius}": value for k, value in of_class.items()}
        return numbers

    def _per_sample(self, certificate: Certificate, output: FusionOutput | Tensor, target: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, modalities in [("joint", None), *((name, [name]) for name in self.names)]:
            radius = credited_radius(certificate, target, modalities)
            found[f"{self.label}_radius/{name}"] = radius
            for r in self.radii:
                found[f"{self.label}_accuracy/{name}@{r:g}"] = radius > r
        for budget in self.budgets:
            key = "+".join(f"{name}={radius:g}" for name, radius in budget.items())
            right = certificate.prediction == target
            found[f"{self.label}_accuracy/{key}"] = right & certificate.tolerates(budget)
        scores = output.scores if isinstance(output, FusionOutput) else {}
        for name, values in {"joint": logits_of(output), **scores}.items():
            found[f"margin/{name}"] = _margin(values, target)
        rival = certificate.nearest_class()
        for name in self.names:
            found[f"vulnerability/{name}"] = certificate.sensitivities[name].gather(1, rival[:, None]).squeeze(1)
            if self.head is not None:
                rows = self.head.class_weights[name].detach().to(target.device)
                found[f"integration_factor/{name}"] = (rows[certificate.prediction] - rows[rival]).norm(dim=1)
        return found


def _margin(scores: Tensor, target: Tensor) -> Tensor:
    of_target = scores.gather(1, target[:, None]).squeeze(1)
    return of_target - scores.scatter(1, target[:, None], -torch.inf).amax(dim=1)
