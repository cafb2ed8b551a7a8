# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Slow the dominant modality down by scaling the gradients of its encoder."""

# No postponed annotations: jsonargparse checks the fields of a dataclass by them.
import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_crmt.checks import check_at_least, check_positive
from lightning_crmt.methods.parts.epoch_range import epoch_range
from lightning_crmt.methods.parts.modality_parts import encoder_parameters
from lightning_crmt.mixin import CRMTMixin
from lightning_crmt.modality import FusionOutput
from lightning_crmt.targets import Target, size_of
from lightning_crmt.training import BatchSums, Method, Needs, confidences

#: Which tensors of an encoder: all, those of two dimensions and more, or those of convolutions over images.
Modulated: TypeAlias = Literal["all", "matrices", "convolutions"]
#: What a modality is compared with if there are several others: their mean, or their minimum.
Others: TypeAlias = Literal["mean", "min"]

_LEAST_DIMENSIONS = {"all": 0, "matrices": 2, "convolutions": 4}


@dataclass(eq=False, repr=False)
class GradientModulation(Method):
    r"""On-the-fly gradient modulation (OGM-GE of Peng et al., CVPR 2022): the dominant modality's encoder is slowed.

    Peng, Wei, Deng, Wang and Hu, Balanced Multimodal Learning via On-the-fly Gradient Modulation, CVPR 2022,
    arXiv 2203.15332.

    .. math:: s_m = \sum_i \mathrm{softmax}(h_m(x_i))_{y_i}, \qquad \rho_m = \frac{s_m}{s_{\text{other}}}, \qquad
        k_m = \begin{cases} 1 - \tanh(\alpha \rho_m) & \rho_m > 1 \\ 1 & \text{else} \end{cases}, \qquad
        g_m \leftarrow k_m g_m + \xi, \quad \xi \sim N(0, \mathrm{std}(g_m)^2)

    with the modality's own logits :math:`h_m` and the gradients :math:`g_m` of each tensor of its encoder; the noise
    (GE, generalisation enhancement) is as large as the gradient before modulation, and every encoder gets it. The sums
    are over the effective batch, so that gradient accumulation and several processes change nothing.

    As in the released code, with two differences. That code modulates the weights of 2D convolutions alone, which would
    leave other encoders unchanged; here all matrices are modulated by default. And it handles two modalities only;
    here, with more, the other is the mean, or the minimum, of the others. Under Adam, which divides by the size of the
    gradients, a constant :math:`k_m` has no effect, only its changes and the noise do; the paper trains with SGD.

    Mixed samples count with the shares of their two classes. Under fp16 the gradients are already unscaled, and a step
    that the scaler skips stays skipped.

    Args:
        alpha: strength of the modulation, above 0; 0.1 to 0.8, as recalled from the experiments.
        noise: whether to add the noise (OGM-GE) or not (OGM).
        parameters: which tensors of an encoder: ``"matrices"``, those of two dimensions or more, ``"convolutions"``,
            those of four, as released, or ``"all"``, biases too.
        others: with three modalities or more, compare with their ``"mean"``, or with the ``"min"``.
        start_epoch: the first epoch that is modulated, counted from 0.
        end_epoch: the last epoch that is modulated, 50 in the released code; by default the last of the fit.
        seed: of the noise, which depends on the seed and the step alone and is the same in every process.

    Raises:
        ValueError: if an argument is out of range; before training, if there is one modality only, an encoder has none
            of the tensors asked for, or optimization is manual.

    >>> method = GradientModulation(alpha=0.8, noise=False)
    """

    source = "authors' code"
    needs = Needs.MODALITIES | Needs.STEPS

    alpha: float = 0.3
    _: KW_ONLY
    noise: bool = True
    parameters: Modulated = "matrices"
    others: Others = "mean"
    start_epoch: int = 0
    end_epoch: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_positive(alpha=self.alpha)
        if self.parameters not in _LEAST_DIMENSIONS:
            raise ValueError(f"`parameters` must be among {list(_LEAST_DIMENSIONS)}, got {self.parameters!r}")
        if self.others not in ("mean", "min"):
            raise ValueError(f"`others` must be 'mean' or 'min', got {self.others!r}")
        check_at_least(0, seed=self.seed)
        self.epochs = epoch_range(self.start_epoch, self.end_epoch)
        self.reset()

    @override
    def reset(self) -> None:
        #: The factors :math:`k_m` of the last step.
        self.coefficients: dict[str, float] = {}
        self.forget_batches()

    @override
    def forget_batches(self) -> None:
        self._sums = BatchSums()

    @override
    def begin(self, module: CRMTMixin) -> None:
        for name, parameters in encoder_parameters(module).items():
            if parameters and not self._modulated(parameters):
                raise ValueError(
                    f"`parameters='{self.parameters}'` must leave something to modulate in every encoder, "
                    f"but that of {name!r} has no such tensor; choose 'matrices' or 'all'"
                )

    @override
    def term(self, module: CRMTMixin, output: FusionOutput, target: Target) -> None:
        if torch.is_grad_enabled() and module.current_epoch in self.epochs:
            with torch.no_grad():
                logits = module.head.unimodal_logits(output.scores)
                self._sums.add(confidences(logits, target, output.present), size_of(target), output.present)

    @override
    def before_step(self, module: CRMTMixin) -> None:
        if not self._sums:
            return
        self.coefficients = modulation_coefficients(self._sums.means(module.trainer), self.alpha, self.others)
        drawing: dict[torch.device, torch.Generator] = {}
        for name, parameters in encoder_parameters(module).items():
            for gradient in (parameter.grad for parameter in self._modulated(parameters)):
                if gradient is None:
                    continue
                spread = gradient.std() if gradient.numel() > 1 else None
                gradient.mul_(self.coefficients[name])
                if self.noise and spread is not None:
                    gradient.add_(spread * self._noise(gradient, module.trainer.global_step, drawing))

    def _modulated(self, parameters: list[nn.Parameter]) -> list[nn.Parameter]:
        return [parameter for parameter in parameters if parameter.dim() >= _LEAST_DIMENSIONS[self.parameters]]

    def _noise(self, like: Tensor, step: int, drawing: dict[torch.device, torch.Generator]) -> Tensor:
        """Standard normal noise that depends on the seed and the step: nothing to save, and equal everywhere."""
        if like.device not in drawing:
            drawing[like.device] = torch.Generator(like.device).manual_seed(self.seed * 1_000_003 + step)
        return torch.randn(like.shape, generator=drawing[like.device], device=like.device, dtype=like.dtype)


def modulation_coefficients(confidence: Mapping[str, float], alpha: float, others: Others = "mean") -> dict[str, float]:
    """The factors :math:`k_m` of :class:`GradientModulation` from the confidences :math:`s_m`.

    >>> factors = modulation_coefficients({"audio": 6.0, "image": 3.0}, alpha=0.5)
    >>> factors == {"audio": 1 - math.tanh(0.5 * 2), "image": 1.0}
    True
    """
    factors = {}
    for name, own in confidence.items():
        rest = [value for other, value in confidence.items() if other != name]
        compared = min(rest) if others == "min" else sum(rest) / len(rest)
        # Without confidence among the others the ratio is infinite.
        ratio = own / compared if compared > 0 else math.inf
        factors[name] = 1 - math.tanh(alpha * ratio) if ratio > 1 else 1.0
    return factors
