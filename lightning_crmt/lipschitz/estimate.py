# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Lipschitz constants estimated from gradients on data: lower bounds of the true ones, never a certificate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_crmt.checks import check_batch, describe, require_finite
from lightning_crmt.frozen_eval import device_of, differentiable, frozen_eval
from lightning_crmt.layers import kept_rows
from lightning_crmt.lipschitz.bottleneck import narrow_norms
from lightning_crmt.lipschitz.constants import LipschitzConstants
from lightning_crmt.lipschitz.gradients import class_gradients, keep_largest
from lightning_crmt.lipschitz.screening import ProbeSearch, largest_norms
from lightning_crmt.modality import FusionOutput, Inputs, at_least_single, logits_of, modalities_of, select
from lightning_crmt.soundness import Soundness

#: On a CPU, the numbers in the inputs of the samples that are evaluated together, and the fewest samples. Backward
#: passes of smaller parts are faster, as what layers keep stays in the cache; those of a few alone are slower.
_CACHED = 2**18
_LEAST_ROWS = 8


def estimate_lipschitz(
    model: nn.Module,
    batches: Iterable[Inputs],
    *,
    of: Literal["scores", "margins", "labels"] = "scores",
    search: ProbeSearch | None = None,
) -> LipschitzConstants:
    r"""Estimate Lipschitz constants by the largest gradient over data, in evaluation mode.

    ``of="scores"``, the constants of the orthogonal framework (Yang et al., ICLR 2024), one backward pass per class
    and batch for all modalities together, or fewer for a modality that reaches its scores by way of a vector of fewer
    dimensions than there are classes:

    .. math:: \tau_k^m = \max_i \left\| \partial s_k^m / \partial x^m \,(x_i) \right\|_2

    ``of="margins"``, those of the paper's joint framework, for any model that returns logits, late fusion or not. They
    include the weights of the head and hold the gradients of all classes in memory at once, ``(B, K, size of x^m)``:

    .. math:: \max_i \left\| \partial (h_p - h_j) / \partial x^m \,(x_i) \right\|_2

    ``of="labels"``, the same of each logit alone, for models of several labels per sample.

    Modalities of integers, such as tokens, have no gradient: they are ``clean`` in the constants, and radii are about
    the others. Samples that lack a modality count as 0 there.

    A maximum over samples is a *lower* bound of the true constant, so a radius computed from it is an estimate: on
    :math:`f(x) = 3 - (x + 10\,\mathrm{relu}(x - 2))` with data in [-1.5, 1.5] it gives 3.0 where the true radius is
    2.09.

    Args:
        model: called with the inputs by name; returns a ``FusionOutput``, or for ``of="margins"`` anything with logits.
            Samples of a batch must not influence each other, as in evaluation mode they do not. On a CPU it is given
            batches in parts.
        batches: inputs by name; wrap the iterable to show progress.
        of: which constants.
        search: for ``of="scores"``, how to find the largest gradients without taking all. The result is never above
            the exhaustive one, mostly equal to it and rarely a few percent below; the time grows less with the number
            of classes. None takes all gradients.

    Returns:
        Constants with ``Soundness.ESTIMATED``, in the precision of the parameters, on their device.

    Raises:
        ValueError: if ``batches`` is empty, holds NaN or Inf, or a gradient is not finite; for ``of="scores"`` if the
            scores of one modality depend on the input of another in the first batch; if ``search`` is given for
            other constants.
        TypeError: if no modality is floating point, or the model returns no scores where they are needed.

    >>> from lightning_crmt.fusion import LinearFusion
    >>> head = LinearFusion({"audio": 3}, num_classes=2)
    >>> tau = estimate_lipschitz(head, [{"audio": torch.randn(5, 3)}])
    >>> torch.allclose(tau.values["audio"], head.class_weights["audio"].norm(dim=1))
    True
    """
    return estimate_and_show(model, batches, of=of, search=search)


def estimate_and_show(
    model: nn.Module,
    batches: Iterable[Inputs],
    *,
    of: Literal["scores", "margins", "labels"] = "scores",
    search: ProbeSearch | None = None,
    show: Callable[[Inputs], object] | None = None,
) -> LipschitzConstants:
    """:func:`estimate_lipschitz`, and shows the uni-modal scores of each batch, which it computes anyway.

    Args:
        model: see there.
        batches: see there.
        of: see there.
        search: see there.
        show: called with the scores of each batch by modality, ``(B, K)``, detached; for ``of="scores"``.
    """
    if of not in ("scores", "margins", "labels"):
        raise ValueError(f"`of` must be 'scores' or 'margins', got {of!r}; or 'labels', where a model has several")
    if search is not None and of != "scores":
        raise ValueError(f"`search` must be None for of={of!r}, where every gradient is needed; got {search}")
    if search is not None and not isinstance(search, ProbeSearch):
        raise TypeError(f"`search` must be a ProbeSearch or None, got {describe(search)}")

    kinds: set[tuple[str, ...]] = set()

    def scores_of(x: Inputs) -> dict[str, Tensor]:
        output = model(x)
        if not isinstance(output, FusionOutput):
            raise TypeError(
                f"`model` must return a FusionOutput for of='scores', got {describe(output)}; use of='margins'"
            )
        return output.scores

    def leaves() -> Iterator[dict[str, Tensor]]:
        for inputs in batches:
            check_batch("inputs", inputs)
            require_finite("inputs", inputs)
            for rows in _at_once(inputs, device_of(model)):
                x = differentiable(select(inputs, rows), model)
                kinds.add(tuple(name for name in modalities_of(x) if not x[name].requires_grad))
                if len(kinds) > 1:
                    raise TypeError(f"`batches` must have the same integer modalities, got {sorted(kinds)}")
                yield x

    def scored() -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        for i, x in enumerate(leaves()):
            # A search goes forward again, with some of the samples.
            with torch.set_grad_enabled(search is None or i == 0):
                scores = scores_of(x)
            if i == 0:
                _refuse_crossed(scores, x)
            if show is not None:
                show({name: score.detach() for name, score in scores.items()})
            yield x, scores

    largest: dict[str, Tensor] = {}
    with frozen_eval(model), kept_rows():
        if search is not None:
            largest = largest_norms(scores_of, (x for x, _ in scored()), search)
        elif of == "scores":
            for x, scores in scored():
                keep_largest(largest, _score_speeds(scores, x))
                del scores  # with its graph, before the next
        else:
            for x in leaves():
                keep_largest(largest, (margin_speeds if of == "margins" else label_speeds)(logits_of(model(x)), x))
    if not largest:
        raise ValueError("`batches` must hold at least one batch, got none")
    return LipschitzConstants(largest, of=of, soundness=Soundness.ESTIMATED, clean=kinds.pop())


def margin_speeds(logits: Tensor, inputs: Inputs) -> dict[str, Tensor]:
    r"""Gradient norms of all differences of logits at each sample, by modality, ``(B, K, K)``.

    K backward passes serve all K (K - 1) / 2 pairs.

    Args:
        logits: ``(B, K)``, computed from ``inputs`` with gradients enabled; the graph is used up.
        inputs: by name, of which those that require a gradient are the leaves.

    >>> leaf = torch.ones(1, 2, requires_grad=True)
    >>> margin_speeds(leaf @ torch.tensor([[3.0, 0.0], [0.0, 4.0]]), {"audio": leaf})["audio"]
    tensor([[[0., 5.],
             [5., 0.]]])
    """
    gradients = list(class_gradients([logits], inputs))
    speeds = {}
    for name in gradients[0]:
        stacked = at_least_single(torch.stack([each[name] for each in gradients], dim=1))
        # Subtract, then square: the faster expansion by inner products can give nearly equal classes a distance of 0.
        speeds[name] = torch.cdist(stacked, stacked, compute_mode="donot_use_mm_for_euclid_dist")
    return speeds


def label_speeds(logits: Tensor, inputs: Inputs) -> dict[str, Tensor]:
    r"""Gradient norms of each logit at each sample, by modality, ``(B, K)``: those of the margins of labels.

    Args:
        logits: ``(B, K)``, computed from ``inputs`` with gradients enabled; the graph is used up.
        inputs: by name, of which those that require a gradient are the leaves.

    >>> leaf = torch.ones(1, 2, requires_grad=True)
    >>> label_speeds(leaf @ torch.tensor([[3.0, 0.0], [4.0, 2.0]]), {"audio": leaf})["audio"]
    tensor([[5., 2.]])
    """
    return _class_speeds(dict.fromkeys(inputs, logits), [logits], inputs)


def _score_speeds(scores: Inputs, inputs: Inputs) -> dict[str, Tensor]:
    """Gradient norms of each score with respect to its own input at each sample, ``(B, K)``."""
    # Each score depends on its own input alone, so the sum over modalities gives every gradient at once.
    return _class_speeds(scores, list(scores.values()), inputs)


def _class_speeds(of_input: Inputs, scores: Sequence[Tensor], inputs: Inputs) -> dict[str, Tensor]:
    """Gradient norms with respect to each input of the scores that depend on it, ``(B, K)``.

    Args:
        of_input: the scores that are meant, by the name of the input.
        scores: all of them, each once.
        inputs: by name, of which those that require a gradient are the leaves.
    """
    leaves = {name: leaf for name, leaf in inputs.items() if leaf.requires_grad}
    narrow = {name: narrow_norms(of_input[name], leaf) for name, leaf in leaves.items() if name in of_input}
    speeds = {name: norms for name, norms in narrow.items() if norms is not None}
    others = {name: leaf for name, leaf in leaves.items() if name not in speeds}
    if others:
        gradients = class_gradients(scores, others)
        norms = [{name: gradient.norm(dim=1) for name, gradient in each.items()} for each in gradients]
        speeds |= {name: torch.stack([each[name] for each in norms], dim=1) for name in others}
    return {name: speeds[name] for name in leaves}


def _at_once(inputs: Inputs, device: torch.device) -> Sequence[Tensor]:
    """Samples of a batch that go through the model together: on a CPU, as many as its cache holds the numbers of."""
    size = len(next(iter(inputs.values())))
    numbers = sum(value[0].numel() for value in inputs.values())
    rows = max(_LEAST_ROWS, _CACHED // max(numbers, 1)) if device.type == "cpu" else size
    return torch.split(torch.arange(size), rows)


def _refuse_crossed(scores: Inputs, inputs: Inputs) -> None:
    for name, score in scores.items():
        others = {other: value for other, value in inputs.items() if other != name and value.requires_grad}
        if not others or not score.requires_grad:
            continue
        # A random combination: the plain sum may be constant while its parts change.
        mixed = (score * torch.rand_like(score)).sum()
        crossed = torch.autograd.grad(mixed, list(others.values()), retain_graph=True, allow_unused=True)
        for other, gradient in zip(others, crossed, strict=True):
            if gradient is not None and gradient.any():
                raise ValueError(
                    f"the scores of {name!r} must depend on the input {name!r} alone, they move with {other!r}; "
                    "use of='margins'"
                )
