# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Predict from cheap slopes which gradient norms can be large; only decides what is worth an exact gradient."""

from __future__ import annotations

import torch
from torch import Tensor

#: Weights tried for the visible part of the gradient, and ridge penalties relative to the mean eigenvalue.
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
_PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


class Screen:
    r"""Ridge regression of logarithmic gradient norms on slopes along a few directions, with its own uncertainty.

    .. math:: \log \|g_k\| \approx \mu_k + b \log \|y_k\| + \langle \beta_k, y \rangle \pm \sigma_k

    for one sample with slopes :math:`y_k = V^\top g_k` of all classes along common directions :math:`V`. The second
    term is the part of the gradient that the directions see. The third reads from all classes together where in the
    network the sample is: what the Jacobian does along :math:`V` tells much about what it does elsewhere. Weight
    and penalty are those with the smallest leave-one-out error, so what is claimed of new samples was seen on them.

    Args:
        slopes: of the samples to learn from, ``(n, K, r)``.
        norms: their exact gradient norms, ``(n, K)``.
    """

    def __init__(self, slopes: Tensor, norms: Tensor) -> None:
        tiny = torch.finfo(norms.dtype).tiny
        top = norms.amax(dim=0)
        self.moving = top > 0
        self.scale = slopes.square().sum(dim=2).mean(dim=0).sqrt().clamp(min=tiny)
        # A norm far below the largest cannot become it; how far must not disturb the fit.
        target = torch.maximum(norms, 0.1 * top).clamp(min=tiny).log()
        seen, features = self._read(slopes)
        self.mean, self.mean_seen, self.mean_features = target.mean(0), seen.mean(0), features.mean(0)
        target, seen, self.features = target - self.mean, seen - self.mean_seen, features - self.mean_features

        eigenvalues, vectors = torch.linalg.eigh(self.features @ self.features.mT)
        eigenvalues = eigenvalues.clamp(min=0)
        best = torch.inf
        for share in _SHARES:
            rest = target - share * seen
            rotated = vectors.mT @ rest
            for penalty in _PENALTIES:
                ridge = (penalty * eigenvalues.mean()).clamp(min=tiny)
                kept = eigenvalues / (eigenvalues + ridge)
                # The fraction of each sample's fit that is not its own doing; 1 / n is that of the mean.
                others = 1 - vectors.square() @ kept - 1 / len(norms)
                others = others.clamp(min=1e-3)[:, None]
                error = (rest - vectors @ (kept[:, None] * rotated)) / others
                mean_error = float(error.square().mean())
                if mean_error < best:
                    best, self.share, self.ridge = mean_error, share, ridge
                    self.inverse = (vectors / (eigenvalues + ridge)) @ vectors.mT
                    self.dual = self.inverse @ rest
                    variance = (error.square() * others).mean(dim=0)
        # A class's own variance is a rough guess from n samples: halfway to that of all classes.
        self.deviation = (variance / 2 + variance.mean() / 2).sqrt()

    def upper(self, slopes: Tensor, confidence: float) -> Tensor:
        """Logarithmic norms that new samples ``(n, K, r)`` are not expected to exceed, ``(n, K)``.

        Args:
            slopes: of the new samples.
            confidence: how many standard deviations above the prediction. They grow for samples unlike the known ones.
        """
        seen, features = self._read(slopes)
        features = features - self.mean_features
        kernel = features @ self.features.mT
        unknown = features.square().sum(dim=1) - ((kernel @ self.inverse) * kernel).sum(dim=1)
        spread = (1 + unknown.clamp(min=0) / self.ridge).sqrt()[:, None] * self.deviation
        upper = self.mean + self.share * (seen - self.mean_seen) + kernel @ self.dual + confidence * spread
        # Nothing is known of a class that stood still at every known sample.
        return torch.where(self.moving, upper, torch.inf)

    def _read(self, slopes: Tensor) -> tuple[Tensor, Tensor]:
        scaled = slopes / self.scale[:, None]
        return scaled.norm(dim=2).clamp(min=0.05).log(), scaled.flatten(1) / scaled[0].numel() ** 0.5
