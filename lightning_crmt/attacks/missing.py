# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The attack that takes modalities away."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from typing_extensions import override

from lightning_crmt.attacks.attack import Attack
from lightning_crmt.attacks.search.attacked_model import Model, lent
from lightning_crmt.attacks.search.loss import Objective, lead
from lightning_crmt.attacks.threat.per_sample import choose
from lightning_crmt.checks import check_at_least, check_batch, check_logits, describe, require_finite
from lightning_crmt.deprecation import renamed_argument
from lightning_crmt.fusion import LateFusion
from lightning_crmt.modality import (
    FusionOutput,
    Inputs,
    continuous_of,
    logits_of,
    present_of,
    where_present,
    widened,
)
from lightning_crmt.targets import check_answers

#: What replaces a missing input: one number for all entries, or a value with the shape of one sample.
Fill: TypeAlias = float | Sequence[float] | Tensor
#: How modalities are taken away: inputs of zeros, scores left out of the fusion, or values by modality.
Filling: TypeAlias = Literal["zeroed", "dropped"] | Mapping[str, Fill]


class MissingModality(Attack):
    """The attacker knows the model and picks, for each sample, which modalities to take away.

    Every subset of at most ``max_missing`` is tried, the empty one too, leaving at least one modality. The attack keeps
    the subset whose absence leaves logits that are not finite, or else gives the strongest wrong class the largest lead
    over the target; among equals, the smallest. The filling is part of the threat: a model may cope well with zeros and
    badly with the mean.

    This attack has no budget: a modality is there or it is not.

    Args:
        fill: ``"zeroed"``, inputs of zeros, which for integers is the padding id 0; a value for each modality, such as
            :func:`mean_inputs` computes, or another padding id, ``{"text": 1}``, only those named are ever missing; or
            ``"dropped"``, the score is left out of the fusion. A dropped modality has no input, so calling the attack
            is an error: use :meth:`logits`. The model must then return a ``FusionOutput`` and have a fusion head as its
            attribute ``head``.
        max_missing: largest number of modalities missing at once; all but one by default.
        modalities: those that may be missing; all by default, or all that ``fill`` names.
        represent: the former name of ``fill``.

    Raises:
        ValueError: if an argument is out of range; on call, if a name is unknown or a value does not fit, such as 0.5
            for token ids.
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
        fill: Filling = "zeroed",
        *,
        max_missing: int | None = None,
        modalities: Sequence[str] | None = None,
        represent: Filling | None = None,
    ) -> None:
        fill = renamed_argument("represent", represent, "fill", fill)
        if not isinstance(fill, Mapping) and fill not in ("zeroed", "dropped"):
            raise ValueError(f"`fill` must be 'zeroed', 'dropped' or values by modality, got {fill!r}")
        check_at_least(1, max_missing=max_missing)
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
        """Inputs without the modalities whose absence is worst; one that is never missing is the same tensor object.

        Raises:
            TypeError: for ``fill="dropped"``.
        """
        if self.fill == "dropped":
            raise TypeError("a modality dropped from the fusion has no input; call `logits` for the model's output")
        missing = {name: rows for name, rows in self.missing(model, inputs, target).items() if bool(rows.any())}
        with lent(model, inputs) as taken:
            filled = {
                name: choose(rows, self.filled(taken, [name]), {name: taken[name]})[name]
                for name, rows in missing.items()
            }
            return {**inputs, **filled}

    @override
    def logits(self, model: Model, inputs: Inputs, target: Tensor) -> Tensor:
        """Logits of the model without the modalities whose absence is worst, ``(B, K)``."""
        return self._worst(model, inputs, target)[1]

    def missing(self, model: Model, inputs: Inputs, target: Tensor) -> dict[str, Tensor]:
        """For each modality that may be missing, the samples in whose worst case it is, ``(B,)`` bool."""
        return self._worst(model, inputs, target)[0]

    def subsets(self, inputs: Collection[str]) -> list[tuple[str, ...]]:
        """The sets of missing modalities that are tried, smallest first; of inputs, or of names of modalities.

        Raises:
            ValueError: if one that may be missing is unknown.

        >>> MissingModality(modalities=["audio"]).subsets(["audio", "image"])
        [(), ('audio',)]
        """
        inputs = [name for name in inputs if "." not in name]
        names = list(self.fill) if isinstance(self.fill, dict) else inputs
        names = names if self.modalities is None else self.modalities
        unknown = [name for name in names if name not in inputs]
        if unknown:
            raise ValueError(f"modalities that may be missing must be among {inputs}, got {unknown}")
        largest = min(len(names), len(inputs) - 1)
        largest = largest if self.max_missing is None else min(largest, self.max_missing)
        return [subset for size in range(largest + 1) for subset in combinations(names, size)]

    def filled(self, inputs: Inputs, missing: Collection[str]) -> dict[str, Tensor]:
        """``inputs`` with the modalities in ``missing`` replaced by their filling; by zeros for ``"dropped"``.

        Raises:
            ValueError: if a value does not have the shape of a sample, or is no integer where those are.

        >>> MissingModality({"audio": 0.5}).filled({"audio": torch.ones(1, 2)}, ["audio"])
        {'audio': tensor([[0.5000, 0.5000]])}
        >>> MissingModality({"text": 7}).filled({"text": torch.tensor([[5, 3]])}, ["text"])  # 7 is the padding id
        {'text': tensor([[7, 7]])}
        """
        return {name: self._fill(name, value) if name in missing else value for name, value in inputs.items()}

    def logits_without(self, model: Model, inputs: Inputs, missing: Collection[str]) -> Tensor:
        """Logits ``(B, K)`` without the modalities in ``missing``, of a model as it is: put it in evaluation mode.

        Raises:
            TypeError: for ``fill="dropped"``, if the model is not a late fusion, see :class:`MissingModality`.
            ValueError: if a value does not have the shape of a sample.
        """
        if self.fill != "dropped":
            return logits_of(model(self.filled(inputs, missing)))
        # A wrapper, such as that of distributed training, keeps what it wraps as its attribute ``module``.
        head = getattr(model, "head", getattr(getattr(model, "module", None), "head", None))
        output = model(dict(inputs))
        if not isinstance(head, LateFusion) or not isinstance(output, FusionOutput):
            raise TypeError(
                "`fill='dropped'` needs a model with a fusion head as `head` that returns a FusionOutput, "
                f"got {describe(head)} and {describe(output)}; use 'zeroed'"
            )
        return head.fuse({name: score for name, score in output.scores.items() if name not in missing})

    def _worst(self, model: Model, inputs: Inputs, target: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        size = check_batch("inputs", inputs)
        require_finite("inputs", inputs)
        subsets = self.subsets(inputs)
        with lent(model, inputs) as taken, torch.no_grad():
            answers = torch.stack([self.logits_without(model, taken, subset) for subset in subsets])
            check_logits(answers[0], "the logits of clean inputs")  # without some, no answer is a broken model
            margin = Objective("margin", check_answers(target, answers.shape[2], size).to(answers.device))
            worst = torch.stack([lead(margin, each) for each in answers]).argmax(dim=0)  # the first among equals
            missing = {
                name: torch.tensor([name in subset for subset in subsets], device=worst.device)[worst]
                for name in dict.fromkeys(name for subset in subsets for name in subset)
            }
            return missing, answers.gather(0, worst[None, :, None].expand(1, -1, answers.shape[2])).squeeze(0)

    def _fill(self, name: str, value: Tensor) -> Tensor:
        if not isinstance(self.fill, dict):
            return torch.zeros_like(value)
        given = torch.as_tensor(self.fill[name], dtype=value.dtype, device=value.device)
        if not value.is_floating_point() and bool((torch.as_tensor(self.fill[name]) != given.cpu()).any()):
            raise ValueError(
                f"`fill[{name!r}]` must hold integers, such as the padding id, as the inputs do, got {self.fill[name]}"
            )
        if given.dim() > 0 and given.shape != value.shape[1:]:
            raise ValueError(
                f"`fill[{name!r}]` must be a number or have the shape {tuple(value.shape[1:])} of a sample, "
                f"got {tuple(given.shape)}"
            )
        return given.expand_as(value)


def mean_inputs(batches: Iterable[Inputs | Sequence[Any]]) -> dict[str, Tensor]:
    """Mean of each floating point modality over batches, in float64, to fill a missing one with.

    Args:
        batches: a data loader, or anything that yields inputs by modality, ``(B, ...)`` each, or pairs of them and a
            target. Batches may differ in size.

    Returns:
        By modality the mean over all samples that have it, of the shape ``(...)`` of one sample; without integer
        modalities.

    Raises:
        TypeError: if inputs are not tensors by modality.
        ValueError: if there are no samples, or none that has a modality, or the modalities of a batch differ in their
            number of samples.

    >>> mean_inputs([{"audio": torch.ones(3, 2)}, {"audio": torch.full((1, 2), 5.0)}])
    {'audio': tensor([2., 2.], dtype=torch.float64)}
    """
    total: dict[str, Tensor] = {}
    samples: dict[str, int] = {}
    seen = 0
    for batch in batches:
        inputs: Inputs = batch if isinstance(batch, Mapping) else batch[0]
        size = check_batch("batches", inputs)
        seen += size
        for name, value in continuous_of(inputs).items():
            here = present_of(inputs).get(name)
            samples[name] = samples.get(name, 0) + (size if here is None else int(here.sum()))
            total[name] = widened(where_present(value.detach(), here)).sum(dim=0) + total.get(name, 0.0)
    if seen == 0 or 0 in samples.values():
        raise ValueError(f"`batches` must hold at least one sample of each modality, got {samples or 'none'}")
    return {name: each / samples[name] for name, each in total.items()}
