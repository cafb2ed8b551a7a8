# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""A counterexample to a certificate, as an error that carries it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_crmt.soundness import Soundness

#: One l2 norm for a ball, or one by modality for separate budgets.
Norms: TypeAlias = float | dict[str, float]


@dataclass(frozen=True)
class Counterexample:
    """What disproves a certificate for one sample.

    Attributes:
        sample: its index in the batch.
        threat: what was allowed to change.
        radius: what was claimed to be tolerated.
        distance: what was changed, measured in float64 on the stored inputs; in the form of ``radius``.
        before: class that was certified.
        after: class predicted for the changed inputs.
        inputs: the clean sample by modality, with a batch dimension of 1.
        perturbation: what was added, in float64, by modality.
        perturbed: the changed sample, as given to the model.
        soundness: level of the certificate.
    """

    sample: int
    threat: str
    radius: Norms
    distance: Norms
    before: int
    after: int
    inputs: Mapping[str, Tensor]
    perturbation: Mapping[str, Tensor]
    perturbed: Mapping[str, Tensor]
    soundness: Soundness

    def __str__(self) -> str:
        if self.threat == "clean":
            return (
                f"sample {self.sample} is {self.soundness.label} to be of class {self.before}, but the model predicts "
                f"class {self.after}: is the certificate of these weights, this precision and these inputs?"
            )
        return (
            f"sample {self.sample} is {self.soundness.label} to stay of class {self.before} under changes of "
            f"{self.threat} up to {_written(self.radius)}, but a change of {_written(self.distance)} "
            f"makes it class {self.after}"
        )

    def save(self, path: str | Path) -> Path:
        """Write a dict of these attributes, that ``torch.load(path, weights_only=True)`` reads."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(asdict(self) | {"soundness": self.soundness.name}, path)
        return path


class CertificateViolation(AssertionError):  # noqa: N818 - what it is, not that something went wrong
    """Raised where a certificate does not hold.

    Attributes:
        counterexample: the sample, its perturbation and both predictions.
        saved_to: the file it was written to, or ``None``.
    """

    def __init__(self, counterexample: Counterexample, saved_to: str | Path | None = None) -> None:
        self.counterexample = counterexample
        self.saved_to = None if saved_to is None else counterexample.save(saved_to)
        super().__init__(str(counterexample) + ("" if self.saved_to is None else f"; saved to {self.saved_to}"))


def _written(norms: Norms) -> str:
    if isinstance(norms, dict):
        return ", ".join(f"{norm:.7g} in {name}" for name, norm in norms.items())
    return f"{norms:.7g}"
