# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Stop each modality when it begins to overfit."""

from __future__ import annotations

from functools import partial
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lightning_crmt.checks import check_at_least
from lightning_crmt.methods.parts.modality_parts import head_parts, own_parameters
from lightning_crmt.methods.parts.validated_method import ValidatedMethod
from lightning_crmt.mixin import CRMTMixin
from lightning_crmt.modality import Inputs
from lightning_crmt.training import crmt_module, losses


class ModalityEarlyStopping(ValidatedMethod):
    r"""Modality-specific early stopping (MSES, after Fujimori et al., ACPR 2019): modalities that overfit stop.

    After Fujimori, Endo, Kawai and Mochizuki, Modality-Specific Learning Rate Control for Multimodal Classification,
    ACPR 2019.

    .. math:: \tilde\ell_m(t) = 0.6 \, \ell_m(t - 1) + 0.4 \, \ell_m(t)

    with the cross-entropy :math:`\ell_m(t)` of the modality's own logits on the validation data after epoch t. When
    :math:`\tilde\ell_m` has had no new minimum for more than ``patience`` epochs, the encoder and its part of the head
    get back the weights that they had at the minimum, and are no longer trained. When all have stopped, so does the
    fit.

    The formula is that of the released comparison in AGM's code (Li et al., ICCV 2023); of the original paper
    only the abstract was read, and its authors are recalled from memory. In the released code the whole model is reset;
    here only the modality that stops. The paper trains a classifier for each modality beside the joint one, as
    ``UnimodalLosses(heads="own")`` does.

    A stopped modality stays in evaluation mode, and the optimizer is shown no gradients of it, so that neither momentum
    nor weight decay move it. Under DDP its gradients are still computed, so the strategy needs no option for unused
    parameters. ``Trainer(min_epochs=...)`` keeps the fit going when all have stopped. Mixed
    samples make no difference: losses are of validation data.

    Args:
        patience: how many epochs may pass without a new minimum, at least 0.
        smoothing: the weight of the previous loss, at least 0 and below 1.

    Raises:
        ValueError: if an argument is out of range; before training, if there is no validation, or optimization is
            manual.

    >>> method = ModalityEarlyStopping(patience=10)
    """

    source = "others' code"
    saved = ("stopped", "best_epochs", "best_losses", "best_weights", "last_losses")

    def __init__(self, patience: int = 10, *, smoothing: float = 0.6) -> None:
        check_at_least(0, patience=patience)
        if not 0 <= smoothing < 1:
            raise ValueError(f"`smoothing` must be at least 0 and below 1, got {smoothing}")
        self.patience = patience
        self.smoothing = smoothing
        super().__init__()

    @override
    def reset(self) -> None:
        #: The modalities that have stopped, in their order.
        self.stopped: list[str] = []
        #: The epoch of each modality's smallest smoothed loss, counted from 0; that loss; and the weights it had.
        self.best_epochs: dict[str, int] = {}
        self.best_losses: dict[str, float] = {}
        self.best_weights: dict[str, dict[str, Tensor]] = {}
        self.last_losses: dict[str, float] = {}

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        module = crmt_module(pl_module, self)
        for part in (part for name in self.stopped for part in module.encoders[name].modules() if part.training):
            part.training = False
            module.training_stage.push(self, undo=partial(setattr, part, "training", True))

    @override
    def before_step(self, module: CRMTMixin) -> None:
        own = own_parameters(module)
        for parameter in (parameter for name in self.stopped for parameter in own[name]):
            parameter.grad = None

    # --- when to stop

    @override
    def measure(self, logits: Inputs, target: Tensor) -> dict[str, Tensor]:
        return losses(logits, target)

    @override
    def learn(self, module: CRMTMixin, means: dict[str, float]) -> None:
        epoch = module.current_epoch
        for name, loss in means.items():
            if name in self.stopped:
                continue
            smoothed = self.smoothing * self.last_losses.get(name, loss) + (1 - self.smoothing) * loss
            self.last_losses[name] = loss
            if name not in self.best_losses or smoothed < self.best_losses[name]:
                self.best_losses[name], self.best_epochs[name] = smoothed, epoch
                # Copies in main memory: memory of a device is scarce.
                self.best_weights[name] = {key: value.cpu().clone() for key, value in _weights(module, name).items()}
            elif epoch - self.best_epochs[name] > self.patience:
                best = self.best_weights.pop(name)
                for key, value in _weights(module, name).items():
                    value.copy_(best[key])
                self.stopped.append(name)
        if len(self.stopped) == len(module.encoders):
            module.trainer.should_stop = True


def _weights(module: CRMTMixin, name: str) -> dict[str, Tensor]:
    """Parameters and buffers of an encoder, and of its part of the head; not copies."""
    state = module.encoders[name].state_dict()
    encoder = {f"encoder.{key}": value for key, value in state.items() if isinstance(value, Tensor)}
    return encoder | {f"head.{key}": value.detach() for key, value in head_parts(module)[name].items()}
