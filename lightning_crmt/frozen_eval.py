# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Lend a model to an evaluation that differentiates it, and hand it back as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lightning_crmt.modality import Inputs


@contextmanager
def frozen_eval(model: nn.Module) -> Iterator[None]:
    """Inside, ``model`` is in evaluation mode with frozen parameters, and gradients can be taken in full precision.

    On leaving, every submodule's ``training`` flag, every ``requires_grad`` and torch's global random state are as
    they were. Works under ``no_grad``, ``inference_mode`` and autocast: the validation of a fit runs under the first,
    ``Trainer.test`` under the second, where enabling gradients alone is not enough.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    >>> with torch.inference_mode(), frozen_eval(model):
    ...     x = torch.ones(1, 2, requires_grad=True)
    ...     (gradient,) = torch.autograd.grad(model(x).sum(), x)
    >>> model.training, model[0].weight.requires_grad, model[0].weight.grad
    (True, True, None)
    """
    modes = [(module, module.training) for module in model.modules()]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device = device_of(model)
    cuda = [device] if device.type == "cuda" else []
    try:
        for module, _ in modes:
            module.training = False  # not .eval(): a user's override of it need not be undone by .train()
        for parameter in trained:
            parameter.requires_grad_(False)
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(device.type, enabled=False),
            torch.random.fork_rng(devices=cuda),
        ):
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for module, mode in modes:
            module.training = mode


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter or buffer, CPU if it has none."""
    tensor = _first_tensor(model)
    return torch.device("cpu") if tensor is None else tensor.device


def differentiable(inputs: Inputs, model: nn.Module) -> dict[str, Tensor]:
    """Copies of ``inputs`` that gradients can be taken at, on the device and in the precision of the parameters.

    Raises:
        TypeError: for an integer modality: there is no gradient with respect to token ids.
    """
    device = device_of(model)
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    leaves = {}
    for name, value in inputs.items():
        if not value.is_floating_point():
            raise TypeError(
                f"`inputs[{name!r}]` must be floating point to be differentiated, got {value.dtype}; "
                "for tokens, make the embedded sequence the input"
            )
        dtype = value.dtype if parameter is None else parameter.dtype
        leaves[name] = value.detach().to(device=device, dtype=dtype, copy=True).requires_grad_(True)
    return leaves


def _first_tensor(model: nn.Module) -> Tensor | None:
    return next(iter(model.parameters()), next(iter(model.buffers()), None))
