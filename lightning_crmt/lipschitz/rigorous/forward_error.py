# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Lipschitz bounds and forward errors that hold despite rounding, for the few layers where that can be proved."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lightning_crmt.checks import check_same_modalities, describe
from lightning_crmt.encoders import MLP, LipschitzMLP
from lightning_crmt.frozen_eval import frozen_eval
from lightning_crmt.layers import (
    GroupSort,
    OrthogonalConv1d,
    OrthogonalConv2d,
    OrthogonalConvTranspose1d,
    OrthogonalConvTranspose2d,
    OrthogonalLinear,
    Residual,
    Scale,
)
from lightning_crmt.lipschitz.gate import (
    Encoders,
    NoBoundError,
    exact_numbers,
    of_each_encoder,
    place_of,
    proved_precision,
    refuse_changed_behaviour,
    refuse_compiled,
    refuse_parametrised,
)
from lightning_crmt.lipschitz.rigorous.steps import (
    LARGEST,
    ErrorBound,
    Growing,
    Step,
    affine,
    exact,
    mixture,
    scaling,
)
from lightning_crmt.lipschitz.rigorous.verified import product_up
from lightning_crmt.modality import Inputs


def rigorous_bound(module: nn.Module) -> float:
    """Upper bound of the l2 Lipschitz constant, every operation rounded up; ``module`` in evaluation mode.

    Raises:
        NoBoundError: naming a module without a proof against rounding.
    """
    return product_up(*(step.bound for step in _steps(module, "")))


@dataclass(frozen=True)
class ForwardError:
    r"""How far computed features can be from exact ones, at samples and all around them.

    At every x' with :math:`\|x' - x\|_2 \le r \le 2^{60}`, the features that the network computes in its own precision,
    by inner products summed in any order, differ from those of exact arithmetic by an l2 norm of at most

    .. math:: e(r) = \text{at} + \text{growth} \cdot r .

    Attributes:
        at: error at r = 0, ``(B,)`` in double precision.
        growth: increase of the error per unit of r.
        magnitude: upper bound of the norm of the computed features at r = 0, ``(B,)``.
        magnitude_growth: increase of that bound per unit of r.

    >>> layer, x = nn.Linear(100, 10), torch.randn(5, 100)
    >>> error = forward_error(layer, x)
    >>> computed = layer(x).double()
    >>> exact_features = layer.double()(x.double())
    >>> bool(((computed - exact_features).norm(dim=1) <= error.at).all()), bool((error.within(1.0) > error.at).all())
    (True, True)
    """

    at: Tensor
    growth: float
    magnitude: Tensor
    magnitude_growth: float

    #: The largest r that the bound holds for: nothing overflows up to there.
    LARGEST_RADIUS = LARGEST

    @property
    def reach(self) -> float:
        """The old name of ``magnitude_growth``."""
        warnings.warn("`reach` is called `magnitude_growth` now", DeprecationWarning, stacklevel=2)
        return self.magnitude_growth

    def within(self, radius: float | Tensor) -> Tensor:
        """Error :math:`e(r)` at every point of the ball with this radius, ``(B,)``.

        Args:
            radius: r, a number or one per sample ``(B,)``, at most ``LARGEST_RADIUS``.
        """
        return (self.at + self.growth * torch.as_tensor(radius, dtype=torch.float64)) * (1 + 2.0**-50)


def forward_error(module: nn.Module, x: Tensor) -> ForwardError:
    r"""Bound the rounding error of a network's features around samples; the bound itself counts rounding too.

    A certificate about exact arithmetic says nothing about the numbers that a computer compares: without this slack,
    one in six probes at the edge of an "exact" certificate in single precision changes the prediction. With

    .. math:: \hat z = W z + b + \epsilon, \qquad |\epsilon| \le \gamma_{n+1} (|W| |z| + |b|), \qquad
              \gamma_n = \frac{n u}{1 - n u}

    per linear layer (Higham, chapter 3), propagated with rigorous norms from layer to layer; z runs over all values
    that the layer can receive from the ball. Holds for IEEE arithmetic and products of matrices by inner products in
    any order, with or without fused operations, and without TF32 or other shortened inputs; that excludes convolutions,
    for which libraries choose Winograd and Fourier algorithms. Weights must be fixed numbers, see
    :func:`~lightning_crmt.layers.with_fixed_weights`.

    Args:
        module: an encoder of the types that ``lipschitz_bound(level="rigorous")`` takes, in single or double precision.
        x: samples ``(B, ...)``; cast to the precision of the parameters, in which the network runs.

    Raises:
        NoBoundError: naming a module without a proof against rounding.
        ValueError: if ``x`` or weights are not finite or too large, or matrix products are set to lower precision.

    >>> error = forward_error(MLP(76, 64, hidden=(128,)), torch.randn(5, 76) / 76**0.5)
    >>> error.at.shape, bool((error.within(1.0) < 1e-3).all())
    (torch.Size([5]), True)
    """
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 2 or not len(x):
        raise ValueError(f"`x` must be a floating point tensor (B, ...) of at least one sample, got {describe(x)}")
    with frozen_eval(module), torch.no_grad():
        refuse_compiled(module, "")
        dtype = proved_precision(module, x)
        # Through the network's own precision: that is the sample it sees.
        centre = x.detach().to("cpu", dtype).double()
        if not centre.isfinite().all():
            raise ValueError("`x` must be finite in the precision of the network")
        zero = centre.new_zeros(len(centre))
        bound = ErrorBound(centre, spread=Growing(zero, 1.0), error=Growing(zero, 0.0), dtype=dtype)
        for step in _steps(module, ""):
            bound = step.advance(bound)
    return ForwardError(bound.error.at, bound.error.growth, bound.magnitude.at, bound.magnitude.growth)


def encoder_errors(encoders: Encoders, inputs: Inputs) -> dict[str, ForwardError]:
    """The errors that :func:`~lightning_crmt.certification.certify` takes, by :func:`forward_error` for each encoder.

    It computes two rigorous norms per layer, whatever the size of the batch: large batches pay off.

    Args:
        encoders: one module per modality, by name.
        inputs: samples by modality, ``(B, ...)``.

    Raises:
        ValueError: naming the modality, for what :func:`forward_error` refuses; a ``NoBoundError`` where it raised one.

    >>> encoder_errors({"audio": nn.Linear(3, 2)}, {"audio": torch.zeros(5, 3)})["audio"].at.shape
    torch.Size([5])
    """
    check_same_modalities("inputs", inputs, encoders.keys())
    return of_each_encoder(encoders, lambda name, encoder: forward_error(encoder, inputs[name]))


#: Descends into a part, given with its name in its parent.
_Inner: TypeAlias = Callable[[nn.Module, str], list[Step]]


def _flatten(layer: nn.Flatten) -> Step:
    if layer.start_dim < 1:
        raise ValueError(f"`start_dim` must be at least 1, so that samples stay apart, got {layer.start_dim}")
    return exact(layer)


def _linear(layer: nn.Linear) -> Step:
    bias = None if layer.bias is None else exact_numbers(layer.bias, "bias")
    return affine(exact_numbers(layer.weight, "weight"), bias)


# These layers choose, reorder or keep numbers, and are 1-Lipschitz.
_EXACT = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.ReLU, GroupSort)
#: The steps of each type of module, for exactly this type: a subclass may compute something else.
_STEPS: dict[type[nn.Module], Callable[[Any, _Inner], list[Step]]] = {
    **dict.fromkeys(_EXACT, lambda layer, inner: [exact(layer)]),
    nn.Flatten: lambda layer, inner: [_flatten(layer)],
    nn.Linear: lambda layer, inner: [_linear(layer)],
    Scale: lambda layer, inner: [scaling(layer.factor)],
    Residual: lambda layer, inner: [mixture(inner(layer.branch, "branch"), layer.weight)],
    # Not named_children(): that leaves out a module that is in it twice.
    nn.Sequential: lambda net, inner: [s for name, part in net._modules.items() for s in inner(part, name)],
    MLP: lambda net, inner: inner(net.layers, "layers"),
    LipschitzMLP: lambda net, inner: inner(net.layers, "layers"),
}

_REFUSED: dict[type[nn.Module], str] = {
    OrthogonalLinear: "its weights are computed anew in every pass, and QR decompositions differ in the last bits from "
    "one number of threads to another; fix them first with lightning_crmt.layers.with_fixed_weights",
    **dict.fromkeys(
        (
            *(nn.Conv1d, nn.Conv2d, nn.Conv3d, OrthogonalConv1d, OrthogonalConv2d),
            *(OrthogonalConvTranspose1d, OrthogonalConvTranspose2d),
        ),
        "libraries choose algorithms for convolutions whose rounding has no such bound; level 'sound' may know it",
    ),
}


def _steps(module: nn.Module, path: str) -> list[Step]:
    refuse_changed_behaviour(module, path)
    refuse_parametrised(module, path)
    steps_of = _STEPS.get(type(module))
    try:
        if steps_of is None:
            why = "no bound of its rounding is proved here; level 'sound' may know it"
            raise ValueError(_REFUSED.get(type(module), why))
        return steps_of(module, lambda part, name: _steps(part, f"{path}.{name}".strip(".")))
    except NoBoundError:  # of a part, and named after it
        raise
    except ValueError as error:
        raise NoBoundError(f"{place_of(module, path)}, is refused at level 'rigorous': {error}") from error
