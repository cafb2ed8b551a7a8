# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""CRMT as a LightningModule, to subclass or to use as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from typing_extensions import Self

from lightning_crmt.checks import check_at_least, check_modality_names, check_same_modalities, describe
from lightning_crmt.criterion import Criterion
from lightning_crmt.fusion import FusionHead, OrthogonalFusion
from lightning_crmt.mixin import CRMTMixin

if TYPE_CHECKING:  # jsonargparse, which reads these blocks too, is not needed without a command line
    from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable


class CRMTModule(CRMTMixin):
    """A multi-modal classifier trained by CRMT: one encoder per modality, late fusion, margin regularisation.

    Add the callback ``IntegrationReweighting`` for step 2. With ``head: LinearFusion`` and ``rho: 0`` it is ordinary
    joint training, the baseline; with ``OrthogonalFusion`` and ``rho: 0`` orthogonal joint training.

    Args:
        encoders: one module per modality, by name, that gives ``(B, d_m)`` features.
        num_classes: number of classes K.
        rho: weight of the margin regularisation, at least 0; 0 turns it off.
        head: makes the fusion head from the sizes of the features and the number of classes.
        in_features: size of each encoder's features; read off the encoder's ``out_features``, or that of the last
            module in a ``Sequential`` that has one, if not given.
        optimizer: makes the optimizer from two parameter groups named ``body`` and ``integration``.
        lr_scheduler: makes a learning rate scheduler, stepped every epoch, from the optimizer; one that watches a
            metric watches ``val/loss``.
        multi_label: any number of labels per sample, targets ``(B, K)`` of 0 and 1, in place of one class.
        class_weights: weights of the classes, or labels, in the cross-entropy; all 1 by default.
        label_smoothing: of the cross-entropy, at least 0 and below 1.
        ignore_index: the class of samples that do not count; none by default.

    Raises:
        ValueError: if a setting is out of range, weights are not one per class, a size of features cannot be found, or
            the head cannot be built.

    >>> from lightning_crmt.encoders import MLP
    >>> model = CRMTModule({"audio": MLP(20, 16), "image": MLP(30, 16)}, num_classes=10, rho=0.5)
    >>> model({"audio": torch.zeros(2, 20), "image": torch.zeros(2, 30)}).scores["audio"].shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        num_classes: int,
        rho: float = 0.5,
        head: Callable[[Mapping[str, int], int], FusionHead] = OrthogonalFusion,
        in_features: Mapping[str, int] | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        multi_label: bool = False,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        self.crmt_criterion = Criterion(multi_label, class_weights, label_smoothing, ignore_index)
        if not isinstance(encoders, Mapping) or not all(isinstance(e, nn.Module) for e in encoders.values()):
            raise TypeError(f"`encoders` must map names of modalities to modules, got {describe(encoders)}")
        if not callable(head) or isinstance(head, nn.Module):
            raise TypeError(f"`head` must be a class of fusion heads or make one, got {describe(head)}")
        check_modality_names("encoders", encoders)
        check_at_least(0, rho=rho)
        given = dict(in_features or {})
        sizes = {name: given.pop(name) if name in given else _out_features(name, e) for name, e in encoders.items()}
        check_same_modalities("in_features", [*sizes, *given], encoders)
        self.encoders = nn.ModuleDict(encoders)
        self.head = head(sizes, num_classes)
        self.crmt_criterion.check_settings(num_classes)
        self.rho = rho
        self.make_optimizer = _Maker(optimizer)
        self.make_lr_scheduler = None if lr_scheduler is None else _Maker(lr_scheduler)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One optimizer with the groups ``body`` and ``integration``."""
        integration = self.head.integration_parameters()
        apart = {id(parameter) for parameter in integration}
        groups: list[dict[str, Any]] = [
            {"name": "body", "params": [p for p in self.parameters() if id(p) not in apart]},
            {"name": "integration", "params": integration},
        ]
        optimizer: torch.optim.Optimizer = self.make_optimizer([group for group in groups if group["params"]])
        if self.make_lr_scheduler is None:
            return optimizer
        # ``monitor`` is for schedulers that watch a metric; others ignore it.
        scheduler = {"scheduler": self.make_lr_scheduler(optimizer), "monitor": "val/loss"}
        return cast(OptimizerLRScheduler, {"optimizer": optimizer, "lr_scheduler": scheduler})


class _Maker:
    """Calls a factory; copies of a module share it, as one made by LightningCLI leads to the whole Trainer."""

    def __init__(self, factory: Callable[..., Any]) -> None:
        self.factory = factory

    def __call__(self, made_of: Any) -> Any:
        return self.factory(made_of)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


def _out_features(name: str, encoder: nn.Module) -> int:
    modules = reversed(list(encoder)) if isinstance(encoder, nn.Sequential) else [encoder]
    for module in modules:
        size = getattr(module, "out_features", None)
        if isinstance(size, int):
            return size
    raise ValueError(
        f"`in_features` must give the size of the features of {name!r}: its encoder, {describe(encoder)}, "
        f"has no `out_features`; pass in_features={{{name!r}: ...}}"
    )
