# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Try to disprove a certificate: attacks inside of what it claims."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_crmt.attacks import PGD, AttackedModel, Budget, Model, Perturbation, under_attack
from lightning_crmt.certification.certificate import Certificate
from lightning_crmt.certification.violation import CertificateViolation, Counterexample, Norms
from lightning_crmt.checks import check_batch
from lightning_crmt.modality import Inputs
from lightning_crmt.soundness import Soundness


@dataclass(frozen=True)
class Verification:
    """What was tried against a certificate, in vain: evidence, not a proof.

    Attributes:
        soundness: level of the certificate.
        samples: how many samples had a radius above 0; the others claim nothing.
        probes: perturbed inputs inside the claim whose prediction was compared, by threat.
        rounding: those among them whose prediction did change, by no more than rounding explains. Only a ``RIGOROUS``
            certificate speaks about rounding: there, any change is a violation.
    """

    soundness: Soundness
    samples: int
    probes: dict[str, int] = field(default_factory=dict)
    rounding: dict[str, int] = field(default_factory=dict)


class _Threat(NamedTuple):
    name: str
    claimed: dict[str, Tensor] | Tensor  # radius by modality or of the ball, for all samples of the certificate
    modalities: list[str]

    def norms(self, delta: Perturbation) -> dict[str, Tensor]:
        """In the form of a budget for each; for a ball, the joint norm under the name ``""``."""
        each = {n: torch.linalg.vector_norm(delta[n].flatten(1), dim=1) for n in self.modalities if n in delta}
        return each if isinstance(self.claimed, dict) else {"": torch.stack(list(each.values())).norm(dim=0)}


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
    what :meth:`Certificate.tolerates` accepts. Each is probed by random directions and by a gradient search towards
    every class. What counts is the prediction of the public forward for what is stored, with norms measured in float64.

    The claims of a ``RIGOROUS`` certificate are taken to the letter. All others are about exact arithmetic: there the
    radii are shortened by a millionth, and a rival that leads by no more than rounding explains
    (:math:`32 \, \varepsilon \max_k |h_k|`) is counted apart.

    Args:
        model: the model in evaluation mode, or anything from inputs to logits; for a certificate with ``missing``
            modalities, one that goes without them. It is left as found.
        certificate: of these very weights and inputs, at whatever level: with estimated constants, this is how the
            estimate is exposed.
        inputs: the clean inputs.
        probes: random directions for each threat.
        steps: of the gradient search, for each class.
        products: number of random products of budgets.
        seed: of all that is random.
        save_to: file for the counterexample, if there is one.

    Raises:
        CertificateViolation: an ``AssertionError`` with a counterexample.
        ValueError: if ``inputs`` have other modalities or another batch size than the certificate.

    >>> from lightning_crmt import LinearFusion, LipschitzConstants, certify
    >>> head, x = LinearFusion({"audio": 4}, num_classes=3), {"audio": torch.randn(5, 4)}
    >>> def certificate(constant):
    ...     constants = {"audio": torch.tensor(constant)}
    ...     return certify(head(x), head, LipschitzConstants(constants, of="encoder", soundness=Soundness.SOUND))
    >>> verify_certificate(head, certificate(1.0), x).probes
    {'clean': 5, 'audio': 165}
    >>> try:
    ...     verify_certificate(head, certificate(0.5), x)
    ... except CertificateViolation as error:
    ...     bool(error.counterexample.distance < error.counterexample.radius)
    True
    """
    for name, value in {"probes": probes, "steps": steps}.items():
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}")
    if products < 0:
        raise ValueError(f"`products` must be at least 0, got {products}")
    present = [name for name in certificate.sensitivities if name not in certificate.missing]
    lacking = [name for name in present if name not in inputs]
    if lacking or check_batch("inputs", inputs) != len(certificate.prediction):
        raise ValueError(
            f"`inputs` must be the {len(certificate.prediction)} samples of the certificate with modalities {present}, "
            f"got shapes { ({name: tuple(value.shape) for name, value in inputs.items()}) }"
        )
    generator = torch.Generator().manual_seed(seed)
    open_rows = (certificate.radius(present) > 0).nonzero().squeeze(1)
    done = Verification(certificate.soundness, len(open_rows))
    if len(open_rows) == 0:
        return done
    chosen = {name: value[open_rows.to(value.device)] for name, value in inputs.items()}
    target = certificate.prediction[open_rows]
    with under_attack(model, chosen, target, Budget(0.0, modalities=present)) as oracle:
        reach = 10 * (1 + max(float(oracle.inputs[name].double().flatten(1).norm(dim=1).max()) for name in present))
        for threat in _threats(certificate, present, products, reach, generator):
            judge = _Judge(oracle, certificate, open_rows, threat, save_to, done)
            if threat.name == "clean":
                judge(oracle.inputs)
                continue
            budget = judge.budget()
            for _ in range(probes):
                noise = {
                    name: torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.device)
                    for name, value in oracle.inputs.items()
                    if name in threat.modalities
                }
                judge(budget.apply(budget.steepest(noise, oracle.inputs), oracle.inputs))
            judge(PGD(budget, steps=steps, targeted=True, seed=seed)(model, oracle.inputs, oracle.target))
    return done


def _threats(
    certificate: Certificate, names: list[str], products: int, reach: float, generator: torch.Generator
) -> Iterator[_Threat]:
    """Nothing at all, the ball, each modality alone, products; where any change is claimed safe, up to ``reach``."""
    alone = {name: certificate.radius([name]).double().clamp(max=reach) for name in names}
    yield _Threat("clean", torch.zeros_like(alone[names[0]]), names)
    yield _Threat(" + ".join(names), certificate.radius(names).double().clamp(max=reach), names)
    if len(names) == 1:
        return
    for name in names:
        yield _Threat(name, alone[name], [name])
    for i in range(products):
        shares = torch.rand(len(names), generator=generator, dtype=torch.float64).clamp(min=0.01).tolist()
        corner = {name: share * alone[name] for name, share in zip(names, shares, strict=True)}
        low, high = torch.zeros_like(alone[names[0]]), torch.full_like(alone[names[0]], 1 / min(shares))
        for _ in range(60):
            middle = (low + high) / 2
            safe = certificate.tolerates({name: middle * budget for name, budget in corner.items()})
            low, high = torch.where(safe, middle, low), torch.where(safe, high, middle)
        yield _Threat(f"product {i}", {name: low * budget for name, budget in corner.items()}, names)


class _Judge:
    """Compares predictions inside one threat; raises where one changes that was claimed to stay."""

    def __init__(
        self,
        oracle: AttackedModel,
        certificate: Certificate,
        rows: Tensor,
        threat: _Threat,
        save_to: str | Path | None,
        done: Verification,
    ) -> None:
        self.oracle, self.rows, self.threat, self.save_to, self.done = oracle, rows, threat, save_to, done
        self.soundness = certificate.soundness
        self.rigorous = certificate.soundness is Soundness.RIGOROUS
        device = oracle.target.device
        claimed = threat.claimed if isinstance(threat.claimed, dict) else {"": threat.claimed}
        self.claimed = {name: radius[rows].to(device) for name, radius in claimed.items()}

    def budget(self) -> Budget:
        """Just inside of what is claimed; double precision needs a little room to measure that."""
        inside = 1 - (1e-12 if self.rigorous else 1e-6)
        radii = {name: radius * inside for name, radius in self.claimed.items()}
        return Budget(radii[""], modalities=self.threat.modalities) if "" in radii else Budget(radii)

    def __call__(self, perturbed: Inputs) -> None:
        name = self.threat.name
        delta = self._delta(perturbed, self.oracle)
        norms = self.threat.norms(delta)
        inside = torch.stack([norms[each] <= radius for each, radius in self.claimed.items()]).all(dim=0)
        changed, beyond = self._changed(self.oracle, self.oracle.logits(perturbed))
        self.done.probes[name] = self.done.probes.get(name, 0) + int(inside.sum())
        explained = int((inside & changed & (beyond <= 0)).sum())
        if explained:
            self.done.rounding[name] = self.done.rounding.get(name, 0) + explained
        wrong = inside & changed & (beyond > 0)
        if bool(wrong.any()):
            worst = beyond.masked_fill(~wrong, -torch.inf).argmax()
            raise CertificateViolation(self._counterexample(int(worst), perturbed), self.save_to)

    def _delta(self, perturbed: Inputs, oracle: AttackedModel) -> Perturbation:
        return {name: perturbed[name].double() - oracle.inputs[name].double() for name in oracle.modalities}

    def _changed(self, oracle: AttackedModel, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Whether the prediction is another, and by how much its lead exceeds what rounding explains."""
        own = logits.gather(1, oracle.target[:, None]).squeeze(1)
        lead = logits.amax(dim=1) - own
        slack = 32 * torch.finfo(logits.dtype).eps * logits.abs().amax(dim=1)
        # A rigorous claim is about the prediction itself; and logits that are not finite are beyond any excuse.
        beyond = torch.full_like(lead, torch.inf) if self.rigorous else (lead - slack).nan_to_num(torch.inf, torch.inf)
        return logits.argmax(dim=1) != oracle.target, beyond

    def _counterexample(self, index: int, perturbed: Inputs) -> Counterexample:
        row = torch.tensor([index], device=self.oracle.target.device)
        oracle = self.oracle.select(row)
        found = {name: value[row] for name, value in perturbed.items()}
        after = self.oracle.logits(perturbed)[row]
        whole, low, high = self._delta(found, oracle), 0.0, 1.0
        budget = Budget(1.0, modalities=oracle.modalities)
        for _ in range(30):  # nearer to the clean input it says more about how wrong the claim is
            middle = (low + high) / 2
            tried = budget.apply({name: middle * d for name, d in whole.items()}, oracle.inputs)
            logits = oracle.logits(tried)
            changed, beyond = self._changed(oracle, logits)
            if bool((changed & (beyond > 0)).all()):
                high, found, after = middle, tried, logits
            else:
                low = middle
        delta = self._delta(found, oracle)
        norms = {name: float(norm) for name, norm in self.threat.norms(delta).items()}
        claimed = {name: float(radius[index]) for name, radius in self.claimed.items()}
        return Counterexample(
            sample=int(self.rows[index]),
            threat=self.threat.name,
            radius=_plain(claimed),
            distance=_plain(norms),
            before=int(oracle.target),
            after=int(after.argmax(dim=1)),
            inputs=oracle.inputs,
            perturbation=delta,
            perturbed=found,
            soundness=self.soundness,
        )


def _plain(norms: dict[str, float]) -> Norms:
    return norms[""] if "" in norms else norms  # noqa: SIM401 - its two values are of two types
