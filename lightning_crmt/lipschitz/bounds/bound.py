# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Sound upper bounds of Lipschitz constants, layer by layer; or an error, never a guess."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_crmt.checks import check_modality_names, check_same_modalities, describe
from lightning_crmt.frozen_eval import frozen_eval
from lightning_crmt.lipschitz.constants import LipschitzConstants
from lightning_crmt.lipschitz.fingerprint import fingerprint
from lightning_crmt.lipschitz.gate import (
    Encoders,
    NoBoundError,
    of_each_encoder,
    place_of,
    refuse_changed_behaviour,
    refuse_context,
)
from lightning_crmt.lipschitz.known_code import CODE, remember_code
from lightning_crmt.lipschitz.rigorous.forward_error import rigorous_bound
from lightning_crmt.modality import Inputs, continuous_of, modalities_of
from lightning_crmt.soundness import Soundness

#: The levels that a bound can have.
BOUND_LEVELS = (Soundness.SOUND, Soundness.RIGOROUS)


def lipschitz_bound(
    module: nn.Module, input_shape: Sequence[int] | None = None, *, level: Soundness | str = Soundness.SOUND
) -> float:
    r"""Upper bound of the l2 Lipschitz constant of ``module`` as it computes in evaluation mode.

    .. math:: \|f(x') - f(x)\|_2 \le L \|x' - x\|_2 \quad \text{for all } x, x'

    the product of bounds of its layers, each by the rule for its exact type: a subclass may compute something else. It
    holds for the present weights only; training, loading or casting them makes it stale. Layers that are 1-Lipschitz by
    construction are measured like all others. The module is left as it was, including its training mode.

    ``level="rigorous"`` also proves the arithmetic of the bound, for the few types of layers where this package can;
    :func:`~lightning_crmt.lipschitz.forward_error` is the other half of such a certificate.

    Args:
        module: an encoder or a part of one, all of whose layers have a rule: built in, or registered with
            :func:`lipschitz_rule`.
        input_shape: shape of one sample, without the batch dimension. Optional, but it tightens the bounds of
            convolutions and averages, and some paddings have a bound only with it.
        level: ``SOUND`` or ``RIGOROUS``, or its name.

    Raises:
        NoBoundError: a ``ValueError`` that names path and type of a module without a rule, whose settings or weights
            allow no bound, or which does not run the code of its type.

    >>> round(lipschitz_bound(nn.Sequential(nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Flatten()), (1, 20)), 1) > 0
    True
    >>> try:
    ...     lipschitz_bound(nn.Sequential(nn.Linear(3, 3), nn.Softmax(dim=1)))
    ... except ValueError as error:
    ...     print(error)
    no Lipschitz bound is known for '1', a Softmax; if you can prove one, register it with @lipschitz_rule
    """
    level = Soundness.among(BOUND_LEVELS, "level", level)
    if not isinstance(module, nn.Module):
        raise TypeError(f"`module` must be an nn.Module, got {describe(module)}")
    shape = None if input_shape is None else tuple(int(size) for size in input_shape)
    if shape is not None and min(shape, default=0) < 1:
        raise ValueError(f"`input_shape` must hold sizes of one sample, all at least 1, got {shape}")
    with frozen_eval(module), torch.no_grad():
        return rigorous_bound(module) if level is Soundness.RIGOROUS else Place().bound(module, "", shape)


def encoder_bounds(
    encoders: Encoders,
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
    level = Soundness.among(BOUND_LEVELS, "level", level)
    check_modality_names("encoders", encoders.keys())
    if input_shapes is not None:
        check_same_modalities("input_shapes", input_shapes, encoders.keys())
    shapes = dict.fromkeys(encoders.keys()) if input_shapes is None else input_shapes
    bounds = of_each_encoder(encoders, lambda name, encoder: lipschitz_bound(encoder, shapes[name], level=level))
    return LipschitzConstants(
        {name: constant_of(bound) for name, bound in bounds.items()},
        of="encoder",
        soundness=level,
        fingerprints={name: fingerprint(encoder) for name, encoder in encoders.items()},
        shapes=None if input_shapes is None else {name: tuple(shape) for name, shape in input_shapes.items()},
    )


def bounds_for(encoders: Encoders, inputs: Inputs) -> LipschitzConstants:
    """Sound :func:`encoder_bounds` for the shapes of a batch; modalities of integers stay clean.

    Args:
        encoders: one module per modality, by name.
        inputs: one batch by modality.

    Raises:
        NoBoundError: as :func:`encoder_bounds`, and where an encoder gets context: a bound knows nothing of it.

    >>> layers = {"image": nn.Sigmoid(), "text": nn.Embedding(5, 2)}
    >>> bounds_for(layers, {"image": torch.ones(1, 3), "text": torch.tensor([[4, 0]])}).clean
    ('text',)
    """
    refuse_context(inputs)
    shapes = {name: tuple(value.shape[1:]) for name, value in continuous_of(inputs).items()}
    bounds = encoder_bounds({name: encoders[name] for name in shapes}, shapes)
    return replace(bounds, clean=tuple(name for name in modalities_of(inputs) if name not in shapes))


#: Bounds by a module's id and the shape of a sample.
Found: TypeAlias = dict[tuple[int, tuple[int, ...] | None], float]


class Place:
    """Where in a network a rule is asked for a bound, and how the rule gets the bounds of the module's parts.

    Args:
        path: name of the module as in ``named_modules``, ``""`` for the whole.
        input_shape: shape of one sample as it enters the module, without the batch; ``None`` if unknown.
        found: where bounds of all parts are noted, by the module's id and shape.

    Attributes:
        path: see above.
        input_shape: see above.

    >>> class Twice(nn.Module):
    ...     def __init__(self, part):
    ...         super().__init__()
    ...         self.part = part
    ...     def forward(self, x):
    ...         return self.part(self.part(x))
    >>> @lipschitz_rule(Twice)
    ... def _(layer, place):
    ...     between = place.output_shape(layer.part, place.input_shape)
    ...     return place.bound(layer.part, "part", place.input_shape) * place.bound(layer.part, "part", between)
    >>> lipschitz_bound(Twice(nn.Sigmoid()))  # the square of 1/4
    0.0625
    """

    def __init__(self, path: str = "", input_shape: tuple[int, ...] | None = None, found: Found | None = None) -> None:
        self.path = path
        self.input_shape = input_shape
        self._found: Found = {} if found is None else found

    def bound(self, part: nn.Module, name: str, input_shape: tuple[int, ...] | None = None) -> float:
        """Bound of a part, called ``name`` in its parent.

        Raises:
            NoBoundError: naming the part, if it has no rule or the rule refuses it.
        """
        here = Place(f"{self.path}.{name}".strip("."), input_shape, self._found)
        refuse_changed_behaviour(part, here.path)
        where, rule = place_of(part, here.path), rule_for(part, here.path)
        try:
            bound = float(rule(part, here))
        except NoBoundError:  # of a part, which the error names already
            raise
        except ValueError as error:
            raise NoBoundError(f"no Lipschitz bound for {where}: {error}") from error
        if not (math.isfinite(bound) and bound >= 0):
            raise NoBoundError(f"the bound of {where}, must be finite and >= 0, got {bound}")
        self._found[id(part), input_shape] = bound
        return bound

    def output_shape(self, part: nn.Module, input_shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """Shape of one sample as it leaves ``part``; ``None`` if it is unknown as it enters.

        Raises:
            ValueError: if the part does not take this shape.
        """
        if input_shape is None:
            return None
        like = next((p for p in part.parameters() if p.is_floating_point()), torch.empty(0))
        try:
            return tuple(part(like.new_zeros(1, *input_shape)).shape[1:])
        except (RuntimeError, ValueError, IndexError) as error:
            raise ValueError(
                f"`input_shape` does not fit: a {type(part).__name__} got {input_shape}: {error}"
            ) from error


#: From a module in evaluation mode, and its place, to an upper bound of its l2 Lipschitz constant.
Rule: TypeAlias = Callable[[Any, Place], float]

_RULES: dict[type[nn.Module], Rule] = {}
# Types of libraries that need not be installed, by qualified name. Their forward is the one of torch's type on a weight
# that they compute: as long as that is so, it is this weight that gets measured.
_FOREIGN: dict[str, type[nn.Module]] = {
    "orthogonium.layers.linear.ortho_linear.OrthoLinear": nn.Linear,
    "orthogonium.layers.linear.ortho_linear.UnitNormLinear": nn.Linear,
    "deel.torchlip.modules.linear.SpectralLinear": nn.Linear,
    "deel.torchlip.modules.linear.FrobeniusLinear": nn.Linear,
    "orthogonium.layers.conv.AOC.fast_block_ortho_conv.FastBlockConv2d": nn.Conv2d,
    "orthogonium.layers.conv.AOC.rko_conv.RKOConv2d": nn.Conv2d,
    "orthogonium.layers.conv.AOC.bcop_x_rko_conv.BcopRkoConv2d": nn.Conv2d,
    "orthogonium.layers.conv.AOL.aol.AOLConv2D": nn.Conv2d,
    "orthogonium.layers.conv.adaptiveSOC.soc_x_rko_conv.SOCRkoConv2d": nn.Conv2d,
    "orthogonium.layers.conv.adaptiveSOC.fast_skew_ortho_conv.FastSOC": nn.Conv2d,
}


def lipschitz_rule(*types: type[nn.Module]) -> Callable[[Rule], Rule]:
    """Register how to bound the Lipschitz constant of your own layers.

    The rule gets the module, in evaluation mode, and its :class:`Place`; it returns an upper bound of the l2 Lipschitz
    constant or raises. It applies to exactly these types and not to subclasses, which may compute something else. A
    certificate is as sound as the rule.

    Raises:
        TypeError: if a type is no subclass of ``nn.Module``.
        ValueError: if the package has a rule of its own for a type.

    >>> import torch
    >>> class Half(torch.nn.Module):
    ...     def forward(self, x):
    ...         return x / 2
    >>> @lipschitz_rule(Half)
    ... def _(layer, place):
    ...     return 0.5
    >>> lipschitz_bound(torch.nn.Sequential(Half(), torch.nn.ReLU(), Half()))
    0.25
    """
    for kind in types:
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise TypeError(f"`types` must be subclasses of nn.Module, got {kind!r}")
        if kind in _RULES and _RULES[kind].__module__.startswith("lightning_crmt."):
            raise ValueError(f"`types` must not hold {kind.__name__}, lightning_crmt has a rule for it")

    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(types, rule))
        remember_code(*types, closed=rule.__module__.startswith("lightning_crmt."))
        return rule

    return register


def rule_for(module: nn.Module, path: str) -> Rule:
    """The rule for a module's exact type.

    Raises:
        NoBoundError: naming the module, if there is none.
    """
    rule = _rule_of(module)
    if rule is None:
        raise NoBoundError(
            f"no Lipschitz bound is known for {place_of(module, path)}; if you can prove one, register it with "
            "@lipschitz_rule"
        )
    return rule


def _rule_of(module: nn.Module) -> Rule | None:
    """The rule for the exact type of ``module``, before any parametrisation; ``None`` if there is none."""
    kind = parametrize.type_before_parametrizations(module)
    base = _FOREIGN.get(f"{kind.__module__}.{kind.__qualname__}")
    if base is not None and all(getattr(kind, name, None) is getattr(base, name, None) for name in CODE):
        kind = base
    return _RULES.get(kind)


def constant_of(bound: float) -> Tensor:
    """A scalar in double precision on the CPU, rounded up to a number that single precision holds."""
    return torch.tensor(_single_precision_up(bound), dtype=torch.float64)


def _single_precision_up(value: float) -> float:
    with np.errstate(over="ignore"):  # infinity is a bound too
        nearest = np.float32(value)
    return float(nearest if float(nearest) >= value else np.nextafter(nearest, np.float32(np.inf)))
