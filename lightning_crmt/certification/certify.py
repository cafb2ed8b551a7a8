# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""From logits, or from samples, to a certificate."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from lightning_crmt.certification.certificate import Certificate
from lightning_crmt.certification.inequality import sensitivities
from lightning_crmt.certification.rounding import UP, rounding
from lightning_crmt.checks import check_inputs, check_same_modalities, describe
from lightning_crmt.frozen_eval import as_taken_by, frozen_eval
from lightning_crmt.fusion import LateFusion
from lightning_crmt.lipschitz import (
    BOUND_LEVELS,
    ForwardError,
    LipschitzConstants,
    NoBoundError,
    encoder_bounds,
    encoder_errors,
    encoders_and_head,
)
from lightning_crmt.modality import FusionOutput, Inputs, at_least_single, logits_of
from lightning_crmt.soundness import Soundness


def certify(
    output: FusionOutput | Tensor,
    head: LateFusion | None,
    lipschitz: LipschitzConstants,
    *,
    missing: Collection[str] = (),
    errors: Mapping[str, ForwardError] | None = None,
) -> Certificate:
    """Turn logits and Lipschitz constants into a :class:`Certificate`.

    The form of the bound depends on what the constants describe, see :class:`LipschitzConstants`.

    Without ``errors``, it is about exact arithmetic, ``SOUND`` at best, and a float32 input very near the edge of the
    ball may still change the float32 prediction. With them and rigorous constants it is ``RIGOROUS``: about the
    prediction of the public forward in evaluation mode, without autocast, for all inputs in the precision of the
    parameters.

    Args:
        output: what the model returned, computed in evaluation mode and full precision.
        head: the fusion head that computed it; ``None`` for another model, with constants of margins.
        lipschitz: constants of the same weights.
        missing: modalities to certify without; their scores are dropped from the fusion.
        errors: rounding errors of the features of the same samples, for every modality that is not missing, by
            :func:`~lightning_crmt.lipschitz.encoder_errors`. They need constants of encoders and a head of fixed
            numbers on the CPU, see :func:`~lightning_crmt.layers.with_fixed_weights`.

    Raises:
        ValueError: if head, constants, errors and output do not fit together, or every modality is missing; with
            ``errors``, if ``head`` computes its weights anew in every pass, as ``OrthogonalFusion`` does.
        TypeError: if there is no tensor of logits in ``output``.

    >>> from lightning_crmt.fusion import LinearFusion
    >>> head = LinearFusion({"audio": 3, "image": 4}, num_classes=5)
    >>> output = head({"audio": torch.randn(2, 3), "image": torch.randn(2, 4)})
    >>> one = {"audio": torch.tensor(1.0), "image": torch.tensor(1.0)}
    >>> certificate = certify(output, head, LipschitzConstants(one, of="encoder", soundness=Soundness.SOUND))
    >>> bool((certificate.radius() <= certificate.radius(["audio"])).all())
    True
    """
    pairs = sensitivities(lipschitz, head)
    present = [name for name in pairs if name not in missing]
    logits = (_fused(output, head, list(pairs), missing) if missing else logits_of(output)).detach()
    num_classes = logits.shape[1]
    for name, pair in pairs.items():
        if pair.shape != (num_classes, num_classes):
            raise ValueError(
                f"`lipschitz` must fit the {num_classes} classes of `output`, got {tuple(pair.shape)} for {name!r}"
            )
    prediction = logits.argmax(dim=1)
    if errors is None:
        margins = _margins(at_least_single(logits), prediction)
        slopes = {name: pairs[name].detach().to(margins)[prediction] for name in present}
        # Nothing here accounts for rounding, however rigorous the constants are.
        soundness, limit = min(lipschitz.soundness, Soundness.SOUND), math.inf
    else:
        errors = {name: error for name, error in errors.items() if name not in missing}
        check_same_modalities("errors", errors, present)
        slack, slopes = rounding(logits, head, lipschitz, errors)
        margins = _margins(logits.double(), prediction) / UP - slack
        soundness, limit = lipschitz.soundness, ForwardError.LARGEST_RADIUS
    slopes = {name: slopes.get(name, torch.zeros_like(margins)) for name in pairs}
    return Certificate(prediction, margins, slopes, soundness, tuple(missing), limit)


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
        model: returns ``head({m: encoders[m](inputs[m])})`` with its attributes ``encoders``, by modality, and
            ``head``. A certificate covers nothing else that the model may do.
        inputs: one batch by modality; run on the device and in the precision of the model's parameters.
        lipschitz: constants of the same weights; with estimated ones the radii are estimates. By default
            :func:`~lightning_crmt.lipschitz.encoder_bounds` computes them: for many batches, do that once.
        level: ``SOUND``, or ``RIGOROUS`` to count rounding too: for models in float32 or float64 on the CPU whose
            weights are fixed, see :func:`~lightning_crmt.layers.with_fixed_weights`.
        missing: modalities to certify without, see :func:`~lightning_crmt.certification.certify`.

    Raises:
        NoBoundError: if an encoder has no bound at this level.
        ValueError: at level rigorous, for weaker constants, and for a model about which nothing can be proved.
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
    level = Soundness.among(BOUND_LEVELS, "level", level)
    rigorous = level is Soundness.RIGOROUS
    if rigorous and lipschitz is not None and lipschitz.soundness < level:
        raise ValueError(
            f"`lipschitz` must be rigorous at level 'rigorous', it is {lipschitz.soundness.name.lower()}; "
            "leave it out, or take encoder_bounds(encoders, level='rigorous')"
        )
    encoders, head = encoders_and_head(model)
    if lipschitz is None or rigorous:
        check_inputs(inputs, encoders.keys())
    with frozen_eval(model), torch.no_grad():
        inputs = as_taken_by(model, inputs)
        if lipschitz is None:
            try:
                shapes = {name: value.shape[1:] for name, value in inputs.items()}
                lipschitz = encoder_bounds(encoders, shapes, level=level)
            except NoBoundError as error:
                if rigorous:
                    raise  # it says what to do
                raise NoBoundError(
                    f"{error}. Without a bound nothing is certified; for radii that are estimates, say so: "
                    "lipschitz=estimate_lipschitz(model, batches)"
                ) from error
        errors = encoder_errors(encoders, inputs) if rigorous else None
        return certify(model(inputs), head, lipschitz, missing=missing, errors=errors)


def _margins(logits: Tensor, prediction: Tensor) -> Tensor:
    margins = logits.gather(1, prediction[:, None]) - logits
    return torch.where(logits.isfinite().all(dim=1, keepdim=True), margins, torch.zeros_like(margins))


def _fused(
    output: FusionOutput | Tensor, head: LateFusion | None, modalities: list[str], missing: Collection[str]
) -> Tensor:
    """Logits without the scores of those that are missing."""
    if isinstance(missing, str):
        raise TypeError(f"`missing` must be a collection of names, got the string {missing!r}")
    if not isinstance(head, LateFusion) or not isinstance(output, FusionOutput):
        raise ValueError(
            "`missing` needs a fusion head and a FusionOutput to drop scores from, "
            f"got {describe(head)} and {describe(output)}"
        )
    if not set(missing) < set(modalities):
        raise ValueError(f"`missing` must leave at least one of the modalities {modalities}, got {list(missing)}")
    check_same_modalities("output.scores", output.scores, modalities)
    return head.fuse({name: output.scores[name] for name in modalities if name not in missing})
