# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Which rule bounds which type of module, and what a rule is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules
from torch.nn.utils import parametrize


class NoBoundError(ValueError):
    """A module has no Lipschitz bound that could be proved; the message names it."""


class Place(Protocol):
    """Where in a network a rule is asked for a bound, and how it asks on for the parts of its module."""

    path: str
    """Name of the module as in ``named_modules``, ``""`` for the whole."""

    input_shape: tuple[int, ...] | None
    """Shape of one sample as it enters the module, without the batch; ``None`` if unknown."""

    def bound(self, part: nn.Module, name: str, input_shape: tuple[int, ...] | None = None) -> float:
        """Bound of a part, called ``name`` in its parent."""
        ...

    def output_shape(self, part: nn.Module, input_shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """Shape of one sample as it leaves ``part``; ``None`` if it is unknown as it enters."""
        ...


#: From a module in evaluation mode, and its place, to an upper bound of its l2 Lipschitz constant.
Rule: TypeAlias = Callable[[Any, Place], float]

_RULES: dict[type[nn.Module], Rule] = {}
# Types of libraries that need not be installed, by qualified name, with the type of torch whose forward they inherit.
_FOREIGN: dict[str, type[nn.Module]] = {}
# The methods between calling a module and its answer.
_CODE = {"__call__", "__getattribute__", "__getattr__", "_call_impl", "_wrapped_call_impl", "forward", "_conv_forward"}


def lipschitz_rule(*types: type[nn.Module]) -> Callable[[Rule], Rule]:
    """Register how to bound the Lipschitz constant of your own layers.

    The rule gets the module, in evaluation mode, and its :class:`Place`; it returns an upper bound of the l2 Lipschitz
    constant or raises. It serves exactly these types, not their subclasses, because these may compute something else.
    A certificate is as sound as the rule.

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
    >>> from lightning_crmt.lipschitz import lipschitz_bound
    >>> lipschitz_bound(torch.nn.Sequential(Half(), torch.nn.ReLU(), Half()))
    0.25
    """
    for kind in types:
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise TypeError(f"`types` must be subclasses of nn.Module, got {kind!r}")
        if kind in _RULES and _RULES[kind].__module__.startswith("lightning_crmt."):
            raise ValueError(f"`types` must not hold {kind.__name__}, lightning_crmt has a rule for it")

    def register(rule: Rule) -> Rule:
        for kind in types:
            _RULES[kind] = rule
        return rule

    return register


def inherits_forward(names: list[str], base: type[nn.Module]) -> None:
    """Let ``base``'s rule serve types of other libraries, as long as they run ``base``'s own code on their weights."""
    _FOREIGN.update(dict.fromkeys(names, base))


def find_rule(module: nn.Module) -> Rule | None:
    """The rule for the exact type of ``module``, before any parametrisation; ``None`` if there is none."""
    kind = parametrize.type_before_parametrizations(module)
    base = _FOREIGN.get(f"{kind.__module__}.{kind.__qualname__}")
    if base is not None and all(getattr(kind, name, None) is getattr(base, name, None) for name in _CODE):
        kind = base
    return _RULES.get(kind)


def refuse_changed_behaviour(module: nn.Module, path: str) -> None:
    """Refuse what makes a module compute something other than the code of its type."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    hooks += [*torch_modules._global_forward_hooks.values(), *torch_modules._global_forward_pre_hooks.values()]
    where = repr(path) if path else "the module"
    if hooks:
        raise NoBoundError(
            f"{where}, a {type(module).__name__}, must have no forward hooks, they can change what it computes; "
            f"got {', '.join(getattr(hook, '__qualname__', type(hook).__name__) for hook in hooks)}"
        )
    if replaced := vars(module).keys() & _CODE:
        raise NoBoundError(f"{where}, a {type(module).__name__}, must run its type's code; {replaced} was replaced")
    if parametrize.is_parametrized(module):
        for name in module.parametrizations:  # type: ignore[union-attr]
            first, second = getattr(module, name), getattr(module, name)
            if isinstance(first, Tensor) and not torch.equal(first, second) and first.isfinite().all():
                raise NoBoundError(
                    f"{where}, a {type(module).__name__}, must have a fixed `{name}`; it changes at every pass, "
                    "fix it with torch.nn.utils.parametrize.remove_parametrizations"
                )
