# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""How large gradient norms can be, predicted from cheap slopes: only decides what is worth an exact gradient."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

#: Widths of the kernel, penalties, and weights of the visible part that are tried.
_WIDTHS = (0.03, 0.1, 0.3, 1.0)
_PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
_SHARES = (0.0, 0.25, 0.5)
#: A norm this far below the largest known one cannot exceed it: how far below must not disturb the fit.
_FAR = 0.1
#: The least hidden part of a squared norm: below it, differences are rounding.
_LEAST = 0.005


class Prediction(NamedTuple):
    """Predicted gradient norms, each ``(n, K)``.

    Attributes:
        visible: squared norms of the part of the gradients along the probed directions.
        hidden: expected logarithmic norms of the other part.
        deviation: how uncertain these are.
    """

    visible: Tensor
    hidden: Tensor
    deviation: Tensor

    def lead(self, bar: Tensor) -> Tensor:
        """By how many standard deviations each norm is expected to exceed ``bar``, ``(K,)``.

        It is infinite where a slope or score is not a number: that must not hide its sample.
        """
        missing = (bar.square() - self.visible).clamp(min=0).log() / 2
        lead: Tensor = (self.hidden - missing) / self.deviation
        return lead.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)


class Screen:
    r"""Gaussian process regression of gradient norms on slopes and scores, with its own uncertainty.

    Directions :math:`V` see one part of a gradient, so only the other one must be predicted:

    .. math:: \|g_k\|^2 = \|y_k\|^2 + h_k^2, \qquad y_k = V^\top g_k, \qquad
        \log h_k \approx \mu_k + b \log \|y_k\| + f_k(y, s) \pm \sigma_k

    The slopes :math:`y` and scores :math:`s` of all classes together tell where in the network a sample is, and
    :math:`f_k` what the gradients of samples nearby were. Weight, kernel width and penalty are those with the smallest
    leave-one-out error, so that claims about new samples were checked on known ones.

    Args:
        slopes: of the samples to learn from, ``(n, r, K)``.
        scores: of these, ``(n, K)``.
        norms: their exact gradient norms, ``(n, K)``.

    >>> generator = torch.Generator().manual_seed(0)
    >>> gradients = torch.randn(40, 3, 2, generator=generator)
    >>> slopes, scores, norms = gradients[:, :2], gradients[:, 0], gradients.norm(dim=1)
    >>> screen = Screen(slopes[:30], scores[:30], norms[:30])
    >>> lead = screen.predict(slopes[30:], scores[30:]).lead(norms[30:].amax(dim=0))
    >>> bool((lead.gather(0, norms[30:].argmax(dim=0)[None]) > -3).all())
    True
    """

    def __init__(self, slopes: Tensor, scores: Tensor, norms: Tensor) -> None:
        self.tiny = torch.finfo(norms.dtype).tiny ** 0.5
        top = norms.amax(dim=0)
        self.moving = top > 0
        visible = slopes.square().sum(dim=1)
        self.slope_scale = visible.mean(dim=0).sqrt().clamp(min=self.tiny)
        self.centre = scores.mean(dim=0)
        spread = (scores - self.centre).square().sum(dim=1).mean().sqrt().clamp(min=self.tiny)
        # Samples as points at a mean squared length of 1: half of it from the slopes, half from the scores.
        self.weights = [1 / (2 * scores.shape[1] * self.slope_scale.square()), 1 / (2 * spread.square())]
        self.samples = [(slopes * self.weights[0]).flatten(1), (scores - self.centre) * self.weights[1]]
        self.lengths = self._lengths(visible, scores)
        norms = torch.maximum(norms, _FAR * top).clamp(min=self.tiny)
        hidden = torch.maximum(norms.square() - visible, _LEAST * norms.square()).log() / 2
        log_visible = self._log_visible(visible)

        distances = self._distances(slopes, scores, visible)
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
                    predicted = ((2 * (hidden - error)).exp() + visible).log() / 2
                    mean_error = float((predicted - norms.log()).square().mean())
                    if mean_error < best:
                        best, self.width, self.share, self.penalty, self.mean = mean_error, width, share, penalty, mean
                        self.inverse = (vectors / (values + penalty)) @ vectors.mT
                        self.dual = self.inverse @ (target - mean)
                        variance = (error.square() * others).mean(dim=0)
        # A class's own variance is a rough guess from n samples: halfway to that of all classes.
        self.deviation = (variance / 2 + variance.mean() / 2).sqrt()

    def predict(self, slopes: Tensor, scores: Tensor) -> Prediction:
        """Predict the norms of new samples; the less they resemble the known ones, the less certain the prediction.

        Args:
            slopes: of the new samples, ``(n, r, K)``.
            scores: of these, ``(n, K)``.
        """
        visible = slopes.square().sum(dim=1)
        kernel = (-self.width * self._distances(slopes, scores, visible)).exp()
        unknown = (1 - ((kernel @ self.inverse) * kernel).sum(dim=1)).clamp(min=0)
        deviation = (1 + unknown / self.penalty).sqrt()[:, None] * self.deviation
        # Nothing is known of a class whose score was constant around every known sample.
        deviation = torch.where(self.moving, deviation, torch.inf)
        hidden = self.mean + self.share * self._log_visible(visible) + kernel @ self.dual
        return Prediction(visible, hidden, deviation.clamp(min=self.tiny))

    def _log_visible(self, visible: Tensor) -> Tensor:
        relative: Tensor = visible.sqrt() / self.slope_scale
        return relative.clamp(min=0.05).log()

    def _lengths(self, visible: Tensor, scores: Tensor) -> Tensor:
        """Squared lengths of samples as points."""
        return visible @ self.weights[0] + (scores - self.centre).square().sum(dim=1) * self.weights[1]

    def _distances(self, slopes: Tensor, scores: Tensor, visible: Tensor) -> Tensor:
        """Squared distances to the known samples, by inner products: slopes are too many to be copied and scaled."""
        inner = slopes.flatten(1) @ self.samples[0].mT + (scores - self.centre) @ self.samples[1].mT
        return (self._lengths(visible, scores)[:, None] + self.lengths - 2 * inner).clamp(min=0)
