# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Accuracy when modalities are missing, in every validation and test epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from lightning_crmt.attacks import Fill
from lightning_crmt.callbacks.observer import Measurement, Observer, Reduce
from lightning_crmt.checks import check_target, describe
from lightning_crmt.frozen_eval import frozen_eval
from lightning_crmt.fusion import LateFusion
from lightning_crmt.modality import FusionOutput, logits_of
from lightning_crmt.training import NamedModel


class MissingModalities(Observer):
    """Logs the accuracy when one or more modalities are missing, for every subset that leaves at least one.

    What stands for a missing modality is part of the key: ``val/accuracy_zeroed/audio`` when its input is all zeros,
    ``val/accuracy_imputed/audio`` when it is a value of yours, ``val/accuracy_dropped/audio`` when its score is left
    out of the fusion. Several are joined by ``+``. ``val/accuracy_zeroed/none`` is the accuracy on the same samples
    with nothing missing, ``val/accuracy_zeroed/worst`` the share that is right then, and whichever of these subsets is.

    Args:
        fill: ``"zeroed"`` or values by modality, for any model: a number, or a tensor of the shape of a sample, as
            :func:`~lightning_crmt.attacks.mean_inputs` computes; only those named are ever missing. ``"dropped"``, for
            modules with late fusion.
        max_missing: largest number of modalities missing at once; all but one by default.
        inputs: names of the modalities in the order of the batch; not needed for a CRMT module.
        every_n_epochs: in a fit, measure in the first epoch with a validation, then when n epochs have passed, and in
            the last; ``validate`` and ``test`` always measure.
        max_batches: measure the first so many batches of a loader; all by default.

    Raises:
        ValueError: if an argument is out of range; on ``setup``, if names are needed and missing.
        TypeError: for ``"dropped"``, if the head of the module is no late fusion.

    >>> callback = MissingModalities(fill="dropped")
    """

    def __init__(
        self,
        fill: Literal["zeroed", "dropped"] | Mapping[str, Fill] = "zeroed",
        max_missing: int | None = None,
        inputs: Sequence[str] | None = None,
        every_n_epochs: int = 1,
        max_batches: int | None = None,
    ) -> None:
        super().__init__(inputs=inputs, every_n_epochs=every_n_epochs, max_batches=max_batches)
        if not (isinstance(fill, Mapping) and fill) and fill not in ("zeroed", "dropped"):
            raise ValueError(f"`fill` must be 'zeroed', 'dropped' or values by modality, got {fill!r}")
        if max_missing is not None and max_missing < 1:
            raise ValueError(f"`max_missing` must be at least 1, got {max_missing}")
        self.fill = dict(fill) if isinstance(fill, Mapping) else fill
        self.max_missing = max_missing

    @property
    @override
    def state_key(self) -> str:
        # One of each kind may observe the same fit.
        return f"{type(self).__qualname__}[{self._kind}]"

    @property
    def _kind(self) -> str:
        return "imputed" if isinstance(self.fill, dict) else self.fill

    @override
    def measurement(self, model: NamedModel) -> Measurement:
        values = self.fill if isinstance(self.fill, dict) else dict.fromkeys(model.names, 0.0)
        if unknown := [name for name in values if name not in model.names]:
            raise ValueError(f"`fill` must name modalities among {model.names}, got {unknown}")
        largest = len(model.names) - 1
        if self.max_missing is not None:
            largest = min(largest, self.max_missing)
        subsets = [subset for size in range(largest + 1) for subset in combinations(values, size)]
        head = getattr(model.module, "head", None)
        if self.fill != "dropped":
            return _Accuracies(model, subsets, self._kind, partial(_logits_with, values))
        if not isinstance(head, LateFusion):
            raise TypeError(
                "`fill='dropped'` needs late fusion, whose scores can be left out, as the module's `head`, as in "
                f"OrthogonalFusion or LinearFusion; got {_kind_of(head, model.module)}: use 'zeroed'"
            )
        return _Accuracies(model, subsets, self._kind, partial(_logits_without, head))


class _Accuracies(Measurement):
    """Counts right answers for each missing subset, the first of which is empty, and for all of them at once."""

    def __init__(
        self,
        model: NamedModel,
        subsets: Sequence[tuple[str, ...]],
        kind: str,
        logits: Callable[[NamedModel, tuple[str, ...], dict[str, Tensor]], Tensor],
    ) -> None:
        self.model = model
        self.subsets = subsets
        self.kind = kind
        self.logits = logits
        self.total: Tensor | None = None  # right answers by subset, under all of them, then the number of samples

    @override
    def update(self, inputs: dict[str, Tensor], target: Tensor) -> None:
        with frozen_eval(self.model), torch.no_grad():
            logits = [self.logits(self.model, subset, inputs) for subset in self.subsets]
        check_target(target, logits[0].shape[1], len(logits[0]))
        right = torch.stack([each.argmax(dim=1) == target for each in logits])
        counts = torch.cat([right, right.all(dim=0)[None], torch.ones_like(right[:1])]).sum(dim=1).float()
        self.total = counts if self.total is None else self.total + counts

    @override
    def compute(self, reduce: Reduce) -> dict[str, float]:
        assert self.total is not None
        *right, samples = reduce(self.total, "sum").tolist()
        names = ["+".join(subset) or "none" for subset in self.subsets] + ["worst"]
        return {f"accuracy_{self.kind}/{name}": count / samples for name, count in zip(names, right, strict=True)}


def _kind_of(head: object, module: object) -> str:
    return f"{describe(module)} without one" if head is None else describe(head)


def _logits_with(
    values: Mapping[str, Fill], model: NamedModel, subset: tuple[str, ...], inputs: dict[str, Tensor]
) -> Tensor:
    stand = {name: _as_missing(name, values[name], inputs[name]) for name in subset}
    return logits_of(model(inputs | stand))


def _logits_without(head: LateFusion, model: NamedModel, subset: tuple[str, ...], inputs: dict[str, Tensor]) -> Tensor:
    output = model(inputs)
    assert isinstance(output, FusionOutput)
    return head.fuse({name: score for name, score in output.scores.items() if name not in subset})


def _as_missing(name: str, value: Fill, given: Tensor) -> Tensor:
    stand = torch.as_tensor(value).to(given)
    if stand.dim() > 0 and stand.shape != given.shape[1:]:
        raise ValueError(
            f"`fill[{name!r}]` must be a number or have the shape {tuple(given.shape[1:])} of a sample, "
            f"got {describe(stand)}"
        )
    return stand.expand_as(given)
