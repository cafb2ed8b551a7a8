# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Weight the losses of all heads by how well they generalise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lightning_crmt.checks import check_at_least, check_positive, check_same_modalities, describe
from lightning_crmt.methods.parts.unimodal_readout import Readout, UnimodalReadout
from lightning_crmt.mixin import CRMTMixin
from lightning_crmt.modality import FusionOutput, at_least_single
from lightning_crmt.targets import Target
from lightning_crmt.training import BatchSums, Method, Needs, TrainingPass, ValidationPass, crmt_module

#: Name of the loss of the joint logits, next to those of the modalities.
JOINT = "joint"


class GradientBlending(Method):
    r"""Gradient-Blending, after Wang et al., CVPR 2020 (arXiv 1905.12681): losses weighted by how they generalise.

    .. math:: L = \sum_k w_k \, \mathrm{CE}(h_k, y), \qquad k \in \{\text{modalities}, \text{joint}\}

    with weights from :func:`~lightning_crmt.methods.blending_weights`. **Offline** (``super_epoch=None``) they are
    given and never change. **Online**, losses of all heads are measured before the first epoch and after every
    super-epoch of n epochs, on all training and all validation samples in evaluation mode, and the weights of the next
    super-epoch come from the last two measurements. The paper's online variant trains a copy of the model for each head
    to see what it would do alone; here the heads are watched while they are trained together, at the cost of the passes
    alone. Margin regularisation (``rho`` above 0) is added as it is; take 0 for the method itself. The loss of a mixed
    sample weights both classes by their shares; measurements use unmixed samples.

    The weights are logged as ``train/blending_weight/...``. Logits are ``(B, K)``, features ``(B, d_m)``.

    Args:
        weights: by modality and ``"joint"``, at least 0, not all 0; online, those of the first super-epoch, by default
            equal.
        super_epoch: epochs between two estimates; None keeps ``weights``.
        heads: ``"separate"`` linear heads as in the paper, or ``"own"``, see :class:`UnimodalLosses`.
        floor: see :func:`~lightning_crmt.methods.blending_weights`.
        dataloader: batches for the losses on training samples; by default the training data set in order.

    Raises:
        ValueError: if an argument is out of range; on ``setup``, if the weights are not of the module's modalities;
            before training, if there is no validation data to estimate weights from, or another loss replaces
            cross-entropy.
        TypeError: before training, if there is more than one validation loader.

    >>> offline = GradientBlending(weights={"audio": 0.1, "image": 0.6, "joint": 0.3}, super_epoch=None)
    >>> online = GradientBlending(super_epoch=10)
    """

    source = "paper"
    saved = ("weights", "losses", "measured_at")

    def __init__(
        self,
        weights: Mapping[str, float] | None = None,
        *,
        super_epoch: int | None = 10,
        heads: Readout = "separate",
        floor: float = 1e-4,
        dataloader: Iterable[Any] | None = None,
    ) -> None:
        if super_epoch is None and weights is None:
            raise ValueError("give `weights`, or `super_epoch` to estimate them; got neither")
        check_at_least(1, super_epoch=super_epoch)
        if weights is not None and not (all(w >= 0 for w in weights.values()) and sum(weights.values()) > 0):
            raise ValueError(f"`weights` must be at least 0, and not all 0, got {dict(weights)}")
        check_positive(floor=floor)
        self.needs = Needs.NOTHING if super_epoch is None else Needs.VALIDATION | Needs.TRAINING_PASS
        self.super_epoch = super_epoch
        self.floor = floor
        self.dataloader = dataloader
        self.readout = UnimodalReadout(heads)
        self._given = None if weights is None else dict(weights)
        self.reset()

    @override
    def reset(self) -> None:
        #: Weights in use, by head.
        self.weights: dict[str, float] = {}
        #: Losses by head at the last measurement, on ``"train"`` and ``"val"``, and its epoch.
        self.losses: dict[str, dict[str, float]] = {}
        self.measured_at: int | None = None

    @override
    def begin(self, module: CRMTMixin) -> None:
        if JOINT in module.encoders:
            raise ValueError(f"`encoders` must not hold a modality named {JOINT!r}: that is the name of the joint head")
        heads = [*module.encoders.keys(), JOINT]
        if self._given is not None:
            check_same_modalities("weights", self._given, heads)
        self.weights = dict(self._given or {head: 1 / len(heads) for head in heads})
        self.readout.attach(module, self)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self.super_epoch is not None and len(trainer.num_val_batches) > 1:
            raise TypeError(f"GradientBlending needs one validation loader, got {describe(trainer.val_dataloaders)}")
        objective = crmt_module(pl_module, self).training_stage.objective
        if objective is not None:
            raise ValueError(
                "GradientBlending weights cross-entropy, so it cannot be used where another loss replaces it: "
                f"got {objective.name!r}"
            )

    @override
    def on_epoch(self, module: CRMTMixin) -> None:
        epoch = module.current_epoch
        if self.super_epoch is not None and epoch % self.super_epoch == 0 and epoch != self.measured_at:
            train = self._mean_losses(module, TrainingPass(module.trainer, self.dataloader), "train")
            val = self._mean_losses(module, ValidationPass(module.trainer), "val")
            if self.losses:
                curves = [
                    {head: (before[head], after[head]) for head in self.weights}
                    for before, after in ((self.losses["train"], train), (self.losses["val"], val))
                ]
                self.weights = blending_weights(curves[0], curves[1], self.floor)
            self.losses, self.measured_at = {"train": train, "val": val}, epoch
        # The numbers are equal on all ranks already; sync_dist says so to Lightning.
        shown = {f"train/blending_weight/{head}": weight for head, weight in self.weights.items()}
        module.log_dict(shown, sync_dist=True)

    @override
    def term(self, module: CRMTMixin, output: FusionOutput, target: Target) -> Tensor:
        # The module's own loss holds the joint one already, once.
        joint = (self.weights[JOINT] - 1) * module.crmt_criterion.loss(output.logits, target)
        logits = self.readout.logits(module, output, self)
        own_losses = (
            self.weights[name] * module.crmt_criterion.loss(own, target, output.present.get(name))
            for name, own in logits.items()
        )
        return sum(own_losses, start=joint)

    def _mean_losses(self, module: CRMTMixin, data: TrainingPass, part: str) -> dict[str, float]:
        """Mean loss of every head over the samples of all processes."""
        sums = BatchSums()
        with data.samples(module, f"Losses of each head, {part}") as samples:
            for inputs, target in samples:
                output = module(inputs)
                logits = {**self.readout.logits(module, output, self), JOINT: output.logits}
                # In half precision the differences that make up the weights would be lost.
                own = {head: at_least_single(logits[head]) for head in self.weights}
                here = output.present
                losses = {h: module.crmt_criterion.loss(each, target, here.get(h)) for h, each in own.items()}
                counts = {h: int(here[h].sum()) if h in here else len(target) for h in losses}
                sums.add({h: each * counts[h] for h, each in losses.items()}, len(target), here)
        if not sums:
            raise ValueError(f"GradientBlending must see at least one {part} sample, got none")
        return sums.means(module.trainer)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"heads": self.readout.state_dict(), **super().state_dict()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.readout.load_state_dict(state_dict["heads"])
        if self.super_epoch is not None:  # given weights never change
            super().load_state_dict(state_dict)


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
