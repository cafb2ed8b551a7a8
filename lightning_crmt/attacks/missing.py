# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The attack that takes modalities away."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Literal, NoReturn, TypeAlias

import torch
from torch import Tensor
from typing_extensions import override

from lightning_crmt.attacks.attack import Attack
from lightning_crmt.attacks.search.attacked_model import Model, as_taken_by, holder_of
from lightning_crmt.attacks.search.loss import rival_margin
from lightning_crmt.attacks.threat.geometry import choose
from lightning_crmt.attacks.threat.radius import Radius
from lightning_crmt.checks import check_batch, check_logits, check_target, describe, require_finite
from lightning_crmt.frozen_eval import frozen_eval
from lightning_crmt.fusion import LateFusion
from lightning_crmt.modality import FusionOutput, Inputs, logits_of

#: What stands for a missing input: one number for all entries, or a value of the shape of one sample.
Fill: TypeAlias = float | Sequence[float] | Tensor


class MissingModality(Attack):
    """The attacker knows the model and picks, for each sample, which modalities to take away.

    Every subset of at most ``max_missing`` is tried, the empty one too, leaving at least one modality; the one is kept
    under which the strongest wrong class leads the target by most, among equals the smallest. What stands for a missing
    modality is a part of the threat: a model may bear zeros well and the mean badly.

    It has no budget: a modality is there or not.

    Args:
        fill: ``"zeroed"``, inputs of zeros; a value for each modality, such as :func:`mean_inputs` computes, only
            those named are ever missing; or ``"dropped"``, the score is left out of the fusion. Dropping is no input:
            ask :meth:`logits`, the call refuses. The model then must answer a ``FusionOutput`` and have a fusion head
            as its attribute ``head``.
        max_missing: largest number of modalities missing at once; all but one by default.
        modalities: those that may be missing; all by default, or all that ``fill`` names.

    Raises:
        ValueError: if an argument is out of range; on call, if a name is unknown or a value does not fit.
        TypeError: on call, if the inputs of ``"dropped"`` are asked for, or the model has no fusion head.

    >>> from lightning_crmt import LinearFusion
    >>> head = LinearFusion({"audio": 4, "image": 4}, num_classes=3)
    >>> x = {"audio": torch.randn(5, 4), "image": torch.randn(5, 4)}
    >>> y = head(x).logits.argmax(1)
    >>> without = MissingModality()(head, x, y)
    >>> bool(((without["audio"] == 0).all(1) & (without["image"] == 0).all(1)).any())
    False
    """

    def __init__(
        self,
        fill: Literal["zeroed", "dropped"] | Mapping[str, Fill] = "zeroed",
        max_missing: int | None = None,
        modalities: Sequence[str] | None = None,
    ) -> None:
        if not isinstance(fill, Mapping) and fill not in ("zeroed", "dropped"):
            raise ValueError(f"`fill` must be 'zeroed', 'dropped' or values by modality, got {fill!r}")
        if max_missing is not None and max_missing < 1:
            raise ValueError(f"`max_missing` must be at least 1, got {max_missing}")
        if isinstance(modalities, str):
            raise TypeError(f"`modalities` must be a sequence of names, got the string {modalities!r}")
        if isinstance(fill, Mapping) and modalities is not None:
            absent = [name for name in modalities if name not in fill]
            if absent:
                raise ValueError(f"`fill` must have a value for each of `modalities`, got none for {absent}")
        self.fill = dict(fill) if isinstance(fill, Mapping) else fill
        self.max_missing = max_missing
        self.modalities = None if modalities is None else list(modalities)

    @override
    def __call__(self, model: Model, inputs: Inputs, target: Tensor) -> dict[str, Tensor]:
        """Inputs without the modalities whose absence is worst; one that is missing nowhere is the very same tensor.

        Raises:
            TypeError: for ``fill="dropped"``.
        """
        if self.fill == "dropped":
            raise TypeError("a modality dropped from the fusion is no input; ask `logits` for what the model answers")
        missing, _ = self._worst(model, inputs, target)
        with frozen_eval(holder_of(model)):
            known = as_taken_by(model, inputs)
            return {
                name: choose(missing[name], self._stand(name, known[name]), known[name])
                if name in missing and bool(missing[name].any())
                else value
                for name, value in inputs.items()
            }

    @override
    def logits(self, model: Model, inputs: Inputs, target: Tensor) -> Tensor:
        """What the model answers without the modalities whose absence is worst, ``(B, K)``."""
        return self._worst(model, inputs, target)[1]

    def missing(self, model: Model, inputs: Inputs, target: Tensor) -> dict[str, Tensor]:
        """By modality that may be missing, for which samples its absence is part of the worst, ``(B,)``."""
        return self._worst(model, inputs, target)[0]

    @override
    def scaled(self, factor: Radius) -> NoReturn:
        raise TypeError("a missing modality has no radius to scale")

    @override
    def select(self, rows: Tensor) -> MissingModality:
        return self

    def subsets(self, inputs: Inputs) -> list[tuple[str, ...]]:
        """The sets of missing modalities that are tried, smallest first.

        >>> MissingModality(modalities=["audio"]).subsets({"audio": torch.zeros(1, 2), "image": torch.zeros(1, 2)})
        [(), ('audio',)]
        """
        names = list(self.fill) if isinstance(self.fill, dict) else list(inputs)
        names = names if self.modalities is None else self.modalities
        unknown = [name for name in names if name not in inputs]
        if unknown:
            raise ValueError(f"modalities that may be missing must be among {list(inputs)}, got {unknown}")
        largest = min(len(names), len(inputs) - 1)
        largest = largest if self.max_missing is None else min(largest, self.max_missing)
        return [subset for size in range(largest + 1) for subset in combinations(names, size)]

    def _worst(self, model: Model, inputs: Inputs, target: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        size = check_batch("inputs", inputs)
        require_finite("inputs", inputs)
        subsets = self.subsets(inputs)
        with frozen_eval(holder_of(model)), torch.no_grad():
            known = as_taken_by(model, inputs)
            logits = {subset: self.logits_without(model, known, subset) for subset in subsets}
            for subset, each in logits.items():
                check_logits(each, f"the logits without {list(subset)}")
            answers = torch.stack(list(logits.values()))
            check_target(target, answers.shape[2], size)
            leads = torch.stack([rival_margin(target.to(each.device))(each) for each in answers])
            worst = leads.nan_to_num(-torch.inf, torch.inf, -torch.inf).argmax(dim=0)  # the first among equals
            missing = {
                name: torch.stack([torch.tensor(name in subset, device=worst.device) for subset in subsets])[worst]
                for name in dict.fromkeys(name for subset in subsets for name in subset)
            }
            return missing, answers.gather(0, worst[None, :, None].expand(1, -1, answers.shape[2])).squeeze(0)

    def logits_without(self, model: Model, inputs: Inputs, missing: Collection[str]) -> Tensor:
        """Logits ``(B, K)`` without the modalities in ``missing``, of a model as it is: put it in evaluation mode.

        Raises:
            ValueError: if a value of ``fill`` does not fit.
            TypeError: for ``fill="dropped"``, if the model has no fusion head.
        """
        if self.fill != "dropped":
            return logits_of(model({**inputs, **{name: self._stand(name, inputs[name]) for name in missing}}))
        # A wrapper, such as that of distributed training, keeps what it wraps as its attribute ``module``.
        head = getattr(model, "head", getattr(getattr(model, "module", None), "head", None))
        output = model(dict(inputs))
        if not isinstance(head, LateFusion) or not isinstance(output, FusionOutput):
            raise TypeError(
                "`fill='dropped'` needs a model with a fusion head as `head` that answers a FusionOutput, "
                f"got {describe(head)} and {describe(output)}; use 'zeroed'"
            )
        return head.fuse({name: score for name, score in output.scores.items() if name not in missing})

    def _stand(self, name: str, value: Tensor) -> Tensor:
        if not isinstance(self.fill, dict):
            return torch.zeros_like(value)
        given = torch.as_tensor(self.fill[name], dtype=value.dtype, device=value.device)
        if given.dim() > 0 and given.shape != value.shape[1:]:
            raise ValueError(
                f"`fill[{name!r}]` must be a number or have the shape {tuple(value.shape[1:])} of a sample, "
                f"got {tuple(given.shape)}"
            )
        return given.expand_as(value)


def mean_inputs(batches: Iterable[Inputs | tuple[Inputs, Tensor] | list[Inputs | Tensor]]) -> dict[str, Tensor]:
    """Mean of each floating point modality over batches, in float64: a stand for a missing one.

    Args:
        batches: a data loader, or anything that yields inputs by modality, or pairs of them and a target.

    Raises:
        ValueError: if there are no samples.

    >>> mean_inputs([{"audio": torch.ones(3, 2)}, {"audio": torch.full((1, 2), 5.0)}])
    {'audio': tensor([2., 2.], dtype=torch.float64)}
    """
    total: dict[str, Tensor] = {}
    samples = 0
    for batch in batches:
        inputs = batch[0] if isinstance(batch, tuple | list) else batch
        samples += check_batch("batches", inputs)
        assert isinstance(inputs, Mapping)
        for name, value in inputs.items():
            if value.is_floating_point():
                total[name] = value.detach().double().sum(dim=0) + total.get(name, 0.0)
    if samples == 0:
        raise ValueError("`batches` must hold at least one sample, got none")
    return {name: each / samples for name, each in total.items()}
