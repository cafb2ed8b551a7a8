# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Train each modality alone as well as all jointly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_crmt.methods.parts.by_modality import ByModality, check_by_modality, check_modalities_of, of_modality
from lightning_crmt.methods.parts.unimodal_readout import Readout, UnimodalReadout
from lightning_crmt.mixin import CRMTMixin
from lightning_crmt.modality import FusionOutput
from lightning_crmt.targets import Target
from lightning_crmt.training import Method


class UnimodalLosses(Method):
    r"""Uni-modal losses added to the joint one, the uniform baseline of Wang et al., CVPR 2020 (arXiv 1905.12681).

    .. math:: L = \mathrm{CE}(h, y) + \sum_m w_m \, \mathrm{CE}(h_m, y)

    with logits :math:`h_m` of shape ``(B, K)`` from a linear head of its own on the features :math:`z^m`, ``(B, d_m)``.
    The heads exist during the fit only: they are trained by the module's optimizer, saved with this callback and not
    with the module, so that a checkpoint is tested and certified without it.

    Args:
        weight: :math:`w_m`, a number or one by modality, at least 0.
        heads: ``"separate"``, or ``"own"`` for the uni-modal logits of the module's head, its ``unimodal_logits``:
            then no parameter is added, and what is trained is what the certificates and accuracies are about.

    Raises:
        ValueError: if a weight is negative; on ``setup``, if the weights are not of the module's modalities.

    >>> method = UnimodalLosses(weight={"audio": 1.0, "image": 0.5}, heads="own")
    """

    source = "paper"

    def __init__(self, weight: ByModality = 1.0, *, heads: Readout = "separate") -> None:
        check_by_modality("weight", weight)
        self.weight = weight
        self.readout = UnimodalReadout(heads)

    @override
    def begin(self, module: CRMTMixin) -> None:
        check_modalities_of("weight", self.weight, module.encoders.keys())
        self.readout.attach(module, self)

    @override
    def term(self, module: CRMTMixin, output: FusionOutput, target: Target) -> Tensor:
        logits = self.readout.logits(module, output, self)
        losses = [
            of_modality(self.weight, name) * module.crmt_criterion.loss(own, target, output.present.get(name))
            for name, own in logits.items()
        ]
        return torch.stack(losses).sum()

    @override
    def state_dict(self) -> dict[str, Any]:
        return self.readout.state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.readout.load_state_dict(state_dict)
