# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""From inputs to features: each encoder gets its modality and the context of that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lightning_crmt.checks import describe
from lightning_crmt.frozen_eval import evaluating
from lightning_crmt.modality import Inputs, context_of, present_of, with_stand_ins


def encoded(encoders: Mapping[str, Any] | nn.ModuleDict, inputs: Inputs) -> dict[str, Tensor]:
    """Features by modality: what each encoder makes of its modality and of the context of that.

    Args:
        encoders: of some or all modalities, each called with ``(B, ...)`` and its context as keyword arguments.
        inputs: one batch; where samples lack a modality, the features are those of stand-ins, see
            :func:`with_stand_ins`.

    Raises:
        RuntimeError, ValueError, IndexError: what an encoder raises, with the name of its modality and the shape of
            what it was given before the message.
        TypeError: if an encoder does not take its context.

    >>> encoded({"audio": lambda x, gain: gain * x}, {"audio": torch.ones(1, 2), "audio.gain": torch.tensor([[3.0]])})
    {'audio': tensor([[3., 3.]])}
    """
    present = present_of(inputs)
    taken, features = with_stand_ins(inputs, present), {}
    for name, encoder in encoders.items():
        with _learning_from(encoder, present.get(name)):
            features[name] = _encode(name, encoder, taken[name], context_of(taken, name))
    return features


def _learning_from(encoder: Any, here: Tensor | None) -> AbstractContextManager[None]:
    """Inside, an encoder in training gathers no statistics if no sample of the batch has its modality."""
    if here is None or not isinstance(encoder, nn.Module) or not encoder.training or torch.compiler.is_compiling():
        return nullcontext()
    return nullcontext() if bool(here.any()) else evaluating(encoder)


def _encode(name: str, encoder: Callable[..., Tensor], value: Tensor, context: Inputs) -> Tensor:
    try:
        return encoder(value, **context)
    except (RuntimeError, ValueError, IndexError) as error:
        if type(error) not in (RuntimeError, ValueError, IndexError):  # out of memory, the compiler's own
            raise
        raise type(error)(f"the encoder of {name!r} failed on {describe(value)}: {error}") from error
    except TypeError as error:
        if not context or "unexpected keyword argument" not in str(error):
            raise
        held = [f"{name}.{key}" for key in context]
        raise TypeError(
            f"the encoder of {name!r} must take what the inputs hold for it beside, {held}, as keyword arguments: "
            f"{error}; give it one that does, or leave them out of the data, as masked=[] does"
        ) from error
