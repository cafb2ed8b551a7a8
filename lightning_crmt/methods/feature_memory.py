# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""Fill the memory of a head with features of training samples."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from typing_extensions import override

from lightning_crmt.checks import check_at_least, describe
from lightning_crmt.encoding import encoded
from lightning_crmt.fusion import MemoryFusion
from lightning_crmt.mixin import CRMTMixin
from lightning_crmt.modality import present_of, select
from lightning_crmt.training import Method, Needs, TrainingPass, crmt_module


class FeatureMemory(Method):
    r"""External feature memory (ExFMem of Tian and Xu, CVPR 2021, arXiv 2104.02000): fills a ``MemoryFusion`` head.

    .. math:: z^m \leftarrow a D^m c^m + (1 - a) z^m

    The head does this, in training and in evaluation; the callback chooses the dictionaries :math:`D^m`, ``(A, d_m)``:
    the features of A clean training samples, the same for all modalities, drawn without replacement. They are measured
    again, in evaluation mode, before each epoch of training from ``start_epoch`` on and before each validation, so that
    those in a checkpoint belong to its encoders. Testing a checkpoint needs the head alone. We do not know when the
    paper measures its dictionaries. With :class:`MinimalSimilarity` it is the paper's whole defence.

    Args:
        start_epoch: first epoch that is trained with a memory, counted from 0; by then the encoders should be partly
            trained.
        seed: decides which samples are drawn.
        dataloader: batches of clean samples to draw from; by default the training data set in order.

    Raises:
        ValueError: if an argument is negative.
        TypeError: on ``setup``, if the head is not a ``MemoryFusion``.

    >>> from lightning_crmt.fusion import MemoryFusion
    >>> head, callback = MemoryFusion({"audio": 16, "image": 16}, num_classes=10), FeatureMemory(start_epoch=5)
    """

    source = "paper"
    needs = Needs.TRAINING_PASS

    def __init__(self, start_epoch: int = 1, *, dataloader: Iterable[Any] | None = None, seed: int = 0) -> None:
        check_at_least(0, start_epoch=start_epoch, seed=seed)
        self.start_epoch = start_epoch
        self.dataloader = dataloader
        self.seed = seed
        self.reset()

    @override
    def reset(self) -> None:
        self._filled_at: int | None = None  # number of optimizer steps

    @override
    def begin(self, module: CRMTMixin) -> None:
        self._memory(module)

    def _memory(self, module: CRMTMixin) -> MemoryFusion:
        if not isinstance(module.head, MemoryFusion):
            raise TypeError(f"FeatureMemory fills the head MemoryFusion, got {describe(module.head)}")
        return module.head

    @override
    def on_epoch(self, module: CRMTMixin) -> None:
        self._fill(module, module.current_epoch)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            # The memory that the next epoch begins with, if there is one.
            self._fill(crmt_module(pl_module, self), trainer.current_epoch + 1)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._fill(crmt_module(pl_module, self), trainer.current_epoch)

    def _fill(self, module: CRMTMixin, epoch: int) -> None:
        trainer, head = module.trainer, self._memory(module)
        if epoch < self.start_epoch or self._filled_at == trainer.global_step or not self.active(module):
            return
        own = self._draw(module, len(range(trainer.global_rank, head.atoms, trainer.world_size)))
        memory = {}
        for name, dictionary in head.dictionaries.items():
            # Each process has places of its own, so that the sum over all is what all have drawn.
            rows = torch.zeros_like(dictionary)
            rows[trainer.global_rank :: trainer.world_size][: len(own[name])] = own[name].to(rows)
            memory[name] = trainer.strategy.reduce(rows, reduce_op="sum").to(rows)
        head.fill(memory)
        self._filled_at = trainer.global_step

    def _draw(self, module: CRMTMixin, count: int) -> dict[str, Tensor]:
        """Features of ``count`` samples of this process, or of all if there are fewer."""
        trainer = module.trainer
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + trainer.global_rank)
        keys = torch.empty(0)
        kept: dict[str, Tensor] = {}
        with TrainingPass(trainer, self.dataloader).samples(module, "Feature memory") as samples:
            for inputs, target in samples:
                if present := present_of(inputs):  # atoms are samples that have all modalities
                    complete = torch.stack(list(present.values())).all(dim=0).nonzero().squeeze(1)
                    inputs, target = select(inputs, complete), target[complete]
                # Every sample draws a key, and the largest keys stay: a sample of all without knowing how many.
                keys = torch.cat([keys, torch.rand(len(target), generator=generator)])
                keys, order = keys.topk(min(count, len(keys)))
                for name, value in encoded(module.encoders, inputs).items():
                    pool = torch.cat([kept[name], value]) if name in kept else value
                    kept[name] = pool[order.to(pool.device)]
        if not kept:
            raise ValueError("FeatureMemory must see at least one training sample, got none")
        return kept
