# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""What a constant is a constant of: a fingerprint of modules by content."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

#: Settings of a module that are part of what it computes.
_PLAIN = (bool, int, float, str, type(None), torch.dtype)


def fingerprint(module: nn.Module) -> str:
    """A digest of everything that decides what ``module`` computes in evaluation mode.

    Names, types and settings of all submodules, and the bytes of all parameters and buffers: so that it notices a
    change in place, through ``.data``, by ``load_state_dict``, by weight averaging or a cast to another precision. The
    training flags are left out, and so are what hooks do: who certifies runs the module in evaluation mode and refuses
    hooks. Reading costs about a second for a gigabyte of weights.

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
        for name, value in sorted(vars(part).items()):
            if not name.startswith("_") and name != "training" and _is_plain(value):
                digest.update(f"{name}={value!r};".encode())
        for name, tensor in [*part._parameters.items(), *part._buffers.items(), *_plain_tensors(part)]:
            if tensor is not None:
                digest.update(f"{name}:{tensor.dtype}{tuple(tensor.shape)};".encode())
                digest.update(_bytes(tensor))
    return digest.hexdigest()


def _is_plain(value: object) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, tuple | list) and all(map(_is_plain, value)))


def _plain_tensors(part: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, value) for name, value in vars(part).items() if isinstance(value, Tensor)]


def _bytes(tensor: Tensor) -> Any:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy()
