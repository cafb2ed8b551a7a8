# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Margin regularisation, step 1 of CRMT: uni-modal margins, the smallest first."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightning_crmt.certification import own_class
from lightning_crmt.checks import check_logits, check_modality_names, check_positive
from lightning_crmt.modality import Inputs, mean_over
from lightning_crmt.targets import (
    MixedTarget,
    Target,
    check_answers,
    check_probabilities,
    each_target,
    has_labels,
    has_probabilities,
    mixed_loss,
    signed_scores,
)


def margin_regularization(
    scores: Inputs, target: Target, temperature: float = 1.0, present: Inputs | None = None
) -> Tensor:
    r"""Margin regularisation, step 1 of CRMT (Yang et al., ICLR 2024): a smooth maximum of negative uni-modal margins.

    .. math:: L_1 = \frac 1 N \sum_i \log \sum_m \sum_{k \ne y_i} \exp\left( T (s_k^m(x_i) - s_{y_i}^m(x_i)) \right)

    The modality with the smallest margin gets the gradient, so that none is left behind. Computed by logsumexp: the
    exponentials alone overflow at scores near 88. A temperature T above 1 lets encoders of bounded slope, whose scores
    cannot grow, make the loss small; the paper has T = 1.

    For mixed samples (CRMT-Mix) the score to beat is :math:`\lambda s_{y_a}^m + (1 - \lambda) s_{y_b}^m`, and k runs
    over the classes that are neither :math:`y_a` nor :math:`y_b`. A sample without any such class does not count.

    Probabilities :math:`p_k` of classes weigh the terms of the classes: :math:`\sum_k p_k \, \ell(k)`, where
    :math:`\ell(y)` is that of class y above. Labels are each decided against 0 in place of rivals:

    .. math:: L_1 = \frac 1 N \sum_i \log \sum_m \sum_k \exp\left( -T \sigma_{ik} s_k^m(x_i) \right)

    with the sign :math:`\sigma_{ik}` of the label, 1 for a yes and -1 for a no. In mixed samples k runs over the labels
    that both have or lack; a sample without any such label does not count.

    The sum is over the modalities that a sample has; one without any does not count.

    Args:
        scores: uni-modal scores by modality, each ``(B, K)``.
        target: classes ``(B,)``, labels ``(B, K)`` of bools or integers, or probabilities ``(B, K)``; or those of mixed
            samples.
        temperature: T, above 0.
        present: which samples have a modality, ``(B,)`` bool, for those that may be absent.

    Returns:
        A scalar; negative when every margin is large.

    Raises:
        ValueError: if scores are not finite or differ in shape, a class is out of range, or probabilities do not sum
            to 1.
        TypeError: if ``target`` holds no numbers of these kinds.

    >>> scores = {"audio": torch.tensor([[1.0, 0.0]]), "image": torch.tensor([[3.0, 0.0]])}
    >>> margin_regularization(scores, torch.tensor([0]))  # log(e^-1 + e^-3)
    tensor(-0.8731)
    >>> margin_regularization(scores, torch.tensor([[True, False]]))  # of labels: log(e^-1 + e^-3 + 1 + 1)
    tensor(0.8828)
    """
    check_positive(temperature=temperature)
    check_modality_names("scores", scores)
    for name, score in scores.items():
        check_logits(score, f"scores[{name!r}]")
    shape = _one_shape(scores)

    def checked(part: Tensor) -> Tensor:
        soft = isinstance(part, Tensor) and part.dim() == 2 and part.is_floating_point()
        return (check_probabilities if soft else check_answers)(part, shape[1], shape[0])

    return smooth_margins(scores, each_target(checked, target), temperature, present)


def smooth_margins(scores: Inputs, target: Target, temperature: float = 1.0, present: Inputs | None = None) -> Tensor:
    """:func:`margin_regularization` of scores that are known to be finite, and of classes in range.

    It never waits for the device, except for mixed samples.

    Raises:
        ValueError: if scores differ in shape.

    >>> smooth_margins({"audio": torch.tensor([[1.0, 0.0]]), "image": torch.tensor([[3.0, 0.0]])}, torch.tensor([0]))
    tensor(-0.8731)
    """
    _one_shape(scores)
    stacked = torch.stack(list(scores.values()), dim=1)
    everywhere = torch.ones(len(stacked), dtype=torch.bool, device=stacked.device)
    here = torch.stack([present.get(name, everywhere) for name in scores], dim=1) if present else None
    if has_probabilities(target):
        return mixed_loss(lambda part: _expected_margins(stacked, part, temperature, here), target)
    if has_labels(target):
        return _label_margins(stacked, target, temperature, here)
    if isinstance(target, MixedTarget):
        return _mixed_margins(stacked, target, temperature, here)
    own = target[:, None, None].expand(-1, stacked.shape[1], 1)
    rivals = (temperature * (stacked - stacked.gather(2, own))).scatter(2, own, -math.inf)
    if here is None:
        return rivals.flatten(1).logsumexp(dim=1).mean()
    return _mean_over_present(rivals, here)


def _label_margins(stacked: Tensor, target: Target, temperature: float, here: Tensor | None) -> Tensor:
    """Of scores ``(B, M, K)`` and labels ``(B, K)``."""
    if not isinstance(target, MixedTarget):
        rivals = -temperature * signed_scores(stacked, target[:, None])
        return rivals.flatten(1).logsumexp(dim=1).mean() if here is None else _mean_over_present(rivals, here)
    decided = target.first == target.second
    counted = decided.any(dim=1)
    rivals = -temperature * signed_scores(stacked, target.first[:, None])
    # A sample without any is computed as if it had all, so that it has finite gradients, and left out.
    rivals = rivals.masked_fill(~(decided | ~counted[:, None])[:, None], -math.inf)
    if here is None:
        return mean_over(rivals.flatten(1).logsumexp(dim=1), counted)
    here = here & counted[:, None]
    return _mean_over_present(rivals, here)


def _expected_margins(stacked: Tensor, target: Tensor, temperature: float, here: Tensor | None) -> Tensor:
    """Of scores ``(B, M, K)`` and probabilities ``(B, K)``: the term of each class, times its probability."""
    scaled = temperature * stacked
    least = torch.full_like(scaled[..., :1], -math.inf)
    below = torch.cat([least, scaled[..., :-1].logcumsumexp(dim=2)], dim=2)
    above = torch.cat([least, scaled.flip(2)[..., :-1].logcumsumexp(dim=2)], dim=2).flip(2)
    rivals = torch.logaddexp(below, above) - scaled  # of all classes but the own one, (B, M, K)
    counted = torch.ones(len(stacked), dtype=torch.bool, device=stacked.device)
    if here is not None:
        counted = here.any(dim=1)
        rivals = rivals.masked_fill(~(here | ~counted[:, None])[:, :, None], -math.inf)
    return mean_over((target.to(rivals.dtype) * rivals.logsumexp(dim=1)).sum(dim=1), counted)


def _mean_over_present(rivals: Tensor, here: Tensor) -> Tensor:
    """Mean log-sum over the samples that have a modality, of scores ``(B, M, K)`` of the modalities that are here."""
    counted = here.any(dim=1)
    # A sample without any is computed as if it had all, so that it has finite gradients, and left out.
    rivals = rivals.masked_fill(~(here | ~counted[:, None])[:, :, None], -math.inf)
    return mean_over(rivals.flatten(1).logsumexp(dim=1), counted)


def _one_shape(scores: Inputs) -> tuple[int, ...]:
    shapes = {name: tuple(score.shape) for name, score in scores.items()}
    if len(set(shapes.values())) != 1:
        raise ValueError(f"`scores` must have one shape (B, K), got {shapes}")
    return next(iter(shapes.values()))


def _mixed_margins(stacked: Tensor, target: MixedTarget, temperature: float, here: Tensor | None) -> Tensor:
    first, second, share = target
    own = own_class(first, stacked.shape[2]) | own_class(second, stacked.shape[2])
    counted = ~own.all(dim=1)
    stacked, first, second, own = stacked[counted], first[counted], second[counted], own[counted]
    of_target = share * _of_class(stacked, first) + (1 - share) * _of_class(stacked, second)
    rivals = (temperature * (stacked - of_target)).masked_fill(own[:, None, :], -math.inf)
    if here is not None:
        return _mean_over_present(rivals, here[counted])
    # An empty sum is 0, and keeps the graph.
    return rivals.flatten(1).logsumexp(dim=1).sum() / max(len(rivals), 1)


def _of_class(scores: Tensor, classes: Tensor) -> Tensor:
    return scores.gather(2, classes[:, None, None].expand(-1, scores.shape[1], 1))


class MarginRegularization(nn.Module):
    """:func:`margin_regularization` as a module.

    Args:
        temperature: T, above 0.

    Raises:
        ValueError: if ``temperature`` is not above 0; in ``forward``, as :func:`margin_regularization` does.

    >>> loss = MarginRegularization()
    >>> loss({"audio": torch.zeros(1, 3)}, torch.tensor([2]))
    tensor(0.6931)
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        check_positive(temperature=temperature)
        self.temperature = temperature

    def forward(self, scores: Inputs, target: Target, present: Inputs | None = None) -> Tensor:
        """See :func:`margin_regularization`."""
        return margin_regularization(scores, target, self.temperature, present)
