# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Rules for activations whose slope is not simply within [-1, 1]; each constant bounds the slope everywhere."""

from __future__ import annotations

import math

from torch import nn

from lightning_crmt.lipschitz.bounds.registry import Place, lipschitz_rule

# The slope of x Phi(x) is Phi(x) + x phi(x). Its derivative (2 - x^2) phi(x) vanishes at sqrt(2): it is 1.128904...
_GELU = 1.12891
# The slope s + x s (1 - s), s = sigmoid(x), is largest where x (2 s - 1) = 2, at x = 2.3993...: there it is 1.099839...
_SILU = 1.09985
# scale * alpha, the slope just left of 0: 1.0507009873554805 * 1.6732632423543772 = 1.758099340847376...
_SELU = 1.7580993408474


@lipschitz_rule(nn.Sigmoid)
def _sigmoid(layer: nn.Sigmoid, place: Place) -> float:
    return 0.25


@lipschitz_rule(nn.LeakyReLU)
def _leaky_relu(layer: nn.LeakyReLU, place: Place) -> float:
    return _slopes(layer.negative_slope)


@lipschitz_rule(nn.PReLU)
def _prelu(layer: nn.PReLU, place: Place) -> float:
    return _slopes(*layer.weight.detach().double().flatten().tolist())


@lipschitz_rule(nn.ELU)
def _elu(layer: nn.ELU, place: Place) -> float:
    return _slopes(layer.alpha)  # alpha e^x below 0


@lipschitz_rule(nn.SELU)
def _selu(layer: nn.SELU, place: Place) -> float:
    return _SELU


@lipschitz_rule(nn.GELU)
def _gelu(layer: nn.GELU, place: Place) -> float:
    if layer.approximate != "none":
        raise ValueError(f"`approximate` must be 'none', got {layer.approximate!r}: its slope is another")
    return _GELU


@lipschitz_rule(nn.SiLU)
def _silu(layer: nn.SiLU, place: Place) -> float:
    return _SILU


@lipschitz_rule(nn.Softplus)
def _softplus(layer: nn.Softplus, place: Place) -> float:
    # torch's Softplus answers x above its threshold t, a jump of log(1 + e^-t): no slope bounds it. From t = 40 on, the
    # jump is below what double precision resolves at t.
    if not (layer.beta > 0 and layer.threshold >= 40):
        raise ValueError(
            "it jumps at its threshold and so has no Lipschitz constant; "
            f"use threshold=40, where that cannot be seen, got beta={layer.beta}, threshold={layer.threshold}"
        )
    return 1.0


@lipschitz_rule(nn.Hardtanh)
def _hardtanh(layer: nn.Hardtanh, place: Place) -> float:
    return 1.0


@lipschitz_rule(nn.Hardsigmoid)
def _hardsigmoid(layer: nn.Hardsigmoid, place: Place) -> float:
    return 1 / 6 + 1e-8  # torch's own sixth is that of single precision


def _slopes(*slopes: float) -> float:
    """Bound for slope 1 on the right of 0 and one of ``slopes`` on the left."""
    if not all(math.isfinite(slope) for slope in slopes):
        raise ValueError(f"slopes must be finite, got {slopes}")
    return max(1.0, *(abs(slope) for slope in slopes))
