# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Train on mixtures of samples."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from lightning_crmt.checks import check_positive, describe
from lightning_crmt.mixin import CRMTMixin
from lightning_crmt.modality import PRESENT, Inputs, modalities_of, present_of
from lightning_crmt.targets import MixedTarget, Target
from lightning_crmt.training import Method


class Mixup(Method):
    r"""Mixup (Zhang et al., ICLR 2018), with one share and one permutation for all modalities.

    .. math:: \tilde x^m = \lambda x^m + (1 - \lambda) x_\pi^m, \qquad
        L = \lambda \, \mathrm{CE}(h(\tilde x), y) + (1 - \lambda) \, \mathrm{CE}(h(\tilde x), y_\pi), \qquad
        \lambda \sim \mathrm{Beta}(\alpha, \alpha)

    The same permutation keeps the modalities of a sample together. A mixture has the modalities that both samples have;
    where that is none, the first stays as it is. Padded sequences are as long as the longer one. CRMT's margin term
    takes mixed targets too, so that on ``CRMTModule(rho=...)`` this is CRMT-Mix (Yang et al., ICLR 2024).

    Args:
        alpha: parameter of the Beta distribution, above 0; 1 is uniform.

    Raises:
        ValueError: if ``alpha`` is not above 0; in training, if a batch would be mixed twice.
        TypeError: in training, if an input is not floating point, or there is context that cannot be mixed.

    >>> method = Mixup(alpha=1.0)
    """

    source = "paper"

    def __init__(self, alpha: float = 1.0) -> None:
        check_positive(alpha=alpha)
        self.alpha = alpha

    @override
    def transform(self, module: CRMTMixin, inputs: Inputs, target: Target) -> tuple[Inputs, Target]:
        if not isinstance(target, Tensor):
            raise ValueError("a batch can be mixed once: keep one Mixup among the callbacks")
        for name, value in inputs.items():
            context = name.partition(".")[2]
            if not value.is_floating_point() and context != PRESENT and not context.endswith("mask"):
                raise TypeError(f"`inputs[{name!r}]` must be floating point to be mixed, got {describe(value)}")
        concentration = torch.tensor(self.alpha, dtype=torch.float32)  # half precision has no gamma distribution
        share = float(torch.distributions.Beta(concentration, concentration).sample())
        order = torch.randperm(len(target)).to(target.device)
        present = present_of(inputs)
        if len(present) == len(modalities_of(inputs)):
            nothing = ~torch.stack([each & each[order] for each in present.values()]).any(dim=0)
            order = torch.where(nothing, torch.arange(len(order), device=order.device), order)
        mixed = {}
        for name, value in inputs.items():
            if name.endswith(f".{PRESENT}"):
                mixed[name] = value & value[order]
            elif value.is_floating_point():
                mixed[name] = share * value + (1 - share) * value[order]
            else:  # 1 where there is something
                mixed[name] = torch.maximum(value, value[order])
        return mixed, MixedTarget(target, target[order], share)
