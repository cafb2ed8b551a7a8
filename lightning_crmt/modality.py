# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Inputs by modality name, the mapping that every function takes, and the output of a multi-modal classifier."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree

from lightning_crmt.checks import describe

#: One tensor per modality, by name, the batch first: ``{"audio": (B, ...), "image": (B, ...)}``. Entries whose name has
#: a dot are context, see :func:`context_of`.
Inputs: TypeAlias = Mapping[str, Tensor]

#: The name, after the dot, under which inputs say of each sample whether it has a modality.
PRESENT = "present"


class FusionOutput(NamedTuple):
    """The output of a multi-modal classifier.

    Attributes:
        logits: joint logits :math:`h`, shape ``(B, K)``.
        scores: uni-modal scores :math:`s^m` by modality, each ``(B, K)``.
        features: what the head was given, by modality, ``(B, d_m)``; empty where the model does not say.
        present: which samples have a modality, ``(B,)`` bool, for those that may be absent; scores of absent ones are
            0.

    >>> output = FusionOutput(torch.zeros(2, 10), {"audio": torch.zeros(2, 10)})
    >>> output.logits.shape, list(output.scores), output.features, output.present
    (torch.Size([2, 10]), ['audio'], {}, {})
    """

    logits: Tensor
    scores: dict[str, Tensor]
    features: dict[str, Tensor] = {}  # noqa: RUF012
    present: dict[str, Tensor] = {}  # noqa: RUF012


# Programs of torch.export that return one can be saved. torch has no public name for this; without it they still run.
if hasattr(_pytree, "_register_namedtuple"):
    _pytree._register_namedtuple(FusionOutput, serialized_type_name="lightning_crmt.FusionOutput")
# `torch.load` reads one as it is.
torch.serialization.add_safe_globals([FusionOutput])


def modalities_of(inputs: Inputs) -> dict[str, Tensor]:
    """The modalities among ``inputs``: the entries whose name has no dot.

    >>> list(modalities_of({"text": torch.ones(1, 3), "text.attention_mask": torch.ones(1, 3)}))
    ['text']
    """
    return {name: value for name, value in inputs.items() if "." not in name}


def continuous_of(inputs: Inputs) -> dict[str, Tensor]:
    """The modalities of real numbers: those that can change by a little, unlike tokens.

    >>> list(continuous_of({"image": torch.ones(1, 3), "text": torch.tensor([[5, 2, 0]])}))
    ['image']
    """
    return {name: value for name, value in modalities_of(inputs).items() if value.is_floating_point()}


def context_of(inputs: Inputs, modality: str | None = None) -> dict[str, Tensor]:
    """What a batch holds besides modalities: entries whose name has a dot, which no modality's name can have.

    They are selected, moved and passed along with the rest, and never perturbed:

    - ``"audio.present"``: which samples have the modality at all, ``(B,)`` bool; inputs of the others are not read;
    - ``"text.attention_mask"``, or any other name: what the encoder of ``"text"`` gets as that keyword argument;
    - ``".attention_mask"``: what a module that is not a CRMT module gets as a keyword argument of ``forward``.

    Args:
        inputs: of one batch.
        modality: whose keyword arguments to give, by their name after the dot; all entries, as they are named, by
            default. ``""`` stands for the whole batch.

    >>> inputs = {"text": torch.ones(1, 3), "text.mask": torch.ones(1, 3), "text.present": torch.tensor([True])}
    >>> list(context_of(inputs)), list(context_of(inputs, "text"))
    (['text.mask', 'text.present'], ['mask'])
    """
    if modality is None:
        return {name: value for name, value in inputs.items() if "." in name}
    start = f"{modality}."
    own = {name.removeprefix(start): value for name, value in inputs.items() if name.startswith(start)}
    return {key: value for key, value in own.items() if key != PRESENT}


#: Under which of these keys a modality that is a mapping holds what is perturbed; they are what transformers calls it.
_MAIN = ("input_ids", "input_values", "input_features", "pixel_values", "inputs_embeds")


def main_entry(name: str, value: Mapping[str, Any]) -> str:
    """The key under which a modality that is a mapping holds its values; the rest is its context.

    Raises:
        ValueError: if it cannot be told.

    >>> main_entry("text", {"attention_mask": torch.ones(1, 3), "input_ids": torch.ones(1, 3).long()})
    'input_ids'
    """
    found = [key for key in (name, *_MAIN) if key in value] or (list(value) if len(value) == 1 else [])
    if not found:
        raise ValueError(
            f"`inputs[{name!r}]` must be a tensor, or a mapping that holds one as {name!r} or one of {list(_MAIN)}, "
            f"got {describe(value)}"
        )
    return found[0]


def flattened(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """``inputs`` in which a modality that is a mapping is its values, and the rest of the mapping its context.

    Raises:
        ValueError: if a mapping does not tell which entry is which, see :func:`main_entry`.

    >>> list(flattened({"text": {"input_ids": torch.ones(1, 3).long(), "attention_mask": torch.ones(1, 3)}}))
    ['text', 'text.attention_mask']
    """
    flat: dict[str, Any] = {}
    for name, value in inputs.items():
        if isinstance(value, Mapping) and "." not in name:
            main = main_entry(name, value)
            flat[name] = value[main]
            flat |= {f"{name}.{key}": each for key, each in value.items() if key != main}
        else:
            flat[name] = value
    return flat


def present_of(inputs: Inputs) -> dict[str, Tensor]:
    """Which samples have each modality, ``(B,)`` bool, for the modalities that may be absent.

    >>> present_of({"audio": torch.ones(2, 3), "audio.present": torch.tensor([True, False])})
    {'audio': tensor([ True, False])}
    """
    ending = f".{PRESENT}"
    return {name.removesuffix(ending): value for name, value in inputs.items() if name.endswith(ending)}


def where_present(value: Tensor, present: Tensor | None) -> Tensor:
    """``value``, ``(B, ...)``, with 0 for samples that lack the modality; as it is where all have it.

    >>> where_present(torch.ones(2, 2), torch.tensor([True, False]))
    tensor([[1., 1.],
            [0., 0.]])
    """
    if present is None:
        return value
    return torch.where(present.reshape(-1, *[1] * (value.dim() - 1)), value, torch.zeros_like(value))


def have_any(output: FusionOutput, modalities: Iterable[str]) -> Tensor:
    """Which samples have at least one of some modalities, ``(B,)`` bool.

    >>> some = torch.tensor([True, False])
    >>> have_any(FusionOutput(torch.zeros(2, 3), {}, present={"audio": some}), ["audio"])
    tensor([ True, False])
    """
    everywhere = torch.ones(len(output.logits), dtype=torch.bool, device=output.logits.device)
    return torch.stack([output.present.get(name, everywhere) for name in modalities]).any(dim=0)


def with_stand_ins(inputs: Inputs, present: Inputs) -> dict[str, Tensor]:
    """``inputs`` in which samples without a modality have that of others, repeated in turn, and its context.

    So encoders see nothing but real samples, whatever fills the gaps: statistics of batch normalisation are of these,
    and no attention lacks tokens. What is computed from a stand-in must not be used. Where no sample has the modality
    the filling stays.

    Args:
        inputs: by modality, ``(B, ...)``.
        present: which samples have a modality, ``(B,)`` bool; those of others are not looked at.

    >>> inputs = {"audio": torch.tensor([[1.0], [0.0], [3.0], [0.0]])}
    >>> with_stand_ins(inputs, {"audio": torch.tensor([True, False, True, False])})["audio"].flatten()
    tensor([1., 1., 3., 3.])
    """
    changed = dict(inputs)
    for owner, here in present.items():
        # Those that have it come first: no number of them need be known, which would wait for the device.
        place = torch.arange(here.shape[0], device=here.device)
        order = torch.where(here, place, place + here.shape[0]).argsort()
        turn = ((~here).cumsum(0) - 1) % here.sum().clamp(min=1)
        rows = torch.where(here, place, order[turn])
        for name in inputs:
            if name.partition(".")[0] == owner and name != f"{owner}.{PRESENT}":
                changed[name] = inputs[name][rows.to(inputs[name].device)]
    return changed


def answer(head: Callable[..., FusionOutput], features: Inputs, present: Inputs) -> FusionOutput:
    """What a fusion head makes of features; it is told of presence where that is not all.

    So heads of one's own that know nothing of presence work where every sample has everything.

    Raises:
        TypeError: if the head takes no ``present`` where it is needed.
    """
    if not present:
        return head(features)
    if "present" not in inspect.signature(getattr(head, "forward", head)).parameters:
        raise TypeError(
            f"samples lack modalities, and the head {type(head).__name__} cannot be told: its `forward` must take "
            "`present`, masks (B,) by modality, and leave out what is absent"
        )
    return head(features, present)


def mean_over(values: Tensor, counted: Tensor | None) -> Tensor:
    """The mean of the values ``(B,)`` that are counted, all if None; 0, with a graph, if none is.

    >>> mean_over(torch.tensor([1.0, 3.0, 8.0]), torch.tensor([True, True, False]))
    tensor(2.)
    """
    if counted is None:
        return values.mean()
    return torch.where(counted, values, torch.zeros_like(values)).sum() / counted.sum().clamp(min=1)


def select(inputs: Inputs, rows: Tensor) -> dict[str, Tensor]:
    """The samples ``rows`` of every modality, indices ``(n,)`` on any device.

    >>> select({"audio": torch.arange(6).reshape(3, 2)}, torch.tensor([2]))
    {'audio': tensor([[4, 5]])}
    """
    return {name: value[rows.to(value.device)] for name, value in inputs.items()}


def samples_of(output: FusionOutput, rows: Tensor) -> FusionOutput:
    """The output for the samples ``rows``, indices ``(n,)`` on any device.

    >>> samples_of(FusionOutput(torch.zeros(3, 2), {"audio": torch.zeros(3, 2)}), torch.tensor([0, 2])).logits.shape
    torch.Size([2, 2])
    """
    parts = {name: select(getattr(output, name), rows) for name in ("scores", "features", "present")}
    return output._replace(logits=output.logits[rows.to(output.logits.device)], **parts)


def logits_of(output: Any) -> Tensor:
    """The logits in a model's output.

    Args:
        output: what the model returned: logits ``(B, K)``; anything with an attribute ``logits``, such as a
            ``FusionOutput`` or an output of transformers; a dict with the key ``"logits"``; or a tuple that starts with
            them, or with a loss and then them.

    Raises:
        TypeError: if there is no ``(B, K)`` tensor in one of these places.

    >>> logits_of({"logits": torch.zeros(2, 3)}).shape, logits_of((torch.tensor(0.7), torch.zeros(2, 3))).shape
    (torch.Size([2, 3]), torch.Size([2, 3]))
    """
    logits = output
    if isinstance(output, Mapping):
        logits = output.get("logits")
    elif hasattr(output, "logits"):
        logits = output.logits
    elif isinstance(output, tuple | list) and output:
        is_loss = isinstance(output[0], Tensor) and output[0].dim() <= 1 and output[0].numel() == 1
        logits = output[1] if is_loss and len(output) > 1 else output[0]
    if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[1] < 2:
        one = isinstance(logits, Tensor) and logits.shape[-1:] == (1,)
        raise TypeError(
            "a model must return logits of shape (B, K), K >= 2, an output with an attribute or a key 'logits', or a "
            "tuple that begins with them, or with a loss and them; "
            f"{'for a single logit z, return stack([0, z], dim=1); ' * one}got {describe(output)}"
        )
    return logits


def as_vectors(features: Inputs) -> dict[str, Tensor]:
    """One vector ``(B, d_m)`` per sample: of a sequence ``(B, T, d_m)`` its mean.

    >>> as_vectors({"audio": torch.ones(2, 3), "text": torch.ones(2, 5, 4)})["text"].shape
    torch.Size([2, 4])
    """
    return {name: z if z.dim() == 2 else z.flatten(1, -2).mean(dim=1) for name, z in features.items()}


def at_least_single(value: Tensor) -> Tensor:
    """``value``, of any shape, in double precision if it is so already, else in single: half is too coarse to subtract.

    >>> at_least_single(torch.ones(2, dtype=torch.bfloat16)).dtype, at_least_single(torch.ones(2).double()).dtype
    (torch.float32, torch.float64)
    """
    return value if value.dtype is torch.float64 else value.float()


#: Types of devices that have no double precision.
_SINGLE_ONLY = {"mps"}


def widest(device: torch.device) -> torch.dtype:
    """Double precision, or single on a device that has no double: Apple's MPS.

    >>> widest(torch.device("cpu")), widest(torch.device("mps"))
    (torch.float64, torch.float32)
    """
    return torch.float32 if device.type in _SINGLE_ONLY else torch.float64


def widened(value: Tensor, device: torch.device | None = None) -> Tensor:
    """``value``, of any shape, in the widest precision of its device, or of another one that it is sent to.

    >>> widened(torch.ones(2)).dtype
    torch.float64
    """
    if device is None or device == value.device:
        return value.to(widest(value.device))
    # One after the other: no device may ever get a precision that it does not have.
    return in_double(value).to(widest(device)).to(device)


def in_double(value: Tensor) -> Tensor:
    """``value``, of any shape, in double precision: on its device, or on the CPU if that has none.

    >>> in_double(torch.ones(2)).dtype
    torch.float64
    """
    return (value.cpu() if widest(value.device) is not torch.float64 else value).double()
