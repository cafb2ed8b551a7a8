# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Lipschitz bounds and forward errors that are proof against rounding, for the few layers where that can be proved."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_crmt.checks import check_same_modalities, describe
from lightning_crmt.encoders import MLP, LipschitzMLP
from lightning_crmt.frozen_eval import frozen_eval
from lightning_crmt.layers import GroupSort, MaxMin, OrthogonalLinear, Residual, Scale
from lightning_crmt.lipschitz.bounds.registry import NoBoundError, refuse_changed_behaviour
from lightning_crmt.lipschitz.bounds.steps import LARGEST, Affine, Cloud, Exact, Mixture, Scaling, Step
from lightning_crmt.lipschitz.rigorous.verified import UNIT_ROUNDOFF, product_up
from lightning_crmt.modality import Inputs

# They choose, reorder or keep numbers, and are 1-Lipschitz.
_EXACT = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Flatten, nn.ReLU, GroupSort, MaxMin)
# Environment variables that make libraries shorten the factors of products in single precision.
_SHORTENING = ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE", "NVIDIA_TF32_OVERRIDE")
_CONVOLUTIONS = "Conv1d", "Conv2d", "Conv3d", "OrthogonalConv1d", "OrthogonalConv2d"


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
        growth: what it grows by per unit of r.
        magnitude: upper bound of the norm of the computed features at r = 0, ``(B,)``.
        reach: what that grows by per unit of r.
    """

    at: Tensor
    growth: float
    magnitude: Tensor
    reach: float

    #: The largest r that the bound holds for: nothing overflows up to there.
    LARGEST_RADIUS = LARGEST

    def within(self, radius: float | Tensor) -> Tensor:
        """Error :math:`e(r)` at every point of the ball with this radius, ``(B,)``."""
        return (self.at + self.growth * torch.as_tensor(radius, dtype=torch.float64)) * (1 + 2.0**-50)


def forward_error(module: nn.Module, x: Tensor) -> ForwardError:
    r"""Bound the rounding error of a network's features around samples, proof against rounding itself.

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
        x: samples ``(B, ...)``; cast to the precision of the parameters, as they run.

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
        dtype = _precision(module, x)
        # Through the network's own precision: that is the sample it sees.
        centre = x.detach().to("cpu", dtype).double()
        if not centre.isfinite().all():
            raise ValueError("`x` must be finite in the precision of the network")
        zero = centre.new_zeros(len(centre))
        cloud = Cloud(centre, spread=zero, reach=1.0, error=zero, growth=0.0, dtype=dtype)
        for step in _steps(module, ""):
            cloud = step.advance(cloud)
    return ForwardError(cloud.error, cloud.growth, cloud.magnitude, cloud.reach)


def encoder_errors(encoders: Mapping[str, nn.Module] | nn.ModuleDict, inputs: Inputs) -> dict[str, ForwardError]:
    """The errors that :func:`~lightning_crmt.certification.certify` takes, by :func:`forward_error` for each encoder.

    Two rigorous norms per layer, whatever the size of the batch: give it big ones.

    Args:
        encoders: one module per modality, by name.
        inputs: samples by modality.

    Raises:
        ValueError: naming the modality, for what :func:`forward_error` refuses, ``NoBoundError`` if it was one.

    >>> encoder_errors({"audio": nn.Linear(3, 2)}, {"audio": torch.zeros(5, 3)})["audio"].at.shape
    torch.Size([5])
    """
    check_same_modalities("inputs", inputs, encoders.keys())
    found = {}
    for name, encoder in encoders.items():
        try:
            found[name] = forward_error(encoder, inputs[name])
        except ValueError as error:
            kind = NoBoundError if isinstance(error, NoBoundError) else ValueError
            raise kind(f"the encoder of {name!r}: {error}") from error
    return found


def _steps(module: nn.Module, path: str) -> Iterator[Step]:
    refuse_changed_behaviour(module, path)
    kind = type(module)
    where = f"{path!r}, a {kind.__name__}," if path else f"the module, a {kind.__name__},"
    if parametrize.is_parametrized(module):
        power = [
            name
            for name, parametrizations in module.parametrizations.items()  # type: ignore[operator, union-attr]
            if any("spectral" in type(part).__name__.lower() for part in parametrizations)
        ]
        why = f"the norm of `{power[0]}` is measured by power iteration" if power else "its weights are parametrised"
        raise NoBoundError(
            f"{where} is refused at level 'rigorous': {why} and computed anew in every pass; "
            "fix them first with torch.nn.utils.parametrize.remove_parametrizations"
        )
    try:
        if isinstance(module, nn.Sequential) and kind is nn.Sequential:
            for name, part in module._modules.items():  # children() leave out a module that stands there twice
                assert part is not None
                yield from _steps(part, f"{path}.{name}".strip("."))
        elif isinstance(module, MLP | LipschitzMLP) and kind in (MLP, LipschitzMLP):
            yield from _steps(module.layers, f"{path}.layers".strip("."))
        elif kind is OrthogonalLinear:
            raise ValueError(
                "its weights are computed anew in every pass, and QR decompositions differ in the last bits from one "
                "number of threads to another; fix them first with lightning_crmt.layers.with_fixed_weights"
            )
        elif isinstance(module, nn.Linear) and kind is nn.Linear:
            yield Affine(
                _exactly(module.weight, "weight"), None if module.bias is None else _exactly(module.bias, "bias")
            )
        elif isinstance(module, Scale) and kind is Scale:
            yield Scaling(module.factor)
        elif isinstance(module, Residual) and kind is Residual:
            yield Mixture(list(_steps(module.branch, f"{path}.branch".strip("."))), module.weight)
        elif kind in _EXACT:
            if isinstance(module, nn.Flatten) and module.start_dim < 1:
                raise ValueError(f"`start_dim` must be at least 1, so that samples stay apart, got {module.start_dim}")
            yield Exact(module)
        else:
            why = "libraries choose algorithms for convolutions whose rounding has no such bound"
            why = why if kind.__name__ in _CONVOLUTIONS else "no bound of its rounding is proved here"
            raise ValueError(f"{why}; level 'sound' may know it")
    except NoBoundError:
        raise
    except ValueError as error:
        raise NoBoundError(f"{where} is refused at level 'rigorous': {error}") from error


def _exactly(weight: Tensor, name: str) -> Tensor:
    if not weight.is_floating_point() or not weight.isfinite().all():
        raise ValueError(f"`{name}` must be real and finite")
    return weight.detach().to("cpu", torch.float64)


def _precision(module: nn.Module, x: Tensor) -> torch.dtype:
    # Without parameters it runs in the precision of what it is given.
    found = {parameter.dtype for parameter in module.parameters()} or {x.dtype}
    if len(found) != 1 or not found <= UNIT_ROUNDOFF.keys():
        raise ValueError(f"the network must run in float32 or in float64, its parameters are {sorted(map(str, found))}")
    if not _full_precision():
        raise ValueError(
            "products of matrices must run in full precision: torch.set_float32_matmul_precision('highest'), "
            f"and none of {_SHORTENING} set"
        )
    if not (torch.full((1,), 2.0**-130) * 0.5).any():
        raise ValueError("small numbers must not be flushed to zero: torch.set_flush_denormal(False)")
    return found.pop()


def _full_precision() -> bool:
    if any(os.environ.get(name, "strict").lower() not in ("strict", "0") for name in _SHORTENING):
        return False
    try:
        chosen = torch.get_float32_matmul_precision()
    except RuntimeError:  # set by backend, the newer way, and not all to the same
        return False
    return chosen == "highest" and getattr(torch.backends, "fp32_precision", "none") in ("none", "ieee")
