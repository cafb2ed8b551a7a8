# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Models of the package transformers by the name of their class or of their weights."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from lightning_crmt.checks import describe, did_you_mean, require_package


def model_by_name(path: str | None, config: Mapping[str, Any] | None, pretrained: str | None) -> nn.Module:
    """A model with random weights, made from a configuration, or with trained ones.

    Args:
        path: import path of its class; with ``pretrained``, transformers chooses one where it is None.
        config: settings of the configuration of the class.
        pretrained: name on the hub, or folder, of trained weights; either this or ``config``.

    Raises:
        ModuleNotFoundError: without transformers.
        TypeError: if ``path`` is not a string.
        ValueError: if arguments contradict each other, there is no such class or setting, or nothing can be loaded.
    """
    if path is not None and not isinstance(path, str):
        raise TypeError(f"`model` must be a module or the import path of a class of models, got {describe(path)}")
    if (config is None) == (pretrained is None) or (path is None and pretrained is None):
        raise ValueError(
            "give `model` as a module, as the path of a class with either `config` or `pretrained`, or `pretrained` "
            f"alone, got model={path!r}, config={config!r}, pretrained={pretrained!r}"
        )
    path = path or "transformers.AutoModel"
    kind = _class(path)
    if pretrained is not None:
        return _loaded(kind, pretrained)
    assert config is not None
    if getattr(kind, "config_class", None) is None:
        raise ValueError(
            "`model` must be a class with one configuration, such as 'transformers.BertModel', for `config` to hold "
            f"its settings, got {path!r}"
        )
    _check_settings(kind.config_class, config, "config")
    made: nn.Module = kind(kind.config_class(**config))
    return made


def _class(path: str) -> Any:
    """The class of models that an import path names, or one of transformers that chooses such a class."""
    package, _, name = path.rpartition(".")
    package_of_models = require_package("transformers", f"{path} needs transformers", "transformers")
    must = "`model` must be a module or the import path of a class of models, such as"
    try:
        kind = getattr(import_module(package), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{must} 'transformers.BertModel', got {path!r}: {error}") from error
    of_models = isinstance(kind, type) and (issubclass(kind, nn.Module) or hasattr(kind, "from_config"))
    if not of_models or not hasattr(kind, "from_pretrained"):
        model = f"{name.removesuffix('Config')}Model"
        known = name.endswith("Config") and hasattr(package_of_models, model)
        raise ValueError(f"{must} 'transformers.{model if known else 'BertModel'}', got {path!r}, which is none")
    return kind


def _loaded(kind: Any, pretrained: str) -> nn.Module:
    try:
        loaded: nn.Module = kind.from_pretrained(pretrained)
    except (OSError, ValueError) as error:
        # From None: what transformers and the hub tell is a hundred lines, the cause is in the first.
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
        absent = "" if Path(pretrained).is_dir() else " (there is no such folder here)"
        raise ValueError(
            f"`pretrained` must be the name on the hub, or a folder, of trained weights, got {pretrained!r}{absent}: "
            f"{cause}"
        ) from None
    return loaded


def _check_settings(kind: type, settings: Mapping[str, Any], argument: str) -> None:
    """Refuse settings that a configuration does not have; transformers would take and forget them.

    Raises:
        ValueError: naming the first one.
    """
    try:
        default = kind()
    except Exception:  # those of several models need these, and say themselves what they miss
        return
    known = [*_parameters(kind), *vars(default), *getattr(kind, "attribute_map", {}), "attn_implementation"]
    for key, value in settings.items():
        if key not in known and not hasattr(default, key):
            raise ValueError(
                f"`{argument}` must hold settings of {kind.__name__}, which has no {key!r}{did_you_mean(key, known)}"
            )
        part = getattr(kind, "sub_configs", {}).get(key)
        if part is not None and isinstance(value, Mapping) and hasattr(part, "to_dict"):
            _check_settings(part, value, f"{argument}.{key}")


def _parameters(kind: type) -> Iterator[str]:
    for each in kind.__mro__[:-1]:
        yield from inspect.signature(each.__init__).parameters  # type: ignore[misc]
