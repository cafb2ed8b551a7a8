# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Train each modality beside the joint answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from typing_extensions import override

from lightning_crmt.checks import check_same_modalities
from lightning_crmt.methods.parts.unimodal_readout import Readout, UnimodalReadout
from lightning_crmt.mixin import CRMTMixin
from lightning_crmt.modality import FusionOutput
from lightning_crmt.targets import Target, mixed_loss
from lightning_crmt.training import Method, crmt_module


class UnimodalLosses(Method):
    r"""Uni-modal losses beside the joint one, the uniform baseline of Wang et al., CVPR 2020 (arXiv 1905.12681).

    .. math:: L = \mathrm{CE}(h, y) + \sum_m w_m \, \mathrm{CE}(h_m, y)

    with logits :math:`h_m` of shape ``(B, K)`` from a linear head of its own on the features :math:`z^m`,
    ``(B, d_m)``. The heads exist for the fit: they are trained by the module's optimizer, saved with this callback and
    not with the module, so that a checkpoint is tested and certified without it.

    Args:
        weight: :math:`w_m`, a number or one by modality, at least 0.
        heads: ``"separate"``, or ``"own"`` for the uni-modal logits of the module's head, its ``unimodal_logits``:
            then no parameter is added, and what is trained is what the certificates and accuracies are about.

    Raises:
        ValueError: if a weight is negative; on ``setup``, if the weights are not of the module's modalities.

    >>> method = UnimodalLosses(weight={"audio": 1.0, "image": 0.5}, heads="own")
    """

    def __init__(self, weight: float | Mapping[str, float] = 1.0, heads: Readout = "separate") -> None:
        for each in weight.values() if isinstance(weight, Mapping) else [weight]:
            if not each >= 0:
                raise ValueError(f"`weight` must be at least 0, got {weight}")
        self.weight = weight
        self.readout = UnimodalReadout(heads, "UnimodalLosses")

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            module = crmt_module(pl_module, self)
            if isinstance(self.weight, Mapping):
                check_same_modalities("weight", self.weight, module.encoders.keys())
            self.readout.attach(module)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        self.readout.detach(pl_module)

    @override
    def state_dict(self) -> dict[str, Any]:
        return self.readout.state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.readout.load_state_dict(state_dict)

    @override
    def term(self, module: CRMTMixin, output: FusionOutput, target: Target) -> Tensor:
        logits = self.readout.logits(module, output, self)
        losses = [
            (self.weight[name] if isinstance(self.weight, Mapping) else self.weight)
            * mixed_loss(lambda y, own=own: nn.functional.cross_entropy(own, y), target)  # type: ignore[misc]
            for name, own in logits.items()
        ]
        return torch.stack(losses).sum()
