# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""From logits and constants to a certificate."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor

from lightning_crmt.certification.certificate import Certificate
from lightning_crmt.certification.inequality import label_sensitivities, margins_of, of_samples, sensitivities
from lightning_crmt.certification.rounding import UP, rounding
from lightning_crmt.checks import check_same_modalities, describe
from lightning_crmt.fusion import LateFusion
from lightning_crmt.lipschitz import (
    ForwardError,
    LipschitzConstants,
)
from lightning_crmt.modality import FusionOutput, at_least_single, logits_of, where_present
from lightning_crmt.soundness import Soundness
from lightning_crmt.targets import answers


def certify(
    output: FusionOutput | Tensor,
    head: LateFusion | None,
    lipschitz: LipschitzConstants,
    *,
    missing: Collection[str] = (),
    multi_label: bool = False,
) -> Certificate:
    """Turn logits and Lipschitz constants into a :class:`Certificate` of level ``ESTIMATED``.

    The form of the bound depends on what the constants describe, see :class:`LipschitzConstants`. However sound they
    are, the level is ``ESTIMATED``: logits do not tell which network computed them, or how much rounding took. What is
    certified comes from ``model.certify(inputs)`` and
    :func:`~lightning_crmt.certification.certify_late_fusion`, which examine both; if you can prove it in another
    way, say so by ``dataclasses.replace(certificate, soundness=Soundness.SOUND)``.

    Args:
        output: what the model returned, computed in evaluation mode and full precision: logits ``(B, K)``, or a
            ``FusionOutput`` with them; where modalities are missing, also the scores ``(B, K)`` of each. What a sample
            lacks cannot change.
        head: the fusion head that computed it; ``None`` for another model, with constants of margins.
        lipschitz: constants of the same weights, by modality: scalars of encoders, ``(K,)`` of scores, ``(K, K)`` of
            margins, ``(K,)`` of labels.
        missing: modalities to certify without; their scores are dropped from the fusion.
        multi_label: certify labels, each a yes where its logit is above 0, in place of one class.

    Returns:
        A certificate of B predictions, its margins and, by modality, its sensitivities ``(B, K)``; without a graph.

    Raises:
        ValueError: if head, constants and output do not fit together, or every modality is missing.
        TypeError: if there is no tensor of logits in ``output``.

    >>> from lightning_crmt.fusion import LinearFusion
    >>> head = LinearFusion({"audio": 3, "image": 4}, num_classes=5)
    >>> output = head({"audio": torch.randn(2, 3), "image": torch.randn(2, 4)})
    >>> one = {"audio": torch.tensor(1.0), "image": torch.tensor(1.0)}
    >>> certificate = certify(output, head, LipschitzConstants(one, of="encoder", soundness=Soundness.ESTIMATED))
    >>> bool((certificate.radius() <= certificate.radius(["audio"])).all())
    True
    """
    missing = names_of(missing)
    slopes, logits, prediction = _fitting(output, head, lipschitz, missing, multi_label)
    margins = _margins(at_least_single(logits), prediction)
    present = output.present if isinstance(output, FusionOutput) else {}
    slopes = {
        name: torch.zeros_like(margins)
        if name in missing
        else where_present(slope.detach().to(margins), present.get(name))
        for name, slope in slopes.items()
    }
    return Certificate(prediction, margins, slopes, Soundness.ESTIMATED, missing)


def certify_with_errors(
    output: FusionOutput,
    head: LateFusion,
    lipschitz: LipschitzConstants,
    errors: Mapping[str, ForwardError],
    *,
    missing: Collection[str] = (),
    multi_label: bool = False,
) -> Certificate:
    """A certificate in which rounding counts: about the prediction of the public forward for all perturbed inputs.

    Args:
        output: of an examined model, in evaluation mode, without autocast.
        head: of fixed numbers on the CPU, see :func:`~lightning_crmt.layers.with_fixed_weights`.
        lipschitz: constants of encoders; the certificate has their level.
        errors: rounding errors of the features of the same samples, for every modality that is not missing, by
            :func:`~lightning_crmt.lipschitz.encoder_errors`.
        missing: modalities to certify without.
        multi_label: certify labels in place of one class.

    Raises:
        ValueError: if head, constants, errors and output do not fit together, every modality is missing, or ``head``
            computes its weights anew in every pass, as ``OrthogonalFusion`` does.
    """
    missing = names_of(missing)
    names, logits, prediction = _fitting(output, head, lipschitz, missing, multi_label)
    errors = {name: error for name, error in errors.items() if name not in missing}
    check_same_modalities("errors", errors, [name for name in names if name not in missing])
    slack, slopes = rounding(logits, head, lipschitz, errors, multi_label)
    margins = _margins(logits.double(), prediction) / UP - slack
    slopes = {name: slopes.get(name, torch.zeros_like(margins)) for name in names}
    return Certificate(prediction, margins, slopes, lipschitz.soundness, missing, ForwardError.LARGEST_RADIUS)


def _fitting(
    output: FusionOutput | Tensor,
    head: LateFusion | None,
    lipschitz: LipschitzConstants,
    missing: Collection[str],
    multi_label: bool,
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Sensitivities ``(B, K)`` by modality, logits ``(B, K)`` that fit them, and the answers that they give."""
    modalities = [*lipschitz.modalities, *lipschitz.clean]
    logits = (fused(output, head, modalities, missing) if missing else logits_of(output)).detach()
    num_classes = logits.shape[1]
    bounds = (label_sensitivities if multi_label else sensitivities)(lipschitz, head)
    for name, bound in bounds.items():
        if set(bound.shape) != {num_classes}:
            raise ValueError(
                f"`lipschitz` must fit the {num_classes} classes of `output`, got {tuple(bound.shape)} for {name!r}"
            )
    prediction = answers(logits, multi_label)
    return of_samples(bounds, prediction), logits, prediction


def _margins(logits: Tensor, prediction: Tensor) -> Tensor:
    margins = margins_of(logits, prediction)
    return torch.where(logits.isfinite().all(dim=1, keepdim=True), margins, torch.zeros_like(margins))


def names_of(missing: Iterable[str]) -> tuple[str, ...]:
    """Names of modalities that can be read more than once.

    Raises:
        TypeError: for a string, whose letters are no names.
    """
    if isinstance(missing, str):
        raise TypeError(f"`missing` must be a collection of names, got the string {missing!r}")
    return tuple(missing)


def fused(
    output: FusionOutput | Tensor, head: LateFusion | None, modalities: list[str], missing: Collection[str]
) -> Tensor:
    """Logits without the scores of the modalities that are missing.

    Raises:
        ValueError: if unknown modalities are missing, or all, or there are no scores to drop.
    """
    missing = names_of(missing)
    if not isinstance(head, LateFusion) or not isinstance(output, FusionOutput):
        raise ValueError(
            "`missing` needs a fusion head and a FusionOutput to drop scores from, "
            f"got {describe(head)} and {describe(output)}"
        )
    if not set(missing) < set(modalities):
        raise ValueError(f"`missing` must leave at least one of the modalities {modalities}, got {list(missing)}")
    check_same_modalities("output.scores", output.scores, modalities)
    return head.fuse({name: output.scores[name] for name in modalities if name not in missing})
