# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Read batches and call modules by modality name, whatever form the user's own batches and modules have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn

from lightning_crmt.checks import check_modality_names, check_same_modalities, describe
from lightning_crmt.criterion import Criterion
from lightning_crmt.fusion import LateFusion
from lightning_crmt.mixin import CRMTMixin
from lightning_crmt.modality import Inputs, context_of, flattened, select
from lightning_crmt.training.batch_forms import SplitBatch, as_split_batch, take_apart
from lightning_crmt.training.forward_call import ForwardCall

#: Stands for a number of classes that is not known before the model has answered.
_MANY = 2**31


class NamedModel(nn.Module):
    """A user's module as a function of inputs by name, with its batches split to match.

    A CRMT module is taken as it is, with its own ``split_batch``. For any other, ``names`` says what its inputs are
    called:

    - batches: a tuple or list that holds the inputs in that order and then the target, or ``(dict, target)``, or one
      dict with the target under ``"target"``, ``"label"``, ``"labels"`` or ``"y"``. What else a dict holds is context:
      the tensors that ``forward`` takes are handed to it by name and never perturbed;
    - ``forward``: called by keyword if it has parameters of these names or takes ``**kwargs``, in the order of
      ``names`` if it requires as many, with a dict if it requires one. It gets the target only if it requires it, by a
      parameter without a default or by looking for it.

    An input may be a mapping itself, such as ``{"input_ids": ..., "attention_mask": ...}``, see
    :func:`~lightning_crmt.modality.flattened`.

    Args:
        module: the user's module.
        names: names of its inputs; not needed for a CRMT module.
        split_batch: a function from a batch to inputs by name and target, or its import path, for other forms. What its
            inputs hold beside ``names`` is context too.

    Raises:
        ValueError: if names are needed and missing, repeat, or do not tell how to call ``forward``.

    >>> import torch
    >>> class Mine(LightningModule):
    ...     def forward(self, audio, image, mask):
    ...         return audio * mask + 10 * image
    >>> model = NamedModel(Mine(), names=["image", "audio"])  # the order does not matter, for the names are known
    >>> x, mask = torch.ones(2, 3), torch.tensor([[1, 1, 0], [1, 1, 1]])
    >>> inputs, target = model.split_batch({"audio": x, "image": x, "mask": mask, "labels": torch.tensor([0, 1])})
    >>> list(inputs), model(inputs)[0]
    (['image', 'audio', '.mask'], tensor([11., 11., 10.]))
    """

    _call: ForwardCall

    def __init__(
        self, module: LightningModule, names: Sequence[str] | None, split_batch: SplitBatch | str | None = None
    ) -> None:
        super().__init__()
        self.module = module
        self._split = as_split_batch(split_batch)
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
        if not isinstance(module, CRMTMixin):
            self._call = ForwardCall(module, self.names)

    def forward(self, inputs: Inputs) -> Any:
        """The module's output for inputs by name."""
        return self.module(inputs) if isinstance(self.module, CRMTMixin) else self._call(inputs)

    def split_batch(self, batch: Any) -> tuple[dict[str, Tensor], Tensor]:
        """Inputs by name, ``(B, ...)`` each, with their context, and the target as the batch has it.

        Raises:
            ValueError: if a dict lacks a modality, the target or what ``forward`` requires, or something that
                ``forward`` takes does not have a row for each sample.
            TypeError: if the batch has none of these forms, or a modality is not a tensor.
        """
        if self._split is not None:
            batch = self._split(batch)
            if not isinstance(batch, tuple | list) or len(batch) != 2 or not isinstance(batch[0], Mapping):
                raise TypeError(f"`split_batch` must return (inputs, target), inputs by name, got {describe(batch)}")
        if isinstance(self.module, CRMTMixin):
            inputs, target = batch if self._split is not None else self.module.split_batch(batch)
            parts = take_apart((flattened(inputs), target), self.names)
            return {**parts.inputs, **context_of(parts.beside)}, target
        parts = take_apart(batch, self.names)
        return self._call.inputs_of(parts), parts.target

    def judged_batch(self, batch: Any) -> tuple[dict[str, Tensor], Tensor]:
        """Inputs and target of the samples that predictions are judged by, which may be none.

        A module that learns other targets than one class per sample, or not all samples, says so by its attribute
        ``crmt_criterion``, see :class:`~lightning_crmt.criterion.Criterion`: samples that it ignores are left out, and
        what is right is given as classes ``(B,)`` or labels ``(B, K)``.

        Raises:
            ValueError, TypeError: as :meth:`split_batch` does, and if the target is not of the kind that the module
                says, or is of floating point and the module says nothing.
        """
        return self.judged_part(batch)[:2]

    def judged_part(self, batch: Any) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """What :meth:`judged_batch` gives, and for every sample of the batch whether it is among them, bool.

        Raises:
            ValueError, TypeError: as :meth:`judged_batch` does.
        """
        inputs, target = self.split_batch(batch)
        criterion = getattr(self.module, "crmt_criterion", None)
        if not isinstance(criterion, Criterion) and isinstance(target, Tensor) and target.is_floating_point():
            raise TypeError(
                f"`target` of {type(self.module).__name__} must be a tensor of integer class indices (B,), or of "
                f"labels (B, K) that are bools or integers, got {describe(target)}: give `.bool()` of labels or "
                "`.argmax(dim=1)` of probabilities by split_batch=, a function from a batch to (inputs, target); or "
                "say what it learns, module.crmt_criterion = Criterion(multi_label=True) for labels, Criterion() for "
                "probabilities"
            )
        everything = torch.ones(len(target), dtype=torch.bool)
        if not isinstance(criterion, Criterion) or not isinstance(target, Tensor):
            return inputs, target, everything
        num_classes = target.shape[1] if target.dim() == 2 else _MANY
        if isinstance(self.module, CRMTMixin):
            num_classes = self.module.head.num_classes
        criterion.check(target, num_classes, len(next(iter(inputs.values()))))
        right, counted = criterion.answers(target), criterion.counted(target)
        if counted is None or bool(counted.all()):
            return inputs, right, everything
        rows = counted.nonzero().squeeze(1)
        return select(inputs, rows), right[rows], counted


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
