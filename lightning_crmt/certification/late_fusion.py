# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""From samples to a certificate in one call, for models that are encoders and a fusion head and nothing else."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from lightning_crmt.certification.certificate import Certificate, certify
from lightning_crmt.certification.gate import Examined, examine, parts_of
from lightning_crmt.certification.inequality import own_class, row_distances, sensitivities
from lightning_crmt.checks import check_batch, check_inputs
from lightning_crmt.frozen_eval import differentiable, frozen_eval
from lightning_crmt.lipschitz import LipschitzConstants, NoBoundError, encoder_bounds, encoder_errors
from lightning_crmt.lipschitz.running_error import Precision, running_error
from lightning_crmt.modality import Inputs
from lightning_crmt.soundness import Soundness


def certify_late_fusion(
    model: nn.Module,
    inputs: Inputs,
    lipschitz: LipschitzConstants | None = None,
    *,
    level: Soundness | str = Soundness.SOUND,
    missing: Collection[str] = (),
) -> Certificate:
    """Certificate of a model's predictions for ``inputs``, in evaluation mode and without autocast.

    Args:
        model: answers ``head({m: encoders[m](inputs[m])})`` with its attributes ``encoders``, by modality, and
            ``head``. A certificate covers nothing else that it may do to its inputs.
        inputs: one batch by modality; run on the device and in the precision of the model's parameters.
        lipschitz: constants of these very weights; with estimated ones the radii are estimates. By default
            :func:`~lightning_crmt.lipschitz.encoder_bounds` computes them: for many batches, do that once.
        level: ``"rigorous"`` counts rounding too: for models in float32 or float64 on the CPU whose weights are fixed,
            see :func:`~lightning_crmt.layers.with_fixed_weights`.
        missing: modalities to certify without, see :func:`~lightning_crmt.certification.certify`.

    Raises:
        NoBoundError: if an encoder has no bound at this level.
        ValueError: at level rigorous, for weaker constants, and for a model that nothing is proved about.
        TypeError: if ``model`` has no encoders or head.

    >>> from lightning_crmt.fusion import LinearFusion
    >>> model = nn.Module()
    >>> model.encoders = nn.ModuleDict({"audio": nn.Linear(20, 16), "image": nn.Identity()})
    >>> model.head = LinearFusion({"audio": 16, "image": 30}, num_classes=10)
    >>> model.forward = lambda inputs: model.head({name: f(inputs[name]) for name, f in model.encoders.items()})
    >>> inputs = {"audio": torch.randn(2, 20), "image": torch.randn(2, 30)}
    >>> certify_late_fusion(model, inputs).soundness, certify_late_fusion(model, inputs, level="rigorous").soundness
    (<Soundness.SOUND: 2>, <Soundness.RIGOROUS: 3>)
    """
    level = Soundness.among([Soundness.SOUND, Soundness.RIGOROUS], "level", level)
    _, head = parts_of(model)
    if lipschitz is not None and not lipschitz.soundness.certified:
        if level is Soundness.RIGOROUS:
            raise ValueError("`lipschitz` must be rigorous at level 'rigorous', it is estimated; leave it out")
        with frozen_eval(model), torch.no_grad():
            return certify(model(_as_taken(inputs, model)), head, lipschitz, missing=missing)
    return Evaluation(model, inputs, lipschitz, level=level).certificate(missing)


class Evaluation:
    """One batch as the model runs it and in exact arithmetic: what certificates with and without modalities share.

    The arguments are those of :func:`certify_late_fusion`.
    """

    def __init__(
        self, model: nn.Module, inputs: Inputs, lipschitz: LipschitzConstants | None, *, level: Soundness
    ) -> None:
        encoders, self.head = parts_of(model)
        check_inputs(inputs, encoders)
        self.level = level
        with frozen_eval(nn.ModuleList([*encoders.values(), self.head])), torch.no_grad():
            twin = examine(encoders, self.head)
            _refuse_stale(lipschitz, level, twin, inputs)
            inputs = _as_taken(inputs, model)
            shapes = {name: tuple(value.shape[1:]) for name, value in inputs.items()}
            self.output = self.head({name: encoder(inputs[name]) for name, encoder in encoders.items()})
            size = check_batch("features", self.output.features)
            if size != check_batch("inputs", inputs):
                raise ValueError(f"encoders must give one row of features per sample, got {size} of {len(inputs)}")
            if level is Soundness.RIGOROUS:
                self.constants = encoder_bounds(encoders, shapes, level=level)
                self.errors = encoder_errors(encoders, inputs)
                return
            try:
                self.constants = twin.bounds(shapes)
            except NoBoundError as error:
                raise NoBoundError(
                    f"{error}. Without a bound nothing is certified; for radii that are estimates, say so: "
                    "lipschitz=estimate_lipschitz(model, batches)"
                ) from error
            self.exact = twin.head
            features, self.feature_errors = {}, {}
            for name, encoder in encoders.items():
                precision = Precision(_dtype(encoder, inputs[name]), inputs[name].device)
                features[name], self.feature_errors[name] = running_error(
                    encoder, twin.encoders[name], inputs[name].double(), precision, twin.layer_bound
                )
            self.exact_output = self.exact(features)
            self.precision = Precision(self.head.bias.dtype, self.head.bias.device)

    def certificate(self, missing: Collection[str] = ()) -> Certificate:
        """The certificate with these modalities dropped."""
        if self.level is Soundness.RIGOROUS:
            return certify(self.output, self.head, self.constants, missing=missing, errors=self.errors)
        with torch.no_grad():
            exact = certify(self.exact_output, self.exact, self.constants, missing=missing)
            present = [name for name in self.exact_output.scores if name not in missing]
            running = self.head.fuse({name: self.output.scores[name] for name in present})
            prediction = running.argmax(dim=1)
            logits = self.exact.fuse({name: self.exact_output.scores[name] for name in present})
            margins = logits.gather(1, prediction[:, None]) - logits
            slack = self._slack(prediction, present)
            own = own_class(prediction, logits.shape[1])
            vouched = ((margins > slack) | own).all(dim=1) & running.isfinite().all(dim=1)
            # Double precision rounds too; as much less as its unit is smaller.
            margins = margins - slack * (1.0 if self.precision.double else 2.0**-24)
            margins = torch.where(vouched[:, None], margins, torch.zeros_like(margins))
            pairs = sensitivities(self.constants, self.exact)
            slopes = {
                name: pair[prediction] if name in present else torch.zeros_like(margins) for name, pair in pairs.items()
            }
            return Certificate(prediction, margins, slopes, exact.soundness, tuple(missing))

    def _slack(self, prediction: Tensor, present: Collection[str]) -> Tensor:
        """How far the margins that the model computes as it runs may be from the exact ones, ``(B, K)``."""
        exact, running = self.exact.class_weights, self.head.class_weights
        terms = max(self.head.in_features.values()) + len(self.head.in_features) + 4
        gamma = 4 * self.precision.gamma(terms)
        each = gamma * self.exact.bias.abs() + self.precision.smallest * terms
        slack = each[prediction][:, None] + each
        for name in present:
            rows, error = exact[name], self.feature_errors[name]
            size = self.exact_output.features[name].norm(dim=1) + error
            # Directions that are computed in every pass come out a little different from one machine to another.
            each = gamma * rows.norm(dim=1) + 4 * (running[name].double() - rows).norm(dim=1)
            slack = slack + (each[prediction][:, None] + each) * size[:, None]
            slack = slack + row_distances(rows)[prediction] * error[:, None]
        return slack


def _refuse_stale(lipschitz: LipschitzConstants | None, level: Soundness, twin: Examined, inputs: Inputs) -> None:
    if lipschitz is None:
        return
    if lipschitz.soundness < level:
        raise ValueError(
            f"`lipschitz` must be rigorous at level 'rigorous', it is {lipschitz.soundness.name.lower()}; "
            "leave it out, or take encoder_bounds(encoders, level='rigorous')"
        )
    if lipschitz.fingerprints != twin.fingerprints:
        raise ValueError(
            "`lipschitz` must be bounds of these very encoders, as encoder_bounds gives them; they were changed since, "
            "or the constants are nobody's: leave them out, and bounds are computed, once for weights as they are"
        )
    shapes = {name: tuple(value.shape[1:]) for name, value in inputs.items()}
    if lipschitz.shapes is not None and lipschitz.shapes != shapes:
        raise ValueError(f"`lipschitz` must be bounds for samples of shapes {shapes}, it is for {lipschitz.shapes}")


def _as_taken(inputs: Inputs, model: nn.Module) -> dict[str, Tensor]:
    return {
        name: differentiable({name: value}, model)[name].detach() if value.is_floating_point() else value
        for name, value in inputs.items()
    }


def _dtype(encoder: nn.Module, x: Tensor) -> torch.dtype:
    return next((p.dtype for p in encoder.parameters() if p.is_floating_point()), x.dtype)
