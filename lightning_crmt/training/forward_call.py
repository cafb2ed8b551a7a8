# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""How to call a module's ``forward`` when inputs are known by name, and what else of a batch it is handed."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from lightning.fabric.utilities.rank_zero import rank_zero_warn
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_crmt.checks import describe
from lightning_crmt.modality import Inputs, context_of, flattened, main_entry
from lightning_crmt.training.batch_forms import TARGETS, Parts, check_tensor

#: Words in the names of entries that say how inputs are to be read.
_BELONGS = ("mask", "length", "ids")

#: Entries by module that were left out and warned of, for every observer calls it, and in every epoch anew.
_left_out: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


class ForwardCall:
    """Calls ``forward`` by keyword, in order, or with a dict, as its signature tells.

    - by keyword, if it has parameters of all names, or takes ``**kwargs``;
    - in the order of ``names``, if it requires as many, or takes ``*args``;
    - with a dict, if it requires one.

    A ``forward`` that only hands on ``*args`` and ``**kwargs`` is judged by that of ``self.model`` or ``self.module``;
    these are called instead of a module without a ``forward`` of its own.
    What else a batch holds is handed over by name where ``forward`` has such a parameter, takes ``**kwargs`` or a dict.
    Of masks, lengths and ids that it does not take a warning tells, once for a module.
    The target is handed over only if it is required: by a parameter without a default, or looked for in a dict.

    Args:
        module: the user's module.
        names: names of its inputs.

    Raises:
        ValueError: if the signature does not tell, or there is no ``forward``.

    >>> import torch
    >>> class Mine(nn.Module):
    ...     def forward(self, pixel_values, **others):
    ...         return pixel_values, sorted(others)
    >>> call, x = ForwardCall(Mine(), ["pixel_values", "input_values"]), torch.zeros(1, 2)
    >>> call({"pixel_values": x, "input_values": x, ".attention_mask": x})
    (tensor([[0., 0.]]), ['attention_mask', 'input_values'])
    """

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        self.module = module
        self.names = list(names)
        #: What is called.
        self._called_module = module
        if type(module).forward is LightningModule.forward:
            self._called_module = _inner(module)
            if self._called_module is module:
                raise ValueError(
                    f"{type(module).__name__} must have a `forward` that gives logits, or a classifier as `self.model`"
                    ", and has neither"
                )
        parameters = list(inspect.signature(_told(module).forward).parameters.values())
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        anything = any(p.kind is p.VAR_KEYWORD for p in parameters)
        positional = [
            p.name
            for p in parameters
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
            and p.default is p.empty
            and (p.name in self.names or p.name not in TARGETS)
        ]
        known = {p.name for p in named}
        self._takes = [p.name for p in named]
        if known.issuperset(self.names) or (anything and (known.intersection(self.names) or not positional)):
            self._form, apart = "keywords", self.names
        elif len(positional) == len(self.names) or any(p.kind is p.VAR_POSITIONAL for p in parameters):
            # With one input a parameter may be that, or the batch that holds it.
            self._form, apart = ("maybe dict" if positional == ["batch"] else "positional"), positional
        elif len(positional) == 1:
            self._form, apart = "dict", list(known)
        else:
            raise ValueError(
                f"`inputs` = {self.names} do not tell how to call {type(module).__name__}.forward"
                f"{inspect.signature(module.forward)}: use the names of its parameters"
            )
        self._takes_all = anything or self._form == "dict"
        #: Parameters beside the inputs, and those of them without a default.
        self._others = known.difference(apart)
        self._required = {p.name for p in named if p.name in self._others and p.default is p.empty}
        #: For inputs that are mappings, their class and the key under which they hold what is perturbed.
        self._mappings: dict[str, tuple[type, str]] = {}
        self._kind: type = dict
        self._looks_for_target = False

    def inputs_of(self, parts: Parts) -> dict[str, Tensor]:
        """The inputs by name, and what else ``forward`` is handed, as context.

        Raises:
            ValueError: if something that ``forward`` takes is missing, or does not have a row for each sample.
            TypeError: if a modality is not a tensor.
        """
        if self._form == "maybe dict":
            self._form = "positional" if parts.kind is None else "dict"
            self._takes_all = self._takes_all or self._form == "dict"
        self._kind = parts.kind or dict
        self._mappings = {n: (type(v), main_entry(n, v)) for n, v in parts.inputs.items() if isinstance(v, Mapping)}
        inputs = flattened(parts.inputs)
        for name in self.names:
            check_tensor(name, inputs[name])
        size = len(inputs[self.names[0]])
        beside = dict(parts.beside)
        if parts.target_name is not None:
            beside[parts.target_name] = parts.target
        beside |= {name: parts.target for name in self._required.intersection(TARGETS) if name not in beside}
        for name, value in beside.items():
            dotted = isinstance(name, str) and "." in name
            if not isinstance(name, str) or not (dotted or self._takes_all or name in self._others):
                self._warn_of_leaving(name, value, size)
                continue
            if isinstance(value, Tensor) and value.dim() > 0 and len(value) == size:
                inputs[name if dotted else f".{name}"] = value
            elif isinstance(value, Tensor) or name in self._required:
                raise ValueError(
                    f"the batch's {name!r}, which `forward` of {type(self.module).__name__} takes, must be a tensor "
                    f"with a row for each of {size} samples, got {describe(value)}: hold what is the same for all "
                    "samples in the module, or give split_batch=, a function from a batch to (inputs, target)"
                )
        if missing := [name for name in self._required if not any(key.partition(".")[2] == name for key in inputs)]:
            raise ValueError(
                f"`forward` of {type(self.module).__name__} requires {missing}, but beside {self.names} the batch "
                f"holds {list(beside)}"
            )
        return inputs

    def _warn_of_leaving(self, name: Any, value: Any, size: int) -> None:
        """Warn, once for a module, of what is likely to belong to the inputs: without a mask all numbers change."""
        told = _left_out.setdefault(self.module, set())
        if name in told or not isinstance(name, str) or not any(word in name for word in _BELONGS):
            return
        if not isinstance(value, Tensor) or value.dim() == 0 or len(value) != size:
            return
        told.add(name)
        rank_zero_warn(
            f"the batch's {name!r} is left out, because `forward` of {type(self.module).__name__} takes {self._takes}: "
            "what is measured is the model without it. If a step of yours hands it over under another name, give "
            "split_batch=, a function from a batch to (inputs, target) with that name among the inputs"
        )

    def __call__(self, inputs: Inputs) -> Any:
        """The module's output for inputs by name."""
        values: dict[str, Any] = {name: inputs[name] for name in self.names}
        for name, (kind, key) in self._mappings.items():
            values[name] = _mapping(kind, {key: inputs[name], **context_of(inputs, name)})
        others = self._handed(inputs)
        targets = {name: others.pop(name) for name in TARGETS if name in others and name not in self._required}
        if targets and not self._looks_for_target:
            try:
                return self._called(values, others)
            except (KeyError, AttributeError) as error:
                looked_for = error.name if isinstance(error, AttributeError) else next(iter(error.args), None)
                if looked_for not in targets:
                    raise
                self._looks_for_target = True
        return self._called(values, {**others, **targets} if self._looks_for_target else others)

    def _handed(self, inputs: Inputs) -> dict[str, Tensor]:
        """Context by the name under which it is handed over."""
        handed: dict[str, Tensor] = {}
        for name, value in context_of(inputs).items():
            owner, _, key = name.partition(".")
            if owner in self._mappings:
                continue
            if self._form == "dict":
                handed[key if owner == "" else name] = value
            elif key in self._others or (owner == "" and self._takes_all):
                if key in handed:
                    raise ValueError(
                        f"`forward` of {type(self.module).__name__} takes one {key!r}, but several entries of the "
                        f"batch have this name: {[each for each in inputs if each.partition('.')[2] == key]}"
                    )
                handed[key] = value
        return handed

    def _called(self, values: dict[str, Any], others: dict[str, Tensor]) -> Any:
        if self._form == "dict":
            return self._called_module(_mapping(self._kind, {**values, **others}))
        if self._form == "keywords":
            return self._called_module(**values, **others)
        return self._called_module(*values.values(), **others)


def _told(module: nn.Module) -> nn.Module:
    """The module whose ``forward`` says what it takes: one inside, where the outer one hands everything on."""
    kinds = [p.kind for p in inspect.signature(module.forward).parameters.values()]
    hands_on = kinds == [inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD]
    inner = _inner(module) if hands_on else module
    return module if inner is module else _told(inner)


def _inner(module: nn.Module) -> nn.Module:
    """The model that a module holds as ``model`` or ``module``; itself without one."""
    parts = (getattr(module, name, None) for name in ("model", "module"))
    return next((part for part in parts if isinstance(part, nn.Module)), module)


def _mapping(kind: type, held: dict[str, Any]) -> Any:
    """A mapping of the class that a batch has, which may give its entries as attributes, or else a dict."""
    try:
        return held if kind is dict else kind(held)
    except TypeError:
        return held
