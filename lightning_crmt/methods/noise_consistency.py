# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Train to answer the same under different noise."""

from __future__ import annotations

import math

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lightning_crmt.checks import check_at_least
from lightning_crmt.criterion import Criterion
from lightning_crmt.methods.gaussian_noise import GaussianNoise
from lightning_crmt.methods.mixup import Mixup
from lightning_crmt.methods.parts.by_modality import ByModality
from lightning_crmt.methods.teacher_features import TeacherFeatures
from lightning_crmt.mixin import CRMTMixin
from lightning_crmt.modality import FusionOutput, Inputs
from lightning_crmt.noise import add_noise, check_sigma, check_sigma_names
from lightning_crmt.targets import Target, each_target
from lightning_crmt.training import Method, crmt_module


class NoiseConsistency(Method):
    r"""Consistency regularisation (Jeong and Shin, NeurIPS 2020, arXiv 2006.04062): the same answer whatever the noise.

    Every sample is trained on as m copies with noise of their own, :math:`n^m \sim \mathcal N(0, \sigma_m^2 I)` as in
    :class:`GaussianNoise`, whose place this takes:

    .. math:: \frac 1 m \sum_{i=1}^m L(x + n_i, y) + \lambda \, \frac 1 m \sum_{i=1}^m
        \mathrm{KL}(\bar p \,\Vert\, p_i) + \eta \, H(\bar p), \qquad \bar p = \frac 1 m \sum_{i=1}^m p_i

    with the probabilities :math:`p_i` of the classes for the i-th copy. The last two terms are means over samples, of
    any kind of target. Where targets are labels, they are of no and yes to each label, and means over labels too.

    Batches become m times larger, and so do memory and time; the released code divides the size of its batches by m
    instead. Methods that mix samples with others must come before, those that remember a batch after this one.

    Args:
        sigma: :math:`\sigma_m` in units of the inputs, a number for all modalities of real numbers, or by modality; one
            that is left out has none.
        copies: m, at least 2.
        weight: :math:`\lambda`, at least 0. The paper has 5 to 20 for images, less for more noise.
        entropy_weight: :math:`\eta`, at least 0.

    Raises:
        ValueError: if an argument is out of range; before training, if a standard deviation is of no modality of the
            module, ``GaussianNoise`` would add to the noise, or another method is on the wrong side of this one.
        TypeError: if a standard deviation is no number; in training, if one is of a modality of integers.
        RuntimeError: in training, if the loss is of other samples than those of ``training_batch``.

    >>> import torch
    >>> method = NoiseConsistency(sigma=0.25)
    >>> copies, target = method.transform(None, {"audio": torch.zeros(3, 5)}, torch.tensor([2, 0, 1]))
    >>> copies["audio"].shape, target
    (torch.Size([6, 5]), tensor([2, 0, 1, 2, 0, 1]))
    """

    source = "authors' code"

    def __init__(
        self, sigma: ByModality, *, copies: int = 2, weight: float = 10.0, entropy_weight: float = 0.5
    ) -> None:
        check_sigma(sigma)
        check_at_least(2, copies=copies)
        check_at_least(0, weight=weight, entropy_weight=entropy_weight)
        self.sigma = sigma
        self.copies = copies
        self.weight = weight
        self.entropy_weight = entropy_weight

    @override
    def begin(self, module: CRMTMixin) -> None:
        check_sigma_names(self.sigma, module.encoders.keys())

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        methods = crmt_module(pl_module, self).training_stage.methods
        own = methods.index(self)
        for place, method in enumerate(methods):
            name = type(method).__name__
            if isinstance(method, GaussianNoise | NoiseConsistency) and method is not self:
                raise ValueError(f"NoiseConsistency adds noise itself: leave {name} out, or its noise would be added")
            if isinstance(method, Mixup) and place > own:
                raise ValueError("NoiseConsistency must come after Mixup: copies must be of the same mixture")
            if isinstance(method, TeacherFeatures) and place < own:
                raise ValueError("NoiseConsistency must come before TeacherFeatures: teachers must see every copy")

    @override
    def transform(self, module: CRMTMixin, inputs: Inputs, target: Target) -> tuple[Inputs, Target]:
        copies = {name: self._repeated(value) for name, value in inputs.items()}
        return add_noise(copies, self.sigma), each_target(self._repeated, target)

    def _repeated(self, value: Tensor) -> Tensor:
        """The whole batch, then all of it again; samples that do not count leave as many of each copy."""
        return value.repeat(self.copies, *[1] * (value.dim() - 1))

    @override
    def term(self, module: CRMTMixin, output: FusionOutput, target: Target) -> Tensor:
        if len(output.logits) % self.copies:
            raise RuntimeError(
                f"NoiseConsistency made {self.copies} copies of every sample in `training_batch`, and the loss must be "
                f"of them all, got {len(output.logits)} samples"
            )
        logits = output.logits.reshape(self.copies, -1, output.logits.shape[1])
        divergence, entropy = disagreement(logits, module.crmt_criterion)
        return (self.weight * divergence + self.entropy_weight * entropy).mean()


def disagreement(logits: Tensor, criterion: Criterion) -> tuple[Tensor, Tensor]:
    r"""How far answers to the same samples differ, and how undecided their mean is, ``(B,)`` each.

    Args:
        logits: of m copies, ``(m, B, K)``.
        criterion: says whether they are of classes or of labels.

    Returns:
        :math:`\frac 1 m \sum_i \mathrm{KL}(\bar p \,\Vert\, p_i)` and :math:`H(\bar p)`; of labels, their means over
        labels.

    >>> import torch
    >>> certain = torch.tensor([[[30.0, -30.0]], [[-30.0, 30.0]]])  # of two answers, each certain, and opposite
    >>> divergence, entropy = disagreement(certain, Criterion())
    >>> round(divergence.item(), 2), round(entropy.item(), 2)  # 30 - log 2, and log 2
    (29.31, 0.69)
    """
    each = criterion.log_probabilities(logits)
    # Of logarithms alone: a probability that vanishes in floating point has one.
    mean = each.logsumexp(dim=0) - math.log(len(each))
    divergence = (mean.exp() * (mean - each)).sum(dim=-1).mean(dim=(0, -1))
    return divergence, -(mean.exp() * mean).sum(dim=-1).mean(dim=-1)
