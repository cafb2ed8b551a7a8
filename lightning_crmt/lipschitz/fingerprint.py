# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What a constant is a constant of: a fingerprint of modules by content."""

from __future__ import annotations

import hashlib
import inspect
import pickle
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (bool, int, float, str, type(None), torch.dtype)
#: Attributes that say nothing about what a module computes, or that are read one by one.
_OF_EVERY_MODULE = vars(nn.Module()).keys()
_UNLIKE_OTHERS = count()


def fingerprint(module: nn.Module) -> str:
    """A digest of everything that decides what ``module`` computes in evaluation mode.

    Names, types and attributes of all submodules, private ones and those of their classes too, and the bytes of all
    parameters and buffers: so that it notices a change in place, through ``.data``, by ``load_state_dict``, by weight
    averaging or a cast to another precision. Left out are the training flags, what a layer of your own reads from
    elsewhere, such as a global variable, and what hooks do: to certify, the module is run in evaluation mode, and hooks
    are refused. Reading costs about a second for a gigabyte of weights.

    Args:
        module: any module; tensors on other devices are read through the CPU.

    >>> layer = nn.Linear(3, 2)
    >>> before = fingerprint(layer)
    >>> layer.weight.data.mul_(2.0)[0, 0].shape
    torch.Size([])
    >>> fingerprint(layer) == before
    False
    """
    digest = hashlib.blake2b(digest_size=16)
    seen: dict[int, str] = {}
    for path, part in module.named_modules(remove_duplicate=False):
        if (first := seen.setdefault(id(part), path)) != path:
            digest.update(f"{path} is {first};".encode())
            continue
        kind = type(part)
        digest.update(f"{path}:{kind.__module__}.{kind.__qualname__};".encode())
        own = {name: value for name, value in vars(part).items() if name not in _OF_EVERY_MODULE}
        for values in (part._parameters, part._buffers, dict(sorted(own.items())), _of_classes(kind)):
            for piece in _content(values):
                digest.update(piece)
    return digest.hexdigest()


def _of_classes(kind: type[nn.Module]) -> dict[str, object]:
    """Settings that a type and its bases keep as class attributes."""
    return {
        f"{base.__qualname__}.{name}": value
        for base in kind.__mro__[: kind.__mro__.index(nn.Module)]
        for name, value in vars(base).items()
        if not name.startswith("__") and isinstance(value, (*_PLAIN, Tensor, Mapping, list, tuple))
    }


def _content(value: object) -> Iterator[bytes]:
    """What a value holds, in pieces; no two values that compute different things give the same."""
    yield f"{type(value).__qualname__}:".encode()
    if isinstance(value, Tensor):
        yield f"{value.dtype}{tuple(value.shape)};".encode()
        yield _bytes(value)
    elif isinstance(value, Mapping):
        yield f"{len(value)}".encode()
        yield from (piece for pair in value.items() for each in pair for piece in _content(each))
    elif isinstance(value, list | tuple):
        yield f"{len(value)}".encode()
        yield from (piece for each in value for piece in _content(each))
    elif isinstance(value, _PLAIN):
        yield f"{value!r}".encode()
    else:
        try:
            yield pickle.dumps(value)
        except Exception:  # whatever an object's own pickling raises
            # A copy of a module keeps its functions, so their addresses last; other objects never match.
            yield f"{id(value) if inspect.isroutine(value) else next(_UNLIKE_OTHERS)}".encode()
    yield b";"


def _bytes(tensor: Tensor) -> Any:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy()
