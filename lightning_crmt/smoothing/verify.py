# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Try to disprove certificates of a smoothed classifier: attack it inside the claims, and ask again with new draws."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_crmt.attacks import AveragedModel, Budget, LossAscent, Model, holder_of
from lightning_crmt.checks import check_at_least, check_batch
from lightning_crmt.encoding import encoded
from lightning_crmt.frozen_eval import frozen_eval
from lightning_crmt.modality import (
    PRESENT,
    Inputs,
    answer,
    in_double,
    logits_of,
    modalities_of,
    present_of,
    select,
    widened,
)
from lightning_crmt.noise import sigma_of
from lightning_crmt.smoothing.ablation import counted_tokens
from lightning_crmt.smoothing.base_model import as_computed
from lightning_crmt.smoothing.certificate import SmoothedCertificate
from lightning_crmt.smoothing.classifier import SmoothedClassifier
from lightning_crmt.smoothing.confidence import chance_of_at_least
from lightning_crmt.targets import least_margin

#: How implausible a number of refuted samples must be to be called a violation.
_IMPLAUSIBLE = 0.01


@dataclass(frozen=True)
class SmoothedVerification:
    """The attempts to disprove certificates of a smoothed classifier: evidence, not a proof.

    Some certificates may be wrong: each with probability alpha. So a refuted one proves nothing, and many do.

    Attributes:
        samples: N, how many samples there are, those included that claim nothing.
        alpha: the probability with which the claims about a sample may be wrong, or refuted by mistake: twice that of
            the certificates.
        refuted: which samples were refuted, by threat: inside what was claimed, another class leads with confidence.
        probes: how many samples were attacked, by threat.

    >>> done = SmoothedVerification(samples=100, alpha=0.002, refuted={"audio": [3], "image": [3, 8]})
    >>> round(done.p_value, 3), done.plausible
    (0.017, True)
    """

    samples: int
    alpha: float
    refuted: dict[str, list[int]] = field(default_factory=dict)
    probes: dict[str, int] = field(default_factory=dict)

    @property
    def p_value(self) -> float:
        """The chance of as many refuted samples or more, at most, if all is as it is claimed to be."""
        refuted = {sample for samples in self.refuted.values() for sample in samples}
        return chance_of_at_least(len(refuted), self.samples, self.alpha)

    @property
    def plausible(self) -> bool:
        """Whether so many refuted samples are no wonder: that chance is at least 1 in 100."""
        return self.p_value >= _IMPLAUSIBLE


class SmoothedViolation(AssertionError):  # noqa: N818 - named for what it is, not as an error
    """Raised where more certificates of a smoothed classifier are refuted than chance explains.

    Attributes:
        verification: what was tried and found.

    >>> print(SmoothedViolation(SmoothedVerification(samples=10, alpha=0.002, refuted={"audio": [3, 4]})))
    of 10 samples 2 are refuted, which has a chance of 0.00018 at most: under changes of audio [3, 4]
    """

    def __init__(self, verification: SmoothedVerification) -> None:
        self.verification = verification
        refuted = {sample for samples in verification.refuted.values() for sample in samples}
        said = "; ".join(f"under changes of {threat} {samples}" for threat, samples in verification.refuted.items())
        super().__init__(
            f"of {verification.samples} samples {len(refuted)} are refuted, which has a chance of "
            f"{verification.p_value:.2g} at most: {said}"
        )


def verify_smoothed(
    smoothed: SmoothedClassifier,
    certificate: SmoothedCertificate,
    inputs: Inputs,
    *,
    draws: int = 32,
    steps: int = 20,
    attempts: int = 16,
    products: int = 2,
    seed: int = 1,
) -> SmoothedVerification:
    r"""Attack a smoothed classifier inside the sets that its certificates say are safe, and ask it again there.

    The threats are nothing at all, the ball over all modalities with Gaussian noise, each of them alone, the
    replacement of as many tokens as are tolerated, and random products of budgets on the border of what
    :meth:`SmoothedCertificate.tolerates` accepts. Attacks follow the gradient of the mean over draws, and replace
    tokens by a random search. What they find is judged by :meth:`SmoothedClassifier.predict` with draws of another
    seed, so that nothing was fitted to them: a sample is *refuted* where it answers another class. To abstain refutes
    nothing.

    Args:
        smoothed: the smoothed classifier, of the same model and settings as the certificate.
        certificate: of these inputs.
        inputs: the clean inputs by modality, ``(B, ...)``, with their context.
        draws: of noise, that attacks average over.
        steps: of the gradient search.
        attempts: replacements that are tried for each threat to tokens.
        products: number of random products of budgets.
        seed: of what attacks draw, and of the draws that judge; another one than that of ``smoothed``.

    Raises:
        SmoothedViolation: an ``AssertionError``, if so many samples are refuted that chance does not explain it.
        ValueError: if ``inputs`` are not those of the certificate, or ``seed`` is that of ``smoothed``.

    >>> from dataclasses import replace
    >>> smoothed = SmoothedClassifier(lambda inputs: inputs["audio"], sigma=0.5)
    >>> inputs = {"audio": torch.tensor([[0.8, 0.0], [0.0, 1.0], [0.6, 0.0]])}
    >>> certificate = smoothed.certify(inputs)
    >>> verify_smoothed(smoothed, certificate, inputs).refuted
    {}
    >>> too_large = replace(certificate, sigma={"audio": 2 * certificate.sigma["audio"]})
    >>> try:
    ...     verify_smoothed(smoothed, too_large, inputs)
    ... except SmoothedViolation as error:
    ...     error.verification.refuted
    {'audio': [0, 1, 2]}
    """
    check_at_least(1, draws=draws, steps=steps, attempts=attempts)
    check_at_least(0, products=products, seed=seed)
    names = [*certificate.sigma, *certificate.ablations]
    lacking = [name for name in names if name not in inputs]
    if lacking or check_batch("inputs", inputs) != len(certificate.prediction):
        raise ValueError(
            f"`inputs` must be the {len(certificate.prediction)} samples of the certificate with modalities {names}, "
            f"got shapes { ({name: tuple(value.shape) for name, value in inputs.items()}) }"
        )
    if seed == smoothed.seed:
        raise ValueError(f"`seed` must be another one than that of `smoothed`, so that draws are new, got {seed}")
    rows = (~certificate.abstained).nonzero().squeeze(1).cpu()
    done = SmoothedVerification(len(certificate.prediction), 2 * certificate.alpha)
    if len(rows) == 0:
        return done
    generator = torch.Generator().manual_seed(seed)
    threats = list(_threats(certificate, products, generator))
    judge = SmoothedClassifier(
        smoothed.model,
        {**sigma_of(smoothed.sigma, inputs), **smoothed.ablations} if smoothed.sigma else smoothed.ablations,
        at=smoothed.at,
        alpha=certificate.alpha / len(threats),
        max_draws=smoothed.max_draws,
        batch_size=smoothed.batch_size,
        seed=seed,
    )
    some = select(inputs, rows)
    device = next(iter(some.values())).device
    expected = certificate.prediction[rows].to(device)
    with frozen_eval(holder_of(smoothed.model)):
        averaged = _averaged(smoothed, some, certificate.missing, draws, seed)
        for threat, radii, replaced in threats:
            moved = dict(some)
            if replaced:
                most = {name: count[rows] for name, count in replaced.items()}
                moved = _replace_tokens(averaged, moved, expected, most, attempts, generator)
            if radii:
                claimed = {group: radius[rows].to(device) for group, radius in radii.items()}
                moved = _attacked(averaged, moved, some, expected, claimed, steps, seed)
            answered = judge.predict(moved, missing=certificate.missing).to(device)
            done.probes[threat] = len(rows)
            wrong = (answered >= 0) & (answered != expected)
            if bool(wrong.any()):
                done.refuted[threat] = rows[wrong.cpu()].tolist()
    if not done.plausible:
        raise SmoothedViolation(done)
    return done


#: l2 radii ``(B,)`` by group of modalities: of a ball over the one group, or of one ball for each modality.
_Radii: TypeAlias = dict[tuple[str, ...], Tensor]
#: How many tokens are replaced, ``(B,)``, by modality.
_Replaced: TypeAlias = dict[str, Tensor]


def _threats(
    certificate: SmoothedCertificate, products: int, generator: torch.Generator
) -> Iterator[tuple[str, _Radii, _Replaced]]:
    """What is claimed to be safe, for all samples; nothing for those that abstain or lack a modality."""
    names = list(certificate.sigma)
    most = {name: certificate.replacements(name).clamp(min=0) for name in certificate.ablations}
    yield "nothing", {}, {}
    if names:
        yield " + ".join(names), {tuple(names): _finite(certificate.radius())}, {}
    for name in names if len(names) > 1 else ():
        yield name, {(name,): _finite(certificate.radius([name]))}, {}
    for name, count in most.items():
        yield name, {}, {name: count}
    for index in range(products if len(names) + len(most) > 1 else 0):
        shares = torch.rand(len(names), generator=generator, dtype=torch.float64).clamp(min=0.01).tolist()
        corner = {n: share * _finite(certificate.sigma[n]) for n, share in zip(names, shares, strict=True)}
        # Fewer tokens than are tolerated alone, so that something is left for the others.
        replaced = {name: count // (index + 1 + bool(names)) for name, count in most.items()}
        low = torch.zeros_like(certificate.lower)
        high = torch.full_like(low, 20 / min(shares, default=1.0))
        for _ in range(60):
            middle = (low + high) / 2
            safe = certificate.tolerates({**{n: middle * each for n, each in corner.items()}, **replaced})
            low, high = torch.where(safe, middle, low), torch.where(safe, high, middle)
        here = certificate.tolerates(replaced) if replaced else ~certificate.abstained
        yield (
            f"product {index}",
            {(name,): low * each for name, each in corner.items()},
            {name: torch.where(here, count, 0) for name, count in replaced.items()},
        )


def _finite(radius: Tensor) -> Tensor:
    """A sample that lacks a modality has nothing to change in it."""
    return torch.where(radius.isfinite(), radius, 0.0)


def _averaged(smoothed: SmoothedClassifier, inputs: Inputs, missing: tuple[str, ...], draws: int, seed: int) -> Model:
    """The soft form of the smoothed classifier, which has gradients."""
    sigma = sigma_of(smoothed.sigma, inputs) if smoothed.sigma else {}
    sigma = {name: each for name, each in sigma.items() if name not in missing}
    ablations = {name: each for name, each in smoothed.ablations.items() if name not in missing}
    model: Any = smoothed.model

    def of_inputs(given: Inputs) -> Any:
        given = dict(given)
        for name, ablation in ablations.items():
            given[name] = ablation.apply(given[name], counted_tokens(name, given))
        return model(as_computed(without(given), model))

    def of_features(given: Inputs) -> Any:
        return answer(model.head, as_computed(modalities_of(given), model.head), present_of(given))

    def without(given: Inputs) -> dict[str, Tensor]:
        value = next(iter(modalities_of(given).values()))
        nobody = torch.zeros(len(value), dtype=torch.bool, device=value.device)
        return {**given, **{f"{name}.{PRESENT}": nobody for name in missing}}

    at_inputs = smoothed.at == "inputs"
    averaged = AveragedModel(
        of_inputs if at_inputs else of_features,
        draws,
        noise=sigma or None,
        batch_size=smoothed.batch_size,
        seed=seed,
    )

    def encoded_once(given: Inputs) -> Tensor:
        whole = without(given)
        present = {f"{name}.{PRESENT}": here for name, here in present_of(whole).items()}
        answered: Tensor = averaged({**encoded(model.encoders, as_computed(whole, model)), **present})
        return answered

    return averaged if at_inputs else encoded_once


def _attacked(
    averaged: Model,
    moved: Inputs,
    clean: Inputs,
    expected: Tensor,
    claimed: _Radii,
    steps: int,
    seed: int,
) -> dict[str, Tensor]:
    """The worst input that was found inside of what is claimed, of a gradient search and of random directions."""
    inside = 1 - 1e-6  # single precision needs a little room
    if len(claimed) > 1:
        budget = Budget({name: radius * inside for (name,), radius in claimed.items()}, mask=_all_of(claimed))
    else:
        [(group, radius)] = claimed.items()
        budget = Budget(radius * inside, modalities=group, mask=_all_of(claimed))
    best, least = dict(moved), _margin(averaged, moved, expected)
    generator = torch.Generator().manual_seed(seed)
    perturbed = [name for group in claimed for name in group]
    noise = {
        name: widened(torch.randn(moved[name].shape, generator=generator, dtype=torch.float64), moved[name].device)
        for name in perturbed
    }
    # All the way, and not to the first input that fools the draws that it sees: others will judge.
    step = min(1.0, 2.5 / steps)
    for tried in (
        LossAscent(budget, steps=steps, loss="margin", step_size=step)(averaged, moved, expected),
        LossAscent(budget, steps=steps, loss="ce", step_size=step)(averaged, moved, expected),
        budget.apply(budget.steepest(noise, moved), moved),
    ):
        margin = _margin(averaged, tried, expected)
        better = (margin < least) & _within(tried, clean, claimed)
        best = {name: _where(better, tried[name], value) for name, value in best.items()}
        least = torch.where(better, margin, least)
    return best


def _replace_tokens(
    averaged: Model,
    inputs: Inputs,
    expected: Tensor,
    most: _Replaced,
    attempts: int,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """The worst of some random replacements, by tokens that occur in the batch."""
    best, least = dict(inputs), _margin(averaged, inputs, expected)
    for _ in range(attempts):
        tried = dict(inputs)
        for name, count in most.items():
            tokens, counted = inputs[name], counted_tokens(name, inputs)
            order = torch.rand(tokens.shape, generator=generator).to(tokens.device).masked_fill(~counted, 2.0)
            rank = order.flatten(1).argsort(dim=1).argsort(dim=1).reshape(tokens.shape)
            chosen = counted & (rank < count.to(tokens.device).reshape(-1, *[1] * (tokens.dim() - 1)))
            occurring = tokens[counted]
            drawn = torch.randint(len(occurring), tokens.shape, generator=generator).to(tokens.device)
            tried[name] = torch.where(chosen, occurring[drawn], tokens)
        margin = _margin(averaged, tried, expected)
        better = margin < least
        best = {name: _where(better, tried[name], value) for name, value in best.items()}
        least = torch.where(better, margin, least)
    return best


def _margin(averaged: Model, inputs: Inputs, expected: Tensor) -> Tensor:
    with torch.no_grad():
        return least_margin(logits_of(averaged(dict(inputs))), expected)


def _within(moved: Inputs, clean: Inputs, claimed: _Radii) -> Tensor:
    """Which samples are inside of what is claimed, measured in double precision, ``(B,)`` bool."""
    inside = []
    for group, radius in claimed.items():
        parts = [(in_double(moved[name]) - in_double(clean[name])).flatten(1).norm(dim=1) for name in group]
        inside.append(torch.stack(parts).norm(dim=0) <= radius.to(parts[0].device))
    return torch.stack(inside).all(dim=0).to(next(iter(moved.values())).device)


def _where(chosen: Tensor, value: Tensor, other: Tensor) -> Tensor:
    return torch.where(chosen.reshape(-1, *[1] * (value.dim() - 1)), value, other)


def _all_of(claimed: _Radii) -> dict[str, None]:
    """Masks that leave no entry out: certificates are about changes of padding too."""
    return dict.fromkeys([name for group in claimed for name in group])
