# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Models of the package transformers as encoders; those given by name need the extra ``transformers``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from lightning_crmt.checks import describe, did_you_mean
from lightning_crmt.encoders.models_by_name import model_by_name

#: What features are taken from unless an output is named, the first that the model gives.
_OUTPUTS = ("pooler_output", "text_embeds", "image_embeds", "audio_embeds", "last_hidden_state")


class HuggingFaceEncoder(nn.Module):
    """A model of transformers as the encoder of one modality: features ``(B, out_features)``.

    The input goes where the model expects its main one (``input_ids``, ``pixel_values``, ``input_values``, …); for a
    text model floating point inputs are embedded tokens, ``inputs_embeds``, which can be attacked. What the batch holds
    as ``"text.attention_mask"``, or under another name after ``"text."``, is handed over as that keyword.

    Args:
        model: the model, or the import path of its class, such as ``"transformers.BertModel"``, for YAML. One that was
            loaded by ``from_pretrained`` is put in training mode, which transformers leaves; to keep it out of that,
            call ``eval()`` of the encoder.
        config: settings of the configuration of a model given by its class, whose weights are then random.
        pretrained: name on the hub, or folder, of trained weights; without ``model``, transformers chooses the class.
        output: which output holds the features; by default ``pooler_output`` where the model gives one, embeddings
            after a projection, else ``last_hidden_state``.
        pooling: of an output with a vector for each position, ``(B, T, d)``, the mean over the attention mask, or the
            vector of the first position.
        out_features: size of the features; by default as the configuration says.

    Raises:
        ModuleNotFoundError: for a class or weights by name, without ``pip install "lightning_crmt[transformers]"``.
        ValueError: if arguments contradict each other, a class cannot be imported, there are no such weights, a
            configuration does not have a setting, or does not say how many features there are; on call, if there are
            another number of them, or the model does not take what goes with the input.
        TypeError: if ``model`` is neither a module nor a path.

    >>> class Tiny(nn.Module):  # stands for a model of transformers
    ...     main_input_name = "input_ids"
    ...     def forward(self, input_ids, attention_mask=None):
    ...         return {"last_hidden_state": nn.functional.one_hot(input_ids, 3).float()}
    >>> import torch
    >>> encoder = HuggingFaceEncoder(Tiny(), out_features=3)
    >>> encoder(torch.tensor([[1, 2, 0, 0]]), attention_mask=torch.tensor([[1, 1, 0, 0]]))
    tensor([[0.0000, 0.5000, 0.5000]])
    """

    def __init__(
        self,
        model: str | nn.Module | None = None,
        *,
        config: Mapping[str, Any] | None = None,
        pretrained: str | None = None,
        output: str | None = None,
        pooling: Literal["mean", "first"] = "mean",
        out_features: int | None = None,
    ) -> None:
        super().__init__()
        if pooling not in ("mean", "first"):
            raise ValueError(f"`pooling` must be 'mean' or 'first', got {pooling!r}")
        if isinstance(model, nn.Module):
            if config is not None or pretrained is not None:
                raise ValueError("`config` and `pretrained` are for a `model` given by its class, got a module")
            self.model = model
        else:
            self.model = model_by_name(model, config, pretrained)
        if getattr(self.model, "name_or_path", "") and not self.model.training:
            # transformers gives loaded models in evaluation mode, in which Lightning would leave them.
            self.model.train()
        self.output = output
        self.pooling = pooling
        self._context = _named_context(self.model)
        self.out_features = _size(self.model, output) if out_features is None else out_features

    def forward(self, x: Tensor, **context: Tensor) -> Tensor:
        """Features ``(B, out_features)``.

        Args:
            x: token ids ``(B, T)``, embedded tokens ``(B, T, d)``, samples of sound ``(B, T)``, images
                ``(B, C, H, W)``, or what else the model takes.
            context: what else it takes, by name, such as ``attention_mask`` ``(B, T)``.
        """
        known = self._context
        unknown = [key for key in context if known is not None and key not in known]
        if known is not None and unknown:
            raise ValueError(
                f"`context` must be what `forward` of {type(self.model).__name__} names, which has no "
                f"{unknown[0]!r}{did_you_mean(unknown[0], known)}"
            )
        name = getattr(self.model, "main_input_name", None)
        if name == "input_ids" and x.is_floating_point():
            name = "inputs_embeds"
        outputs = self.model(**{name: x}, **context) if name is not None else self.model(x, **context)
        features = self._pooled(self._chosen(outputs), context.get("attention_mask"))
        if features.dim() != 2 or features.shape[1] != self.out_features:
            raise ValueError(
                f"`out_features` must be the size of the features that {type(self.model).__name__} gives, got "
                f"{self.out_features} for {describe(features)}"
            )
        return features

    def _chosen(self, outputs: Any) -> Tensor:
        held: dict[str, Any] = dict(outputs) if isinstance(outputs, Mapping) else dict(vars(outputs))
        for name in _OUTPUTS if self.output is None else [self.output]:
            value = held.get(name)
            if isinstance(value, Tensor):
                return value
        kinds = [name for name, value in held.items() if isinstance(value, Tensor)]
        raise ValueError(
            f"`output` must be one of the outputs {kinds} of {type(self.model).__name__}, got "
            f"{self.output or 'none of ' + str(list(_OUTPUTS))}{self._without_head()}"
        )

    def _without_head(self) -> str:
        """For a model with a head, that of the same kind which gives features."""
        inner = getattr(self.model, "base_model", self.model)
        return "" if inner is self.model else f"; {type(inner).__name__}, which has no head, gives features"

    def _pooled(self, output: Tensor, mask: Tensor | None) -> Tensor:
        if output.dim() == 4:  # maps of convolutional networks
            return output.mean(dim=(2, 3))
        if output.dim() != 3:
            return output
        if self.pooling == "first":
            return output[:, 0]
        if mask is None:
            return output.mean(dim=1)
        real = self._at_positions(mask, output.shape[1]).to(output)[:, :, None]
        return (output * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)

    def _at_positions(self, mask: Tensor, positions: int) -> Tensor:
        """The mask of the input, ``(B, T)``, for the positions of the output, of which sound has fewer."""
        if mask.shape[1] == positions:
            return mask
        of_model = getattr(self.model, "_get_feature_vector_attention_mask", None)
        if of_model is not None:
            shorter: Tensor = of_model(positions, mask)
            return shorter
        return nn.functional.adaptive_max_pool1d(mask.float()[:, None], positions)[:, 0]


def _named_context(model: nn.Module) -> list[str] | None:
    """What a model takes beside its main input, None if it may take anything.

    Models of transformers name what they use: whatever else ``**kwargs`` collects is forgotten without a word.
    """
    parameters = inspect.signature(model.forward).parameters.values()
    anything = any(each.kind is each.VAR_KEYWORD for each in parameters)
    if anything and not type(model).__module__.startswith("transformers."):
        return None
    named = [each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    main = getattr(model, "main_input_name", None)
    return [name for name in named if name != main] if main is not None else named[1:]


def _size(model: nn.Module, output: str | None) -> int:
    config: Any = getattr(model, "config", None)
    projects = any(hasattr(model, f"{kind}_projection") for kind in ("text", "visual", "audio"))
    if projects if output is None else output.endswith("_embeds"):
        found = getattr(config, "projection_dim", None)
    else:
        found = getattr(config, "hidden_size", None) or (getattr(config, "hidden_sizes", None) or [None])[-1]
    if not isinstance(found, int):
        raise ValueError(
            f"`out_features` must give the size of the features of {type(model).__name__}, whose configuration has "
            "neither hidden_size nor projection_dim"
        )
    return found
