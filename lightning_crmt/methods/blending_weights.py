# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Weights of losses from how much each head overfits and generalises."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lightning_crmt.checks import check_positive


def blending_weights(
    train: Mapping[str, Sequence[float]], val: Mapping[str, Sequence[float]], floor: float = 1e-4
) -> dict[str, float]:
    r"""Weights of Gradient-Blending (Wang, Tran and Feiszli, CVPR 2020, arXiv 1905.12681) from loss curves.

    .. math:: w_k \propto \frac{|G_k|}{O_k^2}, \qquad G_k = L_k^{val}(N) - L_k^{val}(N + n), \qquad
        O_k = \left[ L_k^{val} - L_k^{train} \right](N + n) - \left[ L_k^{val} - L_k^{train} \right](N)

    where N is the first point of a curve and N + n the last: a head is worth what it gained on new samples, over the
    square of what it gained on the training samples alone. For the offline weights of the paper, train each modality
    alone and all jointly, and give the curves of these runs.

    Args:
        train: losses on the training samples, by head, at least two each.
        val: losses on the validation samples, for the same heads.
        floor: least :math:`|O_k|`: a head that did not overfit would otherwise get all the weight.

    Returns:
        Weights that sum to 1; equal ones if no head gained anything.

    Raises:
        ValueError: if the heads differ, a curve has fewer than two points or one that is not finite, or the floor is
            not above 0.

    >>> blending_weights({"audio": [2.0, 0.5], "joint": [2.0, 1.0]}, {"audio": [2.0, 1.0], "joint": [2.0, 1.25]})
    {'audio': 0.25, 'joint': 0.75}
    """
    check_positive(floor=floor)
    if train.keys() != val.keys() or not train:
        raise ValueError(f"`train` and `val` must be of the same heads, got {list(train)} and {list(val)}")
    worth = {}
    for head in train:
        for argument, curve in (("train", train[head]), ("val", val[head])):
            if len(curve) < 2 or not all(math.isfinite(loss) for loss in curve):
                raise ValueError(
                    f"`{argument}[{head!r}]` must hold at least two finite losses, got {[float(x) for x in curve]}"
                )
        gain = abs(val[head][0] - val[head][-1])
        overfitting = abs((val[head][-1] - train[head][-1]) - (val[head][0] - train[head][0]))
        worth[head] = gain / max(overfitting, floor) ** 2
    total = sum(worth.values())
    return {head: value / total if total > 0 else 1 / len(worth) for head, value in worth.items()}
