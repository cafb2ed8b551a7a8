# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""The smoothed classifier: what a model answers most often when noise is added to its inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from lightning_crmt.attacks import Model, holder_of
from lightning_crmt.certification import has_forward
from lightning_crmt.checks import check_at_least, check_batch, check_named_batch, describe, require_finite
from lightning_crmt.encoding import encoded
from lightning_crmt.frozen_eval import frozen_eval
from lightning_crmt.lipschitz import encoder_bounds, proved_precision, refuse_context
from lightning_crmt.modality import (
    PRESENT,
    Inputs,
    answer,
    modalities_of,
    present_of,
    select,
    where_present,
)
from lightning_crmt.noise import Sigma, check_sigma, sigma_of
from lightning_crmt.smoothing.ablation import Ablation, counted_tokens
from lightning_crmt.smoothing.answers_around import AnswersAround
from lightning_crmt.smoothing.base_model import (
    alike,
    as_computed,
    as_drawn,
    copies,
    device_of_model,
    refuse_lost,
    refuse_unfit,
)
from lightning_crmt.smoothing.certificate import SmoothedCertificate, needed_probability
from lightning_crmt.smoothing.confidence import (
    MOST_ALPHA,
    Array,
    clopper_pearson,
    enough,
    evidence_above,
    evidence_below,
    hopeless,
    lower_bound_when_stopped,
    successes_needed,
)
from lightning_crmt.smoothing.noisy_batch import BLOCK, NoisyBatch, content_seeds

#: Where noise is added.
At: TypeAlias = Literal["inputs", "features"]
#: l2 radii by modality, and of tokens how many are replaced.
Budgets: TypeAlias = Sequence[Mapping[str, float]]

#: Draws between two looks at the evidence grow with the draws so far, by this share: looks are cheap, but not free.
_GROWTH = 1 / 8


class SmoothedClassifier:
    r"""A classifier of its own: the class that a base model answers most often under noise on its inputs.

    .. math:: g(x) = \arg\max_c P\big( f(x + n) = c \big), \qquad n^m \sim N(0, \sigma_m^2 I)

    independent for each modality m. Whatever f is, g cannot change within a distance that follows from the probability
    of its answer (Cohen et al., ICML 2019), see :class:`SmoothedCertificate`. That probability is estimated from draws,
    so what is certified is true with a stated probability. Accuracy, attacks and certificates of g are its own and say
    nothing of f. An f that was not trained with such noise makes a poor g; see
    :class:`~lightning_crmt.methods.GaussianNoise`.

    Draws are counted in integers; f runs in evaluation mode and in the precision of its parameters, which may be half:
    it is the function that is smoothed, and it must be one: it may not draw random numbers, nor depend on what else is
    in the batch. Noise is drawn and added in the precision of the inputs, at least single, which real Gaussian noise is
    only close to. Nothing is clipped: what f does with values out of range is a part of f. Logits that are not finite
    are no answer.

    Args:
        model: a module, or any function from inputs by name to logits, as attacks take it; one class per sample. A
            module is put in evaluation mode meanwhile; do it yourself for what a function calls.
        sigma: standard deviations in units of the inputs: a number for all modalities of real numbers, or by modality;
            one left out, or of 0, is trusted: it stays clean, and what is certified holds for the case that nobody
            touches it. A modality of tokens has an :class:`Ablation`.
        at: ``"features"`` adds the noise to the features that the encoders of a CRMT module give, and ``sigma`` is in
            their units: only the head is run for each draw. Radii are in units of the inputs still: divided by the
            sound bounds of the encoders, :math:`\sigma_m / L_m` in the place of :math:`\sigma_m`. The head may be any.
        alpha: probability with which the claims about a sample may be wrong, at most 0.25; over N samples up to
            :math:`\alpha N` wrong certificates are expected.
        max_draws: the most draws for a sample, beside those that select its class.
        batch_size: the most noisy samples in a forward pass, at least 64.
        seed: of the noise. A sample gets the same noise in whatever batch it comes, if padded alike.

    Raises:
        ValueError, TypeError: if a setting is out of range.

    >>> linear = torch.nn.Linear(2, 2)
    >>> _ = linear.weight.data.copy_(torch.eye(2)), linear.bias.data.zero_()
    >>> smoothed = SmoothedClassifier(lambda inputs: linear(inputs["audio"]), sigma=0.5)
    >>> inputs = {"audio": torch.tensor([[1.0, 0.0], [0.2, 0.2]])}  # the second is a tie
    >>> smoothed.predict(inputs)
    tensor([ 0, -1])
    >>> certificate = smoothed.certify(inputs, radii=[0.25, 0.5])
    >>> certificate.prediction, certificate.radius() > 0.5  # the true radius is 0.71
    (tensor([ 0, -1]), tensor([ True, False]))
    """

    def __init__(
        self,
        model: Model,
        sigma: float | Mapping[str, float | Ablation],
        *,
        at: At = "inputs",
        alpha: float = 0.001,
        max_draws: int = 10_000,
        batch_size: int = 1024,
        seed: int = 0,
    ) -> None:
        self.ablations: dict[str, Ablation] = {}
        self.sigma: Sigma
        if isinstance(sigma, Mapping):
            self.ablations = {name: each for name, each in sigma.items() if isinstance(each, Ablation)}
            self.sigma = {name: each for name, each in sigma.items() if not isinstance(each, Ablation)}
        else:
            self.sigma = sigma
        # Modalities of tokens alone may have noise: then all others may be trusted.
        noisy = {n: each for n, each in self.sigma.items() if each != 0} if isinstance(self.sigma, Mapping) else None
        if noisy or not self.ablations:
            check_sigma(noisy or self.sigma)
        if not callable(model):
            raise TypeError(f"`model` must be a function from inputs by name to logits, got {describe(model)}")
        if at not in ("inputs", "features"):
            raise ValueError(f"`at` must be 'inputs' or 'features', got {at!r}")
        if at == "features" and self.ablations:
            raise ValueError("`sigma` must be numbers where noise is added to features: an Ablation is of inputs")
        if not isinstance(alpha, int | float) or not 1e-300 < alpha <= MOST_ALPHA:
            raise ValueError(f"`alpha` must be above 0 and at most {MOST_ALPHA}, got {alpha}")
        for name, value in {"max_draws": max_draws, "batch_size": batch_size, "seed": seed}.items():
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"`{name}` must be an integer, got {value!r}")
        check_at_least(1, max_draws=max_draws)
        check_at_least(BLOCK, batch_size=batch_size)
        criterion = getattr(model, "crmt_criterion", None)
        if getattr(criterion, "multi_label", False):
            raise TypeError("`model` must answer one class per sample to be smoothed, and it answers labels")
        self.model, self.at = model, at
        self.alpha, self.max_draws, self.batch_size, self.seed = alpha, max_draws, batch_size, seed

    def predict(self, inputs: Inputs, *, missing: Collection[str] = ()) -> Tensor:
        """The class of each sample, ``(B,)``; -1 where it abstains, as two classes are too close to tell them apart.

        Wrong with probability at most ``alpha`` for each sample: a class is selected from draws of its own, and then
        compared with each other one by the draws that answer either (after Hung and Fithian, Annals of Statistics
        2019), until it leads each or ``max_draws`` are spent.

        Args:
            inputs: one batch by modality.
            missing: see :meth:`certify`.

        Raises:
            ValueError, TypeError: as :meth:`certify`.
        """
        with self._around(inputs, missing) as batch:
            chosen, everyone = batch.select(), list(range(batch.size))
            counts = np.zeros((batch.size, batch.num_classes + 1), dtype=np.int64)
            leads = np.zeros(batch.size, dtype=bool)
            for draws, active in self._looks(everyone):
                counts[active] += batch.counts(active, draws)
                own = np.take_along_axis(counts[active], chosen[active, None], axis=1)
                rivals = np.delete(counts[active], batch.num_classes, axis=1)
                evidence = evidence_above(own, own + rivals, np.array(0.5))
                np.put_along_axis(evidence, chosen[active, None], np.inf, axis=1)
                against = evidence_below(own, own + rivals, np.array(0.5))
                np.put_along_axis(against, chosen[active, None], -np.inf, axis=1)
                leads[active] = (evidence >= enough(self.alpha)).all(axis=1)
                over = leads[active] | (against >= enough(self.alpha)).any(axis=1)
                active[:] = np.asarray(active)[~over].tolist()
            return torch.from_numpy(np.where(leads, chosen, -1)).to(batch.device)

    def certify(
        self,
        inputs: Inputs,
        *,
        radii: Sequence[float] | None = None,
        budgets: Budgets | None = None,
        missing: Collection[str] = (),
    ) -> SmoothedCertificate:
        r"""Certificates of the predictions for a batch, true with probability :math:`1 - \alpha` for each sample.

        A class is selected from draws of its own. With ``radii`` or ``budgets`` new draws are made until each of them
        is certified, or has less than 1 chance in 100 to be with what is left of ``max_draws``: a sequential test,
        valid whenever it stops. It ends early for samples that are far from where they would be refuted, so it costs a
        fraction of a fixed number of draws; the radius it ends with is smaller, as it stops where it knows enough.
        Without both there are ``max_draws`` draws for each sample, and the bound of Clopper and Pearson.

        Args:
            inputs: one batch by modality, ``(B, ...)``, with its context.
            radii: l2 radii to decide, for all modalities with Gaussian noise together and for each alone.
            budgets: budgets of several modalities at once to decide, each by modality an l2 radius, or of tokens how
                many are replaced.
            missing: modalities to smooth without: no sample has them. The model must be able to go without, as CRMT
                modules can, or to read ``"audio.present"`` in its inputs.

        Raises:
            ValueError: if a name is unknown, a radius negative, or inputs are not finite; if the model does not heed
                that a modality is missing.
            TypeError: if a modality that has noise is not of real numbers, or one with an ablation not of integers.
            NoBoundError: at features, if an encoder has no bound.
        """
        with self._around(inputs, missing) as batch:
            chosen = batch.select()
            if radii is None and budgets is None:
                counts = batch.counts(list(range(batch.size)), self.max_draws)
                hits = np.take_along_axis(counts, chosen[:, None], axis=1)[:, 0]
                draws = np.full(batch.size, self.max_draws)
                return batch.certificate(chosen, clopper_pearson(hits, draws, self.alpha), draws + BLOCK)
            needed = _needed(batch.certificate(chosen), radii, budgets)
            hits, draws = np.zeros((2, batch.size), dtype=np.int64)
            proved = np.zeros(batch.size)
            reach = successes_needed(self.max_draws, needed, self.alpha / 2)
            for count, active in self._looks(list(range(batch.size))):
                counts = batch.counts(active, count)
                hits[active] += np.take_along_axis(counts, chosen[active, None], axis=1)[:, 0]
                draws[active] += count
                seen = hits[active, None], draws[active, None], needed[active]
                certified = evidence_above(*seen) >= enough(self.alpha / 2)
                over = certified | hopeless(*seen[:2], reach[active], self.max_draws)
                proved[active] = np.where(certified, needed[active], 0).max(axis=1).clip(min=proved[active])
                active[:] = np.asarray(active)[~over.all(axis=1)].tolist()
            # What was proved at any look stays so; the room in `enough` is for this last digit.
            proved = np.where(proved > 0, np.nextafter(proved, 1), 0)
            lower = lower_bound_when_stopped(hits, draws, self.max_draws, self.alpha).clip(min=proved)
            return batch.certificate(chosen, lower, draws + BLOCK)

    def _looks(self, active: list[int]) -> Iterator[tuple[int, list[int]]]:
        """How many draws to make before the next look, and the samples that are undecided: a list to take them from."""
        done = 0
        while active and done < self.max_draws:
            step = BLOCK * max(1, int(done * _GROWTH) // BLOCK)
            count = min(step, self.max_draws - done)
            yield count, active
            done += count

    @contextmanager
    def _around(self, inputs: Inputs, missing: Collection[str]) -> Iterator[AnswersAround]:
        """Inside, the model is in evaluation mode and frozen, and answers for draws around a batch."""
        size = check_batch("inputs", inputs)
        missing = (missing,) if isinstance(missing, str) else tuple(missing or ())
        names = list(modalities_of(inputs))
        if unknown := [name for name in missing if name not in names]:
            raise ValueError(f"`missing` must name modalities among {names}, got {unknown}")
        if not set(names) - set(missing):
            raise ValueError(f"`missing` must leave a modality, got all of {names}")
        whole = {name: value for name, value in inputs.items() if name.partition(".")[0]}
        check_named_batch(whole, self._names(names))
        require_finite("inputs", inputs)
        device = device_of_model(self.model, inputs)
        with frozen_eval(holder_of(self.model)), torch.no_grad(), torch.autocast(device.type, enabled=False):
            seeds = content_seeds(
                {name: value for name, value in inputs.items() if name.partition(".")[0] not in missing}, self.seed
            )
            # Copies, for models that work in place.
            taken = {name: as_drawn(value).to(device, copy=True) for name, value in inputs.items()}
            nobody = torch.zeros(size, dtype=torch.bool, device=device)
            taken |= {f"{name}.{PRESENT}": nobody for name in missing}
            yield self._at(taken, missing, seeds)

    def _names(self, given: list[str]) -> list[str]:
        """The modalities that there must be."""
        encoders = getattr(self.model, "encoders", None)
        return list(encoders.keys()) if self.at == "features" and isinstance(encoders, torch.nn.ModuleDict) else given

    def _at(self, inputs: dict[str, Tensor], missing: tuple[str, ...], seeds: Sequence[bytes]) -> AnswersAround:
        sigma = sigma_of(self.sigma, inputs) if self.sigma else {}
        sigma = {name: each for name, each in sigma.items() if name not in missing}
        ablations = {name: each for name, each in self.ablations.items() if name not in missing}
        if not sigma and not ablations:
            raise ValueError(f"`missing` must leave a modality with noise, got {list(missing)}")
        counted = {name: counted_tokens(name, inputs) for name in ablations}
        scales = dict(sigma)
        noisy: dict[str, Tensor] = inputs
        answers: Callable[[dict[str, Tensor]], Any] = self._model_answers
        if self.at == "features":
            noisy, scales, answers = self._features(inputs, sigma)
        present = present_of(inputs)
        for name, each in sigma.items():
            refuse_lost(name, where_present(noisy[name], present.get(name)), each)
        for rows in torch.split(torch.arange(len(seeds)), self.batch_size):
            refuse_unfit(answers, select(noisy, rows), missing)
        return AnswersAround(
            answers,
            inputs,
            {purpose: NoisyBatch(noisy, sigma, ablations, counted, seeds, purpose) for purpose in ("select", "judge")},
            scales,
            ablations,
            {name: each.flatten(1).sum(dim=1) for name, each in counted.items()},
            missing,
            self.alpha,
            self.batch_size,
        )

    def _model_answers(self, inputs: dict[str, Tensor]) -> Any:
        return self.model(as_computed(inputs, self.model))

    def _features(
        self, inputs: dict[str, Tensor], sigma: Mapping[str, float]
    ) -> tuple[dict[str, Tensor], dict[str, float], Callable[[dict[str, Tensor]], Any]]:
        """Features with their presence, standard deviations in units of the inputs, and the head that answers."""
        encoders, head = getattr(self.model, "encoders", None), getattr(self.model, "head", None)
        if not isinstance(encoders, Mapping | torch.nn.ModuleDict) or not isinstance(head, torch.nn.Module):
            raise TypeError(
                "`model` must have `encoders`, by modality, and a `head`, as CRMT modules do, for at='features', got "
                f"{describe(self.model)}"
            )
        for name in sigma:
            refuse_context({each: value for each, value in inputs.items() if each.partition(".")[0] == name})
        bounds = encoder_bounds(
            {name: encoders[name] for name in sigma}, {name: tuple(inputs[name].shape[1:]) for name in sigma}
        )
        bound = {name: float(bounds.values[name]) for name in sigma}
        scales = {name: sigma[name] / bound[name] if bound[name] else math.inf for name in sigma}
        computed, present = as_computed(inputs, self.model), present_of(inputs)
        for name, each in scales.items():
            # Encoders that round more coarsely than their inputs differ by more than their bound says.
            proved_precision(encoders[name], computed[name])
            refuse_lost(name, where_present(computed[name], present.get(name)), each)
        features = {name: as_drawn(each) for name, each in encoded(encoders, computed).items()}

        def answers(noisy: dict[str, Tensor]) -> Any:
            return answer(head, as_computed(modalities_of(noisy), head), present_of(noisy))

        noisy = {**features, **{f"{name}.{PRESENT}": here for name, here in present.items()}}
        if has_forward(self.model) and not alike(answers(copies(noisy)), self.model(copies(computed))):
            raise ValueError(
                "`model` must answer head({m: encoders[m](inputs[m])}) for at='features', which smooths its head: its "
                "`forward` answers something else"
            )
        return noisy, scales, answers


def _needed(certificate: SmoothedCertificate, radii: Sequence[float] | None, budgets: Budgets | None) -> Array:
    """The probabilities that decide: whether there is an answer, radii jointly and by modality, budgets; ``(B, C)``."""
    radii, budgets = () if radii is None else radii, () if budgets is None else budgets
    if not isinstance(radii, Sequence) or not all(isinstance(radius, int | float) for radius in radii):
        raise TypeError(f"`radii` must be a list of numbers, got {radii!r}")
    if not isinstance(budgets, Sequence) or not all(isinstance(budget, Mapping) for budget in budgets):
        raise TypeError(f"`budgets` must be a list of mappings from modalities to numbers, got {budgets!r}")
    if not all(0 <= radius < np.inf for radius in radii):
        raise ValueError(f"`radii` must be at least 0 and finite, got {list(radii)}")
    untouched = torch.ones_like(certificate.lower)
    needed = [torch.full_like(certificate.lower, 0.5)]
    if radii and not certificate.sigma:
        raise ValueError("`radii` are of modalities with Gaussian noise, and there is none; give `budgets`")
    scales = list(certificate.sigma.values())
    for least in [torch.stack(scales).amin(dim=0), *scales] if scales else []:
        needed += [needed_probability(radius / least, untouched) for radius in radii]
    needed += [certificate.needed(budget) for budget in budgets]
    return np.unique(torch.stack(needed, dim=1).cpu().numpy(), axis=1)
