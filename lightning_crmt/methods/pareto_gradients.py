# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Reconcile the gradients of the joint and the uni-modal losses in each encoder."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from typing_extensions import override

from lightning_crmt.checks import check_positive
from lightning_crmt.methods.parts.modality_parts import encoder_parameters
from lightning_crmt.methods.parts.separate_gradients import SeparateGradients
from lightning_crmt.mixin import CRMTMixin
from lightning_crmt.modality import FusionOutput
from lightning_crmt.targets import Target
from lightning_crmt.training import Method, Needs


class ParetoGradients(Method):
    r"""Pareto gradients (MMPareto of Wei and Hu, ICML 2024): uni-modal losses that help the joint one, or do no harm.

    Wei and Hu, MMPareto: Boosting Multimodal Learning with Innocent Unimodal Assistance, ICML 2024.

    The loss gets the terms :math:`\mathrm{CE}(h_m, y)`, one for each modality's own logits. In each encoder, with
    the joint gradient :math:`g` and the uni-modal one :math:`u` of all its tensors,

    .. math:: d = \gamma g + (1 - \gamma) u, \qquad
        \gamma = \begin{cases} \tfrac 1 2 & g \cdot u \ge 0 \\
        \dfrac{\|u\|^2 - g \cdot u}{\|g - u\|^2} & \text{else} \end{cases}, \qquad
        \text{gradient} = \lambda \max\left( 1, \frac{\|g + u\|}{\|2 d\|} \right) 2 d

    where the norms of the last are of each tensor. In a conflict d is the shortest convex combination, which lies
    strictly between both gradients and lowers both losses; the factor restores the size that it lost. The head keeps
    the plain sum.

    As in the released code. Here the joint gradient is all of the loss but this modality's own term: also CRMT's margin
    regularisation and the terms of other methods; set ``rho: 0`` for the method as published, and leave out
    ``UnimodalLosses``, whose terms these are. It costs one more backward pass through each encoder. Gradients are
    compared when they are accumulated, averaged over processes and unscaled; where they overflowed in half precision
    the plain sum stays, and the scaler skips the step. Mixed samples get the mixed cross-entropy.

    Args:
        rescale: the factor :math:`\lambda`, above 0; 1.5 in the released code.

    Raises:
        ValueError: if ``rescale`` is out of range; before training, if optimization is manual.

    >>> method = ParetoGradients()
    """

    source = "authors' code"
    needs = Needs.STEPS

    def __init__(self, rescale: float = 1.5) -> None:
        check_positive(rescale=rescale)
        self.rescale = rescale
        self.reset()

    @override
    def reset(self) -> None:
        #: The shares :math:`\gamma` of the joint gradient in the last step.
        self.shares: dict[str, float] = {}
        self.forget_batches()

    @override
    def forget_batches(self) -> None:
        self._own = SeparateGradients()

    @override
    def term(self, module: CRMTMixin, output: FusionOutput, target: Target) -> Tensor:
        logits = module.head.unimodal_logits(output.scores)
        means = {
            name: module.crmt_criterion.loss(own, target, output.present.get(name)) for name, own in logits.items()
        }
        if torch.is_grad_enabled():
            for name, parameters in encoder_parameters(module).items():
                if parameters:
                    self._own.add(name, means[name], parameters, module.trainer)
        return torch.stack(list(means.values())).sum()

    @override
    def before_step(self, module: CRMTMixin) -> None:
        for name, (parameters, gradients) in self._own.take(module.trainer).items():
            pairs = [(p.grad, own) for p, own in zip(parameters, gradients, strict=True) if p.grad is not None]
            joint = [total.to(own.dtype) - own for total, own in pairs]
            share = joint_share(joint, [own for _, own in pairs])
            if share is None:
                continue
            self.shares[name] = share
            for (total, own), rest in zip(pairs, joint, strict=True):
                mixed = 2 * (share * rest + (1 - share) * own)
                size = mixed.norm()
                # Where the two cancel exactly there is no direction to rescale.
                longer = torch.where(size > 0, (rest + own).norm() / size, size).clamp(min=1)
                total.copy_(self.rescale * longer * mixed)


def joint_share(joint: list[Tensor], own: list[Tensor]) -> float | None:
    r"""The share :math:`\gamma` of the joint gradient; None if the gradients are not finite.

    >>> joint_share([torch.tensor([1.0, 0.0])], [torch.tensor([1.0, 1.0])])
    0.5
    >>> round(joint_share([torch.tensor([1.0, 0.0])], [torch.tensor([-2.0, 2.0])]), 3)  # (8 + 2) / 13
    0.769
    """
    if not joint:
        return None
    products = [
        torch.stack([(a * b).sum() for a, b in zip(first, second, strict=True)]).sum()
        for first, second in ((joint, own), (joint, joint), (own, own))
    ]
    dot, of_joint, of_own = torch.stack(products).tolist()
    if not all(map(math.isfinite, (dot, of_joint, of_own))):
        return None
    return 0.5 if dot >= 0 else float((of_own - dot) / (of_joint + of_own - 2 * dot))
