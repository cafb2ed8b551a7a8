# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Push the modality that lags behind towards its class prototypes."""

from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from typing import Any

# No postponed annotations: jsonargparse checks the fields of a dataclass by them.
import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_crmt.checks import check_at_least, describe
from lightning_crmt.mixin import CRMTMixin
from lightning_crmt.modality import FusionOutput, as_vectors, at_least_single
from lightning_crmt.targets import MixedTarget, Target, has_probabilities, mixed_loss, rows_of
from lightning_crmt.training import Method, Needs, TrainingPass


class Prototypes:
    r"""One prototype per class of one modality's features, a moving average of class means.

    .. math:: p_c \leftarrow (1 - \mu) \, \bar z_c + \mu \, p_c, \qquad d_c(z) = - \lVert z - p_c \rVert_2

    A class without samples keeps the prototype it has; one that never had samples has none, and takes no part.

    Args:
        momentum: :math:`\mu` in [0, 1), the share of the old prototype.
        means: prototypes to start from, ``(K, d_m)``.
        known: which classes have one, ``(K,)``.

    >>> prototypes = Prototypes(momentum=0.0)
    >>> prototypes.update(sums=torch.tensor([[2.0, 0.0], [0.0, 0.0]]), counts=torch.tensor([2.0, 0.0]))
    >>> prototypes.known
    tensor([ True, False])
    >>> prototypes.logits(torch.tensor([[1.0, 3.0]]))
    tensor([[-3.]])
    """

    def __init__(self, momentum: float, *, means: Tensor | None = None, known: Tensor | None = None) -> None:
        self.momentum = momentum
        self.means = torch.empty(0, 0) if means is None else means
        self.known = torch.empty(0, dtype=torch.bool) if known is None else known

    def update(self, sums: Tensor, counts: Tensor) -> None:
        """Add the sum of the features of each class, ``(K, d_m)``, and the number of samples, ``(K,)``."""
        seen = counts > 0
        means = sums / counts.clamp(min=1)[:, None]
        if self.known.numel():
            old, known = self.means.to(means), self.known.to(seen.device)
            moved = (1 - self.momentum) * means + self.momentum * old
            means = torch.where((seen & known)[:, None], moved, torch.where(seen[:, None], means, old))
            seen = seen | known
        self.means, self.known = means, seen

    def logits(self, features: Tensor) -> Tensor:
        """Negative distances ``(B, C)`` of features ``(B, d_m)`` to the C prototypes there are, in order of classes."""
        # Distances are differences: autocast would round them away.
        with torch.autocast(features.device.type, enabled=False):
            features = at_least_single(features)
            known = self.means.to(features)[self.known.to(features.device)]
            # The plain differences: a product of matrices loses small distances to rounding.
            return -torch.cdist(features, known, compute_mode="donot_use_mm_for_euclid_dist")

    def columns(self, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Column of each class in the logits, ``(B,)``, and whether it has one."""
        known = self.known.to(classes.device)
        column = known.cumsum(dim=0) - 1
        return column[classes.long()].clamp(min=0), known[classes.long()]


@dataclass(eq=False, repr=False)
class PrototypicalRebalancing(Method):
    r"""Prototypical modal rebalance (PMR), after Fan et al., CVPR 2023 (arXiv 2211.07089): help the weaker modality.

    With prototypes of the classes in each modality, :class:`Prototypes`, and
    :math:`q^m = \mathrm{softmax}(d^m(z^m))` of shape ``(B, K)`` from features ``(B, d_m)``,

    .. math:: L = \mathrm{CE}(h, y) + \alpha \sum_m \beta_m \, \mathrm{CE}(d^m, y) - \mu \sum_m \gamma_m H(q^m), \qquad
        \beta_m = \mathrm{clip}(\bar s_m / s_m - 1, 0, 1), \quad \gamma_m = \mathrm{clip}(s_m / \bar s_m - 1, 0, 1)

    where :math:`s_m = \sum_i q^m_{y_i}(x_i)` is summed over the batch on all processes, and :math:`\bar s_m` is the
    mean of the other modalities'. The modality that does worse than the others is pulled towards its prototypes; the
    one that does better is kept uncertain in the first epochs. For two modalities :math:`\bar s_m / s_m` is the paper's
    ratio; the mean is our generalisation to more. The entropy term and both clipped coefficients are recalled, not
    read: the released code has no entropy, and 1 in place of a :math:`\beta_m` above 0.

    Prototypes are measured before every epoch, in evaluation mode, on unmixed training samples. For mixed samples
    :math:`s_m` and the loss count both classes by their shares. Where gradients are accumulated, :math:`s_m` is of each
    of the accumulated batches.

    Args:
        weight: :math:`\alpha`, at least 0.
        entropy_weight: :math:`\mu`, at least 0; the default is ours.
        entropy_epochs: epochs from the first on in which the entropy counts; the default is ours.
        momentum: share of the last prototypes in the new ones, at least 0 and below 1.
        dataloader: batches to measure on; by default the training data set in order. The released code takes the first
            tenth of a shuffled epoch: for large data give such batches.

    Raises:
        ValueError: if an argument is out of range; before training, for a single modality; in training, if the output
            holds no features.

    >>> method = PrototypicalRebalancing(weight=1.0, entropy_weight=0.01, entropy_epochs=5)
    """

    source = "recalled"
    needs = Needs.MODALITIES | Needs.TRAINING_PASS | Needs.CLASSES

    weight: float = 1.0
    _: KW_ONLY
    entropy_weight: float = 0.01
    entropy_epochs: int = 5
    momentum: float = 0.2
    dataloader: Iterable[Any] | None = None

    def __post_init__(self) -> None:
        check_at_least(0, weight=self.weight, entropy_weight=self.entropy_weight, entropy_epochs=self.entropy_epochs)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"`momentum` must be at least 0 and below 1, got {self.momentum}")
        self.reset()

    @override
    def reset(self) -> None:
        #: Prototypes in use, by modality; empty before the first epoch.
        self.prototypes: dict[str, Prototypes] = {}
        self._measured_at: int | None = None

    @override
    def on_epoch(self, module: CRMTMixin) -> None:
        if self._measured_at != module.current_epoch:
            self._measure(module)
            self._measured_at = module.current_epoch

    @override
    def term(self, module: CRMTMixin, output: FusionOutput, target: Target) -> Tensor | None:
        if not self.prototypes:
            return None
        features = as_vectors(self.features_of(output))
        logits, targets = {}, {}
        for name, prototypes in self.prototypes.items():
            here = output.present.get(name)
            logits[name] = prototypes.logits(features[name] if here is None else features[name][here])
            targets[name] = target if here is None else rows_of(target, here)
        scores = torch.stack([self._score(name, own, targets[name]) for name, own in logits.items()])
        scores = module.trainer.strategy.reduce(scores, reduce_op="sum").to(scores)
        stimulus, restraint = coefficients(scores)
        losses = torch.stack([self._prototypical_loss(name, own, targets[name]) for name, own in logits.items()])
        total: Tensor = self.weight * (stimulus * losses).sum()
        if module.current_epoch < self.entropy_epochs:
            entropies = torch.stack(
                [-(own.softmax(1) * own.log_softmax(1)).sum() / max(len(own), 1) for own in logits.values()]
            )
            total = total - self.entropy_weight * (restraint * entropies).sum()
        return total

    # --- state: tensors and plain numbers, as resuming loads with weights_only

    @override
    def state_dict(self) -> dict[str, Any]:
        states = {name: {"means": p.means.cpu(), "known": p.known.cpu()} for name, p in self.prototypes.items()}
        return {"prototypes": states, "measured_at": self._measured_at}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        states = state_dict["prototypes"]
        self.prototypes = {name: Prototypes(self.momentum, **state) for name, state in states.items()}
        self._measured_at = state_dict["measured_at"]

    # --- parts

    def _measure(self, module: CRMTMixin) -> None:
        classes, reduce = module.head.num_classes, module.trainer.strategy.reduce
        kept = torch.promote_types(torch.float32, next(module.parameters()).dtype)
        sizes = module.head.in_features
        counts = {name: torch.zeros(classes, dtype=kept, device=module.device) for name in sizes}
        sums = {name: counts[name].new_zeros(classes, size) for name, size in sizes.items()}
        with TrainingPass(module.trainer, self.dataloader).samples(module, "Prototypes") as samples:
            for inputs, target in samples:
                if has_probabilities(target):
                    raise ValueError(
                        "PrototypicalRebalancing has prototypes of classes, so targets must be classes (B,), got "
                        f"probabilities of them, {describe(target)}"
                    )
                output = module(inputs)
                for name, value in as_vectors(self.features_of(output)).items():
                    here = output.present.get(name, slice(None))
                    sums[name].index_add_(0, target[here].long(), value[here].to(sums[name]))
                    counts[name] += torch.bincount(target[here].long(), minlength=classes)
        for name, each in sums.items():
            total = reduce(each, reduce_op="sum").to(each)
            count = reduce(counts[name], reduce_op="sum").to(each)
            self.prototypes.setdefault(name, Prototypes(self.momentum)).update(total, count)

    def _score(self, name: str, logits: Tensor, target: Target) -> Tensor:
        """:math:`s_m` on this process, without a graph."""
        probabilities = logits.detach().softmax(dim=1)

        def of_class(classes: Tensor) -> Tensor:
            column, known = self.prototypes[name].columns(classes)
            total: Tensor = (probabilities.gather(1, column[:, None])[:, 0] * known).sum()
            return total

        return mixed_loss(of_class, target)

    def _prototypical_loss(self, name: str, logits: Tensor, target: Target) -> Tensor:
        """Cross-entropy of the samples whose classes have a prototype."""
        counted = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
        for classes in target[:2] if isinstance(target, MixedTarget) else [target]:
            counted &= self.prototypes[name].columns(classes)[1]

        def of_class(classes: Tensor) -> Tensor:
            column, _ = self.prototypes[name].columns(classes)
            # An empty sum is 0, and keeps the graph.
            return nn.functional.cross_entropy(logits[counted], column[counted], reduction="sum")

        return mixed_loss(of_class, target) / counted.sum().clamp(min=1)


def coefficients(scores: Tensor) -> tuple[Tensor, Tensor]:
    r""":math:`\beta_m` and :math:`\gamma_m` of :class:`PrototypicalRebalancing` from scores :math:`s_m`, ``(M,)``.

    >>> coefficients(torch.tensor([3.0, 2.0]))  # the second is weaker by half
    (tensor([0.0000, 0.5000]), tensor([0.5000, 0.0000]))
    """
    others = (scores.sum() - scores) / (len(scores) - 1)
    tiny = torch.finfo(scores.dtype).tiny
    stimulus = (others / scores.clamp(min=tiny) - 1).clamp(0, 1)
    restraint = (scores / others.clamp(min=tiny) - 1).clamp(0, 1)
    return stimulus, restraint
