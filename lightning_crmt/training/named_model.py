# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Read batches and call modules by modality name, whatever form the user's own batches and modules have."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn

from lightning_crmt.checks import check_modality_names, check_same_modalities, describe
from lightning_crmt.fusion import LateFusion
from lightning_crmt.mixin import CRMTMixin
from lightning_crmt.modality import Inputs, context_of


class NamedModel(nn.Module):
    """A user's module as a function of inputs by name, with its batches split to match.

    A CRMT module is taken as it is. For any other, ``names`` says what its inputs are called:

    - batches: a tuple or list that holds the inputs in that order and then the target, or ``(dict, target)``, or one
      dict with the target under ``"target"``, ``"label"`` or ``"y"``;
    - ``forward``: called by keyword if it has parameters of these names, in the order of ``names`` if it requires as
      many, with a dict if it requires one.

    Args:
        module: the user's module.
        names: names of its inputs; not needed for a CRMT module.

    Raises:
        ValueError: if names are needed and missing, repeat, or do not tell how to call ``forward``.

    >>> import torch
    >>> class Mine(LightningModule):
    ...     def forward(self, audio, image):
    ...         return audio + 10 * image
    >>> model = NamedModel(Mine(), names=["image", "audio"])  # the order of the batch, not that of the parameters
    >>> inputs, target = model.split_batch((torch.ones(2, 3), torch.zeros(2, 3), torch.tensor([0, 1])))
    >>> list(inputs), model(inputs)[0]
    (['image', 'audio'], tensor([10., 10., 10.]))
    """

    def __init__(self, module: LightningModule, names: Sequence[str] | None) -> None:
        super().__init__()
        self.module = module
        if isinstance(module, CRMTMixin):
            names = list(module.encoders) if names is None else names
            check_same_modalities("inputs", names, module.encoders)
        elif names is None:
            raise ValueError(
                f"`inputs` must name the modalities of {type(module).__name__} in the order of its batches, "
                "as in inputs=('image', 'audio'), because it is not a CRMT module"
            )
        self.names = list(names)
        check_modality_names("inputs", self.names)
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"`inputs` must be different names, got {self.names}")
        self._call = self._calling_convention()

    def forward(self, inputs: Inputs) -> Any:
        """The module's output for inputs by name."""
        return self._call(inputs)

    def split_batch(self, batch: Any) -> tuple[dict[str, Tensor], Tensor]:
        """Inputs by name, ``(B, ...)`` each, and the target, ``(B,)``.

        Raises:
            ValueError: if a dict lacks a modality or the target.
            TypeError: if the batch has none of these forms.
        """
        if isinstance(self.module, CRMTMixin):
            inputs, target = self.module.split_batch(batch)
            return {**self._pick(inputs), **context_of(inputs)}, target
        if isinstance(batch, Mapping):
            key = next((key for key in ("target", "label", "y") if key in batch), None)
            if key is None:
                raise ValueError(f"a dict batch must hold 'target', 'label' or 'y', got keys {list(batch)}")
            return self._pick(batch), batch[key]
        if isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[0], Mapping):
            return self._pick(batch[0]), batch[1]
        if isinstance(batch, tuple | list) and len(batch) == len(self.names) + 1:
            return dict(zip(self.names, batch[:-1], strict=True)), batch[-1]
        raise TypeError(
            f"a batch must be ({', '.join(self.names)}, target) or hold these names in a dict, got {describe(batch)}"
            + (f" of length {len(batch)}" if isinstance(batch, tuple | list) else "")
        )

    def _pick(self, mapping: Mapping[str, Any]) -> dict[str, Tensor]:
        absent = [name for name in self.names if name not in mapping]
        if absent:
            raise ValueError(f"`inputs` names {absent}, but the batch holds {list(mapping)}")
        return {name: mapping[name] for name in self.names}

    def _calling_convention(self) -> Callable[[Inputs], Any]:
        if isinstance(self.module, CRMTMixin):
            return lambda inputs: self.module(inputs)
        parameters = list(inspect.signature(self.module.forward).parameters.values())
        known = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        if all(name in known for name in self.names):
            return lambda inputs: self.module(**{name: inputs[name] for name in self.names})
        positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        required = [p for p in positional if p.default is p.empty]
        many = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        if len(required) == len(self.names) or many:
            return lambda inputs: self.module(*(inputs[name] for name in self.names))
        if len(required) == 1:
            return lambda inputs: self.module(dict(inputs))
        raise ValueError(
            f"`inputs` = {self.names} do not tell how to call {type(self.module).__name__}.forward"
            f"{inspect.signature(self.module.forward)}: use the names of its parameters"
        )


def crmt_module(pl_module: LightningModule, callback: Callback) -> CRMTMixin:
    """``pl_module``, checked to be a CRMT module.

    Raises:
        TypeError: naming the callback that needs one, if it is not.
    """
    if not isinstance(pl_module, CRMTMixin):
        raise TypeError(
            f"{type(callback).__name__} trains the encoders and head of a CRMT module, got {describe(pl_module)}: "
            "subclass CRMTModule, or put CRMTMixin before your own class"
        )
    return pl_module


def late_fusion(module: CRMTMixin, callback: Callback) -> LateFusion:
    """The head of ``module``, checked to be a late fusion.

    Raises:
        TypeError: naming the callback that needs one, if it is another kind.
    """
    if not isinstance(module.head, LateFusion):
        raise TypeError(
            f"{type(callback).__name__} needs late fusion, whose scores and integration weights make up the logits, "
            f"as in OrthogonalFusion or LinearFusion; got {describe(module.head)}"
        )
    return module.head
