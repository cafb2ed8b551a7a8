# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""A twin of encoders and a head in exact arithmetic, and bounds of its parts."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import ClassVar, TypeVar

from torch import nn

from lightning_crmt.fusion import LateFusion
from lightning_crmt.layers import Fixable
from lightning_crmt.lipschitz import (
    LipschitzConstants,
    encoder_bounds,
    fingerprint,
    lipschitz_bound,
    rules_of,
)

#: Models whose twins are kept: more than one, for certificates of several models in turn.
_KEPT = 4

M = TypeVar("M", bound=nn.Module)


class ExactTwin:
    """A twin of encoders and head in double precision, its weights stored, and bounds by the shape of a sample.

    Attributes:
        encoders: in double precision, in evaluation mode, by modality.
        head: in double precision.
    """

    _twins: ClassVar[OrderedDict[Hashable, ExactTwin]] = OrderedDict()

    def __init__(self, encoders: Mapping[str, nn.Module], head: LateFusion) -> None:
        self.encoders = {name: _exact(encoder) for name, encoder in encoders.items()}
        self.head = _exact(head)
        self._bounds: dict[tuple[tuple[str, tuple[int, ...]], ...], LipschitzConstants] = {}
        self._layers: dict[tuple[int, tuple[int, ...]], float] = {}

    @classmethod
    def of(cls, encoders: Mapping[str, nn.Module], head: LateFusion, fingerprints: Mapping[str, str]) -> ExactTwin:
        """The twin of these very weights, of parts that passed the gate: made once, and found again by what they hold.

        By the rules for their layers too, as it knows the bounds.

        Args:
            encoders: by modality.
            head: late fusion.
            fingerprints: of the encoders.
        """
        key = fingerprint(head), *((name, fingerprints[name], rules_of(each)) for name, each in encoders.items())
        if key not in cls._twins:
            cls._twins[key] = cls(encoders, head)
            while len(cls._twins) > _KEPT:
                cls._twins.popitem(last=False)
        cls._twins.move_to_end(key)
        return cls._twins[key]

    def bounds(self, shapes: Mapping[str, tuple[int, ...]]) -> LipschitzConstants:
        """Sound bounds of the encoders for samples of these shapes.

        Raises:
            NoBoundError: naming the modality and the layer.
        """
        key = tuple(shapes.items())
        if key not in self._bounds:
            self._bounds[key] = encoder_bounds(self.encoders, shapes)
        return self._bounds[key]

    def layer_bound(self, layer: nn.Module, shape: tuple[int, ...]) -> float:
        """Bound of a layer of an encoder at a shape."""
        key = id(layer), shape
        if key not in self._layers:
            self._layers[key] = lipschitz_bound(layer, shape)
        return self._layers[key]


def _exact(module: M) -> M:
    # Orthogonal rows are computed in double precision, from the raw weights.
    known = {id(part): _double(copy.deepcopy(part)).fixed() for part in module.modules() if isinstance(part, Fixable)}
    return _double(copy.deepcopy(module, known))


def _double(twin: M) -> M:
    if any(tensor.device.type == "mps" for tensor in twin.parameters()):
        twin = twin.cpu()  # that device has no double precision
    return twin.double().eval().requires_grad_(False)
