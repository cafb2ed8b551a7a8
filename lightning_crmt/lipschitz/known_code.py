# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The code of types as it was when something was proved of them, and whether a module still runs it."""

from __future__ import annotations

from types import MethodType

from torch import nn
from torch.nn.utils import parametrizations, parametrize

from lightning_crmt.fusion import FixedFusion, LinearFusion, OrthogonalFusion

#: The methods between calling a module and its output.
CODE = {"__call__", "__getattribute__", "__getattr__", "_call_impl", "_wrapped_call_impl", "forward", "_conv_forward"}
#: Heads whose code is known; a subclass may compute something else.
HEADS = (LinearFusion, OrthogonalFusion, FixedFusion)
#: What layers and heads keep their weights in.
_HOLDERS = (
    nn.ModuleDict, nn.ModuleList, nn.ParameterDict, nn.ParameterList, parametrize.ParametrizationList,
    parametrizations._Orthogonal, parametrizations._SpectralNorm, parametrizations._WeightNorm,
)  # fmt: skip

#: What turns tokens into vectors.
LOOKUPS = (nn.Embedding, nn.EmbeddingBag)

#: The methods of each type when it became known, by name.
_KNOWN_CODE: dict[type, dict[str, object]] = {}
#: Types of torch and this package, whose code reads its own attributes and nothing else.
_CLOSED: set[type] = set()


def remember_code(*kinds: type, closed: bool = False) -> None:
    """Remember the methods of types as they are now: what is proved of a type is proved of these.

    Args:
        kinds: modules.
        closed: whether their code reads nothing but their own attributes.
    """
    for kind in kinds:
        methods = {
            name
            for base in kind.__mro__
            if base not in (nn.Module, object)
            for name, value in vars(base).items()
            if hasattr(type(value), "__get__") and name not in ("__dict__", "__weakref__")
        }
        _KNOWN_CODE[kind] = {name: _code(kind, name) for name in CODE | methods}
        (_CLOSED.add if closed else _CLOSED.discard)(kind)


def replaced_code(module: nn.Module, kind: type) -> set[str]:
    """Names of methods that ``module`` runs in the place of those that were remembered of ``kind``."""
    if kind not in _KNOWN_CODE:
        return vars(module).keys() & CODE
    known = _KNOWN_CODE[kind]
    return {name for name, code in known.items() if name in vars(module) or _code(type(module), name) != code}


def replaced_calls(module: nn.Module, kind: type) -> list[str]:
    """Names of the methods between calling ``module`` and its output that are not those remembered of ``kind``.

    That the module holds the very method of its type is no replacement: distributed training leaves it so.
    """
    replaced = replaced_code(module, kind) & CODE
    return sorted(name for name in replaced if not _is_own(module, name, kind))


def _is_own(module: nn.Module, name: str, kind: type) -> bool:
    held, known = vars(module).get(name), _KNOWN_CODE[kind][name]
    if not isinstance(held, MethodType) or held.__self__ is not module or _code(type(module), name) != known:
        return False
    return known == (held.__func__, getattr(held.__func__, "__code__", None))


def _code(kind: type, name: str) -> object:
    code = getattr(kind, name, None)
    return code, getattr(code, "__code__", None)


def wholly_known(module: nn.Module) -> bool:
    """Whether all parts of ``module`` are of torch's and this package's types: what they compute is what they hold.

    A layer of your own may read anything, so nothing may be remembered of it.

    >>> wholly_known(nn.Sequential(nn.Linear(3, 2), nn.ReLU()))
    True
    """
    return all(map(is_closed, module.modules()))


def is_closed(part: nn.Module) -> bool:
    """Whether a module's own type, before any parametrisation, is one of torch's or this package's."""
    return parametrize.type_before_parametrizations(part) in _CLOSED


remember_code(*HEADS, *_HOLDERS, *LOOKUPS, closed=True)
