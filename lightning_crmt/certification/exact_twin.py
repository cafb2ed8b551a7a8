# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""A twin of encoders and a head in exact arithmetic, and bounds of its parts.

A twin is kept for later certificates only where torch's and this package's types are all there is: what these compute
is what they hold, and a fingerprint says whether they still hold it. A layer, a rule or a parametrisation of your own
may read a class attribute, a closure or a file, so for it everything is computed again, every time.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import ClassVar, TypeVar

import torch
from torch import nn

from lightning_crmt.fusion import LateFusion
from lightning_crmt.layers import Fixable
from lightning_crmt.lipschitz import (
    Found,
    LipschitzConstants,
    Place,
    constant_of,
    fingerprint,
    of_each_encoder,
    rule_for,
    wholly_known,
)
from lightning_crmt.modality import widest
from lightning_crmt.soundness import Soundness

#: Models whose twins are kept: more than one, for certificates of several models in turn.
_KEPT = 4

M = TypeVar("M", bound=nn.Module)


class ExactTwin:
    """A twin of encoders and head in double precision, its weights stored, and bounds by the shape of a sample.

    Attributes:
        encoders: in double precision, in evaluation mode, by modality.
        head: in double precision.
        fingerprints: of the encoders that it is a twin of.
        spreads: of the weights of layers, as :func:`~lightning_crmt.lipschitz.running_error` finds them.
    """

    _twins: ClassVar[OrderedDict[Hashable, ExactTwin]] = OrderedDict()

    def __init__(self, encoders: Mapping[str, nn.Module], head: LateFusion, fingerprints: Mapping[str, str]) -> None:
        self.fingerprints = dict(fingerprints)
        self.encoders = {name: _exact(encoder, name) for name, encoder in encoders.items()}
        self.head = _exact(head, "head")
        self._bounds: dict[tuple[tuple[str, tuple[int, ...]], ...], dict[str, float]] = {}
        self._layers: Found = {}
        self.spreads: dict[int, float] = {}

    @classmethod
    def of(cls, encoders: Mapping[str, nn.Module], head: LateFusion, fingerprints: Mapping[str, str]) -> ExactTwin:
        """The twin of these very weights, of parts that passed the gate.

        Args:
            encoders: by modality.
            head: late fusion.
            fingerprints: of the encoders.

        Raises:
            NoBoundError: for a layer that computes its weights in a way of its own and has no rule.
        """
        if not all(map(wholly_known, [*encoders.values(), head])):
            return cls(encoders, head, fingerprints)
        key = fingerprint(head), *((name, fingerprints[name]) for name in encoders)
        if key not in cls._twins:
            cls._twins[key] = cls(encoders, head, fingerprints)
            while len(cls._twins) > _KEPT:
                cls._twins.popitem(last=False)
        cls._twins.move_to_end(key)
        return cls._twins[key]

    def bounds(self, shapes: Mapping[str, tuple[int, ...]]) -> LipschitzConstants:
        """Sound bounds of the encoders of these modalities for samples of these shapes, the caller's own.

        Raises:
            NoBoundError: naming the modality and the layer.
        """
        key = tuple(shapes.items())
        if key not in self._bounds:
            with torch.no_grad():
                bounded = {name: self.encoders[name] for name in shapes}
                self._bounds[key] = of_each_encoder(bounded, lambda name, each: self._bound(each, shapes[name]))
        values = {name: constant_of(bound) for name, bound in self._bounds[key].items()}
        fingerprints = {name: self.fingerprints[name] for name in shapes}
        return LipschitzConstants(
            values, of="encoder", soundness=Soundness.SOUND, fingerprints=fingerprints, shapes=dict(shapes)
        )

    def _bound(self, encoder: nn.Module, shape: tuple[int, ...]) -> float:
        # What a rule of your own found of a part may hold for the settings that it gave it, and for nothing else.
        return Place(found=self._layers if wholly_known(encoder) else None).bound(encoder, "", shape)

    def layer_bound(self, layer: nn.Module, shape: tuple[int, ...]) -> float:
        """Bound of a layer of an encoder at a shape."""
        key = id(layer), shape
        if key not in self._layers:
            with torch.no_grad():
                self._layers[key] = Place().bound(layer, "", shape)
        return self._layers[key]


def _exact(module: M, path: str) -> M:
    known = {}
    part: nn.Module
    for place, part in module.named_modules(prefix=path):
        if isinstance(part, Fixable):
            if not isinstance(part, LateFusion):
                rule_for(part, place)  # the one that is used is for what is fixed, which says nothing of what runs
            # Orthogonal rows are computed in double precision, from the raw weights.
            known[id(part)] = _double(copy.deepcopy(part)).fixed()
    return _double(copy.deepcopy(module, known))


def _double(twin: M) -> M:
    if any(widest(tensor.device) is not torch.float64 for tensor in twin.parameters()):
        twin = twin.cpu()  # a certificate never rests on less
    return twin.double().eval().requires_grad_(False)
