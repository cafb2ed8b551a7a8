# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Radii and what they are made of, in every validation and test epoch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from lightning_crmt.borrowing import borrow, differentiable
from lightning_crmt.callbacks.naming import NamedModel
from lightning_crmt.callbacks.observer import Measurement, Observer, Reduce
from lightning_crmt.certification import Certificate, certify
from lightning_crmt.fusion import Fusion
from lightning_crmt.lipschitz import LipschitzConstants
from lightning_crmt.lipschitz.estimate import margin_speeds
from lightning_crmt.modality import FusionOutput, describe, logits_of
from lightning_crmt.soundness import Soundness


class CertifiedRobustness(Observer):
    r"""Logs how robust the predictions are, jointly and per modality; works with any classifier that has gradients.

    With estimated constants: the largest gradient of each difference of logits over the evaluated samples,
    :math:`D_{pj}^m = \max_i \| \partial (h_p - h_j) / \partial x^m (x_i) \|_2`, put into the one inequality of
    :class:`~lightning_crmt.Certificate`. This is a lower bound of the true constant, so **the radii are estimates**
    and every key says so. It costs one backward pass per class and batch, without changing anything in training.

    Logged under ``val/`` and ``test/``, with ``joint`` or the name of a modality for *m*:

    - ``estimated_accuracy/m@r``: share of samples that are right and whose radius exceeds r;
    - ``estimated_radius/m``: mean radius, a wrong prediction counting as 0;
    - ``margin/joint``: mean of :math:`h_y - \max_{j \ne y} h_j`; ``margin/m``: the same of uni-modal scores, where the
      module returns them;
    - ``integration_factor/m``: mean of :math:`c_j^m = \|W_p^m - W_j^m\|`, how much the decision relies on m, where the
      module has a fusion head;
    - ``vulnerability/m``: mean of :math:`\eta_j^m = D_{pj}^m`, how fast a change in m eats up the margin;

    the last two for the class j whose boundary is nearest by the joint bound.

    Args:
        radii: l2 radii, in units of the model's inputs, at which accuracy is logged.
        inputs: names of the modalities in the order of the batch; not needed for a CRMT module.
        every_n_epochs: measure in every n-th epoch of a fit; ``validate`` and ``test`` always measure.
        max_batches: measure the first so many batches of a loader; all by default.

    Raises:
        ValueError: if a radius is negative; on ``setup``, if names are needed and missing.

    >>> callback = CertifiedRobustness(radii=[0.1, 0.2], inputs=("image", "audio"))
    """

    def __init__(
        self,
        radii: Sequence[float] = (),
        inputs: Sequence[str] | None = None,
        every_n_epochs: int = 1,
        max_batches: int | None = None,
    ) -> None:
        super().__init__(inputs=inputs, every_n_epochs=every_n_epochs, max_batches=max_batches)
        for radius in radii:
            if not radius >= 0:
                raise ValueError(f"`radii` must be at least 0, got {list(radii)}")
        self.radii = list(radii)

    @override
    def measurement(self, model: NamedModel) -> Measurement:
        return _Robustness(model, self.radii)


class _Robustness(Measurement):
    """Keeps the largest gradients, and the logits of all samples until these are known."""

    def __init__(self, model: NamedModel, radii: Sequence[float]) -> None:
        self.model = model
        self.radii = radii
        head = getattr(model.module, "head", None)
        self.head = head if isinstance(head, Fusion) and set(head.in_features) == set(model.names) else None
        self.speeds: dict[str, Tensor] = {}
        self.logits: list[Tensor] = []
        self.targets: list[Tensor] = []
        self.scores: list[dict[str, Tensor]] = []

    def update(self, inputs: dict[str, Tensor], target: Tensor) -> None:
        with borrow(self.model):
            leaves = differentiable(inputs, self.model)
            output = self.model(leaves)
            logits = logits_of(output)
            if not logits.requires_grad:
                raise RuntimeError(
                    f"the logits of {describe(self.model.module)} carry no gradient to its inputs: "
                    "something in `forward` detaches them, so their sensitivity cannot be measured"
                )
            found = margin_speeds(logits, leaves)
        for name, speeds in found.items():
            # A gradient that is not finite bounds nothing: an infinite constant makes every radius 0.
            largest = speeds.amax(dim=0).nan_to_num(nan=torch.inf)
            self.speeds[name] = torch.maximum(self.speeds[name], largest) if name in self.speeds else largest
        self.logits.append(logits.detach())
        self.targets.append(target.detach().to(logits.device))
        if isinstance(output, FusionOutput):
            self.scores.append({name: score.detach() for name, score in output.scores.items()})

    def compute(self, reduce: Reduce) -> dict[str, float]:
        constants = LipschitzConstants(
            {name: reduce(value, "max") for name, value in self.speeds.items()},
            of="margins",
            soundness=Soundness.ESTIMATED,
        )
        target = torch.cat(self.targets)
        certificate = certify(torch.cat(self.logits), None, constants)
        samples = self._per_sample(certificate, target)
        # One sum over ranks for all numbers; the last is the number of samples.
        values = torch.stack([value.double().sum() for value in samples.values()])
        sums = reduce(torch.cat([values, values.new_tensor([len(target)])]), "sum").tolist()
        return {key: total / sums[-1] for key, total in zip(samples, sums[:-1], strict=True)}

    def _per_sample(self, certificate: Certificate, target: Tensor) -> dict[str, Tensor]:
        label = certificate.soundness.label
        correct = certificate.prediction == target
        found: dict[str, Tensor] = {}
        for name, modalities in [("joint", None), *((name, [name]) for name in self.model.names)]:
            radius = torch.where(correct, certificate.radius(modalities), 0.0)
            found[f"{label}_radius/{name}"] = radius
            for r in self.radii:
                found[f"{label}_accuracy/{name}@{r:g}"] = correct & (radius > r)
        found["margin/joint"] = _margin(torch.cat(self.logits), target)
        if self.scores:
            for name in self.model.names:
                found[f"margin/{name}"] = _margin(torch.cat([scores[name] for scores in self.scores]), target)
        rival = certificate.nearest_class()
        for name in self.model.names:
            found[f"vulnerability/{name}"] = certificate.sensitivities[name].gather(1, rival[:, None]).squeeze(1)
            if self.head is not None:
                rows = self.head.class_weights[name].detach()
                found[f"integration_factor/{name}"] = (rows[certificate.prediction] - rows[rival]).norm(dim=1)
        return found


def _margin(scores: Tensor, target: Tensor) -> Tensor:
    of_target = scores.gather(1, target[:, None])
    rivals = scores.scatter(1, target[:, None], -torch.inf)
    return of_target.squeeze(1) - rivals.amax(dim=1)
