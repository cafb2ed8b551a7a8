# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Predict from cheap slopes how large gradient norms can be; only decides what is worth an exact gradient."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

#: Widths of the kernel, penalties, and weights of the visible part that are tried.
_WIDTHS = (0.03, 0.1, 0.3, 1.0)
_PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
_SHARES = (0.0, 0.25, 0.5)
#: A norm this far below the largest known one cannot become it: how far must not disturb the fit.
_FAR = 0.1
#: The least hidden part of a squared norm: below it, differences are rounding.
_LEAST = 0.005


class Prediction(NamedTuple):
    """What is expected of gradient norms, each ``(n, K)``.

    Attributes:
        visible: squared norms of the part of the gradients that was seen.
        hidden: expected logarithmic norms of the other part.
        deviation: how uncertain these are.
    """

    visible: Tensor
    hidden: Tensor
    deviation: Tensor

    def chance(self, bar: Tensor, caution: float = 1.0) -> Tensor:
        """Probability that each norm exceeds ``bar``, ``(K,)``, with ``caution`` times the deviation.

        It is 1 where a slope or score is not a number: that must not hide its sample.
        """
        missing = (bar.square() - self.visible).clamp(min=0).log() / 2
        chance: Tensor = torch.special.ndtr((self.hidden - missing) / (caution * self.deviation))
        return chance.nan_to_num(nan=1.0)


class Screen:
    r"""Gaussian process regression of gradient norms on slopes and scores, with its own uncertainty.

    Directions :math:`V` see one part of a gradient, so only the other one must be predicted:

    .. math:: \|g_k\|^2 = \|y_k\|^2 + h_k^2, \qquad y_k = V^\top g_k, \qquad
        \log h_k \approx \mu_k + b \log \|y_k\| + f_k(y, s) \pm \sigma_k

    The slopes :math:`y` and scores :math:`s` of all classes together tell where in the network a sample is, and
    :math:`f_k` what the gradients of samples nearby were. Weight, kernel width and penalty are those with the smallest
    leave-one-out error, so what is claimed of new samples was seen on the known ones.

    Args:
        slopes: of the samples to learn from, ``(n, K, r)``.
        scores: of these, ``(n, K)``.
        norms: their exact gradient norms, ``(n, K)``.

    >>> generator = torch.Generator().manual_seed(0)
    >>> gradients = torch.randn(40, 2, 3, generator=generator)
    >>> slopes, scores, norms = gradients[..., :2], gradients[..., 0], gradients.norm(dim=2)
    >>> screen = Screen(slopes[:30], scores[:30], norms[:30])
    >>> chance = screen.predict(slopes[30:], scores[30:]).chance(norms[30:].amax(dim=0))
    >>> bool((chance.gather(0, norms[30:].argmax(dim=0)[None]) > 0.01).all())
    True
    """

    def __init__(self, slopes: Tensor, scores: Tensor, norms: Tensor) -> None:
        self.tiny = torch.finfo(norms.dtype).tiny ** 0.5
        top = norms.amax(dim=0)
        self.moving = top > 0
        self.slope_scale = slopes.square().sum(dim=2).mean(dim=0).sqrt().clamp(min=self.tiny)
        self.centres = [(slopes / self.slope_scale[:, None]).flatten(1).mean(dim=0), scores.mean(dim=0)]
        self.spread = (scores - self.centres[1]).square().sum(dim=1).mean().sqrt().clamp(min=self.tiny)
        self.samples = self._place(slopes, scores)
        norms = torch.maximum(norms, _FAR * top).clamp(min=self.tiny)
        visible = slopes.square().sum(dim=2)
        hidden = torch.maximum(norms.square() - visible, _LEAST * norms.square()).log() / 2
        log_visible = self._log_visible(slopes)

        distances = torch.cdist(self.samples, self.samples).square()
        best = torch.inf
        for width in _WIDTHS:
            values, vectors = torch.linalg.eigh((-width * distances).exp())
            values = values.clamp(min=0)
            for share in _SHARES:
                target = hidden - share * log_visible
                mean = target.mean(dim=0)
                rotated = vectors.mT @ (target - mean)
                for penalty in _PENALTIES:
                    kept = values / (values + penalty)
                    # The fraction of each sample's fit that is not its own doing; 1 / n is that of the mean.
                    others = (1 - vectors.square() @ kept - 1 / len(norms)).clamp(min=1e-3)[:, None]
                    error = (target - mean - vectors @ (kept[:, None] * rotated)) / others
                    found = ((2 * (hidden - error)).exp() + visible).log() / 2
                    mean_error = float((found - norms.log()).square().mean())
                    if mean_error < best:
                        best, self.width, self.share, self.penalty, self.mean = mean_error, width, share, penalty, mean
                        self.inverse = (vectors / (values + penalty)) @ vectors.mT
                        self.dual = self.inverse @ (target - mean)
                        variance = (error.square() * others).mean(dim=0)
        # A class's own variance is a rough guess from n samples: halfway to that of all classes.
        self.deviation = (variance / 2 + variance.mean() / 2).sqrt()

    def predict(self, slopes: Tensor, scores: Tensor) -> Prediction:
        """What can be told of the norms of new samples; the less sure, the less they are like the known ones.

        Args:
            slopes: of the new samples, ``(n, K, r)``.
            scores: of these, ``(n, K)``.
        """
        kernel = (-self.width * torch.cdist(self._place(slopes, scores), self.samples).square()).exp()
        unknown = (1 - ((kernel @ self.inverse) * kernel).sum(dim=1)).clamp(min=0)
        deviation = (1 + unknown / self.penalty).sqrt()[:, None] * self.deviation
        # Nothing is known of a class that stood still at every known sample.
        deviation = torch.where(self.moving, deviation, torch.inf)
        hidden = self.mean + self.share * self._log_visible(slopes) + kernel @ self.dual
        return Prediction(slopes.square().sum(dim=2), hidden, deviation.clamp(min=self.tiny))

    def _log_visible(self, slopes: Tensor) -> Tensor:
        relative: Tensor = slopes.norm(dim=2) / self.slope_scale
        return relative.clamp(min=0.05).log()

    def _place(self, slopes: Tensor, scores: Tensor) -> Tensor:
        """Samples as points at a mean squared distance of about 1 from their centre."""
        at = (slopes / self.slope_scale[:, None]).flatten(1) - self.centres[0]
        return torch.cat(
            [at / math.sqrt(len(self.slope_scale)), (scores - self.centres[1]) / self.spread], dim=1
        ) / math.sqrt(2)
