# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Which modality a model follows where they disagree, in every validation and test epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lightning_crmt.attacks import public_logits
from lightning_crmt.callbacks.observer import Measurement, Observer
from lightning_crmt.criterion import Criterion
from lightning_crmt.evaluation import Key, Reduce
from lightning_crmt.metrics import mismatched_inputs, mismatched_pairs
from lightning_crmt.targets import check_answers, has_labels
from lightning_crmt.training import TARGETS, NamedModel, SplitBatch


class ModalityReliance(Observer):
    """Logs which class predictions follow where one modality is of another class than all the others.

    Each sample gives one modality; all the others come from a sample of another class in the same batch, with their
    masks and whatever else belongs to them. Which one that is does not depend on anything random, but on the batches:
    those that hold a single class have no such pairs, so evaluation data in the order of its classes needs a shuffled
    loader. Any classifier of one class per sample will do. Nothing here is about perturbations of a bounded size: it
    tells which modality decides, not how robust the decision is.

    Logged under ``val/`` and ``test/``, for a modality *m*, as shares of all pairs, which add up to 1:

    - ``reliance/m``: the prediction is the class of the sample that gave m;
    - ``reliance_rest/m``: it is the class of the sample that gave everything else;
    - ``reliance_neither/m``: it is another one.

    A model that decides by audio alone has a ``reliance/audio`` of its accuracy, and a ``reliance/image`` of about 0.
    Of how many pairs the numbers are, the attribute ``samples`` says. Samples that lack the modality, or whose partners
    would lack all others, are left out.

    Args:
        context: which modality an entry of the batch belongs to whose name does not tell, such as
            ``{"attention_mask": "input_ids"}``; needed for entries that ``forward`` takes and that differ between
            samples.
        inputs: names of the modalities in the order of the batch; not needed for a CRMT module.
        split_batch: a function from a batch to ``(inputs, target)``, inputs by name, or its import path, for batches of
            another form.
        every_n_epochs: during a fit, measure at the first validation, then once every n epochs, and in the last epoch;
            ``validate`` and ``test`` always measure.
        max_batches: how many batches of each loader to measure, from the first on; all by default.

    Raises:
        ValueError: if an argument is out of range; before training, if there is one modality only, ``context`` names an
            unknown one, or the module learns labels; on the first batch, if the target holds labels, or it cannot be
            told to which modality an entry belongs.

    >>> callback = ModalityReliance(inputs=("image", "audio"), max_batches=10)
    """

    def __init__(
        self,
        *,
        context: Mapping[str, str] | None = None,
        inputs: Sequence[str] | None = None,
        split_batch: SplitBatch | str | None = None,
        every_n_epochs: int = 1,
        max_batches: int | None = None,
    ) -> None:
        super().__init__(inputs=inputs, split_batch=split_batch, every_n_epochs=every_n_epochs, max_batches=max_batches)
        self.context = dict(context or {})

    @override
    def _forget(self) -> None:
        super()._forget()
        self._warned = False

    @override
    def measurement(self, model: NamedModel) -> Measurement:
        if len(model.names) < 2:
            raise ValueError(f"ModalityReliance needs at least two modalities to compare, got {model.names}")
        if unknown := [name for name in self.context.values() if name not in model.names]:
            raise ValueError(f"`context` must name modalities among {model.names}, got {unknown}")
        criterion = getattr(model.module, "crmt_criterion", None)
        if isinstance(criterion, Criterion) and criterion.multi_label:
            raise ValueError(_LABELS)
        return _Followed(self, model)


_LABELS = (
    "ModalityReliance needs a target of one class per sample, got labels: two samples with several labels each may "
    "share some, so that a prediction follows both"
)


class _Followed(Measurement):
    """Counts whose class predictions follow."""

    def __init__(self, settings: ModalityReliance, model: NamedModel) -> None:
        super().__init__()
        self.settings = settings
        self.model = model
        # The target that a module is handed says nothing of its prediction; it goes with any modality.
        self.context = dict.fromkeys(TARGETS, model.names[0]) | settings.context
        self.of_samples = 0

    @override
    def update(self, inputs: dict[str, Tensor], target: Tensor) -> None:
        if has_labels(target):
            raise ValueError(_LABELS)
        self.of_samples += len(target)
        for name in self.model.names:
            rows, partners = mismatched_pairs(inputs, target, name)
            follows = torch.zeros(len(target), 2, dtype=torch.bool)
            if len(rows):
                logits = public_logits(self.model, mismatched_inputs(inputs, name, rows, partners, self.context)).cpu()
                classes = check_answers(target.cpu(), logits.shape[1], len(target))
                predicted = logits.argmax(dim=1)
                follows[rows] = torch.stack([predicted == classes[rows], predicted == classes[partners]], dim=1)
            paired = torch.zeros(len(target), 1, dtype=torch.bool)
            paired[rows] = True
            own, rest = (each.to(target.device) for each in follows.unbind(dim=1))
            values = {"reliance": own, "reliance_rest": rest, "reliance_neither": ~(own | rest)}
            self.means.add({Key("", what, name): each for what, each in values.items()}, paired.to(target.device))

    @override
    def compute(self, reduce: Reduce) -> dict[Key, float]:
        numbers = {key: each for key, each in super().compute(reduce).items() if not math.isnan(each)}
        device = next(iter(self.model.parameters()), torch.empty(0)).device
        total = int(reduce(torch.tensor(float(self.of_samples), device=device), "sum"))
        pairs = max(count for (count,) in self.means.counts.values())
        if 2 * pairs < total and not self.settings._warned:
            self.settings._warned = True
            rank_zero_warn(
                f"ModalityReliance found a partner of another class for {pairs} of {total} samples only: the batches "
                "hold few classes; shuffle the evaluation data once, or take larger batches"
            )
        return numbers
