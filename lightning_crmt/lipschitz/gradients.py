# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Gradients with respect to every modality at once, and the largest of their norms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_crmt.modality import Inputs


def input_gradients(value: Tensor, inputs: Inputs, last: bool) -> dict[str, Tensor]:
    """Flattened gradients ``(B, size of x^m)`` of the leaves; zeros where the value does not depend on one.

    Args:
        value: one number, computed from ``inputs``.
        inputs: by name, of which those that require a gradient are the leaves.
        last: whether the graph may be used up.

    >>> leaf = torch.ones(2, 3, requires_grad=True)
    >>> input_gradients(leaf.square().sum(), {"audio": leaf}, last=True)["audio"][0]
    tensor([2., 2., 2.])
    """
    leaves = {name: each for name, each in inputs.items() if each.requires_grad}
    gradients: tuple[Tensor | None, ...] = (None,) * len(leaves)
    if value.requires_grad:
        gradients = torch.autograd.grad(value, list(leaves.values()), retain_graph=not last, allow_unused=True)
    return {
        name: (torch.zeros_like(leaf) if gradient is None else gradient).flatten(1)
        for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True)
    }


def class_gradients(scores: Sequence[Tensor], inputs: Inputs) -> Iterator[dict[str, Tensor]]:
    """For one class after the other, :func:`input_gradients` of the sum of its scores.

    Args:
        scores: each ``(B, K)``, computed from ``inputs``; their graph is used up.
        inputs: by name, of which those that require a gradient are the leaves.
    """
    num_classes = scores[0].shape[1]
    for k in range(num_classes):
        total = torch.stack([score[:, k].sum() for score in scores]).sum()
        yield input_gradients(total, inputs, last=k == num_classes - 1)


def keep_largest(largest: dict[str, Tensor], speeds: Inputs) -> None:
    """Raise ``largest`` to the maxima over some more samples.

    Args:
        largest: by modality, each of shape ``S``; empty at first.
        speeds: gradient norms by modality, each ``(n, *S)``.

    Raises:
        ValueError: naming the modality, if one is not finite.
    """
    for name, value in speeds.items():
        top = value.amax(dim=0)
        if not top.isfinite().all():
            raise ValueError(
                f"the gradients with respect to `inputs[{name!r}]` must be finite, got NaN or Inf: the model diverged"
            )
        largest[name] = torch.maximum(largest[name], top) if name in largest else top
