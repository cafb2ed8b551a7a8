# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Layers as users write them, with rules that tell the truth: they read more than their weights, and change."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fuzzing.nets import Draw
from lightning_crmt import lipschitz_rule
from lightning_crmt.layers import Fixable

#: A layer that multiplies by one factor, and what makes it multiply by another.
Layer = tuple[nn.Module, Callable[[float], None]]


def gain(**members: Any) -> nn.Module:
    """A layer of a class that is made anew, by the same name, as by a cell of a notebook."""
    kind = type("Gain", (nn.Module,), {"forward": lambda layer, x: layer.gain() * x, **members})
    lipschitz_rule(kind)(lambda layer, place: abs(layer.gain()))
    layer: nn.Module = kind()
    return layer


def _of_a_closure(factor: float) -> Layer:
    cell = [factor]
    return gain(gain=lambda layer: cell[0]), lambda other: cell.__setitem__(0, other)


def _of_a_class_attribute(factor: float) -> Layer:
    layer = gain(gain=lambda layer: layer.factor, factor=factor)
    return layer, lambda other: setattr(type(layer), "factor", other)


def _of_an_object_of_the_class(factor: float) -> Layer:
    settings = SimpleNamespace(factor=factor)
    return (
        gain(gain=lambda layer: layer.settings.factor, settings=settings),
        lambda other: setattr(settings, "factor", other),
    )


def _of_an_array(factor: float) -> Layer:
    array = np.array([factor])
    return gain(gain=lambda layer: float(layer.array[0]), array=array), lambda other: array.fill(other)


def _of_a_class_as_attribute(factor: float) -> Layer:
    config = type("Config", (), {"factor": factor})
    layer = gain(gain=lambda layer: layer.config.factor)
    layer.config = config
    return layer, lambda other: setattr(config, "factor", other)


def _of_a_list(factor: float) -> Layer:
    layer = gain(gain=lambda layer: layer.factors[0])
    layer.factors = [factor]
    return layer, lambda other: layer.factors.__setitem__(0, other)


class _Times(nn.Module):
    def __init__(self, factor: Callable[[], float]) -> None:
        super().__init__()
        self._factor = (factor,)

    def forward(self, weight: Tensor) -> Tensor:
        return self._factor[0]() * weight


class _Diagonal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


@lipschitz_rule(_Diagonal)
def _(layer: _Diagonal, place: object) -> float:
    return float(layer.weight.abs().max())


def _of_a_parametrisation(factor: float) -> Layer:
    cell = [factor]
    layer = parametrize.register_parametrization(_Diagonal(), "weight", _Times(lambda: cell[0]))
    return layer, lambda other: cell.__setitem__(0, other)


class _Steps(nn.Module):
    def __init__(self, step: float) -> None:
        super().__init__()
        self.step = step

    def forward(self, weight: Tensor) -> Tensor:
        return torch.round(weight / self.step) * self.step


def _of_rounded_weights(factor: float) -> Layer:
    layer = _Diagonal()
    # Halfway between two steps: single and double precision may round to different ones.
    nn.init.constant_(layer.weight, 0.1 * (round(10 * factor) + 0.5))
    parametrize.register_parametrization(layer, "weight", _Steps(0.1))
    raw = layer.parametrizations.weight.original
    return layer, lambda other: raw.data.fill_(0.1 * (round(10 * other) + 0.5))


class _Exponential(nn.Module, Fixable):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.logarithm = nn.Parameter(torch.tensor([abs(factor)]).log())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.logarithm.exp()

    def fixed(self) -> nn.Module:
        layer = _Diagonal().to(self.logarithm)
        layer.weight.data = self.logarithm.detach().exp()
        return layer


@lipschitz_rule(_Exponential)
def _(layer: _Exponential, place: object) -> float:
    return float(layer.logarithm.exp().max())


def _that_is_fixed(factor: float) -> Layer:
    layer = _Exponential(factor)
    return layer, lambda other: layer.logarithm.data.fill_(np.log(abs(other)))


def _of_a_helper(factor: float) -> Layer:
    layer = gain(gain=lambda layer: factor)

    def change(other: float) -> None:
        type(layer).gain = lambda layer: other
        lipschitz_rule(type(layer))(lambda layer, place: abs(layer.gain()))

    return layer, change


def _of_a_helper_compiled(factor: float) -> Layer:
    torch.compiler.reset()
    layer, change = _of_a_helper(factor)
    layer.compile(backend="eager")
    with torch.no_grad():
        layer(torch.zeros(2, 1))
    return layer, change


OWN: dict[str, Callable[[float], Layer]] = {
    "a closure": _of_a_closure,
    "a class attribute": _of_a_class_attribute,
    "an object of the class": _of_an_object_of_the_class,
    "an array of the class": _of_an_array,
    "a class as attribute": _of_a_class_as_attribute,
    "a list": _of_a_list,
    "a parametrisation": _of_a_parametrisation,
    "rounded weights": _of_rounded_weights,
    "a layer that is fixed": _that_is_fixed,
    "a helper": _of_a_helper,
    "a helper, compiled": _of_a_helper_compiled,
}


def own_layer(draw: Draw, factor: float) -> Layer:
    """One of them, before it is changed."""
    return OWN[draw.note("own layer", draw.among(sorted(OWN)))](factor)


__all__ = ["OWN", "own_layer"]
