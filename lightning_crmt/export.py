# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Trained models out of Python: programs of ``torch.export``, and ONNX."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from os import PathLike
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config
from torch.nn.utils import parametrize

from lightning_crmt.checks import check_batch, describe, require_package
from lightning_crmt.frozen_eval import as_taken_by
from lightning_crmt.layers import with_fixed_weights
from lightning_crmt.modality import Inputs

#: Names of dimensions beside the first that may have any size, by input and number.
Dynamic: TypeAlias = Mapping[str, Mapping[int, str]]

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


def export_program(model: nn.Module, inputs: Inputs, dynamic: Dynamic | None = None) -> ExportedProgram:
    """The model as a program of ``torch.export`` that takes batches of any size.

    It can be saved, optimised, compiled to a library by AOTInductor, and run without the model's code. It computes what
    ``for_inference(model)`` does, of inputs with the same names and sizes but for the first, and those in ``dynamic``.
    It checks sizes, not values: where the model raises for NaN, the program answers NaN.

    Args:
        model: called with a mapping of inputs by name, as every CRMT module is; it is left as it is.
        inputs: one batch, of which only names, sizes and types matter: by modality, ``(B, ...)``.
        dynamic: dimensions beside the first that may have other sizes, by input and number, and their names:
            ``{"text": {1: "length"}, "text.attention_mask": {1: "length"}}``. Those of one name have one size.

    Raises:
        TypeError, ValueError: if ``inputs`` are not one batch, or do not have what ``dynamic`` names.
        UserError: torch's own, if the model fixes the size of a dimension that should change.

    >>> from lightning_crmt import CRMTModule
    >>> from lightning_crmt.encoders import MLP
    >>> model = CRMTModule({"audio": MLP(20, 16), "image": MLP(30, 16)}, num_classes=10)
    >>> program = export_program(model, {"audio": torch.randn(2, 20), "image": torch.randn(2, 30)})
    >>> program.module()({"audio": torch.randn(7, 20), "image": torch.randn(7, 30)}).logits.shape
    torch.Size([7, 10])
    """
    return _program(for_inference(model), inputs, _dimensions(inputs, dynamic))


def _dimensions(inputs: Inputs, dynamic: Dynamic | None) -> dict[str, dict[int, str]]:
    """Names of all dimensions of any size, by input; the first is the batch."""
    check_batch("inputs", inputs)
    dimensions = {name: {0: "batch"} for name in inputs}
    for key, names in (dynamic or {}).items():
        if key not in inputs or not isinstance(names, Mapping):
            form = '{"text": {1: "length"}}'
            raise ValueError(
                f"`dynamic` must map some of {list(inputs)} to dimensions, as {form}, got {key!r}: {names!r}"
            )
        for number, name in names.items():
            if not isinstance(number, int) or not 0 < number < inputs[key].dim():
                raise ValueError(
                    f"`dynamic[{key!r}]` must number dimensions from 1 to {inputs[key].dim() - 1}, got {number!r}"
                )
            if not str(name).isidentifier() or name == "batch":
                raise ValueError(f"`dynamic[{key!r}][{number}]` must be a name that is not 'batch', got {name!r}")
            if inputs[key].shape[number] < 2:  # torch.export takes 1 for a size that never changes
                raise ValueError(
                    f"`inputs[{key!r}]` must have at least 2 in dimension {number} to be an example of any size, got "
                    f"{describe(inputs[key])}"
                )
            dimensions[key][number] = name
    return dimensions


def _program(model: nn.Module, inputs: Inputs, dimensions: Mapping[str, Mapping[int, str]]) -> ExportedProgram:
    if check_batch("inputs", inputs) == 1:  # torch.export takes 1 for a size that never changes
        inputs = {name: torch.cat([value, value]) for name, value in inputs.items()}
    names = {name for each in dimensions.values() for name in each.values()}
    several = len(names) > 1
    # Where more than the batch may change, products of sizes, which `nn.EmbeddingBag` computes, must not be taken for
    # at least 2, or batches of one fail; attention asks for a least size then. Programs take sizes of one with either.
    sizes = {name: Dim(name, min=2 if several else None) for name in names}
    any_size = {key: {number: sizes[name] for number, name in each.items()} for key, each in dimensions.items()}
    with _config.patch(backed_size_oblivious=several):  # type: ignore[attr-defined]
        return torch.export.export(model, (as_taken_by(model, inputs),), dynamic_shapes=(any_size,))


def export_onnx(
    model: nn.Module,
    inputs: Inputs,
    file: str | PathLike[str] | None = None,
    dynamic: Dynamic | None = None,
    **settings: Any,
) -> Any:
    """The model in ONNX, for batches of any size; needs ``onnx`` and ``onnxscript``.

    The names of its inputs are those of ``inputs``; of its outputs ``logits``, ``scores.audio``, ``features.audio`` and
    so on. It computes what :func:`export_program` gives, on the CPU.

    Args:
        model: called with a mapping of inputs by name; it is left as it is.
        inputs: one batch, of which only names, sizes and types matter: by modality, ``(B, ...)``.
        file: where to save it, if anywhere; weights of more than 2 GiB are saved beside it.
        dynamic: dimensions beside the first that may have other sizes, see :func:`export_program`.
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
    dimensions = _dimensions(inputs, dynamic)
    program = _program(copy, inputs, dimensions)
    # In the program's order, which need not be that of the mappings.
    ((taken,), _), given = _places(program.call_spec.in_spec), _places(program.call_spec.out_spec)
    names, outputs = _names_by_place(taken), _names_by_place(given)
    if shared := [name for name in names if name in outputs]:
        raise ValueError(f"`inputs` must not have names that the outputs have in ONNX, {outputs}; got {shared}")
    size = sum(value.nbytes for value in copy.state_dict().values() if isinstance(value, Tensor))
    settings = {
        "input_names": names,
        "output_names": outputs,
        "dynamic_shapes": {"inputs": _named_once(dimensions)},
        "external_data": size > _LARGEST_FILE,
        "verbose": False,
        **settings,
    }
    return torch.onnx.export(program, f=file, **settings)


def _named_once(dimensions: Mapping[str, Mapping[int, str]]) -> dict[str, dict[int, str]]:
    """Each name where it comes first, from where torch passes it on to all dimensions of this size."""
    known: set[str] = set()
    named: dict[str, dict[int, str]] = {}
    for key, names in dimensions.items():
        named[key] = {number: name for number, name in names.items() if name not in known}
        known |= set(names.values())
    return named


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
