# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Put a model in evaluation mode with frozen parameters, differentiate it there, and restore it afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

from lightning_crmt.modality import Inputs, continuous_of, modalities_of


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Inside, models are in evaluation mode; afterwards every part is in its own mode again, which may differ."""
    training = [part for model in models for part in model.modules() if part.training]
    try:
        for part in training:
            part.training = False  # not .eval(): a user's override of it need not be undone by .train()
        yield
    finally:
        for part in training:
            part.training = True


@contextmanager
def frozen_eval(model: nn.Module) -> Iterator[None]:
    """Inside, ``model`` is in evaluation mode with frozen parameters, and gradients can be taken in full precision.

    On leaving, every submodule's ``training`` flag, every ``requires_grad`` and torch's global random state are as
    they were. Works under ``no_grad``, ``inference_mode`` and autocast: the validation of a fit runs under the first,
    ``Trainer.test`` under the second, where enabling gradients alone is not enough.

    Raises:
        RuntimeError: if the model kept a tensor that it made in inference mode; it says how to avoid that.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    >>> with torch.inference_mode(), frozen_eval(model):
    ...     x = torch.ones(1, 2, requires_grad=True)
    ...     (gradient,) = torch.autograd.grad(model(x).sum(), x)
    >>> model.training, model[0].weight.requires_grad, model[0].weight.grad
    (True, True, None)
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device = device_of(model)
    cuda = [device] if device.type == "cuda" else []
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        with (
            evaluating(model),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(device.type, enabled=False),
            torch.random.fork_rng(devices=cuda),
        ):
            yield
    except RuntimeError as error:
        if "inference tensor" not in str(error).lower():
            raise
        raise RuntimeError(
            "the model kept a tensor that it made in inference mode, at which nothing can be "
            "differentiated: evaluate under torch.no_grad() instead, with Lightning by Trainer(inference_mode=False)"
        ) from error
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _holds_tensors(model: nn.Module) -> bool:
    return next(chain(model.parameters(), model.buffers()), None) is not None


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter or buffer, CPU if it has none."""
    tensor = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def as_taken_by(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    """Copies of ``inputs`` on the model's device; floating point ones in the precision of its parameters.

    A model without parameters and buffers takes them where and as they are.

    >>> as_taken_by(nn.Linear(2, 2), {"audio": torch.ones(1, 2, dtype=torch.float64)})["audio"].dtype
    torch.float32
    """
    device = device_of(model) if _holds_tensors(model) else None
    precision = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    dtypes = {name: (value.is_floating_point() and precision) or value.dtype for name, value in inputs.items()}
    return {name: v.detach().to(device=device, dtype=dtypes[name], copy=True) for name, v in inputs.items()}


def differentiable(inputs: Inputs, model: nn.Module) -> dict[str, Tensor]:
    """Copies of ``inputs`` that gradients can be taken at, on the device and in the precision of the parameters.

    Args:
        inputs: by modality, ``(B, ...)``.
        model: the module that is to take them.

    Returns:
        Tensors of the same shapes by name. Modalities of real numbers are leaves with ``requires_grad``; there is no
        gradient with respect to tokens and context.

    Raises:
        TypeError: if no modality is of real numbers.

    >>> layer, x = nn.Linear(2, 1), {"audio": torch.ones(3, 2, dtype=torch.float64)}
    >>> leaves = differentiable(x, layer)
    >>> (gradient,) = torch.autograd.grad(layer(leaves["audio"]).sum(), leaves["audio"])
    >>> gradient.shape, gradient.dtype, x["audio"].requires_grad
    (torch.Size([3, 2]), torch.float32, False)
    """
    taken, leaves = as_taken_by(model, inputs), continuous_of(inputs)
    if not leaves:
        name, value = next(iter(modalities_of(inputs).items()))
        raise TypeError(
            f"`inputs[{name!r}]` must be floating point to be differentiated, got {value.dtype}, and so must at least "
            "one modality; for tokens, make the embedded sequence the input"
        )
    return {name: value.requires_grad_(name in leaves) for name, value in taken.items()}
