# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""From samples to a certificate in one call, for models that are encoders and a fusion head and nothing else."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import nn

from lightning_crmt.certification.certificate import Certificate, certify
from lightning_crmt.checks import check_inputs, describe
from lightning_crmt.frozen_eval import differentiable, frozen_eval
from lightning_crmt.fusion import LateFusion
from lightning_crmt.lipschitz import Level, LipschitzConstants, NoBoundError, encoder_bounds, encoder_errors
from lightning_crmt.modality import Inputs
from lightning_crmt.soundness import Soundness


def certify_late_fusion(
    model: nn.Module,
    inputs: Inputs,
    lipschitz: LipschitzConstants | None = None,
    *,
    level: Level = "sound",
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
    if level not in ("sound", "rigorous"):
        raise ValueError(f"`level` must be 'sound' or 'rigorous', got {level!r}")
    if level == "rigorous" and lipschitz is not None and lipschitz.soundness < Soundness.RIGOROUS:
        raise ValueError(
            f"`lipschitz` must be rigorous at level 'rigorous', it is {lipschitz.soundness.name.lower()}; "
            "leave it out, or take encoder_bounds(encoders, level='rigorous')"
        )
    encoders, head = getattr(model, "encoders", None), getattr(model, "head", None)
    if not isinstance(encoders, Mapping | nn.ModuleDict) or not isinstance(head, LateFusion):
        raise TypeError(
            "`model` must have `encoders`, a mapping of modules, and `head`, a LateFusion by a linear head; "
            f"got {describe(encoders)} and {describe(head)}. Of another model radii can be estimated, not certified: "
            "certify(output, None, estimate_lipschitz(model, batches, of='margins'))"
        )
    if lipschitz is None or level == "rigorous":
        check_inputs(inputs, encoders.keys())
    with frozen_eval(model), torch.no_grad():
        inputs = {
            name: differentiable({name: value}, model)[name].detach() if value.is_floating_point() else value
            for name, value in inputs.items()
        }
        if lipschitz is None:
            lipschitz = _bounds(encoders, inputs, level)
        errors = encoder_errors(encoders, inputs) if level == "rigorous" else None
        return certify(model(inputs), head, lipschitz, missing=missing, errors=errors)


def _bounds(encoders: Mapping[str, nn.Module] | nn.ModuleDict, inputs: Inputs, level: Level) -> LipschitzConstants:
    try:
        return encoder_bounds(encoders, {name: value.shape[1:] for name, value in inputs.items()}, level=level)
    except NoBoundError as error:
        if level == "rigorous":
            raise  # it says what to do
        raise NoBoundError(
            f"{error}. Without a bound nothing is certified; for radii that are estimates, say so: "
            "lipschitz=estimate_lipschitz(model, batches)"
        ) from error
