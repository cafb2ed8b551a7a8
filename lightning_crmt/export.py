# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Trained models out of Python: programs of ``torch.export``, and ONNX."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn.utils import parametrize

from lightning_crmt.checks import check_batch, require_package
from lightning_crmt.frozen_eval import as_taken_by
from lightning_crmt.layers import with_fixed_weights
from lightning_crmt.modality import Inputs

#: ONNX files hold no more than 2 GiB; the weights of larger models go to a file beside it.
_LARGEST_FILE = 2**31 - 2**24


def for_inference(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in evaluation mode and without gradients, whose computed weights are stored numbers.

    These are orthogonal layers and heads, see :func:`~lightning_crmt.layers.with_fixed_weights`, and parametrisations
    of ``torch.nn.utils.parametrize``, such as those of spectral normalisation.

    Args:
        model: it is left as it is.

    Raises:
        TypeError: if a subclass of an orthogonal layer or head computes its output in its own way.

    >>> layer = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(3, 2))
    >>> stored = for_inference(layer)
    >>> list(stored.state_dict()), stored.training
    (['bias', 'weight'], False)
    """
    copy = with_fixed_weights(model).eval()
    for part in copy.modules():
        if parametrize.is_parametrized(part):
            _store(part)
    for tensor in [*copy.parameters(), *copy.buffers()]:
        tensor.data = tensor.data.contiguous()  # what was computed may be the transpose of what lies in memory
    return copy.requires_grad_(False)


def _store(part: Any) -> None:
    # Not by remove_parametrizations: the original has the same class, which that one changes.
    stored = {name: getattr(part, name).detach().clone() for name in part.parametrizations}
    part.__class__ = parametrize.type_before_parametrizations(part)
    del part.parametrizations
    for name, value in stored.items():
        part.register_parameter(name, nn.Parameter(value))


def export_program(model: nn.Module, inputs: Inputs) -> ExportedProgram:
    """The model as a program of ``torch.export`` that takes batches of any size.

    It can be saved, optimised, compiled to a library by AOTInductor, and run without the model's code. It computes what
    ``for_inference(model)`` does, of inputs with the same names and sizes but for the first. It checks sizes, not
    values: where the model raises for NaN, the program answers NaN.

    Args:
        model: called with a mapping of inputs by name, as every CRMT module is; it is left as it is.
        inputs: one batch, of which only names, sizes and types matter: by modality, ``(B, ...)``.

    Raises:
        TypeError, ValueError: if ``inputs`` are not one batch.

    >>> from lightning_crmt import CRMTModule
    >>> from lightning_crmt.encoders import MLP
    >>> model = CRMTModule({"audio": MLP(20, 16), "image": MLP(30, 16)}, num_classes=10)
    >>> program = export_program(model, {"audio": torch.randn(2, 20), "image": torch.randn(2, 30)})
    >>> program.module()({"audio": torch.randn(7, 20), "image": torch.randn(7, 30)}).logits.shape
    torch.Size([7, 10])
    """
    return _program(for_inference(model), inputs)


def _program(model: nn.Module, inputs: Inputs) -> ExportedProgram:
    if check_batch("inputs", inputs) == 1:  # torch.export takes 1 for a size that never changes
        inputs = {name: torch.cat([value, value]) for name, value in inputs.items()}
    batch = Dim("batch")
    any_size = {name: {0: batch} for name in inputs}
    return torch.export.export(model, (as_taken_by(model, inputs),), dynamic_shapes=(any_size,))


def export_onnx(model: nn.Module, inputs: Inputs, file: str | PathLike[str] | None = None, **settings: Any) -> Any:
    """The model in ONNX, for batches of any size; needs ``onnx`` and ``onnxscript``.

    The names of its inputs are those of ``inputs``; of its outputs ``logits``, ``scores.audio``, ``features.audio`` and
    so on. It computes what :func:`export_program` gives, on the CPU.

    Args:
        model: called with a mapping of inputs by name; it is left as it is.
        inputs: one batch, of which only names, sizes and types matter: by modality, ``(B, ...)``.
        file: where to save it, if anywhere; weights of more than 2 GiB are saved beside it.
        settings: of ``torch.onnx.export``, such as ``opset_version``.

    Returns:
        A ``torch.onnx.ONNXProgram``.

    Raises:
        ModuleNotFoundError: if a package is not installed.
        TypeError, ValueError: if ``inputs`` are not one batch, or one of them has the name of an output.
    """
    for package in ("onnx", "onnxscript"):
        require_package(package, "ONNX needs a package that is not installed", "onnx")
    copy = for_inference(model).cpu()
    program = _program(copy, inputs)
    # In the program's order, which need not be that of the mappings.
    ((taken,), _), given = _places(program.call_spec.in_spec), _places(program.call_spec.out_spec)
    names, outputs = _names_by_place(taken), _names_by_place(given)
    if shared := [name for name in names if name in outputs]:
        raise ValueError(f"`inputs` must not have names that the outputs have in ONNX, {outputs}; got {shared}")
    size = sum(value.nbytes for value in copy.state_dict().values() if isinstance(value, Tensor))
    settings = {
        "input_names": names,
        "output_names": outputs,
        "dynamic_shapes": {"inputs": {name: {0: "batch"} if number == 0 else {} for number, name in enumerate(inputs)}},
        "external_data": size > _LARGEST_FILE,
        "verbose": False,
        **settings,
    }
    return torch.onnx.export(program, f=file, **settings)


def _places(spec: Any) -> Any:
    """Arguments or outputs of a program, with its place in the place of every tensor."""
    return spec.unflatten(range(spec.num_leaves))


def _names_by_place(places: Any) -> list[str]:
    return [name for _, name in sorted(_named(places))]


def _named(places: Any, path: str = "") -> Iterator[tuple[int, str]]:
    """Places of tensors, and their names: ``"logits"``, ``"scores.audio"``."""
    if isinstance(places, int):
        yield places, path or "output"
    else:
        fields = places._asdict() if hasattr(places, "_asdict") else places
        for name, value in fields.items() if isinstance(fields, Mapping) else enumerate(fields):
            yield from _named(value, f"{path}.{name}" if path else str(name))
