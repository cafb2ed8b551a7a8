# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Gradients with respect to every modality at once, and the largest of their norms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from typing_extensions import override

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


def frozen_batch_norm(model: nn.Module) -> AbstractContextManager[object]:
    r"""Inside, going back through frozen batch normalisation in evaluation mode costs one product of each number.

    There it is :math:`y = s x + t` with fixed s and t, so gradients are multiplied by s. Torch's own backward passes
    sum over all samples as well, for gradients of the mean and the weights that nobody asked for. What goes forward is
    torch's, to the bit. Nothing happens where parts of ``model`` were compiled.

    Args:
        model: what is to be called inside, with frozen parameters.

    >>> layer, x = nn.BatchNorm1d(3).eval().requires_grad_(False), torch.randn(5, 3, requires_grad=True)
    >>> with frozen_batch_norm(layer):
    ...     y = layer(x)
    >>> torch.equal(y, layer(x)), torch.autograd.grad(y.sum(), x)[0][0]
    (True, tensor([1.0000, 1.0000, 1.0000]))
    """
    compiled = any(
        part._compiled_call_impl is not None or type(part).__name__ == "OptimizedModule" for part in model.modules()
    )
    return nullcontext() if compiled else _FrozenBatchNorm()


class _FrozenBatchNorm(TorchFunctionMode):
    @override
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return (_batch_norm if func is nn.functional.batch_norm else func)(*args, **(kwargs or {}))


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    fixed = [value for value in (running_mean, running_var, weight, bias) if value is not None]
    if (
        training
        or running_mean is None
        or running_var is None
        or any(value.requires_grad or value.dtype is not input.dtype for value in fixed)
        or not input.requires_grad
    ):
        return nn.functional.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    scale = (running_var + eps).rsqrt()
    scale = (scale if weight is None else scale * weight).reshape(-1, *[1] * (input.dim() - 2))
    normalised: Tensor = _Scaled.apply(input, scale, running_mean, running_var, weight, bias, eps)  # type: ignore[no-untyped-call]
    return normalised


class _Scaled(torch.autograd.Function):
    generate_vmap_rule = True  # for models that use torch.func

    @staticmethod
    @override
    def forward(x: Tensor, scale: Tensor, *others: Any) -> Tensor:
        mean, variance, weight, bias, eps = others
        return nn.functional.batch_norm(x, mean, variance, weight, bias, eps=eps)

    @staticmethod
    @override
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    @override
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = ctx.saved_tensors
        return gradients[0] * scale, *[None] * 6


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
