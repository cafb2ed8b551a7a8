# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""A learning rate for each modality, by the trend of its accuracy."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from typing_extensions import override

from lightning_crmt.checks import check_at_least
from lightning_crmt.methods.parts.by_modality import ByModality, check_by_modality, check_modalities_of, of_modality
from lightning_crmt.methods.parts.modality_parts import own_parameters
from lightning_crmt.methods.parts.validated_method import ValidatedMethod
from lightning_crmt.mixin import CRMTMixin
from lightning_crmt.modality import Inputs
from lightning_crmt.targets import answers, has_labels, most_probable


class ModalitySpecificRates(ValidatedMethod):
    r"""Modality-specific learning rates (MSLR, after Yao and Mihalcea, ACL Findings 2022), by each one's accuracy.

    After Yao and Mihalcea, Modality-specific Learning Rates for Effective Multimodal Additive Late-fusion, Findings of
    ACL 2022, pages 1824-1834.

    .. math:: \eta_m = c_m \frac{a_m(t)}{\frac 1 n \sum_{i=1}^n a_m(t - i)}, \qquad
        \theta_m \leftarrow \theta_m + \eta_m \Delta \theta_m

    with the accuracy :math:`a_m(t)` of the modality's own logits in validation t, and :math:`\eta_m = c_m` until there
    are n earlier ones: a modality that improves faster learns faster. :math:`\Delta \theta_m` is the step that the
    optimizer made, of the encoder and of its part of the head.

    The formula is that of the released comparison in AGM's code (Li et al., ICCV 2023); the original paper was not
    read. That code scales the gradient, which has no effect under Adam, as Adam divides by the size of the gradients.
    Here the step itself is scaled, right after the optimizer made it: where a step is proportional to the learning
    rate, as with SGD, Adam and their kin, weight decay included, that is a learning rate of its own. Groups, schedulers
    and checkpoints of the optimizer stay as they are. The price is a copy of the parameters whose factor is not 1. A
    callback that averages weights should come after this one. Mixed samples make no difference: accuracies are of
    validation data.

    Args:
        rates: the :math:`c_m`, a number or one by modality, at least 0; on AV-MNIST 1.3 for audio and 0.7 for images.
        window: the number n of earlier validations, at least 1.

    Raises:
        ValueError: if an argument is out of range; before training, if ``rates`` does not have the modalities of the
            module, there is no validation, or optimization is manual.

    >>> method = ModalitySpecificRates(rates={"audio": 1.3, "image": 0.7})
    """

    source = "others' code"
    saved = ("accuracies", "trends")

    def __init__(self, rates: ByModality = 1.0, *, window: int = 5) -> None:
        check_by_modality("rates", rates)
        check_at_least(1, window=window)
        self.rates = rates
        self.window = window
        super().__init__()

    @override
    def reset(self) -> None:
        #: The accuracies of the last validations, the newest last.
        self.accuracies: dict[str, list[float]] = {}
        #: The trends, :math:`\eta_m / c_m`, of the running epoch.
        self.trends: dict[str, float] = {}
        self._before: list[tuple[float, nn.Parameter, Tensor]] = []

    @override
    def begin(self, module: CRMTMixin) -> None:
        names = module.encoders.keys()
        check_modalities_of("rates", self.rates, names)
        self.accuracies, self.trends = {name: [] for name in names}, dict.fromkeys(names, 1.0)

    def factor(self, name: str) -> float:
        r"""The factor :math:`\eta_m` of a modality."""
        return of_modality(self.rates, name) * self.trends[name]

    @override
    def before_step(self, module: CRMTMixin) -> None:
        if self._before:  # an optimizer that evaluates several times a step, as LBFGS does, starts it from the first
            return
        self._before = [
            (self.factor(name), parameter, parameter.detach().clone())
            for name, parameters in own_parameters(module).items()
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
    def measure(self, logits: Inputs, target: Tensor) -> dict[str, Tensor]:
        labels, right = has_labels(target), most_probable(target)
        hits = {name: (answers(each, labels) == right).float() for name, each in logits.items()}
        return {name: (each.mean(dim=1) if labels else each).sum() for name, each in hits.items()}

    @override
    def learn(self, module: CRMTMixin, means: dict[str, float]) -> None:
        for name, accuracy in means.items():
            earlier = self.accuracies[name]
            usual = sum(earlier) / self.window
            if len(earlier) == self.window:
                # A modality without a single right answer has no trend.
                self.trends[name] = accuracy / usual if usual > 0 else 1.0
            self.accuracies[name] = [*earlier, accuracy][-self.window :]
