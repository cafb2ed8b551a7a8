# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Reset modalities partly towards their initial weights where they overfit."""

# No postponed annotations: jsonargparse checks the fields of a dataclass by them.
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors
from typing_extensions import override

from lightning_crmt.checks import check_at_least, check_positive, describe
from lightning_crmt.methods.parts.clustering import purity
from lightning_crmt.methods.parts.modality_parts import encoder_parameters
from lightning_crmt.mixin import CRMTMixin
from lightning_crmt.modality import as_vectors
from lightning_crmt.targets import most_probable
from lightning_crmt.training import Method, Needs, TrainingPass, ValidationPass


@dataclass(eq=False, repr=False)
class Relearning(Method):
    r"""Diagnosing and re-learning (Wei et al., ECCV 2024): overfitted encoders move back to their initial weights.

    Wei, Li, Feng and Hu, Diagnosing and Re-learning for Balanced Multimodal Learning, ECCV 2024.

    .. math:: \Delta_m = | P_m^{\text{train}} - P_m^{\text{val}} |, \qquad w_m = \tanh(\beta \Delta_m), \qquad
        \theta_m \leftarrow w_m \theta_m^0 + (1 - w_m) \theta_m

    with the purity P of a k-means clustering of the modality's features into as many clusters as classes: the share of
    samples that are of the commonest class of their cluster. A large gap between training and validation data means
    that the modality has learned what does not generalise: it is reset the most. One that has learned little has a
    small gap, and a small reset, which keeps it from fitting noise.

    As in the released code: parameters of the encoders, not BatchNorm's statistics; each feature scaled to [-1, 1]; the
    state of the optimizer stays. That code does it three times, after epochs 20, 40 and 60. The k-means is the
    package's own, with ten starts from k-means++, always the same ones. The features are those of the model in
    evaluation mode, of all samples on all processes; under DDP a few may be repeated to even the processes out.
    Mixed samples make no difference: the features are of unmixed ones.

    The initial weights are part of this callback's state in a checkpoint, so that a resumed run has them. They are
    those that the fit began with, pretrained or not.

    Args:
        epochs: the epochs at whose beginning encoders are reset, counted from 0.
        strength: the factor :math:`\beta`, above 0.
        dataloader: batches for the training part; by default the training data set in order, each sample once.
        seed: of the clusterings.

    Raises:
        ValueError: if an argument is out of range; before training, if there is no validation; at such an epoch, if the
            head does not say which features it was given.
        TypeError: if ``dataloader`` can be read only once; before training, if the training data set cannot be read in
            order without it.

    >>> method = Relearning(epochs=(20, 40, 60))
    """

    source = "authors' code"
    needs = Needs.STEPS | Needs.VALIDATION | Needs.TRAINING_PASS | Needs.CLASSES
    saved = ("first",)

    epochs: Sequence[int] = (20, 40, 60)
    _: KW_ONLY
    strength: float = 3.0
    dataloader: Iterable[Any] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.epochs or min(self.epochs) < 1:
            raise ValueError(f"`epochs` must be one or more, each at least 1, got {list(self.epochs)}")
        check_positive(strength=self.strength)
        check_at_least(0, seed=self.seed)
        if isinstance(self.dataloader, Iterator):
            raise TypeError(
                f"`dataloader` is read every time, so it must not be an iterator, got {describe(self.dataloader)}"
            )
        self.reset()

    @override
    def reset(self) -> None:
        #: The weights :math:`w_m` of the last reset.
        self.weights: dict[str, float] = {}
        #: The parameters that each encoder began with.
        self.first: dict[str, dict[str, Tensor]] = {}

    @override
    def begin(self, module: CRMTMixin) -> None:
        self.first = {
            name: {key: parameter.detach().cpu().clone() for key, parameter in encoder.named_parameters()}
            for name, encoder in module.encoders.items()
        }

    @override
    def on_epoch(self, module: CRMTMixin) -> None:
        trainer = module.trainer
        if trainer.current_epoch not in self.epochs:
            return
        train = self._purities(module, TrainingPass(trainer, self.dataloader))
        val = self._purities(module, ValidationPass(trainer))
        self.weights = {name: math.tanh(self.strength * abs(train[name] - val[name])) for name in train}
        own = {id(p) for parameters in encoder_parameters(module).values() for p in parameters}
        with torch.no_grad():
            for name, weight in self.weights.items():
                for key, parameter in module.encoders[name].named_parameters():
                    if id(parameter) in own:
                        first_value = self.first[name][key].to(parameter)
                        parameter.copy_(weight * first_value + (1 - weight) * parameter)

    def _purities(self, module: CRMTMixin, data: TrainingPass) -> dict[str, float]:
        """Purity of each modality's features, the same on every process."""
        parts: dict[str, list[Tensor]] = {name: [] for name in module.encoders}
        targets: dict[str, list[Tensor]] = {name: [] for name in module.encoders}
        with data.samples(module, "Features") as samples:
            for inputs, target in samples:
                output = module(inputs)
                for name, features in as_vectors(self.features_of(output)).items():
                    here = output.present.get(name, slice(None))
                    parts[name].append(features[here].float())
                    targets[name].append(most_probable(target)[here])
        purities = {}
        for name, each in parts.items():
            features, classes = (_of_all_processes(data.trainer, torch.cat(rows)) for rows in (each, targets[name]))
            purities[name] = purity(features, classes, module.head.num_classes, self.seed)
        # Devices may round differently; the weights must not drift apart.
        agreed: dict[str, float] = data.trainer.strategy.broadcast(purities)
        return agreed


def _of_all_processes(trainer: Trainer, rows: Tensor) -> Tensor:
    """The rows of all processes, in the order of a single one's that dealt them out one by one."""
    if trainer.world_size == 1:
        return rows
    parts = gather_all_tensors(rows)
    dealt = [torch.arange(rank, len(part) * len(parts), len(parts)) for rank, part in enumerate(parts)]
    return torch.cat(parts)[torch.cat(dealt).argsort().to(rows.device)]
