# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Attacks need one function: a model that draws random numbers, or is smoothed by noise, as the mean of some draws."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

from lightning_crmt.attacks.search.attacked_model import Model
from lightning_crmt.checks import check_at_least, check_batch, describe
from lightning_crmt.criterion import Criterion
from lightning_crmt.modality import Inputs, logits_of
from lightning_crmt.noise import Sigma, add_noise, check_sigma, sigma_of
from lightning_crmt.random_state import seeded

#: Seeds of two models, or of a model's noise and its other draws, must not meet.
_APART = 1_000_003


class AveragedModel(nn.Module):
    r"""The mean of a model's probabilities over some draws, which are the same in every call: for attacks of any kind.

    .. math:: h(x) = \log \frac 1 n \sum_{i=1}^n \mathrm{softmax}\big( f_i(x + n_i) \big)

    A single gradient of a model that draws random numbers, by a dropout or by changes of its inputs, says little, and
    an attack that follows it makes the model look robust; the gradient of the mean is that of the expectation (Athalye
    et al., ICML 2018). With ``noise`` it is the soft form of the classifier smoothed by such noise, and a PGD on it is
    the SmoothAdv attack (Salman et al., NeurIPS 2019).

    What is promised:

    - Every call makes the same draws, whatever was drawn before, and leaves the random states of Python, NumPy and
      torch as they were.
    - Noise is the same for all samples of one shape, so that results do not depend on how batches are split.
    - Without ``noise`` each draw is a call of the model, as it may draw once for all of a batch. If it draws for each
      sample, the draws belong to places in the batch: attacks that go on with some samples see other draws, and more of
      them make less of a difference.
    - A gradient needs no more memory than that of ``batch_size`` samples, or of one draw: if there are more, the model
      is called again for it.
    - Draws are those of one kind of device.

    An attack fits the draws that it sees. What it leads to should be judged by others: another seed, and more draws.

    Args:
        model: a module, or any function from inputs by name to logits; modules that a function calls must be in
            evaluation mode. For tokens, ``AveragedModel(EmbeddedModel(model, ...), ...)``.
        draws: n, at least 1.
        noise: standard deviations of Gaussian noise on the inputs, a number for all modalities of real numbers, or by
            modality; none by default.
        multi_label: whether logits are of labels, whose probabilities are averaged each by itself; by default what
            the ``crmt_criterion`` of the module says, or of one within it.
        batch_size: the most samples, over all draws, in memory at once and in a call of the model, if that is at least
            one draw of the batch.
        seed: of the draws.

    Raises:
        TypeError: if ``model`` is no function, or a standard deviation no number.
        ValueError: if a setting is out of range.

    >>> from lightning_crmt import LinearFusion
    >>> from lightning_crmt.attacks import PGD, Budget, public_logits
    >>> head, x = LinearFusion({"audio": 4}, num_classes=3), {"audio": torch.randn(5, 4)}
    >>> random = lambda inputs: head({"audio": nn.functional.dropout(inputs["audio"], 0.5)})
    >>> averaged = AveragedModel(random, draws=64)
    >>> averaged(x).equal(averaged(x))
    True
    >>> y = averaged(x).argmax(dim=1)
    >>> moved = PGD(Budget(0.5))(averaged, x, y)
    >>> judged = public_logits(AveragedModel(random, draws=500, seed=1), moved)
    >>> smoothed = AveragedModel(head, draws=32, noise={"audio": 0.25})
    """

    def __init__(
        self,
        model: Model,
        draws: int = 32,
        *,
        noise: Sigma | None = None,
        multi_label: bool | None = None,
        batch_size: int = 1024,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not callable(model):
            raise TypeError(f"`model` must be a function from inputs by name to logits, got {describe(model)}")
        check_at_least(1, draws=draws, batch_size=batch_size)
        check_at_least(0, seed=seed)
        if noise is not None:
            check_sigma(noise, "noise")
        if multi_label is None:
            parts = model.modules() if isinstance(model, nn.Module) else ()
            criteria = [getattr(part, "crmt_criterion", None) for part in parts]
            multi_label = any(isinstance(each, Criterion) and each.multi_label for each in criteria)
        self.model = model
        self.draws = draws
        self.noise = noise
        self.multi_label = multi_label
        self.batch_size = batch_size
        self.seed = seed

    @override
    def forward(self, inputs: Inputs) -> Tensor:
        """Logits ``(B, K)``: logarithms of the mean probabilities of classes, or of labels their log odds.

        Args:
            inputs: one tensor per modality, ``(B, ...)``, and context.

        Raises:
            ValueError, TypeError: if ``noise`` does not fit the inputs.
        """
        inputs, size = dict(inputs), check_batch("inputs", inputs)
        at_once = max(1, self.batch_size // size)
        parts = []
        for first in range(0, self.draws, at_once):
            draws = range(first, min(first + at_once, self.draws))
            if torch.is_grad_enabled() and len(draws) < self.draws:
                part = checkpoint(self._sum, inputs, draws, use_reentrant=False, preserve_rng_state=False)
            else:
                part = self._sum(inputs, draws)
            parts.append(part)
        mean = torch.stack(parts).logsumexp(dim=0) - math.log(self.draws)
        return mean[..., 1] - mean[..., 0] if self.multi_label else mean[:, 0]

    def _sum(self, inputs: dict[str, Tensor], draws: range) -> Tensor:
        """Logarithms of probabilities, added up over some draws, in the form of ``Criterion.log_probabilities``."""
        if self.noise is None:
            logits = torch.stack([self._logits(inputs, draw) for draw in draws])
        else:
            noise = self._noise(inputs, draws)
            many = {name: value.expand(len(draws), *value.shape) for name, value in inputs.items()}
            many |= {name: many[name] + each for name, each in noise.items()}
            flat = self._logits({name: value.flatten(0, 1) for name, value in many.items()}, draws.start)
            logits = flat.reshape(len(draws), -1, flat.shape[1])
        return Criterion(multi_label=self.multi_label).log_probabilities(logits).logsumexp(dim=0)

    def _logits(self, inputs: dict[str, Tensor], draw: int) -> Tensor:
        """Logits of one call of the model, whose random numbers are of a draw."""
        with seeded(2 * self._key(draw) + 1, next(iter(inputs.values())).device):
            return logits_of(self.model(inputs))

    def _noise(self, inputs: dict[str, Tensor], draws: range) -> dict[str, Tensor]:
        """Noise of some draws, ``(draws, 1, ...)``, of the modalities that have it, the same for all samples."""
        if self.noise is None:
            return {}
        names = sigma_of(self.noise, inputs, "noise")
        blank = {name: torch.zeros_like(inputs[name][:1]) for name in names}
        found = []
        for draw in draws:
            # Each from its own seed: the noise of a draw does not depend on how many are made at once.
            generator = torch.Generator(next(iter(inputs.values())).device).manual_seed(2 * self._key(draw))
            found.append(add_noise(blank, names, generator))
        return {name: torch.stack([each[name] for each in found]) for name in names}

    def _key(self, draw: int) -> int:
        return self.seed * _APART + draw

    @override
    def extra_repr(self) -> str:
        return f"draws={self.draws}, noise={self.noise}, seed={self.seed}"
