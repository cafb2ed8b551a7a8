# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""A learning rate for each modality, by how its accuracy fares."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_crmt.checks import check_same_modalities
from lightning_crmt.methods.parts.modality_parts import check_steps_in_reach, own_parameters
from lightning_crmt.methods.parts.unimodal_validation import Unimodal, ValidatedMethod
from lightning_crmt.training import crmt_module


class ModalitySpecificRates(ValidatedMethod):
    r"""Modality-specific learning rates (MSLR, after Yao and Mihalcea, ACL Findings 2022), by each one's accuracy.

    After Yao and Mihalcea, Modality-specific Learning Rates for Effective Multimodal Additive Late-fusion, Findings of
    ACL 2022, pages 1824-1834.

    .. math:: \eta_m = c_m \frac{a_m(t)}{\frac 1 n \sum_{i=1}^n a_m(t - i)}, \qquad
        \theta_m \leftarrow \theta_m + \eta_m \Delta \theta_m

    with the accuracy :math:`a_m(t)` of the modality's own logits in validation t, and :math:`\eta_m = c_m` until there
    are n earlier ones: who gets better faster learns faster. :math:`\Delta \theta_m` is the step that the optimizer
    made, of the encoder and of its part of the head.

    The formula is that of the released comparison in AGM's code (Li et al., ICCV 2023); the original paper was not
    read. There the gradient is multiplied, which under Adam, which divides by the size of the gradients, has no effect.
    Here the step is, right after the optimizer made it: where a step is proportional to the learning rate, as with SGD,
    Adam and their kin, weight decay included, that is a learning rate of its own. Groups, schedulers and checkpoints of
    the optimizer stay as they are. The price is a copy of the parameters whose factor is not 1. A callback that
    averages weights should come behind this one. Mixed samples are no matter: accuracies are of the validation data.

    Args:
        rates: the :math:`c_m`, a number or one by modality, at least 0; on AV-MNIST 1.3 for audio and 0.7 for images.
        window: the number n of earlier validations, at least 1.

    Raises:
        ValueError: if an argument is out of range; before training, if ``rates`` does not have the modalities of the
            module, there is no validation, or optimization is manual.

    >>> method = ModalitySpecificRates(rates={"audio": 1.3, "image": 0.7})
    """

    def __init__(self, rates: float | Mapping[str, float] = 1.0, window: int = 5) -> None:
        for each in rates.values() if isinstance(rates, Mapping) else [rates]:
            if not (math.isfinite(each) and each >= 0):
                raise ValueError(f"`rates` must be at least 0, got {rates}")
        if window < 1:
            raise ValueError(f"`window` must be at least 1, got {window}")
        self.rates = rates
        self.window = window
        #: The accuracies of the last validations, the newest last.
        self.accuracies: dict[str, list[float]] = {}
        #: The trends, :math:`\eta_m / c_m`, of the running epoch.
        self.trends: dict[str, float] = {}
        super().__init__()
        self._before: list[tuple[float, nn.Parameter, Tensor]] = []

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            check_steps_in_reach(trainer, pl_module, self)
            names = list(crmt_module(pl_module, self).encoders.keys())
            if isinstance(self.rates, Mapping):
                check_same_modalities("rates", self.rates, names)
            self.accuracies, self.trends = {name: [] for name in names}, dict.fromkeys(names, 1.0)
            self._before = []

    def factor(self, name: str) -> float:
        r"""The factor :math:`\eta_m` of a modality."""
        return (self.rates[name] if isinstance(self.rates, Mapping) else self.rates) * self.trends[name]

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        # An optimizer that evaluates several times a step, as LBFGS does, starts it from the first.
        if self._before or not self.active(pl_module):
            return
        self._before = [
            (self.factor(name), parameter, parameter.detach().clone())
            for name, parameters in own_parameters(crmt_module(pl_module, self)).items()
            if self.factor(name) != 1
            for parameter in parameters
        ]

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        before, self._before = self._before, []
        with torch.no_grad():
            for factor, parameter, start in before:
                parameter.copy_(start + factor * (parameter - start))

    # --- the trend

    @override
    def learn(self, trainer: Trainer, pl_module: LightningModule, found: Unimodal) -> None:
        for name, accuracy in found.accuracies.items():
            earlier = self.accuracies[name]
            usual = sum(earlier) / self.window
            if len(earlier) == self.window:
                # A modality that never got anything right has no trend.
                self.trends[name] = accuracy / usual if usual > 0 else 1.0
            self.accuracies[name] = [*earlier, accuracy][-self.window :]

    # --- state: plain numbers

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"accuracies": {name: list(each) for name, each in self.accuracies.items()}, "trends": dict(self.trends)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.accuracies = {name: list(each) for name, each in state_dict["accuracies"].items()}
        self.trends = dict(state_dict["trends"])
