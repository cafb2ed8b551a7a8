# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Tokens cannot change by a little, but their embeddings can: a model as a function of these."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_crmt.checks import describe
from lightning_crmt.frozen_eval import as_taken_by, evaluating
from lightning_crmt.modality import PRESENT, Inputs

#: The name, after the dot, of the context that holds the tokens.
_TOKENS = "tokens"


class EmbeddedModel(nn.Module):
    """A model in which the outputs of embedding layers are inputs, so that attacks and gradients reach them.

    A budget or a radius of such a modality is in units of its embedding, not of text: whether any text lies within it
    is another question. It compares models that share their embeddings; a model with embeddings half as long looks half
    as robust, and is not.

    Args:
        model: any model of inputs by name that attacks take.
        layers: for each modality of tokens, the path of its embedding layer in ``model``, as in ``named_modules``, such
            as ``"encoders.text.0"``. The layer must be called once in a forward pass, and give one row per sample.

    Raises:
        ValueError: if there is no such layer; in :meth:`embed`, if a layer is not called once, or samples lack the
            modality.

    >>> from lightning_crmt import CRMTModule
    >>> from lightning_crmt.attacks import PGD, Budget
    >>> from lightning_crmt.encoders import MLP
    >>> text = nn.Sequential(nn.Embedding(50, 4), nn.Flatten(), nn.Linear(12, 8))
    >>> model = CRMTModule({"image": MLP(5, 8), "text": text}, num_classes=3)
    >>> embedded = EmbeddedModel(model, {"text": "encoders.text.0"})
    >>> inputs = embedded.embed({"image": torch.zeros(2, 5), "text": torch.tensor([[4, 2, 0], [1, 7, 7]])})
    >>> inputs["text"].shape
    torch.Size([2, 3, 4])
    >>> attacked = PGD(Budget({"text": 0.5}))(embedded, inputs, torch.tensor([0, 1]))
    >>> bool((attacked["text"] - inputs["text"]).flatten(1).norm(dim=1).max() <= 0.5 + 1e-6)
    True
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, str]) -> None:
        super().__init__()
        if not isinstance(layers, Mapping) or not layers:
            raise ValueError(f"`layers` must map modalities to paths of embedding layers, got {describe(layers)}")
        parts = dict(model.named_modules())
        for name, path in layers.items():
            if path not in parts:
                kinds = [known for known, part in parts.items() if isinstance(part, nn.Embedding | nn.EmbeddingBag)]
                raise ValueError(f"`layers[{name!r}]` must be a layer of the model, such as {kinds}, got {path!r}")
        self.model = model
        self.layers = dict(layers)

    @torch.no_grad()
    def embed(self, inputs: Inputs) -> dict[str, Tensor]:
        """``inputs`` with embeddings in place of tokens, which go along as context.

        Args:
            inputs: by modality; tokens ``(B, T)`` become ``(B, T, d)``, or whatever the layer gives.
        """
        found: dict[str, list[Tensor]] = {name: [] for name in self.layers}
        taken = as_taken_by(self.model, inputs)
        for name in self.layers:
            if f"{name}.{PRESENT}" in inputs:
                raise ValueError(f"`inputs` must have {name!r} in every sample to be embedded: select those")
        with evaluating(self.model), self._hooks({name: each.append for name, each in found.items()}):
            self.model(taken)
        for name, outputs in found.items():
            if len(outputs) != 1 or len(outputs[0]) != len(inputs[name]):
                raise ValueError(
                    f"`layers[{name!r}]` must be called once, and give a row for each of {len(inputs[name])} samples, "
                    f"got {[tuple(output.shape) for output in outputs]}"
                )
        tokens = {f"{name}.{_TOKENS}": inputs[name] for name in self.layers}
        return {**inputs, **tokens, **{name: outputs[0].detach() for name, outputs in found.items()}}

    def forward(self, inputs: Inputs) -> Any:
        """The model's output where its embedding layers give what ``inputs`` hold, see :meth:`embed`."""
        restored = {name: value for name, value in inputs.items() if not name.endswith(f".{_TOKENS}")}
        restored |= {name: inputs[f"{name}.{_TOKENS}"] for name in self.layers}
        with self._hooks({name: partial(_instead, inputs[name]) for name in self.layers}):
            return self.model(restored)

    @contextmanager
    def _hooks(self, changes: Mapping[str, Callable[[Tensor], Tensor | None]]) -> Iterator[None]:
        """Inside, what the layer of a modality gives is shown to a function, or replaced by what that returns."""
        parts = dict(self.model.named_modules())
        handles = [
            parts[self.layers[name]].register_forward_hook(lambda _, __, output, change=change: change(output))
            for name, change in changes.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _instead(given: Tensor, output: Tensor) -> Tensor:
    return given
