# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Sound upper bounds of Lipschitz constants, layer by layer; or an error, never a guess."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import nn

from lightning_crmt.checks import check_modality_names, check_same_modalities, describe
from lightning_crmt.frozen_eval import frozen_eval
from lightning_crmt.lipschitz.bounds import activations as activations  # registers rules
from lightning_crmt.lipschitz.bounds import rules as rules  # registers rules
from lightning_crmt.lipschitz.bounds.registry import NoBoundError, find_rule, refuse_changed_behaviour
from lightning_crmt.lipschitz.constants import LipschitzConstants
from lightning_crmt.lipschitz.fingerprint import fingerprint
from lightning_crmt.lipschitz.rigorous.forward_error import rigorous_bound
from lightning_crmt.soundness import Soundness

#: How far a bound must be trusted: in exact arithmetic, or against rounding too.
Level: TypeAlias = Literal["sound", "rigorous"]


def lipschitz_bound(module: nn.Module, input_shape: Sequence[int] | None = None, *, level: Soundness | str = Soundness.SOUND) -> float:
    r"""Upper bound of the l2 Lipschitz constant of ``module`` as it computes in evaluation mode.

    .. math:: \|f(x') - f(x)\|_2 \le L \|x' - x\|_2 \quad \text{for all } x, x'

    the product of bounds of its layers, each by the rule for its exact type: a subclass may compute something else. It
    is the bound of these very weights; training, loading or casting them makes it stale. Layers that are 1-Lipschitz by
    construction are measured like all others. The module is left as found, in training mode if it was.

    ``level="rigorous"`` also proves the arithmetic of the bound, for the few types of layers where this package can;
    :func:`~lightning_crmt.lipschitz.forward_error` is the other half of such a certificate.

    Args:
        module: an encoder or a part of one; every layer of a type that has a rule, or one you gave by
            :func:`lipschitz_rule`.
        input_shape: shape of one sample, without the batch. Not needed, but convolutions and averages get tighter, and
            some paddings have a bound only with it.
        level: ``"sound"`` or ``"rigorous"``.

    Raises:
        NoBoundError: a ``ValueError`` that names path and type of a module that has no rule, or whose settings or
            weights admit no bound, or that does not run the code of its type.

    >>> round(lipschitz_bound(nn.Sequential(nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Flatten()), (1, 20)), 1) > 0
    True
    >>> try:
    ...     lipschitz_bound(nn.Sequential(nn.Linear(3, 3), nn.Softmax(dim=1)))
    ... except ValueError as error:
    ...     print(error)
    no Lipschitz bound is known for '1', a Softmax; if you can prove one, register it with @lipschitz_rule
    """
    level = Soundness.among([Soundness.SOUND, Soundness.RIGOROUS], "level", level)
    if not isinstance(module, nn.Module):
        raise TypeError(f"`module` must be an nn.Module, got {describe(module)}")
    shape = None if input_shape is None else tuple(int(size) for size in input_shape)
    if shape is not None and min(shape, default=0) < 1:
        raise ValueError(f"`input_shape` must hold sizes of one sample, all at least 1, got {shape}")
    with frozen_eval(module), torch.no_grad():
        return rigorous_bound(module) if level is Soundness.RIGOROUS else _Walk("", shape).bound(module, "", shape)


def encoder_bounds(
    encoders: Mapping[str, nn.Module] | nn.ModuleDict,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    *,
    level: Soundness | str = Soundness.SOUND,
) -> LipschitzConstants:
    """The constants that :func:`~lightning_crmt.certification.certify` takes, bounded for each encoder.

    Args:
        encoders: one module per modality, by name.
        input_shapes: shape of one sample by modality, for tighter bounds; all of them or none.
        level: see :func:`lipschitz_bound`.

    Returns:
        Constants of the encoders, with ``Soundness.SOUND`` or ``RIGOROUS``: scalars in double precision on the CPU,
        rounded up to a number that single precision holds, so that casting them keeps them bounds.

    Raises:
        NoBoundError: naming the modality, for what :func:`lipschitz_bound` refuses.
        ValueError: if names of modalities are missing or unknown.

    >>> encoder_bounds({"audio": nn.Identity(), "image": nn.Sigmoid()}).values
    {'audio': tensor(1., dtype=torch.float64), 'image': tensor(0.2500, dtype=torch.float64)}
    """
    check_modality_names("encoders", encoders.keys())
    if input_shapes is not None:
        check_same_modalities("input_shapes", input_shapes, encoders.keys())
    values = {}
    for name, encoder in encoders.items():
        try:
            bound = lipschitz_bound(encoder, None if input_shapes is None else input_shapes[name], level=level)
        except NoBoundError as error:
            raise NoBoundError(f"the encoder of {name!r}: {error}") from error
        values[name] = torch.tensor(_single_precision_up(bound), dtype=torch.float64)
    return LipschitzConstants(
        values,
        of="encoder",
        soundness=Soundness.among([Soundness.SOUND, Soundness.RIGOROUS], "level", level),
        fingerprints={name: fingerprint(encoder) for name, encoder in encoders.items()},
        shapes=None if input_shapes is None else {name: tuple(shape) for name, shape in input_shapes.items()},
    )


class _Walk:
    # A `Place`; see there.
    def __init__(self, path: str, input_shape: tuple[int, ...] | None) -> None:
        self.path = path
        self.input_shape = input_shape

    def bound(self, part: nn.Module, name: str, input_shape: tuple[int, ...] | None = None) -> float:
        here = _Walk(f"{self.path}.{name}".strip("."), input_shape)
        refuse_changed_behaviour(part, here.path)
        rule = find_rule(part)
        if rule is None:
            raise NoBoundError(
                f"no Lipschitz bound is known for {here}, a {type(part).__name__}; "
                "if you can prove one, register it with @lipschitz_rule"
            )
        try:
            found = float(rule(part, here))
        except NoBoundError:  # of a part, and named after it
            raise
        except ValueError as error:
            raise NoBoundError(f"no Lipschitz bound for {here}, a {type(part).__name__}: {error}") from error
        if not (math.isfinite(found) and found >= 0):
            raise NoBoundError(f"the bound of {here}, a {type(part).__name__}, must be finite and >= 0, got {found}")
        return found

    def output_shape(self, part: nn.Module, input_shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if input_shape is None:
            return None
        like = next((p for p in part.parameters() if p.is_floating_point()), torch.empty(0))
        try:
            return tuple(part(like.new_zeros(1, *input_shape)).shape[1:])
        except (RuntimeError, ValueError, IndexError) as error:
            raise ValueError(
                f"`input_shape` does not fit: a {type(part).__name__} got {input_shape}: {error}"
            ) from error

    def __str__(self) -> str:
        return repr(self.path) if self.path else "the module"


def _single_precision_up(value: float) -> float:
    nearest = np.float32(value)
    return float(nearest if float(nearest) >= value else np.nextafter(nearest, np.float32(np.inf)))
