# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""A device ``single`` that computes on the CPU and has no double precision, as MPS has none.

Importing this changes torch for good: only a process of its own may do so.
"""

import torch
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from lightning_crmt import modality

aten = torch.ops.aten
#: What may take tensors of both devices.
_BOTH = {aten._to_copy.default, aten.copy_.default, aten.index.Tensor}


class _Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self):
        return [torch.float16, torch.bfloat16]

    def is_autocast_enabled(self):
        return False

    def get_rng_state(self, device=None):
        return torch.get_rng_state()

    def set_rng_state(self, state, device=None):
        torch.set_rng_state(state)


_setup_privateuseone_for_python_backend("single", backend_module=_Backend())
modality._SINGLE_ONLY.add("single")


class OnDevice(torch.Tensor):
    """A tensor that says that it is on the device, and holds one on the CPU."""

    @staticmethod
    def __new__(cls, raw):
        if raw.dtype is torch.float64:
            raise TypeError("the device has no float64")
        made = torch.Tensor._make_wrapper_subclass(
            cls, raw.size(), strides=raw.stride(), dtype=raw.dtype, device=torch.device("single:0")
        )
        made.raw = raw
        return made

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _run(operation, args, kwargs or {})

    # What torch does by code that no dispatch reaches.

    def tolist(self):
        return self.raw.tolist()

    def new_tensor(self, data):
        return torch.tensor(data, dtype=self.dtype, device=self.device)

    def __getitem__(self, index):
        return super().__getitem__(torch.tensor(index) if isinstance(index, list) else index)


def _run(operation, args, kwargs):
    if operation is aten._to_copy.default and kwargs.get("dtype") is torch.float64 and isinstance(args[0], OnDevice):
        raise TypeError("the device has no float64, not on the way to another device either")
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
    own = [each for each in tensors if isinstance(each, OnDevice)]
    if own and operation not in _BOTH and any(each.dim() > 0 and not isinstance(each, OnDevice) for each in tensors):
        raise RuntimeError(f"all tensors must be on one device for {operation}")
    result = operation(*tree_map(_on_cpu, args), **tree_map(_on_cpu, kwargs))
    if operation is aten.copy_.default:
        here = isinstance(args[0], OnDevice)
    else:
        here = bool(own) if kwargs.get("device") is None else torch.device(kwargs["device"]).type == "single"
    if not here:
        return result
    known = {id(each.raw): each for each in own}  # what was changed in place
    return tree_map(lambda t: _of(t, known) if isinstance(t, torch.Tensor) else t, result)


def _of(raw, known):
    return known[id(raw)] if id(raw) in known else OnDevice(raw)


def _on_cpu(value):
    if isinstance(value, torch.device) and value.type == "single":
        return torch.device("cpu")
    return value.raw if isinstance(value, OnDevice) else value


def _then_moved(make):
    def made(data, *, dtype=None, device=None):
        if isinstance(data, OnDevice):
            return data.to(device=device, dtype=dtype)
        value = make(data, dtype=dtype)
        return value if device is None else value.to(device)

    return made


torch.tensor, torch.as_tensor = _then_moved(torch.tensor), _then_moved(torch.as_tensor)
_library = torch.library.Library("_", "IMPL")
_library.fallback(lambda operation, *args, **kwargs: _run(operation, args, kwargs), "PrivateUse1")
