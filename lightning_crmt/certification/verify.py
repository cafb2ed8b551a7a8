# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Try to disprove a certificate: attack inside the sets that it claims to be safe, and keep any counterexample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_crmt.attacks import (
    PGD,
    AttackedModel,
    Budget,
    MinimumNorm,
    Model,
    Perturbation,
    under_attack,
)
from lightning_crmt.certification.certificate import Certificate
from lightning_crmt.checks import check_at_least, check_batch
from lightning_crmt.modality import Inputs, in_double, select, widened, widest
from lightning_crmt.soundness import Soundness
from lightning_crmt.targets import answers, has_labels, least_margin, right_answers

#: One l2 norm for a ball, or one by modality for separate budgets.
Norms: TypeAlias = float | dict[str, float]
#: A class, or the labels that are a yes.
Answer: TypeAlias = int | list[int]


@dataclass(frozen=True)
class Counterexample:
    """A perturbation that disproves a certificate for one sample.

    Attributes:
        sample: its index in the batch.
        threat: name of what was allowed to change, such as a modality.
        radius: the l2 radius that was claimed to be tolerated.
        distance: l2 norm of the perturbation, measured in float64 on the stored inputs; in the form of ``radius``.
        before: class that was certified, or the labels that are a yes.
        after: the same for the changed inputs; None where their logits are not finite.
        inputs: the clean sample by modality, with a batch dimension of 1.
        perturbation: what was added, in float64, by modality.
        perturbed: the changed sample, as given to the model.
        soundness: level of the certificate.

    >>> certificate = Certificate(  # it claims a radius of 2, where the boundary is 1.4142 away
    ...     prediction=torch.tensor([0]), margins=torch.tensor([[0.0, 2.0]]),
    ...     sensitivities={"audio": torch.tensor([[0.0, 1.0]])}, soundness=Soundness.SOUND)
    >>> try:
    ...     verify_certificate(lambda inputs: inputs["audio"], certificate, {"audio": torch.tensor([[2.0, 0.0]])})
    ... except CertificateViolation as error:
    ...     print(error.counterexample)  # doctest: +ELLIPSIS
    sample 0 is certified to stay of class 0 under changes of audio up to 2, but a change of ... makes it class 1
    """

    sample: int
    threat: str
    radius: Norms
    distance: Norms
    before: Answer
    after: Answer | None
    inputs: Mapping[str, Tensor]
    perturbation: Mapping[str, Tensor]
    perturbed: Mapping[str, Tensor]
    soundness: Soundness

    def __str__(self) -> str:
        if self.threat == "clean":
            return (
                f"sample {self.sample} is {self.soundness.label} to be of {_named(self.before)}, but the model "
                f"predicts {_named(self.after)}: is the certificate of these weights, this precision and these inputs?"
            )
        return (
            f"sample {self.sample} is {self.soundness.label} to stay of {_named(self.before)} under changes of "
            f"{self.threat} up to {_written(self.radius)}, but a change of {_written(self.distance)} "
            + ("makes its logits NaN or infinite" if self.after is None else f"makes it {_named(self.after)}")
        )

    def save(self, path: str | Path) -> Path:
        """Write a dict of these attributes, which ``torch.load(path, weights_only=True)`` reads; returns the path.

        Folders on the way are made. The level of the certificate is stored by its name.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(asdict(self) | {"soundness": self.soundness.name}, path)
        return path


class CertificateViolation(AssertionError):  # noqa: N818 - named for what it is, not as an error
    """Raised where a certificate does not hold.

    An ``AssertionError``: a test that calls :func:`verify_certificate` fails by it. :class:`Counterexample` has an
    example.

    Attributes:
        counterexample: the sample, its perturbation and both predictions.
        saved_to: the file it was written to, or ``None``.
    """

    def __init__(self, counterexample: Counterexample, saved_to: str | Path | None = None) -> None:
        self.counterexample = counterexample
        self.saved_to = None if saved_to is None else counterexample.save(saved_to)
        super().__init__(str(counterexample) + ("" if self.saved_to is None else f"; saved to {self.saved_to}"))


@dataclass(frozen=True)
class Verification:
    """The failed attempts to disprove a certificate: evidence, not a proof.

    Attributes:
        soundness: level of the certificate.
        samples: how many samples had a radius above 0; the others claim nothing.
        probes: perturbed inputs inside the claim whose prediction was compared, by threat.
        rounding: those among them whose prediction did change, by no more than rounding explains. Only a ``RIGOROUS``
            certificate speaks about rounding: there, any change is a violation.

    >>> certificate = Certificate(
    ...     prediction=torch.tensor([0, 0]), margins=torch.tensor([[0.0, 2.0], [0.0, 0.0]]),
    ...     sensitivities={"audio": torch.tensor([[0.0, 2.0**0.5]] * 2)}, soundness=Soundness.SOUND)
    >>> x = {"audio": torch.tensor([[2.0, 0.0], [1.0, 1.0]])}
    >>> done = verify_certificate(lambda inputs: inputs["audio"], certificate, x, probes=32)
    >>> done.samples, done.probes["audio"] >= 32, done.rounding  # nothing is claimed about the second, a tie
    (1, True, {})
    """

    soundness: Soundness
    samples: int
    probes: dict[str, int] = field(default_factory=dict)
    rounding: dict[str, int] = field(default_factory=dict)


def verify_certificate(
    model: Model,
    certificate: Certificate,
    inputs: Inputs,
    *,
    probes: int = 32,
    steps: int = 30,
    products: int = 4,
    seed: int = 0,
    save_to: str | Path | None = None,
) -> Verification:
    r"""Attack each sample inside the set that its certificate says is safe.

    The threats are the ball over all modalities, each modality alone, and random products of budgets on the border of
    what :meth:`Certificate.tolerates` accepts. Each is probed by random directions, by a gradient search towards every
    class, and by a search for the nearest input of another class. What counts is the prediction of the public forward
    for what is stored, with norms measured in float64, on the CPU where the model's device has none; logits that are
    not finite predict nothing, and disprove the certificate.

    The claims of a ``RIGOROUS`` certificate are taken to the letter. All others are about exact arithmetic: there the
    radii are shortened by a millionth, and a rival that leads by no more than rounding explains
    (:math:`32 \, \varepsilon \max_k |h_k|`) is counted apart.

    Args:
        model: the model in evaluation mode, or anything from inputs to logits ``(B, K)``; for a certificate with
            ``missing`` modalities, one that does without them. It is left as it was.
        certificate: of the same weights and inputs, at any level: a certificate from estimated constants may be
            disproved.
        inputs: the clean inputs by modality, ``(B, ...)``.
        probes: random directions for each threat.
        steps: of the gradient search, for each class.
        products: number of random products of budgets.
        seed: of every random draw.
        save_to: file for the counterexample, if there is one.

    Raises:
        CertificateViolation: an ``AssertionError`` with a counterexample.
        TypeError: if the certificate is of a smoothed classifier, see :func:`~lightning_crmt.verify_smoothed`.
        ValueError: if ``inputs`` have other modalities or another batch size than the certificate, or they or their
            logits are not finite.

    >>> from lightning_crmt import LinearFusion, LipschitzConstants, certify
    >>> head, x = LinearFusion({"audio": 4}, num_classes=3), {"audio": torch.randn(5, 4)}
    >>> def certificate(constant):
    ...     constants = {"audio": torch.tensor(constant)}
    ...     return certify(head(x), head, LipschitzConstants(constants, of="encoder", soundness=Soundness.SOUND))
    >>> verify_certificate(head, certificate(1.0), x).probes["audio"] >= 165
    True
    >>> try:
    ...     verify_certificate(head, certificate(0.5), x)
    ... except CertificateViolation as error:
    ...     bool(error.counterexample.distance < error.counterexample.radius)
    True
    """
    check_at_least(1, probes=probes, steps=steps)
    check_at_least(0, products=products)
    if certificate.soundness is Soundness.PROBABILISTIC:
        raise TypeError("`certificate` must be no smoothed one, of which a few may be wrong; use `verify_smoothed`")
    present = [name for name in certificate.sensitivities if name not in certificate.missing]
    lacking = [name for name in present if name not in inputs]
    if lacking or check_batch("inputs", inputs) != len(certificate.prediction):
        raise ValueError(
            f"`inputs` must be the {len(certificate.prediction)} samples of the certificate with modalities {present}, "
            f"got shapes { ({name: tuple(value.shape) for name, value in inputs.items()}) }"
        )
    certificate = _beside_double(certificate)
    rows = (certificate.radius(present) > 0).nonzero().squeeze(1)
    done = Verification(certificate.soundness, len(rows))
    if len(rows) == 0:
        return done
    generator = torch.Generator().manual_seed(seed)
    nothing = Budget(0.0, modalities=present, mask=dict.fromkeys(present))
    with under_attack(model, select(inputs, rows), certificate.prediction[rows], nothing) as attacked:
        farthest = 10 * (1 + max(float(_norm([in_double(attacked.inputs[name])]).max()) for name in present))
        for threat, claimed in _threats(certificate, present, products, farthest, generator):
            exact = in_double(attacked.clean_logits).device
            radii = {group: radius[rows].to(exact) for group, radius in claimed.items()}
            judge = _Judge(attacked, threat, radii, rows, done, save_to)
            if threat == "clean":
                judge(attacked.inputs)
                continue
            budget = judge.budget()
            for _ in range(probes):
                noise = {
                    name: widened(torch.randn(value.shape, generator=generator, dtype=torch.float64), value.device)
                    for name, value in attacked.inputs.items()
                    if any(name in group for group in claimed)
                }
                judge(budget.apply(budget.steepest(noise, attacked.inputs), attacked.inputs))
            for attack in (
                PGD(budget, steps=steps, targeted=True, seed=seed),
                MinimumNorm(budget, steps=steps, restarts=1, seed=seed),  # finds what lies just inside
            ):
                judge(attack(model, attacked.inputs, attacked.target))
    return done


#: l2 radii by group of modalities: of a ball over the one group, or of one ball for each modality.
_Radii: TypeAlias = dict[tuple[str, ...], Tensor]


def _threats(
    certificate: Certificate, names: list[str], products: int, farthest: float, generator: torch.Generator
) -> Iterator[tuple[str, _Radii]]:
    """Nothing at all, the ball, each modality alone, products; up to ``farthest`` where any change is claimed safe."""
    alone = {name: certificate.radius([name]).double().clamp(max=farthest) for name in names}
    nothing = torch.zeros_like(alone[names[0]])
    yield "clean", {tuple(names): nothing}
    yield " + ".join(names), {tuple(names): certificate.radius(names).double().clamp(max=farthest)}
    if len(names) == 1:
        return
    for name in names:
        yield name, {(name,): alone[name]}
    for i in range(products):
        shares = torch.rand(len(names), generator=generator, dtype=torch.float64).clamp(min=0.01).tolist()
        corner = {name: share * alone[name] for name, share in zip(names, shares, strict=True)}
        low, high = nothing, torch.full_like(nothing, 1 / min(shares))
        for _ in range(60):
            middle = (low + high) / 2
            safe = certificate.tolerates({name: middle * budget for name, budget in corner.items()})
            low, high = torch.where(safe, middle, low), torch.where(safe, high, middle)
        yield f"product {i}", {(name,): low * budget for name, budget in corner.items()}


@dataclass(frozen=True)
class _Judge:
    """Compares predictions inside one claim; raises where one changes that was claimed to stay."""

    attacked: AttackedModel
    threat: str
    claimed: _Radii
    rows: Tensor
    done: Verification
    save_to: str | Path | None

    @property
    def rigorous(self) -> bool:
        return self.done.soundness is Soundness.RIGOROUS

    def budget(self) -> Budget:
        """Just inside of what is claimed; double precision needs a little room to measure that."""
        inside = 1 - (1e-12 if self.rigorous else 1e-6)
        if len(self.claimed) > 1:
            radii = {name: radius * inside for (name,), radius in self.claimed.items()}
            return Budget(radii, mask=dict.fromkeys(radii))  # certificates are about changes of padding too
        [(group, radius)] = self.claimed.items()
        return Budget(radius * inside, modalities=group, mask=dict.fromkeys(group))

    def __call__(self, perturbed: Inputs) -> None:
        norms = self._norms(_difference(perturbed, self.attacked))
        inside = torch.stack([norms[group] <= radius for group, radius in self.claimed.items()]).all(dim=0)
        beyond = self._beyond(self.attacked, self.attacked.logits(perturbed)).to(inside.device)
        self.done.probes[self.threat] = self.done.probes.get(self.threat, 0) + int(inside.sum())
        explained = int((inside & beyond.isfinite() & (beyond <= 0)).sum())
        if explained:
            self.done.rounding[self.threat] = self.done.rounding.get(self.threat, 0) + explained
        wrong = inside & (beyond > 0)
        if bool(wrong.any()):
            worst = beyond.masked_fill(~wrong, -torch.inf).argmax()
            raise CertificateViolation(self._counterexample(int(worst), perturbed), self.save_to)

    def _norms(self, delta: Perturbation) -> _Radii:
        return {group: _norm([delta[name] for name in group]) for group in self.claimed}

    def _beyond(self, attacked: AttackedModel, logits: Tensor) -> Tensor:
        """By how much the lead of another class exceeds what rounding explains; minus infinity where none leads."""
        lead = -least_margin(logits, attacked.target)
        slack = 32 * torch.finfo(logits.dtype).eps * logits.abs().amax(dim=1)
        # A rigorous claim is about the prediction itself; and logits that are not finite are beyond any excuse.
        excused = logits.isfinite().all(dim=1) & (not self.rigorous)
        beyond = torch.where(excused, lead - slack, torch.inf)
        return torch.where(right_answers(logits, attacked.target), -torch.inf, beyond)

    def _counterexample(self, index: int, perturbed: Inputs) -> Counterexample:
        row = torch.tensor([index], device=self.attacked.target.device)
        attacked = self.attacked.select(row)
        nearest = select(perturbed, row)
        after = self.attacked.logits(perturbed)[row]
        whole, low, high = _difference(nearest, attacked), 0.0, 1.0
        budget = Budget(1.0, modalities=attacked.modalities, mask=dict.fromkeys(attacked.modalities))
        for _ in range(30):  # nearer to the clean input it says more about how wrong the claim is
            middle = (low + high) / 2
            tried = budget.apply(
                {name: widened(middle * d, attacked.inputs[name].device) for name, d in whole.items()}, attacked.inputs
            )
            logits = attacked.logits(tried)
            if bool((self._beyond(attacked, logits) > 0).all()):
                high, nearest, after = middle, tried, logits
            else:
                low = middle
        delta = _difference(nearest, attacked)
        return Counterexample(
            sample=int(self.rows[index]),
            threat=self.threat,
            radius=_plain({group: radius[index] for group, radius in self.claimed.items()}),
            distance=_plain(self._norms(delta)),
            before=_plain_answer(attacked.target),
            after=(
                _plain_answer(answers(after, has_labels(attacked.target))) if bool(after.isfinite().all()) else None
            ),
            inputs=attacked.inputs,
            perturbation=delta,
            perturbed=nearest,
            soundness=self.done.soundness,
        )


def _difference(perturbed: Inputs, attacked: AttackedModel) -> Perturbation:
    return {name: in_double(perturbed[name]) - in_double(attacked.inputs[name]) for name in attacked.modalities}


def _beside_double(certificate: Certificate) -> Certificate:
    """The certificate where double precision is: on the CPU, if its device has none."""
    if widest(certificate.margins.device) is torch.float64:
        return certificate
    return replace(
        certificate,
        prediction=certificate.prediction.cpu(),
        margins=in_double(certificate.margins),
        sensitivities={name: in_double(slope) for name, slope in certificate.sensitivities.items()},
    )


def _plain_answer(answer: Tensor) -> Answer:
    """Of one sample: its class, or the labels that are a yes."""
    return answer[0].nonzero().flatten().tolist() if has_labels(answer) else int(answer)


def _named(answer: Answer | None) -> str:
    return f"labels {answer}" if isinstance(answer, list) else f"class {answer}"


def _norm(parts: list[Tensor]) -> Tensor:
    """Joint l2 norm of each sample, ``(B,)``."""
    norms: Tensor = torch.stack([torch.linalg.vector_norm(part.flatten(1), dim=1) for part in parts]).norm(dim=0)
    return norms


def _plain(radii: _Radii) -> Norms:
    """One number for a ball, and one by modality for separate budgets."""
    numbers = {group: float(radius) for group, radius in radii.items()}
    return {name: number for (name,), number in numbers.items()} if len(numbers) > 1 else numbers.popitem()[1]


def _written(norms: Norms) -> str:
    if isinstance(norms, dict):
        return ", ".join(f"{norm:.7g} in {name}" for name, norm in norms.items())
    return f"{norms:.7g}"
