# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Accuracy when modalities are missing, in every validation and test epoch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from lightning_crmt.borrowing import borrow
from lightning_crmt.callbacks.naming import NamedModel
from lightning_crmt.callbacks.observer import Measurement, Observer, Reduce
from lightning_crmt.fusion import Fusion
from lightning_crmt.modality import FusionOutput, check_target, logits_of


class MissingModalities(Observer):
    """Logs the accuracy when one or more modalities are missing, for every subset that leaves at least one.

    What stands for a missing modality is part of the key: ``val/accuracy_zeroed/audio`` when its input is all zeros,
    ``val/accuracy_dropped/audio`` when its score is left out of the fusion. Several are joined by ``+``.

    Args:
        represent: ``"zeroed"``, for any model, or ``"dropped"``, for modules with a fusion head.
        max_missing: largest number of modalities missing at once; all but one by default.
        inputs: names of the modalities in the order of the batch; not needed for a CRMT module.
        every_n_epochs: in a fit, measure in the first epoch with a validation, then when n epochs have passed, and in
            the last; ``validate`` and ``test`` always measure.
        max_batches: measure the first so many batches of a loader; all by default.

    Raises:
        ValueError: if an argument is out of range; on ``setup``, if names are needed and missing.
        TypeError: for ``"dropped"``, if the module has no fusion head.

    >>> callback = MissingModalities(represent="dropped")
    """

    def __init__(
        self,
        represent: Literal["zeroed", "dropped"] = "zeroed",
        max_missing: int | None = None,
        inputs: Sequence[str] | None = None,
        every_n_epochs: int = 1,
        max_batches: int | None = None,
    ) -> None:
        super().__init__(inputs=inputs, every_n_epochs=every_n_epochs, max_batches=max_batches)
        if represent not in ("zeroed", "dropped"):
            raise ValueError(f"`represent` must be 'zeroed' or 'dropped', got {represent!r}")
        if max_missing is not None and max_missing < 1:
            raise ValueError(f"`max_missing` must be at least 1, got {max_missing}")
        self.represent = represent
        self.max_missing = max_missing

    @property
    @override
    def state_key(self) -> str:
        # One of each kind may observe the same fit.
        return f"{type(self).__qualname__}[{self.represent}]"

    @override
    def measurement(self, model: NamedModel) -> Measurement:
        largest = len(model.names) - 1
        if self.max_missing is not None:
            largest = min(largest, self.max_missing)
        subsets = [subset for size in range(1, largest + 1) for subset in combinations(model.names, size)]
        head = getattr(model.module, "head", None)
        if self.represent == "zeroed":
            return _Accuracies(model, subsets, None)
        if not isinstance(head, Fusion):
            raise TypeError(
                "`represent='dropped'` needs a module with a fusion head as `head`, "
                f"got {type(model.module).__name__}; use 'zeroed'"
            )
        return _Accuracies(model, subsets, head)


class _Accuracies(Measurement):
    """Counts right answers for each missing subset; by the head if one is given, else by zeroed inputs."""

    def __init__(self, model: NamedModel, subsets: Sequence[tuple[str, ...]], head: Fusion | None) -> None:
        self.model = model
        self.subsets = subsets
        self.head = head
        self.total: Tensor | None = None  # right answers by subset, then the number of samples

    def update(self, inputs: dict[str, Tensor], target: Tensor) -> None:
        with borrow(self.model), torch.no_grad():
            logits = [self._logits_without(subset, inputs) for subset in self.subsets]
        check_target(target, logits[0].shape[1], len(logits[0]))
        right = [(each.argmax(dim=1) == target).sum() for each in logits]
        counts = torch.stack([*right, torch.full_like(target.sum(), len(target))]).float()
        self.total = counts if self.total is None else self.total + counts

    def compute(self, reduce: Reduce) -> dict[str, float]:
        assert self.total is not None
        *right, samples = reduce(self.total, "sum").tolist()
        kind = "zeroed" if self.head is None else "dropped"
        return {
            f"accuracy_{kind}/{'+'.join(subset)}": count / samples
            for subset, count in zip(self.subsets, right, strict=True)
        }

    def _logits_without(self, subset: tuple[str, ...], inputs: dict[str, Tensor]) -> Tensor:
        if self.head is None:
            zeroed = {name: torch.zeros_like(x) if name in subset else x for name, x in inputs.items()}
            return logits_of(self.model(zeroed))
        output = self.model(inputs)
        assert isinstance(output, FusionOutput)
        return self.head.fuse({name: score for name, score in output.scores.items() if name not in subset})
