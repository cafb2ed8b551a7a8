# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
r"""How far the features that a network computes as it runs can be from those of exact arithmetic.

A certificate at level sound judges perturbed inputs in exact arithmetic, but its clean prediction must be the one that
the model gives as it runs, in single precision and in any split of the batch. So the error of the running features is
bounded, layer by layer. With exact values z, running values :math:`\hat z = z + \delta`, :math:`\|\delta\| \le e`, and
a layer with Lipschitz bound L,

.. math:: e' = L e + \gamma_n \left( \| M(z) \| + \|M\| e \right), \qquad \gamma_n = \frac{n u}{1 - n u} ,

where M replaces every number of the layer by its absolute value: for :math:`W z + b` it is :math:`|W| |z| + |b|`
(Higham, Accuracy and Stability of Numerical Algorithms, chapter 3), for sums in any order. This is about one point, the
clean input; :mod:`~lightning_crmt.lipschitz.rigorous` proves more, all around it, for fewer layers.

Nothing is assumed of the sign of roundings: those of a constant sample under weights of one sign all err to one side.
Assumed, not proved: libraries may compute convolutions by algorithms with larger errors than direct sums, up to
``_CONVOLUTION`` times; functions such as ``tanh`` are off by a few units in the last place; and a layer whose rule was
registered by a user is no worse than ``_REGISTERED`` roundings of its input and output.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_crmt.encoders import MLP, ConvNet1d, ConvNet2d, LipschitzCNN, LipschitzMLP
from lightning_crmt.layers import (
    GroupSort,
    Residual,
    Scale,
    ScaledAvgPool1d,
    ScaledAvgPool2d,
    ScaledPad,
    with_fixed_weights,
)
from lightning_crmt.lipschitz.bounds.rules import batch_norm_scale, convolution_of
from lightning_crmt.lipschitz.gate import NoBoundError, refuse_other_weights, unit_of_factors
from lightning_crmt.lipschitz.known_code import LOOKUPS, wholly_known
from lightning_crmt.modality import in_double

#: By how much algorithms such as Winograd's may exceed the error of direct sums.
_CONVOLUTION = 4.0
#: Roundings that a layer of a user's own is taken to make.
_REGISTERED = 1024
#: Roundings that a function of one number is taken to make.
_FUNCTION = 8

#: Bound of a layer in the l2 norm at a shape.
Bounds: TypeAlias = Callable[[nn.Module, tuple[int, ...]], float]
#: By a layer's id, a bound of the norm of its weights' absolute values.
Spreads: TypeAlias = dict[int, float]

_EXACT = (
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.ReLU, nn.ReLU6,
    nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.ZeroPad1d,
    nn.ZeroPad2d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d, GroupSort,
)  # fmt: skip
_FUNCTIONS = (
    nn.Tanh, nn.Softsign, nn.LogSigmoid, nn.Sigmoid, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU,
    nn.Softplus, nn.Hardsigmoid, nn.Hardtanh,
)  # fmt: skip
_AVERAGES = (
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    ScaledAvgPool1d, ScaledAvgPool2d,
)  # fmt: skip
_POWERS = (nn.LPPool1d, nn.LPPool2d, nn.LPPool3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Precision:
    """Unit roundoffs of a floating point type, in products and in other operations.

    Args:
        dtype: single or double precision.
        device: where the network runs: torch may be set to shorten the factors of products there.

    Raises:
        ValueError: for half precision: its rounding exceeds the margins of most classifiers.

    >>> precision = Precision(torch.float32, torch.device("cpu"))
    >>> precision.unit == 2.0**-24, f"{precision.gamma(100):.1e}"  # of a sum of 100 products
    (True, '6.0e-06')
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(
                "a model must run in float32 or float64 to be certified, it runs in "
                f"{str(dtype).removeprefix('torch.')}; certify model.float(), or take estimated constants"
            )
        #: The unit roundoff of double precision as a share of this one.
        self.share_of_double = 1.0 if dtype is torch.float64 else 2.0**-24
        self.unit = 2.0**-24 if dtype is torch.float32 else 2.0**-53
        self.smallest = 2.0**-126 if dtype is torch.float32 else 2.0**-1022
        self.largest = float(torch.finfo(dtype).max) * 2.0**-4
        self.factors = unit_of_factors(device) if dtype is torch.float32 else 0.0

    def gamma(self, count: int) -> float:
        """Relative error of a sum of ``count`` terms with rounded factors; infinite where nothing can be said."""
        total = count * self.unit
        return math.inf if total >= 0.5 else total / (1 - total) + 3 * self.factors


@torch.no_grad()
def running_error(
    running: nn.Module,
    twin: nn.Module,
    x: Tensor,
    precision: Precision,
    bounds: Bounds,
    error: Tensor | float = 0.0,
    found: Spreads | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Exact features, and how far those that the network computes as it runs may be from them.

    Args:
        running: the network, in evaluation mode, every layer of a type with a rule.
        twin: a copy in double precision, with stored weights in place of those that ``running`` computes in every pass.
        x: samples ``(B, ...)``, in double precision; or tokens, if the network begins with an embedding layer.
        precision: in which the network runs.
        bounds: l2 bound of a layer of ``twin`` at a shape.
        error: how far from ``x`` the samples are that the network gets, ``(B,)``.
        found: where the spread of each layer's weights is noted, for later calls with the same ``twin``.

    Returns:
        Features ``(B, ...)`` in double precision, and a bound of the l2 norm of the error, ``(B,)``; infinite where
        numbers may overflow.

    Raises:
        NoBoundError: for weights that are computed to other numbers in double precision, and tokens that go elsewhere.

    >>> from lightning_crmt.lipschitz import lipschitz_bound
    >>> layer, x = nn.Linear(3, 2), torch.ones(5, 3).double()
    >>> twin = nn.Linear(3, 2).double()
    >>> _ = twin.load_state_dict(layer.state_dict())
    >>> precision = Precision(torch.float32, torch.device("cpu"))
    >>> features, error = running_error(layer, twin, x, precision, lipschitz_bound)
    >>> features.shape, bool((error < 1e-6).all())
    (torch.Size([5, 2]), True)
    """
    if not wholly_known(running):
        running = with_fixed_weights(running)
        refuse_other_weights(running, twin, precision.unit)
    nothing = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    return _Walk(precision, bounds, {} if found is None else found)(running, twin, x, nothing + error)


class _Walk:
    def __init__(self, precision: Precision, bounds: Bounds, spreads: Spreads) -> None:
        self.precision, self.bounds, self.spreads = precision, bounds, spreads
        #: What a layer gave last, which the next one gets, and its norm, where nothing changes it in place.
        self.last: tuple[Tensor, Tensor] | None = None

    def __call__(self, running: Any, twin: Any, z: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        kind = parametrize.type_before_parametrizations(running)
        if kind is nn.Sequential:
            for name, part in twin._modules.items():
                z, error = self(running._modules[name], part, z, error)
            return z, error
        if kind in (MLP, ConvNet1d, ConvNet2d, LipschitzMLP, LipschitzCNN):
            return self(running.layers, twin.layers, z, error)
        if kind in LOOKUPS:
            return self._looked_up(running, twin, z)
        if not z.is_floating_point():
            raise NoBoundError(
                f"a {kind.__name__} must not get integers to be certified: an encoder of tokens begins with an "
                "nn.Embedding or nn.EmbeddingBag; cast what is a measurement, such as pixels"
            )
        if kind is Residual:
            return self._residual(running, twin, z, error)
        kept = wholly_known(twin) and not getattr(twin, "inplace", False)
        out = twin(z if kept else z.clone())
        error = self.bounds(twin, tuple(z.shape[1:])) * error
        if kind not in _EXACT:
            error = error + self._made(running, twin, z, out, error)
        norm = self._norm(out)
        self.last = (out, norm) if kept else None
        return out, self._below(norm, error)

    def _norm(self, z: Tensor) -> Tensor:
        return self.last[1] if self.last is not None and self.last[0] is z else _norm(z)

    def _finite(self, magnitude: Tensor, error: Tensor) -> Tensor:
        """The error, where neither numbers of this size nor sums on the way to them overflow."""
        return self._below(_norm(magnitude), error)

    def _below(self, norm: Tensor, error: Tensor) -> Tensor:
        return torch.where(norm < self.precision.largest, error, math.inf)

    def _made(self, running: Any, layer: Any, z: Tensor, out: Tensor, error: Tensor) -> Tensor:
        """What the layer's own rounding adds."""
        p, entries = self.precision, out[0].numel()
        if isinstance(layer, nn.Linear):
            weight, bias = layer.weight.abs(), None if layer.bias is None else layer.bias.abs()
            gamma = p.gamma(weight.shape[1] + 2)
            return self._products(F.linear(z.abs(), weight, bias), running, layer, z, error, gamma)
        if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)):
            transposed = isinstance(layer, _TRANSPOSED)
            products = layer.weight[:, 0].numel() if transposed else layer.weight[0].numel()
            gamma = _CONVOLUTION * p.gamma(products + 2)
            magnitude = _absolute_twin(layer)(z.abs()) if transposed else _absolute_convolution(layer, z)
            return self._products(magnitude, running, layer, z, error, gamma)
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            shape = (-1, *(1,) * (z.dim() - 2))
            scale, mean = batch_norm_scale(layer).to(z), torch.as_tensor(layer.running_mean).abs()
            bias = torch.zeros_like(mean) if layer.bias is None else layer.bias.abs()
            magnitude = (z.abs() + mean.reshape(shape)) * scale.reshape(shape) + bias.reshape(shape)
            made = p.gamma(6) * (_norm(magnitude) + float(scale.max()) * error) + p.smallest * entries
            return self._finite(magnitude, made)
        if isinstance(layer, _AVERAGES):
            count = math.prod(z.shape[2:]) + 2
            magnitude = layer(z.abs())
            made = p.gamma(count) * (_norm(magnitude) + error) + p.smallest * entries
            return self._finite(count * magnitude, made)
        if isinstance(layer, nn.Upsample):
            # Positions among the inputs are rounded, and so the shares of those at both sides: by 8 units times the
            # number of steps, there or here.
            largest = z.abs().flatten(1).amax(1) + error
            steps = max(*z.shape[2:], *out.shape[2:])
            made = p.gamma(8 * steps + 8) * math.sqrt(entries) * largest + p.smallest * entries
            return self._finite(out, made)
        if isinstance(layer, _POWERS):
            # No term is negative, so the sum is off by a share of it; squares may underflow, and overflow.
            count = z[0].numel() + 4
            made = p.gamma(count) * (_norm(out) + error) + math.sqrt(p.smallest * count) * entries
            return self._finite(z.square() * count, made)
        if isinstance(layer, Scale | ScaledPad):
            return p.gamma(4) * (_norm(out) + error) + p.smallest * entries
        count, terms = (_FUNCTION, math.sqrt(entries)) if isinstance(layer, _FUNCTIONS) else (_REGISTERED, 0.0)
        return p.gamma(count) * (_norm(z) + _norm(out) + terms + error) + p.smallest * entries

    def _products(self, magnitude: Tensor, running: Any, layer: Any, z: Tensor, error: Tensor, gamma: float) -> Tensor:
        spread = self._spread(layer)
        # Weights that are computed in every pass come out a little different, from one number of threads to another.
        drift: Tensor = in_double(running.weight) - layer.weight
        apart = 4 * float(drift.norm()) * math.sqrt(math.prod(layer.weight.shape[2:]))
        lost = self.precision.smallest * magnitude[0].numel() * layer.weight[0].numel()
        norm, norm_of_z = _norm(magnitude), self._norm(z)
        relative = norm + spread * error
        if not isinstance(layer, nn.Linear):  # the error of Winograd's algorithm is relative to the largest of a tile
            relative = relative + spread * norm_of_z
        return self._below(norm, gamma * relative + apart * (norm_of_z + error) + lost)

    def _spread(self, layer: Any) -> float:
        """A bound of ||M||: of a matrix, or of a convolution."""
        if id(layer) not in self.spreads:
            weight: Tensor = layer.weight.abs()
            # ||M|| <= sqrt(largest row sum * largest column sum), of a convolution too.
            sums = weight.flatten(1).sum(1).max() * weight.transpose(0, 1).flatten(1).sum(1).max()
            self.spreads[id(layer)] = math.sqrt(float(sums))
        return self.spreads[id(layer)]

    def _looked_up(self, running: Any, twin: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
        if parametrize.is_parametrized(running) or tokens.is_floating_point():
            raise NoBoundError(f"an {type(running).__name__} must have stored weights and get tokens to be certified")
        out, nothing = twin(tokens), torch.zeros(len(tokens), dtype=torch.float64, device=tokens.device)
        if not isinstance(twin, nn.EmbeddingBag) or twin.mode == "max":
            return out, self._finite(out, nothing)  # rows are copied
        absolute = _absolute_twin(twin)
        count = tokens.shape[1] + 2
        magnitude = absolute(tokens)
        made = self.precision.gamma(count) * _norm(magnitude) + self.precision.smallest * out[0].numel()
        return out, self._finite(count * magnitude, made)

    def _residual(self, running: Residual, twin: Residual, z: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        weight = float(twin.weight)
        branch, of_branch = self(running.branch, twin.branch, z, error)
        out = (1 - weight) * z + weight * branch
        made = (1 + abs(1 - weight)) * (_norm(z) + error) + (1 + abs(weight)) * (_norm(branch) + of_branch)
        made = self.precision.gamma(4) * made + self.precision.smallest * out[0].numel()
        return out, abs(1 - weight) * error + abs(weight) * of_branch + made


def _norm(value: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(value.flatten(1), dim=1)
    return norm


def _absolute_twin(layer: Any) -> Any:
    """A copy whose weights and biases are their absolute values."""
    absolute = copy.deepcopy(layer)
    for module in list(absolute.modules()):
        for name in list(getattr(module, "parametrizations", ())):  # what they make counts, not what it is made of
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    for parameter in absolute.parameters():
        parameter.abs_()
    return absolute


def _absolute_convolution(layer: Any, z: Tensor) -> Tensor:
    operator = convolution_of(layer)
    magnitude: Tensor = replace(operator, kernel=operator.kernel.abs().to(z)).apply(z.abs())
    if layer.bias is not None:
        magnitude = torch.add(magnitude, layer.bias.abs().reshape(-1, *(1,) * operator.axes))
    return magnitude
