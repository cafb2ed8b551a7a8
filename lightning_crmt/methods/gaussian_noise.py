# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Train on inputs with Gaussian noise."""

from __future__ import annotations

from typing_extensions import override

from lightning_crmt.methods.parts.by_modality import ByModality
from lightning_crmt.mixin import CRMTMixin
from lightning_crmt.modality import Inputs
from lightning_crmt.noise import add_noise, check_sigma, check_sigma_names
from lightning_crmt.targets import Target
from lightning_crmt.training import Method


class GaussianNoise(Method):
    r"""Noise augmentation (Cohen et al., ICML 2019): what a classifier needs that is to be smoothed by such noise.

    .. math:: L(x + n, y), \qquad n^m \sim \mathcal N(0, \sigma_m^2 I)

    with fresh noise on every entry of every batch, and a standard deviation for each modality, 0 for one that is
    trusted. Tokens, context, and what fills the gaps of samples that lack a modality stay as they are. Nothing is cut
    off at the bounds of inputs, as the noise of the smoothed classifier is not either.

    The order of callbacks is that of the changes. After ``Mixup`` mixtures have noise of the whole size; before it,
    noise is mixed too, and smaller by :math:`\sqrt{\lambda^2 + (1 - \lambda)^2}`. After ``AdversarialTraining`` the
    attack sees clean inputs; before it, those with the noise that is trained on.

    Args:
        sigma: :math:`\sigma_m` in units of the inputs, a number for all modalities of real numbers, or by modality; one
            that is left out has none.

    Raises:
        ValueError: if a standard deviation is negative or not finite, or all are 0; before training, if one is of no
            modality of the module.
        TypeError: if one is no number; in training, if one is of a modality of integers.

    >>> import torch
    >>> method = GaussianNoise(sigma={"image": 0.2, "audio": 0.5})  # Trainer(callbacks=[method]) trains with it
    >>> clean = {"image": torch.zeros(1000, 4), "audio": torch.zeros(1000, 4)}
    >>> noisy, _ = method.transform(None, clean, torch.zeros(1000))
    >>> [round(noisy[name].std().item(), 1) for name in ("image", "audio")]
    [0.2, 0.5]
    """

    source = "authors' code"

    def __init__(self, sigma: ByModality) -> None:
        check_sigma(sigma)
        self.sigma = sigma

    @override
    def begin(self, module: CRMTMixin) -> None:
        check_sigma_names(self.sigma, module.encoders.keys())

    @override
    def transform(self, module: CRMTMixin, inputs: Inputs, target: Target) -> tuple[Inputs, Target]:
        return add_noise(inputs, self.sigma), target
