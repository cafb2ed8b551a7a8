# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The certificate of a smoothed classifier: true with a stated probability."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_crmt.certification import Certificate
from lightning_crmt.smoothing.ablation import Ablation
from lightning_crmt.soundness import Soundness


@dataclass(frozen=True)
class SmoothedCertificate:
    r"""Robustness of the predictions of a *smoothed* classifier, in the l2 norm and in units of the inputs.

    The base classifier answers the predicted class with probability p over its noise, and p is above ``lower`` by a
    test that errs with probability at most ``alpha`` for each sample, for all radii and budgets of it at once. Then the
    smoothed classifier cannot change its mind while

    .. math:: q \, \Phi\Big( \Phi^{-1}\Big( \frac{p - (1 - q)}{q} \Big) - a \Big) > \tfrac12, \qquad
        a^2 = \sum_m \|\delta^m\|_2^2 / \sigma_m^2, \qquad q = \prod_m q^m(r_m)

    with Gaussian noise of standard deviation :math:`\sigma_m` on some modalities, and on others the probability
    :math:`q^m` of :class:`Ablation` that none of :math:`r_m` replaced tokens is kept. Without tokens this is
    :math:`a < R = \Phi^{-1}(p)`: Cohen et al. (ICML 2019) in units of the noise, and the radius of a set of modalities
    is :math:`R \min_m \sigma_m`. With both: with probability q the masked text is the same as before, where the share
    of draws with the predicted class is at least :math:`(p - (1 - q)) / q`; of this share Gaussian noise keeps
    :math:`\Phi(\Phi^{-1}(\cdot) - a)` after a shift by a, in units of the noise, and of the rest perhaps nothing. So
    the class keeps at least the left-hand side, and no other class can exceed that if it is above one half.

    It is about the smoothed classifier and no other, with Gaussian noise of real numbers, as floating point comes near
    it. B is the number of samples.

    Attributes:
        prediction: class of each sample, ``(B,)``; -1 where the smoothed classifier abstains.
        lower: lower bound of the probability of that class, ``(B,)`` in double precision.
        sigma: standard deviation by modality, ``(B,)`` each, in units of the inputs; infinite for samples without it.
        alpha: the probability with which a sample's claims may be wrong.
        draws: how often the base classifier was asked, ``(B,)``.
        num_classes: K.
        ablations: of modalities of tokens.
        lengths: number of tokens of each sample, ``(B,)``, by modality.
        missing: modalities that the smoothed classifier went without.
        soundness: always ``PROBABILISTIC``.

    >>> certificate = SmoothedCertificate(
    ...     prediction=torch.tensor([2, -1]), lower=torch.tensor([0.9772, 0.4]).double(), alpha=0.001,
    ...     sigma={"audio": torch.full((2,), 0.5), "image": torch.full((2,), 0.25)}, draws=torch.tensor([640, 64]),
    ...     num_classes=10)
    >>> certificate.radius(), certificate.radius(["audio"])  # an abstention has none
    (tensor([0.4998, 0.0000], dtype=torch.float64), tensor([0.9995, 0.0000], dtype=torch.float64))
    >>> certificate.tolerates({"audio": 0.6, "image": 0.2}), certificate.tolerates({"audio": 0.95, "image": 0.2})
    (tensor([ True, False]), tensor([False, False]))
    """

    prediction: Tensor
    lower: Tensor
    sigma: Mapping[str, Tensor]
    alpha: float
    draws: Tensor
    num_classes: int
    ablations: Mapping[str, Ablation] = field(default_factory=dict)
    lengths: Mapping[str, Tensor] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    soundness: Soundness = field(default=Soundness.PROBABILISTIC, init=False)

    @property
    def abstained(self) -> Tensor:
        """Where the smoothed classifier gives no answer, ``(B,)`` bool: neither right nor wrong."""
        return self.prediction < 0

    @property
    def expected_wrong(self) -> float:
        """How many of the certificates are wrong in the mean over draws, at most: alpha for each sample.

        Also for those that abstain: other draws would have given some of them a certificate.
        """
        return self.alpha * len(self.prediction)

    def radius(self, modalities: Iterable[str] | None = None) -> Tensor:
        r"""l2 radius of the ball over ``modalities`` in which the prediction stays, ``(B,)`` in double precision.

        .. math:: \Phi^{-1}(p) \, \min_{m \in S} \sigma_m

        0 where it abstains; infinite for samples that have none of them.

        Args:
            modalities: the set S that is perturbed, all others being clean; all with Gaussian noise by default.

        Raises:
            ValueError: if a name has no Gaussian noise, or none is given.
        """
        names = self._known("modalities", self.sigma if modalities is None else modalities, self.sigma)
        least = torch.stack([self.sigma[name].to(self.lower) for name in names]).amin(dim=0)
        whitened = torch.special.ndtri(self.lower.clamp(min=0.5))
        # Infinite, of samples that have none of them, stays so.
        return torch.where(self.abstained, 0.0, torch.where(least.isinf(), least, whitened * least))

    def tolerates(self, budgets: Mapping[str, float | Tensor]) -> Tensor:
        """Whether the prediction stays when each modality is perturbed by at most its own budget, ``(B,)`` bool.

        Args:
            budgets: by modality an l2 radius, or of tokens how many are replaced; a number or one per sample ``(B,)``.
                A modality left out stays clean.

        Raises:
            ValueError: if a name has no noise or a budget is negative or NaN.
        """
        return ~self.abstained & (self.needed(budgets) < self.lower)

    def needed(self, budgets: Mapping[str, float | Tensor]) -> Tensor:
        """The probability that the class must exceed for these budgets to be tolerated, ``(B,)``; 1 for never.

        The arguments are those of :meth:`tolerates`.
        """
        self._known("budgets", budgets, [*self.sigma, *self.ablations])
        square = torch.zeros_like(self.lower)
        untouched = torch.ones_like(self.lower)
        for name, each in budgets.items():
            budget = torch.as_tensor(each, dtype=self.lower.dtype, device=self.lower.device)
            if budget.shape not in ((), self.lower.shape) or not (budget >= 0).all():
                raise ValueError(f"`budgets[{name!r}]` must be >= 0, a number or shape (B,), got {each}")
            sigma = self.sigma.get(name, budget).to(self.lower)
            if name in self.ablations:
                untouched = untouched * self.ablations[name].untouched(self.lengths[name], budget.floor())
            else:
                square = square + torch.where(sigma.isinf(), 0.0, budget / sigma).square()
        return needed_probability(square.sqrt(), untouched)

    def replacements(self, modality: str) -> Tensor:
        """How many tokens of a modality may be replaced while all else stays clean, ``(B,)``; -1 where it abstains.

        Raises:
            ValueError: if the modality has no ablation.
        """
        self._known("modality", [modality], self.ablations)
        most = torch.full_like(self.prediction, -1)
        for count in range(int(self.lengths[modality].max()) + 1):
            safe = self.tolerates({modality: count}) & (self.lengths[modality] >= count)
            if not bool(safe.any()):
                break
            most = torch.where(safe, count, most)
        return most

    def to(self, device: torch.device | str) -> SmoothedCertificate:
        """The same certificate on a device, as the Trainer moves what ``predict_step`` returns."""
        return replace(
            self,
            prediction=self.prediction.to(device),
            lower=self.lower.to(device),
            draws=self.draws.to(device),
            sigma={name: each.to(device) for name, each in self.sigma.items()},
            lengths={name: each.to(device) for name, each in self.lengths.items()},
        )

    def _known(self, argument: str, names: Iterable[str], known: Iterable[str]) -> list[str]:
        chosen = [names] if isinstance(names, str) else list(names)
        if not chosen or any(name not in [*known] for name in chosen):
            raise ValueError(f"`{argument}` must name modalities with noise, among {[*known]}, got {chosen}")
        return chosen


#: What metrics take: both have ``prediction``, ``soundness``, ``radius``, ``tolerates`` and ``missing``.
AnyCertificate: TypeAlias = Certificate | SmoothedCertificate


def needed_probability(shift: Tensor, untouched: Tensor) -> Tensor:
    r"""The probability that a class must exceed to stay the most frequent, 1 where none is enough; in double precision.

    .. math:: 1 - q + q \, \Phi\big( \Phi^{-1}(1 / 2q) + a \big)

    Args:
        shift: a, by how much the mean of the noise moves, in units of its standard deviation.
        untouched: q, the probability that no replaced token is kept.

    >>> needed_probability(torch.tensor([1.0, 0.0, 0.0]).double(), torch.tensor([1.0, 0.9, 0.5]).double())
    tensor([0.8413, 0.6000, 1.0000], dtype=torch.float64)
    """
    half = (0.5 / untouched.clamp(min=0.5)).clamp(max=1)
    kept = torch.special.ndtr(torch.special.ndtri(half) + shift)
    return torch.where(untouched > 0.5, 1 - untouched * (1 - kept), 1.0)


# What prediction writers save, `torch.load` reads as it is.
torch.serialization.add_safe_globals([SmoothedCertificate, Ablation])
