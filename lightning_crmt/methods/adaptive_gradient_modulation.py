# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Modulate the gradient that flows through each modality's own response."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from typing_extensions import override

from lightning_crmt.checks import check_positive
from lightning_crmt.frozen_eval import evaluating
from lightning_crmt.methods.parts.epoch_range import epoch_range
from lightning_crmt.methods.parts.separate_gradients import SeparateGradients
from lightning_crmt.mixin import CRMTMixin
from lightning_crmt.modality import FusionOutput, Inputs, answer, modalities_of
from lightning_crmt.targets import Target, size_of
from lightning_crmt.training import BatchSums, Method, Needs, losses

#: Smaller probabilities are raised to this one, as in the released code.
_LEAST = 1e-8
#: Larger differences of ratios are cut to this one, as in the released code; the factor is exponential in them.
_LARGEST = 10.0


class AdaptiveGradientModulation(Method):
    r"""Adaptive gradient modulation (AGM of Li et al., ICCV 2023): slows a modality that is ahead of its history.

    Li, Li, Hu, Lei, Li and Zhou, Boosting Multi-modal Model Performance with Adaptive Gradient Modulation, ICCV 2023,
    arXiv 2308.07686.

    .. math:: \phi_m = \sum_{S \not\ni m} \tfrac{|S|! (M - |S| - 1)!}{M!} \left( f(S \cup m) - f(S) \right), \quad
        f(\emptyset) = 0, \qquad \ell_m = \mathrm{CE}(\phi_m, y), \qquad
        r_m = \exp \left( \tfrac{M}{M - 1} (\bar \ell - \ell_m) \right), \qquad
        \kappa_m = \exp(\alpha \min(\tau_m - r_m, 10))

    f(S) are the logits with the inputs of all modalities but S at zero; :math:`\bar \ell` is the mean over modalities,
    and :math:`\tau_m` is :math:`r_m` of the mean of :math:`\ell_m` over the steps so far, 1 in the first. The
    responses add up to the logits, and the gradient that flows through :math:`\phi_m` is multiplied by
    :math:`\kappa_m`, in encoders and head: above 1 for a modality that is behind, below 1 for one that is ahead. The
    losses are over the effective batch, and probabilities below 1e-8 count as that.

    As in the released code, for any number of modalities, with two differences. A present modality has the features
    of the training pass in every f(S), not those of another pass in evaluation mode, so that the responses are those of
    one function; the zeros do pass through their encoder and the head, in evaluation mode, which leaves
    BatchNorm's statistics alone. And the released code then clips the norm of all gradients to 1 where the head's are
    large: choose ``Trainer(gradient_clip_val=1.0)``, which acts after this. Terms of the loss that do not go through
    the logits, such as CRMT's margin regularisation, are not modulated.

    It costs :math:`2^M - 1` passes of the head, and with gradient accumulation, where the factors are known only when
    the gradients are there, M more backward passes. Mixed samples count with the shares of their two classes. Under
    fp16 the factors act on unscaled gradients, or on the loss itself; a step that the scaler skips counts in the means.

    Args:
        alpha: strength of the modulation, above 0; 2.5 on AV-MNIST and 1.5 on CREMA-D, as recalled from the
            experiments.
        start_epoch: the first epoch that is modulated, counted from 0.
        end_epoch: the last epoch that is modulated; by default the last of the fit.

    Raises:
        ValueError: if an argument is out of range; before training, if there is one modality only, or optimization is
            manual; in training, if the head does not say which features it was given.

    >>> method = AdaptiveGradientModulation(alpha=1.5)
    """

    source = "authors' code"
    needs = Needs.MODALITIES | Needs.STEPS
    saved = ("means", "steps")

    def __init__(self, alpha: float = 1.5, *, start_epoch: int = 0, end_epoch: int | None = None) -> None:
        check_positive(alpha=alpha)
        self.alpha = alpha
        self.epochs = epoch_range(start_epoch, end_epoch)
        self.reset()

    @override
    def reset(self) -> None:
        #: The factors :math:`\kappa_m` of the last step.
        self.coefficients: dict[str, float] = {}
        #: The mean losses :math:`\ell_m` over the steps so far, and the number of these steps.
        self.means: dict[str, float] = {}
        self.steps = 0
        self._blank: dict[str, Tensor] = {}
        self.forget_batches()

    @override
    def forget_batches(self) -> None:
        self._sums, self._flows = BatchSums(), SeparateGradients()

    @override
    def transform(self, module: CRMTMixin, inputs: Inputs, target: Target) -> tuple[Inputs, Target]:
        self._blank = {name: torch.zeros_like(value[:1]) for name, value in modalities_of(inputs).items()}
        return inputs, target

    @override
    def term(self, module: CRMTMixin, output: FusionOutput, target: Target) -> Tensor | None:
        trainer = module.trainer
        if not torch.is_grad_enabled() or trainer.current_epoch not in self.epochs:
            return None
        responses = self._responses(module, output)
        of_batch = losses(responses, target, _LEAST, output.present)
        self._sums.add(of_batch, size_of(target), output.present)
        # The gradient of the stage's loss at the logits: what flows through each response.
        logits = output.logits.detach().requires_grad_(True)
        (pull,) = torch.autograd.grad(module.stage_objective.loss(output._replace(logits=logits), target), logits)
        flows = {name: (pull * response).sum() for name, response in responses.items()}
        if trainer.accumulate_grad_batches > 1:
            parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
            for name, flow in flows.items():
                self._flows.add(name, flow, parameters, trainer)
            return None
        self._advance(trainer)
        excess = torch.stack([(self.coefficients[name] - 1) * flow for name, flow in flows.items()]).sum()
        return excess - excess.detach()  # a gradient, and no loss

    @override
    def before_step(self, module: CRMTMixin) -> None:
        if not self._flows:
            return
        self._advance(module.trainer)
        for name, (parameters, gradients) in self._flows.take(module.trainer).items():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if parameter.grad is not None:
                    parameter.grad.add_(gradient.to(parameter.grad.dtype), alpha=self.coefficients[name] - 1)

    def _advance(self, trainer: Trainer) -> None:
        """Compute the factors from the losses of the effective batch, and update the means."""
        now = self._sums.means(trainer)
        # Before the first step all means are 0: equal.
        means = self.means or dict.fromkeys(now, 0.0)
        self.coefficients = response_coefficients(now, means, self.alpha)
        self.steps += 1
        self.means = {name: means[name] + (value - means[name]) / self.steps for name, value in now.items()}

    def _responses(self, module: CRMTMixin, output: FusionOutput) -> dict[str, Tensor]:
        names = list(module.encoders.keys())
        given = self.features_of(output)
        if set(self._blank) != set(names):
            raise ValueError(
                "AdaptiveGradientModulation needs to see the batch: a `training_step` of your own must begin with "
                "`inputs, target = self.training_batch(batch)`"
            )
        with evaluating(*module.encoders.values(), module.head):
            zeros = {name: module.encoders[name](self._blank[name]) for name in names}
            values: dict[frozenset[str], Tensor] = {frozenset(names): output.logits}
            for size in range(1, len(names)):
                for present in combinations(names, size):
                    features = {
                        name: given[name] if name in present else zeros[name].expand_as(given[name]) for name in names
                    }
                    # What a sample lacks changes no value: its response there is 0.
                    values[frozenset(present)] = answer(module.head, features, output.present).logits
        return shapley_responses(values)


def shapley_responses(values: Mapping[frozenset[str], Tensor]) -> dict[str, Tensor]:
    """Shapley values of each modality from the value of every set but the empty one, whose value is 0.

    >>> values = {frozenset("a"): torch.tensor(1.0), frozenset("v"): torch.tensor(2.0)}
    >>> shapley_responses({**values, frozenset("av"): torch.tensor(5.0)})
    {'a': tensor(2.), 'v': tensor(3.)}
    """
    everyone = sorted(frozenset().union(*values))
    count = len(everyone)
    responses = {}
    for name in everyone:
        parts = []
        for present, value in values.items():
            others = len(present) - 1 if name in present else len(present)
            weight = math.factorial(others) * math.factorial(count - others - 1) / math.factorial(count)
            parts.append(weight * value if name in present else -weight * value)
        responses[name] = torch.stack(parts).sum(dim=0)
    return responses


def response_coefficients(now: Mapping[str, float], means: Mapping[str, float], alpha: float) -> dict[str, float]:
    r"""The factors :math:`\kappa_m` from the losses of a step and their means over the steps before it.

    >>> factors = response_coefficients({"audio": 1.0, "image": 2.0}, {"audio": 1.5, "image": 1.5}, alpha=0.5)
    >>> factors["audio"] == math.exp(0.5 * (1 - math.e)), factors["image"] == math.exp(0.5 * (1 - math.exp(-1)))
    (True, True)
    """
    ratios, usual = _ratios(now), _ratios(means)
    return {name: math.exp(alpha * min(usual[name] - ratios[name], _LARGEST)) for name in now}


def _ratios(values: Mapping[str, float]) -> dict[str, float]:
    count = len(values)
    mean = sum(values.values()) / count
    return {name: math.exp(count / (count - 1) * (mean - value)) for name, value in values.items()}
