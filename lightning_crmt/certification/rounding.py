# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
r"""How much rounding may reduce the margins of a fusion head: the slack that makes a certificate rigorous.

A logit sums, in the precision of the head, t terms: the products of the longest features, their cast, the weight, the
scores of M modalities and the bias. So with :math:`w_k = a_k d_k`, features :math:`\hat z` that are off by at most
:math:`e^m(r) = \alpha^m + \beta^m r` and no longer than :math:`\mu^m + \nu^m r`,

.. math:: |\hat h_k - h_k| \le \sum_m |w_k^m \cdot (\hat z^m - z^m)|
          + \gamma_t \Big( \sum_m |w_k^m| \cdot |\hat z^m| + |b_k| \Big) .

Used for two classes at x and at x' (or for one label, whose rival, 0, has no error), where the errors of features meet
:math:`w_p - w_j` and the head's own rounding each row, it says how far the *computed* margin at x' can be below the
computed margin at x.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_crmt.certification.inequality import apart, together
from lightning_crmt.fusion import LateFusion
from lightning_crmt.lipschitz import (
    UNDERFLOW,
    UNIT_ROUNDOFF,
    ForwardError,
    LipschitzConstants,
    exact_numbers,
    fixed_head,
    gamma,
)
from lightning_crmt.targets import answers

#: Over the rounding of a few operations in double precision.
UP = 1 + 2.0**-40
# Above all that underflows in the double precision arithmetic here, and squares without underflow.
_TINY = 2.0**-400


def rounding(
    logits: Tensor,
    head: LateFusion | None,
    lipschitz: LipschitzConstants,
    errors: Mapping[str, ForwardError],
    multi_label: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""The slack of every margin, and the sensitivities increased by rounding.

    While :math:`\|\delta^m\| \le r^m \le 2^{60}`, the margin that the head computes stays at least

    .. math:: \hat m_{pj} - \text{slack}_{pj} - \sum_m D_{pj}^m r^m

    with :math:`\Delta w^m = w_p^m - w_j^m` and :math:`\Sigma^m = \|w_p^m\| + \|w_j^m\|`

    .. math:: \text{slack}_{pj} &= \sum_m 2 \left( \|\Delta w^m\| \alpha^m + \gamma_t \Sigma^m \mu^m \right)
                  + 2 \gamma_t (|b_p| + |b_j|) + \text{underflow} \\
              D_{pj}^m &= \|\Delta w^m\| (L_m + \beta^m) + \gamma_t \Sigma^m \nu^m .

    Args:
        logits: ``(B, K)``, as the head computed them; p is the predicted class.
        head: a head of stored numbers, in single or double precision, on the CPU.
        lipschitz: constants :math:`L_m` of the encoders.
        errors: :math:`\alpha, \beta, \mu, \nu` of each modality that is present.
        multi_label: of the margins of labels, for which only what is of j counts.

    Returns:
        The slack ``(B, K)`` and :math:`D^m`, each ``(B, K)``, in double precision and above the exact values.

    Raises:
        ValueError: if ``head`` computes its numbers anew or runs where nothing is proved about its rounding, if
            constants or errors do not fit, or logits could overflow.
    """
    head = fixed_head(head)
    if lipschitz.of != "encoder":
        raise ValueError(f"`lipschitz` must hold constants of encoders where `errors` are given, got {lipschitz.of!r}")
    dtype, prediction = head.bias.dtype, answers(logits, multi_label)
    if (logits.dtype, logits.device) != (dtype, head.bias.device):
        raise ValueError(
            f"`output` must be as `head` computes it where `errors` are given, {dtype} on {head.bias.device}, "
            f"got {logits.dtype} on {logits.device}"
        )
    terms = max(head.in_features.values()) + len(head.in_features) + 2
    relative = gamma(terms, UNIT_ROUNDOFF[dtype])
    up = UP + terms * 2.0**-52
    bias = exact_numbers(head.bias, "bias").abs()
    slack = 2 * relative * together(bias, prediction)
    slopes = {}
    directions, weights = head.directions, head.integration_weights
    largest, growth = float(bias.max()), 0.0
    for name, error in errors.items():
        if error.at.shape != logits.shape[:1]:
            raise ValueError(
                f"`errors[{name!r}]` must be of the {len(logits)} samples of `output`, got {len(error.at)}"
            )
        factors, rows = (
            exact_numbers(weights[name], "integration_weights"),
            exact_numbers(directions[name], "directions"),
        )
        longest = float((1 + factors.abs().max()) * (1 + torch.linalg.vector_norm(rows, dim=1).max()))
        largest, growth = largest + longest * float(error.magnitude.max()), growth + longest * error.magnitude_growth
        rows = factors[:, None] * rows  # exact, where both are in single precision
        norms = torch.linalg.vector_norm(rows, dim=1)
        both = together(norms, prediction) * up + _TINY
        distances = apart(rows, prediction) * up + both * 2.0**-50
        # In each product, cast and weighted score; the first two are then weighted.
        lost = 4 * terms * UNDERFLOW[dtype] * longest**2
        slack = slack + 2 * (distances * error.at[:, None] + relative * both * error.magnitude[:, None] + lost)
        speed = distances * (lipschitz.values[name].detach().cpu().double() + error.growth)
        slopes[name] = (speed + relative * both * error.magnitude_growth) * up + _TINY
    if not (largest <= ForwardError.LARGEST_RADIUS and growth <= ForwardError.LARGEST_RADIUS):
        raise ValueError(
            f"logits must stay below {ForwardError.LARGEST_RADIUS:.0e}, where single precision cannot overflow, for a "
            "certificate that counts rounding"
        )
    return slack * up, slopes
