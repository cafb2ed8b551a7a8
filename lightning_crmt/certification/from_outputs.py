# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""From logits and constants to a certificate."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from lightning_crmt.certification.certificate import Certificate
from lightning_crmt.certification.inequality import margins_of, sensitivities
from lightning_crmt.certification.rounding import UP, rounding
from lightning_crmt.checks import check_same_modalities, describe
from lightning_crmt.fusion import LateFusion
from lightning_crmt.lipschitz import (
    ForwardError,
    LipschitzConstants,
)
from lightning_crmt.modality import FusionOutput, at_least_single, logits_of
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
    logits = (fused(output, head, list(pairs), missing) if missing else logits_of(output)).detach()
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


def _margins(logits: Tensor, prediction: Tensor) -> Tensor:
    margins = margins_of(logits, prediction)
    return torch.where(logits.isfinite().all(dim=1, keepdim=True), margins, torch.zeros_like(margins))


def fused(
    output: FusionOutput | Tensor, head: LateFusion | None, modalities: list[str], missing: Collection[str]
) -> Tensor:
    """Logits without the scores of the modalities that are missing.

    Raises:
        ValueError: if unknown modalities are missing, or all, or there are no scores to drop.
    """
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
