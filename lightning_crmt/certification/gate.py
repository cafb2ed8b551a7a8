# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The one gate: whatever may be certified passes the same examination, and leaves it as an exact twin."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_crmt.checks import describe
from lightning_crmt.fusion import FixedFusion, LateFusion, LinearFusion, OrthogonalFusion
from lightning_crmt.layers import with_fixed_weights
from lightning_crmt.lipschitz import LipschitzConstants, encoder_bounds, lipschitz_bound, refuse_changed_behaviour
from lightning_crmt.lipschitz.fingerprint import fingerprint

#: Heads whose code is known; a subclass may compute something else.
_HEADS = (LinearFusion, OrthogonalFusion, FixedFusion)
_HEAD_CODE = {"forward", "fuse", "directions", "integration_weights", "class_weights", "__call__"}


def parts_of(model: object) -> tuple[dict[str, nn.Module], LateFusion]:
    """Encoders and head of a model of late fusion.

    Raises:
        TypeError: if it has none, or they are no submodules of it, so that its ``eval()`` would not reach them.
    """
    encoders, head = getattr(model, "encoders", None), getattr(model, "head", None)
    if not isinstance(encoders, Mapping | nn.ModuleDict) or not isinstance(head, LateFusion):
        raise TypeError(
            "`model` must have `encoders`, a mapping of modules, and `head`, a LateFusion by a linear head; "
            f"got {describe(encoders)} and {describe(head)}. Of another model radii can be estimated, not certified: "
            "certify(output, None, estimate_lipschitz(model, batches, of='margins'))"
        )
    if isinstance(model, nn.Module):
        known = set(model.modules())
        for name, part in {**dict(encoders.items()), "head": head}.items():
            if part not in known:
                raise TypeError(
                    f"`model` must register {name!r} as a submodule, so that `eval()` and `to()` reach it: keep "
                    f"encoders in an nn.ModuleDict, got {describe(encoders)}"
                )
    return dict(encoders.items()), head


class Examined:
    """A twin of encoders and head in double precision, with stored weights, and their bounds by shape of a sample.

    It is made once for weights as they are; :func:`examine` finds it again by their fingerprint.

    Attributes:
        fingerprints: of each encoder.
        encoders: in double precision, in evaluation mode.
        head: in double precision, its directions and weights stored.
    """

    def __init__(self, encoders: Mapping[str, nn.Module], head: LateFusion, fingerprints: dict[str, str]) -> None:
        self.fingerprints = fingerprints
        self.encoders = {name: _twin(encoder) for name, encoder in encoders.items()}
        head = _twin(head)
        assert isinstance(head, LateFusion)
        self.head = head
        self._bounds: dict[tuple[tuple[str, tuple[int, ...]], ...], LipschitzConstants] = {}
        self._layers: dict[tuple[int, tuple[int, ...]], float] = {}

    def bounds(self, shapes: Mapping[str, Sequence[int]]) -> LipschitzConstants:
        """Sound bounds of the encoders for samples of these shapes."""
        key = tuple((name, tuple(shape)) for name, shape in shapes.items())
        if key not in self._bounds:
            self._bounds[key] = encoder_bounds(self.encoders, dict(key))
        return self._bounds[key]

    def layer_bound(self, layer: nn.Module, shape: tuple[int, ...]) -> float:
        """Bound of one layer of an encoder."""
        key = id(layer), shape
        if key not in self._layers:
            self._layers[key] = lipschitz_bound(layer, shape)
        return self._layers[key]


_KNOWN: OrderedDict[str, Examined] = OrderedDict()
#: Models whose twins are kept.
_KEPT = 4


def examine(encoders: Mapping[str, nn.Module], head: LateFusion) -> Examined:
    """Check that nothing but the known code of known types takes part, and return the exact twin.

    Raises:
        NoBoundError: a ``ValueError`` naming a part that has hooks, replaced methods, weights that are no plain
            tensors, or parametrisations that change from pass to pass.
        TypeError: if the head is of another type than those whose code is known.
    """
    if type(head) not in _HEADS:
        raise TypeError(
            f"`head` must be exactly one of {', '.join(kind.__name__ for kind in _HEADS)} to be certified, got "
            f"{describe(head)}: a subclass may compute something else; estimated constants still give estimates"
        )
    if replaced := vars(head).keys() & _HEAD_CODE:
        raise TypeError(f"`head` must run its type's code to be certified; {sorted(replaced)} was replaced")
    for name, part in _named(encoders, head):
        refuse_changed_behaviour(part, name)
        _refuse_strange_tensors(part, name)
    fingerprints = {name: fingerprint(encoder) for name, encoder in encoders.items()}
    key = repr(fingerprints) + fingerprint(head)
    if key not in _KNOWN:
        _KNOWN[key] = Examined(encoders, head, fingerprints)
        while len(_KNOWN) > _KEPT:
            _KNOWN.popitem(last=False)
    _KNOWN.move_to_end(key)
    return _KNOWN[key]


def _named(encoders: Mapping[str, nn.Module], head: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, encoder in encoders.items():
        for path, part in encoder.named_modules():
            yield f"{name}.{path}".strip("."), part
    yield from head.named_modules(prefix="head")


def _refuse_strange_tensors(part: nn.Module, path: str) -> None:
    for name, tensor in [*part._parameters.items(), *part._buffers.items()]:
        if tensor is not None and type(tensor) not in (Tensor, nn.Parameter, nn.Buffer):
            raise TypeError(
                f"`{path}.{name}` must be a plain tensor or parameter to be certified, got a {type(tensor).__name__}, "
                "which may compute something else"
            )
        if tensor is not None and (tensor.is_meta or tensor.is_sparse or tensor.is_quantized or tensor.is_complex()):
            raise TypeError(f"`{path}.{name}` must be a dense tensor of real numbers, got {describe(tensor)}")


def _twin(module: nn.Module) -> nn.Module:
    twin = with_fixed_weights(copy.deepcopy(module).double()).eval().requires_grad_(False)
    return twin.cpu() if next(iter(twin.parameters()), torch.empty(0)).device.type == "mps" else twin
