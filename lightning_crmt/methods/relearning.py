# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Let modalities forget what they learned too well."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from typing_extensions import override

from lightning_crmt.checks import describe
from lightning_crmt.frozen_eval import frozen_eval
from lightning_crmt.methods.parts.clustering import purity
from lightning_crmt.methods.parts.features import as_vectors, features_of
from lightning_crmt.methods.parts.modality_parts import check_steps_in_reach, encoder_parameters
from lightning_crmt.methods.parts.unimodal_validation import check_validation
from lightning_crmt.mixin import CRMTMixin
from lightning_crmt.training import Method, TrainingPass, crmt_module


class Relearning(Method):
    r"""Diagnosing and re-learning (Wei et al., ECCV 2024): overfitted encoders go back towards their first weights.

    Wei, Li, Feng and Hu, Diagnosing and Re-learning for Balanced Multimodal Learning, ECCV 2024.

    .. math:: \Delta_m = | P_m^{\text{train}} - P_m^{\text{val}} |, \qquad w_m = \tanh(\beta \Delta_m), \qquad
        \theta_m \leftarrow w_m \theta_m^0 + (1 - w_m) \theta_m

    with the purity P of a k-means clustering of the modality's features into as many clusters as classes: the share of
    samples that are of the commonest class of their cluster. A large gap between training and validation data means
    that the modality was learned past what generalises: it is sent back the most. A scarcely learned one has a
    small gap, and a small step back, which keeps it from fitting noise.

    As in the released code: parameters of the encoders, not BatchNorm's statistics; each feature scaled to [-1, 1]; the
    state of the optimizer stays. There it happens three times, after the epochs 20, 40 and 60. The k-means is the
    package's own, with ten starts from k-means++, always the same ones. The features are those of the model in
    evaluation mode, of all samples on all processes; under DDP a few may be repeated to even the processes out.
    Mixed samples are no matter: the features are of the data as they are.

    The first weights are part of this callback's state in a checkpoint, so that a resumed run knows them. They are
    those that the fit began with, pretrained ones too.

    Args:
        epochs: at the beginning of which epochs, counted from 0.
        strength: the factor :math:`\beta`, above 0.
        dataloader: batches for the training part; by default the training data set in order, each sample once.
        seed: of the clusterings.

    Raises:
        ValueError: if an argument is out of range; before training, if there is no validation; at such an epoch, if the
            head does not say which features it was given.
        TypeError: if ``dataloader`` can be read only once; at such an epoch, if the training data set cannot be read in
            order without it.

    >>> method = Relearning(epochs=(20, 40, 60))
    """

    def __init__(
        self,
        epochs: Sequence[int] = (20, 40, 60),
        strength: float = 3.0,
        dataloader: Iterable[Any] | None = None,
        seed: int = 0,
    ) -> None:
        if not epochs or min(epochs) < 1:
            raise ValueError(f"`epochs` must be one or more, each at least 1, got {list(epochs)}")
        if not (math.isfinite(strength) and strength > 0):
            raise ValueError(f"`strength` must be above 0, got {strength}")
        if seed < 0:
            raise ValueError(f"`seed` must be at least 0, got {seed}")
        if isinstance(dataloader, Iterator):
            raise TypeError(
                f"`dataloader` is read every time, so it must not be an iterator, got {describe(dataloader)}"
            )
        self.epochs = epochs
        self.strength = strength
        self.dataloader = dataloader
        self.seed = seed
        #: The weights :math:`w_m` of the last time.
        self.weights: dict[str, float] = {}
        self._first: dict[str, dict[str, Tensor]] = {}

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            check_steps_in_reach(trainer, pl_module, self)
            # A resumed run gets those of the interrupted one after this.
            self._first = {
                name: {key: parameter.detach().cpu().clone() for key, parameter in encoder.named_parameters()}
                for name, encoder in crmt_module(pl_module, self).encoders.items()
            }
            self.weights = {}

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_validation(trainer, self)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch not in self.epochs or not self.active(pl_module):
            return
        module = crmt_module(pl_module, self)
        # Loaders draw a seed for their workers, which would change the training that follows.
        with isolate_rng():
            train = self._purities(trainer, module, TrainingPass(trainer, self.dataloader))
            val = self._purities(trainer, module, _validation_pass(trainer))
        self.weights = {name: math.tanh(self.strength * abs(train[name] - val[name])) for name in train}
        own = {id(p) for parameters in encoder_parameters(module).values() for p in parameters}
        with torch.no_grad():
            for name, weight in self.weights.items():
                for key, parameter in module.encoders[name].named_parameters():
                    if id(parameter) in own:
                        first_value = self._first[name][key].to(parameter)
                        parameter.copy_(weight * first_value + (1 - weight) * parameter)

    # --- state: tensors

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"first": {name: dict(values) for name, values in self._first.items()}}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._first = {name: dict(values) for name, values in state_dict["first"].items()}

    # --- parts

    def _purities(self, trainer: Trainer, module: CRMTMixin, data: TrainingPass) -> dict[str, float]:
        """Purity of each modality's features, the same on every process."""
        assert isinstance(module, LightningModule)
        names = list(module.encoders.keys())
        parts: dict[str, list[Tensor]] = {name: [] for name in names}
        targets: list[Tensor] = []
        with frozen_eval(module), torch.no_grad():
            for batch in data.batches("Features"):
                inputs, target = module.split_batch(batch)
                features = as_vectors(features_of(module(inputs), self))
                targets.append(target)
                for name in names:
                    parts[name].append(features[name].float())
        classes = _of_all_processes(trainer, torch.cat(targets))
        found = {}
        for name in names:
            features_of_all = _of_all_processes(trainer, torch.cat(parts[name]))
            found[name] = purity(features_of_all, classes, module.head.num_classes, self.seed)
        # Devices may round differently; the weights must not drift apart.
        agreed: dict[str, float] = trainer.strategy.broadcast(found)
        return agreed


def _validation_pass(trainer: Trainer) -> TrainingPass:
    """The same kind of pass over the first validation loader, as far as the Trainer goes in it."""
    loaders, limit = trainer.val_dataloaders, trainer.num_val_batches[0]
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    data = TrainingPass(trainer, loaders[0] if isinstance(loaders, list | tuple) else loaders)
    data.limit = int(limit) if math.isfinite(limit) else None
    return data


def _of_all_processes(trainer: Trainer, rows: Tensor) -> Tensor:
    """The rows of all processes, in the order of a single one's that dealt them out one by one."""
    if trainer.world_size == 1:
        return rows
    sizes = trainer.strategy.all_gather(torch.tensor(len(rows), device=rows.device)).flatten().tolist()
    # Only equal shapes can be gathered.
    padded = torch.cat([rows, rows.new_zeros(max(sizes) - len(rows), *rows.shape[1:])])
    gathered = trainer.strategy.all_gather(padded)
    dealt = gathered.transpose(0, 1).flatten(0, 1)
    real = torch.tensor([place < size for place in range(max(sizes)) for size in sizes], device=rows.device)
    return dealt[real]
