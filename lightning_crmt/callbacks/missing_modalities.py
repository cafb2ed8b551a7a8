# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Accuracy when modalities are missing, in every validation and test epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from lightning_crmt.attacks import Fill, MissingModality
from lightning_crmt.callbacks.observer import Measurement, Observer
from lightning_crmt.checks import describe
from lightning_crmt.deprecation import renamed_argument
from lightning_crmt.evaluation import Key, Means, Reduce
from lightning_crmt.frozen_eval import frozen_eval
from lightning_crmt.fusion import LateFusion
from lightning_crmt.modality import modalities_of, present_of
from lightning_crmt.targets import answers, check_answers, has_labels
from lightning_crmt.training import NamedModel, SplitBatch

#: The most patterns of presence that get a key each.
_MOST_PATTERNS = 64


class MissingModalities(Observer):
    """Logs the accuracy when one or more modalities are missing, for every subset that leaves at least one.

    The key says what replaces a missing modality: ``val/accuracy_zeroed/audio`` zeros, ``val/accuracy_imputed/audio`` a
    value that you give, ``val/accuracy_dropped/audio`` nothing, as its score is left out of the fusion. Several names
    are joined by ``+``. ``val/accuracy_zeroed/none`` is the accuracy on the same samples with nothing missing,
    ``val/accuracy_zeroed/worst`` the share of samples that are right whatever is missing. A sample with several labels
    is right where all of them are.

    Where samples lack modalities of their own (``"audio.present"`` in the inputs), these numbers are of the samples
    that lack none, and ``val/accuracy_present/image`` is the accuracy of those that have the image and nothing else,
    for every pattern of presence that occurs. A model that was trained on such samples expects that scores are dropped:
    ``fill="dropped"``.

    Args:
        fill: ``"zeroed"`` or values by modality, for any model: a number, or a tensor of the shape of a sample, as
            :func:`~lightning_crmt.attacks.mean_inputs` computes; only those named are ever missing. ``"dropped"``, for
            modules with late fusion.
        max_missing: largest number of modalities missing at once; by default all but one.
        inputs: names of the modalities in the order of the batch; not needed for a CRMT module.
        split_batch: a function from a batch to ``(inputs, target)``, inputs by name, or its import path, for batches of
            another form; what its inputs hold beside the modalities is handed to the module and never changed.
        every_n_epochs: during a fit, measure at the first validation, then once every n epochs, and in the last epoch;
            ``validate`` and ``test`` always measure.
        max_batches: how many batches of each loader to measure, from the first on; all by default.
        represent: the old name of ``fill``; it works for one release.

    Raises:
        ValueError: if an argument is out of range; on ``setup``, if names are needed and missing.
        TypeError: for ``"dropped"``, if the head of the module is not a late fusion.

    >>> callback = MissingModalities(fill="dropped")
    """

    def __init__(
        self,
        fill: Literal["zeroed", "dropped"] | Mapping[str, Fill] = "zeroed",
        *,
        max_missing: int | None = None,
        inputs: Sequence[str] | None = None,
        split_batch: SplitBatch | str | None = None,
        every_n_epochs: int = 1,
        max_batches: int | None = None,
        represent: Literal["zeroed", "dropped"] | Mapping[str, Fill] | None = None,
    ) -> None:
        super().__init__(inputs=inputs, split_batch=split_batch, every_n_epochs=every_n_epochs, max_batches=max_batches)
        fill = renamed_argument("represent", represent, "fill", fill)
        if fill == {}:
            raise ValueError(f"`fill` must be 'zeroed', 'dropped' or values by modality, got {fill!r}")
        self.attack = MissingModality(fill, max_missing=max_missing)
        self.fill = self.attack.fill
        self.max_missing = max_missing

    @property
    @override
    def state_key(self) -> str:
        # One of each kind may observe the same fit.
        return f"{type(self).__qualname__}[{self._kind}]"

    @property
    def _kind(self) -> str:
        return self.fill if isinstance(self.fill, str) else "imputed"

    @override
    def measurement(self, model: NamedModel) -> Measurement:
        if unknown := [name for name in self.fill if name not in model.names and self._kind == "imputed"]:
            raise ValueError(f"`fill` must name modalities among {model.names}, got {unknown}")
        head = getattr(model.module, "head", None)
        if self.fill == "dropped" and not isinstance(head, LateFusion):
            kind = f"{describe(model.module)} without one" if head is None else describe(head)
            raise TypeError(
                "`fill='dropped'` needs late fusion, whose scores can be left out, as the module's `head`, as in "
                f"OrthogonalFusion or LinearFusion; got {kind}: use 'zeroed'"
            )
        return _Accuracies(model, self.attack, f"accuracy_{self._kind}")


class _Accuracies(Measurement):
    """Counts right answers for each missing subset, the first of which is empty, and for all of them at once."""

    def __init__(self, model: NamedModel, attack: MissingModality, what: str) -> None:
        super().__init__()
        self.model = model
        self.attack = attack
        self.what = what
        self.of_patterns = Means[str]()
        names = model.names
        subsets = [subset for size in range(1, len(names) + 1) for subset in combinations(names, size)]
        #: All that there can be, as processes must agree on what they add up; none where that is too many.
        self.patterns = subsets if len(subsets) < _MOST_PATTERNS else []
        self.lacking = False

    @override
    def update(self, inputs: dict[str, Tensor], target: Tensor) -> None:
        subsets = self.attack.subsets(modalities_of(inputs))
        with frozen_eval(self.model), torch.no_grad():
            logits = [self.attack.logits_without(self.model, inputs, subset) for subset in subsets]
        target = check_answers(target, logits[0].shape[1], len(logits[0])).to(logits[0].device)
        hits = [answers(each, has_labels(target)) == target for each in logits]
        right = [each.all(dim=1) if each.dim() == 2 else each for each in hits]
        here = self._here(inputs, target)
        names = [*("+".join(subset) or "none" for subset in subsets), "worst"]
        right.append(torch.stack(right).all(dim=0))
        numbers = {Key("", self.what, name): each for name, each in zip(names, right, strict=True)}
        # One set of samples for all: those from which anything can be taken.
        self.means.add(numbers, here.all(dim=1)[:, None])
        if self.patterns:
            wanted = here.new_tensor([[name in subset for name in self.model.names] for subset in self.patterns])
            self.of_patterns.add({"": right[0]}, (here[:, None] == wanted).all(dim=2))
            self.lacking = self.lacking or bool(present_of(inputs))

    def _here(self, inputs: dict[str, Tensor], target: Tensor) -> Tensor:
        """Which sample has which modality, ``(B, M)``."""
        present = present_of(inputs)
        everywhere = torch.ones(len(target), dtype=torch.bool, device=target.device)
        return torch.stack([present.get(name, everywhere).to(target.device) for name in self.model.names], dim=1)

    @override
    def compute(self, reduce: Reduce) -> dict[Key, float]:
        numbers = {key: each for key, each in super().compute(reduce).items() if not math.isnan(each)}
        if self.patterns:
            shares = zip(self.patterns, self.of_patterns.compute(reduce)[""], strict=True)
            named = {Key("", "accuracy_present", "+".join(subset)): each for subset, each in shares}
            # Where no batch says who is present, that is the accuracy with nothing missing.
            device = next(iter(self.model.parameters()), torch.empty(0)).device
            if reduce(torch.tensor(float(self.lacking), device=device), "max"):
                numbers |= {key: each for key, each in named.items() if not math.isnan(each)}
        return numbers
